//! What may be said on which stream, and how much: the rules of [`torpor_abi::frame`] for one VM.
//!
//! The VM process applies them to the guest's ring, the host to the VM process's socket. Both keep one [`Ledger`] that
//! sees every frame of both directions in order, so the two agree without asking each other.

use std::collections::{HashMap, HashSet};
use thiserror::Error;
use torpor_abi::endpoint::{ENDPOINT_BYTES, Transport};
use torpor_abi::frame::{
    ATTACH_BYTES, BadHeader, CONNECTION_WINDOW_BYTES, Header, INITIAL_WINDOW_BYTES, MAX_CONNECTIONS, MAX_WINDOW_BYTES,
    is_guest_number, kind, stream,
};

/// Payload of OPEN.
pub const OPEN_BYTES: u32 = 2 * ENDPOINT_BYTES as u32;

/// A frame that breaks the protocol. Ends the VM that it came from.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Violation {
    /// The header can't be read.
    #[error("frame header breaks the format: {0:?}")]
    Header(BadHeader),
    /// The stream's number means nothing here.
    #[error("frame of kind {kind} on stream {stream}, which is not open")]
    Stream {
        /// As received.
        stream: u32,
        /// As received.
        kind: u16,
    },
    /// The kind means nothing on that stream, or not in the state that it is in.
    #[error("frame of unexpected kind {kind} on stream {stream}")]
    Kind {
        /// As received.
        stream: u32,
        /// As received.
        kind: u16,
    },
    /// More data than the window allows.
    #[error("stream {stream} sent {len} bytes where {free} were allowed")]
    Window {
        /// As received.
        stream: u32,
        /// Payload bytes of the frame.
        len: u32,
        /// Room that was left.
        free: u32,
    },
    /// More was allowed than may be at once.
    #[error("stream {stream} allowed {credit} bytes more where {free} were allowed already")]
    Credit {
        /// As received.
        stream: u32,
        /// The frame's argument.
        credit: u32,
        /// What was allowed before.
        free: u32,
    },
    /// Data after the sender had said that no more would come.
    #[error("stream {0} sent data after its end")]
    AfterShutdown(u32),
    /// Anything after CLOSE.
    #[error("frame of kind {kind} on stream {stream} after its CLOSE")]
    AfterClose {
        /// As received.
        stream: u32,
        /// As received.
        kind: u16,
    },
    /// OPEN with a number that is taken or the other side's to give.
    #[error("a connection can't have the number {0}")]
    Number(u32),
    /// More connections than [`MAX_CONNECTIONS`].
    #[error("more than {MAX_CONNECTIONS} connections")]
    TooMany,
    /// A payload that says nothing.
    #[error("frame of kind {kind} on stream {stream} has a payload that can't be read")]
    Payload {
        /// As received.
        stream: u32,
        /// As received.
        kind: u16,
    },
    /// A frame that reaches beyond the bytes it came in.
    #[error("frame of {frame_bytes} bytes where {available} were published")]
    Truncated {
        /// Size by the header.
        frame_bytes: u32,
        /// What was there.
        available: u32,
    },
}

/// Who sends a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The guest, through its VM process.
    Guest = 0,
    /// The broker or the proxy.
    Host = 1,
}

/// Who opened a connection, by its number.
fn opener_of(number: u32) -> Side {
    if is_guest_number(number) { Side::Guest } else { Side::Host }
}

impl Side {
    const fn other(self) -> Self {
        match self {
            Self::Guest => Self::Host,
            Self::Host => Self::Guest,
        }
    }
}

/// What one side has said on a stream and may still say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Half {
    /// Payload bytes of DATA so far.
    pub sent_bytes: u64,
    /// Payload bytes that may be sent now.
    pub free_bytes: u32,
    /// SHUTDOWN was sent.
    pub ended: bool,
    /// CLOSE was sent.
    pub closed: bool,
}

impl Half {
    const fn new(free_bytes: u32) -> Self {
        Self { sent_bytes: 0, free_bytes, ended: false, closed: false }
    }

    fn data(&mut self, header: &Header) -> Result<(), Violation> {
        if self.ended {
            return Err(Violation::AfterShutdown(header.stream));
        }
        let free = self.free_bytes;
        self.free_bytes =
            free.checked_sub(header.len).ok_or(Violation::Window { stream: header.stream, len: header.len, free })?;
        self.sent_bytes += u64::from(header.len);
        Ok(())
    }

    fn allow(&mut self, header: &Header, max_bytes: u32) -> Result<(), Violation> {
        let (free, credit) = (self.free_bytes, header.argument);
        let sum = free.checked_add(credit).filter(|&sum| sum <= max_bytes);
        self.free_bytes = sum.ok_or(Violation::Credit { stream: header.stream, credit, free })?;
        Ok(())
    }
}

/// A connection, both halves by [`Side`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// What it carries.
    pub transport: Transport,
    /// OPENED was sent, or is not needed.
    pub answered: bool,
    /// By `Side as usize`.
    pub halves: [Half; 2],
}

/// How far a connection is in moving to another VM process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moving {
    /// What each side should claim to have sent.
    guest_sent: u64,
    host_sent: u64,
}

/// Both directions of all streams.
#[derive(Debug)]
pub struct Ledger {
    tty: bool,
    /// Streams with a fixed number that carry data.
    fixed: [[Half; 2]; 3],
    connections: HashMap<u32, Connection>,
    /// Connections opened by each side.
    opened: [usize; 2],
    /// ATTACH was sent by the host and not answered yet.
    moving: HashMap<u32, Moving>,
    /// Taken over, and not named by ATTACH: the other end may know nothing of them.
    unnamed: HashSet<u32>,
}

impl Ledger {
    /// With `tty` the terminal's output travels on [`stream::STDIN`]; STDOUT and STDERR are not open.
    #[must_use]
    pub fn new(tty: bool) -> Self {
        Self {
            tty,
            fixed: [[Half::new(INITIAL_WINDOW_BYTES); 2]; 3],
            connections: HashMap::new(),
            opened: [0; 2],
            moving: HashMap::new(),
            unnamed: HashSet::new(),
        }
    }

    /// Whether the guest may send data on a stream with a fixed number.
    fn is_output(&self, number: u32) -> bool {
        if self.tty { number == stream::STDIN } else { matches!(number, stream::STDOUT | stream::STDERR) }
    }

    /// Judges a frame that comes from the guest.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn from_guest(&mut self, header: &Header) -> Result<(), Violation> {
        let Header { stream: number, kind: what, .. } = *header;
        if number >= stream::FIRST_DYNAMIC {
            return self.connection_frame(Side::Guest, header);
        }
        let unexpected = Err(Violation::Kind { stream: number, kind: what });
        if what != kind::DATA && header.len != 0 {
            return unexpected;
        }
        match (number, what) {
            (stream::TRACE, kind::DATA) => Ok(()),
            (stream::STDIN, kind::CREDIT) => self.fixed[0][Side::Host as usize].allow(header, INITIAL_WINDOW_BYTES),
            (_, kind::DATA) if self.is_output(number) => self.fixed[number as usize][Side::Guest as usize].data(header),
            (_, kind::SHUTDOWN) if self.is_output(number) => {
                self.fixed[number as usize][Side::Guest as usize].ended = true;
                Ok(())
            }
            (stream::CONTROL, kind::HELD) if header.argument <= 1 => Ok(()),
            (stream::STDIN..=stream::CONTROL, _) => unexpected,
            _ => Err(Violation::Stream { stream: number, kind: what }),
        }
    }

    /// Judges a frame on its way to the guest.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn to_guest(&mut self, header: &Header) -> Result<(), Violation> {
        let Header { stream: number, kind: what, .. } = *header;
        if number >= stream::FIRST_DYNAMIC {
            return self.connection_frame(Side::Host, header);
        }
        match (number, what) {
            (stream::STDIN, kind::DATA) => self.fixed[0][Side::Host as usize].data(header),
            (stream::STDIN, kind::SHUTDOWN) => {
                self.fixed[0][Side::Host as usize].ended = true;
                Ok(())
            }
            (_, kind::CREDIT) if self.is_output(number) => {
                self.fixed[number as usize][Side::Guest as usize].allow(header, INITIAL_WINDOW_BYTES)
            }
            (_, kind::SHUTDOWN) if self.is_output(number) => Ok(()),
            (stream::CONTROL, kind::RESUMED) => {
                self.forget_unnamed();
                Ok(())
            }
            (stream::CONTROL, kind::SIGNAL | kind::WINSIZE) => Ok(()),
            (stream::STDIN..=stream::CONTROL, _) => Err(Violation::Kind { stream: number, kind: what }),
            _ => Err(Violation::Stream { stream: number, kind: what }),
        }
    }

    fn connection_frame(&mut self, side: Side, header: &Header) -> Result<(), Violation> {
        let Header { stream: number, kind: what, len, argument } = *header;
        let unexpected = Err(Violation::Kind { stream: number, kind: what });
        let bad_payload = Err(Violation::Payload { stream: number, kind: what });
        let len_ok = match what {
            kind::DATA => true,
            kind::OPEN => len == OPEN_BYTES,
            kind::ATTACH => len == ATTACH_BYTES,
            _ => len == 0,
        };
        if !len_ok {
            return bad_payload;
        }
        if what == kind::OPEN {
            let Some(transport) = Transport::from_argument(argument) else { return bad_payload };
            return self.open(side, number, transport);
        }
        let opener = opener_of(number);
        let Some(connection) = self.connections.get_mut(&number) else {
            return Err(Violation::Stream { stream: number, kind: what });
        };
        let [mine, theirs] = [side as usize, side.other() as usize];
        if connection.halves[mine].closed && !(what == kind::ATTACH && side == Side::Host) {
            return Err(Violation::AfterClose { stream: number, kind: what });
        }
        if self.moving.contains_key(&number) && side == Side::Guest && !matches!(what, kind::ATTACH | kind::CLOSE) {
            return unexpected;
        }
        let datagrams = connection.transport == Transport::Udp;
        match what {
            kind::DATA if datagrams && (len as usize) < ENDPOINT_BYTES => bad_payload,
            // The host may send behind its own OPEN, within the first window: a guest that refuses drops that.
            kind::DATA if connection.answered || datagrams || (side == Side::Host && opener == side) => {
                connection.halves[mine].data(header)
            }
            kind::CREDIT if connection.answered || datagrams => {
                connection.halves[theirs].allow(header, MAX_WINDOW_BYTES)
            }
            kind::SHUTDOWN if connection.answered && !datagrams && !connection.halves[mine].ended => {
                connection.halves[mine].ended = true;
                Ok(())
            }
            kind::OPENED if side != opener && !connection.answered => {
                connection.answered = true;
                Ok(())
            }
            kind::FAULT if side == Side::Host && datagrams => Ok(()),
            kind::ATTACH => match side {
                Side::Host => {
                    let [guest, host] = connection.halves;
                    let moving = Moving { guest_sent: guest.sent_bytes, host_sent: host.sent_bytes };
                    self.moving.insert(number, moving);
                    self.unnamed.remove(&number);
                    Ok(())
                }
                Side::Guest if self.moving.remove(&number).is_some() => Ok(()),
                Side::Guest => unexpected,
            },
            kind::CLOSE => {
                connection.halves[mine].closed = true;
                if side == Side::Guest {
                    // The host's last word does not spare the guest its answer to ATTACH, which is on its way.
                    self.moving.remove(&number);
                }
                if connection.halves[theirs].closed {
                    self.forget(number);
                }
                Ok(())
            }
            _ => unexpected,
        }
    }

    fn open(&mut self, side: Side, number: u32, transport: Transport) -> Result<(), Violation> {
        if is_guest_number(number) != (side == Side::Guest) || self.connections.contains_key(&number) {
            return Err(Violation::Number(number));
        }
        if self.opened[side as usize] >= MAX_CONNECTIONS {
            return Err(Violation::TooMany);
        }
        let halves = [Half::new(CONNECTION_WINDOW_BYTES); 2];
        self.connections.insert(number, Connection { transport, answered: false, halves });
        self.opened[side as usize] += 1;
        Ok(())
    }

    /// Takes a connection over from a ledger that has seen it so far ([`crate::parked`]).
    ///
    /// # Errors
    /// [`Violation::Number`] or [`Violation::TooMany`].
    pub fn adopt(&mut self, number: u32, connection: Connection) -> Result<(), Violation> {
        if number < stream::FIRST_DYNAMIC {
            return Err(Violation::Number(number));
        }
        self.open(opener_of(number), number, connection.transport)?;
        self.connections.insert(number, connection);
        self.unnamed.insert(number);
        Ok(())
    }

    /// The guest gives up what was not named before RESUMED, and says nothing of it. Only what it has closed itself needed
    /// no name, and waits for the host's CLOSE.
    fn forget_unnamed(&mut self) {
        for number in std::mem::take(&mut self.unnamed) {
            let closed = |connection: &Connection| connection.halves[Side::Guest as usize].closed;
            if !self.connections.get(&number).is_some_and(closed) {
                self.forget(number);
            }
        }
    }

    fn forget(&mut self, number: u32) {
        if self.connections.remove(&number).is_some() {
            self.opened[opener_of(number) as usize] -= 1;
        }
    }

    /// All connections.
    pub fn connections(&self) -> impl Iterator<Item = (u32, &Connection)> {
        self.connections.iter().map(|(&number, connection)| (number, connection))
    }

    /// One connection.
    #[must_use]
    pub fn connection(&self, number: u32) -> Option<&Connection> {
        self.connections.get(&number)
    }

    /// Whether one more connection may be opened by `side`.
    #[must_use]
    pub fn may_open(&self, side: Side) -> bool {
        self.opened[side as usize] < MAX_CONNECTIONS
    }

    /// How many bytes may be sent to the guest now, on a connection; 0 where there is none.
    #[must_use]
    pub fn free_bytes(&self, number: u32) -> u32 {
        self.connections.get(&number).map_or(0, |connection| connection.halves[Side::Host as usize].free_bytes)
    }

    /// How many bytes of standard input may be sent now.
    #[must_use]
    pub fn stdin_free_bytes(&self) -> u32 {
        self.fixed[stream::STDIN as usize][Side::Host as usize].free_bytes
    }

    /// What the guest's answer to ATTACH on this connection has to say: bytes it has sent and received.
    #[must_use]
    pub fn attach_counts(&self, number: u32) -> Option<(u64, u64)> {
        self.moving.get(&number).map(|moving| (moving.guest_sent, moving.host_sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(number: u32, len: u32) -> Header {
        Header { stream: number, kind: kind::DATA, len, argument: 0 }
    }

    fn frame(number: u32, kind: u16, argument: u32) -> Header {
        let len = if kind == kind::OPEN { OPEN_BYTES } else { 0 };
        Header { stream: number, kind, len, argument }
    }

    #[test]
    fn window_is_enforced_and_handed_back() {
        let mut ledger = Ledger::new(false);
        assert_eq!(ledger.from_guest(&data(stream::STDOUT, 32 << 10)), Ok(()));
        assert_eq!(ledger.from_guest(&data(stream::STDOUT, 32 << 10)), Ok(()));
        let over = ledger.from_guest(&data(stream::STDOUT, 1));
        assert_eq!(over, Err(Violation::Window { stream: 1, len: 1, free: 0 }));
        assert_eq!(ledger.from_guest(&data(stream::STDERR, 1)), Ok(()));
        assert_eq!(ledger.to_guest(&frame(stream::STDOUT, kind::CREDIT, 10)), Ok(()));
        assert_eq!(ledger.from_guest(&data(stream::STDOUT, 10)), Ok(()));
        let too_much = ledger.to_guest(&frame(stream::STDOUT, kind::CREDIT, 1 << 20));
        assert!(matches!(too_much, Err(Violation::Credit { .. })));
    }

    #[test]
    fn streams_and_kinds_are_checked() {
        let mut ledger = Ledger::new(false);
        assert!(ledger.from_guest(&data(stream::STDIN, 1)).is_err());
        assert!(ledger.from_guest(&data(stream::FIRST_DYNAMIC, 1)).is_err());
        let signal = Header { stream: stream::CONTROL, kind: kind::SIGNAL, len: 0, argument: 9 };
        assert!(ledger.from_guest(&signal).is_err());
        assert_eq!(ledger.to_guest(&signal), Ok(()));
        assert_eq!(ledger.from_guest(&frame(stream::STDOUT, kind::SHUTDOWN, 0)), Ok(()));
        assert_eq!(ledger.from_guest(&data(stream::STDOUT, 1)), Err(Violation::AfterShutdown(1)));
        let mut terminal = Ledger::new(true);
        assert_eq!(terminal.from_guest(&data(stream::STDIN, 1)), Ok(()));
        assert!(terminal.from_guest(&data(stream::STDOUT, 1)).is_err());
    }

    #[test]
    fn a_connection_lives_until_both_sides_have_closed_it() {
        let mut ledger = Ledger::new(false);
        let tcp = Transport::Tcp as u32;
        assert_eq!(ledger.from_guest(&frame(18, kind::OPEN, tcp)), Err(Violation::Number(18)));
        assert_eq!(ledger.from_guest(&frame(17, kind::OPEN, tcp)), Ok(()));
        assert_eq!(ledger.from_guest(&frame(17, kind::OPEN, tcp)), Err(Violation::Number(17)));
        assert_eq!(ledger.from_guest(&frame(17, kind::OPENED, 0)), Err(Violation::Kind { stream: 17, kind: 7 }));
        assert!(ledger.from_guest(&data(17, 1)).is_err());
        assert_eq!(ledger.to_guest(&frame(17, kind::OPENED, 0)), Ok(()));
        assert_eq!(ledger.from_guest(&data(17, CONNECTION_WINDOW_BYTES)), Ok(()));
        assert!(ledger.from_guest(&data(17, 1)).is_err());
        assert_eq!(ledger.to_guest(&frame(17, kind::CREDIT, MAX_WINDOW_BYTES)), Ok(()));
        assert!(ledger.to_guest(&frame(17, kind::CREDIT, 1)).is_err());
        assert_eq!(ledger.from_guest(&frame(17, kind::CLOSE, 0)), Ok(()));
        assert_eq!(ledger.to_guest(&data(17, 5)), Ok(()));
        assert!(ledger.from_guest(&frame(17, kind::CLOSE, 0)).is_err());
        assert_eq!(ledger.to_guest(&frame(17, kind::CLOSE, 104)), Ok(()));
        assert_eq!(ledger.connections().count(), 0);
        assert_eq!(ledger.from_guest(&frame(17, kind::OPEN, tcp)), Ok(()));
    }

    #[test]
    fn the_host_alone_may_send_before_it_is_answered() {
        let mut ledger = Ledger::new(false);
        let tcp = Transport::Tcp as u32;
        assert_eq!(ledger.to_guest(&frame(18, kind::OPEN, tcp)), Ok(()));
        assert_eq!(ledger.to_guest(&data(18, CONNECTION_WINDOW_BYTES - 1)), Ok(()));
        assert!(ledger.to_guest(&data(18, 2)).is_err());
        assert!(ledger.to_guest(&frame(18, kind::SHUTDOWN, 0)).is_err());
        assert!(ledger.from_guest(&data(18, 1)).is_err());
        assert_eq!(ledger.from_guest(&frame(18, kind::CLOSE, 111)), Ok(()));
        assert_eq!(ledger.to_guest(&data(18, 1)), Ok(()));
        assert_eq!(ledger.to_guest(&frame(18, kind::CLOSE, 0)), Ok(()));
        assert_eq!(ledger.connections().count(), 0);
    }

    #[test]
    fn what_a_new_other_end_does_not_name_is_forgotten() {
        let mut ledger = Ledger::new(false);
        let halves = [Half::new(CONNECTION_WINDOW_BYTES); 2];
        let connection = Connection { transport: Transport::Tcp, answered: true, halves };
        let mut closed = connection;
        closed.halves[Side::Guest as usize].closed = true;
        for (number, connection) in [(16, connection), (17, connection), (18, connection), (20, closed)] {
            assert_eq!(ledger.adopt(number, connection), Ok(()));
        }
        assert_eq!(ledger.to_guest(&frame(16, kind::OPEN, Transport::Tcp as u32)), Err(Violation::Number(16)));
        let attach = Header { len: ATTACH_BYTES, ..frame(18, kind::ATTACH, 7) };
        assert_eq!(ledger.to_guest(&attach), Ok(()));
        assert_eq!(ledger.to_guest(&frame(stream::CONTROL, kind::RESUMED, 7)), Ok(()));
        let mut left: Vec<u32> = ledger.connections().map(|(number, _)| number).collect();
        left.sort_unstable();
        assert_eq!((left, ledger.opened), (vec![18, 20], [0, 2]));
        assert!(ledger.from_guest(&data(17, 1)).is_err());
        assert_eq!(ledger.to_guest(&frame(16, kind::OPEN, Transport::Tcp as u32)), Ok(()));
        assert_eq!(ledger.to_guest(&frame(20, kind::CLOSE, 0)), Ok(()));
        // Once is enough: what was opened since stays.
        assert_eq!(ledger.to_guest(&frame(stream::CONTROL, kind::RESUMED, 8)), Ok(()));
        assert!(ledger.connection(16).is_some());
    }

    #[test]
    fn a_last_word_and_an_answer_to_attach_may_cross() {
        let mut ledger = Ledger::new(false);
        let halves = [Half::new(CONNECTION_WINDOW_BYTES); 2];
        let connection = Connection { transport: Transport::Tcp, answered: true, halves };
        assert_eq!(ledger.adopt(18, connection), Ok(()));
        let attach = Header { len: ATTACH_BYTES, ..frame(18, kind::ATTACH, 7) };
        assert_eq!(ledger.to_guest(&attach), Ok(()));
        assert_eq!(ledger.to_guest(&frame(18, kind::CLOSE, 104)), Ok(()));
        assert!(ledger.from_guest(&data(18, 1)).is_err());
        assert_eq!(ledger.from_guest(&attach), Ok(()));
        assert!(ledger.from_guest(&attach).is_err());
        assert_eq!(ledger.from_guest(&frame(18, kind::CLOSE, 0)), Ok(()));
        assert_eq!((ledger.connections().count(), ledger.moving.len()), (0, 0));
    }

    #[test]
    fn connections_are_bounded() {
        let mut ledger = Ledger::new(false);
        for n in 0..MAX_CONNECTIONS as u32 {
            assert_eq!(ledger.from_guest(&frame(17 + 2 * n, kind::OPEN, 1)), Ok(()));
        }
        assert_eq!(ledger.from_guest(&frame(17 + 2 * MAX_CONNECTIONS as u32, kind::OPEN, 1)), Err(Violation::TooMany));
        assert!(ledger.may_open(Side::Host));
    }

    proptest! {
        /// Whatever is said, no more than a window may ever be sent, and connections are as many as were counted.
        #[test]
        fn windows_and_numbers_are_bounded(
            frames in proptest::collection::vec(
                (any::<bool>(), prop_oneof![0_u32..6, 15_u32..22], 0_u16..13, prop_oneof![Just(0), Just(16), Just(48), 0_u32..40_000],
                 prop_oneof![0_u32..4, 0_u32..300_000]), 0..300),
            tty: bool,
        ) {
            let mut ledger = Ledger::new(tty);
            for (from_guest, stream, kind, len, argument) in frames {
                let header = Header { stream, kind, len, argument };
                let _ = if from_guest { ledger.from_guest(&header) } else { ledger.to_guest(&header) };
                for half in ledger.fixed.iter().flatten() {
                    prop_assert!(half.free_bytes <= INITIAL_WINDOW_BYTES);
                }
                for (number, connection) in ledger.connections() {
                    prop_assert!(number >= stream::FIRST_DYNAMIC);
                    prop_assert!(connection.halves.iter().all(|half| half.free_bytes <= MAX_WINDOW_BYTES));
                    prop_assert!(!connection.halves.iter().all(|half| half.closed));
                }
                prop_assert_eq!(ledger.connections().count(), ledger.opened.iter().sum::<usize>());
                prop_assert!(ledger.moving.keys().all(|number| ledger.connections.contains_key(number)));
            }
        }
    }
}

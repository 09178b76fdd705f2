//! Streams on their way from one VM process to another.
//!
//! A stream is (instance, incarnation, number, bytes sent, bytes received). When a VM process has stopped its guest and
//! sent all that the guest had put into its ring, it says how far it came: [`Parked::of`] its ledger, with the frames that
//! were on their way to the guest and did not reach its ring. Nothing of a stream lives anywhere else: what had reached
//! the ring is in the guest's memory, and what the guest had sent has reached the host. The guest's memory and this state
//! belong to the same moment, and go together.
//!
//! The host attaches them to the next VM process with [`Parked::attach`]: it names each stream with what it has sent and
//! received, says RESUMED, and sends the frames again that had not arrived. A guest whose own counts differ (an older
//! generation was restored) closes the stream, and so do both where one of them knows nothing of it.

use crate::ledger::{Connection, Half, Ledger, Violation};
use crate::link::{Message, split_frame};
use thiserror::Error;
use torpor_abi::endpoint::Transport;
use torpor_abi::frame::{ATTACH_BYTES, Header, MAX_CONNECTIONS, MAX_WINDOW_BYTES, kind, stream};

/// "TORPORST" and the format's version.
const MAGIC: u64 = u64::from_le_bytes(*b"TORPORST");
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 48;
const STREAM_BYTES: usize = 32;
/// What can be under way: every window of every stream, but never so much in practice.
const UNDELIVERED_MAX_BYTES: usize = 64 << 20;

/// A connection that no ledger has any more. Its counts do not matter: what the guest has closed is not named by ATTACH.
const CLOSED_BY_BOTH: Connection = {
    let half = Half { sent_bytes: 1 << 62, free_bytes: 0, ended: false, closed: true };
    Connection {
        transport: Transport::Tcp,
        answered: true,
        halves: [Half { free_bytes: MAX_WINDOW_BYTES, ..half }, half],
    }
};

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Whose streams they are.
    pub instance: [u8; 16],
    /// The one that has ended. Attaching begins the next.
    pub incarnation: u64,
    /// Connections by number, as at the moment of the stop: counts are of what the guest's ring had taken.
    pub streams: Vec<(u32, Connection)>,
    /// Whole frames to the guest that its ring had not taken, in order.
    pub undelivered: Vec<u8>,
}

/// Bytes that are no parked state.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadState {
    /// Not ours, or of another version.
    #[error("parked streams: unknown format")]
    Format,
    /// A length or a field is out of bounds.
    #[error("parked streams: damaged")]
    Damaged,
    /// Of another instance, or of another time.
    #[error("parked streams: of another instance or incarnation")]
    Other,
    /// The undelivered frames break the rules.
    #[error("parked streams: {0}")]
    Frames(#[from] Violation),
}

impl Parked {
    /// What `ledger`, the VM process's at the stop, says, with what the guest's ring had not taken.
    ///
    /// # Errors
    /// Where `undelivered` are no whole frames.
    pub fn of(instance: [u8; 16], incarnation: u64, ledger: &Ledger, undelivered: &[u8]) -> Result<Self, Violation> {
        let mut streams: Vec<(u32, Connection)> =
            ledger.connections().map(|(n, connection)| (n, *connection)).collect();
        streams.sort_unstable_by_key(|(number, _)| *number);
        Self { instance, incarnation, streams, undelivered: Vec::new() }.without(undelivered)
    }

    /// The state before the undelivered frames were entered in the ledger, which sees them as they come.
    fn without(mut self, undelivered: &[u8]) -> Result<Self, Violation> {
        let mut frames = Vec::new();
        let mut rest = undelivered;
        while !rest.is_empty() {
            let (header, payload, tail) = split_frame(rest)?;
            frames.push((header, payload));
            rest = tail;
        }
        for (header, _) in frames.iter().rev() {
            self.undo(header);
        }
        // What belonged to the move before is said anew.
        for (header, payload) in frames.iter().filter(|(header, _)| !is_about_moving(header)) {
            let mut message = Message::default();
            message.push(header, payload);
            self.undelivered.append(&mut message.into_bytes());
        }
        Ok(self)
    }

    fn undo(&mut self, header: &Header) {
        let at = match self.streams.binary_search_by_key(&header.stream, |(number, _)| *number) {
            Ok(at) => at,
            // Closed by both, and the guest has not heard that we did: it waits for that.
            Err(at) if header.kind == kind::CLOSE => {
                self.streams.insert(at, (header.stream, CLOSED_BY_BOTH));
                at
            }
            Err(_) => return,
        };
        if header.kind == kind::OPEN {
            self.streams.remove(at);
            return;
        }
        let connection = &mut self.streams[at].1;
        let [guest, host] = &mut connection.halves;
        match header.kind {
            kind::DATA => {
                host.sent_bytes = host.sent_bytes.saturating_sub(u64::from(header.len));
                host.free_bytes += header.len;
            }
            kind::CREDIT => guest.free_bytes = guest.free_bytes.saturating_sub(header.argument),
            kind::SHUTDOWN => host.ended = false,
            kind::CLOSE => host.closed = false,
            kind::OPENED => connection.answered = false,
            _ => {}
        }
    }

    /// Takes the streams over: `ledger` is that of a new link, and `send` gets the frames that begin it, in order.
    ///
    /// # Errors
    /// [`BadState::Other`] where the state is not of this instance and incarnation; [`BadState::Frames`].
    pub fn attach(
        &self,
        instance: [u8; 16],
        incarnation: u64,
        ledger: &mut Ledger,
        mut send: impl FnMut(&Header, &[u8]),
    ) -> Result<(), BadState> {
        if (self.instance, self.incarnation) != (instance, incarnation) {
            return Err(BadState::Other);
        }
        let argument = incarnation_argument(incarnation + 1);
        for &(number, connection) in &self.streams {
            ledger.adopt(number, connection)?;
            let [guest, host] = connection.halves;
            if guest.closed {
                // It has no more to say, and there is nothing to agree about.
                continue;
            }
            let header = Header { stream: number, kind: kind::ATTACH, len: ATTACH_BYTES, argument };
            let mut counts = [0; ATTACH_BYTES as usize];
            counts[..8].copy_from_slice(&host.sent_bytes.to_le_bytes());
            counts[8..].copy_from_slice(&guest.sent_bytes.to_le_bytes());
            ledger.to_guest(&header)?;
            send(&header, &counts);
        }
        let resumed = Header { stream: stream::CONTROL, kind: kind::RESUMED, len: 0, argument };
        ledger.to_guest(&resumed)?;
        send(&resumed, &[]);
        let mut rest = &self.undelivered[..];
        while !rest.is_empty() {
            let (header, payload, tail) = split_frame(rest)?;
            ledger.to_guest(&header)?;
            send(&header, payload);
            rest = tail;
        }
        Ok(())
    }

    /// For keeping beside a snapshot.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + STREAM_BYTES * self.streams.len() + self.undelivered.len());
        out.extend(MAGIC.to_le_bytes());
        out.extend(VERSION.to_le_bytes());
        out.extend((self.streams.len() as u32).to_le_bytes());
        out.extend(self.instance);
        out.extend(self.incarnation.to_le_bytes());
        out.extend((self.undelivered.len() as u64).to_le_bytes());
        for (number, connection) in &self.streams {
            let [guest, host] = connection.halves;
            let flags = [connection.answered, guest.ended, guest.closed, host.ended, host.closed];
            let bits = flags.iter().enumerate().fold(0_u16, |bits, (at, on)| bits | u16::from(*on) << at);
            out.extend(number.to_le_bytes());
            out.extend((connection.transport as u16).to_le_bytes());
            out.extend(bits.to_le_bytes());
            for half in [guest, host] {
                out.extend(half.sent_bytes.to_le_bytes());
                out.extend(half.free_bytes.to_le_bytes());
            }
        }
        out.extend(&self.undelivered);
        out
    }

    /// # Errors
    /// [`BadState`]; nothing is believed that a ledger could not have said.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(BadState::Format)?;
        let quad = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if quad(header, 0) != MAGIC || word(header, 8) != VERSION {
            return Err(BadState::Format);
        }
        let (count, undelivered) = (word(header, 12) as usize, quad(header, 40));
        let rest = &bytes[HEADER_BYTES..];
        let undelivered = usize::try_from(undelivered).map_err(|_| BadState::Damaged)?;
        if count > 2 * MAX_CONNECTIONS
            || undelivered > UNDELIVERED_MAX_BYTES
            || rest.len() != count * STREAM_BYTES + undelivered
        {
            return Err(BadState::Damaged);
        }
        let (table, frames) = rest.split_at(count * STREAM_BYTES);
        let mut streams = Vec::with_capacity(count);
        let mut last = stream::FIRST_DYNAMIC - 1;
        for entry in table.chunks_exact(STREAM_BYTES) {
            let number = word(entry, 0);
            let [transport, bits] = [4, 6].map(|at| u16::from_le_bytes([entry[at], entry[at + 1]]));
            let transport = Transport::from_argument(u32::from(transport)).ok_or(BadState::Damaged)?;
            let on = |at: u32| bits & 1 << at != 0;
            let half = |at: usize, ended, closed| Half {
                sent_bytes: quad(entry, at),
                free_bytes: word(entry, at + 8),
                ended,
                closed,
            };
            let halves = [half(8, on(1), on(2)), half(20, on(3), on(4))];
            let sane = number > last
                && bits < 1 << 5
                && halves.iter().all(|half| half.free_bytes <= MAX_WINDOW_BYTES)
                && !halves.iter().all(|half| half.closed);
            if !sane {
                return Err(BadState::Damaged);
            }
            last = number;
            streams.push((number, Connection { transport, answered: on(0), halves }));
        }
        let mut instance = [0; 16];
        instance.copy_from_slice(&header[16..32]);
        Ok(Self { instance, incarnation: quad(header, 32), streams, undelivered: frames.to_vec() })
    }
}

fn is_about_moving(header: &Header) -> bool {
    matches!((header.stream, header.kind), (_, kind::ATTACH) | (stream::CONTROL, kind::RESUMED))
}

/// An incarnation as ATTACH and RESUMED carry it.
#[must_use]
pub const fn incarnation_argument(incarnation: u64) -> u32 {
    (incarnation & 0xffff_ffff) as u32
}

/// Judges the guest's answer to ATTACH, after the ledger has seen that one was due: whether it agrees.
#[must_use]
pub fn agrees(claim: &[u8], expected: (u64, u64)) -> bool {
    let count = |at: usize| claim.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    (count(0), count(8)) == (Some(expected.0), Some(expected.1))
}

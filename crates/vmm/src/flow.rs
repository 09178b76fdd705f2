//! What may be said on which stream, and how much: the rules of [`torpor_abi::frame`] for one run.
//!
//! The VM process applies them to the guest's ring, the broker to the VM process's socket. Both keep one [`Ledger`] that
//! sees every frame of both directions in order, so the two agree without asking each other.

use thiserror::Error;
use torpor_abi::frame::{BadHeader, Header, INITIAL_WINDOW_BYTES, kind, stream};

/// Streams with a fixed number that carry data under flow control.
const STREAMS: usize = 3;

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
    /// The kind means nothing on that stream.
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
    /// More was handed back than was outstanding.
    #[error("stream {stream} handed back {credit} bytes where {outstanding} were outstanding")]
    Credit {
        /// As received.
        stream: u32,
        /// The frame's argument.
        credit: u32,
        /// Bytes that were on their way.
        outstanding: u32,
    },
    /// Data after the sender had said that no more would come.
    #[error("stream {0} sent data after its end")]
    AfterShutdown(u32),
    /// A frame that reaches beyond the bytes it came in.
    #[error("frame of {frame_bytes} bytes where {available} were published")]
    Truncated {
        /// Size by the header.
        frame_bytes: u32,
        /// What was there.
        available: u32,
    },
}

/// One direction of one stream.
#[derive(Debug, Default, Clone, Copy)]
struct Direction {
    outstanding_bytes: u32,
    closed: bool,
}

impl Direction {
    fn data(&mut self, header: &Header) -> Result<(), Violation> {
        if self.closed {
            return Err(Violation::AfterShutdown(header.stream));
        }
        let free = self.free_bytes();
        if header.len > free {
            return Err(Violation::Window { stream: header.stream, len: header.len, free });
        }
        self.outstanding_bytes += header.len;
        Ok(())
    }

    fn credit(&mut self, header: &Header) -> Result<(), Violation> {
        let outstanding = self.outstanding_bytes;
        self.outstanding_bytes = outstanding.checked_sub(header.argument).ok_or(Violation::Credit {
            stream: header.stream,
            credit: header.argument,
            outstanding,
        })?;
        Ok(())
    }

    const fn free_bytes(&self) -> u32 {
        INITIAL_WINDOW_BYTES - self.outstanding_bytes
    }
}

/// Both directions of all streams.
#[derive(Debug)]
pub struct Ledger {
    tty: bool,
    from_guest: [Direction; STREAMS],
    to_guest: [Direction; STREAMS],
}

impl Ledger {
    /// With `tty` the terminal's output travels on [`stream::STDIN`]; STDOUT and STDERR are not open.
    #[must_use]
    pub fn new(tty: bool) -> Self {
        Self { tty, from_guest: Default::default(), to_guest: Default::default() }
    }

    /// Whether the guest may send data on a stream.
    fn is_output(&self, number: u32) -> bool {
        if self.tty { number == stream::STDIN } else { matches!(number, stream::STDOUT | stream::STDERR) }
    }

    /// Judges a frame that comes from the guest.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn from_guest(&mut self, header: &Header) -> Result<(), Violation> {
        let Header { stream: number, kind: what, .. } = *header;
        let at = number as usize;
        if what != kind::DATA && header.len != 0 {
            return Err(Violation::Kind { stream: number, kind: what });
        }
        match (number, what) {
            (stream::TRACE, kind::DATA) => Ok(()),
            (stream::STDIN, kind::CREDIT) => self.to_guest[at].credit(header),
            (_, kind::DATA) if self.is_output(number) => self.from_guest[at].data(header),
            (_, kind::SHUTDOWN) if self.is_output(number) => {
                self.from_guest[at].closed = true;
                Ok(())
            }
            (stream::STDIN..=stream::CONTROL, _) => Err(Violation::Kind { stream: number, kind: what }),
            _ => Err(Violation::Stream { stream: number, kind: what }),
        }
    }

    /// Judges a frame on its way to the guest.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn to_guest(&mut self, header: &Header) -> Result<(), Violation> {
        let Header { stream: number, kind: what, .. } = *header;
        let at = number as usize;
        match (number, what) {
            (stream::STDIN, kind::DATA) => self.to_guest[at].data(header),
            (stream::STDIN, kind::SHUTDOWN) => {
                self.to_guest[at].closed = true;
                Ok(())
            }
            (_, kind::CREDIT) if self.is_output(number) => self.from_guest[at].credit(header),
            (_, kind::SHUTDOWN) if self.is_output(number) => Ok(()),
            (stream::CONTROL, kind::SIGNAL | kind::WINSIZE) => Ok(()),
            (stream::STDIN..=stream::CONTROL, _) => Err(Violation::Kind { stream: number, kind: what }),
            _ => Err(Violation::Stream { stream: number, kind: what }),
        }
    }

    /// How many bytes of standard input may be sent now.
    #[must_use]
    pub fn stdin_free_bytes(&self) -> u32 {
        self.to_guest[stream::STDIN as usize].free_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(number: u32, len: u32) -> Header {
        Header { stream: number, kind: kind::DATA, len, argument: 0 }
    }

    #[test]
    fn window_is_enforced_and_handed_back() {
        let mut ledger = Ledger::new(false);
        assert_eq!(ledger.from_guest(&data(stream::STDOUT, 32 << 10)), Ok(()));
        assert_eq!(ledger.from_guest(&data(stream::STDOUT, 32 << 10)), Ok(()));
        let over = ledger.from_guest(&data(stream::STDOUT, 1));
        assert_eq!(over, Err(Violation::Window { stream: 1, len: 1, free: 0 }));
        assert_eq!(ledger.from_guest(&data(stream::STDERR, 1)), Ok(()));
        let credit = |argument| Header { stream: stream::STDOUT, kind: kind::CREDIT, len: 0, argument };
        assert_eq!(ledger.to_guest(&credit(10)), Ok(()));
        assert_eq!(ledger.from_guest(&data(stream::STDOUT, 10)), Ok(()));
        assert!(matches!(ledger.to_guest(&credit(1 << 20)), Err(Violation::Credit { .. })));
    }

    #[test]
    fn streams_and_kinds_are_checked() {
        let mut ledger = Ledger::new(false);
        assert!(ledger.from_guest(&data(stream::STDIN, 1)).is_err());
        assert!(ledger.from_guest(&data(stream::FIRST_DYNAMIC, 1)).is_err());
        let signal = Header { stream: stream::CONTROL, kind: kind::SIGNAL, len: 0, argument: 9 };
        assert!(ledger.from_guest(&signal).is_err());
        assert_eq!(ledger.to_guest(&signal), Ok(()));
        let end = Header { stream: stream::STDOUT, kind: kind::SHUTDOWN, len: 0, argument: 0 };
        assert_eq!(ledger.from_guest(&end), Ok(()));
        assert_eq!(ledger.from_guest(&data(stream::STDOUT, 1)), Err(Violation::AfterShutdown(1)));
        let mut terminal = Ledger::new(true);
        assert_eq!(terminal.from_guest(&data(stream::STDIN, 1)), Ok(()));
        assert!(terminal.from_guest(&data(stream::STDOUT, 1)).is_err());
    }

    proptest! {
        /// Whatever is said, no more than a window is ever outstanding.
        #[test]
        fn outstanding_is_bounded(
            frames in proptest::collection::vec((any::<bool>(), 0_u32..20, 0_u16..8, 0_u32..40_000, 0_u32..80_000), 0..200),
            tty: bool,
        ) {
            let mut ledger = Ledger::new(tty);
            for (from_guest, stream, kind, len, argument) in frames {
                let header = Header { stream, kind, len, argument };
                let _ = if from_guest { ledger.from_guest(&header) } else { ledger.to_guest(&header) };
                for direction in ledger.from_guest.iter().chain(&ledger.to_guest) {
                    prop_assert!(direction.outstanding_bytes <= INITIAL_WINDOW_BYTES);
                }
            }
        }
    }
}

//! Frames: what travels through the rings, and over the descriptor between VM process and broker.
//!
//! ```text
//! offset 0  u32 stream number
//!        4  u16 kind
//!        6  u16 reserved, zero
//!        8  u32 payload length in bytes, at most MAX_PAYLOAD_BYTES
//!       12  u32 argument (meaning depends on the kind)
//!       16  payload, padded with zeros to a multiple of 8
//! ```
//! Flow control: each side may send so many payload bytes on a stream as the other has allowed. The first allowance is
//! [`INITIAL_WINDOW_BYTES`], for a connection [`CONNECTION_WINDOW_BYTES`]; CREDIT adds to it, and never may more than
//! [`INITIAL_WINDOW_BYTES`], for a connection [`MAX_WINDOW_BYTES`], be allowed at once. So the receiver bounds what it
//! has to hold, and may let a busy connection have more.
//!
//! # Connections
//! Either side opens one with OPEN under a number of its own kind ([`is_guest_number`]); the other accepts with OPENED or
//! refuses with CLOSE. Only then data may be sent, but on datagram streams at once. SHUTDOWN ends the bytes of one
//! direction. Each side ends its part of the conversation with exactly one CLOSE and says nothing after it; what still
//! comes from the other side is dropped. When both have, the number is free again.
//!
//! # Moving to another VM process
//! A stopped guest takes its half of every stream along, byte counts included. The host names each stream with ATTACH,
//! then says RESUMED, and then sends again what had not reached the old VM process's ring. The guest compares the counts
//! with its own and answers with ATTACH, or with CLOSE where they differ or there is no such stream; before it has
//! answered it says nothing on that stream. Streams on which the guest has said CLOSE are not named; others that are
//! not named are reset. [`ATTACH_BYTES`] tells the payload.

/// Size of a frame's header.
pub const HEADER_BYTES: u32 = 16;
/// The largest payload.
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 10;
/// What each side may send on a stream with a fixed number before the first CREDIT, and ever at once.
pub const INITIAL_WINDOW_BYTES: u32 = 64 << 10;
/// What each side may send on a new connection before the first CREDIT.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 10;
/// The most that may be allowed at once on a connection.
pub const MAX_WINDOW_BYTES: u32 = 256 << 10;
/// How many connections each side may have opened at a time.
pub const MAX_CONNECTIONS: usize = 8192;
/// Payload of ATTACH: u64 bytes that the sender of the frame has sent on the stream, u64 bytes that it has received.
pub const ATTACH_BYTES: u32 = 16;

/// Whether a connection's number is one that the guest gives out: the odd ones; the host has the even ones.
#[must_use]
pub const fn is_guest_number(stream: u32) -> bool {
    stream % 2 == 1
}

/// Numbers of streams with a fixed meaning; others are given out by who opens them.
pub mod stream {
    /// Standard input; with a terminal also its output.
    pub const STDIN: u32 = 0;
    /// Standard output.
    pub const STDOUT: u32 = 1;
    /// Standard error.
    pub const STDERR: u32 = 2;
    /// System call trace and kernel messages (text, no flow control towards the program: the kernel waits for room).
    pub const TRACE: u32 = 3;
    /// Messages about the VM as a whole: SIGNAL, WINSIZE.
    pub const CONTROL: u32 = 4;
    /// The first number that is free for connections.
    pub const FIRST_DYNAMIC: u32 = 16;
}

/// Kinds of frames.
pub mod kind {
    /// Bytes of a stream.
    pub const DATA: u16 = 1;
    /// `argument` more bytes may be sent.
    pub const CREDIT: u16 = 2;
    /// No more data will come from this side. From the host on STDOUT or STDERR (with a terminal: never): the reader is
    /// gone, writes give EPIPE, and no more CREDIT will come.
    pub const SHUTDOWN: u16 = 3;
    /// Terminal size: argument = rows << 16 | columns.
    pub const WINSIZE: u16 = 4;
    /// Send signal number `argument` to the guest's first program.
    pub const SIGNAL: u16 = 5;
    /// A new connection; the argument is a [`crate::endpoint::Transport`], the payload two endpoints: the receiver's and
    /// the sender's. A datagram stream whose first endpoint has port 0 is unconnected, and is not answered.
    pub const OPEN: u16 = 6;
    /// The connection is there.
    pub const OPENED: u16 = 7;
    /// The sender says nothing more on this stream; the argument is 0 or the errno that tells why. With an errno the
    /// connection is reset.
    pub const CLOSE: u16 = 8;
    /// From the host, on a datagram stream: an earlier datagram met the errno in the argument.
    pub const FAULT: u16 = 9;
    /// See the module's text; the argument is the incarnation that begins, modulo 2^32. The guest ignores others: they
    /// are left from a move before, and it has moved again since.
    pub const ATTACH: u16 = 10;
    /// On CONTROL, from the host: all streams that go on were named. Argument as for ATTACH.
    pub const RESUMED: u16 = 11;
    /// On CONTROL, from the guest: with argument 1 a program wants the VM to stay awake, with 0 none does any more. Said
    /// at every change, and again on a new link.
    pub const HELD: u16 = 12;
}

/// A frame's header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which stream.
    pub stream: u32,
    /// One of [`kind`].
    pub kind: u16,
    /// Payload bytes, without padding.
    pub len: u32,
    /// Depends on the kind.
    pub argument: u32,
}

/// A header that breaks the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// The payload is longer than [`MAX_PAYLOAD_BYTES`].
    TooLong(u32),
    /// A reserved field is not zero.
    Reserved(u16),
}

impl Header {
    /// Bytes of the whole frame in a ring.
    #[must_use]
    pub const fn frame_bytes(&self) -> u32 {
        HEADER_BYTES + ((self.len + 7) & !7)
    }

    /// As it stands in the ring.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut out = [0; HEADER_BYTES as usize];
        out[0..4].copy_from_slice(&self.stream.to_le_bytes());
        out[4..6].copy_from_slice(&self.kind.to_le_bytes());
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[12..16].copy_from_slice(&self.argument.to_le_bytes());
        out
    }

    /// # Errors
    /// [`BadHeader`] where a length or a reserved field is out of bounds; the kind is the caller's to judge.
    pub fn decode(bytes: &[u8; HEADER_BYTES as usize]) -> Result<Self, BadHeader> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let reserved = u16::from_le_bytes([bytes[6], bytes[7]]);
        let header =
            Self { stream: word(0), kind: u16::from_le_bytes([bytes[4], bytes[5]]), len: word(8), argument: word(12) };
        if reserved != 0 {
            return Err(BadHeader::Reserved(reserved));
        }
        if header.len > MAX_PAYLOAD_BYTES {
            return Err(BadHeader::TooLong(header.len));
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_limits() {
        let header = Header { stream: 7, kind: kind::DATA, len: 13, argument: 9 };
        assert_eq!(Header::decode(&header.encode()), Ok(header));
        assert_eq!(header.frame_bytes(), 32);
        let long = Header { len: MAX_PAYLOAD_BYTES + 1, ..header };
        assert_eq!(Header::decode(&long.encode()), Err(BadHeader::TooLong(MAX_PAYLOAD_BYTES + 1)));
    }
}

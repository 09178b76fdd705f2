//! The socket pair between broker and VM process.
//!
//! It is of type SOCK_SEQPACKET: a message is one or more whole frames ([`torpor_abi::frame`]) as they stand in a ring,
//! or nothing is sent at all. Besides the guest's frames the VM process sends reports about the VM: frames on stream
//! CONTROL with kinds of [`report`], which a guest can't send.

use crate::ledger::Violation;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use torpor_abi::frame::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, stream};

/// The largest message; holds the largest frame and leaves room for smaller ones.
pub const MESSAGE_MAX_BYTES: usize = 64 << 10;

/// Kinds of frames from the VM process about the VM itself.
pub mod report {
    /// The program ended; the argument is its wait status. Nothing follows.
    pub const EXITED: u16 = 0x100;
    /// The program could not be started; the argument is the errno, the payload a text. Nothing follows.
    pub const START_FAILED: u16 = 0x101;
    /// The VM failed; the payload is a text. Nothing follows.
    pub const FAILED: u16 = 0x102;
    /// A line for the person who debugs the VM; the payload is a text.
    pub const DEBUG: u16 = 0x103;
    /// The VM was ended by a command. Nothing follows.
    pub const STOPPED: u16 = 0x104;
}

/// Both ends: the broker's and the VM process's.
///
/// # Errors
/// What socketpair(2) gives.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Frames on their way into one message.
#[derive(Debug, Default)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Whether a frame with `len` payload bytes still fits.
    #[must_use]
    pub fn fits(&self, len: u32) -> bool {
        let frame = Header { stream: 0, kind: 0, len, argument: 0 }.frame_bytes() as usize;
        self.bytes.len() + frame <= MESSAGE_MAX_BYTES
    }

    /// Its frames, for who keeps them instead of sending them.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends a frame; `payload` has `header.len` bytes. The caller has asked [`Message::fits`].
    pub fn push(&mut self, header: &Header, payload: &[u8]) {
        debug_assert_eq!(header.len as usize, payload.len());
        let end = self.bytes.len() + header.frame_bytes() as usize;
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(end, 0);
    }

    /// Appends room for a frame and returns the payload with its padding, for the caller to fill in.
    pub fn push_with(&mut self, header: &Header) -> &mut [u8] {
        let start = self.bytes.len() + HEADER_BYTES as usize;
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.resize(start + (header.frame_bytes() - HEADER_BYTES) as usize, 0);
        &mut self.bytes[start..]
    }

    /// Appends a report, its text cut where it is too long.
    pub fn push_report(&mut self, kind: u16, argument: u32, text: &str) {
        let text = &text.as_bytes()[..text.len().min(MAX_PAYLOAD_BYTES as usize)];
        let len = u32::try_from(text.len()).expect("at most MAX_PAYLOAD_BYTES");
        self.push(&Header { stream: stream::CONTROL, kind, len, argument }, text);
    }

    /// Sends the message without waiting and empties it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where the other side is behind (the message stays as it is), or what send(2) gives.
    pub fn send(&mut self, link: impl AsFd) -> io::Result<()> {
        loop {
            match rustix::net::send(&link, &self.bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) => {
                    self.bytes.clear();
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Receives one message into `buffer` ([`MESSAGE_MAX_BYTES`]) without waiting and returns its length; 0 is the end.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] where there is none, or what recv(2) gives; a longer message is
/// [`io::ErrorKind::InvalidData`].
pub fn receive(link: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::net::recv(&link, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((_, len)) if len > buffer.len() => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("message of {len} bytes")));
            }
            Ok((_, len)) => return Ok(len),
            Err(Errno::INTR) => {}
            // The other side closed with unread messages in its queue. Said once; its own last words are still to be read.
            Err(Errno::CONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes the first frame off a message and returns it with the rest.
///
/// # Errors
/// A [`Violation`] where the header is bad or the frame is longer than the message.
pub fn split_frame(message: &[u8]) -> Result<(Header, &[u8], &[u8]), Violation> {
    let available = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let Some((header, rest)) = message.split_first_chunk::<{ HEADER_BYTES as usize }>() else {
        return Err(Violation::Truncated { frame_bytes: HEADER_BYTES, available });
    };
    let header = Header::decode(header).map_err(Violation::Header)?;
    let padded = (header.frame_bytes() - HEADER_BYTES) as usize;
    if padded > rest.len() {
        return Err(Violation::Truncated { frame_bytes: header.frame_bytes(), available });
    }
    let (payload, rest) = rest.split_at(padded);
    Ok((header, &payload[..header.len as usize], rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_crosses_whole() {
        let (a, b) = pair().expect("socket pair");
        let mut message = Message::default();
        message.push(&Header { stream: 1, kind: 1, len: 3, argument: 0 }, b"abc");
        message.push_report(report::EXITED, 7, "");
        message.send(&a).expect("there is room");
        assert!(message.is_empty());
        let mut buffer = vec![0; MESSAGE_MAX_BYTES];
        let len = receive(&b, &mut buffer).expect("a message");
        let (first, payload, rest) = split_frame(&buffer[..len]).expect("a frame");
        assert_eq!((first.stream, payload), (1, &b"abc"[..]));
        let (second, payload, rest) = split_frame(rest).expect("a frame");
        assert_eq!((second.kind, second.argument, payload, rest), (report::EXITED, 7, &b""[..], &b""[..]));
        assert_eq!(receive(&b, &mut buffer).expect_err("empty").kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(receive(&b, &mut buffer).expect("end"), 0);
    }

    #[test]
    fn a_stalled_receiver_stalls_the_sender() {
        let (a, _b) = pair().expect("socket pair");
        for sent in 0.. {
            assert!(sent < 1000, "no back pressure");
            let mut message = Message::default();
            message.push(&Header { stream: 1, kind: 1, len: 30_000, argument: 0 }, &vec![1; 30_000]);
            if let Err(error) = message.send(&a) {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                assert!(!message.is_empty());
                return;
            }
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_split_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                match split_frame(rest) {
                    Ok((header, payload, tail)) => {
                        prop_assert_eq!(payload.len(), header.len as usize);
                        prop_assert!(tail.len() < rest.len());
                        rest = tail;
                    }
                    Err(_) => break,
                }
            }
        }
    }
}

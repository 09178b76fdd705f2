//! Datagrams with a JSON object and descriptors, as they travel on the control socket of a VM process
//! (docs/control-socket.md) and between proxy and torpord (docs/proxy-socket.md): SOCK_SEQPACKET, one message each.
//!
//! ```text
//! offset 0  4 bytes, the protocol's
//!        4  u16 its version
//!        6  u16 number of descriptors that come with the message
//!        8  u32 length of the object in bytes
//!       12  u32 0
//!       16  the object, nothing behind it
//! ```

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

/// Bytes before the object.
pub const HEADER_BYTES: usize = 16;

/// What one protocol's datagrams begin with.
#[derive(Debug, Clone, Copy)]
pub struct Envelope {
    /// The protocol's name.
    pub magic: [u8; 4],
    /// Its version.
    pub version: u16,
}

/// What was received.
#[derive(Debug)]
pub struct Received {
    /// The JSON object, not looked at yet.
    pub object: Vec<u8>,
    /// What came with it.
    pub descriptors: Vec<OwnedFd>,
}

impl Envelope {
    /// The header of a datagram.
    #[must_use]
    pub fn header(self, object_bytes: u32, descriptors: u16) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&self.magic);
        header[4..6].copy_from_slice(&self.version.to_le_bytes());
        header[6..8].copy_from_slice(&descriptors.to_le_bytes());
        header[8..12].copy_from_slice(&object_bytes.to_le_bytes());
        header
    }

    /// Receives a datagram into `buffer`, its descriptors by way of `space`; `None` at the end. Descriptors are closed
    /// at exec(2).
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for a datagram that breaks the format, or what recvmsg(2) gives.
    pub fn receive(
        self,
        socket: impl AsFd,
        buffer: &mut [u8],
        space: &mut [MaybeUninit<u8>],
        flags: RecvFlags,
    ) -> io::Result<Option<Received>> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut ancillary = RecvAncillaryBuffer::new(space);
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        let got = loop {
            match rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags) {
                Ok(got) => break got,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        if got.bytes == 0 {
            return Ok(None);
        }
        let message = buffer.get(..got.bytes).ok_or_else(|| invalid("a message that is too long"))?;
        let (header, object) = message.split_at_checked(HEADER_BYTES).ok_or_else(|| invalid("a short message"))?;
        let version = u16::from_le_bytes([header[4], header[5]]);
        if header[..4] != self.magic || version != self.version {
            let ours = self.version;
            return Err(invalid(&format!("version {version} of the protocol; this program speaks {ours}")));
        }
        let count = usize::from(u16::from_le_bytes([header[6], header[7]]));
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        if len != object.len() || header[12..] != [0; 4] || count != descriptors.len() {
            return Err(invalid("a message that is not what its header says"));
        }
        Ok(Some(Received { object: object.to_vec(), descriptors }))
    }
}

//! Datagrams of the socket to torpord: docs/proxy-socket.md, "Envelope".

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

/// Version of the protocol.
pub const VERSION: u16 = 1;
/// Cap of a datagram's object.
pub const OBJECT_MAX_BYTES: usize = 128 << 10;
const MAGIC: [u8; 4] = *b"TPPX";
const HEADER_BYTES: usize = 16;
/// The kernel's own limit is higher; `attach` has one.
const DESCRIPTORS_MAX: usize = 4;

/// What was received.
#[derive(Debug)]
pub struct Received {
    /// The JSON object.
    pub object: Vec<u8>,
    /// What came with it.
    pub descriptors: Vec<OwnedFd>,
}

/// A datagram around an object.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] where the object is too long.
pub fn wrap(object: &[u8]) -> io::Result<Vec<u8>> {
    if object.len() > OBJECT_MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("an object of {} bytes", object.len())));
    }
    let mut datagram = Vec::with_capacity(HEADER_BYTES + object.len());
    datagram.extend(MAGIC);
    datagram.extend(VERSION.to_le_bytes());
    datagram.extend(0_u16.to_le_bytes());
    datagram.extend((object.len() as u32).to_le_bytes());
    datagram.extend([0; 4]);
    datagram.extend(object);
    Ok(datagram)
}

/// Sends a datagram without waiting.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`], or what send(2) gives.
pub fn send(socket: impl AsFd, datagram: &[u8]) -> io::Result<()> {
    loop {
        match rustix::net::send(&socket, datagram, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives a datagram into `buffer` ([`buffer`]) without waiting; `None` at the end.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`]; [`io::ErrorKind::InvalidData`] for a datagram that breaks the format; or what
/// recvmsg(2) gives.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT | RecvFlags::TRUNC;
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
    let message = buffer.get(..got.bytes).ok_or_else(|| invalid("a datagram that is too long"))?;
    let (header, object) = message.split_at_checked(HEADER_BYTES).ok_or_else(|| invalid("a short datagram"))?;
    let version = u16::from_le_bytes([header[4], header[5]]);
    if header[..4] != MAGIC || version != VERSION {
        return Err(invalid(&format!("version {version} of the protocol; this proxy speaks {VERSION}")));
    }
    let count = usize::from(u16::from_le_bytes([header[6], header[7]]));
    let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    if len != object.len() || header[12..] != [0; 4] || count != descriptors.len() {
        return Err(invalid("a datagram that is not what its header says"));
    }
    Ok(Some(Received { object: object.to_vec(), descriptors }))
}

/// Room for one datagram.
#[must_use]
pub fn buffer() -> Vec<u8> {
    vec![0; HEADER_BYTES + OBJECT_MAX_BYTES]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn datagrams_cross_whole_and_others_are_refused() {
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a pair");
        let mut buffer = buffer();
        send(&a, &wrap(b"{}").expect("short")).expect("room");
        assert_eq!(receive(&b, &mut buffer).expect("sent").expect("no end").object, b"{}");
        assert_eq!(receive(&b, &mut buffer).expect_err("none").kind(), io::ErrorKind::WouldBlock);
        let good = wrap(b"{\"id\":1}").expect("short");
        for at in 0..HEADER_BYTES {
            let mut bad = good.clone();
            bad[at] ^= 0x41;
            send(&a, &bad).expect("room");
            assert_eq!(receive(&b, &mut buffer).expect_err("refused").kind(), io::ErrorKind::InvalidData, "byte {at}");
        }
        for len in 1..HEADER_BYTES {
            send(&a, &good[..len]).expect("room");
            assert!(receive(&b, &mut buffer).is_err());
        }
        assert!(wrap(&vec![b' '; OBJECT_MAX_BYTES + 1]).is_err());
        drop(a);
        assert!(receive(&b, &mut buffer).expect("the end").is_none());
    }
}

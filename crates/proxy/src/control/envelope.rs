//! Datagrams of the socket to torpord: docs/proxy-socket.md, "Envelope".

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use torpor_streams::envelope::{Envelope, HEADER_BYTES};

pub use torpor_streams::envelope::Received;

/// Version of the protocol.
pub const VERSION: u16 = 1;
/// Cap of a datagram's object.
pub const OBJECT_MAX_BYTES: usize = 128 << 10;
const ENVELOPE: Envelope = Envelope { magic: *b"TPPX", version: VERSION };
/// The kernel's own limit is higher; `attach` has one.
const DESCRIPTORS_MAX: usize = 4;

/// A datagram around an object.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] where the object is too long.
pub fn wrap(object: &[u8]) -> io::Result<Vec<u8>> {
    if object.len() > OBJECT_MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("an object of {} bytes", object.len())));
    }
    let mut datagram = Vec::with_capacity(HEADER_BYTES + object.len());
    datagram.extend(ENVELOPE.header(object.len() as u32, 0));
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
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    ENVELOPE.receive(socket, buffer, &mut space, RecvFlags::DONTWAIT | RecvFlags::TRUNC)
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

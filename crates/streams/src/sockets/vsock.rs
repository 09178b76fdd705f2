//! vsock(7) towards the host, through Unix sockets as Firecracker has it: with `--vsock PATH` a program of the host
//! connects to PATH, writes `CONNECT PORT\n` and reads `OK PORT\n` once the guest has accepted; the guest's connection to
//! context 2, port N goes to the Unix socket PATH_N.

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const BACKLOG: i32 = 64;
/// `CONNECT 4294967295\n`
const REQUEST_MAX_BYTES: usize = 19;

/// The host's end of the guest's vsock.
#[derive(Debug)]
pub struct Vsock {
    path: PathBuf,
    pub(super) listener: OwnedFd,
}

impl Vsock {
    /// Makes the Unix socket `path`, which must not be there.
    ///
    /// # Errors
    /// A text that names the path.
    pub fn bind(path: &Path) -> Result<Self, String> {
        let listener =
            listen(path).map_err(|error| format!("--vsock {}: {}", path.display(), std::io::Error::from(error)))?;
        Ok(Self { path: path.to_owned(), listener })
    }

    /// A connection to whoever listens for the guest's port.
    pub(super) fn connect(&self, port: u32) -> Result<OwnedFd, Errno> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let stream = socket()?;
        rustix::net::connect(&stream, &SocketAddrUnix::new(PathBuf::from(path))?)?;
        Ok(stream)
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // It may be gone already; nothing depends on it.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listen(path: &Path) -> Result<OwnedFd, Errno> {
    let listener = socket()?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// A program of the host that has connected and has not yet said where to.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) socket: OwnedFd,
    request: Vec<u8>,
}

impl Caller {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, request: Vec::new() }
    }

    /// The port, once its line is there: `Ok(None)` until then.
    ///
    /// # Errors
    /// Where it is no such line, or the connection has ended.
    pub(super) fn port(&mut self) -> Result<Option<u32>, Errno> {
        loop {
            // Byte by byte: what follows the line is the guest's.
            let mut byte = [0];
            match rustix::net::recv(&self.socket, &mut byte, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(Errno::CONNRESET),
                Ok(_) if byte == *b"\n" => return parse(&self.request).map(Some).ok_or(Errno::PROTO),
                Ok(_) if self.request.len() < REQUEST_MAX_BYTES => self.request.push(byte[0]),
                Ok(_) => return Err(Errno::PROTO),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

fn parse(request: &[u8]) -> Option<u32> {
    std::str::from_utf8(request).ok()?.strip_prefix("CONNECT ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_caller_names_a_port() {
        let (mut host, ours) = UnixStream::pair().expect("socket pair");
        let mut caller = Caller::new(ours.into());
        host.write_all(b"CONNECT 10").expect("room");
        assert_eq!(caller.port(), Ok(None));
        host.write_all(b"24\nhello").expect("room");
        assert_eq!(caller.port(), Ok(Some(1024)));
        for bad in [&b"CONNECT x\n"[..], b"GET / HTTP/1.1 and more of it\n", b"\n"] {
            let (mut host, ours) = UnixStream::pair().expect("socket pair");
            host.write_all(bad).expect("room");
            assert_eq!(Caller::new(ours.into()).port(), Err(Errno::PROTO));
        }
    }
}

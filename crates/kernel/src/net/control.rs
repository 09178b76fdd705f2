//! Control messages (cmsg(3)): descriptors and credentials that travel beside the bytes.

use super::options::{Options, level, name};
use super::packet::told;
use super::queue::Sender;
use super::socket::{Kind, Socket};
use crate::errno::{Errno, Result};
use crate::fs::file::OpenFile;
use crate::task::creds::Credentials;
use crate::task::current;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::net::IpAddr;
use linux_raw_sys::general::{CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN};

const SOL_SOCKET: u32 = 1;
const SCM_RIGHTS: u32 = 1;
const SCM_CREDENTIALS: u32 = 2;
/// SCM_MAX_FD.
const MAX_RIGHTS: usize = 253;
/// `struct cmsghdr`: u64 length, int level, int type.
const HEADER_BYTES: usize = 16;
/// The most control data that sendmsg(2) takes (net.core.optmem_max).
pub const MAX_CONTROL_BYTES: usize = 20_480;

/// What a sender chooses of `struct in_pktinfo` and `struct in6_pktinfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Unspecified where the route is to choose.
    pub ip: IpAddr,
    /// Number of the interface; 0 where the route is to choose.
    pub interface: u32,
}

/// What a sender passes on.
#[derive(Clone, Default)]
pub struct Passed {
    /// SCM_RIGHTS.
    pub rights: Vec<Rc<OpenFile>>,
    /// SCM_CREDENTIALS.
    pub sender: Option<Sender>,
    /// From where a datagram over IP is sent (IP_PKTINFO, IPV6_PKTINFO).
    pub source: Option<Source>,
    /// Hop limit of a datagram over IP (IP_TTL, IPV6_HOPLIMIT).
    pub hops: Option<u8>,
    /// Traffic class of a datagram over IP (IP_TOS, IPV6_TCLASS).
    pub class: Option<u8>,
}

/// Whether the caller may claim to be `[pid, uid, gid]` (unix(7)).
fn may_claim(claimed: Sender, creds: &Credentials) -> bool {
    let [pid, uid, gid] = claimed;
    (pid == current().process.pid() || creds.has(CAP_SYS_ADMIN))
        && ([creds.uid, creds.euid, creds.suid].contains(&uid) || creds.has(CAP_SETUID))
        && ([creds.gid, creds.egid, creds.sgid].contains(&gid) || creds.has(CAP_SETGID))
}

/// Reads the control data of sendmsg(2).
///
/// # Errors
/// EINVAL for malformed data or an unknown type, EBADF for a descriptor that is not open, EPERM for a false identity.
pub fn parse(bytes: &[u8], socket: &Socket) -> Result<Passed> {
    let (unix, ip) = (socket.is_unix(), socket.is_inet() && socket.kind == Kind::Datagram);
    let mut passed = Passed::default();
    let mut at = 0;
    while bytes.len().saturating_sub(at) >= HEADER_BYTES {
        let header = &bytes[at..at + HEADER_BYTES];
        let word = |n: usize| u32::from_ne_bytes([header[n], header[n + 1], header[n + 2], header[n + 3]]);
        let len = usize::try_from(u64::from(word(0)) | u64::from(word(4)) << 32).map_err(|_| Errno::EINVAL)?;
        if len < HEADER_BYTES || len > bytes.len() - at {
            return Err(Errno::EINVAL);
        }
        let data = &bytes[at + HEADER_BYTES..at + len];
        let words = data.chunks_exact(4).map(|c| u32::from_ne_bytes([c[0], c[1], c[2], c[3]]));
        match (word(8), word(12)) {
            (SOL_SOCKET, SCM_RIGHTS) if unix => {
                let files = current().files();
                for fd in words {
                    if passed.rights.len() >= MAX_RIGHTS {
                        return Err(Errno::EINVAL);
                    }
                    passed.rights.push(files.get(fd.cast_signed())?);
                }
            }
            (SOL_SOCKET, SCM_CREDENTIALS) if unix => {
                let mut claimed = [0; 3];
                if data.len() != 12 {
                    return Err(Errno::EINVAL);
                }
                for (slot, value) in claimed.iter_mut().zip(words) {
                    *slot = value;
                }
                if !may_claim(claimed, &current().creds()) {
                    return Err(Errno::EPERM);
                }
                passed.sender = Some(claimed);
            }
            // Other families let these pass without a meaning.
            (SOL_SOCKET, SCM_RIGHTS | SCM_CREDENTIALS) => {}
            (SOL_SOCKET, _) => return Err(Errno::EINVAL),
            (level::IP | level::IPV6 | level::UDP, _) if ip => parse_ip(word(8), word(12), data, &mut passed)?,
            // Connections have use for none of other levels.
            _ => {}
        }
        at += len.next_multiple_of(8);
    }
    Ok(passed)
}

/// What a datagram over IP is sent with.
fn parse_ip(level: u32, kind: u32, data: &[u8], passed: &mut Passed) -> Result<()> {
    let int = || data.try_into().map(i32::from_ne_bytes).map_err(|_| Errno::EINVAL);
    let byte = |value: i32| u8::try_from(value).map_err(|_| Errno::EINVAL);
    match (level, kind) {
        (level::IP, told::TTL) => passed.hops = Some(byte(int()?).ok().filter(|hops| *hops > 0).ok_or(Errno::EINVAL)?),
        (level::IP, told::TOS) => {
            passed.class = Some(if let [class] = data { *class } else { byte(int()?)? });
        }
        // -1 is the socket's own hop limit, but a class like others.
        (level::IPV6, told::HOPLIMIT) => passed.hops = Some(int()?).filter(|v| *v != -1).map(byte).transpose()?,
        (level::IPV6, told::TCLASS) => passed.class = Some(if int()? == -1 { u8::MAX } else { byte(int()?)? }),
        (level::IP, told::PKTINFO) if data.len() == 12 => {
            // Number, address to send from, and one that counts in the other direction only.
            let [interface, ip, _]: [[u8; 4]; 3] = data.as_chunks().0.try_into().map_err(|_| Errno::EINVAL)?;
            passed.source = Some(Source { ip: ip.into(), interface: u32::from_ne_bytes(interface) });
        }
        (level::IPV6, told::PKTINFO_V6) => {
            let (ip, interface) = data.split_first_chunk::<16>().ok_or(Errno::EINVAL)?;
            let interface = u32::from_ne_bytes(interface.try_into().map_err(|_| Errno::EINVAL)?);
            passed.source = Some(Source { ip: (*ip).into(), interface });
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// Writes control messages into a buffer of limited size.
pub struct Writer {
    out: Vec<u8>,
    capacity: usize,
    /// Something did not fit: MSG_CTRUNC.
    pub truncated: bool,
}

impl Writer {
    /// For a buffer of `capacity` bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { out: Vec::new(), capacity, truncated: false }
    }

    /// Bytes of data for which there is room in one more message; `None` if there is none even for its header.
    fn room(&self) -> Option<usize> {
        (self.capacity - self.out.len()).checked_sub(HEADER_BYTES)
    }

    /// Adds a message, or as much of it as fits (`put_cmsg` of Linux).
    pub fn message(&mut self, level: u32, kind: u32, data: &[u8]) {
        let Some(room) = self.room() else {
            self.truncated = true;
            return;
        };
        self.truncated |= room < data.len();
        let data = &data[..data.len().min(room)];
        self.out.extend(((HEADER_BYTES + data.len()) as u64).to_ne_bytes());
        self.out.extend(level.to_ne_bytes());
        self.out.extend(kind.to_ne_bytes());
        self.out.extend(data);
        self.out.resize(self.out.len().next_multiple_of(8).min(self.capacity), 0);
    }

    /// Adds when it arrived, if that was asked for, as `struct timeval` or `struct timespec`.
    pub fn arrival(&mut self, options: &Options, at_ns: u64) {
        for (kind, unit_ns) in [(name::TIMESTAMP, 1000), (name::TIMESTAMPNS, 1)] {
            if options.on(level::SOCKET, kind) {
                let parts = [at_ns / 1_000_000_000, at_ns % 1_000_000_000 / unit_ns];
                self.message(SOL_SOCKET, kind, &parts.map(u64::to_ne_bytes).concat());
            }
        }
    }

    /// Adds the sender's credentials.
    pub fn credentials(&mut self, sender: Sender) {
        let data: Vec<u8> = sender.iter().flat_map(|v| v.to_ne_bytes()).collect();
        self.message(SOL_SOCKET, SCM_CREDENTIALS, &data);
    }

    /// Adds descriptors: `install` gives each a number; those that do not fit are closed.
    pub fn rights(&mut self, files: Vec<Rc<OpenFile>>, mut install: impl FnMut(Rc<OpenFile>) -> Result<i32>) {
        let fit = (self.room().unwrap_or(0) / 4).min(files.len());
        self.truncated |= fit < files.len();
        let mut data = Vec::new();
        for file in files.into_iter().take(fit) {
            match install(file) {
                Ok(fd) => data.extend(fd.to_ne_bytes()),
                Err(_) => {
                    self.truncated = true;
                    break;
                }
            }
        }
        if !data.is_empty() {
            self.message(SOL_SOCKET, SCM_RIGHTS, &data);
        }
    }

    /// The bytes.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

//! Control messages (cmsg(3)): descriptors and credentials that travel beside the bytes.

use super::queue::Sender;
use crate::errno::{Errno, Result};
use crate::fs::file::OpenFile;
use crate::task::creds::Credentials;
use crate::task::current;
use alloc::rc::Rc;
use alloc::vec::Vec;
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

/// What a sender passes on.
#[derive(Clone, Default)]
pub struct Passed {
    /// SCM_RIGHTS.
    pub rights: Vec<Rc<OpenFile>>,
    /// SCM_CREDENTIALS.
    pub sender: Option<Sender>,
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
pub fn parse(bytes: &[u8], unix: bool) -> Result<Passed> {
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
            // Of other levels the loopback interface has use for none.
            _ => {}
        }
        at += len.next_multiple_of(8);
    }
    Ok(passed)
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

    fn room(&self) -> usize {
        self.capacity.saturating_sub(self.out.len().next_multiple_of(8)).saturating_sub(HEADER_BYTES)
    }

    fn message(&mut self, kind: u32, data: &[u8]) {
        self.out.resize(self.out.len().next_multiple_of(8), 0);
        self.out.extend(((HEADER_BYTES + data.len()) as u64).to_ne_bytes());
        self.out.extend(SOL_SOCKET.to_ne_bytes());
        self.out.extend(kind.to_ne_bytes());
        self.out.extend(data);
    }

    /// Adds the sender's credentials.
    pub fn credentials(&mut self, sender: Sender) {
        if self.room() < 12 {
            self.truncated = true;
            return;
        }
        let data: Vec<u8> = sender.iter().flat_map(|v| v.to_ne_bytes()).collect();
        self.message(SCM_CREDENTIALS, &data);
    }

    /// Adds descriptors: `install` gives each a number; those that do not fit are closed.
    pub fn rights(&mut self, files: Vec<Rc<OpenFile>>, mut install: impl FnMut(Rc<OpenFile>) -> Result<i32>) {
        let fit = (self.room() / 4).min(files.len());
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
            self.message(SCM_RIGHTS, &data);
        }
    }

    /// The bytes, padded as the last message wants it where there is room.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let padded = self.out.len().next_multiple_of(8).min(self.capacity);
        self.out.resize(padded.max(self.out.len()), 0);
        self.out
    }
}

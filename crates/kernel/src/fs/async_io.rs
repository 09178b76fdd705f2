//! Signals for files that become ready: O_ASYNC, F_SETOWN and F_SETSIG of fcntl(2).

use super::file::OpenFile;
use super::inode::FileType;
use crate::errno::{Errno, Result};
use crate::task::creds::Credentials;
use crate::task::process::Process;
use crate::task::signal::{self, SIGIO, Signal, SignalInfo};
use crate::task::{current, pid};
use crate::wait::{Events, Wake};
use alloc::rc::{Rc, Weak};

/// Who gets the signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// One thread.
    Thread(u32),
    /// Any thread of a process.
    Process(u32),
    /// All processes of a group.
    Group(u32),
}

impl Whose {
    fn exists(self) -> bool {
        match self {
            Whose::Thread(tid) => pid::thread(tid).is_some(),
            Whose::Process(pid) => pid::process(pid).is_some(),
            Whose::Group(pgid) => pid::group(pgid).is_some(),
        }
    }
}

/// F_SETOWN: who gets the signals, and in whose name they are sent.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    whose: Whose,
    uid: u32,
    euid: u32,
}

impl Owner {
    /// Somebody who is there, set by the current thread.
    ///
    /// # Errors
    /// ESRCH.
    pub fn new(whose: Whose) -> Result<Self> {
        if !whose.exists() {
            return Err(Errno::ESRCH);
        }
        let creds = current().creds();
        Ok(Self { whose, uid: creds.uid, euid: creds.euid })
    }

    /// Who it is; `None` once there is nobody any more.
    #[must_use]
    pub fn whose(&self) -> Option<Whose> {
        Some(self.whose).filter(|whose| whose.exists())
    }

    fn may_send(&self, to: &Credentials) -> bool {
        self.euid == 0 || [self.uid, self.euid].iter().any(|id| [to.uid, to.suid].contains(id))
    }

    fn send(&self, info: SignalInfo) {
        match self.whose {
            Whose::Thread(tid) => {
                if let Some(thread) = pid::thread(tid).filter(|thread| self.may_send(&thread.creds())) {
                    send(info, |info| signal::send_to_thread(&thread, info));
                }
            }
            Whose::Process(pid) => {
                if let Some(process) = pid::process(pid) {
                    self.send_to_process(&process, info);
                }
            }
            Whose::Group(pgid) => {
                for process in pid::group(pgid).iter().flat_map(|group| group.members()) {
                    self.send_to_process(&process, info);
                }
            }
        }
    }

    fn send_to_process(&self, process: &Rc<Process>, info: SignalInfo) {
        if process.threads().first().is_some_and(|first| self.may_send(&first.creds())) {
            send(info, |info| signal::send_to_process(process, info));
        }
    }
}

fn send(info: SignalInfo, to: impl Fn(SignalInfo) -> Result<()>) {
    if to(info).is_err() {
        // Its queue is full: fcntl(2) promises SIGIO then, for which there is always room.
        let _ = to(SignalInfo::kernel(SIGIO));
    }
}

/// An open file whose owner is told, and the descriptor that is named.
struct Notice {
    file: Weak<OpenFile>,
    kind: FileType,
    fd: i32,
}

impl Wake for Notice {
    fn wake(&self, events: Events) -> bool {
        let Some(file) = self.file.upgrade() else { return false };
        if let (Some(owner), Some((code, band))) = (file.owner.get(), self.reason(&file, events)) {
            let wanted = Signal::new(file.owner_signal.get());
            owner.send(wanted.map_or(SignalInfo::kernel(SIGIO), |wanted| {
                SignalInfo::poll(wanted, code, i64::from(band.bits()), self.fd)
            }));
        }
        false
    }
}

impl Notice {
    /// si_code and si_band of a wake-up; `None` where the owner is not told. Objects may be in the middle of a change, so
    /// nothing is asked of them.
    fn reason(&self, file: &OpenFile, events: Events) -> Option<(i32, Events)> {
        let pipe = self.kind == FileType::Fifo;
        if events.contains(Events::HUP) && !pipe {
            Some((signal::POLL_HUP, Events::HUP | Events::ERR))
        } else if events.contains(Events::IN) && (!pipe || file.flags.get().readable()) {
            Some((signal::POLL_IN, Events::READABLE))
        } else if events.contains(Events::ERR) && !pipe {
            Some((signal::POLL_ERR, Events::ERR))
        } else if events.contains(Events::OUT) && self.kind != FileType::Socket {
            // Of room in a socket Linux tells after a write that found none; here nobody is told.
            Some((signal::POLL_OUT, Events::WRITABLE | Events::WRBAND))
        } else {
            None
        }
    }
}

/// Whether O_ASYNC has a meaning for a file: pipes, sockets and terminals.
#[must_use]
pub fn is_possible(file: &OpenFile) -> bool {
    let kind = file.metadata().file_type;
    matches!(kind, FileType::Fifo | FileType::Socket | FileType::CharDevice) && file.ops.wait_queue().is_some()
}

/// Turns signals on or off, where they are possible; `fd` is what they name.
pub fn set(file: &Rc<OpenFile>, fd: i32, on: bool) {
    let queue = file.ops.wait_queue().filter(|_| on && is_possible(file));
    let notice = queue.map(|queue| {
        let notice = Notice { file: Rc::downgrade(file), kind: file.metadata().file_type, fd };
        queue.register(Rc::new(notice), false)
    });
    let old = file.notice.replace(notice);
    drop(old);
}

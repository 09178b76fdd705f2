//! Signals as messages (signalfd(2)).
//!
//! Reading and polling concern the thread and process that do it, not those that made the descriptor.

use super::anon;
use crate::errno::{Errno, Result};
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::inode::Metadata;
use crate::mm::user::Dest;
use crate::task;
use crate::task::sched::{Sleep, wait_until};
use crate::task::signal::{self, SignalInfo, SignalSet};
use crate::wait::{Events, WaitQueue};
use alloc::rc::Rc;
use alloc::string::String;
use core::any::Any;
use core::cell::Cell;

/// Bytes of `struct signalfd_siginfo`.
const INFO_BYTES: usize = 128;

/// A signal descriptor.
pub struct SignalFd {
    wanted: Cell<SignalSet>,
}

/// Opens a descriptor for `signals`; `flags` may have O_NONBLOCK.
#[must_use]
pub fn signalfd(signals: SignalSet, flags: OpenFlags) -> Rc<OpenFile> {
    let ops = SignalFd { wanted: Cell::new(signals.blockable()) };
    OpenFile::anonymous(Rc::new(ops), flags | OpenFlags::RDWR)
}

impl SignalFd {
    /// The signal descriptor behind an open file.
    ///
    /// # Errors
    /// EINVAL if it is none.
    pub fn of(file: &OpenFile) -> Result<&Self> {
        file.ops.as_any().downcast_ref().ok_or(Errno::EINVAL)
    }

    /// Changes the set.
    pub fn set(&self, signals: SignalSet) {
        self.wanted.set(signals.blockable());
        task::current().process.signals.arrivals.wake_all(Events::empty());
    }
}

/// `struct signalfd_siginfo`.
fn encode(info: &SignalInfo) -> [u8; INFO_BYTES] {
    let mut out = [0; INFO_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| out[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &info.signal.number().to_ne_bytes());
    put(4, &info.errno.to_ne_bytes());
    put(8, &info.code.to_ne_bytes());
    let value = |put: &mut dyn FnMut(usize, &[u8])| {
        put(44, &(info.value() as u32).to_ne_bytes());
        put(48, &info.value().to_ne_bytes());
    };
    match (info.signal, info.code) {
        (_, signal::SI_TIMER) => {
            put(24, &info.timer_id().to_ne_bytes());
            put(32, &info.overrun().to_ne_bytes());
            value(&mut put);
        }
        (signal::SIGCHLD, 1..) => {
            let (user, system) = info.child_ticks();
            put(12, &info.pid().to_ne_bytes());
            put(16, &info.uid().to_ne_bytes());
            put(40, &info.status().to_ne_bytes());
            put(56, &user.to_ne_bytes());
            put(64, &system.to_ne_bytes());
        }
        (signal::SIGSEGV | signal::SIGBUS | signal::SIGILL | signal::SIGFPE | signal::SIGTRAP, 1..) => {
            put(72, &info.address().to_ne_bytes());
        }
        (_, signal::POLL_IN..=signal::POLL_HUP) => {
            let (band, fd) = info.band_and_fd();
            put(20, &fd.to_ne_bytes());
            put(28, &(band as u32).to_ne_bytes());
        }
        _ if info.code < 0 => {
            put(12, &info.pid().to_ne_bytes());
            put(16, &info.uid().to_ne_bytes());
            value(&mut put);
        }
        _ => {
            put(12, &info.pid().to_ne_bytes());
            put(16, &info.uid().to_ne_bytes());
        }
    }
    out
}

impl FileOps for SignalFd {
    fn knows_nowait(&self, _file: &OpenFile) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn can_write(&self) -> bool {
        false
    }

    fn read(&self, file: &OpenFile, dst: &mut Dest<'_>, _offset: u64) -> Result<usize> {
        if dst.remaining() < INFO_BYTES {
            return Err(Errno::EINVAL);
        }
        let wanted = self.wanted.get();
        let mut next = match signal::take_of(wanted) {
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => {
                let arrivals = Rc::clone(&task::current().process.signals.arrivals);
                Some(wait_until(&[&arrivals], None, Sleep::Interruptible, || signal::take_of(wanted))?)
            }
            found => found,
        };
        let mut done = 0;
        while let Some(info) = next {
            // As in Linux, a signal that can't be stored is lost.
            if dst.put(&encode(&info)) != Ok(INFO_BYTES) {
                return if done > 0 { Ok(done) } else { Err(Errno::EFAULT) };
            }
            done += INFO_BYTES;
            next = if dst.remaining() >= INFO_BYTES { signal::take_of(wanted) } else { None };
        }
        Ok(done)
    }

    fn poll(&self, _file: &OpenFile) -> Events {
        let thread = task::current();
        let pending = thread.signals.own_pending().0 | thread.process.signals.shared_pending().0;
        if pending & self.wanted.get().0 != 0 { Events::IN } else { Events::empty() }
    }

    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        Some(Rc::clone(&task::current().process.signals.arrivals))
    }

    fn metadata(&self) -> Metadata {
        anon::metadata()
    }

    fn describe(&self) -> String {
        String::from("anon_inode:[signalfd]")
    }

    fn fdinfo(&self) -> String {
        alloc::format!("sigmask:\t{:016x}\n", self.wanted.get().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::signal::{SIGCHLD, SIGUSR1, SIGUSR2};

    #[test]
    fn messages() {
        let thread = crate::task::testing::enter();
        let set = SignalSet::of(SIGUSR1).with(SIGUSR2).with(SIGCHLD);
        signal::block(set);
        let file = signalfd(SignalSet::of(SIGUSR1).with(SIGCHLD), OpenFlags::NONBLOCK);
        let mut buffer = [0; 300];
        assert_eq!(file.read(&mut Dest::kernel(&mut buffer[..127])), Err(Errno::EINVAL));
        assert_eq!(file.read(&mut Dest::kernel(&mut buffer)), Err(Errno::EAGAIN));
        for info in [
            SignalInfo::process(SIGUSR2, signal::SI_USER, 3, 4),
            SignalInfo::process(SIGUSR1, signal::SI_USER, 7, 8),
            SignalInfo::child(signal::CLD_EXITED, 9, 10, 11, 12, 13),
        ] {
            signal::send_to_process(&thread.process, info).expect("sends");
        }
        assert_eq!(file.poll(), Events::IN);
        assert_eq!(file.read(&mut Dest::kernel(&mut buffer)), Ok(256));
        let word = |at: usize| u32::from_ne_bytes([buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]]);
        assert_eq!([word(0), word(8), word(12), word(16)], [10, 0, 7, 8]);
        assert_eq!([word(128), word(136), word(140), word(144), word(168)], [17, 1, 9, 10, 11]);
        assert_eq!([word(184), word(192)], [12, 13]);
        assert_eq!(file.poll(), Events::empty());
        SignalFd::of(&file).expect("a signalfd").set(set);
        assert_eq!(file.poll(), Events::IN);
    }
}

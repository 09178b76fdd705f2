//! Signals of the broker, read from a descriptor.

use rustix::process::Signal;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Handed on to the program.
const FORWARDED: [Signal; 7] =
    [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::CONT];

/// Blocked signals and the descriptor that delivers them.
#[derive(Debug)]
pub(super) struct Signals {
    descriptor: OwnedFd,
}

impl Signals {
    /// Blocks the signals that the broker handles. Those that the caller has set to be ignored (nohup) stay so.
    ///
    /// # Errors
    /// What sigprocmask(2) or signalfd(2) gives.
    pub(super) fn block() -> io::Result<Self> {
        // SAFETY: an all-zero set is initialised by sigemptyset before use.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is valid for writing.
        unsafe { libc::sigemptyset(&raw mut set) };
        for signal in FORWARDED.into_iter().chain([Signal::WINCH, Signal::TSTP]) {
            if !is_ignored(signal) {
                // SAFETY: a valid set and a valid signal number.
                unsafe { libc::sigaddset(&raw mut set, signal.as_raw()) };
            }
        }
        // SAFETY: a valid set; the only thread's mask is changed.
        if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a valid set; a new descriptor is asked for.
        let descriptor = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and ours.
        Ok(Self { descriptor: unsafe { OwnedFd::from_raw_fd(descriptor) } })
    }

    /// The next signal that has arrived, if any.
    pub(super) fn next(&self) -> Option<Signal> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        // SAFETY: the buffer is as long as said.
        let len = unsafe { libc::read(self.descriptor.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) };
        // signalfd(2): ssi_signo comes first.
        let number = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        if len.cast_unsigned() == info.len() { Signal::from_named_raw(number) } else { None }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn is_ignored(signal: Signal) -> bool {
    // SAFETY: an all-zero sigaction is valid, and is only written to.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks for the current action only.
    let known = unsafe { libc::sigaction(signal.as_raw(), std::ptr::null(), &raw mut action) } == 0;
    known && action.sa_sigaction == libc::SIG_IGN
}

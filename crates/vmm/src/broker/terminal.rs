//! The terminal in raw mode, and back again on every way out.

use crate::error::Failure;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::sync::OnceLock;

/// The settings to go back to, for panics and fatal signals.
static COOKED: OnceLock<Termios> = OnceLock::new();

/// Signals that end a process and that the broker does not handle otherwise: faults and resource limits.
const FATAL: [libc::c_int; 12] = [
    libc::SIGABRT,
    libc::SIGALRM,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGPROF,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGTRAP,
    libc::SIGVTALRM,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];

/// Standard input in raw mode; dropping it restores what was before.
#[derive(Debug)]
pub(super) struct Terminal {
    raw: Termios,
}

impl Terminal {
    /// Sets raw mode.
    ///
    /// # Errors
    /// A [`Failure`] where standard input is not a terminal.
    pub(super) fn raw() -> Result<Self, Failure> {
        let input = rustix::stdio::stdin();
        if !isatty(input) {
            return Err(Failure::new("-it: standard input is not a terminal; leave out -t"));
        }
        let fail = |error: rustix::io::Errno| Failure::new(format!("-t: {}", std::io::Error::from(error)));
        let cooked = tcgetattr(input).map_err(fail)?;
        let mut raw = cooked.clone();
        raw.make_raw();
        COOKED.get_or_init(|| cooked);
        restore_on_fatal_signals();
        // In a release build a panic aborts and nothing is dropped.
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        let terminal = Self { raw };
        terminal.set_raw().map_err(fail)?;
        Ok(terminal)
    }

    fn set_raw(&self) -> rustix::io::Result<()> {
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.raw)
    }

    /// Runs `stopped`, in which this process stops and is continued, with the terminal as it was before.
    pub(super) fn lend(&self, stopped: impl FnOnce()) {
        restore();
        stopped();
        // A terminal that is gone needs no settings.
        let _ = self.set_raw();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(cooked) = COOKED.get() {
        // As in `lend`.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, cooked);
    }
}

extern "C" fn restore_and_end(signal: libc::c_int) {
    restore();
    // SAFETY: raise(3) is async-signal-safe. SA_RESETHAND has restored the default action, which ends the process when
    // this handler returns.
    unsafe { libc::raise(signal) };
}

fn restore_on_fatal_signals() {
    // SAFETY: all zeros is a valid sigaction with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = restore_and_end as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESETHAND;
    for signal in FATAL {
        // SAFETY: the handler makes one ioctl(2) with settings that no one changes any more, and raise(3): both
        // async-signal-safe. A valid action for a valid signal can't fail.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// Rows and columns of the terminal that standard output, or else input, is; 24 by 80 where neither is one.
pub(super) fn size() -> (u16, u16) {
    tcgetwinsize(rustix::stdio::stdout())
        .or_else(|_| tcgetwinsize(rustix::stdio::stdin()))
        .ok()
        .filter(|size| size.ws_row != 0 && size.ws_col != 0)
        .map_or((24, 80), |size| (size.ws_row, size.ws_col))
}

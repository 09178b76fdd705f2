//! How a process ended or changed: what wait(2) and waitid(2) report.

use linux_raw_sys::general::{CLD_CONTINUED, CLD_DUMPED, CLD_EXITED, CLD_KILLED, CLD_STOPPED};

/// A status as wait(2) encodes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitStatus(pub u32);

impl WaitStatus {
    /// The process has continued (WIFCONTINUED).
    pub const CONTINUED: WaitStatus = WaitStatus(0xffff);

    /// It called exit with `code`, of which 8 bits count.
    #[must_use]
    pub const fn exited(code: u32) -> Self {
        Self((code & 0xff) << 8)
    }

    /// A signal ended it.
    #[must_use]
    pub const fn signaled(signo: u32, core_dumped: bool) -> Self {
        Self(signo & 0x7f | if core_dumped { 0x80 } else { 0 })
    }

    /// A signal stopped it.
    #[must_use]
    pub const fn stopped(signo: u32) -> Self {
        Self((signo & 0xff) << 8 | 0x7f)
    }

    /// It stopped for its tracer: a signal, and what ptrace(2) adds above it.
    #[must_use]
    pub const fn trapped(code: u32) -> Self {
        Self(code << 8 | 0x7f)
    }

    /// The signal that ended it.
    #[must_use]
    pub const fn signal(self) -> Option<u32> {
        match self.0 & 0x7f {
            0 | 0x7f => None,
            signal => Some(signal),
        }
    }

    /// `si_code` and `si_status` of siginfo_t.
    #[must_use]
    pub const fn code_and_status(self) -> (i32, i32) {
        let (code, status) = match self.0 {
            0xffff => (CLD_CONTINUED, linux_raw_sys::general::SIGCONT),
            w if w & 0xff == 0x7f => (CLD_STOPPED, w >> 8),
            w if w & 0x7f == 0 => (CLD_EXITED, w >> 8 & 0xff),
            w if w & 0x80 != 0 => (CLD_DUMPED, w & 0x7f),
            w => (CLD_KILLED, w & 0x7f),
        };
        (code as i32, status as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_as_wait_2() {
        assert_eq!(WaitStatus::exited(0x1ff).0, 0xff00);
        assert_eq!(WaitStatus::exited(3).code_and_status(), (1, 3));
        assert_eq!(WaitStatus::signaled(9, false).code_and_status(), (2, 9));
        assert_eq!(WaitStatus::signaled(11, true).code_and_status(), (3, 11));
        assert_eq!(WaitStatus::stopped(19).0, 0x137f);
        assert_eq!(WaitStatus::stopped(19).code_and_status(), (5, 19));
        assert_eq!(WaitStatus::CONTINUED.code_and_status(), (6, 18));
    }
}

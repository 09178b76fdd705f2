//! What comes with a signal: `siginfo_t` (sigaction(2)).

use super::number::Signal;
use linux_raw_sys::general as linux;

/// si_code of a signal sent by kill(2).
pub const SI_USER: i32 = linux::SI_USER as i32;
/// si_code of a signal sent by the kernel.
pub const SI_KERNEL: i32 = linux::SI_KERNEL as i32;
/// si_code of sigqueue(3).
pub const SI_QUEUE: i32 = linux::SI_QUEUE;
/// si_code of a POSIX timer's expiration.
pub const SI_TIMER: i32 = linux::SI_TIMER;
/// si_code of tkill(2) and tgkill(2).
pub const SI_TKILL: i32 = linux::SI_TKILL;

macro_rules! codes {
    ($($name:ident,)*) => { $(
        #[doc = concat!("sigaction(2): ", stringify!($name))]
        pub const $name: i32 = linux::$name as i32;
    )* };
}
codes! {
    SEGV_MAPERR, SEGV_ACCERR, BUS_ADRALN, BUS_ADRERR, ILL_ILLOPN, ILL_ILLOPC,
    FPE_INTDIV, FPE_FLTDIV, FPE_FLTOVF, FPE_FLTUND, FPE_FLTRES, FPE_FLTINV,
    TRAP_BRKPT, TRAP_TRACE, CLD_EXITED, CLD_KILLED, CLD_DUMPED, CLD_TRAPPED, CLD_STOPPED, CLD_CONTINUED,
    POLL_IN, POLL_OUT, POLL_MSG, POLL_ERR, POLL_PRI, POLL_HUP,
}

/// Bytes of `siginfo_t`.
pub const SIGINFO_BYTES: usize = 128;
/// Bytes of it that carry anything; the rest is zero.
pub const USED_BYTES: usize = 48;

/// A signal with its `siginfo_t`: the part that carries something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalInfo {
    /// Which.
    pub signal: Signal,
    /// si_errno.
    pub errno: i32,
    /// si_code.
    pub code: i32,
    /// The union `_sifields`.
    fields: [u8; 32],
}

impl SignalInfo {
    const fn new(signal: Signal, code: i32) -> Self {
        Self { signal, errno: 0, code, fields: [0; 32] }
    }

    fn put<const N: usize>(mut self, offset: usize, bytes: [u8; N]) -> Self {
        self.fields[offset..offset + N].copy_from_slice(&bytes);
        self
    }

    fn word(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.fields[offset..offset + 4]);
        u32::from_le_bytes(bytes)
    }

    fn quad(&self, offset: usize) -> u64 {
        u64::from(self.word(offset)) | u64::from(self.word(offset + 4)) << 32
    }

    /// From the kernel, with nothing to tell.
    #[must_use]
    pub const fn kernel(signal: Signal) -> Self {
        Self::new(signal, SI_KERNEL)
    }

    /// What is left where the queue had no room: kill(2) by nobody.
    #[must_use]
    pub const fn lost(signal: Signal) -> Self {
        Self::new(signal, SI_USER)
    }

    /// From a process: `code` is SI_USER or SI_TKILL.
    #[must_use]
    pub fn process(signal: Signal, code: i32, pid: u32, uid: u32) -> Self {
        Self::new(signal, code).put(0, pid.to_le_bytes()).put(4, uid.to_le_bytes())
    }

    /// A fault at an address.
    #[must_use]
    pub fn fault(signal: Signal, code: i32, address: u64) -> Self {
        Self::new(signal, code).put(0, address.to_le_bytes())
    }

    /// A POSIX timer expired; the overrun count is filled in at delivery.
    #[must_use]
    pub fn timer(signal: Signal, id: i32, value: u64) -> Self {
        Self::new(signal, SI_TIMER).put(0, id.to_le_bytes()).put(8, value.to_le_bytes())
    }

    /// The same with another number.
    #[must_use]
    pub const fn with_signal(self, signal: Signal) -> Self {
        Self { signal, ..self }
    }

    /// Sets si_overrun.
    #[must_use]
    pub fn with_overrun(self, overrun: i32) -> Self {
        self.put(4, overrun.to_le_bytes())
    }

    /// SIGCHLD. `status` is an exit status or a signal's number as `code` says; times in clock ticks.
    #[must_use]
    pub fn child(code: i32, pid: u32, uid: u32, status: i32, user_ticks: u64, system_ticks: u64) -> Self {
        Self::new(super::number::SIGCHLD, code)
            .put(0, pid.to_le_bytes())
            .put(4, uid.to_le_bytes())
            .put(8, status.to_le_bytes())
            .put(16, user_ticks.to_le_bytes())
            .put(24, system_ticks.to_le_bytes())
    }

    /// I/O on a descriptor (F_SETSIG): `band` is poll(2)'s bits.
    #[must_use]
    pub fn poll(signal: Signal, code: i32, band: i64, fd: i32) -> Self {
        Self::new(signal, code).put(0, band.to_le_bytes()).put(8, fd.to_le_bytes())
    }

    /// As a program gave it (rt_sigqueueinfo(2)), `signal` replacing si_signo.
    #[must_use]
    pub fn from_user(signal: Signal, bytes: &[u8; USED_BYTES]) -> Self {
        let word = |at: usize| i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut fields = [0; 32];
        fields.copy_from_slice(&bytes[16..]);
        Self { signal, errno: word(4), code: word(8), fields }
    }

    /// The first bytes of `siginfo_t`; all others are zero.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; USED_BYTES] {
        let mut bytes = [0; USED_BYTES];
        bytes[..4].copy_from_slice(&self.signal.number().to_le_bytes());
        bytes[4..8].copy_from_slice(&self.errno.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.code.to_le_bytes());
        bytes[16..].copy_from_slice(&self.fields);
        bytes
    }

    /// si_pid, where the code says that there is one.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.word(0)
    }

    /// si_uid.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.word(4)
    }

    /// si_addr.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.quad(0)
    }

    /// si_status of SIGCHLD.
    #[must_use]
    pub fn status(&self) -> i32 {
        self.word(8).cast_signed()
    }

    /// si_utime and si_stime of SIGCHLD, in clock ticks.
    #[must_use]
    pub fn child_ticks(&self) -> (u64, u64) {
        (self.quad(16), self.quad(24))
    }

    /// si_timerid.
    #[must_use]
    pub fn timer_id(&self) -> i32 {
        self.word(0).cast_signed()
    }

    /// si_overrun.
    #[must_use]
    pub fn overrun(&self) -> i32 {
        self.word(4).cast_signed()
    }

    /// si_value.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.quad(8)
    }

    /// si_band and si_fd.
    #[must_use]
    pub fn band_and_fd(&self) -> (i64, i32) {
        (self.quad(0).cast_signed(), self.word(8).cast_signed())
    }

    /// Whether a process sent it, rather than the kernel.
    #[must_use]
    pub const fn from_process(&self) -> bool {
        self.code <= 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::number::{SIGCHLD, SIGSEGV, SIGUSR1};
    use super::*;

    fn words(info: &SignalInfo) -> [u32; 12] {
        let bytes = info.to_bytes();
        core::array::from_fn(|n| {
            u32::from_le_bytes([bytes[4 * n], bytes[4 * n + 1], bytes[4 * n + 2], bytes[4 * n + 3]])
        })
    }

    #[test]
    fn layouts_are_those_of_the_c_header() {
        assert_eq!(words(&SignalInfo::process(SIGUSR1, SI_TKILL, 7, 1000))[..6], [10, 0, 0xffff_fffa, 0, 7, 1000]);
        assert_eq!(
            words(&SignalInfo::fault(SIGSEGV, SEGV_ACCERR, 0x12_3456_789a))[..6],
            [11, 0, 2, 0, 0x3456_789a, 0x12]
        );
        let child = words(&SignalInfo::child(CLD_KILLED, 3, 4, 9, 5, 6));
        assert_eq!(child, [17, 0, 2, 0, 3, 4, 9, 0, 5, 0, 6, 0]);
        assert_eq!(SignalInfo::child(CLD_KILLED, 3, 4, 9, 5, 6).signal, SIGCHLD);
        let timer = words(&SignalInfo::timer(SIGUSR1, 2, 0x1_0000_0003).with_overrun(4));
        assert_eq!(timer[..8], [10, 0, 0xffff_fffe, 0, 2, 4, 3, 1]);
    }

    #[test]
    fn a_program_s_siginfo_keeps_all_but_the_number() {
        let info = SignalInfo::timer(SIGUSR1, 2, 3);
        let mut bytes = info.to_bytes();
        bytes[0] = 99;
        assert_eq!(SignalInfo::from_user(SIGUSR1, &bytes), info);
    }
}

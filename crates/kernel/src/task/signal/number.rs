//! Signal numbers and sets of them (signal(7)).

use core::ops::{BitAnd, BitOr, Not};

/// How many signals there are: 1 to 64.
pub const SIGNALS: usize = 64;
/// The first real-time signal as the kernel counts (the C library keeps some for itself).
pub const SIGRTMIN: u8 = 32;

/// A signal: 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(u8);

macro_rules! signals {
    ($($name:ident = $raw:ident;)*) => {
        $(#[doc = concat!("signal(7): ", stringify!($name))] pub const $name: Signal = Signal(linux_raw_sys::general::$raw as u8);)*

        impl Signal {
            /// Its name, such as `"SIGTERM"`; `None` for a real-time signal.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self { $($name => Some(stringify!($name)),)* _ => None }
            }
        }
    };
}

signals! {
    SIGHUP = SIGHUP;
    SIGINT = SIGINT;
    SIGQUIT = SIGQUIT;
    SIGILL = SIGILL;
    SIGTRAP = SIGTRAP;
    SIGABRT = SIGABRT;
    SIGBUS = SIGBUS;
    SIGFPE = SIGFPE;
    SIGKILL = SIGKILL;
    SIGUSR1 = SIGUSR1;
    SIGSEGV = SIGSEGV;
    SIGUSR2 = SIGUSR2;
    SIGPIPE = SIGPIPE;
    SIGALRM = SIGALRM;
    SIGTERM = SIGTERM;
    SIGSTKFLT = SIGSTKFLT;
    SIGCHLD = SIGCHLD;
    SIGCONT = SIGCONT;
    SIGSTOP = SIGSTOP;
    SIGTSTP = SIGTSTP;
    SIGTTIN = SIGTTIN;
    SIGTTOU = SIGTTOU;
    SIGURG = SIGURG;
    SIGXCPU = SIGXCPU;
    SIGXFSZ = SIGXFSZ;
    SIGVTALRM = SIGVTALRM;
    SIGPROF = SIGPROF;
    SIGWINCH = SIGWINCH;
    SIGIO = SIGIO;
    SIGPWR = SIGPWR;
    SIGSYS = SIGSYS;
}

/// What happens where there is no handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultAction {
    /// The process ends.
    Terminate,
    /// The process ends; its wait status says that core was dumped (no file is written).
    Core,
    /// Nothing.
    Ignore,
    /// The process stops.
    Stop,
    /// A stopped process goes on.
    Continue,
}

impl Signal {
    /// The signal with this number, if there is one.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if 1 <= number && number <= SIGNALS as u32 { Some(Self(number as u8)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0 as u32
    }

    /// 0 to 63, for tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize - 1
    }

    /// Real-time signals are queued, the others only once.
    #[must_use]
    pub const fn is_realtime(self) -> bool {
        self.0 >= SIGRTMIN
    }

    /// Can be neither caught, blocked nor ignored.
    #[must_use]
    pub fn is_kernel_only(self) -> bool {
        self == SIGKILL || self == SIGSTOP
    }

    /// SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU.
    #[must_use]
    pub fn is_stop(self) -> bool {
        SignalSet::STOP.has(self)
    }

    /// See signal(7), "Standard signals".
    #[must_use]
    pub fn default_action(self) -> DefaultAction {
        match self {
            SIGCONT => DefaultAction::Continue,
            SIGCHLD | SIGURG | SIGWINCH => DefaultAction::Ignore,
            _ if self.is_stop() => DefaultAction::Stop,
            SIGQUIT | SIGILL | SIGTRAP | SIGABRT | SIGBUS | SIGFPE | SIGSEGV | SIGXCPU | SIGXFSZ | SIGSYS => {
                DefaultAction::Core
            }
            _ => DefaultAction::Terminate,
        }
    }
}

/// A set of signals: bit n - 1 is signal n, as in `sigset_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalSet(pub u64);

impl SignalSet {
    /// No signal.
    pub const EMPTY: SignalSet = SignalSet(0);
    /// Every signal.
    pub const ALL: SignalSet = SignalSet(u64::MAX);
    /// SIGKILL and SIGSTOP, which no mask holds.
    pub const UNBLOCKABLE: SignalSet = SignalSet::of(SIGKILL).with(SIGSTOP);
    /// What stops a process.
    pub const STOP: SignalSet = SignalSet::of(SIGSTOP).with(SIGTSTP).with(SIGTTIN).with(SIGTTOU);
    /// What an instruction of the thread itself causes; delivered before others.
    pub const SYNCHRONOUS: SignalSet =
        SignalSet::of(SIGSEGV).with(SIGBUS).with(SIGILL).with(SIGTRAP).with(SIGFPE).with(SIGSYS);

    /// One signal.
    #[must_use]
    pub const fn of(signal: Signal) -> Self {
        Self(1 << signal.index())
    }

    /// The set and one more.
    #[must_use]
    pub const fn with(self, signal: Signal) -> Self {
        Self(self.0 | 1 << signal.index())
    }

    /// The set without a signal.
    #[must_use]
    pub const fn without(self, signal: Signal) -> Self {
        Self(self.0 & !(1 << signal.index()))
    }

    /// Whether it holds the signal.
    #[must_use]
    pub const fn has(self, signal: Signal) -> bool {
        self.0 >> signal.index() & 1 == 1
    }

    /// Whether it holds none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The lowest of its signals.
    #[must_use]
    pub const fn first(self) -> Option<Signal> {
        if self.0 == 0 { None } else { Some(Signal(self.0.trailing_zeros() as u8 + 1)) }
    }

    /// A mask as it may be set: without SIGKILL and SIGSTOP.
    #[must_use]
    pub fn blockable(self) -> Self {
        self & !Self::UNBLOCKABLE
    }
}

impl BitAnd for SignalSet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for SignalSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Not for SignalSet {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sets() {
        assert_eq!(Signal::new(0), None);
        assert_eq!(Signal::new(65), None);
        assert_eq!(Signal::new(64).map(Signal::index), Some(63));
        assert_eq!(Signal::new(9), Some(SIGKILL));
        assert_eq!(SIGSEGV.name(), Some("SIGSEGV"));
        let set = SignalSet::of(SIGTERM).with(SIGHUP);
        assert_eq!(set.first(), Some(SIGHUP));
        assert_eq!(set.without(SIGHUP).first(), Some(SIGTERM));
        assert_eq!(SignalSet::ALL.blockable().0, !(1 << 8 | 1 << 18));
        assert_eq!(SignalSet::of(Signal::new(64).expect("in range")).0, 1 << 63);
    }
}

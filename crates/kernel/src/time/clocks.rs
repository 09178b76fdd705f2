//! The clocks that programs name by a `clockid_t` (clock_gettime(2)).

use super::Instant;
use crate::errno::{Errno, Result};
use crate::task::process::Process;
use crate::task::thread::Thread;
use crate::task::usage::Usage;
use crate::task::{current, pid, sched};
use alloc::rc::Rc;
use linux_raw_sys::general as linux;

/// Nanoseconds of a second.
pub const SECOND_NS: u64 = 1_000_000_000;
/// What the coarse clocks say of themselves: a tick of 250 Hz. They are as fine as the others.
const COARSE_NS: u64 = 4_000_000;

/// A clock that follows the wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "clock_gettime(2)")]
pub enum WallClock {
    Realtime,
    Monotonic,
    Boottime,
    /// No leap seconds are known: the same as [`WallClock::Realtime`].
    Tai,
}

impl WallClock {
    /// Its time in nanoseconds.
    #[must_use]
    pub fn now_ns(self) -> u64 {
        match self {
            Self::Realtime | Self::Tai => super::realtime_ns(),
            Self::Monotonic => super::now().0,
            Self::Boottime => super::boottime_ns(),
        }
    }

    /// The instant at which it shows `ns`, if nobody sets it meanwhile.
    #[must_use]
    pub fn instant_of(self, ns: u64) -> Instant {
        if self == Self::Monotonic { Instant(ns) } else { super::now().after_ns(ns.saturating_sub(self.now_ns())) }
    }

    /// Whether it can step against CLOCK_MONOTONIC.
    #[must_use]
    pub const fn steps(self) -> bool {
        !matches!(self, Self::Monotonic)
    }
}

/// What a processor-time clock counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Program and kernel.
    All,
    /// The program only.
    User,
}

/// A clock of processor time.
#[derive(Clone)]
pub enum CpuClock {
    /// Of a process with all its threads.
    Process(Rc<Process>, Count),
    /// Of one thread.
    Thread(Rc<Thread>, Count),
}

impl CpuClock {
    /// Its time in nanoseconds.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        sched::account();
        let (used, count) = match self {
            Self::Process(process, count) => (Usage::of_process(process), count),
            Self::Thread(thread, count) => (Usage::of_thread(thread), count),
        };
        match count {
            Count::All => used.user_ns + used.system_ns,
            Count::User => used.user_ns,
        }
    }

    /// Whether what it counts still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        match self {
            Self::Process(process, _) => process.is_alive(),
            Self::Thread(thread, _) => !thread.dying(),
        }
    }
}

/// What a `clockid_t` names.
#[derive(Clone)]
pub enum Clock {
    /// A clock that timers and sleeps can use.
    Wall(WallClock),
    /// The same time as a wall clock's, but for reading only: raw and coarse ones.
    ReadOnly(WallClock, u64),
    /// Processor time. The second field is its resolution.
    Cpu(CpuClock, u64),
}

impl Clock {
    /// The clock with this number.
    ///
    /// # Errors
    /// EINVAL if there is none.
    pub fn new(id: i32) -> Result<Self> {
        let me = current;
        Ok(match id {
            0.. => match id.cast_unsigned() {
                linux::CLOCK_REALTIME => Self::Wall(WallClock::Realtime),
                linux::CLOCK_MONOTONIC => Self::Wall(WallClock::Monotonic),
                linux::CLOCK_BOOTTIME => Self::Wall(WallClock::Boottime),
                linux::CLOCK_TAI => Self::Wall(WallClock::Tai),
                linux::CLOCK_MONOTONIC_RAW => Self::ReadOnly(WallClock::Monotonic, 1),
                linux::CLOCK_MONOTONIC_COARSE => Self::ReadOnly(WallClock::Monotonic, COARSE_NS),
                linux::CLOCK_REALTIME_COARSE => Self::ReadOnly(WallClock::Realtime, COARSE_NS),
                linux::CLOCK_PROCESS_CPUTIME_ID => {
                    Self::Cpu(CpuClock::Process(Rc::clone(&me().process), Count::All), 1)
                }
                linux::CLOCK_THREAD_CPUTIME_ID => Self::Cpu(CpuClock::Thread(me(), Count::All), 1),
                // The alarm clocks need a real-time clock device, which there is none of.
                _ => return Err(Errno::EINVAL),
            },
            _ => Self::dynamic(id)?,
        })
    }

    /// A clock of another process or thread: `~id << 3 | 4 for a thread | what it counts` (clock_getcpuclockid(3)).
    fn dynamic(id: i32) -> Result<Self> {
        let me = current();
        let (count, resolution) = match id & 3 {
            0 => (Count::All, COARSE_NS),
            1 => (Count::User, COARSE_NS),
            2 => (Count::All, 1),
            // A clock of a descriptor: no device here is a clock.
            _ => return Err(Errno::EINVAL),
        };
        let number = (!(id >> 3)).cast_unsigned();
        let clock = if id & 4 != 0 {
            let thread = if number == 0 { Rc::clone(&me) } else { pid::thread(number).ok_or(Errno::EINVAL)? };
            if !Rc::ptr_eq(&thread.process, &me.process) {
                return Err(Errno::EINVAL);
            }
            CpuClock::Thread(thread, count)
        } else if number == 0 || number == me.tid() {
            CpuClock::Process(Rc::clone(&me.process), count)
        } else {
            let process = pid::process(number).filter(|process| process.is_alive()).ok_or(Errno::EINVAL)?;
            CpuClock::Process(process, count)
        };
        Ok(Self::Cpu(clock, resolution))
    }

    /// Its time in nanoseconds.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        match self {
            Self::Wall(clock) | Self::ReadOnly(clock, _) => clock.now_ns(),
            Self::Cpu(clock, _) => clock.now_ns(),
        }
    }

    /// clock_getres(2), in nanoseconds.
    #[must_use]
    pub fn resolution_ns(&self) -> u64 {
        match self {
            Self::Wall(_) => 1,
            Self::ReadOnly(_, ns) | Self::Cpu(_, ns) => *ns,
        }
    }
}

/// Nanoseconds of a `struct timespec` (`unit` 1) or `struct timeval` (`unit` 1000); saturates like Linux's ktime_t, in 292
/// years.
///
/// # Errors
/// EINVAL if it is negative or its second field is a second or more.
pub fn to_ns([sec, fraction]: [i64; 2], unit: u64) -> Result<u64> {
    let sec = u64::try_from(sec).map_err(|_| Errno::EINVAL)?;
    let fraction = u64::try_from(fraction).ok().filter(|f| *f < SECOND_NS / unit).ok_or(Errno::EINVAL)?;
    Ok(sec.saturating_mul(SECOND_NS).saturating_add(fraction * unit).min(i64::MAX as u64))
}

/// The other way round.
#[must_use]
pub const fn from_ns(ns: u64, unit: u64) -> [i64; 2] {
    [(ns / SECOND_NS).cast_signed(), (ns % SECOND_NS / unit).cast_signed()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::testing;

    #[test]
    fn values_are_checked_and_bounded() {
        assert_eq!(to_ns([1, 5], 1), Ok(1_000_000_005));
        assert_eq!(to_ns([1, 5], 1000), Ok(1_000_005_000));
        assert_eq!(to_ns([0, 1_000_000], 1000), Err(Errno::EINVAL));
        assert_eq!(to_ns([0, 1_000_000_000], 1), Err(Errno::EINVAL));
        assert_eq!(to_ns([-1, 0], 1), Err(Errno::EINVAL));
        assert_eq!(to_ns([i64::MAX, 0], 1), Ok(i64::MAX as u64));
        assert_eq!(from_ns(1_000_005_999, 1000), [1, 5]);
    }

    #[test]
    fn clock_numbers() {
        let me = testing::enter();
        for id in [10, 12, 8, 9, i32::MAX, !(99 << 3) & !7 | 2, -1] {
            assert!(Clock::new(id).is_err(), "{id}");
        }
        let own = |id| Clock::new(id).is_ok_and(|clock| matches!(clock, Clock::Cpu(CpuClock::Process(..), _)));
        let tid = me.tid().cast_signed();
        assert!(own(2) && own((!tid << 3) | 2) && own(!0 << 3));
        let thread = Clock::new((!tid << 3) | 4 | 2);
        assert!(thread.is_ok_and(|clock| matches!(clock, Clock::Cpu(CpuClock::Thread(..), 1))));
        assert_eq!(Clock::new(5).map(|clock| clock.resolution_ns()), Ok(4_000_000));
    }
}

//! Waiting until a clock shows a time, whoever sets the clock meanwhile.

use super::Instant;
use super::clocks::{CpuClock, WallClock};
use crate::errno::Errno;
use crate::task::sched::{self, Sleep, WaitError};
use crate::wait::WaitQueue;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// When a wait ends at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    clock: WallClock,
    ns: u64,
}

impl Deadline {
    /// When `clock` shows `ns`.
    #[must_use]
    pub const fn at(clock: WallClock, ns: u64) -> Self {
        Self { clock, ns }
    }

    /// In `ns` from now.
    #[must_use]
    pub fn after(ns: u64) -> Self {
        Self { clock: WallClock::Monotonic, ns: super::now().after_ns(ns).0 }
    }

    /// Nanoseconds until it comes.
    #[must_use]
    pub fn remaining_ns(&self) -> u64 {
        self.ns.saturating_sub(self.clock.now_ns())
    }
}

/// As [`sched::wait_until`], with a deadline of any wall clock.
///
/// # Errors
/// As [`sched::wait_until`].
pub fn wait_until<T>(
    queues: &[&Rc<WaitQueue>],
    deadline: Option<Deadline>,
    kind: Sleep,
    mut cond: impl FnMut() -> Option<T>,
) -> Result<T, WaitError> {
    let Some(deadline) = deadline else { return sched::wait_until(queues, None, kind, cond) };
    if !deadline.clock.steps() {
        return sched::wait_until(queues, Some(Instant(deadline.ns)), kind, cond);
    }
    let steps = super::steps();
    let mut queues: Vec<&Rc<WaitQueue>> = queues.to_vec();
    queues.push(&steps);
    loop {
        let set = super::times_stepped();
        let instant = deadline.clock.instant_of(deadline.ns);
        // `None` inside: the clock was set, so the instant has to be computed anew.
        let outcome = sched::wait_until(&queues, Some(instant), kind, || match cond() {
            Some(value) => Some(Some(value)),
            None => (super::times_stepped() != set).then_some(None),
        });
        match outcome {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(WaitError::TimedOut) if deadline.remaining_ns() > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sleeps until `deadline`.
///
/// # Errors
/// EINTR when interrupted.
pub fn sleep_until(deadline: Deadline) -> Result<(), Errno> {
    match wait_until(&[], Some(deadline), Sleep::Interruptible, || None::<()>) {
        Ok(()) | Err(WaitError::TimedOut) => Ok(()),
        Err(WaitError::Interrupted) => Err(Errno::EINTR),
    }
}

/// Sleeps until a processor-time clock shows `ns`. It can't get there faster than the wall's time passes.
///
/// # Errors
/// EINTR when interrupted.
pub fn sleep_until_used(clock: &CpuClock, ns: u64) -> Result<(), Errno> {
    let mut wait = super::cpu::Pace::default();
    loop {
        let now = clock.now_ns();
        if now >= ns {
            return Ok(());
        }
        sleep_until(Deadline::after(wait.next_ns(now, ns)))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::testing;
    use crate::time;

    #[test]
    fn a_realtime_deadline_follows_the_clock_that_is_set() {
        let _me = testing::enter();
        time::set_now(Instant(1_000));
        time::set_realtime_ns(5_000_000);
        let deadline = Deadline::at(WallClock::Realtime, 6_000_000);
        assert_eq!(deadline.remaining_ns(), 1_000_000);
        let timer = time::timer::Timer::new();
        timer.arm(Instant(201_000), Rc::new(|| time::set_realtime_ns(5_900_000)));
        assert_eq!(sleep_until(deadline), Ok(()));
        assert_eq!(time::now(), Instant(301_000));
        assert_eq!(time::realtime_ns(), 6_000_000);
    }
}

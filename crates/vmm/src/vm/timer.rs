//! The guest's one timer: `wanted_deadline_ns` of the control page, kept by a timerfd.

use super::control::Control;
use super::memory::GuestMemory;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

/// No deadline.
const NEVER: u64 = u64::MAX;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Timer {
    descriptor: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    armed_ns: u64,
    /// The deadline that the guest was last told about; it is not armed again while the guest has named no other.
    fired_ns: Option<u64>,
}

impl Timer {
    /// A timer that is not armed.
    ///
    /// # Errors
    /// What timerfd_create(2) gives.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let descriptor = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { descriptor, state: Mutex::new(State { armed_ns: NEVER, fired_ns: None }) })
    }

    /// Disarms it: the guest is another one.
    ///
    /// # Errors
    /// What timerfd_settime(2) gives.
    pub(super) fn reset(&self, memory: &GuestMemory) -> io::Result<()> {
        let mut state = self.state.lock().expect("no holder panics");
        state.fired_ns = None;
        self.arm(&mut state, memory, NEVER)
    }

    /// Becomes readable at the deadline.
    #[must_use]
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Arms what the guest wants now.
    ///
    /// # Errors
    /// What timerfd_settime(2) gives.
    pub(super) fn update(&self, memory: &GuestMemory) -> io::Result<()> {
        let mut state = self.state.lock().expect("no holder panics");
        let wanted_ns = Control(memory).wanted_deadline_ns().load(Ordering::SeqCst);
        // 0 is memory that the guest has not written yet.
        if wanted_ns == 0 || wanted_ns == state.armed_ns || Some(wanted_ns) == state.fired_ns {
            return Ok(());
        }
        state.fired_ns = None;
        self.arm(&mut state, memory, wanted_ns)
    }

    /// The descriptor was readable: returns whether the guest's deadline has come. If it has moved on meanwhile, the
    /// timer is armed for the new one instead.
    ///
    /// # Errors
    /// What timerfd_settime(2) gives.
    pub(super) fn expired(&self, memory: &GuestMemory) -> io::Result<bool> {
        let mut state = self.state.lock().expect("no holder panics");
        let mut count = [0; 8];
        match rustix::io::read(&self.descriptor, &mut count) {
            Ok(_) => {}
            // Armed anew since poll(2) looked.
            Err(rustix::io::Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let wanted_ns = Control(memory).wanted_deadline_ns().load(Ordering::SeqCst);
        if wanted_ns > now_ns(rustix::time::ClockId::Monotonic) {
            self.arm(&mut state, memory, wanted_ns)?;
            return Ok(false);
        }
        state.armed_ns = NEVER;
        state.fired_ns = Some(wanted_ns);
        Control(memory).armed_deadline_ns().store(NEVER, Ordering::SeqCst);
        Ok(true)
    }

    fn arm(&self, state: &mut State, memory: &GuestMemory, deadline_ns: u64) -> io::Result<()> {
        // All zeros would disarm; a deadline that has passed fires at once.
        let at = if deadline_ns == NEVER { Timespec::default() } else { timespec(deadline_ns.max(1)) };
        let setting = Itimerspec { it_interval: Timespec::default(), it_value: at };
        rustix::time::timerfd_settime(&self.descriptor, TimerfdTimerFlags::ABSTIME, &setting)?;
        state.armed_ns = deadline_ns;
        Control(memory).armed_deadline_ns().store(deadline_ns, Ordering::SeqCst);
        Ok(())
    }
}

fn timespec(ns: u64) -> Timespec {
    let (seconds, rest) = (ns / 1_000_000_000, ns % 1_000_000_000);
    Timespec { tv_sec: i64::try_from(seconds).expect("u64 ns are under 2^63 s"), tv_nsec: rest.cast_signed() }
}

/// A host clock in nanoseconds.
#[must_use]
pub(super) fn now_ns(clock: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::time::ClockId;

    fn wait(timer: &Timer) -> bool {
        let mut fds = [PollFd::new(timer, PollFlags::IN)];
        poll(&mut fds, Some(&timespec(2_000_000_000))).expect("poll") == 1
    }

    impl AsFd for Timer {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.descriptor()
        }
    }

    #[test]
    fn a_deadline_fires_once() {
        let memory = GuestMemory::new(2 << 20).expect("memory");
        let control = Control(&memory);
        let timer = Timer::new().expect("timerfd");
        timer.update(&memory).expect("nothing wanted");
        let soon = now_ns(ClockId::Monotonic) + 1_000_000;
        control.wanted_deadline_ns().store(soon, Ordering::SeqCst);
        timer.update(&memory).expect("armed");
        assert_eq!(control.armed_deadline_ns().load(Ordering::SeqCst), soon);
        assert!(wait(&timer));
        assert!(timer.expired(&memory).expect("read"));
        assert_eq!(control.armed_deadline_ns().load(Ordering::SeqCst), NEVER);
        timer.update(&memory).expect("not again");
        assert!(!timer.expired(&memory).expect("read"));
        // A deadline in the past that is a new one fires at once.
        control.wanted_deadline_ns().store(1, Ordering::SeqCst);
        timer.update(&memory).expect("armed");
        assert!(wait(&timer));
        assert!(timer.expired(&memory).expect("read"));
    }

    #[test]
    fn a_deadline_that_moved_is_kept() {
        let memory = GuestMemory::new(2 << 20).expect("memory");
        let control = Control(&memory);
        let timer = Timer::new().expect("timerfd");
        control.wanted_deadline_ns().store(1, Ordering::SeqCst);
        timer.update(&memory).expect("armed");
        let later = now_ns(ClockId::Monotonic) + 3_600_000_000_000;
        control.wanted_deadline_ns().store(later, Ordering::SeqCst);
        assert!(wait(&timer));
        assert!(!timer.expired(&memory).expect("read"));
        assert_eq!(control.armed_deadline_ns().load(Ordering::SeqCst), later);
    }
}

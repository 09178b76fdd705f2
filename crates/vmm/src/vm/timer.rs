//! The guest's one timer: `wanted_deadline_ns` of the control page, kept by a timerfd.
//!
//! A deadline that has fired is forgotten. The guest's clock may be a little behind the host's, so that it finds nothing
//! due and asks for the same deadline once more: that one fires at once.

use super::control::Control;
use super::memory::GuestMemory;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

/// No deadline.
const NEVER: u64 = u64::MAX;

/// How often one call follows a guest that changes its mind meanwhile. One that goes on is up to no good.
const FOLLOW_LIMIT: u32 = 16;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Timer {
    descriptor: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    armed_ns: u64,
}

impl Timer {
    /// A timer that is not armed, and says so to the guest.
    ///
    /// # Errors
    /// What timerfd_create(2) gives.
    pub(super) fn new(memory: &GuestMemory) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let descriptor = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Control(memory).armed_deadline_ns().store(NEVER, Ordering::SeqCst);
        Ok(Self { descriptor, state: Mutex::new(State { armed_ns: NEVER }) })
    }

    /// Disarms it: the guest is another one.
    ///
    /// # Errors
    /// What timerfd_settime(2) gives.
    pub(super) fn reset(&self, memory: &GuestMemory) -> io::Result<()> {
        let mut state = self.state.lock().expect("no holder panics");
        let control = Control(memory);
        control.wanted_deadline_ns().store(NEVER, Ordering::SeqCst);
        control.armed_deadline_ns().store(NEVER, Ordering::SeqCst);
        self.follow(&mut state, memory)
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
        self.follow(&mut state, memory)
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
            self.follow(&mut state, memory)?;
            return Ok(false);
        }
        state.armed_ns = NEVER;
        Control(memory).armed_deadline_ns().store(NEVER, Ordering::SeqCst);
        Ok(true)
    }

    /// Arms what the guest wants. The guest rings no doorbell for a deadline that is later than the armed one, so after
    /// every change of the armed one the wanted one is looked at again.
    fn follow(&self, state: &mut State, memory: &GuestMemory) -> io::Result<()> {
        let control = Control(memory);
        for _ in 0..FOLLOW_LIMIT {
            let wanted_ns = control.wanted_deadline_ns().load(Ordering::SeqCst);
            // 0 is memory that the guest has not written yet.
            if wanted_ns == 0 || wanted_ns == state.armed_ns {
                return Ok(());
            }
            // All zeros would disarm; a deadline that has passed fires at once.
            let at = if wanted_ns == NEVER { Timespec::default() } else { timespec(wanted_ns) };
            let setting = Itimerspec { it_interval: Timespec::default(), it_value: at };
            rustix::time::timerfd_settime(&self.descriptor, TimerfdTimerFlags::ABSTIME, &setting)?;
            state.armed_ns = wanted_ns;
            control.armed_deadline_ns().store(wanted_ns, Ordering::SeqCst);
        }
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
        let timer = Timer::new(&memory).expect("timerfd");
        assert_eq!(control.armed_deadline_ns().load(Ordering::SeqCst), NEVER);
        timer.update(&memory).expect("nothing wanted");
        let soon = now_ns(ClockId::Monotonic) + 1_000_000;
        control.wanted_deadline_ns().store(soon, Ordering::SeqCst);
        timer.update(&memory).expect("armed");
        assert_eq!(control.armed_deadline_ns().load(Ordering::SeqCst), soon);
        assert!(wait(&timer));
        assert!(timer.expired(&memory).expect("read"));
        assert_eq!(control.armed_deadline_ns().load(Ordering::SeqCst), NEVER);
        assert!(!timer.expired(&memory).expect("read"));
    }

    #[test]
    fn a_deadline_that_the_guest_wants_again_fires_again() {
        let memory = GuestMemory::new(2 << 20).expect("memory");
        let control = Control(&memory);
        let timer = Timer::new(&memory).expect("timerfd");
        // By the guest's clock it had not come yet.
        for _ in 0..2 {
            control.wanted_deadline_ns().store(1, Ordering::SeqCst);
            timer.update(&memory).expect("armed");
            assert!(wait(&timer));
            assert!(timer.expired(&memory).expect("read"));
        }
    }

    #[test]
    fn a_deadline_that_moved_is_kept() {
        let memory = GuestMemory::new(2 << 20).expect("memory");
        let control = Control(&memory);
        let timer = Timer::new(&memory).expect("timerfd");
        control.wanted_deadline_ns().store(1, Ordering::SeqCst);
        timer.update(&memory).expect("armed");
        let later = now_ns(ClockId::Monotonic) + 3_600_000_000_000;
        control.wanted_deadline_ns().store(later, Ordering::SeqCst);
        assert!(wait(&timer));
        assert!(!timer.expired(&memory).expect("read"));
        assert_eq!(control.armed_deadline_ns().load(Ordering::SeqCst), later);
    }
}

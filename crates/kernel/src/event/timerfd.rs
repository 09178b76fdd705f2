//! Timers as descriptors (timerfd_create(2)).
//!
//! A periodic timer is not armed again before its expirations have been read: how many there were meanwhile follows from
//! the clock, so one that nobody reads keeps no virtual CPU awake.

use super::anon;
use crate::errno::{Errno, Result};
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::inode::Metadata;
use crate::mm::user::Dest;
use crate::task::sched::{Sleep, wait_until};
use crate::time;
use crate::time::timer::{Expire, Timer};
use crate::wait::{Events, WaitQueue};
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use alloc::vec::Vec;
use bitflags::bitflags;
use core::any::Any;
use core::cell::{Cell, RefCell};
use linux_raw_sys::general as linux;

/// Clocks that a timer can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names of clock_gettime(2)")]
pub enum Clock {
    Realtime = linux::CLOCK_REALTIME,
    Monotonic = linux::CLOCK_MONOTONIC,
    Boottime = linux::CLOCK_BOOTTIME,
    RealtimeAlarm = linux::CLOCK_REALTIME_ALARM,
    BoottimeAlarm = linux::CLOCK_BOOTTIME_ALARM,
}

impl Clock {
    /// A clock by number.
    ///
    /// # Errors
    /// EINVAL for one that timerfd_create(2) does not take.
    pub fn new(number: u32) -> Result<Self> {
        Ok(match number {
            linux::CLOCK_REALTIME => Self::Realtime,
            linux::CLOCK_MONOTONIC => Self::Monotonic,
            linux::CLOCK_BOOTTIME => Self::Boottime,
            linux::CLOCK_REALTIME_ALARM => Self::RealtimeAlarm,
            linux::CLOCK_BOOTTIME_ALARM => Self::BoottimeAlarm,
            _ => return Err(Errno::EINVAL),
        })
    }

    /// Whether it needs CAP_WAKE_ALARM.
    #[must_use]
    pub const fn is_alarm(self) -> bool {
        matches!(self, Self::RealtimeAlarm | Self::BoottimeAlarm)
    }

    const fn is_realtime(self) -> bool {
        matches!(self, Self::Realtime | Self::RealtimeAlarm)
    }

    fn now_ns(self) -> u64 {
        match self {
            Self::Realtime | Self::RealtimeAlarm => time::realtime_ns(),
            Self::Monotonic => time::now().0,
            Self::Boottime | Self::BoottimeAlarm => time::boottime_ns(),
        }
    }
}

bitflags! {
    /// Flags of timerfd_settime(2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SetFlags: u32 {
        /// The value is a point of the clock rather than a distance.
        const ABSTIME = linux::TFD_TIMER_ABSTIME;
        /// ECANCELED when somebody sets the clock.
        const CANCEL_ON_SET = linux::TFD_TIMER_CANCEL_ON_SET;
    }
}

/// `struct itimerspec` in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// Distance between expirations; 0 is one expiration only.
    pub interval_ns: u64,
    /// The next expiration; 0 is a disarmed timer.
    pub value_ns: u64,
}

/// A timer.
pub struct TimerFd {
    me: Weak<TimerFd>,
    clock: Clock,
    /// The clock that `expiry_ns` is on: relative times on CLOCK_REALTIME do not follow its changes.
    base: Cell<Clock>,
    /// The next expiration; 0 is disarmed.
    expiry_ns: Cell<u64>,
    interval_ns: Cell<u64>,
    /// It has expired and has not been armed again.
    expired: Cell<bool>,
    ticks: Cell<u64>,
    flags: Cell<SetFlags>,
    /// The clock was set since the timer was.
    cancelled: Cell<bool>,
    timer: Timer,
    queue: Rc<WaitQueue>,
}

crate::global! {
    /// Timers that are armed on a clock that can step.
    static STEPPING: RefCell<Vec<Weak<TimerFd>>> = RefCell::new(Vec::new());
}

/// Opens a disarmed timer; `flags` may have O_NONBLOCK.
#[must_use]
pub fn timerfd(clock: Clock, flags: OpenFlags) -> Rc<OpenFile> {
    let ops = Rc::new_cyclic(|me| TimerFd {
        me: Weak::clone(me),
        clock,
        base: Cell::new(clock),
        expiry_ns: Cell::new(0),
        interval_ns: Cell::new(0),
        expired: Cell::new(false),
        ticks: Cell::new(0),
        flags: Cell::new(SetFlags::empty()),
        cancelled: Cell::new(false),
        timer: Timer::new(),
        queue: WaitQueue::new(),
    });
    OpenFile::anonymous(ops, flags | OpenFlags::RDWR)
}

/// To be called when CLOCK_REALTIME or CLOCK_BOOTTIME has stepped against CLOCK_MONOTONIC: after a restore, or (`set`)
/// because a program has set the clock.
pub fn clock_stepped(set: bool) {
    let timers: Vec<_> = STEPPING.with(|timers| timers.borrow().iter().filter_map(Weak::upgrade).collect());
    for timer in timers {
        timer.clock_stepped(set);
    }
}

/// What the timer queue calls.
struct Expiration(Weak<TimerFd>);

impl Expire for Expiration {
    fn expire(&self) {
        if let Some(timer) = self.0.upgrade() {
            timer.expire();
        }
    }
}

impl TimerFd {
    /// The timer behind an open file.
    ///
    /// # Errors
    /// EINVAL if it is none.
    pub fn of(file: &OpenFile) -> Result<&Self> {
        file.ops.as_any().downcast_ref().ok_or(Errno::EINVAL)
    }

    /// The clock that it was made for.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// timerfd_settime(2): gives back what timerfd_gettime(2) would have told before.
    pub fn set(&self, setting: Setting, flags: SetFlags) -> Setting {
        let old = self.get();
        let absolute = flags.contains(SetFlags::ABSTIME);
        self.timer.cancel();
        self.base.set(if self.clock == Clock::Realtime && !absolute { Clock::Monotonic } else { self.clock });
        self.interval_ns.set(setting.interval_ns);
        self.expired.set(false);
        self.ticks.set(0);
        self.flags.set(flags);
        self.cancelled.set(false);
        let start = if absolute { 0 } else { self.base.get().now_ns() };
        let expiry = if setting.value_ns == 0 { 0 } else { start.saturating_add(setting.value_ns) };
        self.expiry_ns.set(expiry);
        self.follow_steps(expiry != 0 && self.base.get() != Clock::Monotonic);
        self.arm();
        old
    }

    /// timerfd_gettime(2): the time until the next expiration, and the interval.
    #[must_use]
    pub fn get(&self) -> Setting {
        self.forward();
        let expiry = self.expiry_ns.get();
        let value_ns = if expiry == 0 || self.expired.get() {
            0
        } else {
            // Never zero for an armed timer: that would say that it is disarmed.
            expiry.saturating_sub(self.base.get().now_ns()).max(1)
        };
        Setting { interval_ns: self.interval_ns.get(), value_ns }
    }

    fn follow_steps(&self, on: bool) {
        STEPPING.with(|timers| {
            let mut timers = timers.borrow_mut();
            timers.retain(|timer| timer.strong_count() > 0 && !timer.ptr_eq(&self.me));
            if on {
                timers.push(Weak::clone(&self.me));
            }
        });
    }

    fn arm(&self) {
        let expiry = self.expiry_ns.get();
        if expiry == 0 {
            return;
        }
        let distance = expiry.saturating_sub(self.base.get().now_ns());
        if distance == 0 {
            self.expire();
        } else {
            self.timer.arm(time::now().after_ns(distance), Rc::new(Expiration(Weak::clone(&self.me))));
        }
    }

    fn expire(&self) {
        if self.expired.get() {
            return;
        }
        if self.base.get().now_ns() < self.expiry_ns.get() {
            // The clock was set back meanwhile.
            self.arm();
            return;
        }
        self.expired.set(true);
        self.ticks.set(self.ticks.get() + 1);
        self.queue.wake(Events::IN);
    }

    /// Counts the expirations that a periodic timer has had since the one that was noticed, and arms it for the next.
    fn forward(&self) {
        let interval = self.interval_ns.get();
        if !self.expired.get() || interval == 0 {
            return;
        }
        let late = self.base.get().now_ns().saturating_sub(self.expiry_ns.get());
        let missed = late / interval;
        self.ticks.set(self.ticks.get().saturating_add(missed));
        self.expired.set(false);
        self.expiry_ns.set(self.expiry_ns.get().saturating_add(missed.saturating_add(1).saturating_mul(interval)));
        self.arm();
    }

    fn clock_stepped(&self, set: bool) {
        let cancel = SetFlags::ABSTIME | SetFlags::CANCEL_ON_SET;
        if set && self.clock.is_realtime() && self.flags.get().contains(cancel) {
            self.cancelled.set(true);
            self.queue.wake(Events::IN);
        }
        if !self.expired.get() {
            self.timer.cancel();
            self.arm();
        }
    }

    /// What read(2) gives, if there is anything.
    fn take(&self) -> Option<Result<u64>> {
        if self.cancelled.replace(false) {
            self.ticks.set(0);
            self.expired.set(false);
            return Some(Err(Errno::ECANCELED));
        }
        if self.ticks.get() == 0 {
            return None;
        }
        self.forward();
        // A one-shot timer is over.
        if self.expired.replace(false) {
            self.expiry_ns.set(0);
        }
        Some(Ok(self.ticks.replace(0)))
    }
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        self.follow_steps(false);
    }
}

impl FileOps for TimerFd {
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
        if dst.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let ticks = match self.take() {
            Some(ticks) => ticks?,
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => wait_until(&[&self.queue], None, Sleep::Interruptible, || self.take())??,
        };
        if dst.put(&ticks.to_ne_bytes()) != Ok(8) {
            return Err(Errno::EFAULT);
        }
        Ok(8)
    }

    fn poll(&self, _file: &OpenFile) -> Events {
        if self.ticks.get() > 0 || self.cancelled.get() { Events::IN } else { Events::empty() }
    }

    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        Some(Rc::clone(&self.queue))
    }

    fn metadata(&self) -> Metadata {
        anon::metadata()
    }

    fn describe(&self) -> String {
        String::from("anon_inode:[timerfd]")
    }

    fn fdinfo(&self) -> String {
        let seconds = |ns: u64| (ns / 1_000_000_000, ns % 1_000_000_000);
        let ticks = self.ticks.get();
        let setting = self.get();
        alloc::format!(
            "clockid: {}\nticks: {}\nsettime flags: 0{:o}\nit_value: {:?}\nit_interval: {:?}\n",
            self.clock as u32,
            ticks,
            self.flags.get().bits(),
            seconds(setting.value_ns),
            seconds(setting.interval_ns)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Instant;

    const SECOND: u64 = 1_000_000_000;

    fn read(file: &OpenFile) -> Result<u64> {
        let mut bytes = [0; 8];
        file.read(&mut Dest::kernel(&mut bytes)).map(|_| u64::from_ne_bytes(bytes))
    }

    fn at(ns: u64) {
        time::set_now(Instant(ns));
        time::timer::run_expired(time::now());
    }

    #[test]
    fn periodic() {
        at(SECOND);
        let _thread = crate::task::testing::enter();
        let file = timerfd(Clock::Monotonic, OpenFlags::NONBLOCK);
        let timer = TimerFd::of(&file).expect("a timer");
        assert_eq!(timer.get(), Setting::default());
        assert_eq!(read(&file), Err(Errno::EAGAIN));
        timer.set(Setting { interval_ns: 10, value_ns: 100 }, SetFlags::empty());
        at(SECOND + 40);
        assert_eq!(timer.get(), Setting { interval_ns: 10, value_ns: 60 });
        assert_eq!(file.poll(), Events::empty());
        at(SECOND + 135);
        assert_eq!(file.poll(), Events::IN);
        assert_eq!(timer.timer.deadline(), None, "nobody has read it");
        assert_eq!(read(&file), Ok(4));
        assert_eq!(read(&file), Err(Errno::EAGAIN));
        assert_eq!(timer.timer.deadline(), Some(Instant(SECOND + 140)));
        at(SECOND + 140);
        let old = timer.set(Setting::default(), SetFlags::empty());
        assert_eq!(old, Setting { interval_ns: 10, value_ns: 10 });
        at(SECOND + 1000);
        assert_eq!(read(&file), Err(Errno::EAGAIN));
    }

    #[test]
    fn one_shot_and_blocking() {
        at(SECOND);
        let _thread = crate::task::testing::enter();
        let file = timerfd(Clock::Boottime, OpenFlags::empty());
        let timer = TimerFd::of(&file).expect("a timer");
        timer.set(Setting { interval_ns: 0, value_ns: 500 }, SetFlags::empty());
        // The clock of hosted tests jumps to the deadline.
        assert_eq!(read(&file), Ok(1));
        assert!(time::now() >= Instant(SECOND + 500));
        assert_eq!(timer.get(), Setting::default());
        timer.set(Setting { interval_ns: 0, value_ns: 1 }, SetFlags::ABSTIME);
        assert_eq!(read(&file), Ok(1), "in the past");
    }

    #[test]
    fn setting_the_clock_cancels() {
        at(SECOND);
        let _thread = crate::task::testing::enter();
        let file = timerfd(Clock::Realtime, OpenFlags::NONBLOCK);
        let timer = TimerFd::of(&file).expect("a timer");
        let far = Setting { interval_ns: 0, value_ns: u64::MAX };
        timer.set(far, SetFlags::ABSTIME | SetFlags::CANCEL_ON_SET);
        clock_stepped(false);
        assert_eq!(read(&file), Err(Errno::EAGAIN));
        clock_stepped(true);
        assert_eq!(file.poll(), Events::IN);
        assert_eq!(read(&file), Err(Errno::ECANCELED));
        assert_eq!(read(&file), Err(Errno::EAGAIN));
        drop(file);
        assert_eq!(STEPPING.with(|timers| timers.borrow().len()), 0);
    }
}

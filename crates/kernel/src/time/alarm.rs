//! Interval timers (setitimer(2)) and POSIX timers (timer_create(2)): timers whose expiration is a signal.
//!
//! As on Linux a periodic timer is not armed again before its signal has been taken: so a signal that stays blocked keeps
//! nobody awake, and how many expirations it stands for follows from the clock.

use super::clocks::{Clock, CpuClock, WallClock};
use super::cpu::Pace;
use super::timer::{Expire, Timer};
use crate::errno::{Errno, Result};
use crate::task::process::Process;
use crate::task::signal::queue::{Charge, Source};
use crate::task::signal::{self, SIGALRM, SIGPROF, SIGVTALRM, Signal, SignalInfo, Target};
use crate::task::thread::Thread;
use alloc::collections::BTreeMap;
use alloc::rc::{Rc, Weak};
use core::cell::{Cell, RefCell};

/// While the signal of a periodic timer is ignored, looks whether that has changed are this far apart.
const IGNORED_NS: u64 = 100_000_000;

/// What a timer does when it expires.
enum Notify {
    /// SIGEV_NONE.
    Nothing,
    /// To the process.
    Process(Weak<Process>, SignalInfo),
    /// SIGEV_THREAD_ID.
    Thread(Weak<Thread>, SignalInfo),
}

/// First expiration and interval, in nanoseconds; a first one of 0 is a disarmed timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// Until the first, or on the clock where the call says so.
    pub value_ns: u64,
    /// Between expirations; 0 for one only.
    pub interval_ns: u64,
}

/// A timer that sends a signal.
pub struct Alarm {
    me: Weak<Alarm>,
    clock: Clock,
    /// The clock that `expiry_ns` is of: what is relative to CLOCK_REALTIME does not follow its changes.
    base: RefCell<Clock>,
    notify: Notify,
    expiry_ns: Cell<u64>,
    interval_ns: Cell<u64>,
    timer: Timer,
    pace: RefCell<Pace>,
    /// Its signal is in a queue.
    queued: Cell<bool>,
    /// Expirations that the last signal taken stood for, less one (timer_getoverrun(2)).
    overrun: Cell<i32>,
    deleted: Cell<bool>,
    _charge: Option<Charge>,
}

struct Expiration(Weak<Alarm>);

impl Expire for Expiration {
    fn expire(&self) {
        if let Some(alarm) = self.0.upgrade() {
            alarm.expire();
        }
    }
}

impl Alarm {
    fn new(clock: Clock, notify: Notify, charge: Option<Charge>) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            base: RefCell::new(clock.clone()),
            clock,
            notify,
            expiry_ns: Cell::new(0),
            interval_ns: Cell::new(0),
            timer: Timer::new(),
            pace: RefCell::default(),
            queued: Cell::new(false),
            overrun: Cell::new(0),
            deleted: Cell::new(false),
            _charge: charge,
        })
    }

    fn now_ns(&self) -> u64 {
        let clock = self.base.borrow().clone();
        clock.now_ns()
    }

    /// Time until the next expiration, and the interval.
    #[must_use]
    pub fn get(&self) -> Setting {
        let (expiry, interval) = (self.expiry_ns.get(), self.interval_ns.get());
        if expiry == 0 {
            return Setting { value_ns: 0, interval_ns: interval };
        }
        let now = self.now_ns();
        let mut left = expiry.saturating_sub(now);
        if left == 0 {
            // It has expired and waits for its signal to be taken.
            let waits = interval != 0 && (self.queued.get() || matches!(self.notify, Notify::Nothing));
            left =
                if waits { interval - (now - expiry) % interval } else { u64::from(self.timer.deadline().is_some()) };
        }
        Setting { value_ns: left, interval_ns: interval }
    }

    /// Sets it; gives back what [`Alarm::get`] told before. A signal that is still in a queue is withdrawn.
    pub fn set(&self, setting: Setting, absolute: bool) -> Setting {
        let old = self.get();
        self.timer.cancel();
        self.withdraw();
        self.overrun.set(0);
        self.pace.replace(Pace::default());
        let base = match &self.clock {
            Clock::Wall(WallClock::Realtime | WallClock::Tai) if !absolute => Clock::Wall(WallClock::Monotonic),
            clock => clock.clone(),
        };
        let before = self.base.replace(base);
        drop(before);
        self.interval_ns.set(setting.interval_ns);
        let start = if absolute { 0 } else { self.now_ns() };
        let expiry = if setting.value_ns == 0 { 0 } else { start.saturating_add(setting.value_ns).max(1) };
        self.expiry_ns.set(expiry);
        self.arm();
        old
    }

    fn arm(&self) {
        let expiry = self.expiry_ns.get();
        if expiry == 0 {
            return;
        }
        let base = self.base.borrow().clone();
        let at = match &base {
            Clock::Wall(clock) | Clock::ReadOnly(clock, _) => clock.instant_of(expiry),
            Clock::Cpu(clock, _) => {
                let now = clock.now_ns();
                let pause = if now >= expiry { 0 } else { self.pace.borrow_mut().next_ns(now, expiry) };
                super::now().after_ns(pause)
            }
        };
        self.timer.arm(at, Rc::new(Expiration(Weak::clone(&self.me))));
    }

    /// The clock that it follows was set.
    fn clock_stepped(&self) {
        if self.timer.cancel() {
            self.arm();
        }
    }

    fn expire(&self) {
        if self.deleted.get() || self.queued.get() {
            return;
        }
        if let Clock::Cpu(clock, _) = &self.clock
            && !clock.is_alive()
        {
            return;
        }
        if self.now_ns() < self.expiry_ns.get() {
            self.arm();
            return;
        }
        let Some(me) = self.me.upgrade() else { return };
        let source: Rc<dyn Source> = me;
        let sent = match &self.notify {
            Notify::Nothing => return,
            Notify::Process(process, info) => {
                let Some(process) = process.upgrade() else { return };
                self.send(&Target::Process(process), *info, &source)
            }
            Notify::Thread(thread, info) => {
                let Some(thread) = thread.upgrade() else { return };
                self.send(&Target::Thread(thread), *info, &source)
            }
        };
        if !sent && self.interval_ns.get() != 0 {
            let later = super::now().after_ns(self.interval_ns.get().max(IGNORED_NS));
            self.timer.arm(later, Rc::new(Expiration(Weak::clone(&self.me))));
        } else if !sent {
            self.expiry_ns.set(0);
        }
    }

    fn send(&self, target: &Target, info: SignalInfo, source: &Rc<dyn Source>) -> bool {
        // Set before: sending may take the signal at once.
        self.queued.set(true);
        let sent = signal::send_from(target, info, source);
        if !sent {
            self.queued.set(false);
        }
        sent
    }

    fn withdraw(&self) {
        if !self.queued.replace(false) {
            return;
        }
        let process = match &self.notify {
            Notify::Nothing => None,
            Notify::Process(process, _) => process.upgrade(),
            Notify::Thread(thread, _) => thread.upgrade().map(|thread| Rc::clone(&thread.process)),
        };
        if let (Some(process), Some(me)) = (process, self.me.upgrade()) {
            let source: Rc<dyn Source> = me;
            signal::withdraw(&process, &source);
        }
    }

    /// Moves a periodic timer behind now; how many expirations that skips.
    fn forward(&self) -> u64 {
        let (expiry, interval) = (self.expiry_ns.get(), self.interval_ns.get());
        if interval == 0 {
            self.expiry_ns.set(0);
            return 0;
        }
        let missed = self.now_ns().saturating_sub(expiry) / interval;
        self.expiry_ns.set(expiry.saturating_add(missed.saturating_add(1).saturating_mul(interval)));
        self.arm();
        missed
    }

    fn delete(&self) {
        self.deleted.set(true);
        self.timer.cancel();
        self.withdraw();
    }
}

impl Source for Alarm {
    fn take(&self, info: SignalInfo) -> Option<SignalInfo> {
        self.queued.set(false);
        if self.deleted.get() {
            return None;
        }
        let missed = i32::try_from(self.forward()).unwrap_or(i32::MAX);
        self.overrun.set(missed);
        Some(if info.code == signal::SI_TIMER { info.with_overrun(missed) } else { info })
    }

    fn forget(&self) {
        // Flushed from the queue (the signal is ignored now, or a stop undid a continuation): the period goes on.
        if self.queued.replace(false) && !self.deleted.get() {
            self.forward();
        }
    }
}

/// Which interval timer (setitimer(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    /// ITIMER_REAL.
    Real,
    /// ITIMER_VIRTUAL.
    Virtual,
    /// ITIMER_PROF.
    Profile,
}

/// How a POSIX timer tells of its expiration.
pub enum Event {
    /// SIGEV_NONE.
    None,
    /// SIGEV_SIGNAL (and SIGEV_THREAD, which is the C library's): signal, and value if not the timer's id.
    Signal(Signal, Option<u64>),
    /// SIGEV_THREAD_ID.
    Thread(Rc<Thread>, Signal, u64),
}

/// The timers of a process.
#[derive(Default)]
pub struct ProcessTimers {
    intervals: RefCell<[Option<Rc<Alarm>>; 3]>,
    posix: RefCell<BTreeMap<i32, Rc<Alarm>>>,
    next_id: Cell<i32>,
}

/// Timers whose clock can be set; looked at when it is.
struct Stepping(RefCell<alloc::vec::Vec<Weak<Alarm>>>);

crate::global! {
    static STEPPING: Stepping = Stepping(RefCell::new(alloc::vec::Vec::new()));
}

/// The wall clocks have stepped.
pub(super) fn clock_stepped() {
    let alarms: alloc::vec::Vec<_> = STEPPING.with(|s| s.0.borrow().iter().filter_map(Weak::upgrade).collect());
    for alarm in alarms {
        alarm.clock_stepped();
    }
}

impl ProcessTimers {
    /// An interval timer of `process`.
    #[must_use]
    pub fn interval(process: &Rc<Process>, which: Interval) -> Rc<Alarm> {
        let mut intervals = process.timers.intervals.borrow_mut();
        let alarm = intervals[which as usize].get_or_insert_with(|| {
            use super::clocks::Count;
            let (clock, signal) = match which {
                Interval::Real => (Clock::Wall(WallClock::Monotonic), SIGALRM),
                Interval::Virtual => (Clock::Cpu(CpuClock::Process(Rc::clone(process), Count::User), 1), SIGVTALRM),
                Interval::Profile => (Clock::Cpu(CpuClock::Process(Rc::clone(process), Count::All), 1), SIGPROF),
            };
            Alarm::new(clock, Notify::Process(Rc::downgrade(process), SignalInfo::kernel(signal)), None)
        });
        Rc::clone(alarm)
    }

    /// timer_create(2): the new timer's id. `charge` is its place in the account of RLIMIT_SIGPENDING.
    ///
    /// # Errors
    /// EAGAIN where ids have run out.
    pub fn create(process: &Rc<Process>, clock: Clock, event: Event, charge: Charge) -> Result<i32> {
        let timers = &process.timers;
        let mut posix = timers.posix.borrow_mut();
        let mut id = timers.next_id.get();
        while posix.contains_key(&id) {
            id = id.checked_add(1).unwrap_or(0);
            if id == timers.next_id.get() {
                return Err(Errno::EAGAIN);
            }
        }
        timers.next_id.set(id.checked_add(1).unwrap_or(0));
        let info = |signal, value| SignalInfo::timer(signal, id, value);
        let notify = match event {
            Event::None => Notify::Nothing,
            Event::Signal(signal, value) => {
                let value = value.unwrap_or(u64::from(id.cast_unsigned()));
                Notify::Process(Rc::downgrade(process), info(signal, value))
            }
            Event::Thread(thread, signal, value) => Notify::Thread(Rc::downgrade(&thread), info(signal, value)),
        };
        let steps = matches!(&clock, Clock::Wall(clock) if clock.steps());
        let alarm = Alarm::new(clock, notify, Some(charge));
        if steps {
            STEPPING.with(|s| {
                let mut stepping = s.0.borrow_mut();
                stepping.retain(|alarm| alarm.strong_count() > 0);
                stepping.push(Rc::downgrade(&alarm));
            });
        }
        posix.insert(id, alarm);
        Ok(id)
    }

    /// A POSIX timer.
    ///
    /// # Errors
    /// EINVAL if there is none with that id.
    pub fn get(&self, id: i32) -> Result<Rc<Alarm>> {
        self.posix.borrow().get(&id).cloned().ok_or(Errno::EINVAL)
    }

    /// timer_delete(2).
    ///
    /// # Errors
    /// EINVAL if there is none with that id.
    pub fn delete(&self, id: i32) -> Result<()> {
        let alarm = self.posix.borrow_mut().remove(&id).ok_or(Errno::EINVAL)?;
        alarm.delete();
        Ok(())
    }

    /// execve(2) deletes POSIX timers; interval timers go on.
    pub fn after_exec(&self) {
        let alarms = self.posix.take();
        for alarm in alarms.values() {
            alarm.delete();
        }
        self.next_id.set(0);
    }

    /// The process has ended.
    pub fn clear(&self) {
        self.after_exec();
        for alarm in self.intervals.take().into_iter().flatten() {
            alarm.delete();
        }
    }
}

impl Alarm {
    /// timer_getoverrun(2).
    #[must_use]
    pub fn overrun(&self) -> i32 {
        self.overrun.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::signal::{SignalSet, procmask, take_of};
    use crate::task::testing;
    use crate::time::{Instant, set_now, timer};

    fn at(ns: u64) {
        set_now(Instant(ns));
        timer::run_expired(Instant(ns));
    }

    #[test]
    fn a_periodic_timer_counts_what_it_missed() {
        let me = testing::enter();
        set_now(Instant(1000));
        let signals = SignalSet::of(SIGALRM);
        procmask(signals);
        let charge = Charge::new(0, 10).expect("room");
        let clock = Clock::Wall(WallClock::Monotonic);
        let id = ProcessTimers::create(&me.process, clock, Event::Signal(SIGALRM, Some(7)), charge).expect("a timer");
        let alarm = me.process.timers.get(id).expect("it is there");
        alarm.set(Setting { value_ns: 100, interval_ns: 50 }, false);
        at(1099);
        assert!(take_of(signals).is_none());
        assert_eq!(alarm.get(), Setting { value_ns: 1, interval_ns: 50 });
        at(1240);
        assert_eq!(alarm.get().value_ns, 10);
        let info = take_of(signals).expect("expired");
        assert_eq!((info.timer_id(), info.overrun(), info.value()), (id, 2, 7));
        assert_eq!(alarm.overrun(), 2);
        assert_eq!(alarm.get().value_ns, 10);
        at(1250);
        // Setting it anew withdraws the signal.
        assert_eq!(alarm.set(Setting { value_ns: 2000, interval_ns: 0 }, true).interval_ns, 50);
        assert!(take_of(signals).is_none());
        at(2000);
        assert_eq!(take_of(signals).map(|info| info.overrun()), Some(0));
        assert_eq!(alarm.get(), Setting::default());
        me.process.timers.delete(id).expect("it is there");
        assert!(me.process.timers.get(id).is_err());
        assert_eq!(timer::next_deadline(), Instant::FAR);
    }

    #[test]
    fn interval_timers_are_the_process_s_own() {
        let me = testing::enter();
        set_now(Instant(1000));
        let signals = SignalSet::of(SIGALRM);
        procmask(signals);
        let real = ProcessTimers::interval(&me.process, Interval::Real);
        real.set(Setting { value_ns: 10, interval_ns: 10 }, false);
        at(1035);
        assert_eq!(take_of(signals).map(|info| info.code), Some(signal::SI_KERNEL));
        assert_eq!(timer::next_deadline(), Instant(1040));
        me.process.timers.clear();
        assert_eq!(timer::next_deadline(), Instant::FAR);
    }
}

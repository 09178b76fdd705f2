//! Clocks, sleeps and timers.

use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::mm::addr::UserAddr;
use crate::mm::user::{self, Pod};
use crate::task::creds::CAP_SYS_TIME;
use crate::task::limits::Resource;
use crate::task::signal::queue::Charge;
use crate::task::signal::{SIGALRM, Signal, set_restart};
use crate::task::{current, pid};
use crate::time;
use crate::time::alarm::{Event, Interval, ProcessTimers, Setting};
use crate::time::clocks::{Clock, CpuClock, WallClock, from_ns, to_ns};
use crate::time::sleep::{Deadline, sleep_until, sleep_until_used};
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::Cell;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(
        linux::__NR_clock_gettime as u16,
        "clock_gettime",
        sys_clock_gettime,
        &[Arg::ClockId, Arg::Out(&Arg::Timespec)],
    ),
    Syscall::full(
        linux::__NR_clock_getres as u16,
        "clock_getres",
        sys_clock_getres,
        &[Arg::ClockId, Arg::Out(&Arg::Timespec)],
    ),
    Syscall::full(linux::__NR_clock_settime as u16, "clock_settime", sys_clock_settime, &[Arg::ClockId, Arg::Timespec]),
    Syscall::full(
        linux::__NR_clock_nanosleep as u16,
        "clock_nanosleep",
        sys_clock_nanosleep,
        &[Arg::ClockId, Arg::TimerFlags, Arg::Timespec, Arg::Ptr],
    ),
    Syscall::full(linux::__NR_nanosleep as u16, "nanosleep", sys_nanosleep, &[Arg::Timespec, Arg::Ptr]),
    Syscall::full(
        linux::__NR_gettimeofday as u16,
        "gettimeofday",
        sys_gettimeofday,
        &[Arg::Out(&Arg::Timeval), Arg::Ptr],
    ),
    Syscall::full(linux::__NR_settimeofday as u16, "settimeofday", sys_settimeofday, &[Arg::Timeval, Arg::Ptr]),
    Syscall::full(linux::__NR_time as u16, "time", sys_time, &[Arg::Ptr]),
    Syscall::partial(
        linux::__NR_adjtimex as u16,
        "adjtimex",
        "the clock follows the host's; changing its rate gives EPERM",
        sys_adjtimex,
        &[Arg::Ptr],
    ),
    Syscall::partial(
        linux::__NR_clock_adjtime as u16,
        "clock_adjtime",
        "as adjtimex",
        sys_clock_adjtime,
        &[Arg::ClockId, Arg::Ptr],
    ),
    Syscall::full(linux::__NR_alarm as u16, "alarm", sys_alarm, &[Arg::Size]),
    Syscall::full(
        linux::__NR_getitimer as u16,
        "getitimer",
        sys_getitimer,
        &[Arg::ItimerId, Arg::Out(&Arg::Itimerval)],
    ),
    Syscall::full(
        linux::__NR_setitimer as u16,
        "setitimer",
        sys_setitimer,
        &[Arg::ItimerId, Arg::Itimerval, Arg::Out(&Arg::Itimerval)],
    ),
    Syscall::full(
        linux::__NR_timer_create as u16,
        "timer_create",
        sys_timer_create,
        &[Arg::ClockId, Arg::SigEvent, Arg::Out(&Arg::IntAt)],
    ),
    Syscall::full(
        linux::__NR_timer_settime as u16,
        "timer_settime",
        sys_timer_settime,
        &[Arg::Int, Arg::TimerFlags, Arg::Itimerspec, Arg::Out(&Arg::Itimerspec)],
    ),
    Syscall::full(
        linux::__NR_timer_gettime as u16,
        "timer_gettime",
        sys_timer_gettime,
        &[Arg::Int, Arg::Out(&Arg::Itimerspec)],
    ),
    Syscall::full(linux::__NR_timer_getoverrun as u16, "timer_getoverrun", sys_timer_getoverrun, &[Arg::Int]),
    Syscall::full(linux::__NR_timer_delete as u16, "timer_delete", sys_timer_delete, &[Arg::Int]),
];

/// Nanoseconds of the units of `struct timespec` and `struct timeval`.
const NANO: u64 = 1;
const MICRO: u64 = 1000;

crate::global! {
    /// The `struct timezone` of settimeofday(2): minutes west, daylight saving time type.
    static ZONE: Cell<[i32; 2]> = Cell::new([0, 0]);
}

fn put_unless_null<T: Pod>(addr: UserAddr, value: &T) -> Result<()> {
    if addr.is_null() { Ok(()) } else { user::write(addr, value) }
}

fn sys_clock_gettime(args: Args) -> Result<u64> {
    let ns = Clock::new(args.i32(0))?.now_ns();
    user::write(args.addr(1), &from_ns(ns, NANO))?;
    Ok(0)
}

fn sys_clock_getres(args: Args) -> Result<u64> {
    let ns = Clock::new(args.i32(0))?.resolution_ns();
    put_unless_null(args.addr(1), &from_ns(ns, NANO))?;
    Ok(0)
}

fn set_realtime(ns: u64) -> Result<()> {
    if !current().creds().has(CAP_SYS_TIME) {
        return Err(Errno::EPERM);
    }
    // CLOCK_MONOTONIC began after the epoch.
    if ns < time::now().0 {
        return Err(Errno::EINVAL);
    }
    time::set_realtime_ns(ns);
    Ok(())
}

fn sys_clock_settime(args: Args) -> Result<u64> {
    let Clock::Wall(WallClock::Realtime) = Clock::new(args.i32(0))? else { return Err(Errno::EINVAL) };
    let ns = to_ns(user::read(args.addr(1))?, NANO)?;
    set_realtime(ns)?;
    Ok(0)
}

fn sys_gettimeofday(args: Args) -> Result<u64> {
    put_unless_null(args.addr(0), &from_ns(time::realtime_ns(), MICRO))?;
    put_unless_null(args.addr(1), &ZONE.with(Cell::get))?;
    Ok(0)
}

fn sys_settimeofday(args: Args) -> Result<u64> {
    let time = if args.addr(0).is_null() { None } else { Some(to_ns(user::read(args.addr(0))?, MICRO)?) };
    let zone: Option<[i32; 2]> = if args.addr(1).is_null() { None } else { Some(user::read(args.addr(1))?) };
    if !current().creds().has(CAP_SYS_TIME) {
        return Err(Errno::EPERM);
    }
    if let Some(zone) = zone {
        if zone[0].unsigned_abs() > 15 * 60 {
            return Err(Errno::EINVAL);
        }
        ZONE.with(|z| z.set(zone));
    }
    if let Some(ns) = time {
        set_realtime(ns)?;
    }
    Ok(0)
}

fn sys_time(args: Args) -> Result<u64> {
    let [seconds, _] = from_ns(time::realtime_ns(), NANO);
    put_unless_null(args.addr(0), &seconds)?;
    Ok(seconds.cast_unsigned())
}

/// Sleeps until `deadline`; interrupted, tells the rest at `rest` and goes on by restart_syscall(2).
fn sleep_relative(deadline: Deadline, rest: UserAddr) -> Result<u64> {
    if sleep_until(deadline).is_ok() || deadline.remaining_ns() == 0 {
        return Ok(0);
    }
    put_unless_null(rest, &from_ns(deadline.remaining_ns(), NANO))?;
    Err(set_restart(Box::new(move || sleep_relative(deadline, rest))))
}

fn sleep_relative_used(clock: CpuClock, until_ns: u64, rest: UserAddr) -> Result<u64> {
    if sleep_until_used(&clock, until_ns).is_ok() {
        return Ok(0);
    }
    put_unless_null(rest, &from_ns(until_ns.saturating_sub(clock.now_ns()), NANO))?;
    Err(set_restart(Box::new(move || sleep_relative_used(clock, until_ns, rest))))
}

fn sys_nanosleep(args: Args) -> Result<u64> {
    let ns = to_ns(user::read(args.addr(0))?, NANO)?;
    sleep_relative(Deadline::after(ns), args.addr(1))
}

fn sys_clock_nanosleep(args: Args) -> Result<u64> {
    let clock = Clock::new(args.i32(0))?;
    if let Clock::ReadOnly(..) | Clock::Cpu(CpuClock::Thread(..), _) = clock {
        return Err(Errno::EOPNOTSUPP);
    }
    let ns = to_ns(user::read(args.addr(2))?, NANO)?;
    let absolute = args.u32(1) & linux::TIMER_ABSTIME != 0;
    let interrupted = |result: core::result::Result<(), Errno>| result.map(|()| 0).or(Err(Errno::ERESTARTNOHAND));
    match clock {
        Clock::Cpu(clock, _) if absolute => interrupted(sleep_until_used(&clock, ns)),
        Clock::Cpu(clock, _) => {
            let until = clock.now_ns().saturating_add(ns);
            sleep_relative_used(clock, until, args.addr(3))
        }
        Clock::Wall(clock) if absolute => interrupted(sleep_until(Deadline::at(clock, ns))),
        _ => sleep_relative(Deadline::after(ns), args.addr(3)),
    }
}

/// Bytes of `struct timex`.
const TIMEX_BYTES: usize = 208;
/// What adjtimex(2) returns while the clock is not known to be synchronised.
const TIME_ERROR: u64 = 5;

/// Tells the state of the clock: nobody disciplines it in the guest, so it stands as a Linux without ntpd has it.
fn read_timex(addr: UserAddr) -> Result<u64> {
    /// STA_UNSYNC.
    const UNSYNCHRONISED: u32 = 0x40;
    let modes: u32 = user::read(addr)?;
    if modes != 0 {
        return Err(Errno::EPERM);
    }
    let mut timex = [0; TIMEX_BYTES];
    let mut put = |offset: usize, value: i64| timex[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    put(24, 16_000_000); // maxerror
    put(32, 16_000_000); // esterror
    put(40, i64::from(UNSYNCHRONISED)); // status
    put(48, 2); // constant
    put(56, 1); // precision
    put(64, 32_768_000); // tolerance
    let [seconds, micros] = from_ns(time::realtime_ns(), MICRO);
    put(72, seconds);
    put(80, micros);
    put(88, 10_000); // tick
    user::write_bytes(addr, &timex)?;
    Ok(TIME_ERROR)
}

fn sys_adjtimex(args: Args) -> Result<u64> {
    read_timex(args.addr(0))
}

fn sys_clock_adjtime(args: Args) -> Result<u64> {
    match Clock::new(args.i32(0))? {
        Clock::Wall(WallClock::Realtime) => read_timex(args.addr(1)),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

fn sys_alarm(args: Args) -> Result<u64> {
    let alarm = ProcessTimers::interval(&current().process, Interval::Real);
    let value_ns = u64::from(args.u32(0)) * time::clocks::SECOND_NS;
    let old = alarm.set(Setting { value_ns, interval_ns: 0 }, false);
    // Rounded to the nearest second, but never to 0.
    let [seconds, nanos] = from_ns(old.value_ns, NANO);
    let up = nanos >= 500_000_000 || seconds == 0 && nanos > 0;
    Ok(seconds.cast_unsigned() + u64::from(up))
}

fn interval_of(which: i32) -> Result<Interval> {
    match which.cast_unsigned() {
        linux::ITIMER_REAL => Ok(Interval::Real),
        linux::ITIMER_VIRTUAL => Ok(Interval::Virtual),
        linux::ITIMER_PROF => Ok(Interval::Profile),
        _ => Err(Errno::EINVAL),
    }
}

/// As `struct itimerval` or `struct itimerspec`.
fn to_words(setting: Setting, unit: u64) -> [i64; 4] {
    let (interval, value) = (from_ns(setting.interval_ns, unit), setting.value_ns);
    // What is armed is never told as disarmed.
    let value = from_ns(if value == 0 { 0 } else { value.max(unit) }, unit);
    [interval[0], interval[1], value[0], value[1]]
}

fn read_setting(addr: UserAddr, unit: u64) -> Result<Setting> {
    let [a, b, c, d] = user::read::<[i64; 4]>(addr)?;
    Ok(Setting { interval_ns: to_ns([a, b], unit)?, value_ns: to_ns([c, d], unit)? })
}

fn sys_getitimer(args: Args) -> Result<u64> {
    let alarm = ProcessTimers::interval(&current().process, interval_of(args.i32(0))?);
    user::write(args.addr(1), &to_words(alarm.get(), MICRO))?;
    Ok(0)
}

fn sys_setitimer(args: Args) -> Result<u64> {
    // As on Linux a null pointer disarms the timer.
    let setting = if args.addr(1).is_null() { Setting::default() } else { read_setting(args.addr(1), MICRO)? };
    let alarm = ProcessTimers::interval(&current().process, interval_of(args.i32(0))?);
    let old = alarm.set(setting, false);
    put_unless_null(args.addr(2), &to_words(old, MICRO))?;
    Ok(0)
}

fn sys_timer_create(args: Args) -> Result<u64> {
    let me = current();
    let clock = Clock::new(args.i32(0))?;
    if let Clock::ReadOnly(..) = clock {
        return Err(Errno::EOPNOTSUPP);
    }
    let event = if args.addr(1).is_null() {
        Event::Signal(SIGALRM, None)
    } else {
        // struct sigevent: value, signal, how, and the thread's id.
        let value: u64 = user::read(args.addr(1))?;
        let [signo, notify] = user::read::<[u32; 2]>(args.addr(1).offset(8))?;
        let signal = Signal::new(signo).ok_or(Errno::EINVAL);
        match notify {
            linux::SIGEV_NONE => Event::None,
            linux::SIGEV_SIGNAL | linux::SIGEV_THREAD => Event::Signal(signal?, Some(value)),
            linux::SIGEV_THREAD_ID => {
                let tid: u32 = user::read(args.addr(1).offset(16))?;
                let thread = pid::thread(tid).filter(|thread| Rc::ptr_eq(&thread.process, &me.process));
                Event::Thread(thread.ok_or(Errno::EINVAL)?, signal?, value)
            }
            _ => return Err(Errno::EINVAL),
        }
    };
    let charge = Charge::new(me.creds().uid, me.process.limit(Resource::PendingSignals)).ok_or(Errno::EAGAIN)?;
    let id = ProcessTimers::create(&me.process, clock, event, charge)?;
    if let Err(error) = user::write(args.addr(2), &id) {
        me.process.timers.delete(id)?;
        return Err(error);
    }
    Ok(0)
}

fn sys_timer_settime(args: Args) -> Result<u64> {
    let setting = read_setting(args.addr(2), NANO)?;
    let alarm = current().process.timers.get(args.i32(0))?;
    let old = alarm.set(setting, args.u32(1) & linux::TIMER_ABSTIME != 0);
    put_unless_null(args.addr(3), &to_words(old, NANO))?;
    Ok(0)
}

fn sys_timer_gettime(args: Args) -> Result<u64> {
    let setting = current().process.timers.get(args.i32(0))?.get();
    user::write(args.addr(1), &to_words(setting, NANO))?;
    Ok(0)
}

fn sys_timer_getoverrun(args: Args) -> Result<u64> {
    let overrun = current().process.timers.get(args.i32(0))?.overrun();
    Ok(u64::from(overrun.cast_unsigned()))
}

fn sys_timer_delete(args: Args) -> Result<u64> {
    current().process.timers.delete(args.i32(0))?;
    Ok(0)
}

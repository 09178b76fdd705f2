//! timerfd_create(2).

use super::event::{install, open_flags};
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::event::timerfd::{Clock, SetFlags, Setting, TimerFd, timerfd};
use crate::fs::file::OpenFlags;
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(
        linux::__NR_timerfd_create as u16,
        "timerfd_create",
        sys_timerfd_create,
        &[Arg::ClockId, Arg::OpenFlags],
    ),
    Syscall::full(
        linux::__NR_timerfd_settime as u16,
        "timerfd_settime",
        sys_timerfd_settime,
        &[Arg::Fd, Arg::TimerFlags, Arg::Itimerspec, Arg::Out(&Arg::Itimerspec)],
    ),
    Syscall::full(
        linux::__NR_timerfd_gettime as u16,
        "timerfd_gettime",
        sys_timerfd_gettime,
        &[Arg::Fd, Arg::Out(&Arg::Itimerspec)],
    ),
];

/// Trigger something that wakes the system up (capabilities(7)).
const CAP_WAKE_ALARM: u32 = 35;
const SECOND_NS: u64 = 1_000_000_000;

fn sys_timerfd_create(args: Args) -> Result<u64> {
    let flags = open_flags(args.u32(1), OpenFlags::NONBLOCK | OpenFlags::CLOEXEC)?;
    let clock = Clock::new(args.u32(0))?;
    check_alarm(clock)?;
    install(timerfd(clock, flags), flags)
}

fn check_alarm(clock: Clock) -> Result<()> {
    let allowed = !clock.is_alarm() || task::current().creds().has(CAP_WAKE_ALARM);
    if allowed { Ok(()) } else { Err(Errno::EPERM) }
}

fn sys_timerfd_settime(args: Args) -> Result<u64> {
    let [interval_sec, interval_nsec, sec, nsec] = user::read::<[i64; 4]>(args.addr(2))?;
    let flags = SetFlags::from_bits(args.u32(1)).ok_or(Errno::EINVAL)?;
    let setting = Setting { interval_ns: nanoseconds(interval_sec, interval_nsec)?, value_ns: nanoseconds(sec, nsec)? };
    let file = task::current().files().opened(args.i32(0))?;
    let timer = TimerFd::of(&file)?;
    check_alarm(timer.clock())?;
    let old = timer.set(setting, flags);
    if args.addr(3).is_null() { Ok(0) } else { write(args.addr(3), old) }
}

fn sys_timerfd_gettime(args: Args) -> Result<u64> {
    let file = task::current().files().opened(args.i32(0))?;
    write(args.addr(1), TimerFd::of(&file)?.get())
}

fn nanoseconds(sec: i64, nsec: i64) -> Result<u64> {
    let sec = u64::try_from(sec).map_err(|_| Errno::EINVAL)?;
    let nsec = u64::try_from(nsec).ok().filter(|n| *n < SECOND_NS).ok_or(Errno::EINVAL)?;
    Ok(sec.saturating_mul(SECOND_NS).saturating_add(nsec))
}

fn write(addr: UserAddr, setting: Setting) -> Result<u64> {
    let split = |ns: u64| [ns / SECOND_NS, ns % SECOND_NS];
    let ([interval_sec, interval_nsec], [sec, nsec]) = (split(setting.interval_ns), split(setting.value_ns));
    user::write(addr, &[interval_sec, interval_nsec, sec, nsec])?;
    Ok(0)
}

//! epoll_create(2), epoll_ctl(2), epoll_wait(2).

use super::event::{install, open_flags};
use super::poll::{self, sigset};
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::event::epoll::{self, Epoll, Interest};
use crate::event::poll::deadline_after_ms;
use crate::fs::file::OpenFlags;
use crate::mm::addr::{USER_END, UserAddr};
use crate::mm::user;
use crate::task;
use crate::task::signal::{SignalSet, with_mask};
use crate::time::Instant;
use linux_raw_sys::general as linux;

/// Bytes of `struct epoll_event`, which is packed on x86-64.
const EVENT_BYTES: usize = 12;
/// More events can't be asked for.
const MAX_EVENTS: i32 = i32::MAX / EVENT_BYTES as i32;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_epoll_create as u16, "epoll_create", sys_epoll_create, &[Arg::Int]),
    Syscall::full(linux::__NR_epoll_create1 as u16, "epoll_create1", sys_epoll_create1, &[Arg::EpollFlags]),
    Syscall::full(
        linux::__NR_epoll_ctl as u16,
        "epoll_ctl",
        sys_epoll_ctl,
        &[Arg::Fd, Arg::EpollOp, Arg::Fd, Arg::EpollEvent],
    ),
    Syscall::full(
        linux::__NR_epoll_wait as u16,
        "epoll_wait",
        sys_epoll_wait,
        &[Arg::Fd, Arg::EpollEvents, Arg::Int, Arg::Int],
    ),
    Syscall::full(
        linux::__NR_epoll_pwait as u16,
        "epoll_pwait",
        sys_epoll_pwait,
        &[Arg::Fd, Arg::EpollEvents, Arg::Int, Arg::Int, Arg::SigSet, Arg::Size],
    ),
    Syscall::full(
        linux::__NR_epoll_pwait2 as u16,
        "epoll_pwait2",
        sys_epoll_pwait2,
        &[Arg::Fd, Arg::EpollEvents, Arg::Int, Arg::Timespec, Arg::SigSet, Arg::Size],
    ),
];

fn sys_epoll_create(args: Args) -> Result<u64> {
    // The size was a hint once; it only must not be zero or negative.
    if args.i32(0) <= 0 {
        return Err(Errno::EINVAL);
    }
    install(epoll::epoll(), OpenFlags::empty())
}

fn sys_epoll_create1(args: Args) -> Result<u64> {
    let flags = open_flags(args.u32(0), OpenFlags::CLOEXEC)?;
    install(epoll::epoll(), flags)
}

fn sys_epoll_ctl(args: Args) -> Result<u64> {
    let (epfd, operation, fd) = (args.i32(0), args.u32(1), args.i32(2));
    let interest = if operation == linux::EPOLL_CTL_DEL {
        Interest::new(0, 0)
    } else {
        let mut event = [0; EVENT_BYTES];
        user::read_bytes(args.addr(3), &mut event)?;
        let [e0, e1, e2, e3, data @ ..] = event;
        Interest::new(u32::from_ne_bytes([e0, e1, e2, e3]), u64::from_ne_bytes(data))
    };
    let files = task::current().files();
    let this = files.opened(epfd)?;
    let target = files.opened(fd)?;
    if target.ops.wait_queue().is_none() {
        return Err(Errno::EPERM);
    }
    let epoll = Epoll::of(&this)?;
    match operation {
        linux::EPOLL_CTL_ADD => epoll.add(fd, &target, interest)?,
        linux::EPOLL_CTL_MOD => epoll.modify(fd, &target, interest)?,
        linux::EPOLL_CTL_DEL => epoll.delete(fd, &target)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn sys_epoll_wait(args: Args) -> Result<u64> {
    wait(args.i32(0), args.addr(1), args.i32(2), deadline_after_ms(args.i32(3)), None)
}

fn sys_epoll_pwait(args: Args) -> Result<u64> {
    let mask = sigset(args.addr(4), args.usize(5))?;
    wait(args.i32(0), args.addr(1), args.i32(2), deadline_after_ms(args.i32(3)), mask)
}

fn sys_epoll_pwait2(args: Args) -> Result<u64> {
    let deadline = poll::timespec_deadline(args.addr(3))?;
    let mask = sigset(args.addr(4), args.usize(5))?;
    wait(args.i32(0), args.addr(1), args.i32(2), deadline, mask)
}

fn wait(epfd: i32, events: UserAddr, max: i32, deadline: Option<Instant>, mask: Option<SignalSet>) -> Result<u64> {
    let file = task::current().files().opened(epfd)?;
    if !(1..=MAX_EVENTS).contains(&max) {
        return Err(Errno::EINVAL);
    }
    let max = max as usize;
    if events.0.checked_add((max * EVENT_BYTES) as u64).is_none_or(|end| end > USER_END) {
        return Err(Errno::EFAULT);
    }
    let epoll = Epoll::of(&file)?;
    let found = with_mask(mask, || {
        epoll.wait(max, deadline, |index, report| {
            let mut event = [0; EVENT_BYTES];
            event[..4].copy_from_slice(&report.events.bits().to_ne_bytes());
            event[4..].copy_from_slice(&report.data.to_ne_bytes());
            user::write_bytes(events.offset((index * EVENT_BYTES) as u64), &event)
        })
    })?;
    Ok(found as u64)
}

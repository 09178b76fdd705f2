//! signalfd(2).

use super::event::{install, open_flags};
use super::poll::sigset;
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::event::signalfd::{SignalFd, signalfd};
use crate::fs::file::OpenFlags;
use crate::task;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_signalfd as u16, "signalfd", sys_signalfd, &[Arg::Fd, Arg::SigSet, Arg::Size]),
    Syscall::full(
        linux::__NR_signalfd4 as u16,
        "signalfd4",
        sys_signalfd4,
        &[Arg::Fd, Arg::SigSet, Arg::Size, Arg::OpenFlags],
    ),
];

fn sys_signalfd(args: Args) -> Result<u64> {
    open(args, 0)
}

fn sys_signalfd4(args: Args) -> Result<u64> {
    open(args, args.u32(3))
}

fn open(args: Args, flags: u32) -> Result<u64> {
    if args.usize(2) != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    let signals = sigset(args.addr(1), args.usize(2))?.ok_or(Errno::EFAULT)?;
    let flags = open_flags(flags, OpenFlags::NONBLOCK | OpenFlags::CLOEXEC)?;
    let fd = args.i32(0);
    if fd == -1 {
        return install(signalfd(signals, flags), flags);
    }
    let file = task::current().files().opened(fd)?;
    SignalFd::of(&file)?.set(signals);
    Ok(fd as u64)
}

//! Priorities for disks (ioprio_set(2)): kept, and without effect, as there are no disks.

use super::sched::threads_of;
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::task::current;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_ioprio_set as u16, "ioprio_set", sys_ioprio_set, &[Arg::Int, Arg::Pid, Arg::Hex]),
    Syscall::full(linux::__NR_ioprio_get as u16, "ioprio_get", sys_ioprio_get, &[Arg::Int, Arg::Pid]),
];

/// IOPRIO_CLASS_*.
mod class {
    pub(super) const NONE: u32 = 0;
    pub(super) const REALTIME: u32 = 1;
    pub(super) const BEST_EFFORT: u32 = 2;
    pub(super) const IDLE: u32 = 3;
}

/// IOPRIO_WHO_* count from 1, PRIO_* of getpriority(2) from 0.
fn which(args: Args) -> Result<u32> {
    args.u32(0).checked_sub(1).ok_or(Errno::EINVAL)
}

fn sys_ioprio_set(args: Args) -> Result<u64> {
    let (class, level) = (args.u32(2) >> 13 & 7, args.u32(2) & 7);
    let creds = current().creds();
    let powerful = creds.has(linux::CAP_SYS_NICE);
    match class {
        class::REALTIME if !powerful && !creds.has(linux::CAP_SYS_ADMIN) => return Err(Errno::EPERM),
        class::REALTIME | class::BEST_EFFORT | class::IDLE => {}
        class::NONE if level == 0 => {}
        _ => return Err(Errno::EINVAL),
    }
    for thread in threads_of(which(args)?, args.i32(1))? {
        if !powerful && ![creds.euid, creds.uid].contains(&thread.creds().uid) {
            return Err(Errno::EPERM);
        }
        // Higher bits are ignored.
        thread.io_priority.set(args.u32(2) as u16);
    }
    Ok(0)
}

fn sys_ioprio_get(args: Args) -> Result<u64> {
    let threads = threads_of(which(args)?, args.i32(1))?;
    Ok(threads.iter().map(|thread| thread.io_priority.get()).min().unwrap_or(0).into())
}

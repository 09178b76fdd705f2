//! Scheduling: sched(7), nice(2), and the one processor there is.

use super::process::{find_thread, read_extensible};
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::mm::user;
use crate::task::limits::{INFINITY, Resource};
use crate::task::runqueue::{MIN_SLICE_NS, Params, Policy, RR_SLICE_NS};
use crate::task::thread::Thread;
use crate::task::{current, futex, pid, sched};
use alloc::rc::Rc;
use alloc::vec::Vec;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_sched_yield as u16, "sched_yield", sys_yield, &[]),
    Syscall::partial(
        linux::__NR_sched_setscheduler as u16,
        "sched_setscheduler",
        "no SCHED_DEADLINE, SCHED_EXT",
        sys_setscheduler,
        &[Arg::Pid, Arg::Int, Arg::IntAt],
    ),
    Syscall::full(linux::__NR_sched_getscheduler as u16, "sched_getscheduler", sys_getscheduler, &[Arg::Pid]),
    Syscall::full(linux::__NR_sched_setparam as u16, "sched_setparam", sys_setparam, &[Arg::Pid, Arg::IntAt]),
    Syscall::full(
        linux::__NR_sched_getparam as u16,
        "sched_getparam",
        sys_getparam,
        &[Arg::Pid, Arg::Out(&Arg::IntAt)],
    ),
    Syscall::partial(
        linux::__NR_sched_setattr as u16,
        "sched_setattr",
        "no SCHED_DEADLINE, SCHED_EXT, no utilisation clamps",
        sys_setattr,
        &[Arg::Pid, Arg::Ptr, Arg::Hex],
    ),
    Syscall::full(
        linux::__NR_sched_getattr as u16,
        "sched_getattr",
        sys_getattr,
        &[Arg::Pid, Arg::Ptr, Arg::Size, Arg::Hex],
    ),
    Syscall::full(linux::__NR_sched_get_priority_max as u16, "sched_get_priority_max", sys_priority_max, &[Arg::Int]),
    Syscall::full(linux::__NR_sched_get_priority_min as u16, "sched_get_priority_min", sys_priority_min, &[Arg::Int]),
    Syscall::full(
        linux::__NR_sched_rr_get_interval as u16,
        "sched_rr_get_interval",
        sys_rr_interval,
        &[Arg::Pid, Arg::Out(&Arg::Timespec)],
    ),
    Syscall::full(
        linux::__NR_sched_setaffinity as u16,
        "sched_setaffinity",
        sys_setaffinity,
        &[Arg::Pid, Arg::Size, Arg::Ptr],
    ),
    Syscall::full(
        linux::__NR_sched_getaffinity as u16,
        "sched_getaffinity",
        sys_getaffinity,
        &[Arg::Pid, Arg::Size, Arg::Ptr],
    ),
    Syscall::full(
        linux::__NR_getcpu as u16,
        "getcpu",
        sys_getcpu,
        &[Arg::Out(&Arg::IntAt), Arg::Out(&Arg::IntAt), Arg::Ptr],
    ),
    Syscall::full(linux::__NR_getpriority as u16, "getpriority", sys_getpriority, &[Arg::Int, Arg::Pid]),
    Syscall::full(linux::__NR_setpriority as u16, "setpriority", sys_setpriority, &[Arg::Int, Arg::Pid, Arg::Int]),
];

fn sys_yield(_: Args) -> Result<u64> {
    sched::yield_now();
    Ok(0)
}

/// A thread by id as the sched_ calls take it: negative ids are invalid rather than unknown.
fn thread_of(tid: i32) -> Result<Rc<Thread>> {
    if tid < 0 { Err(Errno::EINVAL) } else { find_thread(tid) }
}

fn policy_of(number: u32) -> Result<Policy> {
    match number {
        linux::SCHED_NORMAL => Ok(Policy::Other),
        linux::SCHED_FIFO => Ok(Policy::Fifo),
        linux::SCHED_RR => Ok(Policy::RoundRobin),
        linux::SCHED_BATCH => Ok(Policy::Batch),
        linux::SCHED_IDLE => Ok(Policy::Idle),
        _ => Err(Errno::EINVAL),
    }
}

/// Checks and makes a change of policy, priority and nice value.
fn change(thread: &Rc<Thread>, new: Params, reset_on_fork: bool) -> Result<u64> {
    if new.realtime() != (1..=99).contains(&new.priority) || !new.realtime() && new.priority != 0 {
        return Err(Errno::EINVAL);
    }
    let (me, old) = (current(), thread.sched.params());
    let mine = me.creds();
    if !mine.has(linux::CAP_SYS_NICE) {
        let limit = thread.process.limit(Resource::RealtimePriority);
        let more_urgent = new.realtime()
            && (new.policy != old.policy && limit == 0
                || new.priority > old.priority && u64::from(new.priority) > limit);
        let wakes_up = old.policy == Policy::Idle && new.policy != Policy::Idle && !may_be_nice(thread, new.nice);
        let less_nice = new.nice < old.nice && !may_be_nice(thread, new.nice);
        let forgets = thread.sched.reset_on_fork.get() && !reset_on_fork;
        if more_urgent || wakes_up || less_nice || forgets || !owns(&me, thread) {
            return Err(Errno::EPERM);
        }
    }
    thread.sched.reset_on_fork.set(reset_on_fork);
    sched::set_params(thread, new);
    futex::priority_changed(thread);
    Ok(0)
}

fn owns(me: &Thread, thread: &Thread) -> bool {
    let (mine, theirs) = (me.creds(), thread.creds());
    mine.euid == theirs.euid || mine.euid == theirs.uid
}

/// RLIMIT_NICE: 20 minus the limit is the least nice value.
fn may_be_nice(thread: &Thread, nice: i8) -> bool {
    let limit = thread.process.limit(Resource::Nice);
    limit == INFINITY || (20 - i64::from(nice)) as u64 <= limit
}

fn read_priority(args: Args, n: usize) -> Result<u8> {
    if args.addr(n).is_null() {
        return Err(Errno::EINVAL);
    }
    u8::try_from(user::read::<i32>(args.addr(n))?).map_err(|_| Errno::EINVAL)
}

fn sys_setscheduler(args: Args) -> Result<u64> {
    let number = args.u32(1);
    if number.cast_signed() < 0 {
        return Err(Errno::EINVAL);
    }
    let priority = read_priority(args, 2)?;
    let thread = thread_of(args.i32(0))?;
    let policy = policy_of(number & !linux::SCHED_RESET_ON_FORK)?;
    change(&thread, Params { policy, priority, ..thread.sched.params() }, number & linux::SCHED_RESET_ON_FORK != 0)
}

fn sys_getscheduler(args: Args) -> Result<u64> {
    let thread = thread_of(args.i32(0))?;
    let reset = if thread.sched.reset_on_fork.get() { linux::SCHED_RESET_ON_FORK } else { 0 };
    Ok(u64::from(thread.sched.params().policy as u32 | reset))
}

fn sys_setparam(args: Args) -> Result<u64> {
    let priority = read_priority(args, 1)?;
    let thread = thread_of(args.i32(0))?;
    change(&thread, Params { priority, ..thread.sched.params() }, thread.sched.reset_on_fork.get())
}

fn sys_getparam(args: Args) -> Result<u64> {
    if args.addr(1).is_null() {
        return Err(Errno::EINVAL);
    }
    let thread = thread_of(args.i32(0))?;
    user::write(args.addr(1), &i32::from(thread.sched.params().priority))?;
    Ok(0)
}

/// Bytes of the first version of `struct sched_attr`, and of the one with utilisation clamps.
const ATTR_BYTES: usize = 48;

fn sys_setattr(args: Args) -> Result<u64> {
    if args.addr(1).is_null() || args.u32(2) != 0 {
        return Err(Errno::EINVAL);
    }
    let bytes = match user::read::<u32>(args.addr(1))? {
        0 => ATTR_BYTES,
        bytes => bytes as usize,
    };
    if bytes < ATTR_BYTES {
        return Err(Errno::E2BIG);
    }
    let raw: [u8; ATTR_BYTES] = read_extensible(args.addr(1), bytes, ATTR_BYTES)?;
    let word = |at: usize| u32::from_le_bytes(core::array::from_fn(|i| raw[at + i]));
    let flags = u64::from(word(8)) | u64::from(word(12)) << 32;
    let keep_policy = u64::from(linux::SCHED_FLAG_KEEP_POLICY);
    let keep_params = u64::from(linux::SCHED_FLAG_KEEP_PARAMS);
    let reset = u64::from(linux::SCHED_FLAG_RESET_ON_FORK);
    if flags & !(keep_policy | keep_params | reset) != 0 {
        return Err(Errno::EINVAL);
    }
    let thread = thread_of(args.i32(0))?;
    let mut new = thread.sched.params();
    if flags & keep_policy == 0 {
        new.policy = policy_of(word(4))?;
    }
    if flags & keep_params == 0 {
        new.priority = u8::try_from(word(20)).map_err(|_| Errno::EINVAL)?;
        if !new.realtime() {
            new.nice = word(16).cast_signed().clamp(-20, 19) as i8;
        }
    }
    change(&thread, new, flags & reset != 0)
}

fn sys_getattr(args: Args) -> Result<u64> {
    let room = args.u32(2) as usize;
    if args.addr(1).is_null() || !(ATTR_BYTES..=4096).contains(&room) || args.u32(3) != 0 {
        return Err(Errno::EINVAL);
    }
    let thread = thread_of(args.i32(0))?;
    let params = thread.sched.params();
    let nice = if params.realtime() { 0 } else { i32::from(params.nice) };
    let mut raw = [0u8; ATTR_BYTES];
    let mut put = |at: usize, value: u32| raw[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0, ATTR_BYTES as u32);
    put(4, params.policy as u32);
    put(8, if thread.sched.reset_on_fork.get() { linux::SCHED_FLAG_RESET_ON_FORK } else { 0 });
    put(16, nice.cast_unsigned());
    put(20, u32::from(params.priority));
    user::write_bytes(args.addr(1), &raw)?;
    Ok(0)
}

fn priority_range(args: Args) -> Result<(u64, u64)> {
    match args.u32(0) {
        linux::SCHED_FIFO | linux::SCHED_RR => Ok((1, 99)),
        linux::SCHED_NORMAL | linux::SCHED_BATCH | linux::SCHED_IDLE | linux::SCHED_DEADLINE => Ok((0, 0)),
        _ => Err(Errno::EINVAL),
    }
}

fn sys_priority_max(args: Args) -> Result<u64> {
    priority_range(args).map(|range| range.1)
}

fn sys_priority_min(args: Args) -> Result<u64> {
    priority_range(args).map(|range| range.0)
}

fn sys_rr_interval(args: Args) -> Result<u64> {
    let thread = thread_of(args.i32(0))?;
    let ns = match thread.sched.params().policy {
        Policy::RoundRobin => RR_SLICE_NS,
        Policy::Fifo => 0,
        _ => MIN_SLICE_NS,
    };
    user::write(args.addr(1), &[0i64, ns as i64])?;
    Ok(0)
}

fn sys_setaffinity(args: Args) -> Result<u64> {
    let bytes = args.u32(1);
    let first: u8 = if bytes == 0 { 0 } else { user::read(args.addr(2))? };
    let thread = find_thread(args.i32(0))?;
    if !owns(&current(), &thread) && !current().creds().has(linux::CAP_SYS_NICE) {
        return Err(Errno::EPERM);
    }
    // The one processor has to be among them.
    if first & 1 == 0 { Err(Errno::EINVAL) } else { Ok(0) }
}

fn sys_getaffinity(args: Args) -> Result<u64> {
    let bytes = args.u32(1);
    if bytes == 0 || !bytes.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    find_thread(args.i32(0))?;
    user::write(args.addr(2), &1u64)?;
    Ok(8)
}

fn sys_getcpu(args: Args) -> Result<u64> {
    for n in 0..2 {
        if !args.addr(n).is_null() {
            user::write(args.addr(n), &0u32)?;
        }
    }
    Ok(0)
}

/// The threads that `which` and `who` of getpriority(2) mean.
pub(super) fn threads_of(which: u32, who: i32) -> Result<Vec<Rc<Thread>>> {
    let id = u32::try_from(who).map_err(|_| Errno::ESRCH)?;
    let all = || pid::processes().into_iter().flat_map(|process| process.threads());
    let threads: Vec<_> = match which {
        linux::PRIO_PROCESS => [find_thread(who)?].into(),
        linux::PRIO_PGRP => {
            let group = if id == 0 { current().process.group() } else { pid::group(id).ok_or(Errno::ESRCH)? };
            group.members().into_iter().flat_map(|process| process.threads()).collect()
        }
        linux::PRIO_USER => {
            let uid = if id == 0 { current().creds().uid } else { id };
            all().filter(|thread| thread.creds().uid == uid).collect()
        }
        _ => return Err(Errno::EINVAL),
    };
    if threads.is_empty() { Err(Errno::ESRCH) } else { Ok(threads) }
}

fn sys_getpriority(args: Args) -> Result<u64> {
    let threads = threads_of(args.u32(0), args.i32(1))?;
    let least = threads.iter().map(|thread| thread.sched.params().nice).min().unwrap_or(0);
    // 40 to 1, so that it can't be taken for an error.
    Ok((20 - i64::from(least)) as u64)
}

fn sys_setpriority(args: Args) -> Result<u64> {
    let nice = args.i32(2).clamp(-20, 19) as i8;
    let me = current();
    let powerful = me.creds().has(linux::CAP_SYS_NICE);
    let mut result = Ok(0);
    for thread in threads_of(args.u32(0), args.i32(1))? {
        let params = thread.sched.params();
        if !powerful && !owns(&me, &thread) {
            result = Err(Errno::EPERM);
        } else if !powerful && nice < params.nice && !may_be_nice(&thread, nice) {
            result = Err(Errno::EACCES);
        } else {
            sched::set_params(&thread, Params { nice, ..params });
        }
    }
    result
}

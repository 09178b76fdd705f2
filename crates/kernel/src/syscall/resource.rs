//! Limits and what has been used: getrlimit(2), getrusage(2), times(2), sysinfo(2).

use super::process::{find_thread, write_rusage, write_words};
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::mm::addr::UserAddr;
use crate::mm::{frame, user};
use crate::task::cpu_limit::CpuLimit;
use crate::task::exit::CLOCK_TICK_NS;
use crate::task::limits::{Limit, Resource};
use crate::task::process::Process;
use crate::task::usage::Usage;
use crate::task::{current, loadavg, pid, sched};
use crate::time;
use alloc::rc::Rc;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_getrlimit as u16, "getrlimit", sys_getrlimit, &[Arg::Resource, Arg::Out(&Arg::Rlimit)]),
    Syscall::full(linux::__NR_setrlimit as u16, "setrlimit", sys_setrlimit, &[Arg::Resource, Arg::Rlimit]),
    Syscall::full(
        linux::__NR_prlimit64 as u16,
        "prlimit64",
        sys_prlimit,
        &[Arg::Pid, Arg::Resource, Arg::Rlimit, Arg::Out(&Arg::Rlimit)],
    ),
    Syscall::full(linux::__NR_getrusage as u16, "getrusage", sys_getrusage, &[Arg::RusageWho, Arg::Out(&Arg::Rusage)]),
    Syscall::full(linux::__NR_times as u16, "times", sys_times, &[Arg::Ptr]),
    Syscall::full(linux::__NR_sysinfo as u16, "sysinfo", sys_sysinfo, &[Arg::Ptr]),
];

/// The largest RLIMIT_NOFILE (fs.nr_open).
const MAX_OPEN_FILES: u64 = crate::fs::fdtable::MAX_DESCRIPTORS as u64;

fn read_limit(at: UserAddr) -> Result<Limit> {
    let [soft, hard] = user::read::<[u64; 2]>(at)?;
    Ok(Limit { soft, hard })
}

fn write_limit(at: UserAddr, limit: Limit) -> Result<()> {
    user::write(at, &[limit.soft, limit.hard])
}

fn sys_getrlimit(args: Args) -> Result<u64> {
    let limit = current().process.limits(Resource::try_from(args.u32(0))?);
    write_limit(args.addr(1), limit)?;
    Ok(0)
}

/// Whether a limit may be changed by `capable` callers or others.
fn check(resource: Resource, old: Limit, new: Limit, capable: bool) -> Result<()> {
    if new.soft > new.hard {
        return Err(Errno::EINVAL);
    }
    let too_many = resource == Resource::OpenFiles && new.hard > MAX_OPEN_FILES;
    if too_many || new.hard > old.hard && !capable { Err(Errno::EPERM) } else { Ok(()) }
}

fn set(process: &Rc<Process>, resource: Resource, new: Limit) {
    if resource == Resource::Cpu {
        // As on Linux, no time at all is a second.
        process.set_limits(resource, Limit { soft: new.soft.max(1), ..new });
        CpuLimit::watch(process);
    } else {
        process.set_limits(resource, new);
    }
}

fn sys_setrlimit(args: Args) -> Result<u64> {
    let resource = Resource::try_from(args.u32(0))?;
    let new = read_limit(args.addr(1))?;
    let me = current();
    check(resource, me.process.limits(resource), new, me.creds().has(linux::CAP_SYS_RESOURCE))?;
    set(&me.process, resource, new);
    Ok(0)
}

fn sys_prlimit(args: Args) -> Result<u64> {
    let resource = Resource::try_from(args.u32(1))?;
    let (new_at, old_at) = (args.addr(2), args.addr(3));
    let new = if new_at.is_null() { None } else { Some(read_limit(new_at)?) };
    let (me, thread) = (current(), find_thread(args.i32(0))?);
    let (mine, theirs) = (me.creds(), thread.creds());
    let capable = mine.has(linux::CAP_SYS_RESOURCE);
    let same = [theirs.uid, theirs.euid, theirs.suid].iter().all(|id| *id == mine.uid)
        && [theirs.gid, theirs.egid, theirs.sgid].iter().all(|id| *id == mine.gid);
    if !Rc::ptr_eq(&me, &thread) && !same && !capable {
        return Err(Errno::EPERM);
    }
    let process = &thread.process;
    let old = process.limits(resource);
    if let Some(new) = new {
        check(resource, old, new, capable)?;
        set(process, resource, new);
    }
    if !old_at.is_null() {
        write_limit(old_at, old)?;
    }
    Ok(0)
}

fn sys_getrusage(args: Args) -> Result<u64> {
    sched::account();
    let me = current();
    let usage = match args.i32(0) {
        0 => Usage::of_process(&me.process),
        linux::RUSAGE_CHILDREN => me.process.children_usage(),
        1 => Usage::of_thread(&me),
        _ => return Err(Errno::EINVAL),
    };
    write_rusage(args.addr(1), &usage)?;
    Ok(0)
}

fn sys_times(args: Args) -> Result<u64> {
    sched::account();
    let me = current();
    let (own, children) = (Usage::of_process(&me.process), me.process.children_usage());
    if !args.addr(0).is_null() {
        let ticks = [own.user_ns, own.system_ns, children.user_ns, children.system_ns].map(|ns| ns / CLOCK_TICK_NS);
        write_words(args.addr(0), &ticks.map(|ticks| ticks as i64))?;
    }
    Ok(time::boottime_ns() / CLOCK_TICK_NS)
}

fn sys_sysinfo(args: Args) -> Result<u64> {
    let usage = frame::usage();
    // The structure's loads have 16 fraction bits.
    let loads = loadavg::current().map(|load| i64::from(load) << (16 - loadavg::FRACTION_BITS));
    let uptime = time::boottime_ns().div_ceil(1_000_000_000) as i64;
    let processes = pid::thread_count().min(usize::from(u16::MAX)) as i64;
    let mut words = [0i64; 14];
    words[0] = uptime;
    words[1..4].copy_from_slice(&loads);
    words[4] = usage.limit_bytes as i64;
    words[5] = usage.free_bytes() as i64;
    words[6] = usage.shared_bytes as i64;
    words[10] = processes;
    words[13] = 1;
    write_words(args.addr(0), &words)?;
    Ok(0)
}

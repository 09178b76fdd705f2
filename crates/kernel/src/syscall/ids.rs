//! Ids of processes, users and groups, and capabilities: credentials(7), capabilities(7).

use super::process::find_thread;
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::mm::addr::UserAddr;
use crate::mm::user;
#[cfg(not(feature = "hosted"))]
use crate::snapshot::process_number;
use crate::task::creds::{Credentials, Kind, MAX_GROUPS};
use crate::task::process::Process;
use crate::task::{current, pid, session};
use alloc::rc::Rc;
use alloc::vec::Vec;
use linux_raw_sys::general as linux;

/// Hosted there are no snapshots.
#[cfg(feature = "hosted")]
fn process_number() -> u32 {
    current().process.pid()
}

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_getpid as u16, "getpid", |_| Ok(u64::from(process_number())), &[]),
    Syscall::full(linux::__NR_gettid as u16, "gettid", |_| Ok(u64::from(current().tid())), &[]),
    Syscall::full(linux::__NR_getppid as u16, "getppid", sys_getppid, &[]),
    Syscall::full(linux::__NR_getpgrp as u16, "getpgrp", |_| Ok(u64::from(current().process.group().pgid())), &[]),
    Syscall::full(linux::__NR_getpgid as u16, "getpgid", sys_getpgid, &[Arg::Pid]),
    Syscall::full(linux::__NR_getsid as u16, "getsid", sys_getsid, &[Arg::Pid]),
    Syscall::full(linux::__NR_setpgid as u16, "setpgid", sys_setpgid, &[Arg::Pid, Arg::Pid]),
    Syscall::full(linux::__NR_setsid as u16, "setsid", |_| session::set_sid(&current().process).map(u64::from), &[]),
    Syscall::full(linux::__NR_getuid as u16, "getuid", |_| Ok(u64::from(current().creds().uid)), &[]),
    Syscall::full(linux::__NR_geteuid as u16, "geteuid", |_| Ok(u64::from(current().creds().euid)), &[]),
    Syscall::full(linux::__NR_getgid as u16, "getgid", |_| Ok(u64::from(current().creds().gid)), &[]),
    Syscall::full(linux::__NR_getegid as u16, "getegid", |_| Ok(u64::from(current().creds().egid)), &[]),
    Syscall::full(
        linux::__NR_getresuid as u16,
        "getresuid",
        |args| get_all(args, Kind::User),
        &[Arg::Out(&Arg::IntAt), Arg::Out(&Arg::IntAt), Arg::Out(&Arg::IntAt)],
    ),
    Syscall::full(
        linux::__NR_getresgid as u16,
        "getresgid",
        |args| get_all(args, Kind::Group),
        &[Arg::Out(&Arg::IntAt), Arg::Out(&Arg::IntAt), Arg::Out(&Arg::IntAt)],
    ),
    Syscall::full(linux::__NR_setuid as u16, "setuid", |args| set_id(args, Kind::User), &[Arg::Uid]),
    Syscall::full(linux::__NR_setgid as u16, "setgid", |args| set_id(args, Kind::Group), &[Arg::Uid]),
    Syscall::full(linux::__NR_setreuid as u16, "setreuid", |args| set_two(args, Kind::User), &[Arg::Uid, Arg::Uid]),
    Syscall::full(linux::__NR_setregid as u16, "setregid", |args| set_two(args, Kind::Group), &[Arg::Uid, Arg::Uid]),
    Syscall::full(
        linux::__NR_setresuid as u16,
        "setresuid",
        |args| set_all(args, Kind::User),
        &[Arg::Uid, Arg::Uid, Arg::Uid],
    ),
    Syscall::full(
        linux::__NR_setresgid as u16,
        "setresgid",
        |args| set_all(args, Kind::Group),
        &[Arg::Uid, Arg::Uid, Arg::Uid],
    ),
    Syscall::full(linux::__NR_setfsuid as u16, "setfsuid", |args| Ok(set_fs(args, Kind::User)), &[Arg::Uid]),
    Syscall::full(linux::__NR_setfsgid as u16, "setfsgid", |args| Ok(set_fs(args, Kind::Group)), &[Arg::Uid]),
    Syscall::full(linux::__NR_getgroups as u16, "getgroups", sys_getgroups, &[Arg::Int, Arg::Ptr]),
    Syscall::full(linux::__NR_setgroups as u16, "setgroups", sys_setgroups, &[Arg::Int, Arg::Ptr]),
    Syscall::full(linux::__NR_capget as u16, "capget", sys_capget, &[Arg::Ptr, Arg::Ptr]),
    Syscall::full(linux::__NR_capset as u16, "capset", sys_capset, &[Arg::Ptr, Arg::Ptr]),
];

fn sys_getppid(_: Args) -> Result<u64> {
    Ok(current().process.parent().map_or(0, |parent| u64::from(parent.pid())))
}

/// A process by the id of any of its threads; 0 is the caller's.
fn process_of(id: i32) -> Result<Rc<Process>> {
    match u32::try_from(id) {
        Ok(0) => Ok(Rc::clone(&current().process)),
        // Zombies have groups, too.
        Ok(id) => pid::process(id).or_else(|| Some(Rc::clone(&pid::thread(id)?.process))).ok_or(Errno::ESRCH),
        Err(_) => Err(Errno::ESRCH),
    }
}

fn sys_getpgid(args: Args) -> Result<u64> {
    Ok(u64::from(process_of(args.i32(0))?.group().pgid()))
}

fn sys_getsid(args: Args) -> Result<u64> {
    Ok(u64::from(process_of(args.i32(0))?.group().session().sid()))
}

fn sys_setpgid(args: Args) -> Result<u64> {
    let (pid, pgid) = (args.i32(0), args.i32(1));
    if pgid < 0 || pgid == 0 && pid < 0 {
        return Err(Errno::EINVAL);
    }
    let (pid, pgid) = (u32::try_from(pid).map_err(|_| Errno::ESRCH)?, pgid.cast_unsigned());
    session::set_pgid(&current().process, pid, pgid)?;
    Ok(0)
}

/// Makes `new` the current thread's credentials.
pub(super) fn apply(new: Credentials) {
    let me = current();
    if new.differs_for_dump(&me.creds()) {
        me.process.dumpable.set(false);
        me.parent_death_signal.set(None);
    }
    me.set_creds(new);
}

fn get_all(args: Args, kind: Kind) -> Result<u64> {
    for (n, id) in current().creds().ids(kind).iter().enumerate() {
        user::write(args.addr(n), id)?;
    }
    Ok(0)
}

/// -1 stands for "leave it".
fn optional(id: u32) -> Option<u32> {
    (id != u32::MAX).then_some(id)
}

fn set_id(args: Args, kind: Kind) -> Result<u64> {
    let id = optional(args.u32(0)).ok_or(Errno::EINVAL)?;
    apply(current().creds().set_id(kind, id)?);
    Ok(0)
}

fn set_two(args: Args, kind: Kind) -> Result<u64> {
    apply(current().creds().set_real_effective(kind, optional(args.u32(0)), optional(args.u32(1)))?);
    Ok(0)
}

fn set_all(args: Args, kind: Kind) -> Result<u64> {
    apply(current().creds().set_all_ids(kind, [0, 1, 2].map(|n| optional(args.u32(n))))?);
    Ok(0)
}

/// Gives the old id, whether or not it was changed.
fn set_fs(args: Args, kind: Kind) -> u64 {
    let creds = current().creds();
    let old = if kind == Kind::User { creds.fsuid } else { creds.fsgid };
    if let Some(new) = optional(args.u32(0)).and_then(|id| creds.set_file_system_id(kind, id)) {
        apply(new);
    }
    u64::from(old)
}

fn sys_getgroups(args: Args) -> Result<u64> {
    let creds = current().creds();
    let room = usize::try_from(args.i32(0)).map_err(|_| Errno::EINVAL)?;
    let count = creds.groups.len();
    if room != 0 {
        if count > room {
            return Err(Errno::EINVAL);
        }
        for (n, group) in creds.groups.iter().enumerate() {
            user::write(args.addr(1).offset(4 * n as u64), group)?;
        }
    }
    Ok(count as u64)
}

fn sys_setgroups(args: Args) -> Result<u64> {
    let creds = current().creds();
    if !creds.has(linux::CAP_SETGID) {
        return Err(Errno::EPERM);
    }
    let count = usize::try_from(args.i32(0)).ok().filter(|count| *count <= MAX_GROUPS).ok_or(Errno::EINVAL)?;
    let mut groups = Vec::with_capacity(count);
    for n in 0..count {
        groups.push(optional(user::read(args.addr(1).offset(4 * n as u64))?).ok_or(Errno::EINVAL)?);
    }
    groups.sort_unstable();
    apply(Credentials { groups, ..(*creds).clone() });
    Ok(0)
}

/// How many 32-bit words a set has in the caller's version; a version that is not known is answered with the newest.
fn capability_words(header: UserAddr) -> Result<Option<usize>> {
    match user::read::<u32>(header)? {
        linux::_LINUX_CAPABILITY_VERSION_1 => Ok(Some(1)),
        linux::_LINUX_CAPABILITY_VERSION_2 | linux::_LINUX_CAPABILITY_VERSION_3 => Ok(Some(2)),
        _ => {
            user::write(header, &linux::_LINUX_CAPABILITY_VERSION_3)?;
            Ok(None)
        }
    }
}

fn sys_capget(args: Args) -> Result<u64> {
    let (header, data) = (args.addr(0), args.addr(1));
    let words = capability_words(header)?;
    // Asking for the version only is no error.
    let Some(words) = words else { return if data.is_null() { Ok(0) } else { Err(Errno::EINVAL) } };
    let pid = user::read::<i32>(header.offset(4))?;
    if pid < 0 {
        return Err(Errno::EINVAL);
    }
    let creds = find_thread(pid)?.creds();
    if data.is_null() {
        return Ok(0);
    }
    for n in 0..words {
        let word = |set: u64| (set >> (32 * n)) as u32;
        let fields = [word(creds.effective), word(creds.permitted), word(creds.inheritable)];
        for (field, value) in fields.iter().enumerate() {
            user::write(data.offset(12 * n as u64 + 4 * field as u64), value)?;
        }
    }
    Ok(0)
}

fn sys_capset(args: Args) -> Result<u64> {
    let (header, data) = (args.addr(0), args.addr(1));
    let words = capability_words(header)?.ok_or(Errno::EINVAL)?;
    let pid = user::read::<u32>(header.offset(4))?;
    let me = current();
    if pid != 0 && pid != me.tid() {
        return Err(Errno::EPERM);
    }
    let mut sets = [0u64; 3];
    for n in 0..words {
        for (field, set) in sets.iter_mut().enumerate() {
            let word: u32 = user::read(data.offset(12 * n as u64 + 4 * field as u64))?;
            *set |= u64::from(word) << (32 * n);
        }
    }
    let [effective, permitted, inheritable] = sets;
    apply(me.creds().set_capabilities(effective, permitted, inheritable)?);
    Ok(0)
}

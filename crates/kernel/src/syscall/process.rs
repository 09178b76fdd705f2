//! Making, ending and waiting for processes and threads: fork(2), clone(2), exit(2), wait4(2), pidfd_open(2).

use super::event::install;
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::fs::file::{OpenFile, OpenFlags};
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::fork::{self, CloneArgs, CloneFlags, fork_args};
use crate::task::signal::{CLD_TRAPPED, Signal};
use crate::task::status::WaitStatus;
use crate::task::thread::Thread;
use crate::task::usage::Usage;
use crate::task::wait_child::{self, Options, Which};
use crate::task::{current, exit, inspection, pid, pidfd};
use alloc::rc::Rc;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_fork as u16, "fork", sys_fork, &[]),
    Syscall::full(linux::__NR_vfork as u16, "vfork", sys_vfork, &[]),
    Syscall::partial(
        linux::__NR_clone as u16,
        "clone",
        "no namespaces (CLONE_NEW* gives EPERM)",
        sys_clone,
        &[Arg::CloneFlags, Arg::Ptr, Arg::Ptr, Arg::Ptr, Arg::Ptr],
    ),
    Syscall::partial(
        linux::__NR_clone3 as u16,
        "clone3",
        "no namespaces (CLONE_NEW* gives EPERM), no CLONE_INTO_CGROUP",
        sys_clone3,
        &[Arg::CloneArgs, Arg::Size],
    ),
    Syscall::full(linux::__NR_exit as u16, "exit", sys_exit, &[Arg::Int]),
    Syscall::full(linux::__NR_exit_group as u16, "exit_group", sys_exit_group, &[Arg::Int]),
    Syscall::full(
        linux::__NR_wait4 as u16,
        "wait4",
        sys_wait4,
        &[Arg::Pid, Arg::WaitStatus, Arg::WaitOptions, Arg::Out(&Arg::Rusage)],
    ),
    Syscall::full(
        linux::__NR_waitid as u16,
        "waitid",
        sys_waitid,
        &[Arg::WaitIdType, Arg::Pid, Arg::Out(&Arg::SigInfo), Arg::WaitOptions, Arg::Out(&Arg::Rusage)],
    ),
    Syscall::full(linux::__NR_set_tid_address as u16, "set_tid_address", sys_set_tid_address, &[Arg::Ptr]),
    Syscall::full(linux::__NR_set_robust_list as u16, "set_robust_list", sys_set_robust_list, &[Arg::Ptr, Arg::Size]),
    Syscall::full(
        linux::__NR_get_robust_list as u16,
        "get_robust_list",
        sys_get_robust_list,
        &[Arg::Pid, Arg::Out(&Arg::LongAt), Arg::Out(&Arg::LongAt)],
    ),
    Syscall::partial(
        linux::__NR_pidfd_open as u16,
        "pidfd_open",
        "no PIDFD_THREAD",
        sys_pidfd_open,
        &[Arg::Pid, Arg::Hex],
    ),
    Syscall::full(linux::__NR_pidfd_getfd as u16, "pidfd_getfd", sys_pidfd_getfd, &[Arg::Fd, Arg::Fd, Arg::Hex]),
    Syscall::partial(
        linux::__NR_kcmp as u16,
        "kcmp",
        "no KCMP_IO, KCMP_SYSVSEM, KCMP_EPOLL_TFD",
        sys_kcmp,
        &[Arg::Pid, Arg::Pid, Arg::Int, Arg::Size, Arg::Size],
    ),
];

fn sys_fork(_: Args) -> Result<u64> {
    fork::clone(&fork_args()).map(u64::from)
}

fn sys_vfork(_: Args) -> Result<u64> {
    fork::clone(&CloneArgs { flags: CloneFlags::VM | CloneFlags::VFORK, ..fork_args() }).map(u64::from)
}

fn sys_clone(args: Args) -> Result<u64> {
    let word = args.u64(0) & 0xffff_ffff;
    let exit_signal = word & u64::from(linux::CSIGNAL);
    // CSIGNAL covers CLONE_NEWTIME, and all other bits of the lower word mean something.
    let flags = CloneFlags::from_bits_truncate(word & !u64::from(linux::CSIGNAL));
    if flags.contains(CloneFlags::PIDFD | CloneFlags::PARENT_SETTID) {
        // Both would be stored at the same place.
        return Err(Errno::EINVAL);
    }
    fork::clone(&CloneArgs {
        flags,
        // As on Linux a number that is no signal is accepted and never sent.
        exit_signal: Signal::new(exit_signal as u32),
        stack: args.addr(1),
        tls: args.u64(4),
        parent_tid: args.addr(2),
        child_tid: args.addr(3),
        pidfd: args.addr(2),
        wanted_tid: 0,
    })
    .map(u64::from)
}

/// Reads a structure that may be larger or smaller than what is known (the kernel's copy_struct_from_user()).
///
/// # Errors
/// EINVAL if it is smaller than `min_bytes`, E2BIG if it is larger than a page or has something unknown set, EFAULT.
pub(super) fn read_extensible<const N: usize>(at: UserAddr, bytes: usize, min_bytes: usize) -> Result<[u8; N]> {
    if bytes < min_bytes {
        return Err(Errno::EINVAL);
    }
    if bytes > 4096 {
        return Err(Errno::E2BIG);
    }
    let mut known = [0; N];
    let len = bytes.min(N);
    user::read_bytes(at, &mut known[..len])?;
    for offset in N..bytes {
        if user::read::<u8>(at.offset(offset as u64))? != 0 {
            return Err(Errno::E2BIG);
        }
    }
    Ok(known)
}

fn sys_clone3(args: Args) -> Result<u64> {
    let raw: [u8; linux::CLONE_ARGS_SIZE_VER2 as usize] =
        read_extensible(args.addr(0), args.usize(1), linux::CLONE_ARGS_SIZE_VER0 as usize)?;
    let word = |n: usize| u64::from_le_bytes(core::array::from_fn(|i| raw[8 * n + i]));
    let [bits, pidfd, child_tid, parent_tid, exit_signal, stack, stack_bytes, tls, set_tid, set_tid_count, _] =
        core::array::from_fn(word);
    let flags = CloneFlags::from_bits(bits).ok_or(Errno::EINVAL)?;
    let creates_thread = flags.intersects(CloneFlags::THREAD | CloneFlags::PARENT);
    if flags.contains(CloneFlags::DETACHED)
        || exit_signal > 64
        || exit_signal != 0 && creates_thread
        || (stack == 0) != (stack_bytes == 0)
        || stack.checked_add(stack_bytes).is_none_or(|end| end > crate::mm::addr::USER_END)
        || set_tid_count > 1
        || (set_tid == 0) != (set_tid_count == 0)
    {
        return Err(Errno::EINVAL);
    }
    let wanted_tid = if set_tid_count == 0 { 0 } else { user::read::<i32>(UserAddr(set_tid))? };
    if set_tid_count == 1 && wanted_tid <= 0 {
        return Err(Errno::EINVAL);
    }
    fork::clone(&CloneArgs {
        flags,
        exit_signal: Signal::new(exit_signal as u32),
        stack: UserAddr(if stack == 0 { 0 } else { stack + stack_bytes }),
        tls,
        parent_tid: UserAddr(parent_tid),
        child_tid: UserAddr(child_tid),
        pidfd: UserAddr(pidfd),
        wanted_tid: wanted_tid.cast_unsigned(),
    })
    .map(u64::from)
}

fn sys_exit(args: Args) -> Result<u64> {
    exit::exit_thread(args.u32(0));
    Ok(0)
}

fn sys_exit_group(args: Args) -> Result<u64> {
    exit::exit_group(&current().process, WaitStatus::exited(args.u32(0)));
    Ok(0)
}

/// Stores a `struct rusage`.
pub(super) fn write_rusage(at: UserAddr, usage: &Usage) -> Result<()> {
    let (sec, usec) = (|ns: u64| (ns / 1_000_000_000) as i64, |ns: u64| (ns % 1_000_000_000 / 1000) as i64);
    let mut fields = [0i64; 18];
    fields[..5].copy_from_slice(&[
        sec(usage.user_ns),
        usec(usage.user_ns),
        sec(usage.system_ns),
        usec(usage.system_ns),
        usage.max_rss_kib as i64,
    ]);
    fields[8] = usage.faults as i64;
    fields[16] = usage.voluntary_switches as i64;
    fields[17] = usage.involuntary_switches as i64;
    write_words(at, &fields)
}

/// Stores consecutive 64-bit words.
pub(super) fn write_words(at: UserAddr, words: &[i64]) -> Result<()> {
    for (n, word) in words.iter().enumerate() {
        user::write(at.offset(8 * n as u64), word)?;
    }
    Ok(())
}

fn sys_wait4(args: Args) -> Result<u64> {
    let (wanted, bits) = (args.i32(0), args.u32(2));
    let allowed =
        Options::NOHANG | Options::STOPPED | Options::CONTINUED | Options::NOTHREAD | Options::CLONE | Options::ALL;
    let options = Options::from_bits(bits).filter(|o| allowed.contains(*o)).ok_or(Errno::EINVAL)?;
    let which = match wanted {
        -1 => Which::Any,
        0 => Which::Group(current().process.group().pgid()),
        i32::MIN => return Err(Errno::ESRCH),
        pgid if pgid < 0 => Which::Group(pgid.unsigned_abs()),
        pid => Which::Pid(pid.cast_unsigned()),
    };
    let Some(event) = wait_child::wait(&which, options | Options::EXITED)? else { return Ok(0) };
    if !args.addr(1).is_null() {
        user::write(args.addr(1), &event.status.0)?;
    }
    if !args.addr(3).is_null() {
        write_rusage(args.addr(3), &event.usage)?;
    }
    Ok(u64::from(event.pid))
}

fn sys_waitid(args: Args) -> Result<u64> {
    let (kind, id, info_at, bits) = (args.u32(0), args.i32(1), args.addr(2), args.u32(3));
    let mut options = Options::from_bits(bits).ok_or(Errno::EINVAL)?;
    if !options.intersects(Options::EXITED | Options::STOPPED | Options::CONTINUED) {
        return Err(Errno::EINVAL);
    }
    let mut would_block = false;
    let which = match kind {
        linux::P_ALL => Which::Any,
        linux::P_PID if id > 0 => Which::Pid(id.cast_unsigned()),
        linux::P_PGID if id == 0 => Which::Group(current().process.group().pgid()),
        linux::P_PGID if id > 0 => Which::Group(id.cast_unsigned()),
        linux::P_PIDFD if id >= 0 => {
            let file = current().files().opened(id)?;
            let process = pidfd::process_of(&file)?;
            if file.nonblocking() {
                would_block = !options.contains(Options::NOHANG);
                options |= Options::NOHANG;
            }
            Which::Process(process)
        }
        _ => return Err(Errno::EINVAL),
    };
    let event = wait_child::wait(&which, options)?;
    if event.is_none() && would_block {
        return Err(Errno::EAGAIN);
    }
    if let Some(event) = event
        && !args.addr(4).is_null()
    {
        write_rusage(args.addr(4), &event.usage)?;
    }
    if !info_at.is_null() {
        let (signo, code, pid, uid, status) = match event {
            Some(event) => {
                let (code, status) = event.status.code_and_status();
                let code = if event.trapped { CLD_TRAPPED } else { code };
                (linux::SIGCHLD as i32, code, event.pid, event.uid, status)
            }
            None => (0, 0, 0, 0, 0),
        };
        user::write(info_at, &[signo, 0])?;
        user::write(info_at.offset(8), &code)?;
        user::write(info_at.offset(16), &[pid, uid])?;
        user::write(info_at.offset(24), &status)?;
    }
    Ok(0)
}

fn sys_set_tid_address(args: Args) -> Result<u64> {
    let me = current();
    me.clear_child_tid.set(args.addr(0));
    Ok(u64::from(me.tid()))
}

/// Bytes of `struct robust_list_head`.
const ROBUST_LIST_HEAD_BYTES: u64 = 24;

fn sys_set_robust_list(args: Args) -> Result<u64> {
    if args.u64(1) != ROBUST_LIST_HEAD_BYTES {
        return Err(Errno::EINVAL);
    }
    current().robust_list.set(args.addr(0));
    Ok(0)
}

fn sys_get_robust_list(args: Args) -> Result<u64> {
    let thread = find_thread(args.i32(0))?;
    inspection::check(&thread)?;
    user::write(args.addr(2), &ROBUST_LIST_HEAD_BYTES)?;
    user::write(args.addr(1), &thread.robust_list.get().0)?;
    Ok(0)
}

/// A thread by id, 0 for the caller.
///
/// # Errors
/// ESRCH.
pub(super) fn find_thread(tid: i32) -> Result<Rc<Thread>> {
    match u32::try_from(tid) {
        Ok(0) => Ok(current()),
        Ok(tid) => pid::thread(tid).ok_or(Errno::ESRCH),
        Err(_) => Err(Errno::ESRCH),
    }
}

fn sys_pidfd_open(args: Args) -> Result<u64> {
    let flags = super::event::open_flags(args.u32(1), OpenFlags::NONBLOCK)?;
    let pid = u32::try_from(args.i32(0)).ok().filter(|pid| *pid != 0).ok_or(Errno::EINVAL)?;
    let Some(process) = pid::process(pid) else {
        // A thread that is not its process's first one can't be referred to.
        return Err(if pid::thread(pid).is_some() { Errno::ENOENT } else { Errno::ESRCH });
    };
    install(pidfd::open(&process, flags), OpenFlags::CLOEXEC)
}

fn sys_pidfd_getfd(args: Args) -> Result<u64> {
    if args.u32(2) != 0 {
        return Err(Errno::EINVAL);
    }
    let process = pidfd::process_of(&*current().files().opened(args.i32(0))?)?;
    let thread = process.any_thread().ok_or(Errno::ESRCH)?;
    inspection::check(&thread)?;
    let file = thread.try_files().ok_or(Errno::ESRCH)?.get(args.i32(1))?;
    install(file, OpenFlags::CLOEXEC)
}

fn sys_kcmp(args: Args) -> Result<u64> {
    /// Types of kcmp(2), which the constants at hand lack.
    const FILE: u32 = 0;
    const VM: u32 = 1;
    const FILES: u32 = 2;
    const FS: u32 = 3;
    const SIGHAND: u32 = 4;
    let threads = [find_thread(args.i32(0))?, find_thread(args.i32(1))?];
    for thread in &threads {
        inspection::check(thread)?;
    }
    let file = |thread: &Thread, fd: u64| -> Result<*const OpenFile> {
        let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
        Ok(Rc::as_ptr(&thread.try_files().ok_or(Errno::EBADF)?.get(fd)?))
    };
    let address = |n: usize, fd: u64| -> Result<usize> {
        let thread = &threads[n];
        Ok(match args.u32(2) {
            FILE => file(thread, fd)?.addr(),
            VM => thread.process.try_space().map_or(0, |space| Rc::as_ptr(&space).addr()),
            FILES => thread.try_files().map_or(0, |files| Rc::as_ptr(&files).addr()),
            FS => thread.try_fs().map_or(0, |fs| Rc::as_ptr(&fs).addr()),
            SIGHAND => Rc::as_ptr(&thread.process.signals.actions()).addr(),
            5..=7 => return Err(Errno::EOPNOTSUPP),
            _ => return Err(Errno::EINVAL),
        })
    };
    let (first, second) = (address(0, args.u64(3))?, address(1, args.u64(4))?);
    Ok(match first.cmp(&second) {
        core::cmp::Ordering::Equal => 0,
        core::cmp::Ordering::Less => 1,
        core::cmp::Ordering::Greater => 2,
    })
}

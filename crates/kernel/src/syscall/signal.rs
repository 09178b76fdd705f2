//! Signals: kill(2), sigaction(2), sigprocmask(2), sigaltstack(2) and their relatives.

use super::poll::{sigset, timespec_deadline};
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::fs::proc::process::process_of;
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::process::Process;
use crate::task::sched::{self, Sleep};
use crate::task::session::Group;
use crate::task::signal::{
    self, Action, ActionFlags, SI_TKILL, SI_USER, SIGINFO_BYTES, Signal, SignalInfo, SignalSet, USED_BYTES,
};
use crate::task::{current, pid, pidfd};
use alloc::rc::Rc;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_kill as u16, "kill", sys_kill, &[Arg::Pid, Arg::Signal]),
    Syscall::full(linux::__NR_tkill as u16, "tkill", sys_tkill, &[Arg::Pid, Arg::Signal]),
    Syscall::full(linux::__NR_tgkill as u16, "tgkill", sys_tgkill, &[Arg::Pid, Arg::Pid, Arg::Signal]),
    Syscall::full(
        linux::__NR_rt_sigqueueinfo as u16,
        "rt_sigqueueinfo",
        sys_rt_sigqueueinfo,
        &[Arg::Pid, Arg::Signal, Arg::SigInfo],
    ),
    Syscall::full(
        linux::__NR_rt_tgsigqueueinfo as u16,
        "rt_tgsigqueueinfo",
        sys_rt_tgsigqueueinfo,
        &[Arg::Pid, Arg::Pid, Arg::Signal, Arg::SigInfo],
    ),
    Syscall::full(
        linux::__NR_pidfd_send_signal as u16,
        "pidfd_send_signal",
        sys_pidfd_send_signal,
        &[Arg::Fd, Arg::Signal, Arg::SigInfo, Arg::Hex],
    ),
    Syscall::full(
        linux::__NR_rt_sigaction as u16,
        "rt_sigaction",
        sys_rt_sigaction,
        &[Arg::Signal, Arg::SigAction, Arg::Out(&Arg::SigAction), Arg::Size],
    ),
    Syscall::full(
        linux::__NR_rt_sigprocmask as u16,
        "rt_sigprocmask",
        sys_rt_sigprocmask,
        &[Arg::SigHow, Arg::SigSet, Arg::Out(&Arg::SigSet), Arg::Size],
    ),
    Syscall::full(
        linux::__NR_rt_sigpending as u16,
        "rt_sigpending",
        sys_rt_sigpending,
        &[Arg::Out(&Arg::SigSet), Arg::Size],
    ),
    Syscall::full(linux::__NR_rt_sigsuspend as u16, "rt_sigsuspend", sys_rt_sigsuspend, &[Arg::SigSet, Arg::Size]),
    Syscall::full(
        linux::__NR_rt_sigtimedwait as u16,
        "rt_sigtimedwait",
        sys_rt_sigtimedwait,
        &[Arg::SigSet, Arg::Out(&Arg::SigInfo), Arg::Timespec, Arg::Size],
    ),
    Syscall::full(linux::__NR_rt_sigreturn as u16, "rt_sigreturn", sys_rt_sigreturn, &[]),
    Syscall::full(
        linux::__NR_sigaltstack as u16,
        "sigaltstack",
        sys_sigaltstack,
        &[Arg::SigStack, Arg::Out(&Arg::SigStack)],
    ),
    Syscall::full(linux::__NR_pause as u16, "pause", sys_pause, &[]),
    Syscall::full(linux::__NR_restart_syscall as u16, "restart_syscall", sys_restart_syscall, &[]),
];

/// A signal number from a program: `None` for 0, which only checks.
fn signal_number(number: i32) -> Result<Option<Signal>> {
    match u32::try_from(number) {
        Ok(0) => Ok(None),
        Ok(number) => Signal::new(number).map(Some).ok_or(Errno::EINVAL),
        Err(_) => Err(Errno::EINVAL),
    }
}

fn check_permission(target: &Rc<Process>, signal: Option<Signal>) -> Result<()> {
    let me = current();
    if Rc::ptr_eq(&me.process, target) {
        return Ok(());
    }
    let same_session = Rc::ptr_eq(me.process.group().session(), target.group().session());
    let allowed = match target.any_thread() {
        Some(thread) => signal::may_send(&me.creds(), &thread.creds(), signal, same_session),
        None => {
            let mut theirs = (*me.creds()).clone();
            (theirs.uid, theirs.suid) = (target.uid(), target.uid());
            signal::may_send(&me.creds(), &theirs, signal, same_session)
        }
    };
    if allowed { Ok(()) } else { Err(Errno::EPERM) }
}

/// Sends to a process what `info` makes; a signal number of 0 only checks.
fn send(target: &Rc<Process>, number: i32, info: impl FnOnce(Signal) -> SignalInfo) -> Result<()> {
    let signal = signal_number(number)?;
    check_permission(target, signal)?;
    match signal {
        Some(signal) => signal::send_to_process(target, info(signal)),
        None => Ok(()),
    }
}

/// si_pid and si_uid are the sender's.
fn own_info(code: i32) -> impl Fn(Signal) -> SignalInfo {
    let me = current();
    move |signal| SignalInfo::process(signal, code, me.process.pid(), me.creds().uid)
}

fn send_to_group(group: &Group, number: i32, info: impl Fn(Signal) -> SignalInfo) -> Result<()> {
    let mut outcome = Err(Errno::ESRCH);
    for member in group.members() {
        let sent = send(&member, number, &info);
        if outcome.is_err() {
            outcome = sent;
        }
    }
    outcome
}

fn sys_kill(args: Args) -> Result<u64> {
    let (target, number) = (args.i32(0), args.i32(1));
    let info = own_info(SI_USER);
    match target {
        1.. => {
            let process = pid::process(target.cast_unsigned()).ok_or(Errno::ESRCH)?;
            send(&process, number, info)?;
        }
        0 => send_to_group(&current().process.group(), number, info)?,
        -1 => {
            let me = current().process.pid();
            let (mut any, mut outcome) = (false, Ok(()));
            for process in pid::processes() {
                if process.is_init() || process.pid() == me {
                    continue;
                }
                any = true;
                let sent = send(&process, number, &info);
                if sent != Err(Errno::EPERM) {
                    outcome = sent;
                }
            }
            if !any {
                return Err(Errno::ESRCH);
            }
            outcome?;
        }
        _ => {
            let pgid = target.checked_neg().ok_or(Errno::ESRCH)?.cast_unsigned();
            let group = pid::group(pgid).ok_or(Errno::ESRCH)?;
            send_to_group(&group, number, info)?;
        }
    }
    Ok(0)
}

fn send_to_thread(tgid: Option<i32>, tid: i32, number: i32, info: impl FnOnce(Signal) -> SignalInfo) -> Result<u64> {
    let thread = pid::thread(tid.cast_unsigned()).ok_or(Errno::ESRCH)?;
    if tgid.is_some_and(|tgid| tgid.cast_unsigned() != thread.process.pid()) {
        return Err(Errno::ESRCH);
    }
    let signal = signal_number(number)?;
    check_permission(&thread.process, signal)?;
    if let Some(signal) = signal {
        signal::send_to_thread(&thread, info(signal))?;
    }
    Ok(0)
}

fn sys_tkill(args: Args) -> Result<u64> {
    if args.i32(0) <= 0 {
        return Err(Errno::EINVAL);
    }
    send_to_thread(None, args.i32(0), args.i32(1), own_info(SI_TKILL))
}

fn sys_tgkill(args: Args) -> Result<u64> {
    if args.i32(0) <= 0 || args.i32(1) <= 0 {
        return Err(Errno::EINVAL);
    }
    send_to_thread(Some(args.i32(0)), args.i32(1), args.i32(2), own_info(SI_TKILL))
}

/// A siginfo from a program, for the process or thread `target`.
fn user_info(addr: UserAddr) -> Result<(i32, [u8; USED_BYTES])> {
    let mut bytes = [0; SIGINFO_BYTES];
    user::read_bytes(addr, &mut bytes)?;
    let code = i32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    // What lies behind the fields of an si_code that the kernel does not know would be lost.
    let known = code >= -7 || code == -60;
    if !known && bytes[USED_BYTES..].iter().any(|byte| *byte != 0) {
        return Err(Errno::E2BIG);
    }
    let mut used = [0; USED_BYTES];
    used.copy_from_slice(&bytes[..USED_BYTES]);
    Ok((code, used))
}

/// Nobody may pretend to be the kernel or kill(2), but towards itself.
fn check_pretence(code: i32, to_itself: bool) -> Result<()> {
    if (code >= 0 || code == SI_TKILL) && !to_itself { Err(Errno::EPERM) } else { Ok(()) }
}

fn sys_rt_sigqueueinfo(args: Args) -> Result<u64> {
    let (code, bytes) = user_info(args.addr(2))?;
    let target = args.i32(0);
    check_pretence(code, current().process.pid() == target.cast_unsigned())?;
    if target <= 0 {
        return Err(Errno::ESRCH);
    }
    let process = pid::process(target.cast_unsigned()).ok_or(Errno::ESRCH)?;
    send(&process, args.i32(1), |signal| SignalInfo::from_user(signal, &bytes))?;
    Ok(0)
}

fn sys_rt_tgsigqueueinfo(args: Args) -> Result<u64> {
    let (code, bytes) = user_info(args.addr(3))?;
    let (tgid, tid) = (args.i32(0), args.i32(1));
    if tgid <= 0 || tid <= 0 {
        return Err(Errno::EINVAL);
    }
    check_pretence(code, current().process.pid() == tgid.cast_unsigned())?;
    send_to_thread(Some(tgid), tid, args.i32(2), |signal| SignalInfo::from_user(signal, &bytes))
}

fn sys_pidfd_send_signal(args: Args) -> Result<u64> {
    /// Flags of pidfd_send_signal(2), which the constants at hand lack.
    const THREAD: u32 = 1;
    const THREAD_GROUP: u32 = 2;
    const PROCESS_GROUP: u32 = 4;
    let flags = args.u32(3);
    if flags & !(THREAD | THREAD_GROUP | PROCESS_GROUP) != 0 || flags.count_ones() > 1 {
        return Err(Errno::EINVAL);
    }
    let file = current().files().opened(args.i32(0))?;
    // A directory of /proc is as good: older than pidfd_open(2).
    let target = pidfd::process_of(&file).or_else(|_| process_of(&file))?;
    let number = args.i32(1);
    let given = if args.addr(2).is_null() { None } else { Some(user_info(args.addr(2))?) };
    if let Some((code, bytes)) = &given {
        if i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) != number {
            return Err(Errno::EINVAL);
        }
        check_pretence(*code, Rc::ptr_eq(&current().process, &target) && flags != PROCESS_GROUP)?;
    }
    let own = own_info(if flags == THREAD { SI_TKILL } else { SI_USER });
    let info = |signal| given.map_or_else(|| own(signal), |(_, bytes)| SignalInfo::from_user(signal, &bytes));
    if target.is_reaped() {
        return Err(Errno::ESRCH);
    }
    match flags {
        PROCESS_GROUP => send_to_group(&target.group(), number, info)?,
        THREAD => return send_to_thread(None, target.pid().cast_signed(), number, info),
        _ => send(&target, number, info)?,
    }
    Ok(0)
}

fn sys_rt_sigaction(args: Args) -> Result<u64> {
    if args.usize(3) != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    let new = if args.addr(1).is_null() { None } else { Some(user::read::<[u64; 4]>(args.addr(1))?) };
    let signal = signal_number(args.i32(0))?.ok_or(Errno::EINVAL)?;
    if new.is_some() && signal.is_kernel_only() {
        return Err(Errno::EINVAL);
    }
    let action = new.map(|[handler, flags, restorer, mask]| Action {
        handler,
        flags: ActionFlags::from_bits_truncate(flags),
        restorer,
        mask: SignalSet(mask).blockable(),
    });
    let old = signal::action_of(&current().process, signal, action);
    if !args.addr(2).is_null() {
        user::write(args.addr(2), &[old.handler, old.flags.bits(), old.restorer, old.mask.0])?;
    }
    Ok(0)
}

fn sys_rt_sigprocmask(args: Args) -> Result<u64> {
    let set = sigset(args.addr(1), args.usize(3))?;
    if args.usize(3) != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    let old = current().signals.blocked();
    if let Some(set) = set {
        signal::procmask(match args.u32(0) {
            linux::SIG_BLOCK => old | set,
            linux::SIG_UNBLOCK => old & !set,
            linux::SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL),
        });
    }
    if !args.addr(2).is_null() {
        user::write(args.addr(2), &old.0)?;
    }
    Ok(0)
}

fn sys_rt_sigpending(args: Args) -> Result<u64> {
    let size = args.usize(1);
    if size > size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    let me = current();
    let pending = (me.signals.own_pending() | me.process.signals.shared_pending()) & me.signals.blocked();
    user::write_bytes(args.addr(0), &pending.0.to_le_bytes()[..size])?;
    Ok(0)
}

fn sys_rt_sigsuspend(args: Args) -> Result<u64> {
    if args.usize(1) != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    signal::suspend(SignalSet(user::read(args.addr(0))?))
}

fn sys_rt_sigtimedwait(args: Args) -> Result<u64> {
    if args.usize(3) != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    let wanted = SignalSet(user::read(args.addr(0))?);
    let deadline = timespec_deadline(args.addr(2))?;
    let info = signal::wait_for(wanted, deadline)?;
    if !args.addr(1).is_null() {
        let mut bytes = [0; SIGINFO_BYTES];
        bytes[..USED_BYTES].copy_from_slice(&info.to_bytes());
        user::write_bytes(args.addr(1), &bytes)?;
    }
    Ok(u64::from(info.signal.number()))
}

fn sys_rt_sigreturn(_: Args) -> Result<u64> {
    signal::sigreturn();
    Ok(0)
}

fn sys_sigaltstack(args: Args) -> Result<u64> {
    let me = current();
    let (old, sp) = (me.signals.alt_stack(), me.state.regs().rsp);
    if !args.addr(0).is_null() {
        let [base, flags, size] = user::read::<[u64; 3]>(args.addr(0))?;
        let minimum = u64::from(linux::MINSIGSTKSZ);
        me.signals.set_alt_stack(old.changed(base, flags as u32, size, sp, minimum)?);
    }
    if !args.addr(1).is_null() {
        user::write(args.addr(1), &old.to_words(old.flags & signal::stack::SS_AUTODISARM | old.state(sp)))?;
    }
    Ok(0)
}

fn sys_pause(_: Args) -> Result<u64> {
    let _ = sched::wait_until(&[], None, Sleep::Interruptible, || None::<()>);
    Err(Errno::ERESTARTNOHAND)
}

fn sys_restart_syscall(_: Args) -> Result<u64> {
    signal::restart_call()
}

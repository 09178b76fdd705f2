//! Delivery: what happens to pending signals before a thread goes back to its program, and how interrupted system calls
//! start again (signal(7), "Interruption of system calls and library functions by signal handlers").

use super::action::{Action, ActionFlags, SIG_DFL, SIG_IGN};
use super::info::SignalInfo;
use super::number::{DefaultAction, SIGSEGV};
use super::state::{Restart, refresh, set_mask, take_next};
use super::{frame, job, send};
use crate::errno::{Errno, Result};
use crate::task::current;
use crate::task::exit;
use crate::task::ptrace;
use crate::task::status::WaitStatus;
use crate::task::thread::Thread;
use alloc::boxed::Box;
use alloc::rc::Rc;
use linux_raw_sys::general as linux;

/// Bytes of the `syscall` instruction.
const SYSCALL_BYTES: u64 = 2;

/// Whether [`deliver`] has something to do for the current thread: a signal, the thread's or the process's end, a stop, an
/// interrupted system call whose restart has to be decided, or a temporary mask to give back.
#[must_use]
pub fn work_pending() -> bool {
    let me = current();
    let signals = &me.signals;
    signals.attention.get() || signals.interrupted_call.get() || signals.saved.get().is_some() || me.dying()
}

/// The system call of `thread` gave an `ERESTART...` error.
pub fn note_interrupted_call(thread: &Thread) {
    thread.signals.interrupted_call.set(true);
}

/// A tracer has set the registers of `thread`: as on Linux they alone say whether a system call was interrupted.
pub fn note_registers(thread: &Thread) {
    let regs = thread.state.regs();
    let error = Errno(regs.rax.cast_signed().saturating_neg().try_into().unwrap_or(0));
    let restarts = matches!(
        error,
        Errno::ERESTARTSYS | Errno::ERESTARTNOINTR | Errno::ERESTARTNOHAND | Errno::ERESTART_RESTARTBLOCK
    );
    thread.signals.interrupted_call.set(restarts && regs.orig_rax.cast_signed() >= 0);
}

/// Says how restart_syscall(2) goes on with the current thread's call; the error for it to give.
#[must_use]
pub fn set_restart(restart: Restart) -> Errno {
    let before = current().signals.restart.replace(Some(restart));
    drop(before);
    Errno::ERESTART_RESTARTBLOCK
}

/// restart_syscall(2).
///
/// # Errors
/// EINTR where there is nothing to restart, and what the restarted call gives.
pub fn restart_call() -> Result<u64> {
    let restart: Option<Box<_>> = current().signals.restart.take();
    match restart {
        Some(restart) => restart(),
        None => Err(Errno::EINTR),
    }
}

/// Does what [`work_pending`] tells of, one step at a time: called until that is false. Does not return where the thread
/// ends; callers up the stack hold nothing that needs a drop.
pub fn deliver() {
    exit::leave_if_dying();
    let me = current();
    if me.signals.stop_due.get() && !ptrace::takes_over_stop(&me) {
        job::take_part(&me);
        return;
    }
    if ptrace::stop_if_due(&me) {
        return;
    }
    while let Some(info) = take_next(&me, !me.signals.blocked()) {
        refresh(&me);
        me.signals.stop_allowed.set(true);
        let Some(info) = ptrace::show_signal(&me, info) else { return };
        let action = me.process.signals.actions().get(info.signal);
        trace(&me, &info, &action);
        match action.handler {
            SIG_IGN => {}
            SIG_DFL => {
                if by_default(&me, &info) {
                    return;
                }
            }
            _ => {
                handle(&me, &info, &action);
                return;
            }
        }
    }
    refresh(&me);
    resume_call(&me, None);
    if let Some(mask) = me.signals.saved.take() {
        set_mask(&me, mask);
    }
}

/// The default action; whether the thread's state has changed so that delivery starts anew.
fn by_default(me: &Rc<Thread>, info: &SignalInfo) -> bool {
    let action = info.signal.default_action();
    if matches!(action, DefaultAction::Ignore | DefaultAction::Continue) {
        return false;
    }
    if action == DefaultAction::Stop {
        if !job::may_stop(&me.process, info.signal) || !me.signals.stop_allowed.get() {
            return false;
        }
        job::begin_stop(&me.process, info.signal);
    } else {
        // No core file is ever written, so none is reported.
        exit::exit_group(&me.process, WaitStatus::signaled(info.signal.number(), false));
    }
    true
}

/// Sets the handler up, and lets the interrupted call give EINTR or start again as the disposition says.
fn handle(me: &Rc<Thread>, info: &SignalInfo, action: &Action) {
    resume_call(me, Some(action));
    if action.flags.contains(ActionFlags::RESETHAND) {
        me.process.signals.actions().set(info.signal, Action { handler: SIG_DFL, ..*action });
    }
    let stepped = ptrace::end_step(me);
    let before = me.signals.own_mask();
    if frame::build(me, info, action, before).is_err() {
        // The stack is not there: SIGSEGV, whose own handler would need the same stack.
        let actions = me.process.signals.actions();
        if info.signal == SIGSEGV {
            actions.set(SIGSEGV, Action { handler: SIG_DFL, ..actions.get(SIGSEGV) });
        }
        send::force_info(me, SignalInfo::kernel(SIGSEGV));
        return;
    }
    me.signals.saved.set(None);
    let mut mask = me.signals.blocked() | action.mask;
    if !action.flags.contains(ActionFlags::NODEFER) {
        mask = mask.with(info.signal);
    }
    set_mask(me, mask);
    if stepped {
        ptrace::stepped_into_handler(me);
    }
}

/// Decides what becomes of an interrupted system call: `handler` is the disposition of the handler that runs first.
fn resume_call(me: &Thread, handler: Option<&Action>) {
    if !me.signals.interrupted_call.take() {
        return;
    }
    let mut regs = me.state.regs();
    let error = Errno((regs.rax.cast_signed().wrapping_neg()) as i32);
    let restart = match (error, handler) {
        (Errno::ERESTARTNOINTR, _) => true,
        (Errno::ERESTARTSYS, Some(action)) => action.flags.contains(ActionFlags::RESTART),
        (_, Some(_)) => false,
        (_, None) => true,
    };
    if restart {
        regs.rax =
            if error == Errno::ERESTART_RESTARTBLOCK { u64::from(linux::__NR_restart_syscall) } else { regs.orig_rax };
        regs.rip = regs.rip.wrapping_sub(SYSCALL_BYTES);
    } else {
        regs.rax = i64::from(-Errno::EINTR.0).cast_unsigned();
    }
    me.state.set_regs(&regs);
}

/// rt_sigreturn(2): takes registers, mask and alternate stack back from the frame that the handler leaves.
pub fn sigreturn() {
    let me = current();
    match frame::restore(&me) {
        Ok(restored) => {
            set_mask(&me, restored.mask);
            let (stack, sp) = (restored.stack, me.state.regs().rsp);
            let minimum = u64::from(linux::MINSIGSTKSZ);
            // As on Linux a frame whose stack was edited into an invalid one leaves the stack as it is.
            if let Ok(stack) = me.signals.alt_stack().changed(stack.base, stack.flags, stack.size, sp, minimum) {
                me.signals.set_alt_stack(stack);
            }
            me.state.replace_regs(&me.state.regs());
        }
        Err(_) => send::force_info(&me, SignalInfo::kernel(SIGSEGV)),
    }
}

/// A line of `--trace`, as strace shows signals.
fn trace(me: &Thread, info: &SignalInfo, action: &Action) {
    if !crate::syscall::dispatch::tracing() || action.ignores(info.signal) {
        return;
    }
    crate::syscall::trace::signal(me.tid(), info);
}

//! How tracing begins and ends.

use super::{Link, Options, step, zombie};
use crate::errno::{Errno, Result};
use crate::syscall::dispatch;
use crate::task::creds::Credentials;
use crate::task::process::Process;
use crate::task::sched::{self, Sleep};
use crate::task::signal::{self, SIGKILL, SIGSTOP, SignalInfo};
use crate::task::thread::Thread;
use crate::task::{current, inspection, pid};
use alloc::rc::Rc;
use linux_raw_sys::general::CAP_SYS_PTRACE;

fn link(tracee: &Rc<Thread>, tracer: &Rc<Thread>, seized: bool, options: Options) -> Rc<Link> {
    let link = Link::new(tracer, seized, options);
    *tracee.ptrace.link.borrow_mut() = Some(Rc::clone(&link));
    tracer.ptrace.tracees.borrow_mut().push(Rc::clone(tracee));
    dispatch::watch();
    link
}

/// Ends the tracing of a thread; it goes on, or takes part in the stop of its process.
pub(super) fn unlink(tracee: &Rc<Thread>) {
    step::end_step(tracee);
    let Some(link) = tracee.ptrace.link.take() else { return };
    dispatch::unwatch();
    if let Some(tracer) = link.tracer.upgrade() {
        tracer.ptrace.tracees.borrow_mut().retain(|thread| !Rc::ptr_eq(thread, tracee));
    }
    tracee.signals.stop_due.set(tracee.process.signals.stopping() && !tracee.dying());
    signal::refresh(tracee);
    tracee.interrupt();
}

/// PTRACE_TRACEME: the parent traces the current thread.
///
/// # Errors
/// EPERM if somebody traces it already, or the parent may not, or is init.
pub fn trace_me() -> Result<()> {
    let me = current();
    let parent = me.process.parent().filter(|parent| !parent.is_init()).ok_or(Errno::EPERM)?;
    let threads = parent.threads();
    let creator = threads.iter().find(|thread| thread.tid() == me.process.creator_tid.get());
    let tracer = creator.or(threads.first()).ok_or(Errno::EPERM)?;
    if me.ptrace.is_traced() || !may_be_traced_by(&me.creds(), &tracer.creds()) {
        return Err(Errno::EPERM);
    }
    link(&me, tracer, false, Options::empty());
    Ok(())
}

fn may_be_traced_by(mine: &Credentials, tracer: &Credentials) -> bool {
    mine.permitted & !tracer.permitted == 0 || tracer.has(CAP_SYS_PTRACE)
}

/// Whether execve(2) of the thread may give it privileges although it is traced.
pub(in crate::task) fn may_gain_privileges(thread: &Thread) -> bool {
    thread.ptrace.tracer().is_none_or(|tracer| tracer.creds().has(CAP_SYS_PTRACE))
}

/// The thread of another process with an id, not in the middle of execve(2).
fn settled(tid: u32) -> Result<Rc<Thread>> {
    loop {
        let Some(thread) = pid::thread(tid) else {
            return Err(if pid::process(tid).is_some() { Errno::EPERM } else { Errno::ESRCH });
        };
        let process = &thread.process;
        if Rc::ptr_eq(process, &current().process) || process.is_init() {
            return Err(Errno::EPERM);
        }
        if process.executing.get() == 0 {
            return Ok(thread);
        }
        let is_done = || (process.executing.get() == 0).then_some(());
        sched::wait_until(&[&process.own_events], None, Sleep::Interruptible, is_done)
            .map_err(|_| Errno::ERESTARTNOINTR)?;
    }
}

fn begin(tid: i32, seized: bool, options: Options) -> Result<()> {
    let me = current();
    let thread = settled(u32::try_from(tid).map_err(|_| Errno::ESRCH)?)?;
    inspection::check(&thread)?;
    if thread.ptrace.is_traced() {
        return Err(Errno::EPERM);
    }
    let link = link(&thread, &me, seized, options);
    if !seized {
        // A standard signal always finds room.
        let _ = signal::send_to_thread(&thread, SignalInfo::kernel(SIGSTOP));
    }
    if thread.signals.stopped() {
        // From its process's stop into one for the tracer, which may make requests as soon as this returns.
        link.trap.set(true);
        signal::refresh(&thread);
        thread.interrupt();
        let arrived = || (link.stop.get().is_some() || thread.dying() || !link.trap.get()).then_some(());
        let _ = sched::wait_until(&[&me.process.child_events], None, Sleep::Killable, arrived);
    }
    Ok(())
}

/// PTRACE_ATTACH.
///
/// # Errors
/// ESRCH if there is no such thread, EPERM if it may not be traced, or is.
pub fn attach(tid: i32) -> Result<()> {
    begin(tid, false, Options::empty())
}

/// PTRACE_SEIZE.
///
/// # Errors
/// As [`attach`]; EIO for unknown options.
pub fn seize(tid: i32, options: u64) -> Result<()> {
    let options = u32::try_from(options).ok().and_then(Options::from_bits).ok_or(Errno::EIO)?;
    begin(tid, true, options)
}

/// PTRACE_DETACH: the tracee goes on, with a signal if that is not 0.
///
/// # Errors
/// EIO for what is no signal.
pub fn detach(tracee: &Rc<Thread>, signal: u64) -> Result<()> {
    let code = super::control::signal_code(signal)?;
    super::link_of(tracee).change_stop(|stop| stop.code = code);
    unlink(tracee);
    Ok(())
}

/// A new thread is traced by its maker's tracer if that asked for it; it stops before its first instruction.
pub(in crate::task) fn inherit(thread: &Rc<Thread>, maker: &Thread) {
    let Some(theirs) = maker.ptrace.link() else { return };
    let Some(tracer) = theirs.tracer.upgrade() else { return };
    let link = link(thread, &tracer, theirs.seized, theirs.options.get());
    if link.seized {
        link.trap.set(true);
        signal::refresh(thread);
    } else {
        signal::add_pending(thread, SIGSTOP);
    }
}

/// A thread ends: those that it traces go on untraced, or are killed (PTRACE_O_EXITKILL).
pub(in crate::task) fn tracer_ends(tracer: &Rc<Thread>) {
    for tracee in tracer.ptrace.tracees.take() {
        let exit_kill = tracee.ptrace.link().is_some_and(|link| link.options.get().contains(Options::EXITKILL));
        if exit_kill {
            // The kernel's own always finds room.
            let _ = signal::send_to_thread(&tracee, SignalInfo::kernel(SIGKILL));
        }
        unlink(&tracee);
    }
    zombie::leave_to_parents(tracer);
}

/// Who a signal comes from that a tracer has put in place of another: process and user.
pub(super) fn sender(tracee: &Thread) -> (u32, u32) {
    match tracee.ptrace.tracer() {
        Some(tracer) => (tracer.tid(), tracer.creds().uid),
        None => tracee.process.parent().map_or((0, 0), |parent: Rc<Process>| (parent.pid(), parent.uid())),
    }
}

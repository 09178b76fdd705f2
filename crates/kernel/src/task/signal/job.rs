//! Stopping, continuing and ending whole processes, and what their parents are told of it (waitpid(2), SIGCHLD).

use super::action::{ActionFlags, SIG_IGN};
use super::info::{CLD_CONTINUED, CLD_STOPPED, SignalInfo};
use super::number::{SIGCHLD, SIGCONT, Signal};
use super::send::send_to_process;
use super::state::{JobReport, Stop, refresh};
use crate::task::exit::CLOCK_TICK_NS;
use crate::task::process::Process;
use crate::task::ptrace;
use crate::task::sched::{self, Sleep};
use crate::task::thread::Thread;
use crate::task::usage::Usage;
use crate::wait::Events;
use alloc::rc::Rc;

/// Begins a stop: every thread stops before it next returns to its program. A traced one may be running although its process
/// has stopped; it stops anew.
pub(super) fn begin_stop(process: &Rc<Process>, signal: Signal) {
    if process.is_exiting() {
        return;
    }
    if !matches!(process.signals.stop.get(), Stop::Stopped(_)) {
        process.signals.stop.set(Stop::Stopping(signal));
    }
    for thread in process.threads() {
        if thread.signals.stopped.get() || thread.dying() {
            continue;
        }
        thread.signals.stop_due.set(true);
        thread.signals.stop_signal.set(Some(signal));
        ptrace::note_job_change(&thread);
        refresh(&thread);
        thread.interrupt();
    }
}

/// The current thread's part in a stop; returns when the process goes on or ends, or when a tracer has come.
pub(super) fn take_part(me: &Rc<Thread>) {
    let process = &me.process;
    if participate(me) {
        tell_parent(process);
    }
    me.signals.stopped.set(true);
    refresh(me);
    // Killable: only the end of the thread interrupts it, and deliver() looks at that next.
    let _ = sched::wait_until(&[&process.signals.resumed], None, Sleep::Killable, || {
        (!me.signals.stopped.get() || me.ptrace.trap_due()).then_some(())
    });
    me.signals.stopped.set(false);
    refresh(me);
}

/// A thread stops with its process; whether it is the last one, so that the parent is to be told.
pub(in crate::task) fn participate(thread: &Thread) -> bool {
    thread.signals.stop_due.set(false);
    complete_stop(&thread.process)
}

fn complete_stop(process: &Process) -> bool {
    let Stop::Stopping(signal) = process.signals.stop.get() else { return false };
    if process.threads().iter().any(|thread| thread.signals.stop_due.get() && !thread.dying()) {
        return false;
    }
    process.signals.stop.set(Stop::Stopped(signal));
    process.signals.report.set(Some(JobReport::Stopped(signal)));
    true
}

/// A thread has left its process: the others may be all that a stop waited for, and signals meant for it need another.
pub fn thread_gone(thread: &Thread) {
    if complete_stop(&thread.process) {
        tell_parent(&thread.process);
    }
    super::state::retarget(thread, super::number::SignalSet::ALL);
}

/// SIGCONT was sent: a stopped process goes on, whatever it does with the signal itself.
pub(super) fn resume(process: &Rc<Process>) {
    let before = process.signals.stop.replace(Stop::Running);
    for thread in process.threads() {
        thread.signals.stop_due.set(false);
        thread.signals.stop_allowed.set(false);
        thread.signals.stopped.set(false);
        ptrace::note_job_change(&thread);
        refresh(&thread);
    }
    process.signals.resumed.wake_all(Events::IN);
    if let Stop::Stopped(_) = before {
        process.signals.report.set(Some(JobReport::Continued));
        tell_parent(process);
        ptrace::tell_continued(process);
    }
}

/// Tells the parent that the process has stopped or goes on.
pub(in crate::task) fn tell_parent(process: &Process) {
    let (Some(parent), Some(report)) = (process.parent(), process.signals.report.get()) else { return };
    let (code, status) = match report {
        JobReport::Stopped(signal) => (CLD_STOPPED, signal.number()),
        JobReport::Continued => (CLD_CONTINUED, SIGCONT.number()),
    };
    tell(&parent, process, process.pid(), code, status);
}

/// Tells `parent`, or a tracer, that `process` or the thread of it with the id `pid` has stopped or goes on.
pub(in crate::task) fn tell(parent: &Rc<Process>, process: &Process, pid: u32, code: i32, status: u32) {
    let action = parent.signals.actions().get(SIGCHLD);
    if action.handler != SIG_IGN && !action.flags.contains(ActionFlags::NOCLDSTOP) {
        // A standard signal from the kernel always finds room.
        let _ = send_to_process(parent, child_info(process, pid, code, status.cast_signed()));
    }
    parent.child_events.wake_all(Events::IN);
}

/// SIGCHLD's information about a process, or a thread of it by its id.
pub(in crate::task) fn child_info(process: &Process, pid: u32, code: i32, status: i32) -> SignalInfo {
    let used = Usage::of_process(process);
    let ticks = (used.user_ns / CLOCK_TICK_NS, used.system_ns / CLOCK_TICK_NS);
    SignalInfo::child(code, pid, process.uid(), status, ticks.0, ticks.1)
}

/// Whether a process wants no zombies of its children (SIG_IGN or SA_NOCLDWAIT).
pub(in crate::task) fn ignores_children(parent: &Process) -> bool {
    let action = parent.signals.actions().get(SIGCHLD);
    action.handler == SIG_IGN || action.flags.contains(ActionFlags::NOCLDWAIT)
}

/// Tells a parent of a child's end with `info` ([`SignalInfo::child`]). `signal` is what clone(2) named, SIGCHLD as a rule.
/// Returns whether the child is to be reaped at once because the parent does not care (SIG_IGN or SA_NOCLDWAIT).
pub fn child_exited(parent: &Rc<Process>, signal: Option<Signal>, info: SignalInfo) -> bool {
    let Some(signal) = signal else { return false };
    let unwanted = signal == SIGCHLD && ignores_children(parent);
    if !(signal == SIGCHLD && parent.signals.actions().get(SIGCHLD).handler == SIG_IGN) {
        // A standard signal from the kernel always finds room; a real-time one may be lost as on Linux.
        let _ = send_to_process(parent, info.with_signal(signal));
    }
    unwanted
}

/// Whether a stop signal other than SIGSTOP stops the process: not where nobody could continue it.
pub(super) fn may_stop(process: &Process, signal: Signal) -> bool {
    signal == super::number::SIGSTOP || !process.group().is_orphaned()
}

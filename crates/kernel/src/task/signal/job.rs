//! Stopping, continuing and ending whole processes, and what their parents are told of it (waitpid(2), SIGCHLD).

use super::action::{ActionFlags, SIG_IGN};
use super::info::{CLD_CONTINUED, CLD_STOPPED, SignalInfo};
use super::number::{SIGCHLD, SIGCONT, Signal};
use super::send::send_to_process;
use super::state::{JobReport, Stop, refresh};
use crate::task::exit::CLOCK_TICK_NS;
use crate::task::process::Process;
use crate::task::sched::{self, Sleep};
use crate::task::thread::Thread;
use crate::task::usage::Usage;
use crate::wait::Events;
use alloc::rc::Rc;

/// Begins a stop: every thread stops before it next returns to its program.
pub(super) fn begin_stop(process: &Rc<Process>, signal: Signal) {
    if process.signals.stop.get() != Stop::Running || process.is_exiting() {
        return;
    }
    process.signals.stop.set(Stop::Stopping(signal));
    for thread in process.threads() {
        refresh(&thread);
        thread.interrupt();
    }
}

/// The current thread's part in a stop; returns when the process goes on or ends.
pub(super) fn take_part(me: &Rc<Thread>) {
    let process = &me.process;
    me.signals.stopped.set(true);
    refresh(me);
    complete_stop(process);
    // Killable: only the end of the thread interrupts it, and deliver() looks at that next.
    let _ = sched::wait_until(&[&process.signals.resumed], None, Sleep::Killable, || {
        (process.signals.stop.get() == Stop::Running).then_some(())
    });
    me.signals.stopped.set(false);
    refresh(me);
}

fn complete_stop(process: &Rc<Process>) {
    let Stop::Stopping(signal) = process.signals.stop.get() else { return };
    if process.threads().iter().all(|thread| thread.signals.stopped.get() || thread.dying()) {
        process.signals.stop.set(Stop::Stopped(signal));
        continued_or_stopped(process, JobReport::Stopped(signal));
    }
}

/// A thread has left its process: the others may be all that a stop waited for, and signals meant for it need another.
pub fn thread_gone(thread: &Thread) {
    complete_stop(&thread.process);
    super::state::retarget(thread, super::number::SignalSet::ALL);
}

/// SIGCONT was sent: a stopped process goes on, whatever it does with the signal itself.
pub(super) fn resume(process: &Rc<Process>) {
    let before = process.signals.stop.replace(Stop::Running);
    if before == Stop::Running {
        return;
    }
    for thread in process.threads() {
        refresh(&thread);
    }
    process.signals.resumed.wake_all(Events::IN);
    if let Stop::Stopped(_) = before {
        continued_or_stopped(process, JobReport::Continued);
    }
}

/// Tells the parent that the process has stopped or goes on.
pub(super) fn continued_or_stopped(process: &Rc<Process>, report: JobReport) {
    process.signals.report.set(Some(report));
    let Some(parent) = process.parent() else { return };
    let action = parent.signals.actions().get(SIGCHLD);
    if action.handler != SIG_IGN && !action.flags.contains(ActionFlags::NOCLDSTOP) {
        let (code, status) = match report {
            JobReport::Stopped(signal) => (CLD_STOPPED, signal.number()),
            JobReport::Continued => (CLD_CONTINUED, SIGCONT.number()),
        };
        // A standard signal from the kernel always finds room.
        let _ = send_to_process(&parent, child_info(process, code, status.cast_signed()));
    }
    parent.child_events.wake_all(Events::IN);
}

/// SIGCHLD's information about a process.
fn child_info(process: &Rc<Process>, code: i32, status: i32) -> SignalInfo {
    let used = Usage::of_process(process);
    let ticks = (used.user_ns / CLOCK_TICK_NS, used.system_ns / CLOCK_TICK_NS);
    SignalInfo::child(code, process.pid(), process.uid(), status, ticks.0, ticks.1)
}

/// Tells a parent of a child's end with `info` ([`SignalInfo::child`]). `signal` is what clone(2) named, SIGCHLD as a rule.
/// Returns whether the child is to be reaped at once because the parent does not care (SIG_IGN or SA_NOCLDWAIT).
pub fn child_exited(parent: &Rc<Process>, signal: Option<Signal>, info: SignalInfo) -> bool {
    let Some(signal) = signal else { return false };
    let action = parent.signals.actions().get(SIGCHLD);
    let unwanted = signal == SIGCHLD && (action.handler == SIG_IGN || action.flags.contains(ActionFlags::NOCLDWAIT));
    if !(signal == SIGCHLD && action.handler == SIG_IGN) {
        // A standard signal from the kernel always finds room; a real-time one may be lost as on Linux.
        let _ = send_to_process(parent, info.with_signal(signal));
    }
    unwanted
}

/// Whether a stop signal other than SIGSTOP stops the process: not where nobody could continue it.
pub(super) fn may_stop(process: &Process, signal: Signal) -> bool {
    signal == super::number::SIGSTOP || !process.group().is_orphaned()
}

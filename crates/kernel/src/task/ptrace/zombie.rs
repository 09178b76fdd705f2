//! What a tracer learns by wait4(2): of stops, and of the end of each thread that it traces.
//!
//! A thread that has ended is gone; what its tracer has not been told yet is kept as a [`Zombie`] of the tracer's. The one
//! of a process's first thread is told when the whole process has ended, and before the parent is told of it.

use super::is_reparented;
use crate::task::process::Process;
use crate::task::signal::{self, JobReport, SIGCHLD};
use crate::task::status::WaitStatus;
use crate::task::thread::Thread;
use crate::task::usage::Usage;
use crate::task::wait_child::{ChildEvent, Options, Which};
use crate::task::{exit, pid};
use crate::wait::Events;
use alloc::rc::Rc;

/// A tracee that has ended.
#[derive(Clone)]
pub(super) struct Zombie {
    tid: u32,
    uid: u32,
    process: Rc<Process>,
    /// Of a thread that was not its process's first one.
    status: Option<WaitStatus>,
}

impl Zombie {
    /// What wait4(2) tells of it; nothing as long as other threads of its process live.
    fn status(&self) -> Option<WaitStatus> {
        let of_thread = self.status.map(|own| self.process.group_exit.get().unwrap_or(own));
        of_thread.or(self.process.ended())
    }
}

/// A thread that is about to be taken out of its process leaves something for its tracer to wait for. `status` is what it
/// gave to exit(2).
pub(in crate::task) fn leave_zombie(thread: &Rc<Thread>, status: WaitStatus) {
    let Some(tracer) = thread.ptrace.tracer() else { return };
    super::attach::unlink(thread);
    let process = Rc::clone(&thread.process);
    let leader = thread.is_leader();
    let status = (!leader).then_some(status);
    if leader {
        *process.claimant.borrow_mut() = Rc::downgrade(&tracer);
    } else {
        pid::keep(thread.tid());
    }
    tracer.ptrace.zombies.borrow_mut().push(Zombie {
        tid: thread.tid(),
        uid: thread.creds().uid,
        process: Rc::clone(&process),
        status,
    });
    if let Some(status) = status {
        tell_of(&tracer, &process, thread.tid(), process.group_exit.get().unwrap_or(status));
    }
}

/// Who is told of a process's end before its parent.
pub(in crate::task) fn claimant(process: &Process) -> Option<Rc<Thread>> {
    process.claimant.borrow().upgrade()
}

/// Tells a tracer that a process has ended, which it claims.
pub(in crate::task) fn tell_of_end(tracer: &Thread, process: &Process, status: WaitStatus) {
    tell_of(tracer, process, process.pid(), status);
}

fn tell_of(tracer: &Thread, process: &Process, tid: u32, status: WaitStatus) {
    let own_child = process.parent().is_some_and(|parent| Rc::ptr_eq(&parent, &tracer.process));
    let by = if own_child && tid == process.pid() { process.exit_signal() } else { Some(SIGCHLD) };
    let (code, value) = status.code_and_status();
    if let Some(by) = by {
        // A standard signal from the kernel always finds room; a real-time one may be lost as on Linux.
        let info = signal::child_info(process, tid, code, value).with_signal(by);
        let _ = signal::send_to_process(&tracer.process, info);
    }
    tracer.process.child_events.wake_all(Events::IN);
}

/// Another thread takes the place of a process's first one, which has ended, in execve(2): nobody hears of that.
pub(in crate::task) fn forget_leader(process: &Process) {
    let Some(tracer) = claimant(process) else { return };
    process.claimant.take();
    tracer.ptrace.zombies.borrow_mut().retain(|zombie| zombie.tid != process.pid());
    tracer.process.child_events.wake_all(Events::IN);
}

/// A tracer ends: what it has not been told of its tracees' end is their parents' affair now.
pub(super) fn leave_to_parents(tracer: &Thread) {
    for Zombie { tid, process, status, .. } in tracer.ptrace.zombies.take() {
        if status.is_some() {
            pid::release(tid);
        } else {
            process.claimant.take();
            pass_on(tracer, &process);
        }
    }
}

/// Leaves a process that may have ended to its parent.
fn pass_on(tracer: &Thread, process: &Rc<Process>) {
    let Some(parent) = process.parent().filter(|_| !process.is_alive()) else { return };
    if !Rc::ptr_eq(&parent, &tracer.process) {
        exit::announce(process);
    } else if signal::ignores_children(&parent) {
        exit::reap(&parent, process);
    }
}

/// What has happened to a tracee of a process, of those that `which` means: `any` says whether there are such.
pub(in crate::task) fn take_tracees_event(
    process: &Process,
    only_of: Option<u32>,
    which: &Which,
    options: Options,
    any: &mut bool,
) -> Option<ChildEvent> {
    process.threads().iter().filter(|tracer| only_of.is_none_or(|tid| tracer.tid() == tid)).find_map(|tracer| {
        let tracees = tracer.ptrace.tracees.borrow().clone();
        let stopped = tracees.iter().find_map(|tracee| {
            if !which.means(tracee.tid(), &tracee.process) {
                return None;
            }
            *any = true;
            take_stop(tracee, options).or_else(|| take_continuation(tracee, options))
        });
        stopped.or_else(|| take_zombie(tracer, which, options, any))
    })
}

fn take_stop(tracee: &Thread, options: Options) -> Option<ChildEvent> {
    let link = tracee.ptrace.link()?;
    let stop = link.stop.get().filter(|stop| stop.code != 0 && !stop.resumed && !stop.listening)?;
    if !options.contains(Options::NOWAIT) {
        link.change_stop(|stop| stop.code = 0);
    }
    Some(ChildEvent {
        pid: tracee.tid(),
        uid: tracee.creds().uid,
        status: WaitStatus::trapped(stop.code),
        usage: Usage::of_process(&tracee.process),
        trapped: true,
    })
}

/// That the tracee's process goes on: what its parent can be told, its tracer can be told instead.
fn take_continuation(tracee: &Thread, options: Options) -> Option<ChildEvent> {
    let signals = &tracee.process.signals;
    let wanted = tracee.is_leader() && is_reparented(tracee) && options.contains(Options::CONTINUED);
    if !wanted || signals.job_report() != Some(JobReport::Continued) {
        return None;
    }
    if !options.contains(Options::NOWAIT) {
        signals.clear_job_report();
    }
    Some(ChildEvent {
        pid: tracee.tid(),
        uid: tracee.creds().uid,
        status: WaitStatus::CONTINUED,
        usage: Usage::of_process(&tracee.process),
        trapped: false,
    })
}

fn take_zombie(tracer: &Thread, which: &Which, options: Options, any: &mut bool) -> Option<ChildEvent> {
    let zombies = tracer.ptrace.zombies.borrow().clone();
    let (at, status) = zombies.iter().enumerate().find_map(|(at, zombie)| {
        if !which.means(zombie.tid, &zombie.process) {
            return None;
        }
        *any = true;
        Some((at, zombie.status().filter(|_| options.contains(Options::EXITED))?))
    })?;
    let Zombie { tid, uid, process, status: of_thread } = zombies[at].clone();
    let usage = process.ended_usage().plus(&process.children_usage());
    let event = ChildEvent { pid: tid, uid, status, usage, trapped: false };
    if options.contains(Options::NOWAIT) {
        return Some(event);
    }
    drop(zombies);
    let gone = tracer.ptrace.zombies.borrow_mut().remove(at);
    drop(gone);
    if of_thread.is_some() {
        pid::release(tid);
        return Some(event);
    }
    process.claimant.take();
    match process.parent() {
        Some(parent) if Rc::ptr_eq(&parent, &tracer.process) => exit::reap_counted(&parent, &process),
        _ => exit::announce(&process),
    }
    Some(event)
}

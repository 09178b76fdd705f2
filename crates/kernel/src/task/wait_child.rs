//! Waiting for children (wait4(2), waitid(2)).

use super::process::Process;
use super::sched::{self, Sleep};
use super::signal::{JobReport, SIGCHLD};
use super::status::WaitStatus;
use super::usage::Usage;
use super::{current, exit, ptrace};
use crate::errno::{Errno, Result};
use alloc::rc::Rc;
use bitflags::bitflags;

bitflags! {
    /// Options of wait4(2) and waitid(2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Options: u32 {
        /// Do not block.
        const NOHANG = linux_raw_sys::general::WNOHANG;
        /// Children that have stopped (WUNTRACED).
        const STOPPED = linux_raw_sys::general::WSTOPPED;
        /// Children that have ended.
        const EXITED = linux_raw_sys::general::WEXITED;
        /// Children that have continued.
        const CONTINUED = linux_raw_sys::general::WCONTINUED;
        /// Leave the child as it is.
        const NOWAIT = linux_raw_sys::general::WNOWAIT;
        /// Only children of this thread.
        const NOTHREAD = linux_raw_sys::general::__WNOTHREAD;
        /// Children whatever their exit signal is.
        const ALL = linux_raw_sys::general::__WALL;
        /// Only children whose exit signal is not SIGCHLD.
        const CLONE = linux_raw_sys::general::__WCLONE;
    }
}

/// Which children.
pub enum Which {
    /// All.
    Any,
    /// The one with this pid.
    Pid(u32),
    /// Those in the process group with this id.
    Group(u32),
    /// This one.
    Process(Rc<Process>),
}

/// What happened to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildEvent {
    /// The child.
    pub pid: u32,
    /// Its real user.
    pub uid: u32,
    /// What happened.
    pub status: WaitStatus,
    /// What it and its waited-for children have used.
    pub usage: Usage,
    /// It is a tracee of the caller's that has stopped for it (CLD_TRAPPED).
    pub trapped: bool,
}

impl Which {
    /// Whether it means a process, or the thread of it with the id `tid`.
    pub(super) fn means(&self, tid: u32, process: &Rc<Process>) -> bool {
        match self {
            Which::Any => true,
            Which::Pid(pid) => tid == *pid,
            Which::Group(pgid) => process.group().pgid() == *pgid,
            Which::Process(wanted) => Rc::ptr_eq(process, wanted) && tid == process.pid(),
        }
    }
}

/// Waits for a change of a child of the current process. `None`: nothing yet, with [`Options::NOHANG`].
///
/// # Errors
/// ECHILD if there is no such child, ERESTARTSYS.
pub fn wait(which: &Which, options: Options) -> Result<Option<ChildEvent>> {
    let me = current();
    let process = &me.process;
    if options.contains(Options::NOHANG) {
        return look(process, me.tid(), which, options).unwrap_or(Ok(None));
    }
    sched::wait_until(&[&process.child_events], None, Sleep::Interruptible, || look(process, me.tid(), which, options))?
}

/// `None`: there are such children, but nothing has happened.
fn look(process: &Process, tid: u32, which: &Which, options: Options) -> Option<Result<Option<ChildEvent>>> {
    let mut any = false;
    for child in process.children() {
        if !matches(&child, tid, which, options) {
            continue;
        }
        any = true;
        if let Some(status) = child.ended() {
            // A tracer is told first.
            if options.contains(Options::EXITED) && ptrace::claimant(&child).is_none() {
                return Some(Ok(Some(take_zombie(process, &child, status, options))));
            }
            continue;
        }
        // Who traces its own child sees how that stops for its tracer, and not once more how it does for its parent.
        let options = if traces(process, &child) { options - Options::STOPPED } else { options };
        if let Some(event) = take_job_change(&child, options) {
            return Some(Ok(Some(event)));
        }
    }
    let only_of = options.contains(Options::NOTHREAD).then_some(tid);
    if let Some(event) = ptrace::take_tracees_event(process, only_of, which, options, &mut any) {
        return Some(Ok(Some(event)));
    }
    if any { None } else { Some(Err(Errno::ECHILD)) }
}

/// Whether a thread of `process` traces the first thread of `child`.
fn traces(process: &Process, child: &Process) -> bool {
    let leader = child.any_thread().filter(|thread| thread.is_leader());
    leader
        .and_then(|leader| leader.ptrace.tracer())
        .is_some_and(|tracer| core::ptr::eq(&raw const *tracer.process, process))
}

fn matches(child: &Rc<Process>, tid: u32, which: &Which, options: Options) -> bool {
    let right_one = which.means(child.pid(), child);
    let right_kind =
        options.contains(Options::ALL) || (child.exit_signal() != Some(SIGCHLD)) == options.contains(Options::CLONE);
    right_one && right_kind && (!options.contains(Options::NOTHREAD) || child.creator_tid.get() == tid)
}

fn take_zombie(process: &Process, child: &Rc<Process>, status: WaitStatus, options: Options) -> ChildEvent {
    let usage = child.ended_usage().plus(&child.children_usage());
    if !options.contains(Options::NOWAIT) {
        exit::reap_counted(process, child);
    }
    ChildEvent { pid: child.pid(), uid: child.uid(), status, usage, trapped: false }
}

fn take_job_change(child: &Process, options: Options) -> Option<ChildEvent> {
    let status = match child.signals.job_report()? {
        JobReport::Stopped(signal) if options.contains(Options::STOPPED) => WaitStatus::stopped(signal.number()),
        JobReport::Continued if options.contains(Options::CONTINUED) => WaitStatus::CONTINUED,
        _ => return None,
    };
    if !options.contains(Options::NOWAIT) {
        child.signals.clear_job_report();
    }
    Some(ChildEvent { pid: child.pid(), uid: child.uid(), status, usage: Usage::of_process(child), trapped: false })
}

//! Tracing of threads by others (ptrace(2)).
//!
//! A thread that is traced has a [`Link`] to its tracer. It stops in the kernel, on its own stack ([`stop`]): it sleeps until
//! the tracer lets it go on, detaches or ends, or until it is killed itself. While it sleeps its registers are what its next
//! return takes, so that is where the tracer reads and writes them.
//!
//! Names and rules are those of Linux's kernel/ptrace.c and kernel/signal.c as far as programs can see them.

mod attach;
mod call;
mod control;
mod event;
mod regset;
mod step;
mod stop;
#[cfg(test)]
mod tests;
mod user_area;
mod zombie;

pub use attach::{attach, detach, seize, trace_me};
pub use call::{CallInfo, call_begins, call_ends, call_info};
pub use control::{
    event_message, interrupt, kill, listen, resume, set_mask, set_options, set_signal_info, signal_info,
};
pub use regset::{REGISTER_SETS, RegisterSet};
pub use user_area::{USER_BYTES, peek_user, poke_user};

pub(super) use attach::{inherit, may_gain_privileges, tracer_ends};
pub(super) use event::{Event, executed, exits, fork_event, report};
pub(super) use step::{end_step, own_flags, stepped_into_handler};
pub(super) use stop::{note_job_change, show_signal, stop_if_due, takes_over_stop, tell_continued};
pub(super) use zombie::{claimant, forget_leader, leave_zombie, take_tracees_event, tell_of_end};

use super::signal::USED_BYTES;
use super::thread::Thread;
use super::{current, pid};
use crate::errno::{Errno, Result};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use linux_raw_sys::ptrace as linux;
use zombie::Zombie;

bitflags::bitflags! {
    /// PTRACE_SETOPTIONS.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Options: u32 {
        /// Stops at system calls have bit 7 set in their signal.
        const SYSGOOD = linux::PTRACE_O_TRACESYSGOOD;
        /// Stop at fork(2), and trace the child.
        const FORK = linux::PTRACE_O_TRACEFORK;
        /// The same for vfork(2).
        const VFORK = linux::PTRACE_O_TRACEVFORK;
        /// The same for clone(2) with another signal than SIGCHLD.
        const CLONE = linux::PTRACE_O_TRACECLONE;
        /// Stop at execve(2).
        const EXEC = linux::PTRACE_O_TRACEEXEC;
        /// Stop when the child of vfork(2) has let go of the memory.
        const VFORK_DONE = linux::PTRACE_O_TRACEVFORKDONE;
        /// Stop before the end.
        const EXIT = linux::PTRACE_O_TRACEEXIT;
        /// Kill the tracee when the tracer ends.
        const EXITKILL = linux::PTRACE_O_EXITKILL;
    }
}

/// What a stop is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A signal is about to be delivered.
    Signal,
    /// The process has stopped, or the tracer wanted a stop.
    Group,
    /// The thread is in a system call.
    Call,
    /// The thread is about to end.
    Exit,
    /// Something else happened.
    Event,
}

/// A stop of a tracee.
#[derive(Clone, Copy, Debug)]
struct Stop {
    kind: Kind,
    /// What wait4(2) shows in bits 8 and up; 0 once it has. Then what the tracer lets the thread go on with: a signal's
    /// number, or 0.
    code: u32,
    /// PTRACE_GETEVENTMSG.
    message: u64,
    /// PTRACE_GETSIGINFO: the bytes of the siginfo_t that carry anything.
    info: Option<[u8; USED_BYTES]>,
    /// PTRACE_LISTEN: the next event ends the stop, and nothing but that is told of it.
    listening: bool,
    /// The tracer lets it go on.
    resumed: bool,
}

/// That one thread traces another, until it detaches or one of them ends.
struct Link {
    tracer: Weak<Thread>,
    /// PTRACE_SEIZE rather than PTRACE_ATTACH or PTRACE_TRACEME.
    seized: bool,
    options: Cell<Options>,
    /// The thread stops at system calls.
    calls: Cell<bool>,
    /// The thread stops after each instruction.
    step: Cell<bool>,
    /// The trap flag in the registers is the tracer's and not the program's own.
    trap_flag: Cell<bool>,
    /// The thread is to stop (PTRACE_INTERRUPT, a stop of its process).
    trap: Cell<bool>,
    /// The same, since a stop of its process has begun or ended.
    notice: Cell<bool>,
    stop: Cell<Option<Stop>>,
    /// What was written to DR6.
    debug_status: Cell<u64>,
}

impl Link {
    fn new(tracer: &Rc<Thread>, seized: bool, options: Options) -> Rc<Self> {
        Rc::new(Self {
            tracer: Rc::downgrade(tracer),
            seized,
            options: Cell::new(options),
            calls: Cell::new(false),
            step: Cell::new(false),
            trap_flag: Cell::new(false),
            trap: Cell::new(false),
            notice: Cell::new(false),
            stop: Cell::new(None),
            debug_status: Cell::new(user_area::NO_DEBUG_STATUS),
        })
    }

    fn trap_due(&self) -> bool {
        self.trap.get() || self.notice.get()
    }

    fn change_stop(&self, change: impl FnOnce(&mut Stop)) {
        let mut stop = self.stop.get();
        if let Some(stop) = &mut stop {
            change(stop);
        }
        self.stop.set(stop);
    }
}

/// A thread's share: who traces it, and whom it traces.
#[derive(Default)]
pub struct Share {
    link: RefCell<Option<Rc<Link>>>,
    tracees: RefCell<Vec<Rc<Thread>>>,
    zombies: RefCell<Vec<Zombie>>,
    /// It was ending already when it was killed: the stop before its end waits for nobody.
    pub(super) killed_again: Cell<bool>,
}

impl Share {
    fn link(&self) -> Option<Rc<Link>> {
        self.link.borrow().clone()
    }

    /// Whether somebody traces the thread.
    #[must_use]
    pub fn is_traced(&self) -> bool {
        self.link.borrow().is_some()
    }

    /// Who traces the thread.
    #[must_use]
    pub fn tracer(&self) -> Option<Rc<Thread>> {
        self.link.borrow().as_ref()?.tracer.upgrade()
    }

    /// Whether the thread is stopped for its tracer.
    #[must_use]
    pub fn in_stop(&self) -> bool {
        self.link.borrow().as_ref().is_some_and(|link| link.stop.get().is_some_and(|stop| !stop.resumed))
    }

    /// Whether the thread is to stop for its tracer.
    #[must_use]
    pub fn trap_due(&self) -> bool {
        self.link.borrow().as_ref().is_some_and(|link| link.trap_due())
    }
}

/// A tracee of the current thread, stopped or not.
///
/// # Errors
/// ESRCH if it is none.
pub fn tracee(tid: i32) -> Result<Rc<Thread>> {
    let me = current();
    let thread = u32::try_from(tid).ok().and_then(pid::thread).ok_or(Errno::ESRCH)?;
    let mine = thread.ptrace.tracer().is_some_and(|tracer| Rc::ptr_eq(&tracer, &me));
    if mine { Ok(thread) } else { Err(Errno::ESRCH) }
}

/// A tracee of the current thread that is stopped for it, so that all requests may be made.
///
/// # Errors
/// ESRCH if it is none, or runs.
pub fn stopped_tracee(tid: i32) -> Result<Rc<Thread>> {
    let thread = tracee(tid)?;
    let stop = link_of(&thread).stop.get().filter(|stop| !stop.resumed && !stop.listening).ok_or(Errno::ESRCH)?;
    // One that was killed leaves its stop at once.
    if thread.dying() && stop.kind != Kind::Exit { Err(Errno::ESRCH) } else { Ok(thread) }
}

/// The link of a thread that [`tracee`] gave.
fn link_of(tracee: &Thread) -> Rc<Link> {
    tracee.ptrace.link().expect("a tracee has a tracer")
}

/// Whether the tracer is in another process than the tracee's parent.
fn is_reparented(tracee: &Thread) -> bool {
    let parent = tracee.process.parent();
    tracee.ptrace.tracer().is_some_and(|tracer| parent.is_none_or(|parent| !Rc::ptr_eq(&parent, &tracer.process)))
}

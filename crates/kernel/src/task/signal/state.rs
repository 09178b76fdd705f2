//! What threads and processes keep of signals.

use super::action::Actions;
use super::info::SignalInfo;
use super::number::{Signal, SignalSet};
use super::queue::Pending;
use super::stack::AltStack;
use crate::errno::Result;
use crate::task::thread::Thread;
use crate::wait::WaitQueue;
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};

/// How an interrupted call goes on after restart_syscall(2).
pub type Restart = Box<dyn FnOnce() -> Result<u64>>;

/// What the processor told of the last exception, for `struct sigcontext`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LastFault {
    /// Vector.
    pub vector: u64,
    /// Error code.
    pub error: u64,
    /// Address of the last page fault.
    pub cr2: u64,
}

/// A thread's share: mask, its own queue, alternate stack.
#[derive(Default)]
pub struct ThreadSignals {
    blocked: Cell<SignalSet>,
    /// What `blocked` becomes again when the call that changed it returns, or when the handler does.
    pub(super) saved: Cell<Option<SignalSet>>,
    /// What sigtimedwait(2) waits for, blocked or not.
    pub(super) awaited: Cell<SignalSet>,
    pub(super) own: RefCell<Pending>,
    /// There may be something to deliver: look before the program goes on, and do not sleep interruptibly.
    pub(super) attention: Cell<bool>,
    /// The system call gave ERESTART...
    pub(super) interrupted_call: Cell<bool>,
    pub(super) restart: RefCell<Option<Restart>>,
    pub(super) stack: Cell<AltStack>,
    pub(super) last_fault: Cell<LastFault>,
    /// Sleeps in a stop of its process.
    pub(super) stopped: Cell<bool>,
    /// Has not taken part yet in the stop of its process.
    pub(in crate::task) stop_due: Cell<bool>,
    /// What its process was stopped by last.
    pub(in crate::task) stop_signal: Cell<Option<Signal>>,
    /// No SIGCONT has come since it took the signal that it handles now: if that is a stop signal, the process stops.
    pub(in crate::task) stop_allowed: Cell<bool>,
}

impl ThreadSignals {
    /// What a new thread starts with: its maker's mask, nothing pending.
    #[must_use]
    pub fn inherit(maker: &ThreadSignals) -> Self {
        Self { blocked: Cell::new(maker.own_mask()), ..Self::default() }
    }

    /// Whether an unblocked signal (its own or the process's), or a stop, waits for this thread.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.attention.get()
    }

    /// The mask.
    #[must_use]
    pub fn blocked(&self) -> SignalSet {
        self.blocked.get()
    }

    pub(super) fn put_blocked(&self, mask: SignalSet) {
        self.blocked.set(mask.blockable());
    }

    /// The mask that the program has set: not one that ppoll(2) and its kind have put in its place for their time.
    #[must_use]
    pub fn own_mask(&self) -> SignalSet {
        self.saved.get().unwrap_or(self.blocked.get())
    }

    /// Sets the mask of a thread that does not run, which looks at its signals before it goes on.
    pub fn replace_mask(&self, mask: SignalSet) {
        self.saved.set(None);
        self.put_blocked(mask);
    }

    /// What is not delivered now: the mask, without what is waited for.
    pub(super) fn not_wanted(&self) -> SignalSet {
        self.blocked.get() & !self.awaited.get()
    }

    /// Signals pending for this thread alone.
    #[must_use]
    pub fn own_pending(&self) -> SignalSet {
        self.own.borrow().set()
    }

    /// The alternate stack.
    #[must_use]
    pub fn alt_stack(&self) -> AltStack {
        self.stack.get()
    }

    /// Sets the alternate stack: none after execve(2), the maker's after fork(2) and vfork(2).
    pub fn set_alt_stack(&self, stack: AltStack) {
        self.stack.set(stack);
    }

    /// Whether the thread sleeps in a stop of its process.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stopped.get()
    }
}

/// How far a stop of a process has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stop {
    /// Not stopped.
    #[default]
    Running,
    /// Its threads are on their way to stop.
    Stopping(Signal),
    /// All its threads have stopped.
    Stopped(Signal),
}

/// What wait4(2) with WUNTRACED or WCONTINUED has not been told yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobReport {
    /// Stopped by the signal.
    Stopped(Signal),
    /// Goes on.
    Continued,
}

/// A process's share: dispositions and the process-wide queue.
pub struct ProcessSignals {
    actions: RefCell<Rc<Actions>>,
    pub(super) shared: RefCell<Pending>,
    /// Woken for every signal that becomes pending for the process or one of its threads: signalfd(2), sigtimedwait(2).
    pub arrivals: Rc<WaitQueue>,
    pub(super) stop: Cell<Stop>,
    pub(super) report: Cell<Option<JobReport>>,
    /// Woken when the process goes on.
    pub(super) resumed: Rc<WaitQueue>,
}

impl Default for ProcessSignals {
    fn default() -> Self {
        Self {
            actions: RefCell::default(),
            shared: RefCell::default(),
            arrivals: WaitQueue::new(),
            stop: Cell::default(),
            report: Cell::default(),
            resumed: WaitQueue::new(),
        }
    }
}

impl ProcessSignals {
    /// For a new process; `actions` is a copy of its maker's ([`Actions::duplicate`]) or shared with it (CLONE_SIGHAND).
    #[must_use]
    pub fn with_actions(actions: Rc<Actions>) -> Self {
        Self { actions: RefCell::new(actions), ..Self::default() }
    }

    /// The dispositions.
    #[must_use]
    pub fn actions(&self) -> Rc<Actions> {
        Rc::clone(&self.actions.borrow())
    }

    /// Replaces the dispositions.
    pub fn set_actions(&self, actions: Actions) {
        let old = self.actions.replace(Rc::new(actions));
        drop(old);
    }

    /// Signals pending for the process as a whole.
    #[must_use]
    pub fn shared_pending(&self) -> SignalSet {
        self.shared.borrow().set()
    }

    /// Whether it stops or has stopped.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.stop.get() != Stop::Running
    }

    /// Whether all its threads have stopped, and by what.
    #[must_use]
    pub fn stopped(&self) -> Option<Signal> {
        match self.stop.get() {
            Stop::Stopped(signal) => Some(signal),
            _ => None,
        }
    }

    /// What a waiting parent has not been told yet.
    #[must_use]
    pub fn job_report(&self) -> Option<JobReport> {
        self.report.get()
    }

    #[cfg(test)]
    pub(crate) fn set_job_report(&self, report: JobReport) {
        self.report.set(Some(report));
    }

    /// The parent has been told.
    pub fn clear_job_report(&self) {
        self.report.set(None);
    }
}

/// Recomputes whether the thread has something to deliver (its mask or the queues have changed).
pub(in crate::task) fn refresh(thread: &Thread) {
    let process = &thread.process.signals;
    let ready = thread.signals.own_pending() | process.shared_pending();
    let ready = !(ready & !thread.signals.not_wanted()).is_empty();
    let stop = thread.signals.stop_due.get() || thread.ptrace.trap_due();
    thread.signals.attention.set(ready || stop);
}

/// Sets the thread's mask and sees to it that signals that are now blocked here reach another thread.
pub(super) fn set_mask(thread: &Thread, mask: SignalSet) {
    let before = thread.signals.blocked.get();
    thread.signals.put_blocked(mask);
    let now_blocked = mask & !before;
    retarget(thread, now_blocked);
    refresh(thread);
}

/// Wakes others for pending signals of the process that `thread` does not take any more.
pub(super) fn retarget(thread: &Thread, signals: SignalSet) {
    let mut left = thread.process.signals.shared_pending() & signals;
    if left.is_empty() {
        return;
    }
    for other in thread.process.threads() {
        if core::ptr::eq(&raw const *other, thread) || other.dying() {
            continue;
        }
        let takes = left & !other.signals.not_wanted();
        if takes.is_empty() {
            continue;
        }
        left = left & !takes;
        if !other.signals.attention.replace(true) {
            other.interrupt();
        }
        if left.is_empty() {
            return;
        }
    }
}

/// Takes the next signal that is pending for the thread and in `wanted`.
pub(super) fn take_next(thread: &Thread, wanted: SignalSet) -> Option<SignalInfo> {
    loop {
        let own = thread.signals.own.borrow().next(wanted);
        let (info, source) = match own {
            Some(signal) => thread.signals.own.borrow_mut().take(signal)?,
            None => {
                let shared = &thread.process.signals.shared;
                let signal = shared.borrow().next(wanted)?;
                shared.borrow_mut().take(signal)?
            }
        };
        match source {
            None => return Some(info),
            Some(source) => {
                if let Some(info) = source.take(info) {
                    return Some(info);
                }
            }
        }
    }
}

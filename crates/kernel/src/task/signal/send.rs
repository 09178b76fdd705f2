//! Sending: who may, whom it reaches, and what becomes of it before it is delivered.

use super::action::{Action, SIG_DFL};
use super::info::{SI_USER, SignalInfo};
use super::job;
use super::number::{DefaultAction, SIGCONT, SIGKILL, Signal, SignalSet};
use super::queue::{Charge, Pending, Put, Source};
use super::state::LastFault;
use crate::errno::Result;
use crate::task::creds::{CAP_KILL, Credentials};
use crate::task::current;
use crate::task::exit;
use crate::task::limits::{INFINITY, Resource};
use crate::task::process::Process;
use crate::task::status::WaitStatus;
use crate::task::thread::Thread;
use crate::wait::Events;
use alloc::rc::Rc;

/// An exception, or what else a thread's own instruction caused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which signal.
    pub signal: Signal,
    /// si_code.
    pub code: i32,
    /// si_addr.
    pub address: u64,
    /// The processor's vector.
    pub vector: u64,
    /// The processor's error code.
    pub error: u64,
    /// CR2, for page faults.
    pub cr2: u64,
    /// Where it happened.
    pub rip: u64,
}

/// Whether `sender` may send `signal` to a process whose (first) thread has `target`'s credentials (kill(2)).
#[must_use]
pub fn may_send(sender: &Credentials, target: &Credentials, signal: Option<Signal>, same_session: bool) -> bool {
    let ids = [sender.euid, sender.uid];
    ids.contains(&target.suid)
        || ids.contains(&target.uid)
        || sender.has(CAP_KILL)
        || signal == Some(SIGCONT) && same_session
}

/// Sends to a process: the first of its threads that does not block it takes it.
///
/// # Errors
/// EAGAIN where RLIMIT_SIGPENDING leaves no room for a real-time signal's information.
pub fn send_to_process(process: &Rc<Process>, info: SignalInfo) -> Result<()> {
    let threads = process.threads();
    let Some(first) = threads.first() else { return Ok(()) };
    if !prepare(process, first, info.signal) {
        return Ok(());
    }
    let put = process.signals.shared.borrow_mut().put(info, || charge(first, &info))?;
    if put == Put::Queued {
        tell(process, &threads, info.signal);
    }
    Ok(())
}

/// Sends to one thread.
///
/// # Errors
/// As [`send_to_process`].
pub fn send_to_thread(thread: &Rc<Thread>, info: SignalInfo) -> Result<()> {
    if !prepare(&thread.process, thread, info.signal) {
        return Ok(());
    }
    let put = thread.signals.own.borrow_mut().put(info, || charge(thread, &info))?;
    if put == Put::Queued {
        tell(&thread.process, core::slice::from_ref(thread), info.signal);
    }
    Ok(())
}

/// Sends the signal of a source, which has made sure that it is not queued already. Returns whether it is queued now
/// (it is not where the signal is ignored).
pub fn send_from(target: &Target, info: SignalInfo, source: &Rc<dyn Source>) -> bool {
    let (process, first) = match target {
        Target::Process(process) => {
            let Some(first) = process.threads().first().cloned() else { return false };
            (Rc::clone(process), first)
        }
        Target::Thread(thread) => (Rc::clone(&thread.process), Rc::clone(thread)),
    };
    if !prepare(&process, &first, info.signal) {
        return false;
    }
    match target {
        Target::Process(_) => {
            process.signals.shared.borrow_mut().put_from(info, Rc::clone(source));
            tell(&process, &process.threads(), info.signal);
        }
        Target::Thread(thread) => {
            thread.signals.own.borrow_mut().put_from(info, Rc::clone(source));
            tell(&process, core::slice::from_ref(thread), info.signal);
        }
    }
    true
}

/// Withdraws the signal of a source from wherever it is queued.
pub fn withdraw(process: &Rc<Process>, source: &Rc<dyn Source>) {
    let mut removed = process.signals.shared.borrow_mut().remove_source(source);
    for thread in process.threads() {
        if removed.is_some() {
            break;
        }
        removed = thread.signals.own.borrow_mut().remove_source(source);
    }
}

/// A process or one of its threads.
pub enum Target {
    /// Any thread of it.
    Process(Rc<Process>),
    /// This one.
    Thread(Rc<Thread>),
}

/// Sends a signal that the current thread's own system call caused (SIGPIPE, SIGXFSZ): as kill(2) by itself, to the thread.
pub fn send_self(signal: Signal) {
    let me = current();
    let info = SignalInfo::process(signal, SI_USER, me.process.pid(), me.creds().uid);
    // A standard signal with SI_USER always finds room.
    let _ = send_to_thread(&me, info);
}

/// Makes the current thread take the signal of an exception: where it is blocked or ignored, the process ends by it.
pub fn force(fault: &Fault) {
    let me = current();
    me.signals.last_fault.set(LastFault {
        vector: fault.vector,
        error: fault.error,
        cr2: if fault.vector == 14 { fault.cr2 } else { me.signals.last_fault.get().cr2 },
    });
    let info = if fault.code == super::SI_KERNEL {
        SignalInfo::kernel(fault.signal)
    } else {
        SignalInfo::fault(fault.signal, fault.code, fault.address)
    };
    force_info(&me, info);
}

/// As [`force`], with what the handler is told made by the caller.
pub(in crate::task) fn force_info(thread: &Rc<Thread>, info: SignalInfo) {
    let signal = info.signal;
    let actions = thread.process.signals.actions();
    let blocked = thread.signals.blocked().has(signal);
    if blocked || actions.get(signal).handler == super::action::SIG_IGN {
        actions.set(signal, Action { handler: SIG_DFL, ..actions.get(signal) });
        if blocked {
            thread.signals.put_blocked(thread.signals.blocked().without(signal));
        }
    }
    // There is always room for the kernel's own.
    let _ = send_to_thread(thread, info);
    super::state::refresh(thread);
}

/// What a signal does the moment it is sent; whether it has to be queued at all.
fn prepare(process: &Rc<Process>, thread: &Thread, signal: Signal) -> bool {
    if process.is_init() || process.is_exiting() {
        return false;
    }
    if signal.is_stop() {
        flush(process, SignalSet::of(SIGCONT));
    } else if signal == SIGCONT {
        flush(process, SignalSet::STOP);
        job::resume(process);
    }
    !ignored(process, thread, signal)
}

fn ignored(process: &Process, thread: &Thread, signal: Signal) -> bool {
    // A tracer wants to see also what is ignored.
    if thread.signals.blocked().has(signal) || thread.ptrace.is_traced() && signal != SIGKILL {
        return false;
    }
    process.signals.actions().get(signal).ignores(signal)
}

/// sigaction(2): the disposition of a signal, and what it becomes if `new` says so. Pending signals that are ignored from
/// now on are forgotten.
pub fn action_of(process: &Process, signal: Signal, new: Option<Action>) -> Action {
    let actions = process.signals.actions();
    let old = actions.get(signal);
    if let Some(new) = new {
        actions.set(signal, new);
        if new.ignores(signal) {
            flush(process, SignalSet::of(signal));
            for thread in process.threads() {
                super::state::refresh(&thread);
            }
        }
    }
    old
}

/// Forgets pending signals of a process and all its threads.
pub(super) fn flush(process: &Process, signals: SignalSet) {
    let flush = |queue: &core::cell::RefCell<Pending>| {
        let sources = queue.borrow_mut().flush(signals);
        for source in sources {
            source.forget();
        }
    };
    flush(&process.signals.shared);
    for thread in process.threads() {
        flush(&thread.signals.own);
    }
}

fn charge(thread: &Thread, info: &SignalInfo) -> Option<Charge> {
    let unlimited = !info.signal.is_realtime() && info.code >= 0;
    let limit = if unlimited { INFINITY } else { thread.process.limit(Resource::PendingSignals) };
    Charge::new(thread.creds().uid, limit)
}

/// Makes a signal pending for a thread that has not run yet, without the effects of sending it.
pub(in crate::task) fn add_pending(thread: &Thread, signal: Signal) {
    // A standard signal needs no room for its information.
    let _ = thread.signals.own.borrow_mut().put(SignalInfo::lost(signal), || None);
    super::state::refresh(thread);
}

/// Finds a thread that takes the signal now and wakes it; a signal that ends the process does so at once.
fn tell(process: &Rc<Process>, candidates: &[Rc<Thread>], signal: Signal) {
    process.signals.arrivals.wake(Events::IN);
    let Some(thread) = candidates.iter().find(|thread| wants(thread, signal)) else { return };
    let action = process.signals.actions().get(signal);
    let deadly = matches!(signal.default_action(), DefaultAction::Terminate | DefaultAction::Core);
    let shown_first = thread.ptrace.is_traced() && signal != SIGKILL;
    if action.handler == SIG_DFL && deadly && !thread.signals.blocked().has(signal) && !shown_first {
        exit::exit_group(process, WaitStatus::signaled(signal.number(), false));
        return;
    }
    thread.signals.attention.set(true);
    thread.interrupt();
}

fn wants(thread: &Thread, signal: Signal) -> bool {
    if thread.signals.not_wanted().has(signal) || thread.dying() {
        return false;
    }
    if signal == SIGKILL {
        return true;
    }
    let stopped = thread.signals.stopped.get() || thread.ptrace.in_stop();
    !stopped && (core::ptr::eq(&raw const *current(), thread) || !thread.signals.attention.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_is_by_ids_or_capability() {
        let user = |uid, euid, suid| {
            let mut creds = Credentials::root();
            (creds.uid, creds.euid, creds.suid, creds.effective) = (uid, euid, suid, 0);
            creds
        };
        let term = Some(super::super::SIGTERM);
        assert!(may_send(&Credentials::root(), &user(5, 5, 5), term, false));
        assert!(may_send(&user(5, 6, 6), &user(5, 9, 9), term, false));
        assert!(may_send(&user(5, 6, 6), &user(9, 9, 6), term, false));
        assert!(!may_send(&user(5, 5, 5), &user(9, 5, 9), term, false), "the target's effective id does not count");
        assert!(may_send(&user(5, 5, 5), &user(9, 9, 9), Some(SIGCONT), true));
    }
}

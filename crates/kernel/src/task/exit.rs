//! How threads and processes end (exit(2), exit_group(2)), and what becomes of those they leave behind.
//!
//! A thread that shall end is marked ([`Thread::doom`]) and ends itself before it would next return to its program, from a
//! frame that holds nothing: its kernel stack is never unwound.
//!
//! Orphans go to a PR_SET_CHILD_SUBREAPER or to [`init`](super::init), which has nothing to learn from their end.

use super::process::Process;
use super::sched;
use super::session;
use super::signal::{self, SIGCHLD, Signal, SignalInfo};
use super::status::WaitStatus;
use super::thread::Thread;
use super::usage::Usage;
use super::{current, futex, init, pid, ptrace};
use crate::ipc::sem::UndoList;
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::wait::Events;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Nanoseconds of a clock tick (CLK_TCK is 100).
pub const CLOCK_TICK_NS: u64 = 10_000_000;

/// exit(2): the current thread ends before it returns to its program.
pub fn exit_thread(code: u32) {
    let me = current();
    me.exit_status.set(WaitStatus::exited(code));
    me.doom();
}

/// Ends a process: all its threads before they return to their program. Only the first call's status counts.
pub fn exit_group(process: &Rc<Process>, status: WaitStatus) {
    if process.is_exiting() {
        return;
    }
    process.group_exit.set(Some(status));
    for thread in process.threads() {
        thread.doom();
    }
}

/// Last thing before a return to the program: ends the current thread if it shall. Callers up the stack hold nothing that
/// needs a drop.
pub fn leave_if_dying() {
    let me = current();
    if me.dying() {
        ptrace::exits(&me);
        drop(me);
        end_current();
        sched::retire();
    }
}

fn end_current() {
    let me = current();
    sched::account();
    release_memory(&me);
    if crate::syscall::dispatch::tracing() {
        crate::syscall::trace::ended(me.tid(), me.process.group_exit.get().unwrap_or(me.exit_status.get()));
    }
    end_thread(&me);
}

/// Clears the thread's id in its memory (CLONE_CHILD_CLEARTID), where somebody shares the memory: else nobody could see it.
pub(super) fn release_memory(me: &Rc<Thread>) {
    futex::thread_exits();
    let tid_at = me.clear_child_tid.replace(UserAddr::NULL);
    let shared = me.process.thread_count() > 1 || me.process.space_is_shared();
    if !tid_at.is_null() && shared {
        // As on Linux, a bad address is the program's affair.
        let _ = user::write(tid_at, &0u32);
        let _ = futex::wake(tid_at, futex::Scope::Shared, 1, futex::MATCH_ANY);
    }
}

/// Takes a thread out of its process; the last one ends the process.
pub(super) fn end_thread(thread: &Rc<Thread>) {
    let process = Rc::clone(&thread.process);
    let last = process.thread_count() == 1;
    UndoList::leave(thread);
    close_files(thread);
    ptrace::tracer_ends(thread);
    ptrace::leave_zombie(thread, thread.exit_status.get());
    drop(thread.set_fs(None));
    process.ended_usage.set(process.ended_usage.get().plus(&Usage::of_thread(thread)));
    if last {
        process.uid.set(thread.creds().uid);
        process.name.set(thread.name_bytes());
    }
    for child in process.children() {
        if child.creator_tid.get() == thread.tid() {
            parent_thread_ended(&child, &process, thread);
        }
    }
    process.remove_thread(thread);
    pid::remove_thread(thread.tid());
    signal::thread_gone(thread);
    if last {
        end_process(&process, thread.exit_status.get());
    } else {
        // execve(2) waits for the others to be gone.
        process.own_events.wake_all(Events::empty());
    }
}

/// PR_SET_PDEATHSIG is about the thread that created the child.
fn parent_thread_ended(child: &Rc<Process>, process: &Process, thread: &Rc<Thread>) {
    if let Some(heir) = process.threads().iter().find(|t| !Rc::ptr_eq(t, thread)) {
        child.creator_tid.set(heir.tid());
    }
    let signals: Vec<Signal> = child.threads().iter().filter_map(|t| t.parent_death_signal.get()).collect();
    for signal in signals {
        let info = SignalInfo::process(signal, signal::SI_USER, process.pid(), thread.creds().uid);
        // A standard signal always finds room with SI_USER; of a real-time one a lost one is Linux's behaviour, too.
        let _ = signal::send_to_process(child, info);
    }
}

/// Gives up the thread's descriptors; the last of those who share them closes them.
pub(super) fn close_files(thread: &Thread) {
    let Some(files) = thread.set_files(None) else { return };
    if Rc::strong_count(&files) == 1 {
        for file in files.drain(0, usize::MAX, |_| true) {
            files.closed(file);
        }
    }
}

/// The last thread has ended: with `exit_status`, which counts unless the process was ended as a whole.
fn end_process(process: &Rc<Process>, exit_status: WaitStatus) {
    process.release_vfork();
    process.timers.clear();
    process.cpu_limit.stop();
    release_space(process);
    process.set_executable(None);
    let group = process.group();
    if group.session().is_leader(process) {
        group.session().release_terminal();
    }
    let status = process.group_exit.get().unwrap_or(exit_status);
    process.ended.set(Some(status));
    init::end_with(process, status);
    leave_children(process);
    session::signal_if_orphaned(process, process.parent().as_deref());
    process.own_events.wake_all(Events::IN);
    announce(process);
}

fn leave_children(process: &Rc<Process>) {
    let children = process.take_children();
    if children.is_empty() {
        return;
    }
    let Some(reaper) = find_reaper(process) else { return };
    for child in &children {
        child.set_parent(&reaper);
        child.exit_signal.set(Some(SIGCHLD));
        reaper.add_child(child);
    }
    for child in &children {
        session::signal_if_orphaned(child, Some(process));
        if !child.is_alive() {
            announce(child);
        }
    }
}

/// The nearest ancestor that is a subreaper, else init.
fn find_reaper(process: &Process) -> Option<Rc<Process>> {
    let mut ancestor = process.parent();
    while let Some(candidate) = ancestor {
        if candidate.is_alive() && (candidate.child_subreaper.get() || candidate.is_init()) {
            return Some(candidate);
        }
        ancestor = candidate.parent();
    }
    None
}

/// Tells the parent that the process has ended; where nobody wants to know, it vanishes at once. A tracer is told first, and
/// announces it to the parent when it has waited for it.
pub(super) fn announce(process: &Rc<Process>) {
    let (Some(parent), Some(status)) = (process.parent(), process.ended()) else { return };
    if let Some(tracer) = ptrace::claimant(process) {
        ptrace::tell_of_end(&tracer, process, status);
        return;
    }
    if parent.is_init() {
        reap(&parent, process);
        return;
    }
    let (code, value) = status.code_and_status();
    let info = signal::child_info(process, process.pid(), code, value);
    if signal::child_exited(&parent, process.exit_signal(), info) {
        reap(&parent, process);
    }
    parent.child_events.wake_all(Events::IN);
}

/// Gives up the address space; the last process in it empties it, although the processor may use it until the next switch.
pub(super) fn release_space(process: &Process) {
    let shared = process.space_is_shared();
    if let Some(space) = process.set_space(None)
        && !shared
    {
        process.note_memory(&space);
        space.clear();
    }
}

/// Takes a zombie that has been waited for out of all tables; what it has used counts for its parent.
pub(super) fn reap_counted(parent: &Process, process: &Rc<Process>) {
    let usage = process.ended_usage().plus(&process.children_usage());
    parent.children_usage.set(parent.children_usage.get().plus(&usage));
    reap(parent, process);
}

/// Takes a zombie out of all tables.
pub(super) fn reap(parent: &Process, process: &Rc<Process>) {
    session::leave(process);
    pid::remove_process(process.pid());
    parent.remove_child(process);
}

//! The init that the kernel stands in for, as `docker run --init` puts one before the program: process 1.
//!
//! It has an id, a place in /proc and children, but no memory and no program, and its thread never runs. Orphans are given
//! to it (unless an ancestor is a PR_SET_CHILD_SUBREAPER) and vanish when they end; no signal reaches it. The program that
//! the VM was started for is its first child, and the leader of a session of its own. When that ends the system is over,
//! and everybody else with it.

use super::creds::Credentials;
use super::process::{Process, Seed};
use super::signal::{ProcessSignals, SIGCHLD, ThreadSignals};
use super::status::WaitStatus;
use super::thread::{Shared, Thread};
use super::{First, ThreadState, limits, pid, session};
use crate::arch::regs::UserRegs;
use crate::errno::Result;
use crate::fs::context::FsContext;
use crate::fs::fdtable::FdTable;
use alloc::rc::{Rc, Weak};
use core::cell::Cell;

/// Its id.
pub const INIT: u32 = 1;
/// Its name in /proc.
const NAME: &[u8] = b"init";

/// What ends the system: with the program's status, and whether that was killed because memory was used up.
pub type Over = fn(WaitStatus, bool) -> !;

crate::global! {
    static PROGRAM: Cell<Option<(u32, Over)>> = Cell::new(None);
}

/// Sets what is called when the program that the VM was started for has ended.
pub fn on_exit_of(program: &Process, over: Over) {
    PROGRAM.with(|hook| hook.set(Some((program.pid(), over))));
}

/// Ends the system if `process`, which has ended, was its program.
pub(super) fn end_with(process: &Process, status: WaitStatus) {
    if let Some((program, over)) = PROGRAM.with(Cell::get)
        && program == process.pid()
    {
        over(status, process.out_of_memory.get());
    }
}

/// Ends the system at once, if there is one (in the guest it does not return).
pub fn end_system(status: WaitStatus) {
    if let Some((_, over)) = PROGRAM.with(Cell::get) {
        over(status, false);
    }
}

/// Makes init; nobody may be there before.
pub(super) fn make(fs: Option<Rc<FsContext>>) -> Result<Rc<Process>> {
    let first = First { creds: Credentials::root(), files: Rc::new(FdTable::default()), fs, space: None };
    let thread = leader(Weak::new(), first)?;
    thread.set_name(NAME);
    assert_eq!(thread.tid(), INIT, "init comes first");
    Ok(Rc::clone(&thread.process))
}

/// A process with one thread, which leads a session of its own.
pub(super) fn leader(parent: Weak<Process>, first: First) -> Result<Rc<Thread>> {
    let pid = pid::allocate()?;
    let process = Process::new(Seed {
        pid,
        parent,
        group: session::first(pid),
        signals: ProcessSignals::default(),
        space: first.space,
        limits: limits::Limits::initial(),
        exit_signal: Some(SIGCHLD),
    });
    session::join(&process);
    let state = ThreadState::new_user(&UserRegs::start(0, 0), 0, 0)?;
    let shared = Shared { files: first.files, fs: first.fs };
    let thread = Thread::new(pid, &process, state, Rc::new(first.creds), ThreadSignals::default(), shared);
    process.add_thread(&thread);
    pid::add_process(&process);
    pid::add_thread(&thread);
    if let Some(parent) = process.parent() {
        parent.add_child(&process);
    }
    Ok(thread)
}

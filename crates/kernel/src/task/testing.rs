//! Threads for hosted tests.

use super::creds::Credentials;
use super::fork::CloneArgs;
use super::thread::Thread;
use super::{First, exit, fork, make_first, pid};
use crate::fs::fdtable::FdTable;
use alloc::rc::Rc;

/// Makes a thread of a process of its own (process 2) the current one of this test: root, no descriptors, no working
/// directory and no address space (see [`Thread::set_fs`] and [`super::process::Process::set_space`]). A second call starts
/// afresh.
///
/// # Panics
/// Never.
#[must_use]
pub fn enter() -> Rc<Thread> {
    pid::reset();
    let files = Rc::new(FdTable::default());
    let first = First { creds: Credentials::root(), files, fs: None, space: None };
    make_first(first).expect("hosted: no memory is needed")
}

/// Makes a child as clone(2) would; it never runs.
///
/// # Errors
/// As [`fork::clone`].
///
/// # Panics
/// If it is not there.
pub fn spawn(args: &CloneArgs) -> crate::errno::Result<Rc<Thread>> {
    let tid = fork::clone(args)?;
    Ok(pid::thread(tid).expect("a new thread is registered"))
}

/// Ends a thread that is not the current one as if it had called exit(2) with `code`.
pub fn end(thread: &Rc<Thread>, code: u32) {
    thread.exit_status.set(super::status::WaitStatus::exited(code));
    exit::end_thread(thread);
}

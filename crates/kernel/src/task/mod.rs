//! Threads, processes, scheduling, signals.

pub mod cpu_limit;
pub mod creds;
pub mod elf;
pub mod exec;
pub mod exit;
pub mod fork;
pub mod futex;
#[cfg(feature = "hosted")]
mod hosted;
pub mod init;
pub mod inspection;
pub mod limits;
pub mod load;
pub mod loadavg;
pub mod log;
pub mod oom;
pub mod pid;
pub mod pidfd;
pub mod process;
pub mod ptrace;
pub mod runqueue;
pub mod sched;
pub mod session;
pub mod signal;
pub mod status;
#[cfg(feature = "hosted")]
pub mod testing;
pub mod thread;
pub mod usage;
pub mod uts;
pub mod wait_child;

#[cfg(not(feature = "hosted"))]
pub use crate::arch::thread::ThreadState;
#[cfg(feature = "hosted")]
pub use hosted::ThreadState;

use crate::errno::Result;
use crate::fs::context::FsContext;
use crate::fs::fdtable::FdTable;
use crate::mm::space::AddressSpace;
use alloc::rc::Rc;
use creds::Credentials;
use thread::Thread;

/// The thread that runs.
///
/// # Panics
/// Before the first thread.
#[must_use]
pub fn current() -> Rc<Thread> {
    sched::current().expect("a thread runs")
}

/// The thread that runs; `None` before the first.
#[must_use]
pub fn try_current() -> Option<Rc<Thread>> {
    sched::current()
}

/// What the first program's process starts with.
pub struct First {
    /// Who it is.
    pub creds: Credentials,
    /// Its descriptors.
    pub files: Rc<FdTable>,
    /// Root and working directory.
    pub fs: Option<Rc<FsContext>>,
    /// Its memory; `None` until the program is loaded ([`exec`]).
    pub space: Option<Rc<AddressSpace>>,
}

/// Makes init and its first child, the program that the VM is there for, with one thread, which is current from here on: the
/// caller loads its program and lets it go on.
///
/// # Errors
/// ENOMEM.
pub fn make_first(first: First) -> Result<Rc<Thread>> {
    let init = init::make(first.fs.as_ref().map(|fs| fs.duplicate()))?;
    let thread = init::leader(Rc::downgrade(&init), first)?;
    sched::start_first(&thread);
    Ok(thread)
}

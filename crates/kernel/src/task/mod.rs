//! Threads, processes, scheduling, signals.

pub mod creds;
pub mod elf;
pub mod exec;
pub mod exit;
pub mod fork;
pub mod futex;
#[cfg(feature = "hosted")]
mod hosted;
pub mod limits;
pub mod load;
pub mod loadavg;
pub mod log;
pub mod pid;
pub mod pidfd;
pub mod process;
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

use crate::arch::regs::UserRegs;
use crate::errno::Result;
use crate::fs::context::FsContext;
use crate::fs::fdtable::FdTable;
use crate::mm::space::AddressSpace;
use alloc::rc::{Rc, Weak};
use creds::Credentials;
pub use exit::{on_init_exit, oom_kill};
use process::{Process, Seed};
use thread::{Shared, Thread};

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

/// What the first process starts with.
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

/// Makes process 1 with one thread, which is current from here on: the caller loads its program and lets it go on.
///
/// # Errors
/// ENOMEM.
pub fn make_first(first: First) -> Result<Rc<Thread>> {
    let pid = pid::allocate()?;
    let process = Process::new(Seed {
        pid,
        parent: Weak::new(),
        group: session::first(pid),
        signals: signal::ProcessSignals::default(),
        space: first.space,
        limits: limits::Limits::initial(),
        exit_signal: Some(signal::SIGCHLD),
    });
    process.signals.protect();
    session::join(&process);
    let state = ThreadState::new_user(&UserRegs::start(0, 0), 0, 0)?;
    let shared = Shared { files: first.files, fs: first.fs };
    let thread = Thread::new(pid, &process, state, Rc::new(first.creds), signal::ThreadSignals::default(), shared);
    process.add_thread(&thread);
    pid::add_process(&process);
    pid::add_thread(&thread);
    sched::start_first(&thread);
    Ok(thread)
}

//! Getting the virtual CPU's attention, wherever its thread is.
//!
//! Whoever has an event sets `pending` in the control page and then calls [`Kicker::kick`]. The thread clears
//! `immediate_exit` before it looks at `pending` and enters the guest, so an event is either seen by that look, or
//! makes KVM_RUN return at once, or its signal interrupts the guest.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering};
use std::thread::Thread;

const OUTSIDE: u32 = 0;
const RUNNING: u32 = 1;
const IDLE: u32 = 2;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Kicker {
    state: AtomicU32,
    requested: AtomicBool,
    immediate_exit: AtomicPtr<AtomicU8>,
    thread: OnceLock<(libc::pid_t, Thread)>,
}

impl Kicker {
    /// For the calling thread, which will run the vCPU whose `kvm_run.immediate_exit` is at `immediate_exit`.
    ///
    /// # Errors
    /// What sigaction(2) gives.
    ///
    /// # Safety
    /// `immediate_exit` stays mapped as long as the process lives.
    pub(super) unsafe fn new(immediate_exit: *mut u8) -> io::Result<Self> {
        install_handler()?;
        let kicker = Self {
            state: AtomicU32::new(OUTSIDE),
            requested: AtomicBool::new(false),
            immediate_exit: AtomicPtr::new(immediate_exit.cast()),
            thread: OnceLock::new(),
        };
        // SAFETY: no arguments, no failure.
        let tid = unsafe { libc::gettid() };
        kicker.thread.get_or_init(|| (tid, std::thread::current()));
        Ok(kicker)
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: `new` was promised that it stays mapped; the kernel reads it, we only access it atomically.
        unsafe { &*self.immediate_exit.load(Ordering::Relaxed) }
    }

    /// Makes the vCPU's thread look at `pending`.
    pub(super) fn kick(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.immediate_exit().store(1, Ordering::SeqCst);
        let (tid, thread) = self.thread.get().expect("set by new");
        match self.state.load(Ordering::SeqCst) {
            IDLE => thread.unpark(),
            RUNNING => {
                // SAFETY: signals a thread of this process, which lives as long as the process, with a signal whose
                // handler does nothing.
                unsafe { libc::tgkill(libc::getpid(), *tid, libc::SIGRTMIN()) };
            }
            _ => {}
        }
    }

    /// Whether the guest runs or is about to; for the I/O thread's bookkeeping.
    #[must_use]
    pub(super) fn is_idle(&self) -> bool {
        self.state.load(Ordering::SeqCst) == IDLE
    }

    /// vCPU thread: from now on a kick ends the next KVM_RUN. Returns whether there was one since the last call.
    pub(super) fn before_run(&self) -> bool {
        self.immediate_exit().store(0, Ordering::SeqCst);
        self.state.store(RUNNING, Ordering::SeqCst);
        self.requested.swap(false, Ordering::SeqCst)
    }

    /// vCPU thread: KVM_RUN has returned.
    pub(super) fn after_run(&self) {
        self.state.store(OUTSIDE, Ordering::SeqCst);
    }

    /// vCPU thread: sleeps until `pending` says that there is something.
    pub(super) fn sleep_until(&self, pending: impl Fn() -> bool) {
        self.state.store(IDLE, Ordering::SeqCst);
        while !pending() {
            std::thread::park();
        }
        self.state.store(OUTSIDE, Ordering::SeqCst);
    }
}

extern "C" fn ignore(_signal: libc::c_int) {}

/// A handler that does nothing: that the system call returns is all that is wanted.
fn install_handler() -> io::Result<()> {
    // SAFETY: all zeros is a valid sigaction with an empty mask and no flags (no SA_RESTART above all).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the handler does nothing, which is async-signal-safe; `action` is valid.
    if unsafe { libc::sigaction(libc::SIGRTMIN(), &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

//! Getting the virtual CPU's attention, wherever its thread is.
//!
//! Whoever has an event sets `pending` in the control page and then calls [`Kicker::kick`]. The thread clears
//! `immediate_exit` before it looks at `pending` and enters the guest, so an event is either seen by that look, or
//! makes KVM_RUN return at once, or its signal interrupts the guest.

use std::cell::Cell;
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering};

const OUTSIDE: u32 = 0;
const RUNNING: u32 = 1;
const IDLE: u32 = 2;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Kicker {
    state: AtomicU32,
    requested: AtomicBool,
    immediate_exit: AtomicPtr<AtomicU8>,
    thread: libc::pid_t,
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
        install_handler(libc::SIGRTMIN(), ignore)?;
        Ok(Self {
            state: AtomicU32::new(OUTSIDE),
            requested: AtomicBool::new(false),
            immediate_exit: AtomicPtr::new(immediate_exit.cast()),
            // SAFETY: no arguments, no failure.
            thread: unsafe { libc::gettid() },
        })
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: `new` was promised that it stays mapped; the kernel reads it, we only access it atomically.
        unsafe { &*self.immediate_exit.load(Ordering::Relaxed) }
    }

    /// Makes the vCPU's thread look at `pending`. True where it sleeps in [`Kicker::asleep`], and has to be woken.
    #[must_use]
    pub(super) fn kick(&self) -> bool {
        self.requested.store(true, Ordering::SeqCst);
        self.immediate_exit().store(1, Ordering::SeqCst);
        let state = self.state.load(Ordering::SeqCst);
        if state == RUNNING {
            // SAFETY: signals a thread of this process, which lives as long as the process, with a signal whose handler
            // does nothing.
            unsafe { libc::tgkill(libc::getpid(), self.thread, libc::SIGRTMIN()) };
        }
        state == IDLE
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

    /// vCPU thread: `sleep` sleeps until it is woken. It has to look at `pending` first.
    pub(super) fn asleep<T>(&self, sleep: impl FnOnce() -> T) -> T {
        self.state.store(IDLE, Ordering::SeqCst);
        let out = sleep();
        self.state.store(OUTSIDE, Ordering::SeqCst);
        out
    }

    /// vCPU thread: the guest is about to look at all that there was to be told so far, by itself.
    pub(super) fn forget(&self) {
        self.requested.store(false, Ordering::SeqCst);
    }
}

/// Notices that the guest has run on for a while: on the thread that makes it.
#[derive(Debug)]
pub(super) struct Stint {
    timer: libc::timer_t,
    is_armed: bool,
    /// The guest was idle since the timer was armed.
    was_idle: bool,
}

/// After so long a guest counts as busy.
const STINT_NS: i64 = 1_000_000;

thread_local! {
    /// What [`stint_is_over`] is to set, and whether it was called.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(null_mut()) };
    static IS_OVER: AtomicBool = const { AtomicBool::new(false) };
}

extern "C" fn stint_is_over(_signal: libc::c_int) {
    IS_OVER.with(|over| over.store(true, Ordering::SeqCst));
    let immediate_exit = IMMEDIATE_EXIT.with(Cell::get).cast::<AtomicU8>();
    // SAFETY: null, or what `Kicker::new` was promised of: it stays mapped, and is only accessed atomically.
    if let Some(immediate_exit) = unsafe { immediate_exit.as_ref() } {
        immediate_exit.store(1, Ordering::SeqCst);
    }
}

impl Stint {
    /// For the thread of `kicker`, which is the calling one.
    ///
    /// # Errors
    /// What timer_create(2) gives.
    pub(super) fn new(kicker: &Kicker) -> io::Result<Self> {
        let signal = libc::SIGRTMIN() + 1;
        IMMEDIATE_EXIT.with(|cell| cell.set(kicker.immediate_exit.load(Ordering::Relaxed).cast()));
        install_handler(signal, stint_is_over)?;
        // SAFETY: all zeros is a valid sigevent.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        event.sigev_notify_thread_id = kicker.thread;
        let mut timer = null_mut();
        // SAFETY: reads the event and writes the timer's number.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { timer, is_armed: false, was_idle: false })
    }

    /// The guest is idle.
    pub(super) fn idle(&mut self) {
        self.was_idle = true;
    }

    /// To be asked after [`Kicker::before_run`]: whether the guest has run for a millisecond without being idle. If not,
    /// KVM_RUN ends when it may have.
    pub(super) fn is_over(&mut self) -> bool {
        let fired = IS_OVER.with(|over| over.swap(false, Ordering::SeqCst));
        self.is_armed &= !fired;
        let over = fired && !self.was_idle;
        if !self.is_armed && !over {
            let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let after = libc::timespec { tv_sec: 0, tv_nsec: STINT_NS };
            let once = libc::itimerspec { it_interval: never, it_value: after };
            // SAFETY: our own timer; only reads the setting. It can't fail with a valid one.
            unsafe { libc::timer_settime(self.timer, 0, &raw const once, null_mut()) };
            self.is_armed = true;
            self.was_idle = false;
        }
        over
    }
}

extern "C" fn ignore(_signal: libc::c_int) {}

/// That the system call returns is most of what is wanted.
fn install_handler(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) -> io::Result<()> {
    // SAFETY: all zeros is a valid sigaction with an empty mask and no flags (no SA_RESTART above all).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    // SAFETY: the handlers here change atomics and nothing else, which is async-signal-safe; `action` is valid.
    if unsafe { libc::sigaction(signal, &raw const action, null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

//! Masks and waiting: sigprocmask(2), sigsuspend(2), sigtimedwait(2), and the temporary masks of ppoll(2) and its kind.

use super::info::SignalInfo;
use super::number::SignalSet;
use super::state::{refresh, set_mask, take_next};
use crate::errno::{Errno, Result};
use crate::task::current;
use crate::task::sched::{self, Sleep, WaitError};
use crate::time::{self, Instant};
use alloc::rc::Rc;

/// Sets the current thread's mask; gives back the old one. What is pending and not blocked any more is delivered before
/// the program goes on.
pub fn procmask(mask: SignalSet) -> SignalSet {
    let me = current();
    let before = me.signals.blocked();
    set_mask(&me, mask);
    before
}

/// Adds to the current thread's mask.
pub fn block(signals: SignalSet) {
    procmask(current().signals.blocked() | signals);
}

/// Runs `wait` with another mask (ppoll(2), pselect(2), epoll_pwait(2)). If a signal interrupts it (`ERESTART...` or
/// EINTR) the mask stays until the signal's handler has been set up, whose return brings the old one back; otherwise it
/// is back when this returns.
///
/// # Errors
/// What `wait` gives.
pub fn with_mask<T>(mask: Option<SignalSet>, wait: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(mask) = mask else { return wait() };
    let me = current();
    let before = me.signals.blocked();
    set_mask(&me, mask);
    let result = wait();
    match result {
        Err(error) if error == Errno::EINTR || error.0 >= Errno::ERESTARTSYS.0 => me.signals.saved.set(Some(before)),
        _ => set_mask(&me, before),
    }
    result
}

/// sigsuspend(2): waits under `mask` for a signal that is delivered.
///
/// # Errors
/// Always: ERESTARTNOHAND.
pub fn suspend(mask: SignalSet) -> Result<u64> {
    with_mask(Some(mask), || {
        let _ = sched::wait_until(&[], None, Sleep::Interruptible, || None::<()>);
        Err(Errno::ERESTARTNOHAND)
    })
}

/// Takes a pending signal of `wanted` from the current thread or its process: signalfd(2).
#[must_use]
pub fn take_of(wanted: SignalSet) -> Option<SignalInfo> {
    let me = current();
    let info = take_next(&me, wanted.blockable());
    if info.is_some() {
        refresh(&me);
    }
    info
}

/// sigtimedwait(2): takes a pending signal of `wanted`, waiting for one until `deadline`.
///
/// # Errors
/// EAGAIN at the deadline, EINTR when another signal is to be delivered.
pub fn wait_for(wanted: SignalSet, deadline: Option<Instant>) -> Result<SignalInfo> {
    let wanted = wanted.blockable();
    if let Some(info) = take_of(wanted) {
        return Ok(info);
    }
    if deadline.is_some_and(|deadline| deadline <= time::now()) {
        return Err(Errno::EAGAIN);
    }
    let me = current();
    let arrivals = Rc::clone(&me.process.signals.arrivals);
    loop {
        // Whoever sends one of these tells this thread, even if it blocks them.
        me.signals.awaited.set(wanted);
        let outcome = sched::wait_until(&[&arrivals], deadline, Sleep::Interruptible, || take_next(&me, wanted));
        me.signals.awaited.set(SignalSet::EMPTY);
        refresh(&me);
        if let Ok(info) = outcome {
            return Ok(info);
        }
        // One may have come together with the interruption.
        if let Some(info) = take_of(wanted) {
            return Ok(info);
        }
        match outcome {
            Err(WaitError::TimedOut) => return Err(Errno::EAGAIN),
            _ if me.signals.pending() || me.dying() => return Err(Errno::EINTR),
            // Another thread was quicker.
            _ => {}
        }
    }
}

//! Moving waiters from a plain word to a lock that the kernel hands over (FUTEX_WAIT_REQUEUE_PI and FUTEX_CMP_REQUEUE_PI):
//! how a condition variable goes with such a mutex.

use super::{Key, Scope, TABLE, Waiter, inherit};
use crate::errno::{Errno, Result};
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::sched::{Sleep, WaitError};
use crate::task::thread::Thread;
use crate::task::{current, pid};
use crate::time::sleep::{self, Deadline};
use alloc::rc::Rc;
use alloc::vec::Vec;
use linux_raw_sys::general::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS};

/// FUTEX_WAIT_REQUEUE_PI: sleeps if the word at `addr` has the value `expected`, until [`requeue_pi`] has moved the thread to
/// the lock and it has that.
///
/// # Errors
/// EAGAIN if the word has another value, or if a signal came after the move; ETIMEDOUT; ERESTARTNOINTR when interrupted
/// before; EINVAL, EFAULT.
pub fn wait_requeue_pi(
    addr: UserAddr,
    scope: Scope,
    expected: u32,
    deadline: Option<Deadline>,
    lock: UserAddr,
) -> Result<()> {
    let (key, lock_key) = (Key::new(addr, scope)?, Key::new(lock, scope)?);
    if key == lock_key {
        return Err(Errno::EINVAL);
    }
    if user::load_u32(addr)? != expected {
        return Err(Errno::EAGAIN);
    }
    let waiter = Waiter::for_lock(&current(), key, Some(lock_key), lock);
    TABLE.with(|table| table.borrow_mut().enter(&waiter));
    let handed_over = || waiter.woken.get().then_some(());
    let outcome = sleep::wait_until(&[], deadline, Sleep::Interruptible, handed_over);
    if waiter.woken.get() {
        return Ok(());
    }
    TABLE.with(|table| table.borrow_mut().leave(&waiter));
    inherit::end(&waiter);
    Err(match outcome {
        Err(WaitError::TimedOut) => Errno::ETIMEDOUT,
        _ if waiter.key.get() == key => Errno::ERESTARTNOINTR,
        _ => Errno::EAGAIN,
    })
}

/// FUTEX_CMP_REQUEUE_PI: gives the lock to the first waiter of the word if it is free, and moves up to `moved` others to it
/// (one more if it is not free); how many were given it or moved.
///
/// # Errors
/// EINVAL if `wake` is not 1 or a waiter waits for something else; EAGAIN if the word has another value than expected;
/// ESRCH if the lock's owner does not exist; EDEADLK if a waiter is the owner; EFAULT.
pub fn requeue_pi(
    from: UserAddr,
    lock: UserAddr,
    scope: Scope,
    (wake, moved): (i32, i32),
    expected: u32,
) -> Result<usize> {
    let moved = usize::try_from(moved).map_err(|_| Errno::EINVAL)?;
    let (key, lock_key) = (Key::new(from, scope)?, Key::new(lock, scope)?);
    if wake != 1 || key == lock_key {
        return Err(Errno::EINVAL);
    }
    if user::load_u32(from)? != expected {
        return Err(Errno::EAGAIN);
    }
    let waiters: Vec<Rc<Waiter>> = TABLE.with(|table| {
        let table = table.borrow();
        table.0.get(&key).map_or_else(Vec::new, |queue| queue.iter().take(moved.saturating_add(1)).cloned().collect())
    });
    let Some(first) = waiters.first() else { return Ok(0) };
    if waiters.iter().any(|waiter| waiter.lock != Some(lock_key)) {
        return Err(Errno::EINVAL);
    }
    let (owner, owns) = offer(lock, lock_key, first, waiters.len() > 1)?;
    TABLE.with(|table| {
        let mut table = table.borrow_mut();
        for (n, waiter) in waiters.iter().enumerate() {
            table.leave(waiter);
            if n > 0 || !owns {
                waiter.key.set(lock_key);
                table.enter(waiter);
            }
        }
    });
    for waiter in &waiters[usize::from(owns)..] {
        inherit::begin(waiter, &owner);
    }
    if owns {
        first.wake();
    }
    Ok(waiters.len())
}

/// Gives a free lock to `waiter`, and marks one that is not free as waited for; who has it then, and whether it was free.
fn offer(lock: UserAddr, key: Key, waiter: &Waiter, others: bool) -> Result<(Rc<Thread>, bool)> {
    let thread = waiter.thread.upgrade().ok_or(Errno::ESRCH)?;
    let queued = others || TABLE.with(|table| table.borrow().0.contains_key(&key));
    let waiters = if queued { FUTEX_WAITERS } else { 0 };
    let owner = user::load_u32(lock)? & FUTEX_TID_MASK;
    if owner == thread.tid() {
        return Err(Errno::EDEADLK);
    }
    let has_it = if owner == 0 { Some(Rc::clone(&thread)) } else { pid::thread(owner) };
    let has_it = has_it.ok_or(Errno::ESRCH)?;
    user::update_u32(lock, |old| {
        Some(if owner == 0 { old & FUTEX_OWNER_DIED | waiters | thread.tid() } else { old | FUTEX_WAITERS })
    })?;
    Ok((has_it, owner == 0))
}

//! Locks that the kernel hands over (FUTEX_LOCK_PI and its relatives): the word holds the owner's thread id.
//!
//! The kernel keeps no state of a lock beyond the queue of those who want it. The next owner is the first of the queue:
//! with one virtual CPU and no real-time load there is no priority to be lent.

use super::{Key, Place, Scope, TABLE, Waiter};
use crate::errno::{Errno, Result};
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::sched::{Sleep, WaitError};
use crate::task::{current, pid};
use crate::time::sleep::{self, Deadline};
use linux_raw_sys::general::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS};

/// What an attempt to take a lock came to.
enum Attempt {
    Taken,
    /// Somebody else has it; FUTEX_WAITERS is set now if it was to be.
    Held(u32),
}

fn attempt(addr: UserAddr, key: Key, announce: bool) -> Result<Attempt> {
    let tid = current().tid();
    let waited_for = TABLE.with(|table| table.borrow().0.contains_key(&key));
    let old = user::update_u32(addr, |old| {
        if old & FUTEX_TID_MASK == 0 {
            let waiters = if waited_for { FUTEX_WAITERS } else { 0 };
            Some(old & FUTEX_OWNER_DIED | waiters | tid)
        } else {
            (announce && old & FUTEX_TID_MASK != tid).then_some(old | FUTEX_WAITERS)
        }
    })?;
    match old & FUTEX_TID_MASK {
        0 => Ok(Attempt::Taken),
        owner if owner == tid => Err(Errno::EDEADLK),
        owner => Ok(Attempt::Held(owner)),
    }
}

/// FUTEX_TRYLOCK_PI.
///
/// # Errors
/// EAGAIN if somebody has it, EDEADLK if this thread has; EINVAL, EFAULT.
pub fn trylock_pi(addr: UserAddr, scope: Scope) -> Result<()> {
    let key = Key::new(addr, scope)?;
    match attempt(addr, key, false)? {
        Attempt::Taken => Ok(()),
        Attempt::Held(_) => Err(Errno::EAGAIN),
    }
}

/// FUTEX_LOCK_PI and FUTEX_LOCK_PI2.
///
/// # Errors
/// EDEADLK if this thread has it, ESRCH if its owner does not exist, ETIMEDOUT, ERESTARTNOINTR when interrupted; EINVAL,
/// EFAULT.
pub fn lock_pi(addr: UserAddr, scope: Scope, deadline: Option<Deadline>) -> Result<()> {
    let key = Key::new(addr, scope)?;
    let Attempt::Held(owner) = attempt(addr, key, true)? else { return Ok(()) };
    if pid::thread(owner).is_none() {
        return Err(Errno::ESRCH);
    }
    let waiter = Waiter::for_lock(&current(), key, None);
    TABLE.with(|table| table.borrow_mut().enter(&waiter));
    let handed_over = || waiter.woken.get().then_some(());
    let outcome = sleep::wait_until(&[], deadline, Sleep::Interruptible, handed_over);
    if waiter.woken.get() {
        return Ok(());
    }
    TABLE.with(|table| table.borrow_mut().leave(&waiter));
    Err(match outcome {
        Err(WaitError::TimedOut) => Errno::ETIMEDOUT,
        _ => Errno::ERESTARTNOINTR,
    })
}

/// FUTEX_UNLOCK_PI.
///
/// # Errors
/// EPERM if this thread does not have it; EINVAL, EFAULT.
pub fn unlock_pi(addr: UserAddr, scope: Scope) -> Result<()> {
    let key = Key::new(addr, scope)?;
    if user::load_u32(addr)? & FUTEX_TID_MASK != current().tid() {
        return Err(Errno::EPERM);
    }
    hand_over(addr, key, 0)
}

/// Gives the lock to the first who wants it, or to nobody; `died` is FUTEX_OWNER_DIED or 0.
pub(super) fn hand_over(addr: UserAddr, key: Key, died: u32) -> Result<()> {
    loop {
        let next = TABLE.with(|table| table.borrow().0.get(&key).and_then(|queue| queue.front().cloned()));
        let Some(next) = next else {
            user::update_u32(addr, |_| Some(died))?;
            return Ok(());
        };
        if !next.wants_lock {
            return Err(Errno::EINVAL);
        }
        TABLE.with(|table| table.borrow_mut().leave(&next));
        let Some(thread) = next.thread.upgrade().filter(|thread| !thread.dying()) else { continue };
        let more = TABLE.with(|table| table.borrow().0.contains_key(&key));
        let waiters = if more { FUTEX_WAITERS } else { 0 };
        user::update_u32(addr, |_| Some(thread.tid() | waiters | died))?;
        next.wake();
        return Ok(());
    }
}

/// The current thread ends: locks that it has and others wait for go to them, marked FUTEX_OWNER_DIED, as far as they are
/// in this address space.
pub(super) fn owner_exits() {
    let me = current();
    let Some(space) = me.process.try_space() else { return };
    let keys: alloc::vec::Vec<Key> = TABLE.with(|table| {
        let table = table.borrow();
        let of_locks = table.0.iter().filter(|(key, queue)| {
            [Place::Private(space.id()), Place::Space(space.id())].contains(&key.place)
                && queue.front().is_some_and(|waiter| waiter.wants_lock)
        });
        of_locks.map(|(key, _)| *key).collect()
    });
    drop(space);
    for key in keys {
        let addr = UserAddr(key.offset);
        if user::load_u32(addr).is_ok_and(|word| word & FUTEX_TID_MASK == me.tid()) {
            // Memory that is not there any more has no lock.
            let _ = hand_over(addr, key, FUTEX_OWNER_DIED);
        }
    }
}

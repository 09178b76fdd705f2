//! Locks that the kernel hands over (FUTEX_LOCK_PI and its relatives): the word holds the owner's thread id.
//!
//! The kernel keeps no state of a lock beyond the queue of those who want it. The next owner is the one with the highest
//! real-time priority, among equals the first of the queue. What they lend the owner: `inherit`.

use super::{Key, Scope, TABLE, Waiter, inherit};
use crate::errno::{Errno, Result};
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::sched::{Sleep, WaitError};
use crate::task::thread::Thread;
use crate::task::{current, pid};
use crate::time::sleep::{self, Deadline};
use alloc::rc::Rc;
use core::cmp::Reverse;
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
/// EDEADLK if this thread has it, or something that its owner waits for; ESRCH if its owner does not exist, ETIMEDOUT,
/// ERESTARTNOINTR when interrupted; EINVAL, EFAULT.
pub fn lock_pi(addr: UserAddr, scope: Scope, deadline: Option<Deadline>) -> Result<()> {
    let key = Key::new(addr, scope)?;
    let Attempt::Held(owner) = attempt(addr, key, true)? else { return Ok(()) };
    let owner = pid::thread(owner).ok_or(Errno::ESRCH)?;
    let me = current();
    if inherit::is_circle(&me, &owner) {
        return Err(Errno::EDEADLK);
    }
    let waiter = Waiter::for_lock(&me, key, None, addr);
    TABLE.with(|table| table.borrow_mut().enter(&waiter));
    inherit::begin(&waiter, &owner);
    let handed_over = || waiter.woken.get().then_some(());
    let outcome = sleep::wait_until(&[], deadline, Sleep::Interruptible, handed_over);
    if waiter.woken.get() {
        return Ok(());
    }
    TABLE.with(|table| table.borrow_mut().leave(&waiter));
    inherit::end(&waiter);
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
    let first = TABLE.with(|table| table.borrow().0.get(&key).and_then(|queue| queue.front().cloned()));
    if first.is_some_and(|first| !first.wants_lock) {
        return Err(Errno::EINVAL);
    }
    let next = next_owner(key);
    let word = next.as_ref().map_or(0, Next::word);
    user::update_u32(addr, |_| Some(word))?;
    if let Some(next) = next {
        next.waiter.wake();
    }
    Ok(())
}

/// Who gets a lock.
struct Next {
    waiter: Rc<Waiter>,
    thread: Rc<Thread>,
    /// Others wait for it.
    more: bool,
}

impl Next {
    /// What the lock's word holds.
    fn word(&self) -> u32 {
        self.thread.tid() | if self.more { FUTEX_WAITERS } else { 0 }
    }
}

/// Takes who is next out of the queue of a lock; the others wait for that one then.
fn next_owner(key: Key) -> Option<Next> {
    loop {
        let waiter = TABLE.with(|table| {
            let table = table.borrow();
            let lockers = table.0.get(&key)?.iter().filter(|waiter| waiter.wants_lock);
            lockers.min_by_key(|waiter| Reverse(waiter.priority())).cloned()
        })?;
        let owner = waiter.owner.borrow().upgrade();
        TABLE.with(|table| table.borrow_mut().leave(&waiter));
        inherit::end(&waiter);
        let Some(thread) = waiter.thread.upgrade().filter(|thread| !thread.dying()) else { continue };
        if let Some(owner) = owner {
            inherit::pass(key, &owner, &thread);
        }
        let more = TABLE.with(|table| table.borrow().0.contains_key(&key));
        return Some(Next { waiter, thread, more });
    }
}

/// The current thread ends: locks that it has and others wait for go to them, marked FUTEX_OWNER_DIED.
pub(super) fn owner_exits() {
    let me = current();
    while let Some(key) = me.lending.waited_for() {
        let Some(next) = next_owner(key) else { break };
        let (addr, word) = (next.waiter.lock_addr, next.word() | FUTEX_OWNER_DIED);
        // Memory that is not there any more has no lock. It may be the other's only.
        let _ = match next.thread.process.try_space() {
            Some(space) => space.update_u32(addr.0, |_| Some(word)),
            None => user::update_u32(addr, |_| Some(word)),
        };
        next.waiter.wake();
    }
}

//! Priority inheritance: who waits for a lock with a real-time priority lends it to the thread that has the lock, and so on
//! where that waits for another one. Nice values are not lent.
//!
//! Of each lock that is waited for, the waiters know the owner and the owner knows the waiters.

use super::{Key, Waiter};
use crate::task::sched;
use crate::task::thread::Thread;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

/// How long a chain of locks may be (kernel.max_lock_depth).
const MAX_CHAIN: usize = 1024;

/// A thread's part in it.
#[derive(Default)]
pub struct Lending {
    /// What it waits for.
    wait: RefCell<Option<Rc<Waiter>>>,
    /// Who waits for the locks that it has.
    lenders: RefCell<Vec<Rc<Waiter>>>,
}

impl Lending {
    /// The thread that has the lock this one waits for.
    fn owner(&self) -> Option<Rc<Thread>> {
        self.wait.borrow().as_ref().and_then(|waiter| waiter.owner.borrow().upgrade())
    }

    /// The lock of one that waits, if anybody does.
    pub(super) fn waited_for(&self) -> Option<Key> {
        self.lenders.borrow().first().map(|waiter| waiter.key.get())
    }
}

/// Whether `me` would wait for itself if it waited for `owner`, or for too many others.
pub(super) fn is_circle(me: &Rc<Thread>, owner: &Rc<Thread>) -> bool {
    let mut owner = Rc::clone(owner);
    for _ in 0..MAX_CHAIN {
        if Rc::ptr_eq(me, &owner) {
            return true;
        }
        let Some(next) = owner.lending.owner() else { return false };
        owner = next;
    }
    true
}

/// `waiter` waits for a lock that `owner` has.
pub(super) fn begin(waiter: &Rc<Waiter>, owner: &Rc<Thread>) {
    waiter.owner.replace(Rc::downgrade(owner));
    if let Some(thread) = waiter.thread.upgrade() {
        thread.lending.wait.replace(Some(Rc::clone(waiter)));
    }
    owner.lending.lenders.borrow_mut().push(Rc::clone(waiter));
    settle(owner);
}

/// It does not any more.
pub(super) fn end(waiter: &Rc<Waiter>) {
    if let Some(thread) = waiter.thread.upgrade() {
        thread.lending.wait.replace(None);
    }
    let Some(owner) = waiter.owner.take().upgrade() else { return };
    owner.lending.lenders.borrow_mut().retain(|other| !Rc::ptr_eq(other, waiter));
    settle(&owner);
}

/// Those who wait for a lock that was `from`'s wait for `to`.
pub(super) fn pass(key: Key, from: &Rc<Thread>, to: &Rc<Thread>) {
    let moved: Vec<_> = from.lending.lenders.borrow_mut().extract_if(.., |waiter| waiter.key.get() == key).collect();
    for waiter in &moved {
        waiter.owner.replace(Rc::downgrade(to));
    }
    to.lending.lenders.borrow_mut().extend(moved);
    settle(from);
    settle(to);
}

/// The priority of `thread` has changed.
pub fn priority_changed(thread: &Thread) {
    if let Some(owner) = thread.lending.owner() {
        settle(&owner);
    }
}

/// Gives a thread what is lent to it now, and so on along the chain as far as anything changes.
fn settle(thread: &Rc<Thread>) {
    let mut thread = Rc::clone(thread);
    for _ in 0..MAX_CHAIN {
        let lenders = thread.lending.lenders.borrow();
        let lent = lenders.iter().map(|waiter| waiter.priority()).max().unwrap_or(0);
        drop(lenders);
        if !sched::lend(&thread, lent) {
            return;
        }
        let Some(next) = thread.lending.owner() else { return };
        thread = next;
    }
}

//! Wait queues: how a thread sleeps until something happens, and how epoll hears of it.
//!
//! An object that can become ready owns an `Rc<WaitQueue>` and calls [`WaitQueue::wake`] *after* its state has changed.
//! A waiter registers first and looks at the state afterwards, so no wake-up is lost.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use bitflags::bitflags;

bitflags! {
    /// Readiness, with poll(2)'s bits.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Events: u32 {
        /// There is data to read.
        const IN = 0x001;
        /// Exceptional condition (out-of-band data, packet-mode change).
        const PRI = 0x002;
        /// Writing will not block.
        const OUT = 0x004;
        /// Error condition.
        const ERR = 0x008;
        /// The other end is gone.
        const HUP = 0x010;
        /// Not an open descriptor.
        const NVAL = 0x020;
        /// As `IN`, of normal data.
        const RDNORM = 0x040;
        /// Priority band data.
        const RDBAND = 0x080;
        /// As `OUT`.
        const WRNORM = 0x100;
        /// Priority data may be written.
        const WRBAND = 0x200;
        /// The peer has shut down its writing half.
        const RDHUP = 0x2000;
    }
}

impl Events {
    /// What a readable object reports.
    pub const READABLE: Events = Events::IN.union(Events::RDNORM);
    /// What a writable object reports.
    pub const WRITABLE: Events = Events::OUT.union(Events::WRNORM);
}

/// Somebody who wants to hear of events.
pub trait Wake {
    /// Called with the queue's change; `events` may be empty for "look again". Returns whether it made use of it
    /// (an exclusive waiter that did not leaves the wake-up to the next). Must not block, and must not touch the queue.
    fn wake(&self, events: Events) -> bool;
}

struct Entry {
    id: u64,
    exclusive: bool,
    waker: Rc<dyn Wake>,
}

/// See the module's text.
pub struct WaitQueue {
    entries: RefCell<Vec<Entry>>,
    next_id: Cell<u64>,
}

/// A waiter's place in a queue; given up when dropped.
pub struct Registration {
    queue: Rc<WaitQueue>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.queue.entries.borrow_mut().retain(|entry| entry.id != self.id);
    }
}

impl WaitQueue {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Rc<Self> {
        Rc::new(Self { entries: RefCell::new(Vec::new()), next_id: Cell::new(0) })
    }

    /// Registers `waker`. An exclusive waiter is woken only if no exclusive one before it made use of the wake-up.
    #[must_use]
    pub fn register(self: &Rc<Self>, waker: Rc<dyn Wake>, exclusive: bool) -> Registration {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        self.entries.borrow_mut().push(Entry { id, exclusive, waker });
        Registration { queue: Rc::clone(self), id }
    }

    /// Wakes every shared waiter and one exclusive waiter, in the order in which they came.
    pub fn wake(&self, events: Events) {
        self.wake_exclusive(events, 1);
    }

    /// Wakes everybody.
    pub fn wake_all(&self, events: Events) {
        self.wake_exclusive(events, usize::MAX);
    }

    /// Wakes every shared waiter and at most `exclusive` exclusive ones.
    pub fn wake_exclusive(&self, events: Events, exclusive: usize) {
        if self.entries.borrow().is_empty() {
            return;
        }
        // Wakers may register and unregister (through other objects), so they run on a copy.
        let wakers: Vec<_> = self.entries.borrow().iter().map(|e| (e.exclusive, Rc::clone(&e.waker))).collect();
        let mut left = exclusive;
        for (is_exclusive, waker) in wakers {
            if is_exclusive {
                if left > 0 && waker.wake(events) {
                    left -= 1;
                }
            } else {
                waker.wake(events);
            }
        }
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(Cell<usize>, bool);
    impl Wake for Count {
        fn wake(&self, _: Events) -> bool {
            self.0.set(self.0.get() + 1);
            self.1
        }
    }

    #[test]
    fn one_exclusive_waiter_that_makes_use_of_it() {
        let queue = WaitQueue::new();
        let idle = Rc::new(Count(Cell::new(0), false));
        let first = Rc::new(Count(Cell::new(0), true));
        let second = Rc::new(Count(Cell::new(0), true));
        let _a = queue.register(idle.clone(), true);
        let b = queue.register(first.clone(), true);
        let _c = queue.register(second.clone(), true);
        queue.wake(Events::IN);
        assert_eq!((idle.0.get(), first.0.get(), second.0.get()), (1, 1, 0));
        drop(b);
        queue.wake(Events::IN);
        assert_eq!((idle.0.get(), first.0.get(), second.0.get()), (2, 1, 1));
    }
}

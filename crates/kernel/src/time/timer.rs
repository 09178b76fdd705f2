//! The queue of kernel timers: everything that waits for an instant of CLOCK_MONOTONIC.
//!
//! Sleeping threads, timerfd, interval and POSIX timers all stand in it; its first deadline is what the VM process's
//! timer is set to.

use super::Instant;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};

/// What happens when a timer expires. Runs in the scheduler or at the end of an interrupt: must not block; may arm and
/// cancel timers (its own included).
pub trait Expire {
    /// Called once per arming, at or after the deadline.
    fn expire(&self);
}

impl<F: Fn()> Expire for F {
    fn expire(&self) {
        self();
    }
}

struct Queue {
    armed: RefCell<BTreeMap<(Instant, u64), Rc<dyn Expire>>>,
    next_id: Cell<u64>,
}

crate::global! {
    static QUEUE: Queue = Queue { armed: RefCell::new(BTreeMap::new()), next_id: Cell::new(0) };
}

/// A one-shot timer; disarmed when dropped.
#[derive(Default)]
pub struct Timer {
    armed: Cell<Option<(Instant, u64)>>,
}

impl Timer {
    /// A disarmed timer.
    #[must_use]
    pub const fn new() -> Self {
        Self { armed: Cell::new(None) }
    }

    /// Arms (or re-arms) the timer: `action` runs once when CLOCK_MONOTONIC has reached `at`. The queue holds `action`
    /// until then; what it refers to should be weak where it owns this timer.
    pub fn arm(&self, at: Instant, action: Rc<dyn Expire>) {
        self.cancel();
        QUEUE.with(|queue| {
            let id = queue.next_id.get();
            queue.next_id.set(id + 1);
            queue.armed.borrow_mut().insert((at, id), action);
            self.armed.set(Some((at, id)));
        });
    }

    /// Disarms the timer; returns whether it was armed and had not expired.
    pub fn cancel(&self) -> bool {
        let Some(key) = self.armed.take() else { return false };
        // The action is dropped after the borrow has ended: its drop may reach other timers.
        let action = QUEUE.with(|queue| queue.armed.borrow_mut().remove(&key));
        action.is_some()
    }

    /// When it will expire; `None` if it is disarmed or has expired.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let key = self.armed.get()?;
        QUEUE.with(|queue| queue.armed.borrow().contains_key(&key)).then_some(key.0)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The earliest deadline; [`Instant::FAR`] if nothing is armed.
#[must_use]
pub fn next_deadline() -> Instant {
    QUEUE.with(|queue| queue.armed.borrow().first_key_value().map_or(Instant::FAR, |(key, _)| key.0))
}

/// Runs everything whose deadline is not after `now`. Timers that the actions arm for a time not after `now` wait for
/// the next call, so this ends.
pub fn run_expired(now: Instant) {
    let before = QUEUE.with(|queue| queue.next_id.get());
    loop {
        let action = QUEUE.with(|queue| {
            let mut armed = queue.armed.borrow_mut();
            let key = armed.range(..=(now, u64::MAX)).map(|(key, _)| *key).find(|key| key.1 < before)?;
            armed.remove(&key)
        });
        match action {
            Some(action) => action.expire(),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expires_in_order_once_and_not_after_cancel() {
        let log = Rc::new(RefCell::new(alloc::vec::Vec::new()));
        let timers: alloc::vec::Vec<_> = (0..4).map(|_| Timer::new()).collect();
        for (i, at) in [30u64, 10, 20, 10].into_iter().enumerate() {
            let log = Rc::clone(&log);
            timers[i].arm(Instant(at), Rc::new(move || log.borrow_mut().push(i)));
        }
        assert_eq!(next_deadline(), Instant(10));
        assert!(timers[2].cancel());
        assert!(!timers[2].cancel());
        run_expired(Instant(29));
        assert_eq!(*log.borrow(), [1, 3]);
        assert_eq!(timers[1].deadline(), None);
        assert_eq!(next_deadline(), Instant(30));
        drop(timers);
        assert_eq!(next_deadline(), Instant::FAR);
    }

    #[test]
    fn an_action_that_rearms_for_the_past_does_not_loop() {
        struct Again {
            timer: Timer,
            count: Cell<u32>,
            me: RefCell<alloc::rc::Weak<Again>>,
        }
        impl Expire for Again {
            fn expire(&self) {
                self.count.set(self.count.get() + 1);
                let me = self.me.borrow().upgrade().expect("alive");
                self.timer.arm(Instant(0), me);
            }
        }
        let again = Rc::new(Again { timer: Timer::new(), count: Cell::new(0), me: RefCell::default() });
        *again.me.borrow_mut() = Rc::downgrade(&again);
        again.timer.arm(Instant(0), again.clone());
        run_expired(Instant(5));
        run_expired(Instant(5));
        assert_eq!(again.count.get(), 2);
        again.timer.cancel();
    }
}

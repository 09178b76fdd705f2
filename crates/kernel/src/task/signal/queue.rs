//! Queues of pending signals: a thread's own and the process's (signal(7), "Queueing and delivery semantics").

use super::info::SignalInfo;
use super::number::{Signal, SignalSet};
use crate::errno::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

crate::global! {
    /// Queued signals by real user id, for RLIMIT_SIGPENDING.
    static QUEUED: RefCell<BTreeMap<u32, u64>> = RefCell::new(BTreeMap::new());
}

/// How many signals are queued on the account of a user.
#[must_use]
pub fn queued_by(uid: u32) -> u64 {
    QUEUED.with(|queued| queued.borrow().get(&uid).copied().unwrap_or(0))
}

/// A queued signal counts against its sender's user while it exists.
pub struct Charge(u32);

impl Charge {
    /// Counts one more, unless `limit` has been reached.
    #[must_use]
    pub fn new(uid: u32, limit: u64) -> Option<Self> {
        QUEUED.with(|queued| {
            let mut queued = queued.borrow_mut();
            let count = queued.entry(uid).or_insert(0);
            if *count >= limit {
                return None;
            }
            *count += 1;
            Some(Self(uid))
        })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        QUEUED.with(|queued| {
            let mut queued = queued.borrow_mut();
            if let Some(count) = queued.get_mut(&self.0) {
                *count -= 1;
                if *count == 0 {
                    queued.remove(&self.0);
                }
            }
        });
    }
}

/// The owner of a signal that is queued at most once and counts what it missed: a POSIX timer.
pub trait Source {
    /// The signal leaves the queue for delivery: completes it; `None` drops it.
    fn take(&self, info: SignalInfo) -> Option<SignalInfo>;

    /// The signal was thrown away: it is ignored, or undone by its opposite.
    fn forget(&self) {}
}

struct Entry {
    info: SignalInfo,
    source: Option<Rc<dyn Source>>,
    _charge: Option<Charge>,
}

/// What became of a signal that was put into a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is pending.
    Queued,
    /// A standard signal that was pending already: it stays pending once.
    Merged,
}

/// Signals that wait for their delivery.
#[derive(Default)]
pub struct Pending {
    set: SignalSet,
    entries: Vec<Entry>,
}

impl Pending {
    /// Nothing pending.
    #[must_use]
    pub const fn new() -> Self {
        Self { set: SignalSet::EMPTY, entries: Vec::new() }
    }

    /// Which signals are pending.
    #[must_use]
    pub const fn set(&self) -> SignalSet {
        self.set
    }

    /// Adds a signal. Without a charge there is no room for its information: a real-time signal that a program queued is
    /// then refused, every other is pending without it.
    ///
    /// # Errors
    /// EAGAIN for a refused one.
    pub fn put(&mut self, info: SignalInfo, charge: impl FnOnce() -> Option<Charge>) -> Result<Put> {
        let signal = info.signal;
        if !signal.is_realtime() && self.set.has(signal) {
            return Ok(Put::Merged);
        }
        match charge() {
            Some(charge) => self.entries.push(Entry { info, source: None, _charge: Some(charge) }),
            None if signal.is_realtime() && info.code != super::info::SI_USER => return Err(Errno::EAGAIN),
            None => {}
        }
        self.set = self.set.with(signal);
        Ok(Put::Queued)
    }

    /// Adds the signal of a source that has room for it by itself.
    pub fn put_from(&mut self, info: SignalInfo, source: Rc<dyn Source>) {
        self.set = self.set.with(info.signal);
        self.entries.push(Entry { info, source: Some(source), _charge: None });
    }

    /// Which signal of `wanted` comes next.
    #[must_use]
    pub fn next(&self, wanted: SignalSet) -> Option<Signal> {
        let ready = self.set & wanted;
        (ready & SignalSet::SYNCHRONOUS).first().or_else(|| ready.first())
    }

    /// Takes the oldest pending instance of a signal. The source, if there is one, is asked by the caller after the
    /// borrow of this queue has ended.
    pub fn take(&mut self, signal: Signal) -> Option<(SignalInfo, Option<Rc<dyn Source>>)> {
        if !self.set.has(signal) {
            return None;
        }
        let at = self.entries.iter().position(|entry| entry.info.signal == signal);
        let taken = at.map(|at| self.entries.remove(at));
        if !self.entries.iter().any(|entry| entry.info.signal == signal) {
            self.set = self.set.without(signal);
        }
        if self.entries.is_empty() {
            self.entries = Vec::new();
        }
        Some(taken.map_or((SignalInfo::lost(signal), None), |entry| (entry.info, entry.source)))
    }

    /// Forgets all signals of `signals`; gives back sources, to be dropped by the caller outside of its borrow.
    pub fn flush(&mut self, signals: SignalSet) -> Vec<Rc<dyn Source>> {
        self.set = self.set & !signals;
        let mut sources = Vec::new();
        self.entries.retain_mut(|entry| {
            let keep = !signals.has(entry.info.signal);
            if !keep {
                sources.extend(entry.source.take());
            }
            keep
        });
        sources
    }

    /// Forgets the signal of a source (its timer was deleted or set anew).
    pub fn remove_source(&mut self, source: &Rc<dyn Source>) -> Option<Rc<dyn Source>> {
        let at = self.entries.iter().position(|entry| {
            entry.source.as_ref().is_some_and(|own| core::ptr::addr_eq(Rc::as_ptr(own), Rc::as_ptr(source)))
        })?;
        let entry = self.entries.remove(at);
        if !self.entries.iter().any(|other| other.info.signal == entry.info.signal) {
            self.set = self.set.without(entry.info.signal);
        }
        entry.source
    }
}

#[cfg(test)]
mod tests {
    use super::super::info::{SI_QUEUE, SI_USER};
    use super::super::number::{SIGHUP, SIGSEGV, SIGTERM, SIGUSR1};
    use super::*;
    use proptest::prelude::*;

    fn rt(n: u32) -> Signal {
        Signal::new(n).expect("in range")
    }

    fn put(pending: &mut Pending, info: SignalInfo) -> Result<Put> {
        pending.put(info, || Charge::new(77, 3))
    }

    #[test]
    fn standard_once_realtime_in_order() {
        let mut pending = Pending::new();
        assert_eq!(put(&mut pending, SignalInfo::process(SIGTERM, SI_USER, 1, 0)), Ok(Put::Queued));
        assert_eq!(put(&mut pending, SignalInfo::process(SIGTERM, SI_USER, 2, 0)), Ok(Put::Merged));
        for pid in [3, 4] {
            assert_eq!(put(&mut pending, SignalInfo::process(rt(40), SI_QUEUE, pid, 0)), Ok(Put::Queued));
        }
        assert_eq!(put(&mut pending, SignalInfo::process(rt(40), SI_QUEUE, 5, 0)), Err(Errno::EAGAIN));
        assert_eq!(queued_by(77), 3);
        assert_eq!(pending.next(SignalSet::ALL), Some(SIGTERM));
        assert_eq!(pending.take(SIGTERM).map(|t| t.0.pid()), Some(1));
        assert_eq!(pending.take(rt(40)).map(|t| t.0.pid()), Some(3));
        assert!(pending.set().has(rt(40)));
        assert_eq!(pending.take(rt(40)).map(|t| t.0.pid()), Some(4));
        assert!(pending.set().is_empty());
        assert_eq!(queued_by(77), 0);
    }

    #[test]
    fn without_room_a_standard_signal_loses_its_sender() {
        let mut pending = Pending::new();
        assert_eq!(pending.put(SignalInfo::process(SIGHUP, SI_QUEUE, 9, 0), || None), Ok(Put::Queued));
        assert_eq!(put(&mut pending, SignalInfo::fault(SIGSEGV, 1, 0x1000)), Ok(Put::Queued));
        assert_eq!(pending.next(SignalSet::ALL), Some(SIGSEGV), "faults first");
        assert_eq!(pending.take(SIGSEGV).map(|t| t.0.address()), Some(0x1000));
        assert_eq!(pending.take(SIGHUP).map(|t| t.0), Some(SignalInfo::lost(SIGHUP)));
        assert!(pending.take(SIGHUP).is_none());
    }

    #[test]
    fn a_source_s_signal_can_be_withdrawn() {
        struct Timer;
        impl Source for Timer {
            fn take(&self, info: SignalInfo) -> Option<SignalInfo> {
                Some(info)
            }
        }
        let source: Rc<dyn Source> = Rc::new(Timer);
        let mut pending = Pending::new();
        pending.put_from(SignalInfo::timer(SIGUSR1, 0, 0), Rc::clone(&source));
        assert!(pending.remove_source(&source).is_some());
        assert!(pending.set().is_empty());
        assert!(pending.remove_source(&source).is_none());
    }

    proptest! {
        /// Against a plain model: what goes in comes out once, by number and age, within the limit.
        #[test]
        fn behaves_as_the_model(ops in proptest::collection::vec((1u32..=64, any::<bool>()), 0..200)) {
            let mut pending = Pending::new();
            let mut model: Vec<(u32, u32)> = Vec::new();
            for (age, (number, take)) in ops.into_iter().enumerate() {
                let signal = rt(number);
                if take {
                    let got = pending.take(signal).map(|(info, _)| info.pid());
                    let expected = model.iter().position(|m| m.0 == number).map(|at| model.remove(at).1);
                    prop_assert_eq!(got, expected);
                } else {
                    let merged = number < 32 && model.iter().any(|m| m.0 == number);
                    let result = pending.put(SignalInfo::process(signal, SI_QUEUE, age as u32, 0), || Charge::new(5, 1000));
                    prop_assert_eq!(result, Ok(if merged { Put::Merged } else { Put::Queued }));
                    if !merged { model.push((number, age as u32)); }
                }
                let set = model.iter().fold(SignalSet::EMPTY, |set, m| set.with(rt(m.0)));
                prop_assert_eq!(pending.set(), set);
                prop_assert_eq!(queued_by(5), model.len() as u64);
            }
        }
    }
}

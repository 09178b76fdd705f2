//! Values of a set, what is to be undone, and who waits.

use super::MAX_VALUE;
use crate::errno::{Errno, Result};
use crate::task::thread::Thread;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::Cell;

/// One operation of semop(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Which semaphore of the set.
    pub number: u16,
    /// What is added; 0 waits for the value 0.
    pub change: i16,
    /// IPC_NOWAIT.
    pub no_wait: bool,
    /// SEM_UNDO.
    pub undo: bool,
}

/// What a waiter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// A larger value.
    Increase,
    /// The value 0.
    Zero,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Semaphore {
    pub(super) value: i32,
    /// Who performed the last operation.
    pub(super) pid: u32,
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    Performed,
    Blocked,
    Failed(Errno),
}

/// Operations of one thread.
pub(super) struct Pending {
    thread: Weak<Thread>,
    pid: u32,
    operations: Vec<Operation>,
    undo: Option<u64>,
    /// The operation that could not be performed.
    blocked: Cell<usize>,
    outcome: Cell<Option<Result<()>>>,
}

impl Pending {
    pub(super) fn new(thread: &Rc<Thread>, operations: Vec<Operation>, undo: Option<u64>) -> Rc<Self> {
        let pid = thread.process.pid();
        let thread = Rc::downgrade(thread);
        Rc::new(Self { thread, pid, operations, undo, blocked: Cell::new(0), outcome: Cell::new(None) })
    }

    fn alters(&self) -> bool {
        self.operations.iter().any(|operation| operation.change != 0)
    }

    pub(super) fn outcome(&self) -> Option<Result<()>> {
        self.outcome.get()
    }

    pub(super) fn end(&self, outcome: Result<()>) {
        self.outcome.set(Some(outcome));
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.upgrade() {
            thread.interrupt();
        }
    }
}

pub(super) struct State {
    pub(super) semaphores: Vec<Semaphore>,
    pub(super) pending: VecDeque<Rc<Pending>>,
    /// By [`super::UndoList::id`]: what is added to each semaphore when the list's last holder ends.
    adjustments: BTreeMap<u64, Vec<i16>>,
}

impl State {
    pub(super) fn new(count: usize) -> Result<Self> {
        Ok(Self { semaphores: filled(count)?, pending: VecDeque::new(), adjustments: BTreeMap::new() })
    }

    /// Sets a value; nothing is undone of what was done to it before.
    pub(super) fn set(&mut self, number: usize, value: i32, pid: u32) {
        self.semaphores[number] = Semaphore { value, pid };
        for adjustments in self.adjustments.values_mut() {
            adjustments[number] = 0;
        }
    }

    pub(super) fn prepare_undo(&mut self, list: u64) -> Result<()> {
        if !self.adjustments.contains_key(&list) {
            self.adjustments.insert(list, filled(self.semaphores.len())?);
        }
        Ok(())
    }

    /// Performs all operations, or none.
    pub(super) fn attempt(&mut self, pending: &Pending) -> Attempt {
        let mut done = 0;
        let failed = loop {
            let Some(operation) = pending.operations.get(done) else { break None };
            if let Some(failed) = self.perform(operation, pending.undo) {
                break Some(failed);
            }
            done += 1;
        };
        let Some(failed) = failed else {
            for operation in &pending.operations {
                self.semaphores[usize::from(operation.number)].pid = pending.pid;
            }
            return Attempt::Performed;
        };
        for operation in pending.operations[..done].iter().rev() {
            self.semaphores[usize::from(operation.number)].value -= i32::from(operation.change);
            if let Some(adjustment) = self.adjustment(operation, pending.undo) {
                *adjustment += operation.change;
            }
        }
        pending.blocked.set(done);
        match failed {
            Attempt::Blocked if pending.operations[done].no_wait => Attempt::Failed(Errno::EAGAIN),
            other => other,
        }
    }

    /// Performs one operation, or says why not.
    fn perform(&mut self, operation: &Operation, undo: Option<u64>) -> Option<Attempt> {
        let number = usize::from(operation.number);
        let (value, change) = (self.semaphores[number].value, i32::from(operation.change));
        if change == 0 && value != 0 || value + change < 0 {
            return Some(Attempt::Blocked);
        }
        if value + change > MAX_VALUE {
            return Some(Attempt::Failed(Errno::ERANGE));
        }
        if let Some(adjustment) = self.adjustment(operation, undo) {
            let adjusted = i32::from(*adjustment) - change;
            match i16::try_from(adjusted) {
                Ok(adjusted) => *adjustment = adjusted,
                Err(_) => return Some(Attempt::Failed(Errno::ERANGE)),
            }
        }
        self.semaphores[number].value = value + change;
        None
    }

    fn adjustment(&mut self, operation: &Operation, undo: Option<u64>) -> Option<&mut i16> {
        let list = undo.filter(|_| operation.undo)?;
        self.adjustments.get_mut(&list).map(|adjustments| &mut adjustments[usize::from(operation.number)])
    }

    /// Performs what can be performed; gives what has come to an end.
    pub(super) fn complete_pending(&mut self) -> Vec<Rc<Pending>> {
        let mut completed = Vec::new();
        // Those that only wait for 0 change nothing, and come first; one that alters makes all worth another look.
        'again: loop {
            for alters in [false, true] {
                let mut at = 0;
                while let Some(pending) = self.pending.get(at).cloned() {
                    if pending.alters() != alters {
                        at += 1;
                        continue;
                    }
                    let outcome = match self.attempt(&pending) {
                        Attempt::Blocked => {
                            at += 1;
                            continue;
                        }
                        Attempt::Performed => Ok(()),
                        Attempt::Failed(error) => Err(error),
                    };
                    self.pending.remove(at);
                    pending.end(outcome);
                    completed.push(pending);
                    if alters && outcome.is_ok() {
                        continue 'again;
                    }
                }
            }
            return completed;
        }
    }

    pub(super) fn waiting(&self, number: usize, awaited: Awaited) -> usize {
        let waits = |pending: &&Rc<Pending>| {
            let operation = pending.operations[pending.blocked.get()];
            usize::from(operation.number) == number && (operation.change == 0) == (awaited == Awaited::Zero)
        };
        self.pending.iter().filter(waits).count()
    }

    /// Adds what a list has to undo, as far as values can go; whether it had anything.
    pub(super) fn undo(&mut self, list: u64, pid: u32) -> bool {
        let Some(adjustments) = self.adjustments.remove(&list) else { return false };
        let mut any = false;
        for (semaphore, adjustment) in self.semaphores.iter_mut().zip(adjustments) {
            if adjustment != 0 {
                semaphore.value = (semaphore.value + i32::from(adjustment)).clamp(0, MAX_VALUE);
                semaphore.pid = pid;
                any = true;
            }
        }
        any
    }
}

fn filled<T: Copy + Default>(count: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    values.resize(count, T::default());
    Ok(values)
}

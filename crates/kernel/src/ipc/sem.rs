//! Semaphore sets (semget(2), semop(2)).
//!
//! Operations that can't be performed wait in the set; whoever changes it performs, in the waiters' stead and in the order in
//! which they came, all that can be performed then.

mod state;
mod undo;

pub use state::{Awaited, Operation};
pub use undo::UndoList;

use super::permissions::{Permissions, Want};
use super::table::{Object, Request, Table};
use super::{caller, limits, now_s};
use crate::errno::{Errno, Result};
use crate::task::current;
use crate::task::sched::{Sleep, WaitError};
use crate::time::sleep::{self, Deadline};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use state::{Attempt, Pending, State};

/// The largest value of a semaphore (SEMVMX), and the largest adjustment at exit (SEMAEM).
pub const MAX_VALUE: i32 = 32767;

/// A set.
pub struct Set {
    permissions: Permissions,
    /// How many semaphores.
    pub count: usize,
    state: RefCell<State>,
    /// When semop(2) last succeeded, in seconds of CLOCK_REALTIME; 0 for never.
    pub operated_s: Cell<i64>,
    /// When it was made or changed.
    pub changed_s: Cell<i64>,
}

crate::global! {
    static SETS: RefCell<Table<Set>> = RefCell::new(Table::new());
}

impl Object for Set {
    fn permissions(&self) -> &Permissions {
        &self.permissions
    }
}

impl Set {
    /// Checks the number of a semaphore.
    fn number(&self, number: i32) -> Result<usize> {
        usize::try_from(number).ok().filter(|number| *number < self.count).ok_or(Errno::EINVAL)
    }

    /// GETVAL.
    ///
    /// # Errors
    /// EINVAL.
    pub fn value(&self, number: i32) -> Result<i32> {
        Ok(self.state.borrow().semaphores[self.number(number)?].value)
    }

    /// GETPID: who performed the last operation.
    ///
    /// # Errors
    /// EINVAL.
    pub fn last_pid(&self, number: i32) -> Result<u32> {
        Ok(self.state.borrow().semaphores[self.number(number)?].pid)
    }

    /// GETNCNT and GETZCNT: operations that wait for a semaphore.
    ///
    /// # Errors
    /// EINVAL.
    pub fn waiting(&self, number: i32, awaited: Awaited) -> Result<usize> {
        let number = self.number(number)?;
        Ok(self.state.borrow().waiting(number, awaited))
    }

    /// GETALL.
    #[must_use]
    pub fn values(&self) -> Vec<u16> {
        self.state.borrow().semaphores.iter().map(|semaphore| semaphore.value as u16).collect()
    }

    /// SETVAL.
    ///
    /// # Errors
    /// EINVAL.
    pub fn set_value(&self, number: i32, value: i32) -> Result<()> {
        let number = self.number(number)?;
        self.state.borrow_mut().set(number, value, caller());
        self.changed();
        Ok(())
    }

    /// SETALL; there are as many values as semaphores.
    pub fn set_values(&self, values: &[u16]) {
        for (number, value) in values.iter().enumerate() {
            self.state.borrow_mut().set(number, i32::from(*value), caller());
        }
        self.changed();
    }

    fn changed(&self) {
        self.changed_s.set(now_s());
        if self.complete_pending() {
            self.operated_s.set(now_s());
        }
    }

    /// Performs what can be performed now; whether anything was.
    fn complete_pending(&self) -> bool {
        let completed = self.state.borrow_mut().complete_pending();
        let performed = completed.iter().any(|pending| pending.outcome() == Some(Ok(())));
        completed.iter().for_each(|pending| pending.wake());
        performed
    }

    /// IPC_RMID: whoever waits gets EIDRM.
    pub fn remove(&self) {
        SETS.with(|table| table.borrow_mut().remove(self));
        let waiting = core::mem::take(&mut self.state.borrow_mut().pending);
        for pending in waiting {
            pending.end(Err(Errno::EIDRM));
            pending.wake();
        }
    }
}

/// semget(2): the identifier of a set of at least `count` semaphores.
///
/// # Errors
/// EINVAL, EEXIST, ENOENT, EACCES, ENOSPC, ENOMEM.
pub fn get(request: Request, count: i32) -> Result<i32> {
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
    if count as u64 > limits::semmsl() {
        return Err(Errno::EINVAL);
    }
    let used = used();
    let check = |set: &Set| if count > set.count { Err(Errno::EINVAL) } else { Ok(()) };
    let make = |permissions| {
        if count == 0 {
            return Err(Errno::EINVAL);
        }
        if (used + count) as u64 > limits::semmns() {
            return Err(Errno::ENOSPC);
        }
        Ok(Set {
            permissions,
            count,
            state: RefCell::new(State::new(count)?),
            operated_s: Cell::new(0),
            changed_s: Cell::new(now_s()),
        })
    };
    SETS.with(|table| table.borrow_mut().get(request, limits::semmni() as usize, check, make))
}

/// semop(2) and semtimedop(2): performs all operations at once, or none.
///
/// # Errors
/// EINVAL, EFBIG, EACCES, ERANGE; EAGAIN with IPC_NOWAIT or when time is up; EIDRM, EINTR, ENOMEM.
pub fn operate(id: i32, operations: Vec<Operation>, deadline: Option<Deadline>) -> Result<()> {
    let set = find(id)?;
    if operations.iter().any(|operation| usize::from(operation.number) >= set.count) {
        return Err(Errno::EFBIG);
    }
    let alters = operations.iter().any(|operation| operation.change != 0);
    set.permissions.check(if alters { Want::WRITE } else { Want::READ })?;
    let undo = operations.iter().any(|operation| operation.undo).then(|| UndoList::of(&current()));
    if let Some(undo) = &undo {
        set.state.borrow_mut().prepare_undo(undo.id())?;
        undo.add(id);
    }
    let pending = Pending::new(&current(), operations, undo.map(|undo| undo.id()));
    let attempt = set.state.borrow_mut().attempt(&pending);
    match attempt {
        Attempt::Performed => {
            set.operated_s.set(now_s());
            if alters {
                set.complete_pending();
            }
            return Ok(());
        }
        Attempt::Failed(error) => return Err(error),
        Attempt::Blocked => {}
    }
    set.state.borrow_mut().pending.push_back(Rc::clone(&pending));
    let outcome = sleep::wait_until(&[], deadline, Sleep::Interruptible, || pending.outcome());
    outcome.unwrap_or_else(|error| {
        set.state.borrow_mut().pending.retain(|other| !Rc::ptr_eq(other, &pending));
        // What was performed together with the end of the wait has been performed.
        pending.outcome().unwrap_or(Err(match error {
            WaitError::TimedOut => Errno::EAGAIN,
            WaitError::Interrupted => Errno::EINTR,
        }))
    })
}

/// The set with an identifier.
///
/// # Errors
/// EINVAL.
pub fn find(id: i32) -> Result<Rc<Set>> {
    SETS.with(|table| table.borrow().find(id))
}

/// The set at an index (SEM_STAT).
///
/// # Errors
/// EINVAL.
pub fn at_index(index: i32) -> Result<Rc<Set>> {
    SETS.with(|table| table.borrow().at_index(index))
}

/// All sets.
#[must_use]
pub fn all() -> Vec<Rc<Set>> {
    SETS.with(|table| table.borrow().all())
}

/// How many sets there are.
#[must_use]
pub fn count() -> usize {
    SETS.with(|table| table.borrow().count())
}

/// How many semaphores there are in all sets.
#[must_use]
pub fn used() -> usize {
    all().iter().map(|set| set.count).sum()
}

/// The largest index in use.
#[must_use]
pub fn highest_index() -> u32 {
    SETS.with(|table| table.borrow().highest_index())
}

//! From a number and six arguments to a result.

use super::table::{Args, GROUPS, Syscall};
use crate::errno::{Errno, Result};
use alloc::collections::BTreeMap;
use core::cell::{Cell, RefCell};

/// One past the largest number that is looked up in the table.
const NUMBERS: usize = 480;

/// The table by number, put together at compile time.
static TABLE: [Option<&'static Syscall>; NUMBERS] = {
    let mut table: [Option<&'static Syscall>; NUMBERS] = [None; NUMBERS];
    let mut group = 0;
    while group < GROUPS.len() {
        let mut index = 0;
        while index < GROUPS[group].len() {
            let call = &GROUPS[group][index];
            assert!(table[call.number as usize].is_none(), "two entries for one system call");
            table[call.number as usize] = Some(call);
            index += 1;
        }
        group += 1;
    }
    table
};

/// What was called without being implemented.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// How often each number was called, of the first [`MAX_MISSING`] numbers.
    pub known: BTreeMap<u64, u64>,
    /// Calls of all further numbers.
    pub others: u64,
}

/// Numbers that are counted by themselves.
const MAX_MISSING: usize = 512;

impl Missing {
    fn count(&mut self, number: u64) {
        if self.known.len() == MAX_MISSING && !self.known.contains_key(&number) {
            self.others += 1;
        } else {
            *self.known.entry(number).or_insert(0) += 1;
        }
    }
}

#[derive(Default)]
struct State {
    missing: RefCell<Missing>,
    tracing: Cell<bool>,
    /// Who looks at system calls: `--trace`, and the threads that are traced.
    watchers: Cell<usize>,
}

crate::global! {
    static STATE: State = State {
        missing: RefCell::new(Missing { known: BTreeMap::new(), others: 0 }),
        tracing: Cell::new(false),
        watchers: Cell::new(0),
    };
}

/// Turns `--trace` on.
pub fn set_tracing(on: bool) {
    if STATE.with(|state| state.tracing.replace(on)) != on {
        if on { watch() } else { unwatch() }
    }
}

/// There is one more who looks at system calls.
pub(crate) fn watch() {
    STATE.with(|state| state.watchers.set(state.watchers.get() + 1));
}

/// There is one less.
pub(crate) fn unwatch() {
    STATE.with(|state| state.watchers.set(state.watchers.get() - 1));
}

/// Whether anybody may look at system calls.
#[must_use]
pub fn watched() -> bool {
    STATE.with(|state| state.watchers.get() > 0)
}

/// Whether `--trace` is on.
#[must_use]
pub fn tracing() -> bool {
    STATE.with(|state| state.tracing.get())
}

/// The table's entry for a number.
#[must_use]
pub fn entry(number: u64) -> Option<&'static Syscall> {
    TABLE.get(usize::try_from(number).ok()?).copied().flatten()
}

/// Performs a system call for the current thread.
///
/// # Errors
/// The call's; ENOSYS for a number that is not in the table.
pub fn call(number: u64, args: [u64; 6]) -> Result<u64> {
    match entry(number) {
        Some(call) => (call.handler)(Args(args)),
        None => {
            STATE.with(|state| state.missing.borrow_mut().count(number));
            Err(Errno::ENOSYS)
        }
    }
}

/// What was called without being implemented.
#[must_use]
pub fn missing() -> Missing {
    STATE.with(|state| state.missing.borrow().clone())
}

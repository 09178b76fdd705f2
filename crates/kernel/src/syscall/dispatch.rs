//! From a number and six arguments to a result.

use super::table::{Args, GROUPS, Syscall};
use crate::errno::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
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

#[derive(Default)]
struct Missing {
    /// How often each unimplemented number was called. Bounded: numbers beyond the table count as one.
    counts: RefCell<BTreeMap<u64, u64>>,
    tracing: Cell<bool>,
}

crate::global! {
    static MISSING: Missing = Missing { counts: RefCell::new(BTreeMap::new()), tracing: Cell::new(false) };
}

/// Turns `--trace` on.
pub fn set_tracing(on: bool) {
    MISSING.with(|m| m.tracing.set(on));
}

/// Whether `--trace` is on.
#[must_use]
pub fn tracing() -> bool {
    MISSING.with(|m| m.tracing.get())
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
            MISSING.with(|m| *m.counts.borrow_mut().entry(number.min(NUMBERS as u64)).or_insert(0) += 1);
            Err(Errno::ENOSYS)
        }
    }
}

/// What was called without being implemented: number and count.
#[must_use]
pub fn missing() -> Vec<(u64, u64)> {
    MISSING.with(|m| m.counts.borrow().iter().map(|(n, c)| (*n, *c)).collect())
}

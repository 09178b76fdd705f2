//! Advisory locks on files: record locks of processes and of open file descriptions (fcntl(2)), and flock(2).
//!
//! flock(2) is a lock on all bytes in a space of its own: it does not see record locks, nor they it. Locks belong to the
//! file and not to the name, so they are kept by device and inode number, and only while there are any or somebody
//! waits: both keep the file open, so the numbers stay this file's.

mod records;

pub use records::{Kind, LAST_OFFSET, Owner, Range, Record};

use super::file::OpenFile;
use super::inode::Metadata;
use crate::errno::{Errno, Result};
use crate::task::sched::{Sleep, wait_until};
use crate::wait::{Events, WaitQueue};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use records::Records;

/// How many locks there can be in all; Linux has only the kernel's memory as a bound. ENOLCK beyond.
const MAX_RECORDS: usize = 1 << 18;
/// How many owners the search for a deadlock follows. Linux follows ten.
const MAX_FOLLOWED: usize = 256;

/// Locks of different spaces do not see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// fcntl(2).
    Records,
    /// flock(2).
    Files,
}

/// A file that can be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    dev: u64,
    ino: u64,
    space: Space,
}

impl Key {
    fn of(file: &OpenFile, space: Space) -> Self {
        let Metadata { dev, ino, .. } = file.metadata();
        Self { dev, ino, space }
    }
}

struct Locked {
    records: Records,
    /// Woken when a lock has become less.
    released: Rc<WaitQueue>,
}

struct Table {
    files: BTreeMap<Key, Locked>,
    /// Number of records in all.
    count: usize,
    /// What processes wait for, with one entry for each waiting thread.
    waits: Vec<(Key, Record)>,
}

crate::global! {
    static TABLE: RefCell<Table> =
        RefCell::new(Table { files: BTreeMap::new(), count: 0, waits: Vec::new() });
}

impl Table {
    /// Changes a file's locks.
    fn change<T>(&mut self, key: Key, change: impl FnOnce(&mut Records) -> T) -> T {
        let locked =
            self.files.entry(key).or_insert_with(|| Locked { records: Records::default(), released: WaitQueue::new() });
        let before = locked.records.len();
        let outcome = change(&mut locked.records);
        self.count = self.count + locked.records.len() - before;
        outcome
    }

    /// Forgets a file that has no locks and for whose locks nobody waits.
    fn tidy(&mut self, key: Key) {
        if self.files.get(&key).is_some_and(|locked| locked.records.is_empty() && locked.released.is_empty()) {
            self.files.remove(&key);
        }
    }

    fn conflicts<'a>(&'a self, key: Key, wanted: &'a Record) -> impl Iterator<Item = &'a Record> {
        self.files.get(&key).into_iter().flat_map(|locked| locked.records.conflicts(wanted))
    }

    /// Whether `wanted` would wait for a process that waits, directly or through others, for the owner of `wanted`.
    fn is_deadlock(&self, key: Key, wanted: &Record) -> bool {
        let mut blockers: Vec<Owner> = self.conflicts(key, wanted).map(|held| held.owner).collect();
        let mut next = 0;
        while let Some(blocker) = blockers.get(next).copied().filter(|_| next < MAX_FOLLOWED) {
            next += 1;
            for (key, wait) in self.waits.iter().filter(|(_, wait)| wait.owner == blocker) {
                for held in self.conflicts(*key, wait) {
                    if held.owner == wanted.owner {
                        return true;
                    }
                    if !blockers.contains(&held.owner) {
                        blockers.push(held.owner);
                    }
                }
            }
        }
        false
    }
}

/// Takes the lock, or says whether it has to wait: `None` is a conflict.
fn attempt(key: Key, wanted: &Record) -> Option<Result<()>> {
    let taken = TABLE.with(|table| {
        let mut table = table.borrow_mut();
        if table.conflicts(key, wanted).next().is_some() {
            return None;
        }
        if table.count >= MAX_RECORDS {
            return Some(Err(Errno::ENOLCK));
        }
        table.change(key, |records| records.add(wanted));
        Some(Ok(()))
    });
    if taken == Some(Ok(())) && wanted.kind == Kind::Shared {
        // It may have been an exclusive lock.
        wake(key);
    }
    taken
}

fn wake(key: Key) {
    let queue = TABLE.with(|table| table.borrow().files.get(&key).map(|locked| Rc::clone(&locked.released)));
    if let Some(queue) = queue {
        queue.wake_all(Events::empty());
    }
}

/// A thread's entry in the list of what processes wait for.
struct Waiting(Key, Record);

impl Waiting {
    fn begin(key: Key, wanted: Record) -> Self {
        TABLE.with(|table| table.borrow_mut().waits.push((key, wanted)));
        Self(key, wanted)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        TABLE.with(|table| {
            let waits = &mut table.borrow_mut().waits;
            if let Some(at) = waits.iter().position(|(key, wanted)| *key == self.0 && *wanted == self.1) {
                waits.swap_remove(at);
            }
        });
    }
}

/// Takes a lock; `wait`: once nothing is in its way.
///
/// # Errors
/// EAGAIN if it would have to wait, EDEADLK if a record lock of a process would wait for ever, ENOLCK, ERESTARTSYS.
pub fn lock(file: &OpenFile, space: Space, wanted: &Record, wait: bool) -> Result<()> {
    let key = Key::of(file, space);
    if !wait {
        return attempt(key, wanted).unwrap_or(Err(Errno::EAGAIN));
    }
    if let Some(outcome) = attempt(key, wanted) {
        return outcome;
    }
    let waiting = Waiting::begin(key, *wanted);
    // Owners other than processes can be anybody's, so nothing can be said about who waits for whom.
    let by_process = matches!(wanted.owner, Owner::Table(_));
    let queue = TABLE.with(|table| {
        let table = table.borrow();
        table.files.get(&key).map(|locked| Rc::clone(&locked.released)).ok_or(Errno::ENOLCK)
    })?;
    let outcome = wait_until(&[&queue], None, Sleep::Interruptible, || {
        attempt(key, wanted).or_else(|| {
            let deadlock = by_process && TABLE.with(|table| table.borrow().is_deadlock(key, wanted));
            deadlock.then_some(Err(Errno::EDEADLK))
        })
    });
    drop(waiting);
    TABLE.with(|table| table.borrow_mut().tidy(key));
    outcome?
}

/// Takes away the owner's locks on `range`.
pub fn unlock(file: &OpenFile, space: Space, owner: Owner, range: Range) {
    // What is not locked costs no look at the file: this runs at every close(2).
    if TABLE.with(|table| table.borrow().count == 0) {
        return;
    }
    let key = Key::of(file, space);
    let had = TABLE.with(|table| {
        let mut table = table.borrow_mut();
        table.files.contains_key(&key) && table.change(key, |records| records.remove(owner, range))
    });
    if had {
        wake(key);
        TABLE.with(|table| table.borrow_mut().tidy(key));
    }
}

/// The first record lock in the way of `wanted`.
#[must_use]
pub fn test(file: &OpenFile, wanted: &Record) -> Option<Record> {
    let key = Key::of(file, Space::Records);
    TABLE.with(|table| table.borrow().conflicts(key, wanted).next().copied())
}

/// The first lock on `range` that `owner` has.
#[must_use]
pub fn held(file: &OpenFile, space: Space, owner: Owner, range: Range) -> Option<Record> {
    let key = Key::of(file, space);
    TABLE.with(|table| {
        let table = table.borrow();
        let mut all = table.files.get(&key).into_iter().flat_map(|locked| locked.records.iter());
        all.find(|held| held.owner == owner && held.range.overlaps(range)).copied()
    })
}

/// Lets go of what an open file description holds, when it ends.
pub fn description_ended(file: &OpenFile) {
    let owner = Owner::Description(core::ptr::from_ref(file).addr());
    unlock(file, Space::Files, owner, Range::ALL);
    unlock(file, Space::Records, owner, Range::ALL);
}

/// /proc/locks (proc_locks(5)).
#[must_use]
pub fn text() -> String {
    TABLE.with(|table| {
        let table = table.borrow();
        let all = table.files.iter().flat_map(|(key, locked)| locked.records.iter().map(move |held| (key, held)));
        all.enumerate()
            .map(|(index, (key, held))| {
                let kind = match (key.space, held.owner) {
                    (Space::Files, _) => "FLOCK ",
                    (Space::Records, Owner::Table(_)) => "POSIX ",
                    (Space::Records, Owner::Description(_)) => "OFDLCK",
                };
                let access = if held.kind == Kind::Exclusive { "WRITE" } else { "READ " };
                let pid = if kind == "OFDLCK" { -1 } else { i64::from(held.pid) };
                let end = if held.range.last == LAST_OFFSET { "EOF".into() } else { format!("{}", held.range.last) };
                let (major, minor) = (super::device::major(key.dev), super::device::minor(key.dev));
                format!(
                    "{}: {kind} ADVISORY  {access} {pid} {major:02x}:{minor:02x}:{} {} {end}\n",
                    index + 1,
                    key.ino,
                    held.range.first
                )
            })
            .collect()
    })
}

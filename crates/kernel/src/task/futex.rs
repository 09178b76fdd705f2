//! Futexes (futex(2)): waiting on a word of a program's memory, and waking who waits there.
//!
//! The word is looked at and the waiter entered with nothing in between (one virtual CPU, a kernel that is not
//! preempted), so no wake-up is lost. A waiter is found by its key: address space and address for private memory, object
//! and offset for shared memory.

mod inherit;
mod pi;
mod requeue_pi;
mod robust;

pub use inherit::{Lending, priority_changed};
pub use pi::{lock_pi, trylock_pi, unlock_pi};
pub use requeue_pi::{requeue_pi, wait_requeue_pi};
pub use robust::thread_exits;

use super::current;
use super::sched::{Sleep, WaitError};
use super::thread::Thread;
use crate::errno::{Errno, Result};
use crate::mm::addr::{USER_END, UserAddr};
use crate::mm::space::Identity;
use crate::mm::user;
use crate::time::sleep::{self, Deadline};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// What a wait matches any wake with.
pub const MATCH_ANY: u32 = linux_raw_sys::general::FUTEX_BITSET_MATCH_ANY;

/// Who may wait for the same word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Threads of one address space (FUTEX_PRIVATE_FLAG).
    Private,
    /// Whoever maps the memory.
    Shared,
}

/// What a word is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    place: Place,
    offset: u64,
}

/// Where a word is. Private and shared waiters on the same memory of one address space do not see each other, as on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// An address space, for its own threads only.
    Private(u64),
    /// Memory of an address space that is not shared, where FUTEX_PRIVATE_FLAG was not given.
    Space(u64),
    /// An object in memory that may be shared.
    Object(u64),
}

impl Key {
    /// The key of an aligned word of the current process.
    fn new(addr: UserAddr, scope: Scope) -> Result<Self> {
        if !addr.0.is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        // Hosted tests may have no address space.
        let Some(space) = current().process.try_space() else {
            return Ok(Self { place: Place::Private(0), offset: addr.0 });
        };
        if addr.0 >= USER_END {
            return Err(Errno::EFAULT);
        }
        if scope == Scope::Private {
            return Ok(Self { place: Place::Private(space.id()), offset: addr.0 });
        }
        match space.identity(addr.0) {
            Some(Identity::Object { id, offset }) => Ok(Self { place: Place::Object(id as u64), offset }),
            Some(Identity::Private { .. }) => Ok(Self { place: Place::Space(space.id()), offset: addr.0 }),
            None => Err(Errno::EFAULT),
        }
    }
}

/// A thread in a queue.
struct Waiter {
    thread: Weak<Thread>,
    key: Cell<Key>,
    bits: u32,
    /// Waits for a lock (`pi`), to be handed over rather than woken.
    wants_lock: bool,
    /// The lock that it is to be moved to before that (`requeue_pi`).
    lock: Option<Key>,
    /// Where the lock is in the memory of the thread's process.
    lock_addr: UserAddr,
    /// Who has the lock (`inherit`).
    owner: RefCell<Weak<Thread>>,
    woken: Cell<bool>,
}

impl Waiter {
    fn new(thread: &Rc<Thread>, key: Key, bits: u32) -> Rc<Self> {
        Rc::new(Self::plain(thread, key, bits))
    }

    fn plain(thread: &Rc<Thread>, key: Key, bits: u32) -> Self {
        Self {
            thread: Rc::downgrade(thread),
            key: Cell::new(key),
            bits,
            wants_lock: false,
            lock: None,
            lock_addr: UserAddr::NULL,
            owner: RefCell::new(Weak::new()),
            woken: Cell::new(false),
        }
    }

    /// One that waits for the lock at `lock_addr`, now or once it has been moved from `key` to `lock`.
    fn for_lock(thread: &Rc<Thread>, key: Key, lock: Option<Key>, lock_addr: UserAddr) -> Rc<Self> {
        Rc::new(Self { wants_lock: true, lock, lock_addr, ..Self::plain(thread, key, MATCH_ANY) })
    }

    /// Its thread's real-time priority; 0 for others.
    fn priority(&self) -> u8 {
        self.thread.upgrade().map_or(0, |thread| thread.sched.effective().priority)
    }

    fn wake(&self) {
        self.woken.set(true);
        if let Some(thread) = self.thread.upgrade() {
            thread.interrupt();
        }
    }
}

/// The queues. A key is there while somebody waits for it.
#[derive(Default)]
struct Table(BTreeMap<Key, VecDeque<Rc<Waiter>>>);

crate::global! {
    static TABLE: RefCell<Table> = RefCell::new(Table(BTreeMap::new()));
}

impl Table {
    fn enter(&mut self, waiter: &Rc<Waiter>) {
        self.0.entry(waiter.key.get()).or_default().push_back(Rc::clone(waiter));
    }

    fn leave(&mut self, waiter: &Rc<Waiter>) {
        let key = waiter.key.get();
        if let Some(queue) = self.0.get_mut(&key) {
            queue.retain(|other| !Rc::ptr_eq(other, waiter));
            if queue.is_empty() {
                self.0.remove(&key);
            }
        }
    }

    /// Takes up to `count` waiters that `bits` match out of a queue, in the order in which they came.
    fn take(&mut self, key: Key, count: usize, bits: u32) -> Result<Vec<Rc<Waiter>>> {
        let mut taken = Vec::new();
        let Some(queue) = self.0.get_mut(&key) else { return Ok(taken) };
        let mut at = 0;
        while taken.len() < count && at < queue.len() {
            if queue[at].wants_lock {
                return Err(Errno::EINVAL);
            }
            if queue[at].bits & bits == 0 {
                at += 1;
            } else {
                taken.extend(queue.remove(at));
            }
        }
        if queue.is_empty() {
            self.0.remove(&key);
        }
        Ok(taken)
    }
}

fn wake_key(key: Key, count: usize, bits: u32) -> Result<usize> {
    let taken = TABLE.with(|table| table.borrow_mut().take(key, count, bits))?;
    for waiter in &taken {
        waiter.wake();
    }
    Ok(taken.len())
}

/// FUTEX_WAIT and FUTEX_WAIT_BITSET: sleeps if the word has the value `expected`.
///
/// # Errors
/// EAGAIN if it has another value; ETIMEDOUT; ERESTARTSYS when interrupted; EINVAL, EFAULT.
pub fn wait(addr: UserAddr, scope: Scope, expected: u32, deadline: Option<Deadline>, bits: u32) -> Result<()> {
    if bits == 0 {
        return Err(Errno::EINVAL);
    }
    wait_any(&[WaitFor { addr, scope, expected }], deadline, bits).map(|_| ())
}

/// One word of futex_waitv(2).
#[derive(Clone, Copy, Debug)]
pub struct WaitFor {
    /// Where it is.
    pub addr: UserAddr,
    /// Who may wake it.
    pub scope: Scope,
    /// What it must hold.
    pub expected: u32,
}

/// futex_waitv(2): sleeps until one of several words is woken; which.
///
/// # Errors
/// As [`wait`].
pub fn wait_any(words: &[WaitFor], deadline: Option<Deadline>, bits: u32) -> Result<usize> {
    let me = current();
    let mut waiters = Vec::with_capacity(words.len());
    for word in words {
        waiters.push(Waiter::new(&me, Key::new(word.addr, word.scope)?, bits));
    }
    for word in words {
        if user::load_u32(word.addr)? != word.expected {
            return Err(Errno::EAGAIN);
        }
    }
    TABLE.with(|table| waiters.iter().for_each(|waiter| table.borrow_mut().enter(waiter)));
    let woken = || waiters.iter().position(|waiter| waiter.woken.get());
    let outcome = sleep::wait_until(&[], deadline, Sleep::Interruptible, woken);
    TABLE.with(|table| waiters.iter().filter(|w| !w.woken.get()).for_each(|w| table.borrow_mut().leave(w)));
    match outcome {
        Ok(index) => Ok(index),
        // A wake-up that came together with the end of the wait must not be lost.
        Err(error) => woken().ok_or(match error {
            WaitError::TimedOut => Errno::ETIMEDOUT,
            WaitError::Interrupted => Errno::ERESTARTSYS,
        }),
    }
}

/// FUTEX_WAKE and FUTEX_WAKE_BITSET: wakes up to `count` waiters (at least one, as Linux has it); how many.
///
/// # Errors
/// EINVAL, EFAULT.
pub fn wake(addr: UserAddr, scope: Scope, count: i32, bits: u32) -> Result<usize> {
    if bits == 0 {
        return Err(Errno::EINVAL);
    }
    let key = Key::new(addr, scope)?;
    wake_key(key, usize::try_from(count).unwrap_or(0).max(1), bits)
}

/// FUTEX_REQUEUE and, with `expected`, FUTEX_CMP_REQUEUE: wakes `wake` waiters of one word and moves up to `moved` of the
/// others to another; how many were woken or moved.
///
/// # Errors
/// EAGAIN if the word has another value than expected; EINVAL, EFAULT.
pub fn requeue(
    from: UserAddr,
    to: UserAddr,
    scope: Scope,
    (wake, moved): (i32, i32),
    expected: Option<u32>,
) -> Result<usize> {
    let wake = usize::try_from(wake).map_err(|_| Errno::EINVAL)?;
    let moved = usize::try_from(moved).map_err(|_| Errno::EINVAL)?;
    let (from_key, to_key) = (Key::new(from, scope)?, Key::new(to, scope)?);
    if let Some(expected) = expected
        && user::load_u32(from)? != expected
    {
        return Err(Errno::EAGAIN);
    }
    let woken = if wake == 0 { 0 } else { wake_key(from_key, wake, MATCH_ANY)? };
    TABLE.with(|table| {
        let mut table = table.borrow_mut();
        let others = table.take(from_key, moved, MATCH_ANY)?;
        for waiter in &others {
            waiter.key.set(to_key);
            table.enter(waiter);
        }
        Ok(woken + others.len())
    })
}

/// FUTEX_WAKE_OP's operation on the second word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeOp {
    operation: u32,
    operand: u32,
    comparison: u32,
    against: i32,
}

impl WakeOp {
    /// As `val3` encodes it.
    ///
    /// # Errors
    /// ENOSYS for an operation or comparison that there is not.
    pub fn new(encoded: u32) -> Result<Self> {
        let signed12 = |value: u32| (value << 20).cast_signed() >> 20;
        let (operation, comparison) = (encoded >> 28 & 7, encoded >> 24 & 15);
        let mut operand = signed12(encoded >> 12 & 0xfff).cast_unsigned();
        if encoded >> 28 & 8 != 0 {
            operand = 1 << (operand & 31);
        }
        if operation > 4 || comparison > 5 {
            return Err(Errno::ENOSYS);
        }
        Ok(Self { operation, operand, comparison, against: signed12(encoded & 0xfff) })
    }

    fn apply(self, old: u32) -> u32 {
        match self.operation {
            0 => self.operand,
            1 => old.wrapping_add(self.operand),
            2 => old | self.operand,
            3 => old & !self.operand,
            _ => old ^ self.operand,
        }
    }

    fn holds(self, old: u32) -> bool {
        let old = old.cast_signed();
        match self.comparison {
            0 => old == self.against,
            1 => old != self.against,
            2 => old < self.against,
            3 => old <= self.against,
            4 => old > self.against,
            _ => old >= self.against,
        }
    }
}

/// FUTEX_WAKE_OP: changes the second word, wakes waiters of the first, and, if the second's old value compares as `op`
/// says, of the second; how many.
///
/// # Errors
/// EINVAL, EFAULT.
pub fn wake_op(
    first: UserAddr,
    second: UserAddr,
    scope: Scope,
    (first_count, second_count): (i32, i32),
    op: WakeOp,
) -> Result<usize> {
    let (first, second_key) = (Key::new(first, scope)?, Key::new(second, scope)?);
    let old = user::update_u32(second, |old| Some(op.apply(old)))?;
    let at_least_one = |count: i32| usize::try_from(count).unwrap_or(0).max(1);
    let mut woken = wake_key(first, at_least_one(first_count), MATCH_ANY)?;
    if op.holds(old) {
        woken += wake_key(second_key, at_least_one(second_count), MATCH_ANY)?;
    }
    Ok(woken)
}

#[cfg(test)]
mod tests;

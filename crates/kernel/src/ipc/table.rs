//! Objects by identifier and by key: msgget(2), semget(2) and shmget(2) as far as they are alike.

use super::permissions::{Permissions, Want};
use crate::errno::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// An identifier is a place in the table (its index) and how often the table's identifiers came round before.
pub(super) const INDEX_BITS: u32 = 15;
const INDICES: u32 = 1 << INDEX_BITS;
const SEQUENCES: u32 = 1 << (31 - INDEX_BITS);
/// Indices are used in turn among at least so many, so that identifiers are not used again soon.
const MIN_CYCLE: u32 = 64;

/// The key that never names an object (sysvipc(7)); the constants at hand lack these.
pub const IPC_PRIVATE: i32 = 0;
/// Make it if it is not there.
const IPC_CREAT: u32 = 0o1000;
/// Fail if it is there.
const IPC_EXCL: u32 = 0o2000;

/// What is in a table.
pub trait Object {
    /// Its owner and mode.
    fn permissions(&self) -> &Permissions;
}

/// What msgget(2) and its like were called with.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Key.
    pub key: i32,
    /// IPC_CREAT, IPC_EXCL, and the mode.
    pub flags: u32,
}

/// All objects of a kind.
pub(super) struct Table<T> {
    objects: BTreeMap<u32, Rc<T>>,
    last_index: Option<u32>,
    sequence: u32,
}

impl<T: Object> Table<T> {
    pub(super) const fn new() -> Self {
        Self { objects: BTreeMap::new(), last_index: None, sequence: 0 }
    }

    pub(super) fn count(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn all(&self) -> Vec<Rc<T>> {
        self.objects.values().cloned().collect()
    }

    /// The largest index in use; 0 without objects.
    pub(super) fn highest_index(&self) -> u32 {
        self.objects.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// The object with an identifier.
    pub(super) fn find(&self, id: i32) -> Result<Rc<T>> {
        let index = u32::try_from(id).map_err(|_| Errno::EINVAL)? % INDICES;
        let object = self.objects.get(&index).ok_or(Errno::EINVAL)?;
        if object.permissions().id == id { Ok(Rc::clone(object)) } else { Err(Errno::EINVAL) }
    }

    /// The object at an index; an identifier names its index, too.
    pub(super) fn at_index(&self, index: i32) -> Result<Rc<T>> {
        let index = u32::try_from(index).map_err(|_| Errno::EINVAL)? % INDICES;
        self.objects.get(&index).cloned().ok_or(Errno::EINVAL)
    }

    /// Finds or makes an object. `check` is asked about one that is there, `make` makes one; there may be `limit` of them.
    pub(super) fn get(
        &mut self,
        request: Request,
        limit: usize,
        check: impl FnOnce(&T) -> Result<()>,
        make: impl FnOnce(Permissions) -> Result<T>,
    ) -> Result<i32> {
        let Request { key, flags } = request;
        let known = self.objects.values().find(|object| object.permissions().key.get() == key);
        if let Some(object) = known.filter(|_| key != IPC_PRIVATE) {
            if flags & IPC_CREAT != 0 && flags & IPC_EXCL != 0 {
                return Err(Errno::EEXIST);
            }
            check(object)?;
            object.permissions().check(Want::of_mode(flags))?;
            return Ok(object.permissions().id);
        }
        if key != IPC_PRIVATE && flags & IPC_CREAT == 0 {
            return Err(Errno::ENOENT);
        }
        let (index, sequence) = self.next(limit);
        let id = (sequence << INDEX_BITS | index).cast_signed();
        let object = make(Permissions::new(id, key, flags))?;
        if self.objects.len() >= limit.min(INDICES as usize) {
            return Err(Errno::ENOSPC);
        }
        (self.last_index, self.sequence) = (Some(index), sequence);
        self.objects.insert(index, Rc::new(object));
        Ok(id)
    }

    /// Index and sequence number of the next object.
    fn next(&self, limit: usize) -> (u32, u32) {
        let cycle = (self.objects.len() as u32 * 3 / 2).max(MIN_CYCLE).min(limit as u32).clamp(1, INDICES);
        let after = self.last_index.map_or(0, |last| last + 1);
        let free = |index: &u32| !self.objects.contains_key(index);
        let index = (after..cycle).find(free).or_else(|| (0..INDICES).find(free)).unwrap_or(0);
        let again = self.last_index.is_some_and(|last| index <= last);
        (index, if again { (self.sequence + 1) % SEQUENCES } else { self.sequence })
    }

    /// Takes an object out.
    pub(super) fn remove(&mut self, object: &T) {
        object.permissions().set_removed();
        self.objects.remove(&(object.permissions().id.cast_unsigned() % INDICES));
    }
}

//! Descriptor tables.

use super::file::{OpenFile, OpenFlags};
use super::lock;
use crate::errno::{Errno, Result};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// The largest table (fs.nr_open).
pub const MAX_DESCRIPTORS: usize = 1 << 20;

#[derive(Clone)]
struct Slot {
    file: Rc<OpenFile>,
    close_on_exec: bool,
}

/// A process's descriptors; shared by threads (CLONE_FILES).
#[derive(Default)]
pub struct FdTable {
    slots: RefCell<Vec<Option<Slot>>>,
    /// No descriptor below is free: the search for one need not begin at 0 each time.
    full_below: Cell<usize>,
}

impl FdTable {
    /// The description behind a descriptor.
    ///
    /// # Errors
    /// EBADF.
    pub fn get(&self, fd: i32) -> Result<Rc<OpenFile>> {
        let slots = self.slots.borrow();
        let slot = usize::try_from(fd).ok().and_then(|fd| slots.get(fd)).and_then(Option::as_ref);
        slot.map(|slot| Rc::clone(&slot.file)).ok_or(Errno::EBADF)
    }

    /// As [`FdTable::get`], of a file that is open for more than its path (O_PATH).
    ///
    /// # Errors
    /// EBADF.
    pub fn opened(&self, fd: i32) -> Result<Rc<OpenFile>> {
        self.get(fd)
            .and_then(|file| if file.flags.get().contains(OpenFlags::PATH) { Err(Errno::EBADF) } else { Ok(file) })
    }

    /// Puts a description at the lowest free descriptor that is at least `from` and below `limit` (RLIMIT_NOFILE).
    ///
    /// # Errors
    /// EMFILE.
    pub fn insert(&self, file: Rc<OpenFile>, close_on_exec: bool, from: usize, limit: usize) -> Result<i32> {
        let mut slots = self.slots.borrow_mut();
        let full_below = self.full_below.get();
        let start = from.max(full_below);
        let free = slots.iter().skip(start).position(Option::is_none).map_or(slots.len().max(start), |i| i + start);
        if free >= limit.min(MAX_DESCRIPTORS) {
            return Err(Errno::EMFILE);
        }
        if free >= slots.len() {
            slots.resize(free + 1, None);
        }
        slots[free] = Some(Slot { file, close_on_exec });
        if from <= full_below {
            self.full_below.set(free + 1);
        }
        Ok(free as i32)
    }

    /// Puts a description at `fd`; gives back what was there, on which the caller runs [`FdTable::closed`].
    ///
    /// # Errors
    /// EBADF if `fd` is not below `limit`.
    pub fn replace(
        &self,
        fd: i32,
        file: Rc<OpenFile>,
        close_on_exec: bool,
        limit: usize,
    ) -> Result<Option<Rc<OpenFile>>> {
        let index = usize::try_from(fd).ok().filter(|i| *i < limit.min(MAX_DESCRIPTORS)).ok_or(Errno::EBADF)?;
        let mut slots = self.slots.borrow_mut();
        if index >= slots.len() {
            slots.resize(index + 1, None);
        }
        Ok(slots[index].replace(Slot { file, close_on_exec }).map(|slot| slot.file))
    }

    /// close(2): takes a descriptor out and runs what follows from that.
    ///
    /// # Errors
    /// EBADF.
    pub fn close(&self, fd: i32) -> Result<()> {
        self.closed(self.remove(fd)?);
        Ok(())
    }

    /// Runs what follows from the closing of a descriptor of this table: a process loses its record locks on a file with
    /// the first of its descriptors of that file (fcntl(2)).
    pub fn closed(&self, file: Rc<OpenFile>) {
        file.ops.closed(&file);
        lock::unlock(&file, lock::Space::Records, self.lock_owner(), lock::Range::ALL);
        // Dropped where nothing is borrowed: it may have been the last reference.
        drop(file);
    }

    /// Whose the record locks are that are taken through this table.
    #[must_use]
    pub fn lock_owner(&self) -> lock::Owner {
        lock::Owner::Table(core::ptr::from_ref(self).addr())
    }

    /// Takes a descriptor out; the caller runs [`FdTable::closed`] on it, unless nobody has seen the descriptor yet.
    ///
    /// # Errors
    /// EBADF.
    pub fn remove(&self, fd: i32) -> Result<Rc<OpenFile>> {
        let mut slots = self.slots.borrow_mut();
        let slot = usize::try_from(fd).ok().and_then(|fd| slots.get_mut(fd)).and_then(Option::take);
        let slot = slot.ok_or(Errno::EBADF)?;
        self.full_below.update(|full| full.min(fd as usize));
        Ok(slot.file)
    }

    /// The close-on-exec flag.
    ///
    /// # Errors
    /// EBADF.
    pub fn close_on_exec(&self, fd: i32) -> Result<bool> {
        let slots = self.slots.borrow();
        let slot = usize::try_from(fd).ok().and_then(|fd| slots.get(fd)).and_then(Option::as_ref);
        slot.map(|slot| slot.close_on_exec).ok_or(Errno::EBADF)
    }

    /// Sets the close-on-exec flag.
    ///
    /// # Errors
    /// EBADF.
    pub fn set_close_on_exec(&self, fd: i32, on: bool) -> Result<()> {
        let mut slots = self.slots.borrow_mut();
        let slot = usize::try_from(fd).ok().and_then(|fd| slots.get_mut(fd)).and_then(Option::as_mut);
        slot.map(|slot| slot.close_on_exec = on).ok_or(Errno::EBADF)
    }

    /// Takes out all descriptors in `[first, last]` that `which` picks (by close-on-exec flag); the caller closes them.
    pub fn drain(&self, first: usize, last: usize, which: impl Fn(bool) -> bool) -> Vec<Rc<OpenFile>> {
        let mut slots = self.slots.borrow_mut();
        let end = last.saturating_add(1).min(slots.len());
        let range = slots.get_mut(first.min(end)..end).unwrap_or_default();
        self.full_below.update(|full| full.min(first));
        range
            .iter_mut()
            .filter(|s| s.as_ref().is_some_and(|s| which(s.close_on_exec)))
            .filter_map(|s| s.take().map(|s| s.file))
            .collect()
    }

    /// Open descriptors in ascending order.
    #[must_use]
    pub fn open(&self) -> Vec<i32> {
        self.slots.borrow().iter().enumerate().filter(|(_, s)| s.is_some()).map(|(i, _)| i as i32).collect()
    }

    /// A copy for fork(2): the same descriptions.
    #[must_use]
    pub fn duplicate(&self) -> Rc<Self> {
        Rc::new(Self { slots: self.slots.clone(), full_below: self.full_below.clone() })
    }
}

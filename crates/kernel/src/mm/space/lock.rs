//! mlock(2) and its family, mincore(2), msync(2). Nothing is ever swapped, so a lock is what it costs and what it brings in.

use super::area::{Area, AreaFlags, Backing};
use super::{AddressSpace, MAX_AREAS, MemoryLimits, page_round_up};
use crate::errno::{Errno, Result};
use crate::mm::addr::{PAGE_BYTES, USER_END};
use crate::mm::pages::{Access, Page};
use crate::mm::pte::Prot;
use alloc::rc::Rc;
use alloc::vec::Vec;

const LOCK_FLAGS: AreaFlags = AreaFlags::LOCKED.union(AreaFlags::LOCK_ON_FAULT);

impl AddressSpace {
    /// Bytes that are locked.
    #[must_use]
    pub fn locked_bytes(&self) -> u64 {
        self.areas.borrow().iter().filter(|a| a.flags.contains(AreaFlags::LOCKED)).map(Area::len).sum()
    }

    /// Whether `bytes` more may be locked.
    pub(super) fn check_lock(&self, bytes: u64, limits: &MemoryLimits) -> Result<()> {
        if limits.locked == u64::MAX || self.locked_bytes() + bytes <= limits.locked {
            return Ok(());
        }
        Err(if limits.locked == 0 { Errno::EPERM } else { Errno::ENOMEM })
    }

    /// mlock(2) and munlock(2) on any range of addresses; `flags` is empty to unlock.
    ///
    /// # Errors
    /// ENOMEM, EPERM, EAGAIN, EINVAL.
    pub fn lock(&self, start: u64, bytes: u64, flags: AreaFlags, limits: &MemoryLimits) -> Result<()> {
        let first = start & !(PAGE_BYTES - 1);
        let bytes = bytes.checked_add(start - first).and_then(page_round_up).ok_or(Errno::EINVAL)?;
        let end = first.checked_add(bytes).ok_or(Errno::EINVAL)?;
        if end > USER_END {
            return Err(Errno::ENOMEM);
        }
        if bytes == 0 {
            return Ok(());
        }
        if !flags.is_empty() {
            let already: u64 = {
                let areas = self.areas.borrow();
                let locked = areas.overlapping(first, end).filter(|a| a.flags.contains(AreaFlags::LOCKED));
                locked.map(|a| a.end.min(end) - a.start.max(first)).sum()
            };
            self.check_lock(bytes - already, limits)?;
        }
        let whole = self.areas.borrow().covers(first, end);
        if self.areas.borrow().count() + 2 > MAX_AREAS {
            return Err(Errno::ENOMEM);
        }
        self.split_pages(first, end)?;
        self.areas.borrow_mut().change(first, end, |area| area.flags = area.flags.difference(LOCK_FLAGS) | flags);
        if !whole {
            return Err(Errno::ENOMEM);
        }
        if flags == AreaFlags::LOCKED {
            self.populate(first, end, None).map_err(|_| Errno::ENOMEM)?;
        }
        Ok(())
    }

    /// mlockall(2); `current` and `future` are empty for what is not asked for. munlockall(2) with both empty.
    ///
    /// # Errors
    /// ENOMEM, EPERM.
    pub fn lock_all(&self, current: Option<AreaFlags>, future: AreaFlags, limits: &MemoryLimits) -> Result<()> {
        let Some(flags) = current else {
            self.lock_future.set(future);
            return Ok(());
        };
        let total: u64 = self.areas.borrow().iter().map(Area::len).sum();
        if !flags.is_empty() && limits.locked != u64::MAX && total > limits.locked {
            return Err(if limits.locked == 0 { Errno::EPERM } else { Errno::ENOMEM });
        }
        self.lock_future.set(future);
        self.areas.borrow_mut().change(0, USER_END, |area| area.flags = area.flags.difference(LOCK_FLAGS) | flags);
        if flags == AreaFlags::LOCKED {
            let ranges: Vec<(u64, u64)> = {
                let areas = self.areas.borrow();
                areas.iter().filter(|a| !a.prot.is_empty()).map(|a| (a.start, a.end)).collect()
            };
            for (start, end) in ranges {
                // As on Linux, what can't be brought in does not fail the call.
                let _ = self.populate(start, end, None);
            }
        }
        Ok(())
    }

    /// mincore(2): calls `put` with 1 or 0 for each page.
    ///
    /// # Errors
    /// ENOMEM where nothing is mapped, and what `put` gives.
    pub fn resident(&self, start: u64, end: u64, mut put: impl FnMut(u8) -> Result<()>) -> Result<()> {
        let mut page = start;
        while page < end {
            let area = self.areas.borrow().find(page).cloned().ok_or(Errno::ENOMEM)?;
            let stop = area.end.min(end);
            while page < stop {
                let is_there = self.table.borrow().lookup(page).is_some()
                    || area.object_page(page).is_some_and(|(object, index)| {
                        // In the page cache, which is where files live here.
                        !matches!(object.source.page(index, Access::Read), Ok(Page::Hole) | Err(_))
                    });
                put(u8::from(is_there))?;
                page += PAGE_BYTES;
            }
        }
        Ok(())
    }

    /// Checks a range for msync(2): mapped throughout (ENOMEM), and with `invalidate` nothing locked (EBUSY). Mappings and
    /// files are the same pages, so there is nothing to write back.
    ///
    /// # Errors
    /// ENOMEM, EBUSY.
    pub fn check_sync(&self, start: u64, end: u64, invalidate: bool) -> Result<()> {
        let areas = self.areas.borrow();
        if invalidate && areas.overlapping(start, end).any(|a| a.flags.contains(AreaFlags::LOCKED)) {
            return Err(Errno::EBUSY);
        }
        if areas.covers(start, end) { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// Files that are mapped shared and writable in a range: what msync(MS_SYNC) synchronises.
    #[must_use]
    pub fn shared_files(&self, start: u64, end: u64) -> Vec<Rc<crate::fs::file::OpenFile>> {
        let areas = self.areas.borrow();
        let shared = areas.overlapping(start, end).filter(|a| a.is_shared() && a.prot.contains(Prot::WRITE));
        shared
            .filter_map(|area| match &area.backing {
                Backing::Object(super::ObjectMapping { label: super::Label::File(file), .. }) => Some(Rc::clone(file)),
                _ => None,
            })
            .collect()
    }
}

//! mremap(2).

use super::area::{Area, AreaFlags, Backing};
use super::map::{check_overcommit, is_accountable};
use super::{AddressSpace, Flush, MAX_AREAS, MemoryLimits, page_round_up};
use crate::errno::{Errno, Result};
use crate::mm::addr::{PAGE_BYTES, USER_BASE, USER_END};
use crate::mm::pte::Pte;
use alloc::vec::Vec;
use torpor_abi::layout::LARGE_PAGE_BYTES;

/// Whether and where a mapping may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// It stays.
    Never,
    /// It may (MREMAP_MAYMOVE).
    May,
    /// It does, there if that is free (MREMAP_DONTUNMAP without MREMAP_FIXED).
    Near(u64),
    /// It goes there (MREMAP_FIXED).
    To(u64),
}

impl AddressSpace {
    /// mremap(2); `keep` is MREMAP_DONTUNMAP. Gives the new address.
    ///
    /// # Errors
    /// As mremap(2): EINVAL, EFAULT, ENOMEM, EAGAIN.
    pub fn remap(
        &self,
        old: u64,
        old_bytes: u64,
        new_bytes: u64,
        moving: Move,
        keep: bool,
        limits: &MemoryLimits,
    ) -> Result<u64> {
        // As on Linux, a length that rounds up to more than there is comes out as none.
        let old_bytes = page_round_up(old_bytes).unwrap_or(0);
        let new_bytes = page_round_up(new_bytes).filter(|n| *n > 0 && *n < USER_END).ok_or(Errno::EINVAL)?;
        if !old.is_multiple_of(PAGE_BYTES) {
            return Err(Errno::EINVAL);
        }
        if keep && old_bytes != new_bytes {
            return Err(Errno::EINVAL);
        }
        if let Move::To(new) | Move::Near(new) = moving {
            let apart = |a: u64, a_bytes: u64, b: u64| a.checked_add(a_bytes).is_some_and(|end| end <= b);
            if new % PAGE_BYTES != 0
                || new > USER_END - new_bytes
                || !(apart(old, old_bytes, new) || apart(new, new_bytes, old))
            {
                return Err(Errno::EINVAL);
            }
        }
        if old.checked_add(old_bytes).is_none_or(|end| end > USER_END) {
            return Err(Errno::EFAULT);
        }
        let area = self.areas.borrow().find(old).cloned().ok_or(Errno::EFAULT)?;
        if old_bytes == 0 && !(area.is_shared() && moving != Move::Never) {
            // A second mapping of the same pages makes sense for shared memory only.
            return Err(Errno::EINVAL);
        }
        if keep && area.is_kernels() {
            return Err(Errno::EINVAL);
        }
        let mut old_bytes = old_bytes;
        if new_bytes <= old_bytes && !keep {
            if new_bytes < old_bytes {
                self.unmap(old + new_bytes, old_bytes - new_bytes)?;
            }
            if !matches!(moving, Move::To(_)) {
                return Ok(old);
            }
            old_bytes = new_bytes;
        }
        let old_end = old + old_bytes;
        if old_end > area.end {
            return Err(Errno::EFAULT);
        }
        let grown = new_bytes.saturating_sub(old_bytes);
        let more = if keep { new_bytes } else { grown };
        self.check_limits(more, 0, area.prot, area.flags, limits)?;
        if area.flags.contains(AreaFlags::LOCKED) && grown > 0 {
            self.check_lock(grown, limits).map_err(|_| Errno::EAGAIN)?;
        }
        if grown > 0 && is_accountable(area.prot, area.flags) {
            check_overcommit(grown)?;
        }
        if grown > 0 && old_bytes > 0 && !matches!(moving, Move::To(_)) && self.grow_in_place(&area, old_end, grown) {
            self.lock_grown(&area, old_end, old_end + grown);
            return Ok(old);
        }
        match moving {
            Move::Never => Err(Errno::ENOMEM),
            Move::May | Move::Near(_) | Move::To(_) => {
                let new = self.move_area(&area, old, old_bytes, new_bytes, moving, keep)?;
                self.lock_grown(&area, new + old_bytes, new + new_bytes);
                Ok(new)
            }
        }
    }

    fn lock_grown(&self, area: &Area, start: u64, end: u64) {
        if area.flags.contains(AreaFlags::LOCKED) && !area.flags.contains(AreaFlags::LOCK_ON_FAULT) {
            let _ = self.populate(start, end, None);
        }
    }

    fn grow_in_place(&self, area: &Area, old_end: u64, grown: u64) -> bool {
        let Some(new_end) = old_end.checked_add(grown).filter(|end| *end <= USER_END) else { return false };
        let mut areas = self.areas.borrow_mut();
        if old_end != area.end || areas.overlapping(old_end, new_end).next().is_some() {
            return false;
        }
        self.make_room(old_end, new_end);
        let mut more = area.clone();
        more.backing = continued(area, old_end);
        (more.start, more.end) = (old_end, new_end);
        areas.insert(more);
        true
    }

    fn move_area(
        &self,
        area: &Area,
        old: u64,
        old_bytes: u64,
        new_bytes: u64,
        moving: Move,
        keep: bool,
    ) -> Result<u64> {
        if self.areas.borrow().count() + 3 >= MAX_AREAS {
            return Err(Errno::ENOMEM);
        }
        let new = match moving {
            Move::To(new) => {
                self.unmap(new, new_bytes)?;
                new
            }
            Move::Near(new) if new >= USER_BASE && !self.is_mapped(new, new_bytes) => new,
            _ => self.find_place(old, new_bytes, area)?,
        };
        self.make_room(new, new + new_bytes);
        let mut moved = area.clone();
        moved.backing = continued(area, old);
        (moved.start, moved.end) = (new, new + new_bytes);
        moved.window_pages.set(0);
        let mut flush = Flush::default();
        self.hide_copies(old, old + old_bytes, &mut flush);
        let result = self.move_entries(old, old + old_bytes, new, &mut flush);
        self.finish(flush);
        result?;
        self.areas.borrow_mut().insert(moved);
        if keep {
            // The old area stays, empty, and is no longer locked.
            self.areas.borrow_mut().change(old, old + old_bytes, |area| {
                area.flags.remove(AreaFlags::LOCKED | AreaFlags::LOCK_ON_FAULT);
            });
        } else if old_bytes > 0 {
            let removed = self.areas.borrow_mut().remove(old, old + old_bytes);
            drop(removed);
        }
        Ok(new)
    }

    fn find_place(&self, old: u64, new_bytes: u64, area: &Area) -> Result<u64> {
        let areas = self.areas.borrow();
        let large = area.is_anonymous() && new_bytes >= LARGE_PAGE_BYTES;
        let low = USER_BASE;
        let top = self.layout.mmap_top;
        // Congruent to the old place modulo 2 MiB, so that large pages move as they are.
        let phase = if large { old % LARGE_PAGE_BYTES } else { 0 };
        let congruent = large.then(|| areas.find_gap(new_bytes + LARGE_PAGE_BYTES, LARGE_PAGE_BYTES, low, top));
        congruent
            .flatten()
            .map(|start| start + phase)
            .or_else(|| areas.find_gap(new_bytes, PAGE_BYTES, low, top))
            .or_else(|| areas.find_gap(new_bytes, PAGE_BYTES, low, USER_END))
            .ok_or(Errno::ENOMEM)
    }

    /// Moves all entries of `[start, end)` to `new`, where nothing is mapped. Either all or none.
    fn move_entries(&self, start: u64, end: u64, new: u64, flush: &mut Flush) -> Result<()> {
        let mut table = self.table.borrow_mut();
        table.split_at(start, flush)?;
        table.split_at(end, flush)?;
        let aligned = (new.wrapping_sub(start)).is_multiple_of(LARGE_PAGE_BYTES);
        // First everything that can fail: tables for the new place, small pages where large ones don't fit.
        let mut regions = Vec::new();
        let mut at = start;
        while let Some(region) = table.next_region(at, end) {
            regions.push((region.base.max(start), region.large().is_some()));
            at = region.base + LARGE_PAGE_BYTES;
        }
        for (base, is_large) in &regions {
            if *is_large && !aligned {
                table.split(*base, flush)?;
            }
            // For a large page the table is not needed, but its place is, and `set_large` frees it.
            let last = ((*base & !(LARGE_PAGE_BYTES - 1)) + LARGE_PAGE_BYTES).min(end) - PAGE_BYTES;
            for address in [*base, last] {
                if let Err(error) = table.reserve(new + (address - start)) {
                    table.edit(new, new + (end - start), true, flush, |_, pte| pte);
                    return Err(error.into());
                }
            }
        }
        let mut moved: Vec<(u64, Pte)> = Vec::new();
        for (base, _) in regions {
            let region_end = ((base & !(LARGE_PAGE_BYTES - 1)) + LARGE_PAGE_BYTES).min(end);
            table.edit(base, region_end, true, flush, |address, pte| {
                moved.push((address, pte));
                Pte::EMPTY
            });
            for (address, pte) in moved.drain(..) {
                let to = new + (address - start);
                let set = if pte.is_large() { table.set_large(to, pte, flush) } else { table.set_small(to, pte) };
                set.expect("the tables were reserved above");
            }
        }
        Ok(())
    }
}

/// The backing of the part of an area that starts at `address`, or of what would follow its end.
fn continued(area: &Area, address: u64) -> Backing {
    match area.object_page(address) {
        None => Backing::Anonymous,
        Some((object, first_page)) => Backing::Object(super::ObjectMapping { first_page, ..object.clone() }),
    }
}

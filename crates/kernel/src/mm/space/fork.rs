//! fork(2): a copy of an address space that shares all pages until one side writes.

use super::area::AreaFlags;
use super::{AddressSpace, Flush};
use crate::errno::Result;
use crate::mm::addr::PAGE_BYTES;
use crate::mm::frame::NoMemory;
use crate::mm::paging::PageTable;
use crate::mm::pte::{Kind, Pte};
use alloc::rc::Rc;
use alloc::vec::Vec;
use torpor_abi::layout::LARGE_PAGE_BYTES;

impl AddressSpace {
    /// A copy for fork(2). Areas under MADV_DONTFORK are left out, those under MADV_WIPEONFORK are empty, locks are not
    /// inherited.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn fork(&self) -> Result<Rc<Self>> {
        let child = Self::new(self.layout)?;
        child.heap.set(self.heap.get());
        let mut flush = Flush::default();
        let copied = self.copy_into(&child, &mut flush);
        self.copy_texts(&child);
        // Pages that became read-only must be so before the parent goes on, also if the copy failed half-way.
        self.finish(flush);
        copied?;
        Ok(child)
    }

    /// Whether any area is under MADV_WIPEONFORK.
    #[must_use]
    pub fn has_wiped_areas(&self) -> bool {
        self.areas.borrow().iter().any(|area| area.flags.contains(AreaFlags::WIPEONFORK))
    }

    /// Empties the areas under MADV_WIPEONFORK: the whole VM has been copied.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn wipe(&self) -> Result<()> {
        let wiped = |area: &super::Area| area.flags.contains(AreaFlags::WIPEONFORK).then_some((area.start, area.end));
        let ranges: Vec<_> = self.areas.borrow().iter().filter_map(wiped).collect();
        let mut flush = Flush::default();
        let result = ranges.into_iter().try_for_each(|(start, end)| self.zap(start, end, false, &mut flush));
        self.finish(flush);
        Ok(result?)
    }

    fn copy_into(&self, child: &AddressSpace, flush: &mut Flush) -> core::result::Result<(), NoMemory> {
        let areas = self.areas.borrow();
        let mut table = self.table.borrow_mut();
        let mut child_table = child.table.borrow_mut();
        for area in areas.iter() {
            if area.flags.contains(AreaFlags::DONTFORK) {
                continue;
            }
            let mut copy = area.clone();
            copy.flags.remove(AreaFlags::LOCKED | AreaFlags::LOCK_ON_FAULT);
            child.areas.borrow_mut().insert(copy);
            if !area.flags.contains(AreaFlags::WIPEONFORK) {
                copy_entries(&mut table, &mut child_table, area.start, area.end, area.is_shared(), flush, |pte| {
                    child.count_pages(pte, pte.pages());
                })?;
            }
        }
        Ok(())
    }
}

/// Copies all entries of `[start, end)`. Private frames become read-only on both sides.
fn copy_entries(
    from: &mut PageTable,
    to: &mut PageTable,
    start: u64,
    end: u64,
    shared: bool,
    flush: &mut Flush,
    mut count: impl FnMut(Pte),
) -> core::result::Result<(), NoMemory> {
    let mut at = start;
    while let Some(region) = from.next_region(at, end) {
        let (first, last) = (region.base.max(start), (region.base + LARGE_PAGE_BYTES).min(end));
        if region.large().is_none() && from.region_is_empty(region.base) {
            at = region.base + LARGE_PAGE_BYTES;
            continue;
        }
        // The child's table first: nothing below can fail. (For a large page it is freed again.)
        to.reserve(first)?;
        let mut failed = false;
        // The child's tables were never loaded.
        let mut ignored = Flush::default();
        from.edit(first, last, false, flush, |address, pte| {
            let ours = if !shared && pte.kind() == Kind::Anonymous { pte.read_only() } else { pte };
            let set =
                if pte.is_large() { to.set_large(address, ours, &mut ignored) } else { to.set_small(address, ours) };
            if set.is_err() {
                failed = true;
                return pte;
            }
            pte.retain();
            count(ours);
            ours
        });
        debug_assert!(!failed, "the table was reserved");
        at = region.base + LARGE_PAGE_BYTES;
    }
    debug_assert!(start.is_multiple_of(PAGE_BYTES));
    Ok(())
}

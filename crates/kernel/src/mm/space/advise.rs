//! madvise(2).

use super::area::{Area, AreaFlags, Backing, Label};
use super::{AddressSpace, FaultAccess, Flush, MAX_AREAS, page_round_up};
use crate::errno::{Errno, Result};
use crate::mm::addr::{Gpa, PAGE_BYTES};
use crate::mm::pte::Kind;
use crate::mm::{frame, phys};
use linux_raw_sys::general as linux;

/// So many pages at most are zeroed where they are instead of given back: a page-table entry that is taken away costs a
/// flush on a software KVM and another fault at the next touch, a hundred times what zeroing a page does. JavaScriptCore's
/// allocator gives single pages back all the time.
const ZEROED_PAGES: u64 = 4;

/// Flags that an advice sets and takes away, with the areas that refuse it.
struct Change {
    set: AreaFlags,
    clear: AreaFlags,
    only_private_anonymous: bool,
}

fn change_of(advice: u32) -> Option<Change> {
    let change = |set, clear| Some(Change { set, clear, only_private_anonymous: false });
    match advice {
        linux::MADV_NORMAL => change(AreaFlags::empty(), AreaFlags::SEQUENTIAL | AreaFlags::RANDOM),
        linux::MADV_SEQUENTIAL => change(AreaFlags::SEQUENTIAL, AreaFlags::RANDOM),
        linux::MADV_RANDOM => change(AreaFlags::RANDOM, AreaFlags::SEQUENTIAL),
        linux::MADV_DONTFORK => change(AreaFlags::DONTFORK, AreaFlags::empty()),
        linux::MADV_DOFORK => change(AreaFlags::empty(), AreaFlags::DONTFORK),
        linux::MADV_HUGEPAGE => change(AreaFlags::HUGE, AreaFlags::NO_HUGE),
        linux::MADV_NOHUGEPAGE => change(AreaFlags::NO_HUGE, AreaFlags::HUGE),
        linux::MADV_DONTDUMP => change(AreaFlags::DONTDUMP, AreaFlags::empty()),
        linux::MADV_DODUMP => change(AreaFlags::empty(), AreaFlags::DONTDUMP),
        linux::MADV_WIPEONFORK => {
            Some(Change { set: AreaFlags::WIPEONFORK, clear: AreaFlags::empty(), only_private_anonymous: true })
        }
        linux::MADV_KEEPONFORK => change(AreaFlags::empty(), AreaFlags::WIPEONFORK),
        _ => None,
    }
}

impl AddressSpace {
    /// madvise(2).
    ///
    /// # Errors
    /// EINVAL, ENOMEM (a part is not mapped; the rest was done), EFAULT, EACCES, EBADF as madvise(2) says.
    pub fn advise(&self, start: u64, bytes: u64, advice: u32) -> Result<()> {
        if let Some(change) = change_of(advice) {
            let end = advised_range(start, bytes)?;
            return self.change_flags(start, end, &change);
        }
        let known = matches!(
            advice,
            linux::MADV_WILLNEED
                | linux::MADV_DONTNEED
                | linux::MADV_DONTNEED_LOCKED
                | linux::MADV_FREE
                | linux::MADV_REMOVE
                | linux::MADV_COLD
                | linux::MADV_PAGEOUT
                | linux::MADV_POPULATE_READ
                | linux::MADV_POPULATE_WRITE
        );
        if !known {
            return Err(Errno::EINVAL);
        }
        let end = advised_range(start, bytes)?;
        if start == end {
            return Ok(());
        }
        match advice {
            linux::MADV_POPULATE_READ => self.populate_for(start, end, FaultAccess::Read),
            linux::MADV_POPULATE_WRITE => self.populate_for(start, end, FaultAccess::Write),
            // Nothing is written out: files and anonymous memory are both in RAM for good.
            linux::MADV_COLD | linux::MADV_PAGEOUT | linux::MADV_WILLNEED => self.covered(start, end),
            _ => self.discard(start, end, advice),
        }
    }

    fn covered(&self, start: u64, end: u64) -> Result<()> {
        if self.areas.borrow().covers(start, end) { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    fn populate_for(&self, start: u64, end: u64, access: FaultAccess) -> Result<()> {
        self.covered(start, end)?;
        {
            let areas = self.areas.borrow();
            for area in areas.overlapping(start, end) {
                let needed = if access == FaultAccess::Write { 2 } else { 7 };
                if area.prot.bits() & needed == 0 {
                    return Err(Errno::EINVAL);
                }
            }
        }
        self.populate(start, end, Some(access))
    }

    fn change_flags(&self, start: u64, end: u64, change: &Change) -> Result<()> {
        let whole = self.covered(start, end);
        self.split_pages(start, end)?;
        {
            let mut areas = self.areas.borrow_mut();
            if change.only_private_anonymous
                && areas.overlapping(start, end).any(|a| a.is_shared() || !a.is_anonymous())
            {
                return Err(Errno::EINVAL);
            }
            if areas.count() + 2 > MAX_AREAS {
                return Err(Errno::ENOMEM);
            }
            areas.change(start, end, |area| area.flags = area.flags.difference(change.clear) | change.set);
        }
        whole
    }

    /// MADV_DONTNEED, MADV_FREE and MADV_REMOVE. MADV_FREE allows the pages to go at any time: they go at once, which
    /// keeps the VM's state small.
    fn discard(&self, start: u64, end: u64, advice: u32) -> Result<()> {
        let pieces: alloc::vec::Vec<_> = self
            .areas
            .borrow()
            .overlapping(start, end)
            .map(|area| (area.start.max(start), area.end.min(end), area.clone()))
            .collect();
        let mut flush = Flush::default();
        let mut result = Ok(());
        for (from, to, area) in pieces {
            let locked = area.flags.contains(AreaFlags::LOCKED);
            let refused = match advice {
                linux::MADV_FREE => !area.is_anonymous() || area.is_shared() || locked,
                linux::MADV_DONTNEED => locked,
                linux::MADV_REMOVE => locked || !area.is_shared(),
                _ => false,
            };
            if refused {
                result = Err(Errno::EINVAL);
                break;
            }
            if advice == linux::MADV_REMOVE {
                result = punch_hole(&area.backing, area.start, from, to);
            } else if !self.zero(from, to, &area) {
                result = self.zap(from, to, false, &mut flush).map_err(Errno::from);
            }
            if result.is_err() {
                break;
            }
        }
        self.finish(flush);
        result?;
        self.covered(start, end)
    }

    /// Makes a few pages of anonymous memory read as zero; false where they have to be given back for that, or should be
    /// because memory is not plenty.
    fn zero(&self, start: u64, end: u64, area: &Area) -> bool {
        let usage = frame::usage();
        let few = end - start <= ZEROED_PAGES * PAGE_BYTES;
        if !few || !area.is_anonymous() || area.is_shared() || usage.used_bytes > usage.limit_bytes / 2 {
            return false;
        }
        let table = self.table.borrow();
        let mut own = true;
        table.visit(start, end, |_, pte| own &= pte.kind() == Kind::Anonymous && pte.is_exclusive());
        if own {
            table.visit(start, end, |base, pte| {
                let (from, to) = (base.max(start), (base + pte.pages() * PAGE_BYTES).min(end));
                // SAFETY: RAM of frames that only this address space has; what a program makes of their content while
                // the kernel runs is its affair.
                unsafe { phys::zero(Gpa(pte.gpa().0 + (from - base)), (to - from) as usize) };
            });
        }
        own
    }
}

/// The end of the range. It may lie beyond the program's part, where nothing is mapped, which is found out later.
fn advised_range(start: u64, bytes: u64) -> Result<u64> {
    let bytes = page_round_up(bytes).ok_or(Errno::EINVAL)?;
    start.checked_add(bytes).filter(|_| start.is_multiple_of(PAGE_BYTES)).ok_or(Errno::EINVAL)
}

/// MADV_REMOVE: as fallocate(2) with FALLOC_FL_PUNCH_HOLE on the mapped object.
fn punch_hole(backing: &Backing, area_start: u64, from: u64, to: u64) -> Result<()> {
    let Backing::Object(object) = backing else { return Err(Errno::EINVAL) };
    let first = object.first_page + (from - area_start) / PAGE_BYTES;
    let pages = (to - from) / PAGE_BYTES;
    match &object.label {
        Label::File(file) => {
            if !file.flags.get().writable() {
                return Err(Errno::EACCES);
            }
            let mode = linux::FALLOC_FL_PUNCH_HOLE | linux::FALLOC_FL_KEEP_SIZE;
            file.ops.allocate(file, mode, first * PAGE_BYTES, pages * PAGE_BYTES)
        }
        Label::Name(_) | Label::Segment(_) => object.source.remove(first, pages),
    }
}

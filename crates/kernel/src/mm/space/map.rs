//! mmap(2), munmap(2) and brk(2).

use super::area::{Area, AreaFlags, Backing};
use super::{AddressSpace, FaultAccess, Flush, MAX_AREAS, MemoryLimits, checked_range, page_round_up};
use crate::errno::{Errno, Result};
use crate::mm::addr::{PAGE_BYTES, USER_BASE, USER_END};
use crate::mm::frame;
use crate::mm::pte::Prot;
use torpor_abi::layout::LARGE_PAGE_BYTES;

/// Where a mapping goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Near this address if it is free (0: no wish), else where there is room.
    Hint(u64),
    /// As `Hint`, below 2 GiB (MAP_32BIT).
    Low(u64),
    /// Exactly there; what is there goes (MAP_FIXED).
    Fixed(u64),
    /// Exactly there, EEXIST if anything is there (MAP_FIXED_NOREPLACE).
    Exactly(u64),
}

/// A mapping to be made.
pub struct MapRequest {
    /// Where.
    pub placement: Placement,
    /// Length in bytes; rounded up to pages.
    pub bytes: u64,
    /// What the program may do.
    pub prot: Prot,
    /// How it differs.
    pub flags: AreaFlags,
    /// Where pages come from.
    pub backing: Backing,
    /// Bring pages in at once (MAP_POPULATE); errors in that are ignored.
    pub populate: bool,
}

/// Whether memory counts as data (RLIMIT_DATA): private and writable, no stack.
pub(super) fn is_data(prot: Prot, flags: AreaFlags) -> bool {
    prot.contains(Prot::WRITE) && !flags.intersects(AreaFlags::SHARED | AreaFlags::GROWSDOWN)
}

/// Whether memory is promised to the program, so that an obvious impossibility is refused (overcommit mode 0).
pub(super) fn is_accountable(prot: Prot, flags: AreaFlags) -> bool {
    prot.contains(Prot::WRITE) && !flags.intersects(AreaFlags::SHARED | AreaFlags::NORESERVE)
}

/// What heuristic overcommit refuses: more in one call than there is memory (proc(5), vm.overcommit_memory).
pub(super) fn check_overcommit(bytes: u64) -> Result<()> {
    if bytes > frame::usage().limit_bytes { Err(Errno::ENOMEM) } else { Ok(()) }
}

impl AddressSpace {
    /// mmap(2): makes a mapping and gives its address.
    ///
    /// # Errors
    /// As mmap(2): EINVAL, ENOMEM, EEXIST, EPERM (below mmap_min_addr), EAGAIN (RLIMIT_MEMLOCK).
    pub fn map(&self, request: MapRequest, limits: &MemoryLimits) -> Result<u64> {
        let MapRequest { placement, bytes, prot, mut flags, backing, populate } = request;
        if bytes == 0 {
            return Err(Errno::EINVAL);
        }
        let bytes = page_round_up(bytes).filter(|bytes| *bytes <= USER_END - USER_BASE).ok_or(Errno::ENOMEM)?;
        if self.areas.borrow().count() >= MAX_AREAS {
            return Err(Errno::ENOMEM);
        }
        flags |= self.lock_future.get();
        let start = self.place(placement, bytes, &backing, flags)?;
        let replaced = if let Placement::Fixed(_) = placement { self.mapped_bytes(start, start + bytes) } else { 0 };
        self.check_limits(bytes, replaced, prot, flags, limits)?;
        if flags.contains(AreaFlags::LOCKED) {
            self.check_lock(bytes, limits).map_err(|_| Errno::EAGAIN)?;
        }
        if is_accountable(prot, flags) {
            check_overcommit(bytes)?;
        }
        if let Placement::Fixed(_) = placement {
            self.unmap(start, bytes)?;
        }
        self.make_room(start, start + bytes);
        self.areas.borrow_mut().insert(Area::new(start, start + bytes, prot, flags, backing));
        let lock = flags.contains(AreaFlags::LOCKED) && !flags.contains(AreaFlags::LOCK_ON_FAULT);
        if (populate || lock) && !prot.is_empty() {
            // mmap(2): the call does not fail if the mapping can't be populated.
            let _ = self.populate(start, start + bytes, None);
        }
        Ok(start)
    }

    fn place(&self, placement: Placement, bytes: u64, backing: &Backing, flags: AreaFlags) -> Result<u64> {
        let areas = self.areas.borrow();
        let is_free = |start: u64| areas.overlapping(start, start + bytes).next().is_none();
        match placement {
            Placement::Fixed(start) | Placement::Exactly(start) => {
                if start % PAGE_BYTES != 0 {
                    return Err(Errno::EINVAL);
                }
                if start > USER_END - bytes {
                    return Err(Errno::ENOMEM);
                }
                if start < USER_BASE {
                    return Err(Errno::EPERM);
                }
                if matches!(placement, Placement::Exactly(_)) && !is_free(start) {
                    return Err(Errno::EEXIST);
                }
                Ok(start)
            }
            Placement::Hint(hint) | Placement::Low(hint) => {
                let low = matches!(placement, Placement::Low(_));
                let end = if low { 1 << 31 } else { USER_END };
                let hint = hint & !(PAGE_BYTES - 1);
                if hint >= USER_BASE && hint <= end.saturating_sub(bytes) && is_free(hint) {
                    let guarded = areas.find_from(hint + bytes).is_some_and(|next| {
                        next.flags.contains(AreaFlags::GROWSDOWN)
                            && next.start - (hint + bytes) < super::STACK_GUARD_BYTES
                    });
                    if !guarded {
                        return Ok(hint);
                    }
                }
                // As Linux does since 6.7, so that large pages fit.
                let large = matches!(backing, Backing::Anonymous)
                    && bytes >= LARGE_PAGE_BYTES
                    && !flags.contains(AreaFlags::GROWSDOWN);
                let aligns: &[u64] = if large { &[LARGE_PAGE_BYTES, PAGE_BYTES] } else { &[PAGE_BYTES] };
                let tops: &[u64] = if low { &[1 << 31] } else { &[self.layout.mmap_top, USER_END] };
                for top in tops {
                    for align in aligns {
                        if let Some(start) = areas.find_gap(bytes, *align, USER_BASE, *top) {
                            return Ok(start);
                        }
                    }
                }
                Err(Errno::ENOMEM)
            }
        }
    }

    /// Whether anything is mapped in a range.
    pub fn is_mapped(&self, start: u64, bytes: u64) -> bool {
        let end = start.saturating_add(page_round_up(bytes).unwrap_or(u64::MAX));
        self.areas.borrow().overlapping(start, end).next().is_some()
    }

    /// Bytes of areas in a range.
    pub(super) fn mapped_bytes(&self, start: u64, end: u64) -> u64 {
        self.areas.borrow().overlapping(start, end).map(|a| a.end.min(end) - a.start.max(start)).sum()
    }

    /// RLIMIT_AS and RLIMIT_DATA for `bytes` more, of which `replaced` take the place of others.
    pub(super) fn check_limits(
        &self,
        bytes: u64,
        replaced: u64,
        prot: Prot,
        flags: AreaFlags,
        limits: &MemoryLimits,
    ) -> Result<()> {
        if limits.address_space != u64::MAX {
            let total: u64 = self.areas.borrow().iter().map(Area::len).sum();
            if total + bytes - replaced > limits.address_space {
                return Err(Errno::ENOMEM);
            }
        }
        if limits.data != u64::MAX && is_data(prot, flags) && self.data_bytes() + bytes > limits.data {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    pub(super) fn data_bytes(&self) -> u64 {
        self.areas.borrow().iter().filter(|a| is_data(a.prot, a.flags)).map(Area::len).sum()
    }

    /// munmap(2).
    ///
    /// # Errors
    /// EINVAL; ENOMEM where splitting needs an area or a page table too many.
    pub fn unmap(&self, start: u64, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Err(Errno::EINVAL);
        }
        let end = checked_range(start, bytes, Errno::EINVAL)?;
        let splits = self.areas.borrow().find(start).is_some_and(|a| a.start < start && end < a.end);
        if splits && self.areas.borrow().count() >= MAX_AREAS {
            return Err(Errno::ENOMEM);
        }
        self.make_room(start, end);
        let mut flush = Flush::default();
        let zapped = self.zap(start, end, true, &mut flush);
        self.finish(flush);
        zapped?;
        let removed = self.areas.borrow_mut().remove(start, end);
        // Files may be closed by this: no borrow is held.
        drop(removed);
        Ok(())
    }

    /// brk(2) as the kernel has it: gives the new break, or the old one if it can't be moved there.
    pub fn set_break(&self, wanted: u64, limits: &MemoryLimits) -> u64 {
        let (start, current) = self.heap.get();
        if wanted < start || wanted > USER_END {
            return current;
        }
        let old_end = page_round_up(current).unwrap_or(current);
        let Some(new_end) = page_round_up(wanted).filter(|end| *end <= USER_END) else { return current };
        if limits.data != u64::MAX && wanted - start > limits.data {
            return current;
        }
        if new_end < old_end {
            if self.unmap(new_end, old_end - new_end).is_err() {
                return current;
            }
        } else if new_end > old_end {
            // Room for a stack's gap stays, as mmap would leave it.
            let blocked = self.areas.borrow().overlapping(old_end, new_end + PAGE_BYTES).next().is_some();
            let request = MapRequest {
                placement: Placement::Exactly(old_end),
                bytes: new_end - old_end,
                prot: Prot::READ | Prot::WRITE,
                flags: AreaFlags::empty(),
                backing: Backing::Anonymous,
                populate: false,
            };
            if blocked || self.map(request, limits).is_err() {
                return current;
            }
        }
        self.heap.set((start, wanted));
        wanted
    }

    /// Brings in all pages of `[start, end)`; with `access`, checks for that, else for what each area allows.
    ///
    /// # Errors
    /// EFAULT, ENOMEM as madvise(2) has them for MADV_POPULATE_READ and MADV_POPULATE_WRITE.
    pub(super) fn populate(&self, start: u64, end: u64, access: Option<FaultAccess>) -> Result<()> {
        use super::FaultOutcome;
        let mut at = start;
        while at < end {
            let area_access = {
                let areas = self.areas.borrow();
                let area = areas.find(at).ok_or(Errno::ENOMEM)?;
                // Private memory is going to be written: it is made ready for that.
                if area.prot.contains(Prot::WRITE) && !area.is_shared() {
                    FaultAccess::Write
                } else {
                    FaultAccess::Read
                }
            };
            let access = access.unwrap_or(area_access);
            let pte = self.table.borrow().lookup(at);
            let ready =
                pte.filter(|pte| if access == FaultAccess::Write { pte.is_writable() } else { pte.is_present() });
            if let Some(pte) = ready {
                let bytes = pte.pages() * PAGE_BYTES;
                at = (at & !(bytes - 1)) + bytes;
                continue;
            }
            match self.try_fault(at, access, false) {
                Ok(()) | Err(FaultOutcome::Resolved) => at += PAGE_BYTES,
                Err(FaultOutcome::OutOfMemory) => return Err(Errno::ENOMEM),
                Err(_) => return Err(Errno::EFAULT),
            }
        }
        Ok(())
    }
}

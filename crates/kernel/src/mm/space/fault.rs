//! Page faults: bringing pages in, copying them before they are written, growing stacks.
//!
//! A fault costs 10 us and more on a software KVM, so each brings in more than one page: 64 KiB at first, twice as much
//! each time the program goes on where the last fault ended, up to large pages. Memory is charged when it is mapped.

use super::area::{Area, AreaFlags, Backing, ObjectMapping};
use super::{AddressSpace, MemoryLimits, STACK_GUARD_BYTES};
use crate::mm::addr::{Gpa, PAGE_BYTES, USER_BASE, USER_END, UserAddr};
use crate::mm::frame::{self, BLOCK_FRAMES, Content, NoMemory, Pfn, RUN_FRAMES};
use crate::mm::pages::{Access, Page, PageError};
use crate::mm::phys;
use crate::mm::pte::{Kind, Prot, Pte};
use crate::mm::tlb::Flush;
use core::iter;
use torpor_abi::layout::LARGE_PAGE_BYTES;

/// What the program tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAccess {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// The access can be tried again.
    Resolved,
    /// Nothing is mapped there: SIGSEGV with SEGV_MAPERR.
    Unmapped,
    /// The area does not allow it: SIGSEGV with SEGV_ACCERR.
    Denied,
    /// Beyond the end of the mapped object: SIGBUS with BUS_ADRERR.
    BeyondEnd,
    /// The VM's memory is used up.
    OutOfMemory,
}

/// Pages that the first fault in a part of the image brings in: all of a table. They cost nothing but their entries, which are
/// quick to write while the hypervisor does not know the table yet.
const IMAGE_WINDOW_PAGES: u32 = BLOCK_FRAMES;
/// Pages of objects that are asked for one by one.
const OBJECT_WINDOW_PAGES: u32 = 16;
/// The most pages that are copied at a time, for a program that goes through copied memory in order.
const COPY_WINDOW_PAGES: u32 = 16;
/// The largest data segment that is copied in pieces of 64 KiB when it is touched.
const DATA_SEGMENT_BYTES: u64 = 8 << 20;
/// How far before it its text is looked for.
const TEXT_BEFORE_BYTES: u64 = 128 << 20;

impl From<NoMemory> for FaultOutcome {
    fn from(_: NoMemory) -> Self {
        FaultOutcome::OutOfMemory
    }
}

type Step = Result<(), FaultOutcome>;

impl AddressSpace {
    /// Handles a fault of the program, or finds out whether an access of the kernel on its behalf is allowed.
    pub fn fault(&self, address: UserAddr, access: FaultAccess) -> FaultOutcome {
        self.faults.set(self.faults.get() + 1);
        let forced = false;
        match self.try_fault(address.0, access, forced) {
            Ok(()) => FaultOutcome::Resolved,
            Err(outcome) => outcome,
        }
    }

    /// With `forced`, a private area may be written (by copy) and read whatever its protection: for /proc/PID/mem.
    pub(super) fn try_fault(&self, address: u64, access: FaultAccess, forced: bool) -> Step {
        if !(USER_BASE..USER_END).contains(&address) {
            return Err(FaultOutcome::Unmapped);
        }
        let page = address & !(PAGE_BYTES - 1);
        let area = self.area_for_fault(page)?;
        let allowed = match access {
            // x86 has no way to forbid only reading.
            FaultAccess::Read => !area.prot.is_empty(),
            FaultAccess::Write => area.prot.contains(Prot::WRITE),
            FaultAccess::Execute => area.prot.contains(Prot::EXEC),
        };
        if !allowed && !(forced && (!area.is_shared() || access == FaultAccess::Read)) {
            return Err(FaultOutcome::Denied);
        }
        let write = access == FaultAccess::Write;
        if write {
            // Only a forced write can meet one: it is the image's page that is copied.
            let mut flush = Flush::default();
            self.hide_copies(page, page + PAGE_BYTES, &mut flush);
            self.finish(flush);
        }
        let present = self.table.borrow().lookup(page);
        match present {
            None => self.bring_in(&area, page, write),
            Some(pte) if write && !pte.is_writable() => {
                if !allowed && pte.kind() == Kind::Anonymous && pte.is_exclusive() {
                    return Ok(()); // A forced write goes through the direct map.
                }
                self.make_writable(&area, page, pte)
            }
            Some(_) => {
                // The table allows it: the processor used an older translation.
                let mut flush = Flush::default();
                flush.page(page);
                self.finish(flush);
                Ok(())
            }
        }
    }

    /// A copy of the area that holds `page`; a stack is grown to hold it.
    fn area_for_fault(&self, page: u64) -> Result<Area, FaultOutcome> {
        let mut areas = self.areas.borrow_mut();
        if let Some(area) = areas.find(page) {
            return Ok(area.clone());
        }
        let area = areas.find_from(page).ok_or(FaultOutcome::Unmapped)?;
        if !area.flags.contains(AreaFlags::GROWSDOWN) {
            return Err(FaultOutcome::Unmapped);
        }
        let limits = MemoryLimits::current();
        let (start, end) = (area.start, area.end);
        let floor = match areas.before(start) {
            Some(below) if !below.prot.is_empty() && !below.flags.contains(AreaFlags::GROWSDOWN) => {
                below.end + STACK_GUARD_BYTES
            }
            Some(below) => below.end,
            None => USER_BASE,
        };
        if page < floor || end - page > limits.stack {
            return Err(FaultOutcome::Unmapped);
        }
        let total: u64 = areas.iter().map(Area::len).sum();
        if total.saturating_add(start - page) > limits.address_space {
            return Err(FaultOutcome::Unmapped);
        }
        // In pieces of 64 KiB, so that a fault can map as much.
        let run_bytes = u64::from(RUN_FRAMES) * PAGE_BYTES;
        let mut new_start = (page & !(run_bytes - 1)).max(floor);
        if end - new_start > limits.stack {
            new_start = page;
        }
        self.make_room(new_start, start);
        areas.grow_down(start, new_start);
        areas.find(page).cloned().ok_or(FaultOutcome::Unmapped)
    }

    /// How many pages to bring in: `first`, or twice as many as last time if the program goes on where that ended.
    fn window(area: &Area, page: u64, first: u32, most: u32) -> u32 {
        if area.flags.contains(AreaFlags::RANDOM) {
            return 1;
        }
        let last = area.window_pages.get();
        let expected = area.expected.get();
        let below = expected.saturating_sub(u64::from(last) * PAGE_BYTES);
        let downwards = last > 0 && page < below && below - page <= u64::from(last) * PAGE_BYTES;
        if page == expected && last > 0 || downwards { (last * 2).clamp(first, most) } else { first }
    }

    /// Remembers for the next fault what this one brought in.
    fn note_window(&self, page: u64, end: u64, pages: u32) {
        if let Some(area) = self.areas.borrow().find(page) {
            area.expected.set(end);
            area.window_pages.set(pages);
        }
    }

    fn bring_in(&self, area: &Area, page: u64, write: bool) -> Step {
        match &area.backing {
            Backing::Anonymous => self.bring_in_anonymous(area, page),
            Backing::Object(object) if self.is_data_segment(area, object) && self.bring_in_data(area, object, page) => {
                Ok(())
            }
            Backing::Object(object) if write && !area.is_shared() => self.bring_in_copy(area, object, page),
            Backing::Object(object) => self.bring_in_object(area, object, page, write),
        }
    }

    fn bring_in_anonymous(&self, area: &Area, page: u64) -> Step {
        let huge = area.flags.contains(AreaFlags::HUGE);
        let mut pages = if huge { BLOCK_FRAMES } else { Self::window(area, page, RUN_FRAMES, BLOCK_FRAMES) };
        if area.flags.contains(AreaFlags::NO_HUGE) {
            pages = pages.min(BLOCK_FRAMES / 2);
        }
        // Nothing is brought in ahead when memory is short.
        let free = frame::usage().free_bytes();
        while pages > 1 && u64::from(pages) * PAGE_BYTES > free / 8 {
            pages /= 2;
        }
        if pages == BLOCK_FRAMES {
            let base = page & !(LARGE_PAGE_BYTES - 1);
            if base >= area.start && base + LARGE_PAGE_BYTES <= area.end && self.bring_in_large(area, base).is_ok() {
                self.note_window(page, base + LARGE_PAGE_BYTES, pages);
                return Ok(());
            }
        }
        let window_bytes = u64::from(pages) * PAGE_BYTES;
        let start = (page & !(window_bytes - 1)).max(area.start);
        let end = ((page & !(window_bytes - 1)) + window_bytes).min(area.end);
        self.table.borrow_mut().reserve(page)?;
        let run_bytes = u64::from(RUN_FRAMES) * PAGE_BYTES;
        let mut at = start;
        while at < end {
            let piece_end = ((at & !(run_bytes - 1)) + run_bytes).min(end);
            self.bring_in_run(area, at, piece_end, page)?;
            at = piece_end;
        }
        self.note_window(page, end, pages);
        Ok(())
    }

    fn bring_in_large(&self, area: &Area, base: u64) -> Result<(), NoMemory> {
        let mut table = self.table.borrow_mut();
        if !table.region_is_empty(base) {
            return Err(NoMemory);
        }
        let pfn = frame::allocate_block()?;
        let pte = Pte::new(frame::gpa(pfn), Kind::Anonymous, area.prot, true).large();
        let mut flush = Flush::default();
        if let Err(error) = table.set_large(base, pte, &mut flush) {
            frame::release_block(pfn);
            return Err(error);
        }
        flush.finish(table.root());
        self.count_pages(pte, u64::from(BLOCK_FRAMES));
        Ok(())
    }

    /// Maps zeroed frames over what is not mapped of `[start, end)`, at most 64 KiB. Only for `page` is memory a must.
    fn bring_in_run(&self, area: &Area, start: u64, end: u64, page: u64) -> Step {
        let mut table = self.table.borrow_mut();
        let pte = |pfn: Pfn| Pte::new(frame::gpa(pfn), Kind::Anonymous, area.prot, true);
        let mut missing = (end - start) / PAGE_BYTES;
        table.visit(start, end, |_, _| missing -= 1);
        // Of a run that is needed in part the rest would be of use to single pages alone, and seldom all of it.
        let mapped = if missing == u64::from(RUN_FRAMES)
            && let Ok(run) = frame::allocate_run(Content::Zeroed)
        {
            let mapped = table.fill(start, end, |address| Some(pte(run + ((address - start) / PAGE_BYTES) as u32)));
            if mapped.is_err() {
                (run..run + RUN_FRAMES).for_each(frame::release);
            }
            mapped
        } else {
            let first = (start..end).contains(&page).then(|| frame::allocate(Content::Zeroed)).transpose()?;
            table.fill(start, end, |address| match first {
                Some(pfn) if address == page => Some(pte(pfn)),
                _ => frame::allocate(Content::Zeroed).ok().map(pte),
            })
        };
        drop(table);
        self.count_pages(pte(0), mapped?);
        Ok(())
    }

    /// Whether an area is the data of a program or library: private and writable, beside executable pages of the same file.
    fn is_data_segment(&self, area: &Area, object: &ObjectMapping) -> bool {
        let is_text = |other: &Area| {
            let same = |text: &ObjectMapping| text.source.id() == object.source.id();
            other.prot.contains(Prot::EXEC) && matches!(&other.backing, Backing::Object(text) if same(text))
        };
        area.prot.contains(Prot::WRITE)
            && !area.prot.contains(Prot::EXEC)
            && !area.is_shared()
            && area.len() <= DATA_SEGMENT_BYTES
            && self.areas.borrow().overlapping(area.start.saturating_sub(TEXT_BEFORE_BYTES), area.start).any(is_text)
    }

    /// Copies the pages of the image around `page` that are not mapped yet, whether it is read or written: most of a data
    /// segment is written sooner or later, and a page that was mapped from the image costs a second fault and a flush then.
    /// False if the page is none of the image's, or there is no memory.
    fn bring_in_data(&self, area: &Area, object: &ObjectMapping, page: u64) -> bool {
        let window_bytes = u64::from(COPY_WINDOW_PAGES) * PAGE_BYTES;
        let start = (page & !(window_bytes - 1)).max(area.start);
        let end = ((page & !(window_bytes - 1)) + window_bytes).min(area.end);
        // The page itself first: where memory is short, the others stay out.
        let others = (start..end).step_by(PAGE_BYTES as usize).filter(|address| *address != page);
        let mut found = false;
        for address in iter::once(page).chain(others) {
            if address != page && (!found || frame::usage().free_bytes() / 8 <= window_bytes) {
                break;
            }
            let index = object.first_page + (address - area.start) / PAGE_BYTES;
            if self.table.borrow().lookup(address).is_none()
                && let Ok(from @ Page::Image(_)) = object.source.page(index, Access::Read)
                && let Ok(pfn) = copy_of(&from)
            {
                found |= self.map_own(area, address, pfn).is_ok() && address == page;
            }
        }
        found
    }

    /// The first write to a private page of an object that is not mapped yet.
    fn bring_in_copy(&self, area: &Area, object: &ObjectMapping, page: u64) -> Step {
        let pages = Self::window(area, page, 1, COPY_WINDOW_PAGES);
        let end = (page + u64::from(pages) * PAGE_BYTES).min(area.end);
        for address in (page..end).step_by(PAGE_BYTES as usize) {
            if address != page && self.table.borrow().lookup(address).is_some() {
                break;
            }
            let index = object.first_page + (address - area.start) / PAGE_BYTES;
            let copied = object.source.page(index, Access::Read).map_err(outcome_of).and_then(|from| copy_of(&from));
            match copied {
                Ok(pfn) => self.map_own(area, address, pfn)?,
                Err(outcome) if address == page => return Err(outcome),
                Err(_) => break,
            }
        }
        self.note_window(page, end, pages);
        Ok(())
    }

    /// Maps the program's own frame where nothing is mapped. Takes over the reference.
    fn map_own(&self, area: &Area, address: u64, pfn: Pfn) -> Step {
        let pte = Pte::new(frame::gpa(pfn), Kind::Anonymous, area.prot, true);
        let set = self.table.borrow_mut().set_small(address, pte);
        if let Err(error) = set {
            frame::release(pfn);
            return Err(error.into());
        }
        self.count_pages(pte, 1);
        Ok(())
    }

    fn bring_in_object(&self, area: &Area, object: &ObjectMapping, page: u64, write: bool) -> Step {
        let index_of = |address: u64| object.first_page + (address - area.start) / PAGE_BYTES;
        if !write && self.bring_in_image(area, object, page) {
            return Ok(());
        }
        let shared_writable = area.is_shared() && area.prot.contains(Prot::WRITE);
        let access = if shared_writable { Access::Write } else { Access::Read };
        let got = object.source.page(index_of(page), access).map_err(outcome_of)?;
        let got = if matches!(got, Page::Hole) { fill_hole(object, index_of(page))? } else { got };
        self.map_page(area, page, got, shared_writable)?;

        let pages = Self::window(area, page, OBJECT_WINDOW_PAGES, OBJECT_WINDOW_PAGES * 4);
        let window_bytes = u64::from(pages) * PAGE_BYTES;
        let region = page & !(LARGE_PAGE_BYTES - 1);
        let start = (page & !(window_bytes - 1)).max(area.start).max(region);
        let end = ((page & !(window_bytes - 1)) + window_bytes).min(area.end).min(region + LARGE_PAGE_BYTES);
        if pages > 1 && frame::usage().free_bytes() / 8 > window_bytes {
            for address in (start..end).step_by(PAGE_BYTES as usize) {
                if address == page || self.table.borrow().lookup(address).is_some() {
                    continue;
                }
                // Holes of files stay holes until they are touched; shared memory without a file is there for use.
                let around = object.source.page(index_of(address), object.source.access_ahead());
                match around {
                    Ok(Page::Hole) | Err(_) => {}
                    Ok(got) => {
                        let writable = shared_writable && object.source.access_ahead() == Access::Write;
                        self.map_page(area, address, got, writable)?;
                    }
                }
            }
        }
        self.note_window(page, end, pages);
        Ok(())
    }

    /// Maps pages of the image around `page`, if it is there.
    fn bring_in_image(&self, area: &Area, object: &ObjectMapping, page: u64) -> bool {
        let index = object.first_page + (page - area.start) / PAGE_BYTES;
        // A private page that is mapped before it is written costs a flush then; what may be written mostly is.
        let first = if !area.is_shared() && area.prot.contains(Prot::WRITE) { 1 } else { IMAGE_WINDOW_PAGES };
        let pages = Self::window(area, page, first, BLOCK_FRAMES);
        let window_bytes = u64::from(pages) * PAGE_BYTES;
        let region = page & !(LARGE_PAGE_BYTES - 1);
        let mut start = (page & !(window_bytes - 1)).max(area.start).max(region);
        let end = ((page & !(window_bytes - 1)) + window_bytes).min(area.end).min(region + LARGE_PAGE_BYTES);
        let run_from = |address: u64| {
            let first = index - (page - address) / PAGE_BYTES;
            object.source.image_run(first, ((end - address) / PAGE_BYTES) as usize)
        };
        let mut run = run_from(start).filter(|(_, count)| start + *count as u64 * PAGE_BYTES > page);
        if run.is_none() {
            start = page;
            run = run_from(page);
        }
        let Some((gpa, count)) = run.filter(|(_, count)| *count > 0) else { return false };
        let run_end = (start + count as u64 * PAGE_BYTES).min(end);
        let text = self.text_shown(area, start, gpa);
        let pte = |address: u64| {
            let copy = text.and_then(|(text, offset)| text.copy(offset + (address - start)));
            let at = copy.unwrap_or(Gpa(gpa.0 + (address - start)));
            Pte::new(at, Kind::Foreign, area.prot, false)
        };
        let mapped = self.table.borrow_mut().fill(start, run_end, |address| Some(pte(address)));
        let Ok(mapped) = mapped else { return false };
        self.count_pages(pte(start), mapped);
        self.note_window(page, run_end, pages);
        true
    }

    /// Maps an object's page where nothing is mapped (asking the object may have changed that).
    fn map_page(&self, area: &Area, address: u64, page: Page, writable: bool) -> Step {
        let mut table = self.table.borrow_mut();
        if table.lookup(address).is_some() {
            return Ok(());
        }
        let pte = match page {
            Page::Frame(frame) => Pte::new(frame::gpa(frame.into_reference()), Kind::Object, area.prot, writable),
            Page::Image(gpa) => Pte::new(gpa, Kind::Foreign, area.prot, false),
            Page::Hole => {
                // Only from objects that never change (see `fill_hole`): the program gets zeros of its own.
                let pfn = frame::allocate(Content::Zeroed)?;
                Pte::new(frame::gpa(pfn), Kind::Anonymous, area.prot, !area.is_shared())
            }
        };
        if let Err(error) = table.set_small(address, pte) {
            pte.release();
            return Err(error.into());
        }
        self.count_pages(pte, 1);
        Ok(())
    }

    /// A write to a page that is mapped but not writable, in an area that allows it.
    fn make_writable(&self, area: &Area, page: u64, pte: Pte) -> Step {
        let mut flush = Flush::default();
        let result = if area.is_shared() {
            self.make_shared_writable(area, page, &mut flush)
        } else {
            self.make_private_writable(area, page, pte, &mut flush)
        };
        self.finish(flush);
        result
    }

    fn make_shared_writable(&self, area: &Area, page: u64, flush: &mut Flush) -> Step {
        let (object, index) = area.object_page(page).ok_or(FaultOutcome::BeyondEnd)?;
        let got = object.source.page(index, Access::Write).map_err(outcome_of)?;
        let Page::Frame(frame) = got else { return Err(FaultOutcome::BeyondEnd) };
        let pte = Pte::new(frame::gpa(frame.into_reference()), Kind::Object, area.prot, true);
        let old = self.table.borrow().lookup(page);
        if let Err(error) = self.table.borrow_mut().set_small(page, pte) {
            pte.release();
            return Err(error.into());
        }
        self.count_pages(pte, 1);
        if let Some(old) = old {
            self.uncount_pages(old);
            old.release();
        }
        flush.page(page);
        Ok(())
    }

    fn make_private_writable(&self, area: &Area, page: u64, pte: Pte, flush: &mut Flush) -> Step {
        if pte.kind() == Kind::Anonymous && pte.is_exclusive() {
            self.take_back(area, page, flush);
            return Ok(());
        }
        if pte.is_large() {
            self.table.borrow_mut().split(page, flush)?;
        }
        let pages = Self::window(area, page, 1, COPY_WINDOW_PAGES);
        let end = (page + u64::from(pages) * PAGE_BYTES).min(area.end);
        for address in (page..end).step_by(PAGE_BYTES as usize) {
            let old = self.table.borrow().lookup(address);
            let Some(old) = old.filter(|old| !old.is_large() && !old.is_writable()) else { break };
            let pfn = match frame::allocate(Content::Any) {
                Ok(pfn) => pfn,
                Err(error) if address == page => return Err(error.into()),
                Err(_) => break,
            };
            // SAFETY: a new frame, and one that an entry of ours keeps; nobody holds references into either.
            unsafe { phys::copy_page(old.gpa(), frame::gpa(pfn)) };
            let new = Pte::new(frame::gpa(pfn), Kind::Anonymous, area.prot, true);
            // The table is there: an entry of it was just read.
            self.table.borrow_mut().set_small(address, new)?;
            self.count_pages(new, 1);
            self.uncount_pages(old);
            old.release();
            flush.page(address);
        }
        self.note_window(page, end, pages);
        Ok(())
    }

    /// Pages that were shared by fork(2) and are the program's alone again become writable without a copy: the one at
    /// `page` and those around it.
    fn take_back(&self, area: &Area, page: u64, flush: &mut Flush) {
        let mut table = self.table.borrow_mut();
        // All of the table's pages: a pass over a table costs less than two faults.
        let base = page & !(LARGE_PAGE_BYTES - 1);
        let (start, end) = (base.max(area.start), (base + LARGE_PAGE_BYTES).min(area.end));
        // The program would not need to hear of more rights, but the kernel writes by the program's addresses, and must
        // not fault over an older translation of any of these pages.
        table.edit(start, end, false, flush, |_, pte| {
            if pte.kind() == Kind::Anonymous && pte.is_exclusive() { pte.with_prot(area.prot, true) } else { pte }
        });
    }
}

fn outcome_of(error: PageError) -> FaultOutcome {
    match error {
        PageError::NoMemory => FaultOutcome::OutOfMemory,
        PageError::BeyondEnd | PageError::Failed(_) => FaultOutcome::BeyondEnd,
    }
}

/// A mapped hole: file systems in memory fill it, so that later writes are seen; others never change, and keep it.
fn fill_hole(object: &ObjectMapping, index: u64) -> Result<Page, FaultOutcome> {
    match object.source.page(index, Access::Write) {
        Ok(page) => Ok(page),
        Err(PageError::Failed(_)) => Ok(Page::Hole),
        Err(error) => Err(outcome_of(error)),
    }
}

/// A frame of one's own with a page's content.
fn copy_of(page: &Page) -> Result<Pfn, FaultOutcome> {
    let from = match page {
        Page::Frame(frame) => frame.gpa(),
        Page::Image(gpa) => *gpa,
        Page::Hole => return Ok(frame::allocate(Content::Zeroed)?),
    };
    let pfn = frame::allocate(Content::Any)?;
    // SAFETY: a new frame, and one that `page` keeps (or the image); nobody holds references into either.
    unsafe { phys::copy_page(from, frame::gpa(pfn)) };
    Ok(pfn)
}

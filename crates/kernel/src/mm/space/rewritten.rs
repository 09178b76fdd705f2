//! Rewritten text in an address space: copies of its pages instead of the image's, and the islands that they jump to.
//!
//! Copies are in private, unwritable mappings only. What would let the program see or change them by other ways than
//! running them (mprotect(2), mremap(2), a write through /proc/PID/mem) puts the image's pages back first. Islands are in
//! no area, so nothing shows them; they yield to whatever the program maps there, and their text is the image's again.

use super::area::Area;
use super::{AddressSpace, Flush, Prot, all};
use crate::arch::regs::UserRegs;
use crate::mm::addr::{Gpa, PAGE_BYTES, USER_BASE, UserAddr};
use crate::mm::pte::{Kind, Pte};
use crate::rewrite::shape::{Bytes, Refusal, Shape};
use crate::rewrite::text::{self, Found, ISLANDS_BYTES, REACH_BYTES};
use alloc::vec::Vec;
use torpor_abi::layout::{IMAGE_GPA, USER_END};

/// From the text of a library to its islands.
const ABOVE_BYTES: u64 = 3 << 29;
/// What stays free for the stack.
const STACK_ROOM_BYTES: u64 = 256 << 20;

/// A text that is mapped with islands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapped {
    text: text::Id,
    /// Where its start is, or would be.
    base: u64,
}

impl Mapped {
    fn islands(&self) -> u64 {
        self.base.wrapping_add_signed(self.text.distance())
    }

    /// The offset of an address from the start of the text.
    fn offset(&self, address: u64) -> Option<u64> {
        address.checked_sub(self.base).filter(|offset| *offset < self.text.range().1)
    }
}

/// Whether text of such an area may be rewritten.
fn is_eligible(area: &Area) -> bool {
    area.prot.contains(Prot::EXEC) && !area.prot.contains(Prot::WRITE) && !area.is_shared() && !area.is_anonymous()
}

impl AddressSpace {
    /// The text of which pages are shown in place of the image's from `page` on, which `area` maps at `address`, and the
    /// offset there.
    pub(super) fn text_shown(&self, area: &Area, address: u64, page: Gpa) -> Option<(text::Id, u64)> {
        if !is_eligible(area) {
            return None;
        }
        let (text, offset) = text::holding(page)?;
        self.map_text(text, address.checked_sub(offset)?).then_some((text, offset))
    }

    /// Rewrites the system call site at `address`, where the registers are `regs`; islands jump to `entry`. `free` is
    /// asked whether a site's bytes may be replaced, with the text and the site's offset.
    pub(crate) fn rewrite(
        &self,
        address: u64,
        regs: &UserRegs,
        entry: u64,
        free: impl FnOnce(text::Id, u64, Shape) -> bool,
    ) -> Result<(), Refusal> {
        let page = address & !(PAGE_BYTES - 1);
        let area = self.area_at(page).filter(is_eligible).ok_or(Refusal::NotImage)?;
        let image = self.image_page(page).ok_or(Refusal::NotImage)?;
        let (text, offset) = match text::holding(image) {
            Some(known) => known,
            None => self.add_text(&area, image, page)?,
        };
        let base = page.checked_sub(offset).ok_or(Refusal::NotImage)?;
        if !self.map_text(text, base) {
            return Err(Refusal::NoRoom);
        }
        let site = address - base;
        if !text.has(site) {
            let chosen = |page: &Bytes, copy: &Bytes, at: usize| {
                let shape = crate::rewrite::shape::of(page, copy, at, regs, |address| self.word(address))?;
                if free(text, site, shape) { Ok(shape) } else { Err(Refusal::InUse) }
            };
            text.rewrite(site, entry, chosen)?;
            // There may be a page of islands more.
            for space in all() {
                let texts = space.texts.borrow().clone();
                texts.iter().filter(|mapped| mapped.text == text).for_each(|mapped| space.complete_islands(mapped));
            }
        }
        let copy = text.copy(offset).filter(|_| self.map_text(text, base));
        self.show_copy(&area, page, copy.ok_or(Refusal::NoRoom)?);
        Ok(())
    }

    /// A word of the program's memory, if it is there.
    pub(crate) fn word(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.read(UserAddr(address), &mut word).ok().map(|()| u64::from_le_bytes(word))
    }

    /// The page of the image that is mapped at `page`, or of which a copy is.
    fn image_page(&self, page: u64) -> Option<Gpa> {
        let pte = self.table.borrow().lookup(page).filter(|pte| pte.kind() == Kind::Foreign)?;
        Some(text::original(pte.gpa())).filter(|gpa| gpa.0 >= IMAGE_GPA)
    }

    /// Makes the part of the image that `area` maps a text. `image` is its page at `page`.
    fn add_text(&self, area: &Area, image: Gpa, page: u64) -> Result<(text::Id, u64), Refusal> {
        let (object, first_page) = area.object_page(area.start).ok_or(Refusal::NotImage)?;
        let run = object.source.image_run(first_page, (area.len() / PAGE_BYTES) as usize);
        let (first, pages) = run.ok_or(Refusal::NotImage)?;
        let (offset, bytes) = (page - area.start, pages as u64 * PAGE_BYTES);
        if first.0 + offset != image.0 || offset >= bytes {
            return Err(Refusal::NotImage);
        }
        let distance = self.find_islands(area.start, bytes).ok_or(Refusal::NoRoom)?;
        let text = text::add(first, bytes, distance).ok_or(Refusal::NoRoom)?;
        Ok((text, offset))
    }

    /// A distance from a text to its islands that is likely to be free in other spaces as well: for libraries between
    /// the mappings and the stack, where nothing else is put, and for programs below them.
    fn find_islands(&self, start: u64, bytes: u64) -> Option<i64> {
        let top = self.layout.mmap_top;
        let limit = self.layout.stack_top.saturating_sub(STACK_ROOM_BYTES);
        let above = start + ABOVE_BYTES;
        let place = if start < top && (top..limit).contains(&above) && self.is_free(above) {
            above
        } else {
            let low = (start + bytes).saturating_sub(REACH_BYTES).max(USER_BASE);
            self.areas.borrow().find_gap(ISLANDS_BYTES, PAGE_BYTES, low, start)?
        };
        (start + bytes - place.min(start) <= REACH_BYTES).then(|| place.cast_signed() - start.cast_signed())
    }

    fn is_free(&self, islands: u64) -> bool {
        let end = islands + ISLANDS_BYTES;
        islands >= USER_BASE
            && end <= USER_END
            && self.areas.borrow().overlapping(islands, end).next().is_none()
            && !self
                .texts
                .borrow()
                .iter()
                .any(|other| other.islands() < end && islands < other.islands() + ISLANDS_BYTES)
    }

    /// Makes sure that a text's islands are there; whether they are.
    fn map_text(&self, text: text::Id, base: u64) -> bool {
        let mapped = Mapped { text, base };
        if !self.texts.borrow().contains(&mapped) {
            self.forget_unmapped();
            if !self.is_free(mapped.islands()) {
                return false;
            }
            self.texts.borrow_mut().push(mapped);
            self.complete_islands(&mapped);
        }
        self.texts.borrow().contains(&mapped)
    }

    /// Takes out the islands of texts of which nothing is mapped any more: a library may be loaded at ever new addresses.
    fn forget_unmapped(&self) {
        let is_gone = |mapped: &Mapped| {
            let end = mapped.base + mapped.text.range().1;
            self.areas.borrow().overlapping(mapped.base, end).next().is_none()
        };
        let gone: Vec<Mapped> = self.texts.borrow().iter().filter(|mapped| is_gone(mapped)).copied().collect();
        gone.iter().for_each(|mapped| self.make_room(mapped.islands(), mapped.islands() + ISLANDS_BYTES));
    }

    /// Maps the pages of islands that are not mapped yet; without them, for want of a table, the text is the image's.
    fn complete_islands(&self, mapped: &Mapped) {
        let mut done = true;
        {
            let mut table = self.table.borrow_mut();
            for (index, gpa) in mapped.text.islands().into_iter().enumerate() {
                let address = mapped.islands() + index as u64 * PAGE_BYTES;
                let pte = Pte::new(gpa, Kind::Foreign, Prot::READ | Prot::EXEC, false);
                done &= table.lookup(address).is_some() || table.set_small(address, pte).is_ok();
            }
        }
        if !done {
            self.make_room(mapped.islands(), mapped.islands() + ISLANDS_BYTES);
        }
    }

    /// Puts a copy in place of the image's page.
    fn show_copy(&self, area: &Area, page: u64, copy: Gpa) {
        let mut table = self.table.borrow_mut();
        if table.lookup(page).is_none_or(|pte| pte.gpa() == copy) {
            return;
        }
        let mut flush = Flush::default();
        flush.page(page);
        // There is a table, and both entries count as a page of a file.
        let set = table.set_small(page, Pte::new(copy, Kind::Foreign, area.prot, false));
        debug_assert!(set.is_ok(), "the page is mapped");
        flush.finish(table.root());
    }

    /// Takes copies out of `[start, end)`; the next access brings the image's pages, or copies again if they may be there.
    pub(super) fn hide_copies(&self, start: u64, end: u64, flush: &mut Flush) {
        let texts = self.texts.borrow();
        for mapped in texts.iter() {
            let (from, to) = (mapped.base.max(start), (mapped.base + mapped.text.range().1).min(end));
            if from < to {
                self.table.borrow_mut().edit(from, to, false, flush, |_, pte| {
                    if pte.kind() != Kind::Foreign || text::original(pte.gpa()) == pte.gpa() {
                        return pte;
                    }
                    self.uncount_pages(pte);
                    Pte::EMPTY
                });
            }
        }
    }

    /// Takes islands out of `[start, end)`, where something is going to be mapped, and their texts' copies as well.
    pub(super) fn make_room(&self, start: u64, end: u64) {
        let overlaps = |mapped: &Mapped| mapped.islands() < end && start < mapped.islands() + ISLANDS_BYTES;
        let gone: Vec<Mapped> = self.texts.borrow().iter().filter(|mapped| overlaps(mapped)).copied().collect();
        if gone.is_empty() {
            return;
        }
        let mut flush = Flush::default();
        for mapped in &gone {
            self.hide_copies(mapped.base, mapped.base + mapped.text.range().1, &mut flush);
            let islands = mapped.islands();
            self.table.borrow_mut().edit(islands, islands + ISLANDS_BYTES, true, &mut flush, |_, _| Pte::EMPTY);
        }
        self.texts.borrow_mut().retain(|mapped| !overlaps(mapped));
        self.finish(flush);
    }

    /// Gives a child of fork(2) the parent's texts; its tables are a copy already.
    pub(super) fn copy_texts(&self, child: &Self) {
        let texts = self.texts.borrow().clone();
        child.texts.replace(texts.clone());
        texts.iter().for_each(|mapped| child.complete_islands(mapped));
    }

    /// The text that an address is in, mapped with islands, and the address's offset there.
    pub(crate) fn text_at(&self, address: u64) -> Option<(text::Id, u64)> {
        let texts = self.texts.borrow();
        texts.iter().find_map(|mapped| Some((mapped.text, mapped.offset(address)?)))
    }

    /// Whether an address is where islands are or may be.
    #[cfg(test)]
    pub(super) fn in_islands(&self, address: u64) -> bool {
        self.texts.borrow().iter().any(|mapped| (mapped.islands()..mapped.islands() + ISLANDS_BYTES).contains(&address))
    }

    /// If an address is in an island or at a jump to one: its site's address, and the moved instruction if that has not
    /// been executed.
    pub(crate) fn site_of(&self, address: u64) -> Option<(u64, Option<Shape>)> {
        let texts = self.texts.borrow();
        texts.iter().find_map(|mapped| {
            let found = match address.checked_sub(mapped.islands()).filter(|offset| *offset < ISLANDS_BYTES) {
                Some(offset) => mapped.text.in_islands(offset),
                None => {
                    let offset = mapped.offset(address)?;
                    // The text may have been unmapped, replaced or copied since: only what shows the copy has jumps.
                    let shown = self.table.borrow().lookup(address & !(PAGE_BYTES - 1)).map(|pte| pte.gpa());
                    let copy = mapped.text.copy(offset & !(PAGE_BYTES - 1));
                    if copy.is_none() || shown != copy {
                        return None;
                    }
                    mapped.text.in_text(offset)
                }
            };
            let Found { site, pending } = found?;
            Some((mapped.base + site, pending))
        })
    }
}

//! Text of the image of which sites are rewritten: copies of its pages, and the islands that their jumps lead to.
//!
//! A copy belongs to the page of the image, not to a process: all that map the text map the same copies, and those to
//! come as well. For that islands lie at the same distance from the text in every address space. Copies and islands
//! are never freed; their number is bounded.
//!
//! ```text
//! island    the moved instruction, and those between it and the `syscall`
//!           lea  behind_the_syscall(%rip), %rcx
//!           jmp  *entry(%rip)            entry: the first word of each page of islands
//! ```

use super::shape::{Bytes, INSTRUCTIONS_MAX_BYTES, Refusal, SYSCALL_BYTES, Shape};
use crate::mm::addr::{Gpa, PAGE_BYTES};
use crate::mm::frame::Frame;
use crate::mm::phys;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::RefCell;

/// Bytes of an island: the program's instructions, 7 and 6 of the two others, rounded up.
const ISLAND_BYTES: u64 = (INSTRUCTIONS_MAX_BYTES as u64 + 13).next_multiple_of(8);
/// Where a page's islands begin: behind the entry's address.
const FIRST_ISLAND: u64 = 16;
const ISLANDS_PER_PAGE: u64 = (PAGE_BYTES - FIRST_ISLAND) / ISLAND_BYTES;
/// Pages of address space for a text's islands.
pub(crate) const ISLAND_PAGES: u64 = 16;
/// See [`ISLAND_PAGES`].
pub(crate) const ISLANDS_BYTES: u64 = ISLAND_PAGES * PAGE_BYTES;
/// How far a jump reaches, less what rounding may take.
pub(crate) const REACH_BYTES: u64 = (1 << 31) - (1 << 16);
/// The most texts and the most copied pages, of all texts together.
const MAX_TEXTS: usize = 64;
const MAX_COPIES: usize = 1024;

/// A rewritten site.
#[derive(Clone, Copy)]
struct Site {
    /// Of the `syscall`, from the start of the text.
    offset: u64,
    shape: Shape,
}

/// See the module's text.
struct Text {
    first: Gpa,
    bytes: u64,
    /// From the text's start to the islands'.
    distance: i64,
    islands: Vec<Kept>,
    /// In the order of their islands.
    sites: Vec<Site>,
    /// By page of the text.
    copies: BTreeMap<u64, Kept>,
}

/// A page that is kept for ever.
#[derive(Clone, Copy)]
struct Kept(Gpa);

impl Kept {
    fn new() -> Result<Self, Refusal> {
        let frame = Frame::zeroed().map_err(|_| Refusal::NoRoom)?;
        let gpa = frame.gpa();
        frame.into_reference();
        Ok(Self(gpa))
    }

    fn bytes(&self) -> Bytes {
        // SAFETY: the frame is kept, and only `write` changes it.
        unsafe { phys::pointer(self.0).cast::<Bytes>().read() }
    }

    fn write(self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= PAGE_BYTES as usize, "beyond the page");
        // SAFETY: within the frame, which is kept; nothing refers to it but mappings of programs, which do not run now.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), phys::pointer(self.0).add(offset), bytes.len()) };
    }
}

#[derive(Default)]
struct Texts {
    all: Vec<Text>,
    /// The page of the image of each copy.
    originals: BTreeMap<Gpa, Gpa>,
}

crate::global! {
    static TEXTS: RefCell<Texts> = RefCell::new(Texts { all: Vec::new(), originals: BTreeMap::new() });
}

/// A text, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(usize);

/// Where an address in rewritten code belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Of the `syscall`, or of that one of the instructions between that comes next, from the start of the text.
    pub(crate) site: u64,
    /// If all of the site's instructions are still to come: then `site` is the `syscall`.
    pub(crate) pending: Option<Shape>,
}

fn with<R>(f: impl FnOnce(&mut Texts) -> R) -> R {
    TEXTS.with(|texts| f(&mut texts.borrow_mut()))
}

/// The text that holds a page of the image, and the page's offset in it.
pub(crate) fn holding(page: Gpa) -> Option<(Id, u64)> {
    with(|texts| {
        let holds = |text: &Text| page.0.checked_sub(text.first.0).filter(|offset| *offset < text.bytes);
        texts.all.iter().enumerate().find_map(|(id, text)| Some((Id(id), holds(text)?)))
    })
}

/// Makes a text of `bytes` bytes from `first` on, with islands at `distance` from its start.
pub(crate) fn add(first: Gpa, bytes: u64, distance: i64) -> Option<Id> {
    with(|texts| {
        (texts.all.len() < MAX_TEXTS).then(|| {
            let (islands, sites, copies) = (Vec::new(), Vec::new(), BTreeMap::new());
            texts.all.push(Text { first, bytes, distance, islands, sites, copies });
            Id(texts.all.len() - 1)
        })
    })
}

/// The page of the image that a copy was made of; any other page is its own original.
pub(crate) fn original(page: Gpa) -> Gpa {
    with(|texts| texts.originals.get(&page).copied().unwrap_or(page))
}

/// How many sites are rewritten, and how many pages were copied for them.
pub(crate) fn totals() -> (usize, usize) {
    with(|texts| (texts.all.iter().map(|text| text.sites.len()).sum(), texts.originals.len()))
}

impl Id {
    fn with<R>(self, f: impl FnOnce(&mut Text) -> R) -> R {
        with(|texts| f(&mut texts.all[self.0]))
    }

    /// First page of the image, and length in bytes.
    pub(crate) fn range(self) -> (Gpa, u64) {
        self.with(|text| (text.first, text.bytes))
    }

    /// From the text's start to the islands'.
    pub(crate) fn distance(self) -> i64 {
        self.with(|text| text.distance)
    }

    /// The pages with islands so far.
    pub(crate) fn islands(self) -> Vec<Gpa> {
        self.with(|text| text.islands.iter().map(|page| page.0).collect())
    }

    /// The copy of the page at `offset`, if there is one.
    pub(crate) fn copy(self, offset: u64) -> Option<Gpa> {
        self.with(|text| text.copies.get(&(offset / PAGE_BYTES)).map(|copy| copy.0))
    }

    /// Whether the site is rewritten in the copy of its page.
    pub(crate) fn has(self, site: u64) -> bool {
        self.with(|text| text.sites.iter().any(|known| known.offset == site))
    }

    /// What an offset from the start of the islands is in.
    pub(crate) fn in_islands(self, offset: u64) -> Option<Found> {
        let (page, within) = (offset / PAGE_BYTES, (offset % PAGE_BYTES).checked_sub(FIRST_ISLAND)?);
        let (index, at) = (page * ISLANDS_PER_PAGE + within / ISLAND_BYTES, within % ISLAND_BYTES);
        self.with(|text| {
            let Site { offset, shape } = *text.sites.get(usize::try_from(index).ok()?)?;
            let between = if at == 0 { 0 } else { (shape.len() as u64).saturating_sub(at) };
            Some(Found { site: offset - between, pending: (at == 0).then_some(shape) })
        })
    }

    /// Whether an offset in the text is a second jump, or inside something that was replaced.
    pub(crate) fn in_text(self, offset: u64) -> Option<Found> {
        self.with(|text| {
            let page = offset / PAGE_BYTES * PAGE_BYTES;
            text.copies.get(&(offset / PAGE_BYTES))?;
            let hop = |site: &&Site| {
                let hop = site.shape.moved.hop();
                hop.is_some_and(|hop| site.offset / PAGE_BYTES * PAGE_BYTES == page && page + hop.at as u64 == offset)
            };
            let site = text.sites.iter().find(hop)?;
            Some(Found { site: site.offset, pending: Some(site.shape) })
        })
    }

    /// Rewrites a site in the copy of its page. `entry` is the address that islands jump to; `chosen` finds the shape
    /// in the original and the rewritten page.
    pub(crate) fn rewrite(
        self,
        site: u64,
        entry: u64,
        chosen: impl FnOnce(&Bytes, &Bytes, usize) -> Result<Shape, Refusal>,
    ) -> Result<(), Refusal> {
        let page = site / PAGE_BYTES;
        let at = (site % PAGE_BYTES) as usize;
        let (first, count) = self.with(|text| (text.first, text.sites.len() as u64));
        let image = Gpa(first.0 + page * PAGE_BYTES);
        // SAFETY: a page of the image, which nobody ever writes.
        let original = unsafe { &*phys::pointer(image).cast::<Bytes>() };
        let known = self.with(|text| text.copies.get(&page).copied());
        let mut bytes = known.map_or_else(|| *original, |copy| copy.bytes());
        let shape = chosen(original, &bytes, at)?;
        let place = self.place(count, entry)?;
        let copy = match known {
            Some(copy) => copy,
            None if with(|texts| texts.originals.len()) >= MAX_COPIES => return Err(Refusal::NoRoom),
            None => Kept::new()?,
        };

        // Both count from the start of the text.
        let jump_end = page * PAGE_BYTES + shape.jump_end(at) as u64;
        let island = self.distance() + place.cast_signed();
        let distance = i32::try_from(island - jump_end.cast_signed()).map_err(|_| Refusal::NoRoom)?;
        self.write_island(place, site, shape)?;
        shape.apply(&mut bytes, at, distance);
        copy.write(0, &bytes);
        self.with(|text| {
            text.sites.push(Site { offset: site, shape });
            text.copies.insert(page, copy);
        });
        with(|texts| texts.originals.insert(copy.0, image));
        Ok(())
    }

    /// Where island `index` is, from the start of the islands, in a page that is there.
    fn place(self, index: u64, entry: u64) -> Result<u64, Refusal> {
        let (page, within) = (index / ISLANDS_PER_PAGE, index % ISLANDS_PER_PAGE);
        if page >= ISLAND_PAGES {
            return Err(Refusal::NoRoom);
        }
        if self.with(|text| text.islands.len() as u64) == page {
            let islands = Kept::new()?;
            islands.write(0, &entry.to_le_bytes());
            self.with(|text| text.islands.push(islands));
        }
        Ok(page * PAGE_BYTES + FIRST_ISLAND + within * ISLAND_BYTES)
    }

    fn write_island(self, place: u64, site: u64, shape: Shape) -> Result<(), Refusal> {
        let (copied, len) = shape.instructions();
        let within = place % PAGE_BYTES;
        // Distances count from the end of their instruction.
        let lea_end = len as u64 + 7;
        let back = (site + SYSCALL_BYTES).cast_signed() - self.distance() - (place + lea_end).cast_signed();
        let back = i32::try_from(back).map_err(|_| Refusal::NoRoom)?;
        let slot = -((within + lea_end + 6) as i32);
        let mut code = [0; ISLAND_BYTES as usize];
        code[..len].copy_from_slice(&copied[..len]);
        code[len..len + 3].copy_from_slice(&[0x48, 0x8d, 0x0d]);
        code[len + 3..len + 7].copy_from_slice(&back.to_le_bytes());
        code[len + 7..len + 9].copy_from_slice(&[0xff, 0x25]);
        code[len + 9..len + 13].copy_from_slice(&slot.to_le_bytes());
        self.with(|text| text.islands[(place / PAGE_BYTES) as usize].write(within as usize, &code));
        Ok(())
    }

    /// Whether an offset in the text is behind the start of something that the site's shape replaces.
    pub(crate) fn is_inside(self, site: u64, shape: Shape, offset: u64) -> bool {
        let page = site / PAGE_BYTES * PAGE_BYTES;
        shape.replaced((site % PAGE_BYTES) as usize).iter().any(|(start, len)| {
            let start = page + *start as u64;
            start < offset && offset < start + *len as u64
        })
    }
}

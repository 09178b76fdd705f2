//! Address spaces: areas, the page tables that follow them, and faults that bring pages in.
//!
//! ```text
//! 0x1_0000          USER_BASE
//! program           fixed, or at a random place for position-independent programs
//! [heap]            grows up from behind the program (brk(2))
//! ...
//! mappings          from the mapping top downwards
//! [stack]           grows down from the stack top
//! 0x7f80_0000_0000  USER_END
//! ```
//! Borrow rules: no borrow of areas or tables is held while an object is asked for a page, or while a file's last
//! reference is dropped; both may come back to this module ([`unmap_object`]).

pub mod access;
mod advise;
mod area;
mod fault;
mod fork;
mod lock;
mod map;
mod protect;
mod remap;
mod report;
mod rewritten;
mod shared;
#[cfg(test)]
mod tests;

pub use crate::mm::pte::Prot;
pub use access::Respect;
pub use area::{Area, AreaFlags, Backing, Label, ObjectMapping};
pub use fault::{FaultAccess, FaultOutcome};
pub use map::{MapRequest, Placement};
pub use remap::Move;
pub use report::{AreaReport, Footprint, Resident};
pub use shared::{KernelPages, SharedMemory};

use super::addr::{Gpa, PAGE_BYTES, USER_BASE, USER_END};
use super::frame::NoMemory;
use super::paging::PageTable;
use super::pte::{Kind, Pte};
use super::tlb::Flush;
use crate::errno::{Errno, Result};
use crate::task::limits::Resource;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use area::Areas;
use core::cell::{Cell, RefCell};
use linux_raw_sys::general::CAP_IPC_LOCK;

/// Gap that stays free below an area that grows down (the kernel parameter stack_guard_gap).
pub(super) const STACK_GUARD_BYTES: u64 = 256 * PAGE_BYTES;

/// The most areas that a space may have (vm.max_map_count).
pub const MAX_AREAS: usize = 65_530;

/// Resource limits that concern memory (getrlimit(2)), in bytes.
#[derive(Clone, Copy, Debug)]
pub struct MemoryLimits {
    /// RLIMIT_AS.
    pub address_space: u64,
    /// RLIMIT_DATA.
    pub data: u64,
    /// RLIMIT_STACK.
    pub stack: u64,
    /// RLIMIT_MEMLOCK; infinite for who has CAP_IPC_LOCK.
    pub locked: u64,
}

impl MemoryLimits {
    /// What the first process has.
    pub const DEFAULT: Self = Self { address_space: u64::MAX, data: u64::MAX, stack: 8 << 20, locked: 8 << 20 };

    /// Those of the current process.
    #[must_use]
    pub fn current() -> Self {
        let Some(thread) = crate::task::try_current() else { return Self::DEFAULT };
        let limit = |resource| thread.process.limit(resource);
        let may_lock = thread.creds().has(CAP_IPC_LOCK);
        Self {
            address_space: limit(Resource::AddressSpace),
            data: limit(Resource::Data),
            stack: limit(Resource::Stack),
            locked: if may_lock { u64::MAX } else { limit(Resource::LockedMemory) },
        }
    }
}

/// Where the parts of an address space begin.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Behind the last byte of the stack.
    pub stack_top: u64,
    /// Mappings without a place of their own end below this.
    pub mmap_top: u64,
    /// Where the loader puts position-independent programs.
    pub program_base: u64,
    /// Pages between the program's end and its heap.
    pub heap_gap: u64,
}

impl Layout {
    /// Random places, with as much play as on Linux: mappings and programs 28 bits of pages, the stack 22, the heap 13.
    #[must_use]
    pub fn randomised(random: [u64; 2], stack_limit: u64) -> Self {
        const GIB: u64 = 1 << 30;
        let pages = |word: usize, shift: u32, bits: u32| (random[word] >> shift & ((1 << bits) - 1)) * PAGE_BYTES;
        let stack_top = USER_END - PAGE_BYTES - pages(0, 0, 22);
        // Linux's mmap_base: room for the stack, between 128 MiB and five sixths of the address space.
        let gap = stack_limit.clamp(128 << 20, USER_END / 6 * 5);
        let mmap_top = (stack_top - gap - STACK_GUARD_BYTES - pages(0, 22, 28)) & !(PAGE_BYTES - 1);
        // A fixed program sits low; position-independent ones start at two thirds, as on Linux.
        let program_base = ((USER_END / 3 * 2) & !(GIB - 1)) + pages(1, 0, 28);
        Self { stack_top, mmap_top, program_base, heap_gap: pages(1, 28, 13) }
    }
}

/// See the module's text.
pub struct AddressSpace {
    id: u64,
    areas: RefCell<Areas>,
    table: RefCell<PageTable>,
    layout: Layout,
    /// Start of the heap and the current break.
    heap: Cell<(u64, u64)>,
    /// Pages that are mapped, by [`Kind`].
    resident: [Cell<u64>; 3],
    peak_resident: Cell<u64>,
    /// mlockall(MCL_FUTURE): flags of areas to come.
    lock_future: Cell<AreaFlags>,
    faults: Cell<u64>,
    /// Text with islands.
    texts: RefCell<Vec<rewritten::Mapped>>,
}

crate::global! {
    static SPACES: RefCell<Vec<Weak<AddressSpace>>> = RefCell::new(Vec::new());
}
crate::global! {
    static NEXT_ID: Cell<u64> = Cell::new(1);
}
/// All spaces that are alive.
fn all() -> Vec<Rc<AddressSpace>> {
    SPACES.with(|spaces| spaces.borrow().iter().filter_map(Weak::upgrade).collect())
}

/// Takes pages `[first, last)` of an object (see [`super::pages::PageSource::id`]) out of all shared mappings, and out of
/// private ones where they were not copied: because they no longer exist (truncate(2)) or were replaced. The next access
/// asks the object again. With `copies`, private copies go as well, as truncate(2) demands.
pub fn unmap_object(id: usize, first: u64, last: u64, copies: bool) {
    for space in all() {
        space.unmap_object(id, first, last, copies);
    }
}

/// Whether anybody maps the object shared and writable (F_SEAL_WRITE gives EBUSY then).
#[must_use]
pub fn is_mapped_writable(id: usize) -> bool {
    all().iter().any(|space| {
        space.areas.borrow().iter().any(|area| {
            area.is_shared()
                && area.prot.contains(Prot::WRITE)
                && matches!(&area.backing, Backing::Object(object) if object.source.id() == id)
        })
    })
}

const fn page_round_up(value: u64) -> Option<u64> {
    match value.checked_add(PAGE_BYTES - 1) {
        Some(sum) => Some(sum & !(PAGE_BYTES - 1)),
        None => None,
    }
}

/// Checks that `[start, start + bytes)` is page-aligned and in the program's part; gives its end. A length of 0 is fine.
fn checked_range(start: u64, bytes: u64, outside: Errno) -> Result<u64> {
    if !start.is_multiple_of(PAGE_BYTES) {
        return Err(Errno::EINVAL);
    }
    let bytes = page_round_up(bytes).ok_or(outside)?;
    start.checked_add(bytes).filter(|end| *end <= USER_END).ok_or(outside)
}

impl AddressSpace {
    /// An empty space.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new(layout: Layout) -> core::result::Result<Rc<Self>, NoMemory> {
        let table = PageTable::new()?;
        let id = NEXT_ID.with(|next| next.replace(next.get() + 1));
        let space = Rc::new(Self {
            id,
            areas: RefCell::default(),
            table: RefCell::new(table),
            layout,
            heap: Cell::new((0, 0)),
            resident: [const { Cell::new(0) }; 3],
            peak_resident: Cell::new(0),
            lock_future: Cell::new(AreaFlags::empty()),
            faults: Cell::new(0),
            texts: RefCell::default(),
        });
        SPACES.with(|spaces| {
            let mut spaces = spaces.borrow_mut();
            spaces.retain(|space| space.strong_count() > 0);
            spaces.push(Rc::downgrade(&space));
        });
        Ok(space)
    }

    /// A number that no other space ever has (for futexes that are private to a process).
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// For CR3.
    #[must_use]
    pub fn root(&self) -> Gpa {
        self.table.borrow().root()
    }

    /// Where the parts begin.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// Puts the heap's start; the loader does so behind the program's last page.
    pub fn set_heap(&self, start: u64) {
        self.heap.set((start, start));
    }

    /// Removes everything: the last process of the space ends. The space stays active, if it was, but empty.
    pub fn clear(&self) {
        let removed = self.areas.borrow_mut().clear();
        self.table.borrow_mut().clear();
        self.texts.borrow_mut().clear();
        for resident in &self.resident {
            resident.set(0);
        }
        drop(removed);
    }

    fn count_pages(&self, pte: Pte, pages: u64) {
        let counter = &self.resident[pte.kind() as usize];
        counter.set(counter.get() + pages);
        let total = self.resident.iter().map(Cell::get).sum();
        if total > self.peak_resident.get() {
            self.peak_resident.set(total);
        }
    }

    fn uncount_pages(&self, pte: Pte) {
        let counter = &self.resident[pte.kind() as usize];
        counter.set(counter.get() - pte.pages());
    }

    /// Takes out all pages in `[start, end)`; with `free`, tables that are then unused as well.
    ///
    /// # Errors
    /// [`NoMemory`] if a large page at an edge can't be split for want of a table.
    fn zap(&self, start: u64, end: u64, free: bool, flush: &mut Flush) -> core::result::Result<(), NoMemory> {
        let mut table = self.table.borrow_mut();
        table.split_at(start, flush)?;
        table.split_at(end, flush)?;
        table.edit(start, end, free, flush, |_, pte| {
            self.uncount_pages(pte);
            pte.release();
            Pte::EMPTY
        });
        Ok(())
    }

    /// Splits large pages across the edges of `[start, end)`: a large page never lies in two areas.
    ///
    /// # Errors
    /// [`NoMemory`] for want of a table.
    fn split_pages(&self, start: u64, end: u64) -> core::result::Result<(), NoMemory> {
        let mut flush = Flush::default();
        let mut table = self.table.borrow_mut();
        let split = table.split_at(start, &mut flush).and_then(|()| table.split_at(end, &mut flush));
        flush.finish(table.root());
        split
    }

    fn finish(&self, flush: Flush) {
        flush.finish(self.root());
    }

    fn unmap_object(&self, id: usize, first: u64, last: u64, copies: bool) {
        let mut ranges = Vec::new();
        for area in self.areas.borrow().iter() {
            let Backing::Object(object) = &area.backing else { continue };
            if object.source.id() != id {
                continue;
            }
            let pages = area.len() / PAGE_BYTES;
            let from = first.saturating_sub(object.first_page).min(pages);
            let to = last.saturating_sub(object.first_page).min(pages);
            if from < to {
                ranges.push((area.start + from * PAGE_BYTES, area.start + to * PAGE_BYTES));
            }
        }
        let mut flush = Flush::default();
        for (start, end) in ranges {
            // Objects are never mapped by large pages, so nothing needs to be split.
            self.table.borrow_mut().edit(start, end, false, &mut flush, |_, pte| {
                if pte.kind() == Kind::Anonymous && !copies {
                    return pte;
                }
                self.uncount_pages(pte);
                pte.release();
                Pte::EMPTY
            });
        }
        self.finish(flush);
    }

    /// What the pages of an address come from, if it is mapped.
    #[must_use]
    pub fn backing_of(&self, address: u64) -> Option<Backing> {
        self.areas.borrow().find(address).map(|area| area.backing.clone())
    }

    /// Where the first page lies of the file that is mapped at an address, if that page is mapped too.
    #[must_use]
    pub fn start_of_file(&self, address: u64) -> Option<u64> {
        let areas = self.areas.borrow();
        let file = areas.find(address)?.file()?;
        // Texts with rewritten system calls have pages of their own, so the name is what tells.
        let first = |area: &&Area| {
            area.file().is_some_and(|other| Rc::ptr_eq(other, file))
                && area.object_page(area.start).is_some_and(|(_, page)| page == 0)
        };
        areas.iter().take_while(|area| area.start <= address).filter(first).last().map(|area| area.start)
    }

    /// Where an address is for everybody: what shared futexes and the like are known by.
    #[must_use]
    pub fn identity(&self, address: u64) -> Option<Identity> {
        let areas = self.areas.borrow();
        let area = areas.find(address)?;
        Some(match area.object_page(address) {
            Some((object, page)) if area.is_shared() => {
                Identity::Object { id: object.source.id(), offset: page * PAGE_BYTES + address % PAGE_BYTES }
            }
            _ => Identity::Private { space: self.id, address },
        })
    }
}

/// See [`AddressSpace::identity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Memory of one space.
    Private {
        /// [`AddressSpace::id`].
        space: u64,
        /// In that space.
        address: u64,
    },
    /// Memory of an object that is mapped shared.
    Object {
        /// [`super::pages::PageSource::id`].
        id: usize,
        /// In bytes.
        offset: u64,
    },
}

const _: () = assert!(USER_BASE.is_multiple_of(PAGE_BYTES) && USER_END.is_multiple_of(PAGE_BYTES));

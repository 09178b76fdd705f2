//! Page tables: four levels in one range of guest-physical memory, which is all that the processor ever walks (the boot
//! tables aside). How many fit is fixed at boot; when they run out, mapping gives ENOMEM.
//!
//! Entries have the U bit (the kernel runs at CPL 3 too) and accessed and dirty bits set in advance, so that neither
//! processor nor hypervisor ever writes a table. An entry that is not present but not zero keeps a frame that the program
//! may not touch at the moment (PROT_NONE).

use super::addr::{Gpa, PAGE_BYTES};
use super::frame::{self, NoMemory, Pfn};
use super::phys;
use super::pte::{ADDRESS, Kind, LARGE, PRESENT, Prot, Pte, USER, WRITABLE};
use super::tlb::{Flush, populate};
use core::cell::Cell;
use core::ptr::{read_volatile, write_volatile};
use torpor_abi::layout::{KERNEL_PML4_INDEX, LARGE_PAGE_BYTES, USER_END};

/// In entries that lead to tables.
const TABLE: u64 = PRESENT | WRITABLE | USER | 0x20;

const ENTRIES: u64 = 512;

/// Tables that the host is asked to back at a time.
const BACKED_TABLES: u64 = 16;

struct Tables {
    base: Cell<u64>,
    bytes: Cell<u64>,
    /// Guest-physical address of a u16 per table: 0 is free, else entries in use + 1.
    counts: Cell<u64>,
    /// No table below this index is free.
    lowest_free: Cell<u64>,
    /// The host has backed those below this index.
    backed: Cell<u64>,
    boot_pml4: Cell<u64>,
}

crate::global! {
    static TABLES: Tables = Tables {
        base: Cell::new(0),
        bytes: Cell::new(0),
        counts: Cell::new(0),
        lowest_free: Cell::new(0),
        backed: Cell::new(0),
        boot_pml4: Cell::new(0),
    };
}

/// Bytes that [`init`] needs for its counts.
pub(super) const fn metadata_bytes(tables_bytes: u64) -> u64 {
    tables_bytes / PAGE_BYTES * 2
}

/// Takes over `[base, base + bytes)` for tables.
pub(super) fn init(counts: Gpa, base: Gpa, bytes: u64, boot_pml4: Gpa) {
    TABLES.with(|tables| {
        tables.base.set(base.0);
        tables.bytes.set(bytes);
        tables.counts.set(counts.0);
        tables.lowest_free.set(0);
        tables.backed.set(0);
        tables.boot_pml4.set(boot_pml4.0);
    });
}

/// Start and length in bytes of the range in which all page tables are.
#[must_use]
pub fn range() -> (Gpa, u64) {
    TABLES.with(|tables| (Gpa(tables.base.get()), tables.bytes.get()))
}

/// Tables in use.
#[must_use]
pub fn tables_in_use() -> u64 {
    TABLES.with(|tables| (0..tables.bytes.get() / PAGE_BYTES).filter(|i| tables.count(*i) != 0).count() as u64)
}

impl Tables {
    fn count_pointer(&self, index: u64) -> *mut u16 {
        phys::pointer(Gpa(self.counts.get() + index * 2)).cast()
    }

    fn count(&self, index: u64) -> u16 {
        // SAFETY: callers' indices are below the number of tables; the counts are ours alone.
        unsafe { *self.count_pointer(index) }
    }

    fn set_count(&self, index: u64, count: u16) {
        // SAFETY: as for `count`.
        unsafe { *self.count_pointer(index) = count };
    }

    /// Index of a table in the range; `None` for a boot table.
    fn index(&self, table: Gpa) -> Option<u64> {
        table.0.checked_sub(self.base.get()).filter(|offset| *offset < self.bytes.get()).map(|o| o / PAGE_BYTES)
    }

    fn allocate(&self) -> Result<Gpa, NoMemory> {
        let total = self.bytes.get() / PAGE_BYTES;
        let index = (self.lowest_free.get()..total).find(|i| self.count(*i) == 0).ok_or(NoMemory)?;
        frame::charge_table()?;
        if index >= self.backed.get() {
            // One exit costs what three first touches do.
            let more = BACKED_TABLES.min(total - index);
            populate(Gpa(self.base.get() + index * PAGE_BYTES), more * PAGE_BYTES);
            self.backed.set(index + more);
        }
        self.lowest_free.set(index + 1);
        self.set_count(index, 1);
        Ok(Gpa(self.base.get() + index * PAGE_BYTES))
    }

    /// The table holds only zeros.
    fn free(&self, table: Gpa) {
        let index = self.index(table).expect("a table of ours");
        debug_assert_eq!(self.count(index), 1, "the table is in use");
        self.set_count(index, 0);
        self.lowest_free.set(self.lowest_free.get().min(index));
        frame::uncharge_table();
    }
}

fn allocate_table() -> Result<Gpa, NoMemory> {
    frame::ensure_ready();
    TABLES.with(Tables::allocate)
}

fn entry_pointer(table: Gpa, index: u64) -> *mut u64 {
    debug_assert!(index < ENTRIES);
    phys::pointer(Gpa(table.0 + index * 8)).cast()
}

fn get(table: Gpa, index: u64) -> u64 {
    // SAFETY: `table` is a page table (its address comes from another one or a root), `index` is below 512.
    unsafe { read_volatile(entry_pointer(table, index)) }
}

/// Writes an entry and keeps the table's count.
fn set(table: Gpa, index: u64, value: u64) {
    let old = get(table, index);
    if old == value {
        return;
    }
    // SAFETY: as for `get`; volatile, so that the write is made before the program or the kernel uses the address.
    unsafe { write_volatile(entry_pointer(table, index), value) };
    if (old == 0) != (value == 0) {
        TABLES.with(|tables| {
            if let Some(i) = tables.index(table) {
                tables.set_count(i, if old == 0 { tables.count(i) + 1 } else { tables.count(i) - 1 });
            }
        });
    }
}

fn is_unused(table: Gpa) -> bool {
    TABLES.with(|tables| tables.index(table).is_some_and(|i| tables.count(i) == 1))
}

const fn index_at(address: u64, shift: u32) -> u64 {
    address >> shift & (ENTRIES - 1)
}

const PML4_SHIFT: u32 = 39;
const PDPT_SHIFT: u32 = 30;
const PD_SHIFT: u32 = 21;

/// What a page directory's entry covers: 2 MiB of address space, mapped by one large page or by a table of small ones.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    /// First address.
    pub(crate) base: u64,
    directory: Gpa,
    index: u64,
    entry: u64,
}

impl Region {
    /// The large page, where there is one.
    pub(crate) const fn large(&self) -> Option<Pte> {
        if self.entry & LARGE != 0 { Some(Pte(self.entry)) } else { None }
    }

    /// The table, where there is no large page.
    pub(crate) const fn table(&self) -> Gpa {
        Gpa(self.entry & ADDRESS)
    }
}

/// The page tables of one address space. Owns the tables, and the references that entries hold once it is [cleared].
///
/// [cleared]: PageTable::clear
pub(crate) struct PageTable {
    root: Gpa,
}

impl PageTable {
    /// Empty but for the kernel's part.
    pub(crate) fn new() -> Result<Self, NoMemory> {
        let root = allocate_table()?;
        let kernel = TABLES.with(|tables| get(Gpa(tables.boot_pml4.get()), KERNEL_PML4_INDEX as u64));
        set(root, KERNEL_PML4_INDEX as u64, kernel);
        Ok(Self { root })
    }

    /// For CR3.
    pub(crate) const fn root(&self) -> Gpa {
        self.root
    }

    /// The entry that maps an address and whether it is a large one; `None` if nothing is mapped there.
    pub(crate) fn lookup(&self, address: u64) -> Option<Pte> {
        let region = self.region(address)?;
        let pte = region.large().unwrap_or_else(|| Pte(get(region.table(), index_at(address, 12))));
        (!pte.is_empty()).then_some(pte)
    }

    /// The region of an address, if there is a table or a large page for it.
    pub(crate) fn region(&self, address: u64) -> Option<Region> {
        let directory = self.directory(address)?;
        let index = index_at(address, PD_SHIFT);
        let entry = get(directory, index);
        (entry != 0).then_some(Region { base: address & !(LARGE_PAGE_BYTES - 1), directory, index, entry })
    }

    fn directory(&self, address: u64) -> Option<Gpa> {
        let mut table = self.root;
        for shift in [PML4_SHIFT, PDPT_SHIFT] {
            let entry = get(table, index_at(address, shift));
            if entry == 0 {
                return None;
            }
            table = Gpa(entry & ADDRESS);
        }
        Some(table)
    }

    /// The first region in `[from, end)` that has a table or a large page.
    pub(crate) fn next_region(&self, from: u64, end: u64) -> Option<Region> {
        let mut at = from & !(LARGE_PAGE_BYTES - 1);
        while at < end {
            let upper = get(self.root, index_at(at, PML4_SHIFT));
            if upper == 0 {
                at = ((at >> PML4_SHIFT) + 1) << PML4_SHIFT;
                continue;
            }
            let directory = get(Gpa(upper & ADDRESS), index_at(at, PDPT_SHIFT));
            if directory == 0 {
                at = ((at >> PDPT_SHIFT) + 1) << PDPT_SHIFT;
                continue;
            }
            let index = index_at(at, PD_SHIFT);
            let entry = get(Gpa(directory & ADDRESS), index);
            if entry != 0 {
                return Some(Region { base: at, directory: Gpa(directory & ADDRESS), index, entry });
            }
            at += LARGE_PAGE_BYTES;
        }
        None
    }

    fn make_directory(&self, address: u64) -> Result<Gpa, NoMemory> {
        let mut table = self.root;
        for shift in [PML4_SHIFT, PDPT_SHIFT] {
            let index = index_at(address, shift);
            let mut entry = get(table, index);
            if entry == 0 {
                let Ok(new) = allocate_table() else {
                    self.prune(address, &mut Flush::default());
                    return Err(NoMemory);
                };
                entry = new.0 | TABLE;
                set(table, index, entry);
            }
            table = Gpa(entry & ADDRESS);
        }
        Ok(table)
    }

    /// The table of small pages for an address, made if need be. There must be no large page.
    fn make_table(&self, address: u64) -> Result<Gpa, NoMemory> {
        let directory = self.make_directory(address)?;
        let index = index_at(address, PD_SHIFT);
        let entry = get(directory, index);
        assert!(entry & LARGE == 0, "a large page is in the way");
        if entry != 0 {
            return Ok(Gpa(entry & ADDRESS));
        }
        let Ok(new) = allocate_table() else {
            self.prune(address, &mut Flush::default());
            return Err(NoMemory);
        };
        set(directory, index, new.0 | TABLE);
        Ok(new)
    }

    /// Frees the tables above an address that have become empty.
    fn prune(&self, address: u64, flush: &mut Flush) {
        let mut path = [(self.root, 0); 3];
        let mut depth = 0;
        let mut table = self.root;
        for shift in [PML4_SHIFT, PDPT_SHIFT, PD_SHIFT] {
            let index = index_at(address, shift);
            let entry = get(table, index);
            if entry == 0 || entry & LARGE != 0 {
                break;
            }
            path[depth] = (table, index);
            depth += 1;
            table = Gpa(entry & ADDRESS);
        }
        for (parent, index) in path[..depth].iter().rev() {
            if !is_unused(table) {
                return;
            }
            set(*parent, *index, 0);
            TABLES.with(|tables| tables.free(table));
            flush.all();
            table = *parent;
        }
    }

    /// Makes sure that there is a table for the small pages of an address.
    pub(crate) fn reserve(&mut self, address: u64) -> Result<(), NoMemory> {
        self.make_table(address).map(|_| ())
    }

    /// Sets the entry of a small page; its table is made if need be. The caller deals with what was there before.
    pub(crate) fn set_small(&mut self, address: u64, pte: Pte) -> Result<(), NoMemory> {
        let table = self.make_table(address)?;
        set(table, index_at(address, 12), pte.0);
        Ok(())
    }

    /// Maps `[start, end)`, within one region and with no large page, wherever nothing is mapped: `make` gives entries
    /// by address, or `None` to leave a page out. Gives the number of pages mapped.
    pub(crate) fn fill(
        &mut self,
        start: u64,
        end: u64,
        mut make: impl FnMut(u64) -> Option<Pte>,
    ) -> Result<u64, NoMemory> {
        let table = self.make_table(start)?;
        let mut mapped = 0;
        for address in (start..end).step_by(PAGE_BYTES as usize) {
            let index = index_at(address, 12);
            if get(table, index) == 0
                && let Some(pte) = make(address)
            {
                set(table, index, pte.0);
                mapped += 1;
            }
        }
        Ok(mapped)
    }

    /// Maps a large page over an empty region (an unused table there is freed).
    pub(crate) fn set_large(&mut self, address: u64, pte: Pte, flush: &mut Flush) -> Result<(), NoMemory> {
        let directory = self.make_directory(address)?;
        let index = index_at(address, PD_SHIFT);
        let old = get(directory, index);
        set(directory, index, pte.0);
        if old != 0 {
            // The processor may remember the way through the unused table.
            flush.all();
            TABLES.with(|tables| tables.free(Gpa(old & ADDRESS)));
        }
        Ok(())
    }

    /// Whether nothing is mapped in the region of an address (there may be an unused table).
    pub(crate) fn region_is_empty(&self, address: u64) -> bool {
        self.region(address).is_none_or(|r| r.large().is_none() && is_unused(r.table()))
    }

    /// If a large page lies across `address`, replaces it by small ones, so that the two sides can be changed apart.
    pub(crate) fn split_at(&mut self, address: u64, flush: &mut Flush) -> Result<(), NoMemory> {
        if address.is_multiple_of(LARGE_PAGE_BYTES) || address >= USER_END {
            return Ok(());
        }
        self.split(address, flush)
    }

    /// Replaces the large page at an address, if there is one, by small ones.
    pub(crate) fn split(&mut self, address: u64, flush: &mut Flush) -> Result<(), NoMemory> {
        let Some(region) = self.region(address) else { return Ok(()) };
        let Some(pte) = region.large() else { return Ok(()) };
        let table = allocate_table()?;
        for index in 0..ENTRIES {
            set(table, index, pte.piece(index).0);
        }
        set(region.directory, region.index, table.0 | TABLE);
        if pte.is_present() {
            flush.all();
        }
        Ok(())
    }

    /// Runs over all entries in `[start, end)`, which no large page straddles (see [`PageTable::split_at`]), and puts in
    /// their place what `change` gives. With `free`, tables that are then unused are freed. References are `change`'s affair.
    pub(crate) fn edit(
        &mut self,
        start: u64,
        end: u64,
        free: bool,
        flush: &mut Flush,
        mut change: impl FnMut(u64, Pte) -> Pte,
    ) {
        let mut at = start;
        while let Some(region) = self.next_region(at, end) {
            let region_end = region.base + LARGE_PAGE_BYTES;
            if let Some(old) = region.large() {
                debug_assert!(region.base >= start && region_end <= end, "a large page lies across the edge");
                let new = change(region.base, old);
                set(region.directory, region.index, new.0);
                if new != old && old.is_present() {
                    flush.all();
                }
            } else {
                let table = region.table();
                let (first, last) = (region.base.max(start), region_end.min(end));
                for address in (first..last).step_by(PAGE_BYTES as usize) {
                    let old = Pte(get(table, index_at(address, 12)));
                    if old.is_empty() {
                        continue;
                    }
                    let new = change(address, old);
                    set(table, index_at(address, 12), new.0);
                    if new != old && old.is_present() {
                        flush.page(address);
                    }
                }
            }
            if free {
                self.prune(region.base, flush);
            }
            at = region_end;
        }
    }

    /// Calls `visit` for all entries in `[start, end)`; a large page that lies across an edge is visited as it is.
    pub(crate) fn visit(&self, start: u64, end: u64, mut visit: impl FnMut(u64, Pte)) {
        let mut at = start;
        while let Some(region) = self.next_region(at, end) {
            let region_end = region.base + LARGE_PAGE_BYTES;
            if let Some(pte) = region.large() {
                visit(region.base, pte);
            } else {
                let table = region.table();
                for address in (region.base.max(start)..region_end.min(end)).step_by(PAGE_BYTES as usize) {
                    let pte = Pte(get(table, index_at(address, 12)));
                    if !pte.is_empty() {
                        visit(address, pte);
                    }
                }
            }
            at = region_end;
        }
    }

    /// Takes out every entry of the program's part and gives up its reference.
    pub(crate) fn clear(&mut self) {
        let mut flush = Flush::default();
        self.edit(0, USER_END, true, &mut flush, |_, pte| {
            pte.release();
            Pte::EMPTY
        });
        flush.finish(self.root);
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        self.clear();
        set(self.root, KERNEL_PML4_INDEX as u64, 0);
        TABLES.with(|tables| tables.free(self.root));
    }
}

/// Root of the boot tables: for a processor that runs no program.
pub(super) fn boot_root() -> Gpa {
    TABLES.with(|tables| Gpa(tables.boot_pml4.get()))
}

/// Maps a frame into the kernel's part, which all address spaces share. Nothing may be mapped there.
pub(super) fn map_kernel(address: u64, pfn: Pfn) -> Result<(), NoMemory> {
    let kernel = core::mem::ManuallyDrop::new(PageTable { root: boot_root() });
    let table = kernel.make_table(address)?;
    let pte = Pte::new(frame::gpa(pfn), Kind::Foreign, Prot::READ | Prot::WRITE, true);
    set(table, index_at(address, 12), pte.0);
    Ok(())
}

/// Takes a page out of the kernel's part. Tables stay. The caller flushes.
pub(super) fn unmap_kernel(address: u64) -> Option<Pfn> {
    let kernel = core::mem::ManuallyDrop::new(PageTable { root: boot_root() });
    let region = kernel.region(address)?;
    let pte = Pte(get(region.table(), index_at(address, 12)));
    set(region.table(), index_at(address, 12), 0);
    (!pte.is_empty()).then(|| pte.pfn())
}

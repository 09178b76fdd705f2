//! Boot page tables: the kernel's part of every address space (see [`torpor_abi::layout`]), in entries of 2 MiB.
//!
//! Every entry is open to CPL 3, where the kernel runs, and has its accessed and dirty bits set, so that the processor
//! never writes the tables. The kernel adds to them afterwards; this process never does again.

use super::memory::{Gpa, GuestMemory, OutOfRange};
use std::collections::{BTreeMap, BTreeSet};
use torpor_abi::layout::{
    BOOT_TABLES_BYTES, BOOT_TABLES_GPA, DIRECT_MAP_BASE, DOORBELL_GPA, IMAGE_GPA, KERNEL_BASE, KERNEL_GPA,
    LARGE_PAGE_BYTES, PAGE_BYTES, USER_END,
};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// The bits of an entry that hold an address.
pub(super) const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;

/// Where the tables are.
#[derive(Debug)]
pub(super) struct Tables {
    /// For CR3.
    pub pml4: Gpa,
    /// First byte behind the kernel image and the tables that found no room in the fixed area, a whole page.
    pub kernel_end: Gpa,
}

struct Builder<'a> {
    memory: &'a GuestMemory,
    pml4: Gpa,
    next: u64,
    overflow: u64,
}

impl Builder<'_> {
    /// A new, empty table: in the fixed area first, then behind the kernel image.
    fn table(&mut self) -> Gpa {
        if self.next < BOOT_TABLES_GPA + BOOT_TABLES_BYTES {
            self.next += PAGE_BYTES;
            Gpa(self.next - PAGE_BYTES)
        } else {
            self.overflow += PAGE_BYTES;
            Gpa(self.overflow - PAGE_BYTES)
        }
    }

    /// The table that an entry points to, made where there is none.
    fn descend(&mut self, table: Gpa, index: u64) -> Result<Gpa, OutOfRange> {
        let entry = Gpa(table.0 + index * 8);
        let value = self.memory.read_u64(entry)?;
        if value & PRESENT != 0 {
            return Ok(Gpa(value & ADDRESS_MASK));
        }
        let lower = self.table();
        self.memory.write_u64(entry, lower.0 | PRESENT | WRITABLE | USER | ACCESSED)?;
        Ok(lower)
    }

    /// Maps `[gpa, gpa + len)` at `va`, whole large pages around it.
    fn map(&mut self, va: u64, gpa: u64, len: u64, flags: u64) -> Result<(), OutOfRange> {
        let flags = flags | PRESENT | USER | ACCESSED | DIRTY | LARGE;
        let mut offset = 0;
        while offset < len {
            let at = va + offset;
            let pdpt = self.descend(self.pml4, at >> 39 & 511)?;
            let directory = self.descend(pdpt, at >> 30 & 511)?;
            self.memory.write_u64(Gpa(directory.0 + (at >> 21 & 511) * 8), (gpa + offset) | flags)?;
            offset += LARGE_PAGE_BYTES;
        }
        Ok(())
    }
}

/// Writes the tables. `kernel_end` is the end of the loaded kernel image, `image_bytes` the size of the mapped image.
///
/// # Errors
/// [`OutOfRange`] where RAM is too small for them.
pub(super) fn write(memory: &GuestMemory, kernel_end: Gpa, image_bytes: u64) -> Result<Tables, OutOfRange> {
    let pml4 = Gpa(BOOT_TABLES_GPA);
    let mut builder = Builder { memory, pml4, next: BOOT_TABLES_GPA + PAGE_BYTES, overflow: kernel_end.0 };
    builder.map(KERNEL_BASE, KERNEL_GPA, kernel_end.0 - KERNEL_GPA, WRITABLE)?;
    builder.map(DIRECT_MAP_BASE, 0, memory.len_bytes(), WRITABLE | NO_EXECUTE)?;
    builder.map(DIRECT_MAP_BASE + DOORBELL_GPA, DOORBELL_GPA, PAGE_BYTES, WRITABLE | NO_EXECUTE)?;
    builder.map(DIRECT_MAP_BASE + IMAGE_GPA, IMAGE_GPA, image_bytes, NO_EXECUTE)?;
    Ok(Tables { pml4, kernel_end: Gpa(builder.overflow) })
}

/// Where a guest-virtual address leads by the guest's own tables, which may say anything.
#[must_use]
pub(super) fn translate(memory: &GuestMemory, cr3: u64, va: u64) -> Option<Gpa> {
    let mut table = cr3 & ADDRESS_MASK;
    for shift in [39, 30, 21, 12] {
        let entry = memory.read_u64(Gpa(table + (va >> shift & 511) * 8)).ok()?;
        if entry & PRESENT == 0 {
            return None;
        }
        let low = (1 << shift) - 1;
        if shift == 12 || (shift < 39 && entry & LARGE != 0) {
            return Some(Gpa((entry & ADDRESS_MASK & !low) | (va & low)));
        }
        table = entry & ADDRESS_MASK;
    }
    None
}

/// Where a page is mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapped {
    pub(super) address: u64,
    pub(super) writable: bool,
}

/// Where programs have pages mapped, of `wanted` ones, by the guest's own tables, which may say anything: no more than `most`
/// tables are looked at.
pub(super) fn mapped(memory: &GuestMemory, cr3: u64, wanted: &BTreeSet<u32>, most: u64) -> BTreeMap<u32, Mapped> {
    let mut walk = Walk { memory, wanted, left: most, found: BTreeMap::new() };
    walk.table(cr3 & ADDRESS_MASK, 39, 0, true);
    walk.found
}

struct Walk<'a> {
    memory: &'a GuestMemory,
    wanted: &'a BTreeSet<u32>,
    left: u64,
    found: BTreeMap<u32, Mapped>,
}

impl Walk<'_> {
    /// A table whose entries map `1 << shift` bytes each, from `base` on.
    fn table(&mut self, table: u64, shift: u32, base: u64, writable: bool) {
        let mut entries = [0; PAGE_BYTES as usize];
        if self.left == 0 || self.memory.read(Gpa(table), &mut entries).is_err() {
            return;
        }
        self.left -= 1;
        for (index, entry) in (0..).zip(entries.as_chunks::<8>().0) {
            let (entry, address) = (u64::from_le_bytes(*entry), base | index << shift);
            if entry & PRESENT == 0 || entry & USER == 0 || address >= USER_END {
                continue;
            }
            let writable = writable && entry & WRITABLE != 0;
            if shift > 12 && entry & LARGE == 0 {
                self.table(entry & ADDRESS_MASK, shift - 9, address, writable);
            } else if shift <= 21 {
                let first = (entry & ADDRESS_MASK & !((1 << shift) - 1)) / PAGE_BYTES;
                let Ok(first) = u32::try_from(first) else { continue };
                for page in self.wanted.range(first..first.saturating_add(1 << (shift - 12))) {
                    let address = address + u64::from(page - first) * PAGE_BYTES;
                    self.found.entry(*page).or_insert(Mapped { address, writable });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tables(ram: u64, image: u64) -> (GuestMemory, Tables) {
        let memory = GuestMemory::new(ram).expect("memory");
        let tables = write(&memory, Gpa(KERNEL_GPA + 0x12_3000), image).expect("room");
        (memory, tables)
    }

    #[test]
    fn the_map_is_the_layouts() {
        let (memory, tables) = tables(64 << 20, 5 << 20);
        let at = |va| translate(&memory, tables.pml4.0, va).map(|gpa| gpa.0);
        assert_eq!(at(KERNEL_BASE + 0x1234), Some(KERNEL_GPA + 0x1234));
        assert_eq!(at(DIRECT_MAP_BASE + 0x1234), Some(0x1234));
        assert_eq!(at(DIRECT_MAP_BASE + (64 << 20) - 1), Some((64 << 20) - 1));
        assert_eq!(at(DIRECT_MAP_BASE + (64 << 20)), None);
        assert_eq!(at(DIRECT_MAP_BASE + DOORBELL_GPA + 0x20), Some(DOORBELL_GPA + 0x20));
        assert_eq!(at(DIRECT_MAP_BASE + IMAGE_GPA + (5 << 20)), Some(IMAGE_GPA + (5 << 20)));
        assert_eq!(at(DIRECT_MAP_BASE + IMAGE_GPA + (6 << 20)), None);
        assert_eq!(at(0x1000), None);
        assert_eq!(tables.kernel_end, Gpa(KERNEL_GPA + 0x12_3000));
    }

    #[test]
    fn what_programs_have_mapped_is_found() {
        let (memory, tables) = tables(64 << 20, 5 << 20);
        let mapped = |wanted: &[u32], most| mapped(&memory, tables.pml4.0, &wanted.iter().copied().collect(), most);
        let all: Vec<u32> = (0..0x4000).collect();
        assert!(mapped(&all, 1000).is_empty(), "the kernel's alone");
        // One writable page, one that an upper table makes read-only, and a large one.
        let entry =
            |table: u64, index: u64, value: u64| memory.write_u64(Gpa(table + index * 8), value).expect("in range");
        let (upper, directory, low) = (0x200_0000, 0x200_1000, 0x200_2000);
        entry(tables.pml4.0, 1, upper | PRESENT | USER | WRITABLE);
        entry(upper, 0, directory | PRESENT | USER | WRITABLE);
        entry(directory, 0, low | PRESENT | USER | WRITABLE);
        entry(directory, 1, low | PRESENT | USER);
        entry(directory, 2, 0x40_0000 | PRESENT | USER | LARGE | NO_EXECUTE);
        entry(low, 3, 0x300_0000 | PRESENT | USER | WRITABLE);
        let found = mapped(&all, 1000);
        assert_eq!(found.len(), 1 + 512);
        assert_eq!(mapped(&[0x401, 0x3001], 1000).len(), 1);
        assert!(matches!(found[&0x3000], Mapped { address: 0x80_0000_3000, writable: true }));
        assert!(matches!(found[&0x401], Mapped { address: 0x80_0040_1000, writable: false }));
        assert!(mapped(&all, 3).len() < 513, "no more tables than that");
    }

    #[test]
    fn large_vms_find_room_behind_the_kernel() {
        let (memory, tables) = tables(torpor_abi::layout::ram_bytes(torpor_abi::layout::MAX_MEMORY_BYTES), 3 << 30);
        assert!(tables.kernel_end > Gpa(KERNEL_GPA + 0x12_3000));
        let last = memory.len_bytes() - 1;
        assert_eq!(translate(&memory, tables.pml4.0, DIRECT_MAP_BASE + last), Some(Gpa(last)));
        let (_, small) = self::tables(1 << 30, 1 << 30);
        assert_eq!(small.kernel_end, Gpa(KERNEL_GPA + 0x12_3000));
    }

    proptest! {
        /// Tables that a guest wrote never lead the walk out of memory or into a loop.
        #[test]
        fn hostile_tables_end(cr3: u64, va: u64, entries in proptest::collection::vec((0_u64..4096, any::<u64>()), 0..64)) {
            let memory = GuestMemory::new(2 << 20).expect("memory");
            for (at, value) in entries {
                memory.write_u64(Gpa(at * 8), value & 0x1f_ffff | 1).expect("in range");
            }
            let _ = translate(&memory, cr3, va);
            let _ = translate(&memory, cr3 & 0x7000, va);
            let wanted = (0..0x1000).collect();
            for (page, Mapped { address, .. }) in mapped(&memory, cr3 & 0x7000, &wanted, 1000) {
                assert!(address < USER_END, "page {page:#x} at {address:#x}");
            }
        }
    }
}

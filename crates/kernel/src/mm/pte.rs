//! Page-table entries that map memory.

use super::addr::{Gpa, PAGE_BYTES};
use super::frame::{self, BLOCK_FRAMES, Pfn};
use bitflags::bitflags;

pub(super) const PRESENT: u64 = 1;
pub(super) const WRITABLE: u64 = 1 << 1;
pub(super) const USER: u64 = 1 << 2;
const ACCESSED_DIRTY: u64 = 0x60;
pub(super) const LARGE: u64 = 1 << 7;
/// Software bit: the entry holds a reference to its frame.
const OWNED: u64 = 1 << 9;
/// Software bit: the frame is the program's own (anonymous memory or a private copy), not a page of an object.
const ANONYMOUS: u64 = 1 << 10;
const NO_EXECUTE: u64 = 1 << 63;
pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

bitflags! {
    /// What a program may do with memory, with mmap(2)'s bits.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Prot: u32 {
        /// PROT_READ.
        const READ = 1;
        /// PROT_WRITE; x86 can't grant it without reading.
        const WRITE = 2;
        /// PROT_EXEC; likewise.
        const EXEC = 4;
    }
}

/// Where the memory behind an entry comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The program's own frame; the entry holds a reference.
    Anonymous,
    /// A frame of an object (a tmpfs file, shared memory); the entry holds a reference.
    Object,
    /// Memory that is not counted: the image, vDSO and clock page.
    Foreign,
}

/// A page-table entry that maps memory, or zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pte(pub(crate) u64);

impl Pte {
    pub(crate) const EMPTY: Pte = Pte(0);

    /// An entry for a 4 KiB page; `writable` counts only where `prot` has WRITE.
    pub(crate) fn new(gpa: Gpa, kind: Kind, prot: Prot, writable: bool) -> Self {
        let kind_bits = match kind {
            Kind::Anonymous => OWNED | ANONYMOUS,
            Kind::Object => OWNED,
            Kind::Foreign => 0,
        };
        Pte(gpa.0 | USER | ACCESSED_DIRTY | kind_bits).with_prot(prot, writable)
    }

    /// The same for 2 MiB.
    pub(crate) const fn large(self) -> Self {
        Pte(self.0 | LARGE)
    }

    pub(crate) fn with_prot(self, prot: Prot, writable: bool) -> Self {
        let mut bits = self.0 & !(PRESENT | WRITABLE | NO_EXECUTE);
        if !prot.is_empty() {
            bits |= PRESENT;
        }
        if prot.contains(Prot::WRITE) && writable {
            bits |= WRITABLE;
        }
        if !prot.contains(Prot::EXEC) {
            bits |= NO_EXECUTE;
        }
        Pte(bits)
    }

    pub(crate) const fn read_only(self) -> Self {
        Pte(self.0 & !WRITABLE)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    pub(crate) const fn is_writable(self) -> bool {
        self.0 & (PRESENT | WRITABLE) == PRESENT | WRITABLE
    }

    pub(crate) const fn is_large(self) -> bool {
        self.0 & LARGE != 0
    }

    pub(crate) const fn gpa(self) -> Gpa {
        Gpa(self.0 & ADDRESS)
    }

    pub(crate) const fn pfn(self) -> Pfn {
        ((self.0 & ADDRESS) / PAGE_BYTES) as Pfn
    }

    pub(crate) const fn kind(self) -> Kind {
        if self.0 & OWNED == 0 {
            Kind::Foreign
        } else if self.0 & ANONYMOUS != 0 {
            Kind::Anonymous
        } else {
            Kind::Object
        }
    }

    /// 4 KiB pages that the entry maps.
    pub(crate) const fn pages(self) -> u64 {
        if self.is_large() { BLOCK_FRAMES as u64 } else { 1 }
    }

    /// Whether nobody else has the memory.
    pub(crate) fn is_exclusive(self) -> bool {
        if self.is_large() { frame::block_is_exclusive(self.pfn()) } else { frame::references(self.pfn()) == 1 }
    }

    /// Takes another reference for a copy of this entry.
    pub(crate) fn retain(self) {
        match self.kind() {
            Kind::Foreign => {}
            _ if self.is_large() => frame::retain_block(self.pfn()),
            _ => frame::retain(self.pfn()),
        }
    }

    /// Gives up the entry's reference.
    pub(crate) fn release(self) {
        match self.kind() {
            Kind::Foreign => {}
            _ if self.is_large() => frame::release_block(self.pfn()),
            _ => frame::release(self.pfn()),
        }
    }

    /// The entry for page `index` of the 2 MiB that this one maps.
    pub(super) const fn piece(self, index: u64) -> Self {
        Pte((self.0 & !LARGE) + index * PAGE_BYTES)
    }
}

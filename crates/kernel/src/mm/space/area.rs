//! Areas of an address space (what Linux calls VMAs): what is mapped where, whether or not any page of it is there yet.

use crate::fs::file::OpenFile;
use crate::ipc::shm::Attachment;
use crate::mm::addr::PAGE_BYTES;
use crate::mm::pages::PageSource;
use crate::mm::pte::Prot;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use bitflags::bitflags;
use core::cell::Cell;

bitflags! {
    /// How an area differs from a plain private one.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AreaFlags: u32 {
        /// MAP_SHARED: writes go to the object, and fork(2) shares it.
        const SHARED = 1 << 0;
        /// MAP_NORESERVE.
        const NORESERVE = 1 << 1;
        /// MAP_GROWSDOWN: a stack.
        const GROWSDOWN = 1 << 2;
        /// mlock(2).
        const LOCKED = 1 << 3;
        /// MADV_DONTFORK.
        const DONTFORK = 1 << 4;
        /// MADV_WIPEONFORK.
        const WIPEONFORK = 1 << 5;
        /// MADV_DONTDUMP.
        const DONTDUMP = 1 << 6;
        /// MADV_HUGEPAGE.
        const HUGE = 1 << 7;
        /// MADV_NOHUGEPAGE.
        const NO_HUGE = 1 << 8;
        /// MADV_SEQUENTIAL.
        const SEQUENTIAL = 1 << 9;
        /// MADV_RANDOM.
        const RANDOM = 1 << 10;
        /// mlock2(MLOCK_ONFAULT).
        const LOCK_ON_FAULT = 1 << 11;
    }
}

/// What an area is called in /proc/PID/maps, where it is not anonymous.
#[derive(Clone)]
pub enum Label {
    /// The file that was mapped; kept open by the mapping.
    File(Rc<OpenFile>),
    /// Such as `[vdso]`.
    Name(&'static str),
    /// A System V shared memory segment, which counts its areas.
    Segment(Rc<Attachment>),
}

/// An object in an area.
#[derive(Clone)]
pub struct ObjectMapping {
    /// Its pages.
    pub source: Rc<dyn PageSource>,
    /// Which page of it is at the area's start.
    pub first_page: u64,
    /// Its name.
    pub label: Label,
}

/// Where an area's pages come from.
#[derive(Clone)]
pub enum Backing {
    /// Zeros.
    Anonymous,
    /// An object.
    Object(ObjectMapping),
}

impl Backing {
    fn advanced(&self, bytes: u64) -> Self {
        match self {
            Self::Anonymous => Self::Anonymous,
            Self::Object(object) => {
                Self::Object(ObjectMapping { first_page: object.first_page + bytes / PAGE_BYTES, ..object.clone() })
            }
        }
    }

    fn continues(&self, bytes: u64, next: &Backing) -> bool {
        match (self, next) {
            (Self::Anonymous, Self::Anonymous) => true,
            (Self::Object(a), Self::Object(b)) => {
                let same_label = match (&a.label, &b.label) {
                    (Label::File(a), Label::File(b)) => Rc::ptr_eq(a, b),
                    (Label::Name(a), Label::Name(b)) => a == b,
                    (Label::Segment(a), Label::Segment(b)) => Rc::ptr_eq(a, b),
                    _ => false,
                };
                same_label && a.source.id() == b.source.id() && a.first_page + bytes / PAGE_BYTES == b.first_page
            }
            _ => false,
        }
    }
}

/// See the module's text. Start and end are multiples of the page size.
#[derive(Clone)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// Last address + 1.
    pub end: u64,
    /// What the program may do.
    pub prot: Prot,
    /// See [`AreaFlags`].
    pub flags: AreaFlags,
    /// Where its pages come from.
    pub backing: Backing,
    /// Where the next fault comes if the program goes through the area in order.
    pub(super) expected: Cell<u64>,
    /// How many pages the last fault mapped.
    pub(super) window_pages: Cell<u32>,
}

impl Area {
    /// An area that nothing was touched of.
    #[must_use]
    pub const fn new(start: u64, end: u64, prot: Prot, flags: AreaFlags, backing: Backing) -> Self {
        Self { start, end, prot, flags, backing, expected: Cell::new(0), window_pages: Cell::new(0) }
    }

    /// Length in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "areas are never empty")]
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether writes go to the object.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.flags.contains(AreaFlags::SHARED)
    }

    /// Whether it is private memory without an object.
    #[must_use]
    pub const fn is_anonymous(&self) -> bool {
        matches!(self.backing, Backing::Anonymous)
    }

    /// Whether the kernel laid it out for programs to read ([vdso]): it does not grow or lie twice.
    #[must_use]
    pub fn is_kernels(&self) -> bool {
        matches!(&self.backing, Backing::Object(ObjectMapping { label: Label::Name(name), .. }) if name.starts_with('['))
    }

    fn attachment(&self) -> Option<&Attachment> {
        match &self.backing {
            Backing::Object(ObjectMapping { label: Label::Segment(attachment), .. }) => Some(attachment),
            _ => None,
        }
    }

    /// The file it maps, as it was opened.
    pub(super) fn file(&self) -> Option<&Rc<OpenFile>> {
        match &self.backing {
            Backing::Object(ObjectMapping { label: Label::File(file), .. }) => Some(file),
            _ => None,
        }
    }

    /// The object's page at an address; the area has an object.
    pub(super) fn object_page(&self, address: u64) -> Option<(&ObjectMapping, u64)> {
        match &self.backing {
            Backing::Anonymous => None,
            Backing::Object(object) => Some((object, object.first_page + (address - self.start) / PAGE_BYTES)),
        }
    }

    /// The part behind `at`; this area keeps the part before.
    fn split_off(&mut self, at: u64) -> Area {
        let mut rest = self.clone();
        rest.backing = self.backing.advanced(at - self.start);
        rest.start = at;
        self.end = at;
        rest
    }

    fn merges_with(&self, next: &Area) -> bool {
        self.end == next.start
            && self.prot == next.prot
            && self.flags == next.flags
            && self.backing.continues(self.len(), &next.backing)
    }
}

/// All areas of an address space, by start. They never overlap. Attached segments hear of every area that comes or goes.
#[derive(Default)]
pub(super) struct Areas(BTreeMap<u64, Area>);

impl Drop for Areas {
    fn drop(&mut self) {
        drop(self.clear());
    }
}

impl Areas {
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Area> {
        self.0.values()
    }

    /// The area that holds an address.
    pub(super) fn find(&self, address: u64) -> Option<&Area> {
        self.0.range(..=address).next_back().map(|(_, area)| area).filter(|area| address < area.end)
    }

    /// The first area that ends behind an address.
    pub(super) fn find_from(&self, address: u64) -> Option<&Area> {
        self.find(address).or_else(|| self.0.range(address..).next().map(|(_, area)| area))
    }

    /// The last area that starts before an address.
    pub(super) fn before(&self, address: u64) -> Option<&Area> {
        self.0.range(..address).next_back().map(|(_, area)| area)
    }

    /// The areas that overlap `[start, end)`, in order.
    pub(super) fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = &Area> {
        let first = self.find(start).map_or(start, |area| area.start);
        self.0.range(first..end).map(|(_, area)| area)
    }

    /// Whether every byte of `[start, end)` is in some area.
    pub(super) fn covers(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        for area in self.overlapping(start, end) {
            if area.start > at {
                return false;
            }
            at = area.end;
        }
        at >= end
    }

    /// Makes `at` a boundary between areas if it lies inside one.
    pub(super) fn split_at(&mut self, at: u64) {
        let Some((_, area)) = self.0.range_mut(..at).next_back() else { return };
        if at < area.end {
            let rest = area.split_off(at);
            self.put(rest);
        }
    }

    /// Takes out what overlaps `[start, end)`, areas at the edges split.
    pub(super) fn remove(&mut self, start: u64, end: u64) -> Vec<Area> {
        self.split_at(start);
        self.split_at(end);
        let keys: Vec<u64> = self.0.range(start..end).map(|(key, _)| *key).collect();
        keys.iter().filter_map(|key| self.take(*key)).collect()
    }

    fn put(&mut self, area: Area) {
        if let Some(attachment) = area.attachment() {
            attachment.opened();
        }
        self.0.insert(area.start, area);
    }

    fn take(&mut self, start: u64) -> Option<Area> {
        let area = self.0.remove(&start)?;
        if let Some(attachment) = area.attachment() {
            attachment.closed();
        }
        Some(area)
    }

    /// Adds an area where there is none, and joins it with its neighbours where they are alike.
    pub(super) fn insert(&mut self, area: Area) {
        let (start, end) = (area.start, area.end);
        self.put(area);
        self.merge_around(start, end);
    }

    /// Changes all areas in `[start, end)`, which is split off at its edges and joined again afterwards.
    pub(super) fn change(&mut self, start: u64, end: u64, mut change: impl FnMut(&mut Area)) {
        self.split_at(start);
        self.split_at(end);
        for (_, area) in self.0.range_mut(start..end) {
            change(area);
        }
        self.merge_around(start, end);
    }

    /// Moves an area's start (it keeps its end); only for areas that grow down.
    pub(super) fn grow_down(&mut self, start: u64, new_start: u64) {
        if let Some(mut area) = self.0.remove(&start) {
            area.start = new_start;
            self.0.insert(new_start, area);
        }
    }

    fn merge_around(&mut self, start: u64, end: u64) {
        let mut at = self.before(start).map_or(start, |area| area.start);
        loop {
            let Some(area) = self.0.get(&at) else { return };
            if area.start > end {
                return;
            }
            let next_key = area.end;
            match self.0.get(&next_key) {
                Some(next) if area.merges_with(next) => {
                    let next_end = next.end;
                    drop(self.take(next_key));
                    if let Some(area) = self.0.get_mut(&at) {
                        area.end = next_end;
                    }
                }
                _ => match self.0.range(at + 1..).next() {
                    Some((key, _)) => at = *key,
                    None => return,
                },
            }
        }
    }

    /// The highest free range of `bytes` that lies in `[low, high)` and starts at a multiple of `align`. Areas that grow
    /// down keep a gap below them.
    pub(super) fn find_gap(&self, bytes: u64, align: u64, low: u64, high: u64) -> Option<u64> {
        let mut ceiling = high;
        let fits = |floor: u64, ceiling: u64| {
            let start = ceiling.checked_sub(bytes)? & !(align - 1);
            (start >= floor).then_some(start)
        };
        for area in self.0.range(..high).rev().map(|(_, area)| area) {
            if area.end <= low {
                break;
            }
            if let Some(start) = fits(area.end.max(low), ceiling) {
                return Some(start);
            }
            let guard = if area.flags.contains(AreaFlags::GROWSDOWN) { super::STACK_GUARD_BYTES } else { 0 };
            ceiling = ceiling.min(area.start.saturating_sub(guard));
        }
        fits(low, ceiling)
    }

    /// Takes all areas out.
    pub(super) fn clear(&mut self) -> Vec<Area> {
        let keys: Vec<u64> = self.0.keys().copied().collect();
        keys.iter().filter_map(|key| self.take(*key)).collect()
    }
}

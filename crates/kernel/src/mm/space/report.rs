//! What /proc shows of an address space.

use super::AddressSpace;
use super::area::{Area, AreaFlags};
use crate::mm::addr::PAGE_BYTES;
use crate::mm::frame;
use crate::mm::pte::{Kind, Prot};
use alloc::vec::Vec;

/// Pages that are mapped, as /proc/PID/status counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// RssAnon.
    pub anonymous_pages: u64,
    /// RssFile: pages of the image.
    pub file_pages: u64,
    /// RssShmem: pages of tmpfs files and shared memory.
    pub shared_pages: u64,
    /// The most that was ever mapped (VmHWM).
    pub peak_pages: u64,
}

impl Resident {
    /// VmRSS.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.anonymous_pages + self.file_pages + self.shared_pages
    }
}

/// What an area's pages amount to, in bytes, for /proc/PID/smaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AreaReport {
    /// Mapped.
    pub resident: u64,
    /// Mapped, each page divided by how many hold it.
    pub proportional: u64,
    /// Pages of objects that others hold too.
    pub shared: u64,
    /// Pages that nobody else holds.
    pub private: u64,
    /// Anonymous memory and private copies.
    pub anonymous: u64,
    /// Mapped by large pages.
    pub large: u64,
}

/// Sizes in bytes for /proc/PID/statm and status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// All areas (VmSize).
    pub total: u64,
    /// Private writable memory (VmData).
    pub data: u64,
    /// Stacks (VmStk).
    pub stack: u64,
    /// Executable areas of files (VmExe and VmLib).
    pub code: u64,
    /// Locked (VmLck).
    pub locked: u64,
}

impl AddressSpace {
    /// A copy of all areas, in the order of addresses.
    #[must_use]
    pub fn areas(&self) -> Vec<Area> {
        self.areas.borrow().iter().cloned().collect()
    }

    /// The area that holds an address.
    #[must_use]
    pub fn area_at(&self, address: u64) -> Option<Area> {
        self.areas.borrow().find(address).cloned()
    }

    /// `[heap]` or `[stack]`, where the area is that.
    #[must_use]
    pub fn special_name(&self, area: &Area) -> Option<&'static str> {
        let (start, end) = self.heap.get();
        if area.is_anonymous() && area.start < end && area.end > start {
            Some("[heap]")
        } else if area.start < self.layout.stack_top && area.end >= self.layout.stack_top {
            Some("[stack]")
        } else {
            None
        }
    }

    /// Start of the heap and the current break.
    #[must_use]
    pub fn heap(&self) -> (u64, u64) {
        self.heap.get()
    }

    /// Mapped pages.
    #[must_use]
    pub fn resident_pages(&self) -> Resident {
        let pages = |kind: Kind| self.resident[kind as usize].get();
        Resident {
            anonymous_pages: pages(Kind::Anonymous),
            file_pages: pages(Kind::Foreign),
            shared_pages: pages(Kind::Object),
            peak_pages: self.peak_resident.get(),
        }
    }

    /// VmRSS in bytes.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.resident_pages().pages() * PAGE_BYTES
    }

    /// Page faults of the program that did not end in a signal, prefetched pages not counted: all are minor ones.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults.get()
    }

    /// Sizes of all areas.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        let mut sum = Footprint::default();
        for area in self.areas.borrow().iter() {
            sum.total += area.len();
            if super::map::is_data(area.prot, area.flags) {
                sum.data += area.len();
            }
            if area.flags.contains(AreaFlags::GROWSDOWN) {
                sum.stack += area.len();
            }
            if area.prot.contains(Prot::EXEC) && !area.prot.contains(Prot::WRITE) && !area.is_anonymous() {
                sum.code += area.len();
            }
            if area.flags.contains(AreaFlags::LOCKED) {
                sum.locked += area.len();
            }
        }
        sum
    }

    /// What an area's pages amount to.
    #[must_use]
    pub fn area_report(&self, area: &Area) -> AreaReport {
        let mut report = AreaReport::default();
        self.table.borrow().visit(area.start, area.end, |_, pte| {
            let bytes = pte.pages() * PAGE_BYTES;
            report.resident += bytes;
            if pte.is_large() {
                report.large += bytes;
            }
            if pte.kind() == Kind::Anonymous {
                report.anonymous += bytes;
            }
            for index in 0..pte.pages() {
                // The image's pages are shared with every VM of that image: as for a widely used library.
                let holders = match pte.kind() {
                    Kind::Foreign => 1,
                    _ => u64::from(frame::references(pte.pfn() + index as u32)),
                };
                report.proportional += PAGE_BYTES / holders.max(1);
                if holders > 1 || pte.kind() == Kind::Foreign {
                    report.shared += PAGE_BYTES;
                } else {
                    report.private += PAGE_BYTES;
                }
            }
        });
        report
    }
}

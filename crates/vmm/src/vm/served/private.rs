//! Which pages of the guest's memory this process has of its own.

use super::super::Fatal;
use super::super::memory::GuestMemory;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use torpor_abi::layout::PAGE_BYTES;

/// From linux/fs.h (Linux 6.7).
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<ScanArg>() == 96);

/// Bits of an entry of /proc/PID/pagemap (proc(5)).
const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_SHARED: u64 = 1 << 61;

/// This process's /proc/self/pagemap.
#[derive(Debug)]
pub(in crate::vm) struct PageMap(File);

impl PageMap {
    /// Opens it; to be called before the final seccomp filter.
    ///
    /// # Errors
    /// What open(2) gives.
    pub(in crate::vm) fn open() -> Result<Self, Fatal> {
        File::open("/proc/self/pagemap").map(Self).map_err(Fatal::system("/proc/self/pagemap"))
    }

    /// Numbers of the pages of guest memory that are private to this process, rising. Some may be as in the template
    /// nevertheless.
    ///
    /// # Errors
    /// [`Fatal::System`].
    pub(in crate::vm) fn private_pages(&self, memory: &GuestMemory) -> Result<Vec<u32>, Fatal> {
        self.private_pages_in(memory, 0..memory.len_bytes())
    }

    /// The same for whole pages of guest memory from one address to another.
    ///
    /// # Errors
    /// [`Fatal::System`].
    pub(in crate::vm) fn private_pages_in(&self, memory: &GuestMemory, part: Range<u64>) -> Result<Vec<u32>, Fatal> {
        let in_memory = part.start..part.end.min(memory.len_bytes());
        match self.scan(memory.base().0, &in_memory, PAGE_IS_FILE | PAGE_IS_PFNZERO) {
            Ok(pages) => Ok(pages),
            // A kernel before 6.7.
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                self.read(memory, &part).map_err(Fatal::system("reading /proc/self/pagemap"))
            }
            Err(error) => Err(Fatal::system("PAGEMAP_SCAN")(error)),
        }
    }

    /// Numbers of the pages of a mapping that are there in this process, rising; none where the kernel is older than 6.7.
    ///
    /// # Errors
    /// [`Fatal::System`].
    pub(in crate::vm) fn present_pages(&self, base: u64, len: u64) -> Result<Vec<u32>, Fatal> {
        match self.scan(base, &(0..len), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Ok(Vec::new()),
            found => found.map_err(Fatal::system("PAGEMAP_SCAN")),
        }
    }

    /// Pages of a mapping that are there, and in none of the categories of `unless`.
    fn scan(&self, base: u64, part: &Range<u64>, unless: u64) -> std::io::Result<Vec<u32>> {
        let end = base + part.end;
        let mut regions = vec![Region::default(); 256];
        let mut pages = Vec::new();
        let mut start = base + part.start;
        while start < end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                start,
                end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                category_inverted: unless,
                category_mask: unless,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_PRESENT,
                ..ScanArg::default()
            };
            // SAFETY: `arg` is a pm_scan_arg whose vector is `regions`, with its length; the call writes to these two only.
            let found = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            if found < 0 {
                return Err(std::io::Error::last_os_error());
            }
            let regions = &regions[..found.cast_unsigned() as usize];
            let ranges = regions.iter().map(|region| (region.start - base)..(region.end - base));
            append_rising(&mut pages, ranges);
            if arg.walk_end <= start {
                break;
            }
            start = arg.walk_end;
        }
        Ok(pages)
    }

    fn read(&self, memory: &GuestMemory, part: &Range<u64>) -> std::io::Result<Vec<u32>> {
        const PIECE: usize = 8192;
        let count = (part.end.min(memory.len_bytes()) / PAGE_BYTES) as usize;
        let first = memory.base().0 / PAGE_BYTES;
        let mut pages = Vec::new();
        let mut buffer = vec![0; PIECE * 8];
        for start in ((part.start / PAGE_BYTES) as usize..count).step_by(PIECE) {
            let piece = &mut buffer[..(count - start).min(PIECE) * 8];
            self.0.read_exact_at(piece, (first + start as u64) * 8)?;
            for (index, entry) in piece.as_chunks::<8>().0.iter().enumerate() {
                let entry = u64::from_le_bytes(*entry);
                if entry & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0 && entry & ENTRY_SHARED == 0 {
                    pages.push((start + index) as u32);
                }
            }
        }
        Ok(pages)
    }
}

/// Appends the numbers of pages of ranges of bytes that are not there yet. A stretch may be reported twice: `walk_end` has
/// been seen to lie before the end of what the same scan had reported (Linux 6.18, of a VM with a few hundred regions).
fn append_rising(pages: &mut Vec<u32>, ranges: impl Iterator<Item = Range<u64>>) {
    for range in ranges {
        let [start, end] = [range.start, range.end].map(|bytes| (bytes / PAGE_BYTES) as u32);
        let next = pages.last().map_or(0, |last| last + 1);
        pages.extend(start.max(next)..end);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::memory::Gpa;
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    #[test]
    fn written_pages_are_found_both_ways() {
        let template = File::from(memfd_create("template", MemfdFlags::CLOEXEC).expect("memfd"));
        template.write_all_at(&[7; 64 << 12], 0).expect("written");
        let memory = GuestMemory::over_template(4 << 20, &template, 64 << 12).expect("mapped");
        let map = PageMap::open().expect("proc");
        let mut byte = [0];
        memory.read(Gpa(5 << 12), &mut byte).expect("in range");
        memory.read(Gpa(100 << 12), &mut byte).expect("in range");
        for page in [3_u64, 4, 63, 64, 500] {
            memory.write(Gpa(page << 12), &[1]).expect("in range");
        }
        assert_eq!(map.private_pages(&memory).expect("scanned"), [3, 4, 63, 64, 500]);
        let some = map.private_pages_in(&memory, 4 << 12..64 << 12).expect("scanned");
        assert_eq!(some, [4, 63]);
        assert_eq!(map.read(&memory, &(4 << 12..64 << 12)).expect("read"), [4, 63]);
        let read = map.read(&memory, &(0..memory.len_bytes())).expect("read");
        // Without PAGE_IS_PFNZERO a page of zeros that was only read counts as well.
        assert_eq!(read.into_iter().filter(|page| *page != 100).collect::<Vec<_>>(), [3, 4, 63, 64, 500]);
    }

    #[test]
    fn what_is_reported_twice_counts_once() {
        let mut pages = vec![1, 2];
        let ranges = [0x2000..0x5000, 0x3000..0x4000, 0x4000..0x7000, 0x9000..0xa000];
        append_rising(&mut pages, ranges.into_iter());
        assert_eq!(pages, [1, 2, 3, 4, 5, 6, 9]);
    }
}

//! Guest-physical memory as the VM process sees it.
//!
//! The guest may change any byte at any time, so there are no references or slices into it: bytes are copied in and
//! out, words that both sides change are atomics.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};
use thiserror::Error;
use torpor_abi::layout::{LARGE_PAGE_BYTES, PAGE_BYTES};

/// A guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Gpa(pub u64);

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// An address in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hva(pub u64);

/// A range that does not lie in the guest's RAM, or not on page boundaries.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{len} bytes at guest-physical {gpa:?} are not in the guest's {ram_bytes:#x} bytes of memory")]
pub(super) struct OutOfRange {
    gpa: Gpa,
    len: u64,
    ram_bytes: u64,
}

/// Types that are plain data: every bit pattern is valid and there is no padding.
///
/// # Safety
/// Implementors keep that promise.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: `repr(C)`, integers and arrays of integers only, each at a multiple of its size with no gaps.
unsafe impl Plain for torpor_abi::boot::BootInfo {}
// SAFETY: `repr(C)` of u64 only.
unsafe impl Plain for torpor_abi::trap::KernelHeader {}

/// The bytes of a plain value.
pub(super) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `T` has no padding, so all its bytes are initialised; the slice borrows `value`.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// A private mapping, unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory that belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: all access goes through copies and atomics (see `GuestMemory`).
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length, and no reference into it outlives its owner.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// The guest's RAM, from guest-physical 0.
#[derive(Debug)]
pub(super) struct GuestMemory {
    mapping: Mapping,
    /// The first so many bytes are a private mapping of a template.
    template_bytes: u64,
}

impl GuestMemory {
    /// Reserves `len` bytes of zeros; nothing is used before it is touched.
    ///
    /// # Errors
    /// What mmap(2) gives.
    pub(super) fn new(len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let large = usize::try_from(LARGE_PAGE_BYTES).expect("2 MiB");
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // Aligned like guest-physical addresses, so that a large page here can back a large page there.
        // SAFETY: a new mapping at an address of the kernel's choice.
        let raw = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len + large, prot, MapFlags::PRIVATE | MapFlags::NORESERVE)
        }?;
        let start = raw.addr().next_multiple_of(large);
        let before = start - raw.addr();
        // SAFETY: both pieces lie in the mapping just made and nothing refers to them.
        unsafe {
            if before > 0 {
                munmap(raw, before)?;
            }
            munmap(raw.byte_add(before + len), large - before)?;
        }
        // SAFETY: inside the mapping, which is not at address 0.
        let base = unsafe { NonNull::new_unchecked(raw.byte_add(before).cast::<u8>()) };
        let memory = Self { mapping: Mapping { base, len }, template_bytes: 0 };
        // A guest that touches one small page must not be given 2 MiB; POPULATE asks for large pages where it wants them.
        // SAFETY: advice that does not change contents, on the whole of our own mapping.
        match unsafe { madvise(base.as_ptr().cast(), len, Advice::LinuxNoHugepage) } {
            // A kernel without transparent huge pages gives none anyway.
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(memory),
            Err(error) => Err(error.into()),
        }
    }

    /// Reserves `len` bytes of which the first `template_bytes` are those of `template`, shared until they are written; the
    /// rest is zeros.
    ///
    /// # Errors
    /// What mmap(2) gives; [`io::ErrorKind::InvalidInput`] for a template that is no whole pages or larger than RAM.
    pub(super) fn over_template(len: u64, template: impl AsFd, template_bytes: u64) -> io::Result<Self> {
        if template_bytes > len || !template_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut memory = Self::new(len)?;
        if template_bytes > 0 {
            let at = memory.mapping.base.as_ptr().cast();
            let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
            // SAFETY: replaces the first pages of our own mapping, which nothing refers to yet.
            unsafe { mmap(at, template_bytes as usize, prot, flags | MapFlags::FIXED, template, 0) }?;
        }
        memory.template_bytes = template_bytes;
        Ok(memory)
    }

    /// Size in bytes.
    #[must_use]
    pub(super) fn len_bytes(&self) -> u64 {
        self.mapping.len as u64
    }

    /// How much of it, from the beginning, is a private mapping of a template.
    #[must_use]
    pub(super) fn template_bytes(&self) -> u64 {
        self.template_bytes
    }

    /// Whether memory holds `what`.
    ///
    /// # Errors
    /// [`OutOfRange`].
    pub(super) fn equals(&self, gpa: Gpa, what: &[u8]) -> Result<bool, OutOfRange> {
        let at = self.range(gpa, what.len() as u64)?;
        // SAFETY: `range` checked all of it. A guest that wrote meanwhile would change the answer and nothing else.
        Ok(unsafe { libc::memcmp(at.as_ptr().cast(), what.as_ptr().cast(), what.len()) } == 0)
    }

    /// Where guest-physical 0 lies.
    #[must_use]
    pub(super) fn base(&self) -> Hva {
        Hva(self.mapping.base.addr().get() as u64)
    }

    /// Pointer to `len` bytes at `gpa`.
    fn range(&self, gpa: Gpa, len: u64) -> Result<NonNull<u8>, OutOfRange> {
        let ram_bytes = self.len_bytes();
        if gpa.0 > ram_bytes || len > ram_bytes - gpa.0 {
            return Err(OutOfRange { gpa, len, ram_bytes });
        }
        // SAFETY: gpa <= ram_bytes, the mapping's length, so the result is inside it or one past its end.
        Ok(unsafe { self.mapping.base.byte_add(gpa.0 as usize) })
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`OutOfRange`].
    pub(super) fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), OutOfRange> {
        let from = self.range(gpa, into.len() as u64)?;
        // SAFETY: `range` checked the source; `into` is ours and can't overlap a mapping that nothing borrows. The
        // guest may write meanwhile: then the copy is a mixture, and every reader checks what it got.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`OutOfRange`].
    pub(super) fn write(&self, gpa: Gpa, from: &[u8]) -> Result<(), OutOfRange> {
        let into = self.range(gpa, from.len() as u64)?;
        // SAFETY: as in `read`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_ptr(), from.len()) };
        Ok(())
    }

    /// Copies a little-endian word out.
    ///
    /// # Errors
    /// [`OutOfRange`].
    pub(super) fn read_u64(&self, gpa: Gpa) -> Result<u64, OutOfRange> {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Copies a little-endian word in.
    ///
    /// # Errors
    /// [`OutOfRange`].
    pub(super) fn write_u64(&self, gpa: Gpa, value: u64) -> Result<(), OutOfRange> {
        self.write(gpa, &value.to_le_bytes())
    }

    /// A word that both sides change. Panics if `gpa` is not aligned or not in RAM: it is a constant of the layout.
    #[must_use]
    pub(super) fn atomic_u32(&self, gpa: Gpa) -> &AtomicU32 {
        assert!(gpa.0.is_multiple_of(4));
        let at = self.range(gpa, 4).expect("the layout's constants lie in RAM");
        // SAFETY: aligned, inside the mapping for as long as `self` lives, and only accessed as an atomic.
        unsafe { AtomicU32::from_ptr(at.as_ptr().cast()) }
    }

    /// See [`GuestMemory::atomic_u32`].
    #[must_use]
    pub(super) fn atomic_u64(&self, gpa: Gpa) -> &AtomicU64 {
        assert!(gpa.0.is_multiple_of(8));
        let at = self.range(gpa, 8).expect("the layout's constants lie in RAM");
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }
    }

    /// A range of whole pages, for advice.
    fn pages(&self, gpa: Gpa, len: u64) -> Result<NonNull<u8>, OutOfRange> {
        if !gpa.0.is_multiple_of(PAGE_BYTES) || !len.is_multiple_of(PAGE_BYTES) {
            return Err(OutOfRange { gpa, len, ram_bytes: self.len_bytes() });
        }
        self.range(gpa, len)
    }

    /// Backs whole pages with host memory now, those that make up large pages with large pages where the host can.
    ///
    /// # Errors
    /// [`OutOfRange`] inside the outer result's error where the range is bad; else what madvise(2) gives.
    pub(super) fn populate(&self, gpa: Gpa, len: u64) -> Result<io::Result<()>, OutOfRange> {
        let at = self.pages(gpa, len)?;
        let large_start = gpa.0.next_multiple_of(LARGE_PAGE_BYTES);
        let large_end = (gpa.0 + len) / LARGE_PAGE_BYTES * LARGE_PAGE_BYTES;
        if large_start < large_end {
            let large = self.range(Gpa(large_start), large_end - large_start)?;
            // SAFETY: advice on our own mapping that does not change contents.
            let advised =
                unsafe { madvise(large.as_ptr().cast(), (large_end - large_start) as usize, Advice::LinuxHugepage) };
            // EINVAL: a kernel without transparent huge pages; small ones do as well.
            if let Err(error) = advised
                && error != rustix::io::Errno::INVAL
            {
                return Ok(Err(error.into()));
            }
        }
        // SAFETY: as above.
        let populated = unsafe { madvise(at.as_ptr().cast(), len as usize, Advice::LinuxPopulateWrite) };
        Ok(populated.map_err(io::Error::from))
    }

    /// Drops what was ever written to whole pages: they are the template's again, or zeros.
    ///
    /// # Errors
    /// As [`GuestMemory::populate`].
    pub(super) fn forget(&self, gpa: Gpa, len: u64) -> Result<io::Result<()>, OutOfRange> {
        let at = self.pages(gpa, len)?;
        // SAFETY: the mapping is private; nothing borrows its pages but atomics, which may change at any time anyway.
        let dropped = unsafe { madvise(at.as_ptr().cast(), len as usize, Advice::LinuxDontNeed) };
        Ok(dropped.map_err(io::Error::from))
    }

    /// Gives whole pages back to the host; they read as zero afterwards.
    ///
    /// # Errors
    /// As [`GuestMemory::populate`].
    pub(super) fn discard(&self, gpa: Gpa, len: u64) -> Result<io::Result<()>, OutOfRange> {
        self.pages(gpa, len)?;
        // Dropping a private page of the template would bring the template's content back.
        let within = self.template_bytes.saturating_sub(gpa.0).min(len);
        for page in (gpa.0..gpa.0 + within).step_by(PAGE_BYTES as usize) {
            let mut content = [0; PAGE_BYTES as usize];
            self.read(Gpa(page), &mut content)?;
            if content.iter().any(|byte| *byte != 0) {
                self.write(Gpa(page), &[0; PAGE_BYTES as usize])?;
            }
        }
        let (at, len) = (self.pages(Gpa(gpa.0 + within), len - within)?, len - within);
        // SAFETY: this part of the mapping is anonymous and private, so its pages become zero pages; nothing borrows them
        // but atomics, which may change at any time anyway.
        let discarded = unsafe { madvise(at.as_ptr().cast(), len as usize, Advice::LinuxDontNeed) };
        Ok(discarded.map_err(io::Error::from))
    }
}

/// The EROFS image, mapped read-only. This process never reads it: a file that shrinks would be a SIGBUS.
#[derive(Debug)]
pub(super) struct ImageMapping {
    mapping: Mapping,
}

impl ImageMapping {
    /// Maps `len` bytes of `file`, rounded up to whole pages.
    ///
    /// # Errors
    /// What mmap(2) gives.
    pub(super) fn new(file: impl AsFd, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len.next_multiple_of(PAGE_BYTES)).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // Private, since userfaultfd(2) takes no shared mapping of a file that may not be written.
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, file, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mapping = Mapping { base, len };
        // What is not in the host's cache yet is read in large pages, which cost one fault in each VM instead of hundreds.
        // SAFETY: advice that does not change contents, on the whole of our own mapping.
        match unsafe { madvise(base.as_ptr().cast(), len, Advice::LinuxHugepage) } {
            // A kernel or file system without large pages has small ones.
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(Self { mapping }),
            Err(error) => Err(error.into()),
        }
    }

    /// From now on no more of it is mapped in large pages.
    ///
    /// # Errors
    /// What madvise(2) gives.
    pub(super) fn keep_small(&self) -> io::Result<()> {
        // SAFETY: advice that does not change contents, on the whole of our own mapping.
        let advised = unsafe { madvise(self.mapping.base.as_ptr().cast(), self.mapping.len, Advice::LinuxNoHugepage) };
        Ok(advised?)
    }

    /// Size in bytes, whole pages.
    #[must_use]
    pub(super) fn len_bytes(&self) -> u64 {
        self.mapping.len as u64
    }

    /// Where it lies in this process.
    #[must_use]
    pub(super) fn base(&self) -> Hva {
        Hva(self.mapping.base.addr().get() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn words_and_bytes_share_memory() {
        let memory = GuestMemory::new(4 << 20).expect("memory");
        assert!(memory.base().0.is_multiple_of(LARGE_PAGE_BYTES));
        memory.write_u64(Gpa(0x1000), 0x1_0000_0002).expect("in range");
        assert_eq!(memory.atomic_u32(Gpa(0x1000)).load(Ordering::Relaxed), 2);
        assert_eq!(memory.atomic_u64(Gpa(0x1000)).load(Ordering::Relaxed), 0x1_0000_0002);
    }

    #[test]
    fn discarded_pages_read_zero() {
        let memory = GuestMemory::new(4 << 20).expect("memory");
        memory.populate(Gpa(0), 4 << 20).expect("in range").expect("populate");
        memory.write(Gpa(0x20_0000), &[7; 8192]).expect("in range");
        memory.discard(Gpa(0x20_0000), 4096).expect("in range").expect("discard");
        assert_eq!(memory.read_u64(Gpa(0x20_0000)), Ok(0));
        assert_eq!(memory.read_u64(Gpa(0x20_1000)), Ok(0x0707_0707_0707_0707));
        assert!(memory.discard(Gpa(1), 4096).is_err());
        assert!(memory.populate(Gpa(0), 8 << 20).is_err());
    }

    proptest! {
        #[test]
        fn no_range_reaches_beyond(gpa: u64, len in 0_usize..8192, near in -8192_i64..8192) {
            let memory = GuestMemory::new(2 << 20).expect("memory");
            for gpa in [gpa, memory.len_bytes().wrapping_add_signed(near)] {
                let fits = gpa.checked_add(len as u64).is_some_and(|end| end <= memory.len_bytes());
                prop_assert_eq!(memory.write(Gpa(gpa), &vec![1; len]).is_ok(), fits);
                prop_assert_eq!(memory.read(Gpa(gpa), &mut vec![0; len]).is_ok(), fits);
            }
        }
    }
}

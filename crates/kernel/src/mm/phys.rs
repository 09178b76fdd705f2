//! Guest-physical memory as the kernel reaches it: the direct map in the guest, an arena per thread when hosted.

use super::addr::Gpa;

/// Where a guest-physical address (RAM or image) can be reached.
#[cfg(not(feature = "hosted"))]
#[must_use]
pub fn pointer(gpa: Gpa) -> *mut u8 {
    (torpor_abi::layout::DIRECT_MAP_BASE + gpa.0) as *mut u8
}

/// The inverse of [`pointer`], for RAM.
#[cfg(not(feature = "hosted"))]
pub(super) fn gpa_of(pointer: *mut u8) -> Gpa {
    Gpa(pointer as u64 - torpor_abi::layout::DIRECT_MAP_BASE)
}

#[cfg(feature = "hosted")]
pub use hosted::{map_image, pointer};

#[cfg(feature = "hosted")]
pub(super) use hosted::{gpa_of, map_ram};

/// Hosted: RAM is lazily zeroed memory of this process, one arena per thread.
#[cfg(feature = "hosted")]
mod hosted {
    use super::Gpa;
    use core::cell::Cell;
    use torpor_abi::layout::IMAGE_GPA;

    std::thread_local! {
        static RAM: Cell<(*mut u8, u64)> = const { Cell::new((core::ptr::null_mut(), 0)) };
        static IMAGE: Cell<(*const u8, u64)> = const { Cell::new((core::ptr::null(), 0)) };
    }

    /// Where a guest-physical address (RAM or image) can be reached.
    ///
    /// # Panics
    /// If there is no such memory.
    #[must_use]
    pub fn pointer(gpa: Gpa) -> *mut u8 {
        if gpa.0 >= IMAGE_GPA {
            let (base, len) = IMAGE.get();
            assert!(gpa.0 - IMAGE_GPA < len, "{gpa:?} is not in the image");
            return base.wrapping_add((gpa.0 - IMAGE_GPA) as usize).cast_mut();
        }
        let (base, len) = RAM.get();
        assert!(gpa.0 < len, "{gpa:?} is not in RAM");
        base.wrapping_add(gpa.0 as usize)
    }

    /// The inverse of [`pointer`], for RAM.
    pub(in crate::mm) fn gpa_of(pointer: *mut u8) -> Gpa {
        Gpa((pointer as usize - RAM.get().0 as usize) as u64)
    }

    /// Makes `image` (a multiple of pages) this thread's image at `IMAGE_GPA`.
    pub fn map_image(image: &'static [u8]) {
        IMAGE.set((image.as_ptr(), image.len() as u64));
    }

    /// Gives this thread new RAM. The old arena stays where it is: frames of it may still be held by other globals.
    pub(in crate::mm) fn map_ram(bytes: u64) {
        // A small alignment keeps the allocator at calloc(3), whose large blocks are fresh, untouched pages.
        let layout = std::alloc::Layout::from_size_align(bytes as usize + 4096, 16).expect("a sane size");
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!raw.is_null(), "no memory for the test arena");
        RAM.set((raw.wrapping_add(raw.align_offset(4096)), bytes));
    }
}

/// Fills a whole number of 8-byte words with zeros.
///
/// # Safety
/// `[gpa, gpa + bytes)` is RAM that nothing refers to.
pub(super) unsafe fn zero(gpa: Gpa, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { pointer(gpa).write_bytes(0, bytes) };
}

/// Copies one frame.
///
/// # Safety
/// Both are frames that nothing holds a Rust reference into; they differ.
pub(super) unsafe fn copy_page(from: Gpa, to: Gpa) {
    // SAFETY: the caller's promise.
    unsafe { core::ptr::copy_nonoverlapping(pointer(from), pointer(to), super::addr::PAGE_BYTES as usize) };
}

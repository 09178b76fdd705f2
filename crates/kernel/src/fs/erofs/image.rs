//! The bytes of an image, owned by somebody who may change them at any time.
//!
//! The image is host memory shared with every VM that runs from it, so no Rust reference to it may
//! exist: a reference promises that the bytes stay as they are. They are only ever copied out, by an
//! instruction that the compiler cannot see into. A field is therefore read exactly once, and what
//! was validated is what is used.

use core::arch::asm;

/// A read-only image in memory. Copying the handle is cheap; the bytes live as long as the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    base: *const u8,
    len_bytes: u64,
}

// SAFETY: `base` is only read, through copies that tolerate concurrent change, and the memory stays
// mapped for the life of the program (promised to `from_raw`); so any thread may hold the handle.
unsafe impl Send for Image {}
// SAFETY: as for `Send`; there is no interior state.
unsafe impl Sync for Image {}

impl Image {
    /// An image made of bytes that never change.
    #[must_use]
    pub fn from_static(bytes: &'static [u8]) -> Self {
        // SAFETY: a `'static` slice is readable for its whole length for ever.
        unsafe { Self::from_raw(bytes.as_ptr(), bytes.len()) }
    }

    /// An image at `base`, whose bytes may change while they are read.
    ///
    /// # Safety
    /// `base..base + len_bytes` must stay mapped and readable until the program ends.
    #[must_use]
    pub unsafe fn from_raw(base: *const u8, len_bytes: usize) -> Self {
        Self { base, len_bytes: len_bytes as u64 }
    }

    /// Length of the image in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Copies `dst.len()` bytes from `offset_bytes` on; `None`, with `dst` untouched, where the range
    /// is not all inside the image.
    #[must_use]
    pub fn copy_to(&self, offset_bytes: u64, dst: &mut [u8]) -> Option<()> {
        let end = offset_bytes.checked_add(dst.len() as u64)?;
        if end > self.len_bytes {
            return None;
        }
        // SAFETY: 1. the source range lies inside the image (checked above), which `from_raw`'s
        // caller keeps readable; the offset fits in `usize` because the length came from one.
        // 2. `dst` is an exclusive slice of exactly `dst.len()` bytes, so the two cannot overlap.
        // 3. The ABI keeps the direction flag clear; `rep movsb` changes the three registers named
        // and no flags. That the source may change during the copy is of no concern to an
        // instruction: each byte is loaded once.
        unsafe {
            let src = self.base.add(offset_bytes as usize);
            asm!(
                "rep movsb",
                inout("rcx") dst.len() => _,
                inout("rsi") src => _,
                inout("rdi") dst.as_mut_ptr() => _,
                options(nostack, preserves_flags),
            );
        }
        Some(())
    }

    /// The `N` bytes from `offset_bytes` on; `None` where they are not all inside the image.
    #[must_use]
    pub(super) fn read<const N: usize>(&self, offset_bytes: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.copy_to(offset_bytes, &mut bytes)?;
        Some(bytes)
    }
}

/// Little-endian fields of a structure that was copied out of the image. The offsets are constants of
/// the format, so a bad one is a bug that the first read shows, not a matter of input.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::Image;

    #[test]
    fn copies_only_what_is_inside() {
        let image = Image::from_static(b"0123456789");
        let mut buf = [b'.'; 4];
        assert_eq!(image.copy_to(6, &mut buf), Some(()));
        assert_eq!(&buf, b"6789");
        assert_eq!(image.copy_to(7, &mut buf), None);
        assert_eq!(image.copy_to(u64::MAX - 1, &mut buf), None);
        assert_eq!(&buf, b"6789");
        assert_eq!(image.copy_to(10, &mut []), Some(()));
        assert_eq!(image.copy_to(11, &mut []), None);
    }
}

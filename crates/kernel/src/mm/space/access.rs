//! The kernel's own access to programs' memory. Pages are looked up and brought in first, so nothing here faults.
//!
//! The active space is reached by the program's own addresses (a second way to the same page would cost the hypervisor a
//! second shadow mapping), others through the direct map.

use super::{AddressSpace, FaultAccess, FaultOutcome};
use crate::errno::{Errno, Result};
use crate::mm::addr::{Gpa, PAGE_BYTES, USER_BASE, USER_END, UserAddr};
use crate::mm::phys;
use crate::mm::pte::Kind;
use crate::rewrite::text;

/// How [`AddressSpace::read_memory`] and [`AddressSpace::write_memory`] treat protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Respect {
    /// As the program itself.
    Protection,
    /// As a debugger: private memory can be read and written whatever its protection (/proc/PID/mem, ptrace(2)).
    Nothing,
}

/// Length of the piece of `[address, address + len)` that lies in one page.
fn piece(address: u64, len: usize) -> usize {
    len.min((PAGE_BYTES - address % PAGE_BYTES) as usize)
}

impl AddressSpace {
    /// Makes sure that a page can be accessed; gives where its byte at `address` is: in the image, if the program's text
    /// is rewritten there.
    fn make_ready(
        &self,
        address: u64,
        access: FaultAccess,
        respect: Respect,
    ) -> core::result::Result<Gpa, FaultOutcome> {
        if !(USER_BASE..USER_END).contains(&address) {
            return Err(FaultOutcome::Unmapped);
        }
        let forced = respect == Respect::Nothing;
        // Bringing in may take two steps: the object's page, then the copy.
        for _ in 0..3 {
            if let Some(pte) = self.table.borrow().lookup(address & !(PAGE_BYTES - 1)) {
                let ready = match access {
                    FaultAccess::Write if forced => {
                        pte.is_writable() || pte.kind() == Kind::Anonymous && pte.is_exclusive()
                    }
                    FaultAccess::Write => pte.is_writable(),
                    _ => pte.is_present() || forced,
                };
                if ready {
                    let page = if pte.kind() == Kind::Foreign { text::original(pte.gpa()) } else { pte.gpa() };
                    return Ok(Gpa(page.0 + address % (pte.pages() * PAGE_BYTES)));
                }
            }
            self.try_fault(address, access, forced)?;
        }
        Err(FaultOutcome::OutOfMemory)
    }

    /// Copies out of this space, active or not, through the direct map.
    ///
    /// # Errors
    /// How many bytes were copied before one could not be.
    pub fn read_memory(&self, address: u64, dst: &mut [u8], respect: Respect) -> core::result::Result<(), usize> {
        let mut done = 0;
        while done < dst.len() {
            let at = address.wrapping_add(done as u64);
            let len = piece(at, dst.len() - done);
            let gpa = self.make_ready(at, FaultAccess::Read, respect).map_err(|_| done)?;
            // SAFETY: the page is mapped by this space, so it is RAM or image; `dst` is the kernel's and apart from it.
            unsafe { core::ptr::copy_nonoverlapping(phys::pointer(gpa), dst[done..].as_mut_ptr(), len) };
            done += len;
        }
        Ok(())
    }

    /// Copies into this space, active or not, through the direct map.
    ///
    /// # Errors
    /// How many bytes were copied before one could not be.
    pub fn write_memory(&self, address: u64, src: &[u8], respect: Respect) -> core::result::Result<(), usize> {
        let mut done = 0;
        while done < src.len() {
            let at = address.wrapping_add(done as u64);
            let len = piece(at, src.len() - done);
            let gpa = self.make_ready(at, FaultAccess::Write, respect).map_err(|_| done)?;
            // SAFETY: the page is a frame that this space may write; `src` is the kernel's and apart from it.
            unsafe { core::ptr::copy_nonoverlapping(src[done..].as_ptr(), phys::pointer(gpa), len) };
            done += len;
        }
        Ok(())
    }

    /// Copies out of this space as the program itself could.
    ///
    /// # Errors
    /// EFAULT.
    pub fn read(&self, address: UserAddr, dst: &mut [u8]) -> Result<()> {
        self.read_memory(address.0, dst, Respect::Protection).map_err(|_| Errno::EFAULT)
    }

    /// Copies into this space as the program itself could.
    ///
    /// # Errors
    /// EFAULT; bytes before the faulting page have been written.
    pub fn write(&self, address: UserAddr, src: &[u8]) -> Result<()> {
        self.write_memory(address.0, src, Respect::Protection).map_err(|_| Errno::EFAULT)
    }

    /// Zeroes memory of this space through the direct map.
    ///
    /// # Errors
    /// EFAULT.
    pub fn zero_memory(&self, address: u64, bytes: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes {
            let at = address.wrapping_add(done);
            let len = piece(at, (bytes - done).min(PAGE_BYTES) as usize);
            let gpa = self.make_ready(at, FaultAccess::Write, Respect::Protection).map_err(|_| Errno::EFAULT)?;
            // SAFETY: as for `write_memory`.
            unsafe { phys::pointer(gpa).write_bytes(0, len) };
            done += len as u64;
        }
        Ok(())
    }

    /// The aligned 32-bit word at an address, as an atomic that is used before anything else can change the mapping.
    fn with_word<R>(
        &self,
        address: u64,
        access: FaultAccess,
        f: impl FnOnce(&core::sync::atomic::AtomicU32) -> R,
    ) -> Result<R> {
        if !address.is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        let gpa = self.make_ready(address, access, Respect::Protection).map_err(|_| Errno::EFAULT)?;
        // SAFETY: aligned, within one mapped page; programs reach it on the same virtual processor, which runs this.
        Ok(f(unsafe { core::sync::atomic::AtomicU32::from_ptr(phys::pointer(gpa).cast()) }))
    }

    /// Reads the 32-bit word at an address (futex(2)).
    ///
    /// # Errors
    /// EINVAL if it is not aligned, EFAULT.
    pub fn load_u32(&self, address: u64) -> Result<u32> {
        self.with_word(address, FaultAccess::Read, |word| word.load(core::sync::atomic::Ordering::SeqCst))
    }

    /// Replaces the 32-bit word at an address by what `new` makes of it, without a thread of the program between. Gives the
    /// old value; `new` may give `None` to leave it.
    ///
    /// # Errors
    /// EINVAL if it is not aligned, EFAULT.
    pub fn update_u32(&self, address: u64, new: impl FnMut(u32) -> Option<u32>) -> Result<u32> {
        use core::sync::atomic::Ordering::SeqCst;
        self.with_word(address, FaultAccess::Write, |word| {
            word.fetch_update(SeqCst, SeqCst, new).unwrap_or_else(|old| old)
        })
    }
}

/// Copies from the current process. The error is the number of bytes copied before one could not be.
#[cfg(not(feature = "hosted"))]
pub(in crate::mm) fn read(address: UserAddr, dst: &mut [u8]) -> core::result::Result<(), usize> {
    let space = crate::task::current().process.try_space().ok_or(0usize)?;
    if !crate::mm::tlb::is_active(space.root()) {
        return space.read_memory(address.0, dst, Respect::Protection);
    }
    space.each_piece(address.0, dst.len(), FaultAccess::Read, |at, gpa, done, len| {
        // Rewritten text is read where its original is.
        let from = if space.text_at(at).is_some() { phys::pointer(gpa) } else { at as *mut u8 };
        // SAFETY: `make_ready` made the page present for CPL 3, where the kernel runs, and flushed what was older;
        // nothing happened since. The program's memory is never a Rust object.
        unsafe { copy(from, dst[done..].as_mut_ptr(), len) };
    })
}

/// Copies into the current process. The error is the number of bytes copied before one could not be.
#[cfg(not(feature = "hosted"))]
pub(in crate::mm) fn write(address: UserAddr, src: &[u8]) -> core::result::Result<(), usize> {
    let space = crate::task::current().process.try_space().ok_or(0usize)?;
    if !crate::mm::tlb::is_active(space.root()) {
        return space.write_memory(address.0, src, Respect::Protection);
    }
    space.each_piece(address.0, src.len(), FaultAccess::Write, |at, _, done, len| {
        // SAFETY: as for `read`; the page is writable.
        unsafe { copy(src[done..].as_ptr(), at as *mut u8, len) };
    })
}

/// The aligned 32-bit word at an address of the current process.
#[cfg(not(feature = "hosted"))]
pub(in crate::mm) fn load_u32(address: UserAddr) -> Result<u32> {
    crate::task::current().process.space().load_u32(address.0)
}

/// Replaces the aligned 32-bit word at an address of the current process; see [`AddressSpace::update_u32`].
#[cfg(not(feature = "hosted"))]
pub(in crate::mm) fn update_u32(address: UserAddr, new: impl FnMut(u32) -> Option<u32>) -> Result<u32> {
    crate::task::current().process.space().update_u32(address.0, new)
}

/// Copies bytes by an instruction that the compiler knows nothing of, so it stays behind the page-table writes before it.
///
/// # Safety
/// Both ranges are mapped and do not overlap.
#[cfg(not(feature = "hosted"))]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise; the direction flag is clear in compiled code.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") len => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
}

#[cfg(not(feature = "hosted"))]
impl AddressSpace {
    /// Calls `copy` with address, place in memory, offset and length of each page's part of a range, once it can be accessed.
    fn each_piece(
        &self,
        address: u64,
        len: usize,
        access: FaultAccess,
        mut copy: impl FnMut(u64, Gpa, usize, usize),
    ) -> core::result::Result<(), usize> {
        let mut done = 0;
        while done < len {
            let at = address.wrapping_add(done as u64);
            let piece = piece(at, len - done);
            let ready = || self.make_ready(at, access, Respect::Protection);
            let gpa = match ready() {
                Err(FaultOutcome::OutOfMemory) if access == FaultAccess::Write => crate::task::oom::lend(ready),
                other => other,
            };
            let gpa = gpa.map_err(|outcome| {
                if outcome == FaultOutcome::OutOfMemory {
                    crate::task::current().short_of_memory.set(true);
                }
                done
            })?;
            copy(at, gpa, done, piece);
            done += piece;
        }
        Ok(())
    }
}

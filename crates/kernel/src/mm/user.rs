//! Access to the current program's memory from system calls.
//!
//! Every function here checks the range against the address space, populates pages as a fault would (copy-on-write
//! included), and answers EFAULT where the program itself would get SIGSEGV or SIGBUS. None of them blocks.

use super::addr::{PAGE_BYTES, USER_END, UserAddr};
use crate::errno::{Errno, Result};
use alloc::vec::Vec;

/// Plain data that may be copied byte for byte between kernel and program.
///
/// # Safety
/// Every bit pattern is a valid value, and there is no padding whose content could leak.
pub unsafe trait Pod: Copy {}

macro_rules! pod {
    ($($ty:ty),* $(,)?) => { $(
        // SAFETY: an integer or an array of integers.
        unsafe impl Pod for $ty {}
    )* };
}
pod!(u8, u16, u32, u64, usize, i8, i16, i32, i64, [u32; 2], [i32; 2], [u64; 2], [i64; 2], [u64; 3], [u64; 4], [i64; 4]);

/// First address behind programs' memory. Hosted, that is this process's own, which ends where the lower half does.
const END: u64 = if cfg!(feature = "hosted") { 1 << 47 } else { USER_END };

/// Whether a range lies where programs' memory can be, mapped or not.
///
/// # Errors
/// EFAULT.
pub fn check_range(addr: UserAddr, len: u64) -> Result<()> {
    if addr.0.checked_add(len).is_some_and(|end| end <= END) { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Copies from the program into `dst`.
///
/// # Errors
/// EFAULT; what was copied before the fault stays in `dst`.
pub fn read_bytes(addr: UserAddr, dst: &mut [u8]) -> Result<()> {
    backend::read(addr, dst).map_err(|_| Errno::EFAULT)
}

/// Copies `src` into the program.
///
/// # Errors
/// EFAULT; bytes before the faulting page have been written.
pub fn write_bytes(addr: UserAddr, src: &[u8]) -> Result<()> {
    backend::write(addr, src).map_err(|_| Errno::EFAULT)
}

/// Reads one value.
///
/// # Errors
/// EFAULT.
pub fn read<T: Pod>(addr: UserAddr) -> Result<T> {
    let mut value = core::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: the zeroed buffer is size_of::<T>() initialised bytes, borrowed for this call only.
    let bytes = unsafe { core::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
    read_bytes(addr, bytes)?;
    // SAFETY: T is Pod: any bytes are a value.
    Ok(unsafe { value.assume_init() })
}

/// Writes one value.
///
/// # Errors
/// EFAULT.
pub fn write<T: Pod>(addr: UserAddr, value: &T) -> Result<()> {
    // SAFETY: T is Pod, so it has no padding; the slice lives as long as `value`.
    let bytes = unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) };
    write_bytes(addr, bytes)
}

/// Reads an aligned 32-bit word (futex(2)) in one piece.
///
/// # Errors
/// EINVAL if it is not aligned, EFAULT.
pub fn load_u32(addr: UserAddr) -> Result<u32> {
    backend::load_u32(addr)
}

/// Replaces an aligned 32-bit word by what `new` makes of it, with no thread of the program between; `None` leaves it.
/// Gives the old value.
///
/// # Errors
/// EINVAL if it is not aligned, EFAULT.
pub fn update_u32(addr: UserAddr, new: impl FnMut(u32) -> Option<u32>) -> Result<u32> {
    backend::update_u32(addr, new)
}

/// Reads a NUL-terminated string of at most `max` bytes (without the NUL).
///
/// # Errors
/// EFAULT, or `too_long` if there is no NUL within `max + 1` bytes.
pub fn read_cstr(addr: UserAddr, max: usize, too_long: Errno) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut at = addr;
    while out.len() <= max {
        // Up to the end of the page at a time, so that a string at the end of a mapping is read whole.
        let chunk = (4096 - at.page_offset()).min(max + 1 - out.len()).min(256);
        let start = out.len();
        out.resize(start + chunk, 0);
        read_bytes(at, &mut out[start..])?;
        if let Some(end) = out[start..].iter().position(|b| *b == 0) {
            out.truncate(start + end);
            return Ok(out);
        }
        at = at.offset(chunk as u64);
    }
    Err(too_long)
}

/// A piece of the program's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Start.
    pub addr: UserAddr,
    /// Length in bytes.
    pub len: usize,
}

/// The most segments of one call (IOV_MAX, readv(2)).
pub const MAX_SEGMENTS: usize = 1024;

/// Reads an array of `struct iovec`. The lengths' sum fits in an isize, as [`Dest::user`] and [`Source::user`] want it.
///
/// # Errors
/// EINVAL for too many segments or too large a sum, EFAULT.
pub fn read_segments(array: UserAddr, count: usize) -> Result<Vec<Segment>> {
    if count > MAX_SEGMENTS {
        return Err(Errno::EINVAL);
    }
    let mut segments = Vec::with_capacity(count);
    let mut total = 0usize;
    for index in 0..count {
        let [base, len] = read::<[u64; 2]>(array.offset(index as u64 * 16))?;
        total = total.checked_add(len as usize).filter(|t| isize::try_from(*t).is_ok()).ok_or(Errno::EINVAL)?;
        segments.push(Segment { addr: UserAddr(base), len: len as usize });
    }
    Ok(segments)
}

enum Place<'a> {
    User(&'a [Segment]),
    Kernel(&'a mut [u8]),
}

/// Where a read puts its bytes: the program's memory (one or several segments) or a kernel buffer. A cursor.
pub struct Dest<'a> {
    place: Place<'a>,
    done: usize,
    total: usize,
}

impl<'a> Dest<'a> {
    /// Into the program's memory. The caller has checked that the lengths' sum fits in an isize (EINVAL otherwise).
    #[must_use]
    pub fn user(segments: &'a [Segment]) -> Self {
        let total = segments.iter().map(|s| s.len).sum();
        Self { place: Place::User(segments), done: 0, total }
    }

    /// Into a kernel buffer.
    #[must_use]
    pub fn kernel(buffer: &'a mut [u8]) -> Self {
        let total = buffer.len();
        Self { place: Place::Kernel(buffer), done: 0, total }
    }

    /// Bytes that still fit.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.total - self.done
    }

    /// Bytes put so far.
    #[must_use]
    pub fn done(&self) -> usize {
        self.done
    }

    /// Puts as much of `src` as fits; returns how many bytes.
    ///
    /// # Errors
    /// EFAULT if nothing could be put because the program's memory is not there; after a partial copy the count is returned.
    pub fn put(&mut self, src: &[u8]) -> Result<usize> {
        let len = src.len().min(self.remaining());
        match &mut self.place {
            Place::Kernel(buffer) => buffer[self.done..self.done + len].copy_from_slice(&src[..len]),
            Place::User(segments) => {
                let copied =
                    each_segment(segments, self.done, len, |addr, at, n| backend::write(addr, &src[at..at + n]));
                self.done += copied?;
                return copied;
            }
        }
        self.done += len;
        Ok(len)
    }

    /// Puts `len` bytes from kernel address `src`, or as many as fit; for memory that somebody else may change meanwhile.
    ///
    /// # Errors
    /// As [`Dest::put`].
    ///
    /// # Safety
    /// `src..src + len` must be mapped and readable.
    pub unsafe fn put_raw(&mut self, src: *const u8, len: usize) -> Result<usize> {
        // SAFETY: readable by the caller's promise. That the bytes may change is harmless because `put` does nothing with
        // them but one copy, whose result nobody takes for the memory's content.
        self.put(unsafe { core::slice::from_raw_parts(src, len) })
    }

    /// Puts `len` zero bytes, or as many as fit.
    ///
    /// # Errors
    /// As [`Dest::put`].
    pub fn put_zeros(&mut self, len: usize) -> Result<usize> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut put = 0;
        while put < len && self.remaining() > 0 {
            let chunk = (len - put).min(ZEROS.len());
            match self.put(&ZEROS[..chunk]) {
                Ok(n) if n < chunk => return Ok(put + n),
                Ok(n) => put += n,
                Err(error) if put == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(put)
    }
}

enum From<'a> {
    User(&'a [Segment]),
    Kernel(&'a [u8]),
}

/// Where a write takes its bytes from. A cursor.
pub struct Source<'a> {
    from: From<'a>,
    done: usize,
    total: usize,
}

impl<'a> Source<'a> {
    /// From the program's memory; see [`Dest::user`].
    #[must_use]
    pub fn user(segments: &'a [Segment]) -> Self {
        let total = segments.iter().map(|s| s.len).sum();
        Self { from: From::User(segments), done: 0, total }
    }

    /// From a kernel buffer.
    #[must_use]
    pub fn kernel(buffer: &'a [u8]) -> Self {
        Self { from: From::Kernel(buffer), done: 0, total: buffer.len() }
    }

    /// Bytes that are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.total - self.done
    }

    /// Bytes taken so far.
    #[must_use]
    pub fn done(&self) -> usize {
        self.done
    }

    /// Bytes up to the next boundary of a segment or a page of the program's memory.
    #[must_use]
    pub fn within_page(&self) -> usize {
        let From::User(segments) = &self.from else { return self.remaining() };
        let mut skip = self.done;
        for segment in *segments {
            if skip < segment.len {
                let address = segment.addr.offset(skip as u64).0;
                return (segment.len - skip).min((PAGE_BYTES - address % PAGE_BYTES) as usize);
            }
            skip -= segment.len;
        }
        0
    }

    /// Takes up to `dst.len()` bytes; returns how many.
    ///
    /// # Errors
    /// EFAULT if nothing could be taken because the program's memory is not there.
    pub fn take(&mut self, dst: &mut [u8]) -> Result<usize> {
        let len = dst.len().min(self.remaining());
        match &self.from {
            From::Kernel(buffer) => dst[..len].copy_from_slice(&buffer[self.done..self.done + len]),
            From::User(segments) => {
                let copied =
                    each_segment(segments, self.done, len, |addr, at, n| backend::read(addr, &mut dst[at..at + n]));
                self.done += copied?;
                return copied;
            }
        }
        self.done += len;
        Ok(len)
    }
}

/// Calls `copy(address, offset from the start, length)` for each piece of `[skip, skip + len)` of the segments.
fn each_segment(
    segments: &[Segment],
    mut skip: usize,
    len: usize,
    mut copy: impl FnMut(UserAddr, usize, usize) -> core::result::Result<(), usize>,
) -> Result<usize> {
    let mut at = 0;
    for segment in segments {
        if skip >= segment.len {
            skip -= segment.len;
            continue;
        }
        if at == len {
            break;
        }
        let n = (segment.len - skip).min(len - at);
        if let Err(copied) = copy(segment.addr.offset(skip as u64), at, n) {
            return if at + copied == 0 { Err(Errno::EFAULT) } else { Ok(at + copied) };
        }
        at += n;
        skip = 0;
    }
    Ok(at)
}

/// Hosted: "programs' memory" is this process's own, so tests pass addresses of their buffers; null faults.
/// The error is the number of bytes copied before the fault.
#[cfg(feature = "hosted")]
mod backend {
    use super::{Errno, UserAddr};
    use core::sync::atomic::AtomicU32;
    use core::sync::atomic::Ordering::SeqCst;

    pub(super) fn read(addr: UserAddr, dst: &mut [u8]) -> Result<(), usize> {
        if addr.0 < 4096 && !dst.is_empty() {
            return Err(0);
        }
        // SAFETY: hosted callers (tests) pass addresses of live buffers of their own.
        unsafe { core::ptr::copy(addr.0 as *const u8, dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    pub(super) fn write(addr: UserAddr, src: &[u8]) -> Result<(), usize> {
        if addr.0 < 4096 && !src.is_empty() {
            return Err(0);
        }
        // SAFETY: as for `read`.
        unsafe { core::ptr::copy(src.as_ptr(), addr.0 as *mut u8, src.len()) };
        Ok(())
    }

    fn word(addr: UserAddr) -> crate::errno::Result<&'static AtomicU32> {
        if !addr.0.is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        if addr.0 < 4096 {
            return Err(Errno::EFAULT);
        }
        // SAFETY: as for `read`; aligned.
        Ok(unsafe { AtomicU32::from_ptr(addr.0 as *mut u32) })
    }

    pub(super) fn load_u32(addr: UserAddr) -> crate::errno::Result<u32> {
        word(addr).map(|word| word.load(SeqCst))
    }

    pub(super) fn update_u32(addr: UserAddr, new: impl FnMut(u32) -> Option<u32>) -> crate::errno::Result<u32> {
        word(addr).map(|word| word.fetch_update(SeqCst, SeqCst, new).unwrap_or_else(|old| old))
    }
}

#[cfg(not(feature = "hosted"))]
use super::space::access as backend;

//! userfaultfd(2): this process hears of pages that are touched before they are there, and provides them.

use rustix::fs::{Mode, OFlags};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use torpor_abi::layout::PAGE_BYTES;

/// From linux/userfaultfd.h.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const UFFD_FEATURE_MINOR_SHMEM: u64 = 1 << 10;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1 << 0;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const UFFDIO_REGISTER_MODE_MINOR: u64 = 1 << 2;
const UFFD_EVENT_PAGEFAULT: u64 = 0x12;
/// Of `struct uffd_msg`, in words: event, flags, address, unused.
const MESSAGE_WORDS: usize = 4;
const MESSAGES: usize = 16;

/// What a registered range is a mapping of, a private one but for [`Of::ArrivingFile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// Nothing: anonymous memory.
    Nothing,
    /// A memory file, whose own pages are then not mapped by themselves.
    MemoryFile,
    /// A memory file, of which pages that it has are mapped by themselves.
    ArrivingFile,
    /// Any file, for [`Userfault::for_single_pages`]: whoever touches a page has that one mapped and none beside it.
    SinglePages,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressRange {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl AddressRange {
    /// Of pages of a mapping that begins at `start`.
    pub(super) fn of_pages(start: u64, pages: &Range<u32>) -> Self {
        let bytes = |count: u32| u64::from(count) * PAGE_BYTES;
        Self { start: start + bytes(pages.start), len: bytes(pages.end - pages.start) }
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Userfault(OwnedFd);

impl Userfault {
    /// Needs /dev/userfaultfd (Linux 6.1), which only root may open unless the host's administrator has it otherwise. To be
    /// called before the process gives up its root directory.
    ///
    /// # Errors
    /// What the host says.
    pub(super) fn open() -> io::Result<Self> {
        Self::with(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM)
    }

    /// One that hears of nothing (Linux 6.7): what it is told of memory is that it may be protected against writes.
    ///
    /// # Errors
    /// As [`Userfault::open`].
    pub(super) fn for_single_pages() -> io::Result<Self> {
        Self::with(UFFD_FEATURE_WP_ASYNC)
    }

    fn with(features: u64) -> io::Result<Self> {
        let device = rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the request takes flags and gives a new descriptor.
        let made = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: nobody else has it yet.
        let new = Self(unsafe { OwnedFd::from_raw_fd(made) });
        // `struct uffdio_api`: version, features, ioctls.
        let mut api = [UFFD_API, features, 0];
        // SAFETY: `api` is as the request wants it.
        unsafe { new.ask(UFFDIO_API, api.as_mut_ptr()) }?;
        Ok(new)
    }

    /// # Safety
    /// `argument` points to what the request takes; what that says of this process's memory is safe.
    unsafe fn ask<T>(&self, request: libc::c_ulong, argument: *mut T) -> io::Result<()> {
        // SAFETY: the caller's promise.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// For poll(2): readable where [`Userfault::touched`] has something to say.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// From now on whoever touches a page of the range that is not there waits until it is copied in.
    ///
    /// # Errors
    /// What ioctl(2) gives.
    pub(super) fn register(&self, range: AddressRange, of: Of) -> io::Result<()> {
        let mode = match of {
            Of::Nothing | Of::ArrivingFile => UFFDIO_REGISTER_MODE_MISSING,
            Of::SinglePages => UFFDIO_REGISTER_MODE_WP,
            Of::MemoryFile => UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
        };
        let mut argument = [range.start, range.len, mode, 0];
        // SAFETY: `struct uffdio_register`. It changes when pages of the range are there, not what is in them.
        unsafe { self.ask(UFFDIO_REGISTER, argument.as_mut_ptr()) }
    }

    /// From now on the range is ordinary memory; whoever waits there goes on.
    ///
    /// # Errors
    /// What ioctl(2) gives.
    pub(super) fn unregister(&self, mut range: AddressRange) -> io::Result<()> {
        // SAFETY: `struct uffdio_range`; as for `register`.
        unsafe { self.ask(UFFDIO_UNREGISTER, &raw mut range) }
    }

    /// Makes whole `pages` those at `address`, where registered memory is and none of these is there yet; whoever waits for
    /// them goes on. Pages that are there stay as they are.
    ///
    /// # Errors
    /// What ioctl(2) gives.
    ///
    /// # Safety
    /// Nothing borrows that memory but atomics.
    pub(super) unsafe fn copy(&self, address: u64, pages: &[u8]) -> io::Result<()> {
        const PAGE: usize = 4096;
        let mut done = 0;
        let mut most = pages.len();
        while done < pages.len() {
            let left = &pages[done..pages.len().min(done + most)];
            // `struct uffdio_copy`: destination, source, length, mode, result.
            let mut argument = [address + done as u64, left.as_ptr() as u64, left.len() as u64, 0, 0];
            // SAFETY: reads `left`; what it writes to is the caller's promise.
            match unsafe { self.ask(UFFDIO_COPY, argument.as_mut_ptr()) } {
                Ok(()) => done += left.len(),
                Err(error) => match error.raw_os_error() {
                    // Interrupted: the result says how far it came, or why it did not come anywhere.
                    Some(libc::EAGAIN) if argument[4].cast_signed() > 0 => done += argument[4] as usize,
                    Some(libc::EAGAIN) if argument[4].cast_signed() != -i64::from(libc::EEXIST) => {}
                    Some(libc::EEXIST | libc::EAGAIN) => {
                        self.wake(AddressRange { start: address + done as u64, len: PAGE as u64 })?;
                        done += PAGE;
                    }
                    // They lie in more than one of the kernel's areas.
                    Some(libc::ENOENT) if most > PAGE => most = PAGE,
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Whoever waits in the range looks anew.
    ///
    /// # Errors
    /// What ioctl(2) gives.
    pub(super) fn wake(&self, mut range: AddressRange) -> io::Result<()> {
        // SAFETY: `struct uffdio_range`; touches no memory.
        unsafe { self.ask(UFFDIO_WAKE, &raw mut range) }
    }

    /// Addresses that somebody waits for, as far as they were not said yet.
    ///
    /// # Errors
    /// What read(2) gives.
    pub(super) fn touched(&self) -> io::Result<Vec<u64>> {
        let mut bytes = [0; MESSAGES * MESSAGE_WORDS * 8];
        let len = match rustix::io::read(&self.0, &mut bytes) {
            Ok(len) => len,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let messages = bytes[..len].as_chunks::<{ MESSAGE_WORDS * 8 }>().0;
        let word = |message: &[u8; MESSAGE_WORDS * 8], at: usize| u64::from_le_bytes(message.as_chunks::<8>().0[at]);
        let faults = messages.iter().filter(|message| word(message, 0) & 0xff == UFFD_EVENT_PAGEFAULT);
        Ok(faults.map(|message| word(message, 2)).collect())
    }
}

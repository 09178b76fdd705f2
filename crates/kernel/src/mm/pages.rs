//! What backs a mapping of an object, and the page cache's currency: [`Page`].

use super::addr::Gpa;
use super::frame::Frame;
use crate::errno::Errno;
use alloc::rc::Rc;

/// A 4 KiB page of an object.
#[derive(Clone)]
pub enum Page {
    /// In a frame of RAM, counted; writable through a shared mapping.
    Frame(Frame),
    /// In the read-only image: shared with every VM; copied before it is written.
    Image(Gpa),
    /// A hole: reads as zeros. A writer asks again with [`Access::Write`].
    Hole,
}

/// What the mapper wants to do with the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look at it (or copy it before writing: private mappings only ever read from their object).
    Read,
    /// Write to the object itself (a shared mapping, or write(2)).
    Write,
}

/// Why there is no such page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageError {
    /// Beyond the end of the object: SIGBUS (mmap(2)).
    BeyondEnd,
    /// No memory or no space: OOM, or SIGBUS for a sparse file.
    NoMemory,
    /// The object can't give it, with the error that read(2) would report.
    Failed(Errno),
}

/// An object whose pages can be mapped: a file's data, shared anonymous memory, a device.
pub trait PageSource {
    /// Page `index` (byte offset / 4096). Bytes beyond the object's end within its last page are zero.
    ///
    /// # Errors
    /// [`PageError`].
    fn page(&self, index: u64, access: Access) -> Result<Page, PageError>;

    /// As many consecutive pages from `index` on as are contiguous in the image, at most `max`: lets a fault map several at
    /// once. The default knows of none.
    fn image_run(&self, index: u64, max: usize) -> Option<(Gpa, usize)> {
        let _ = (index, max);
        None
    }

    /// What identifies the object as long as it lives: two mappings with the same id map the same pages. By default its
    /// address; an object that hands out several sources for the same pages must give them one id.
    fn id(&self) -> usize {
        core::ptr::from_ref(self).cast::<u8>() as usize
    }

    /// How to ask for pages that nobody has touched yet, when a fault brings in more than it must.
    fn access_ahead(&self) -> Access {
        Access::Read
    }

    /// Whether this is /dev/zero: mapping it gives memory of one's own instead (zero(4)).
    fn is_zeros(&self) -> bool {
        false
    }

    /// Whether the object may be mapped shared and writable; asked when that begins.
    ///
    /// # Errors
    /// EPERM where the object is sealed against it (fcntl(2), F_SEAL_WRITE).
    fn check_writable_mapping(&self) -> crate::errno::Result<()> {
        Ok(())
    }

    /// Frees pages of an object that is no file (MADV_REMOVE); they read as zeros afterwards.
    ///
    /// # Errors
    /// EINVAL where the object can't.
    fn remove(&self, first: u64, pages: u64) -> crate::errno::Result<()> {
        let _ = (first, pages);
        Err(Errno::EINVAL)
    }
}

/// Takes `count` pages from `index` on out of every mapping of `source` (private copies stay), so that the next access
/// asks the source again: called by an object after pages of it were replaced or have gone (a first write to a page of the
/// image, a hole punched). May come from within [`PageSource::page`] of the same object.
pub fn invalidate(source: &Rc<dyn PageSource>, index: u64, count: u64) {
    super::space::unmap_object(source.id(), index, index.saturating_add(count), false);
}

/// As [`invalidate`], with private copies of the pages: for an object that ends before page `index` from now on
/// (truncate(2)).
pub fn truncated(source: &Rc<dyn PageSource>, index: u64) {
    super::space::unmap_object(source.id(), index, u64::MAX, true);
}

//! Objects without a file: shared anonymous memory (MAP_SHARED | MAP_ANONYMOUS), and pages that the kernel lays out for
//! programs to read.

use crate::errno::Result;
use crate::mm::addr::Gpa;
use crate::mm::frame::{self, Frame};
use crate::mm::pages::{Access, Page, PageError, PageSource};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

/// Zeroed memory of a fixed size that several processes map. Frames come with the first touch.
pub struct SharedMemory {
    pages: u64,
    frames: RefCell<BTreeMap<u64, Frame>>,
}

impl SharedMemory {
    /// `bytes` is rounded up to pages.
    #[must_use]
    pub fn new(bytes: u64) -> Rc<Self> {
        let pages = bytes.div_ceil(crate::mm::addr::PAGE_BYTES);
        Rc::new(Self { pages, frames: RefCell::default() })
    }

    /// Pages that are there.
    #[must_use]
    pub fn resident_pages(&self) -> u64 {
        self.frames.borrow().len() as u64
    }
}

impl PageSource for SharedMemory {
    fn page(&self, index: u64, _access: Access) -> core::result::Result<Page, PageError> {
        if index >= self.pages {
            return Err(PageError::BeyondEnd);
        }
        let mut frames = self.frames.borrow_mut();
        if let Some(frame) = frames.get(&index) {
            return Ok(Page::Frame(frame.clone()));
        }
        let frame = Frame::zeroed().map_err(|_| PageError::NoMemory)?;
        frames.insert(index, frame.clone());
        frame::count_shared(1);
        Ok(Page::Frame(frame))
    }

    fn access_ahead(&self) -> Access {
        Access::Write
    }

    fn remove(&self, first: u64, pages: u64) -> Result<()> {
        let last = first.saturating_add(pages);
        super::unmap_object(self.id(), first, last, false);
        let mut frames = self.frames.borrow_mut();
        let before = frames.len();
        frames.retain(|index, _| !(first..last).contains(index));
        frame::count_shared(-((before - frames.len()) as i64));
        Ok(())
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        frame::count_shared(-(self.frames.get_mut().len() as i64));
    }
}

/// Pages at fixed places that programs read and execute: the vDSO and the clock page. Not counted as theirs.
pub struct KernelPages(Vec<Gpa>);

impl KernelPages {
    /// The pages in order. They stay where they are for ever.
    #[must_use]
    pub fn new(pages: Vec<Gpa>) -> Rc<Self> {
        Rc::new(Self(pages))
    }
}

impl PageSource for KernelPages {
    fn page(&self, index: u64, _access: Access) -> core::result::Result<Page, PageError> {
        let gpa = usize::try_from(index).ok().and_then(|index| self.0.get(index));
        // Like the image's: foreign memory, copied before it is written.
        gpa.map(|gpa| Page::Image(*gpa)).ok_or(PageError::BeyondEnd)
    }
}

//! Files in mappings.

use super::data::Place;
use super::node::Node;
use crate::errno::Errno;
use crate::fs::erofs::FilePage;
use crate::mm::addr::{Gpa, PAGE_BYTES};
use crate::mm::pages::{Access, Page, PageError, PageSource};
use alloc::rc::Rc;
use linux_raw_sys::general::{F_SEAL_FUTURE_WRITE, F_SEAL_WRITE};

/// A regular file as an object of mappings. There is one per file while it is mapped.
pub(super) struct MappedFile {
    node: Rc<Node>,
}

impl MappedFile {
    /// The object of `node`, which is a regular file.
    pub(super) fn of(node: &Rc<Node>) -> Option<Rc<Self>> {
        let data = node.data().ok()?;
        let known = data.mapping.borrow().upgrade();
        Some(known.unwrap_or_else(|| {
            let mapped = Rc::new(Self { node: Rc::clone(node) });
            *data.mapping.borrow_mut() = Rc::downgrade(&mapped);
            mapped
        }))
    }
}

fn failed(error: Errno) -> PageError {
    match error {
        Errno::ENOSPC | Errno::ENOMEM => PageError::NoMemory,
        error => PageError::Failed(error),
    }
}

impl PageSource for MappedFile {
    fn page(&self, index: u64, access: Access) -> Result<Page, PageError> {
        let data = self.node.data().map_err(failed)?;
        if index >= data.size().div_ceil(PAGE_BYTES) {
            return Err(PageError::BeyondEnd);
        }
        if access == Access::Write {
            let frame = self.node.frame(index, false).map_err(failed)?;
            self.node.modified();
            return Ok(Page::Frame(frame));
        }
        match data.place(index) {
            Place::Frame(frame) => Ok(Page::Frame(frame)),
            Place::Hole => Ok(Page::Hole),
            Place::Image => match self.node.image_page(index).map_err(failed)? {
                FilePage::Mapped { offset_bytes, .. } => Ok(Page::Image(self.gpa(offset_bytes)?)),
                FilePage::Copied => self.node.materialise(index, false).map(Page::Frame).map_err(failed),
                FilePage::Hole | FilePage::BeyondEnd => Ok(Page::Hole),
            },
        }
    }

    fn check_writable_mapping(&self) -> crate::errno::Result<()> {
        let sealed = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
        if self.node.data()?.seals.get() & sealed != 0 { Err(Errno::EPERM) } else { Ok(()) }
    }

    fn image_run(&self, index: u64, max: usize) -> Option<(Gpa, usize)> {
        let data = self.node.data().ok()?;
        if !matches!(data.place(index), Place::Image) {
            return None;
        }
        let FilePage::Mapped { offset_bytes, nr_pages } = self.node.image_page(index).ok()? else { return None };
        let count = nr_pages.min(data.run_end(index) - index).min(max as u64);
        Some((self.gpa(offset_bytes).ok()?, count as usize))
    }
}

impl MappedFile {
    fn gpa(&self, offset_bytes: u64) -> Result<Gpa, PageError> {
        let lower = self.node.tree.lower.as_ref().ok_or(PageError::BeyondEnd)?;
        Ok(lower.gpa(offset_bytes))
    }
}

/// Takes pages `[first, last)` out of all shared mappings of the file; with `copies` (truncation), also private copies.
pub(super) fn invalidate(mapped: &Rc<MappedFile>, first: u64, last: u64, copies: bool) {
    crate::mm::space::unmap_object(mapped.id(), first, last, copies);
}

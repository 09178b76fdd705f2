//! Data of a regular file: which page is where.
//!
//! A page is in a frame of its own, or an explicit hole, or, below `image_bytes`, what the image has, or else a hole.
//! Invariant: `image_bytes` is the image's size of the file or a multiple of the page size, so that a page is the
//! image's wholly or not at all; and it is not above `size`.

use super::node::Node;
use super::tree::image_error;
use crate::errno::{Errno, Result};
use crate::fs::erofs::FilePage;
use crate::mm::addr::PAGE_BYTES;
use crate::mm::frame::Frame;
use crate::mm::pages::PageSource;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Weak;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// The largest file (MAX_LFS_FILESIZE).
pub(super) const MAX_FILE_BYTES: u64 = i64::MAX as u64;

/// Where a page is.
pub(super) enum Place {
    Frame(Frame),
    Image,
    Hole,
}

pub(super) struct Data {
    /// `None`: a hole, over what the image has.
    pages: RefCell<BTreeMap<u64, Option<Frame>>>,
    /// Pages whose frame fallocate(2) has made and nobody has written: holes for SEEK_DATA and SEEK_HOLE.
    reserved: RefCell<BTreeSet<u64>>,
    size: Cell<u64>,
    image_bytes: Cell<u64>,
    frames: Cell<u64>,
    /// Entries of `pages` that hide a page of the image.
    hiding: Cell<u64>,
    /// The object that mappings refer to, while there are any.
    pub(super) mapping: RefCell<Weak<super::pages::MappedFile>>,
    /// Seals of fcntl(2); F_SEAL_SEAL unless the file is a memfd that may be sealed.
    pub(super) seals: Cell<u32>,
}

impl Data {
    pub(super) fn empty() -> Self {
        Self::of_image(0)
    }

    pub(super) fn of_image(size: u64) -> Self {
        Self {
            pages: RefCell::default(),
            reserved: RefCell::default(),
            size: Cell::new(size),
            image_bytes: Cell::new(size),
            frames: Cell::new(0),
            hiding: Cell::new(0),
            mapping: RefCell::new(Weak::new()),
            seals: Cell::new(linux_raw_sys::general::F_SEAL_SEAL),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size.get()
    }

    /// Number of frames.
    pub(super) fn frames(&self) -> u64 {
        self.frames.get()
    }

    /// Pages that hold data, here or in the image.
    pub(super) fn allocated_pages(&self) -> u64 {
        self.frames.get() + self.image_pages() - self.hiding.get()
    }

    fn image_pages(&self) -> u64 {
        self.image_bytes.get().div_ceil(PAGE_BYTES)
    }

    pub(super) fn place(&self, index: u64) -> Place {
        match self.pages.borrow().get(&index) {
            Some(Some(frame)) => Place::Frame(frame.clone()),
            Some(None) => Place::Hole,
            None if index < self.image_pages() => Place::Image,
            None => Place::Hole,
        }
    }

    /// The end of the run of pages from `index` on for which `pages` says nothing and that are on one side of the end
    /// of the image's part.
    pub(super) fn run_end(&self, index: u64) -> u64 {
        let next = self.pages.borrow().range(index..).next().map_or(u64::MAX, |(next, _)| *next);
        let image = self.image_pages();
        if index < image { next.min(image) } else { next }
    }

    /// Puts a frame at a page, or makes a hole of it; the frame that it had.
    fn set(&self, index: u64, page: Option<Frame>) -> Option<Frame> {
        let hides = index < self.image_pages();
        if page.is_some() {
            self.frames.set(self.frames.get() + 1);
        } else {
            self.reserved.borrow_mut().remove(&index);
        }
        let mut pages = self.pages.borrow_mut();
        let old = if page.is_some() || hides { pages.insert(index, page) } else { pages.remove(&index) };
        if old.is_none() && hides {
            self.hiding.set(self.hiding.get() + 1);
        }
        let old = old.flatten();
        if old.is_some() {
            self.frames.set(self.frames.get() - 1);
        }
        old
    }
}

impl Node {
    /// The frame of page `index` for writing, made if there is none: from the image, or zeroed. `whole`: the caller
    /// overwrites all of it, so its content does not matter.
    pub(super) fn frame(&self, index: u64, whole: bool) -> Result<Frame> {
        let data = self.data()?;
        let had_frame = matches!(data.place(index), Place::Frame(_));
        let frame = self.materialise(index, whole)?;
        data.reserved.borrow_mut().remove(&index);
        if !had_frame {
            // What mappings show until now is a page of the image, or the zeros of a hole.
            self.invalidate(index, index + 1, false);
        }
        Ok(frame)
    }

    /// Gives page `index`, a hole, a frame that makes no data of it.
    fn reserve(&self, index: u64) -> Result<()> {
        self.frame(index, false)?;
        self.data()?.reserved.borrow_mut().insert(index);
        Ok(())
    }

    /// As [`Node::frame`], for a page that no mapping shows yet.
    pub(super) fn materialise(&self, index: u64, whole: bool) -> Result<Frame> {
        let data = self.data()?;
        let from_image = match data.place(index) {
            Place::Frame(frame) => return Ok(frame),
            Place::Image => !whole,
            Place::Hole => false,
        };
        self.tree.charge_page()?;
        let frame = match Frame::zeroed() {
            Ok(frame) => frame,
            Err(_) => {
                self.tree.release_pages(1);
                return Err(Errno::ENOSPC);
            }
        };
        if from_image && let Err(error) = self.fill_from_image(index, &frame) {
            self.tree.release_pages(1);
            return Err(error);
        }
        let old = data.set(index, Some(frame.clone()));
        drop(old);
        Ok(frame)
    }

    /// Copies page `index` out of the image; bytes beyond the file's end stay zero.
    fn fill_from_image(&self, index: u64, frame: &Frame) -> Result<()> {
        let (Some(lower), Some(image)) = (&self.tree.lower, &self.image) else { return Ok(()) };
        let mut piece = [0; 512];
        let mut at = 0;
        while at < PAGE_BYTES {
            let n = lower.erofs.read_at(image, index * PAGE_BYTES + at, &mut piece).map_err(image_error)?;
            if n == 0 {
                break;
            }
            frame.write(at as usize, &piece[..n]);
            at += n as u64;
        }
        Ok(())
    }

    /// How the image gives page `index`, which [`Data::place`] said it has.
    pub(super) fn image_page(&self, index: u64) -> Result<FilePage> {
        match (&self.tree.lower, &self.image) {
            (Some(lower), Some(image)) => lower.erofs.page(image, index).map_err(image_error),
            _ => Ok(FilePage::Hole),
        }
    }

    /// Whether there is a shared mapping through which the file could be written.
    pub(super) fn is_mapped_writable(&self) -> bool {
        let mapping = self.data().ok().and_then(|data| data.mapping.borrow().upgrade());
        mapping.is_some_and(|mapping| crate::mm::space::is_mapped_writable(mapping.id()))
    }

    /// Tells mappings that pages `[first, last)` are no longer what they were; `copies`: nor are private copies.
    fn invalidate(&self, first: u64, last: u64, copies: bool) {
        let Ok(data) = self.data() else { return };
        let mapping = data.mapping.borrow().upgrade();
        if let Some(mapping) = mapping {
            super::pages::invalidate(&mapping, first, last, copies);
        }
    }

    /// Changes the size: pages beyond it end, and what is added reads as zeros. Timestamps are the caller's.
    pub(super) fn set_size(&self, size: u64) -> Result<()> {
        let data = self.data()?;
        if size > MAX_FILE_BYTES {
            return Err(Errno::EFBIG);
        }
        let old = data.size();
        if size >= old {
            self.zero_after_end(old)?;
            data.size.set(size);
            return Ok(());
        }
        let first_gone = size.div_ceil(PAGE_BYTES);
        let within = (size % PAGE_BYTES) as usize;
        if within != 0 {
            let last = size / PAGE_BYTES;
            // The rest of the last page may appear again; it has to be zeros then.
            match data.place(last) {
                Place::Hole => {}
                Place::Frame(frame) => zero(&frame, within, PAGE_BYTES as usize),
                Place::Image => zero(&self.frame(last, false)?, within, PAGE_BYTES as usize),
            }
        }
        self.mark_changed();
        data.size.set(size);
        let gone = data.pages.borrow_mut().split_off(&first_gone);
        drop(data.reserved.borrow_mut().split_off(&first_gone));
        let frames = gone.values().filter(|page| page.is_some()).count() as u64;
        data.frames.set(data.frames.get() - frames);
        self.tree.release_pages(frames);
        if data.image_bytes.get() > size {
            // The partial page, if any, is in a frame now.
            data.image_bytes.set(size / PAGE_BYTES * PAGE_BYTES);
        }
        data.hiding.set(data.pages.borrow().range(..data.image_pages()).count() as u64);
        self.invalidate(first_gone, u64::MAX, true);
        drop(gone);
        Ok(())
    }

    /// Zeros what a shared mapping may have written behind the end `size` within its page, before the end moves.
    fn zero_after_end(&self, size: u64) -> Result<()> {
        let data = self.data()?;
        let within = (size % PAGE_BYTES) as usize;
        if within != 0
            && let Place::Frame(frame) = data.place(size / PAGE_BYTES)
        {
            zero(&frame, within, PAGE_BYTES as usize);
        }
        Ok(())
    }

    /// Notes that data was written up to `end`.
    pub(super) fn extend_to(&self, end: u64) -> Result<()> {
        let data = self.data()?;
        if end > data.size() {
            data.size.set(end);
        }
        Ok(())
    }

    /// Makes `[offset, end)` a hole: whole pages are given up, the rest is zeroed.
    pub(super) fn punch(&self, offset: u64, end: u64) -> Result<()> {
        let data = self.data()?;
        let zero_part = |from: u64, to: u64| -> Result<()> {
            let index = from / PAGE_BYTES;
            let range = ((from % PAGE_BYTES) as usize, (to - index * PAGE_BYTES) as usize);
            match data.place(index) {
                Place::Hole => {}
                Place::Frame(frame) => zero(&frame, range.0, range.1),
                Place::Image => zero(&self.frame(index, false)?, range.0, range.1),
            }
            Ok(())
        };
        let (first, last) = (offset.div_ceil(PAGE_BYTES), end / PAGE_BYTES);
        if first > last {
            return zero_part(offset, end);
        }
        if !offset.is_multiple_of(PAGE_BYTES) {
            zero_part(offset, first * PAGE_BYTES)?;
        }
        if !end.is_multiple_of(PAGE_BYTES) {
            zero_part(last * PAGE_BYTES, end)?;
        }
        if first == last {
            return Ok(());
        }
        let in_image = first..last.min(data.image_pages()).max(first);
        let behind: Vec<u64> = data.pages.borrow().range(in_image.end..last).map(|(index, _)| *index).collect();
        self.clear(first, last, in_image.chain(behind));
        Ok(())
    }

    /// Makes holes of pages that are in `[first, last)`.
    fn clear(&self, first: u64, last: u64, pages: impl Iterator<Item = u64>) {
        let Ok(data) = self.data() else { return };
        let freed: Vec<Frame> = pages.filter_map(|index| data.set(index, None)).collect();
        self.tree.release_pages(freed.len() as u64);
        self.invalidate(first, last, false);
        drop(freed);
    }

    /// Allocates frames for pages `[first, last)`, so that writing there needs no more room; none if not all can be had.
    pub(super) fn preallocate(&self, first: u64, last: u64) -> Result<()> {
        let data = self.data()?;
        let there = data.pages.borrow().range(first..last).filter(|(_, page)| page.is_some()).count() as u64;
        if last - first - there > self.tree.free_pages() {
            return Err(Errno::ENOSPC);
        }
        let mut made = Vec::new();
        for index in first..last {
            let got = match data.place(index) {
                Place::Frame(_) => continue,
                Place::Image => self.frame(index, false).map(drop),
                Place::Hole => self.reserve(index).inspect(|()| made.push(index)),
            };
            if let Err(error) = got {
                self.clear(first, last, made.into_iter());
                return Err(error);
            }
        }
        Ok(())
    }

    /// The next offset at or after `offset` that is data (`data`) or a hole; `None` at the end of the file.
    pub(super) fn seek_run(&self, offset: u64, want_data: bool) -> Result<Option<u64>> {
        let data = self.data()?;
        let size = data.size();
        let mut at = offset;
        while at < size {
            let index = at / PAGE_BYTES;
            let (is_data, end) = match data.place(index) {
                Place::Frame(_) => (!data.reserved.borrow().contains(&index), index + 1),
                Place::Hole => (false, data.run_end(index).max(index + 1)),
                Place::Image => match self.image_page(index)? {
                    FilePage::Mapped { nr_pages, .. } => (true, data.run_end(index).min(index + nr_pages)),
                    FilePage::Copied => (true, index + 1),
                    FilePage::Hole | FilePage::BeyondEnd => (false, index + 1),
                },
            };
            if is_data == want_data {
                return Ok(Some(at));
            }
            at = end.saturating_mul(PAGE_BYTES);
        }
        Ok(None)
    }
}

fn zero(frame: &Frame, from: usize, to: usize) {
    const ZEROS: [u8; 512] = [0; 512];
    let mut at = from;
    while at < to {
        let n = (to - at).min(ZEROS.len());
        frame.write(at, &ZEROS[..n]);
        at += n;
    }
}

//! A file of the image, and what a program's text and data are made of.

use super::super::*;
use super::{check, fresh, request};
use crate::mm::addr::UserAddr;
use crate::mm::pages::{Access, Page, PageError, PageSource};
use crate::mm::phys;
use alloc::boxed::Box;
use torpor_abi::layout::IMAGE_GPA;

/// Of the file, which is the whole image.
pub(super) const PAGES: u64 = 64;

struct ImageFile;

impl PageSource for ImageFile {
    fn page(&self, index: u64, _access: Access) -> core::result::Result<Page, PageError> {
        if index < PAGES { Ok(Page::Image(Gpa(IMAGE_GPA + index * PAGE_BYTES))) } else { Err(PageError::BeyondEnd) }
    }

    fn image_run(&self, index: u64, max: usize) -> Option<(Gpa, usize)> {
        let count = PAGES.checked_sub(index)?.min(max as u64);
        Some((Gpa(IMAGE_GPA + index * PAGE_BYTES), count as usize))
    }

    /// Also where it has no bytes of its own, as here.
    fn id(&self) -> usize {
        1
    }
}

/// Makes an image of which `fill` writes the pages, by number.
pub(super) fn make(fill: impl Fn(usize, &mut [u8])) {
    let mut image = vec![0x90; (PAGES * PAGE_BYTES) as usize];
    image.chunks_exact_mut(4096).enumerate().for_each(|(index, page)| fill(index, page));
    phys::map_image(Box::leak(image.into_boxed_slice()));
}

/// Maps the file's start.
pub(super) fn map(space: &AddressSpace, start: u64, bytes: u64, prot: Prot) {
    thread_local!(static FILE: Rc<ImageFile> = Rc::new(ImageFile));
    let source: Rc<dyn PageSource> = FILE.with(Rc::<ImageFile>::clone);
    let backing = Backing::Object(ObjectMapping { source, first_page: 0, label: Label::Name("test") });
    let request = request(Placement::Fixed(start), bytes, prot, AreaFlags::empty(), backing);
    space.map(request, &MemoryLimits::DEFAULT).expect("mapped");
}

/// Faults until all pages of data, with or without text before it, have been read and then written.
fn faults_of_data(text: bool) -> usize {
    const START: u64 = 0x7_0000_0000;
    let space = fresh();
    make(|index, page| page.fill(index as u8));
    if text {
        map(&space, START, PAGES * PAGE_BYTES, Prot::READ | Prot::EXEC);
    }
    let data = START + PAGES * PAGE_BYTES;
    map(&space, data, PAGES * PAGE_BYTES, Prot::READ | Prot::WRITE);
    let touch = |page: u64, access: FaultAccess| {
        let at = data + page * PAGE_BYTES;
        let pte = space.table.borrow().lookup(at);
        if pte.is_some_and(|pte| access == FaultAccess::Read || pte.is_writable()) {
            return 0;
        }
        assert_eq!(space.fault(UserAddr(at), access), FaultOutcome::Resolved);
        1
    };
    let mut faults = 0;
    // Not in order, as programs do it.
    for page in (0..PAGES).map(|page| page * 37 % PAGES) {
        faults += touch(page, FaultAccess::Read) + touch(page, FaultAccess::Write);
        let mut byte = [0];
        space.read(UserAddr(data + page * PAGE_BYTES), &mut byte).expect("readable");
        assert_eq!(byte, [page as u8]);
    }
    check(&space);
    faults
}

#[test]
fn data_of_programs_is_copied_before_it_is_written() {
    assert_eq!(faults_of_data(true), PAGES as usize / 16);
    assert_eq!(faults_of_data(false), 2 * PAGES as usize, "any other file");
}

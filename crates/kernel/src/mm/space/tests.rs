//! Address spaces: what single operations promise; [`model`] checks random sequences of them.

mod image;
mod model;
mod rewritten;

use super::area::{AreaFlags, Backing, Label};
use super::*;
use crate::mm::addr::UserAddr;
use crate::mm::frame::{self, Frame};
use crate::mm::pages::{Access, Page, PageError, PageSource};
use alloc::collections::BTreeMap;

/// First page of the part of the address space that the tests use.
const BASE: u64 = 0x5_5555_5000 & !0x1f_ffff;
/// Its length in pages: three 2 MiB regions.
const PAGES: u64 = 1536;
const RW: Prot = Prot::READ.union(Prot::WRITE);

fn layout() -> Layout {
    Layout { stack_top: USER_END - PAGE_BYTES, mmap_top: 0x7000_0000_0000, program_base: 0x5555_5555_0000, heap_gap: 0 }
}

fn fresh() -> Rc<AddressSpace> {
    frame::reset_hosted(256 << 20, 128 << 20);
    AddressSpace::new(layout()).expect("enough memory")
}

fn request(placement: Placement, bytes: u64, prot: Prot, flags: AreaFlags, backing: Backing) -> MapRequest {
    MapRequest { placement, bytes, prot, flags, backing, populate: false }
}

fn map(space: &AddressSpace, start: u64, bytes: u64, prot: Prot) -> u64 {
    let request = request(Placement::Fixed(start), bytes, prot, AreaFlags::empty(), Backing::Anonymous);
    space.map(request, &MemoryLimits::DEFAULT).expect("mapped")
}

fn address(page: u64) -> u64 {
    BASE + page * PAGE_BYTES
}

/// A file of some pages, each filled with its number, that can be written through shared mappings.
struct TestFile {
    frames: RefCell<BTreeMap<u64, Frame>>,
    pages: Cell<u64>,
}

impl TestFile {
    fn new(pages: u64) -> Rc<Self> {
        let frames = (0..pages).map(|index| {
            let frame = Frame::zeroed().expect("enough memory");
            frame.write(0, &[index as u8 + 1; 4096]);
            (index, frame)
        });
        Rc::new(Self { frames: RefCell::new(frames.collect()), pages: Cell::new(pages) })
    }
}

impl PageSource for TestFile {
    fn page(&self, index: u64, _access: Access) -> core::result::Result<Page, PageError> {
        if index >= self.pages.get() {
            return Err(PageError::BeyondEnd);
        }
        Ok(Page::Frame(self.frames.borrow()[&index].clone()))
    }
}

fn object(file: &Rc<TestFile>, first_page: u64) -> Backing {
    let source: Rc<dyn PageSource> = Rc::<TestFile>::clone(file);
    Backing::Object(ObjectMapping { source, first_page, label: Label::Name("test") })
}

/// What the page tables must agree with.
fn check(space: &AddressSpace) {
    let areas = space.areas.borrow();
    let mut last: Option<&Area> = None;
    for area in areas.iter() {
        assert!(area.start < area.end && area.start % PAGE_BYTES == 0 && area.end % PAGE_BYTES == 0);
        if let Some(last) = last {
            assert!(last.end <= area.start, "areas overlap");
        }
        last = Some(area);
    }
    let mut resident = [0; 3];
    space.table.borrow().visit(0, USER_END, |address, pte| {
        if space.in_islands(address) {
            return;
        }
        let area = areas.find(address).unwrap_or_else(|| panic!("{address:#x} is mapped outside of areas"));
        assert!(address + pte.pages() * PAGE_BYTES <= area.end, "{address:#x} goes beyond its area");
        assert_eq!(pte.is_present(), !area.prot.is_empty(), "{address:#x}");
        if pte.is_writable() {
            assert!(area.prot.contains(Prot::WRITE), "{address:#x} is writable");
            assert!(area.is_shared() || pte.kind() == Kind::Anonymous, "{address:#x} writes to an object");
            assert!(area.is_shared() || pte.is_exclusive(), "{address:#x} writes to somebody else's memory");
        }
        resident[pte.kind() as usize] += pte.pages();
    });
    assert_eq!(resident, [0, 1, 2].map(|kind: usize| space.resident[kind].get()));
}

#[test]
fn sequential_touches_end_in_large_pages() {
    let space = fresh();
    let start = space
        .map(request(Placement::Hint(0), 64 << 20, RW, AreaFlags::empty(), Backing::Anonymous), &MemoryLimits::DEFAULT)
        .expect("mapped");
    assert_eq!(start % (2 << 20), 0);
    let before = space.faults();
    for page in 0..(64 << 20) / PAGE_BYTES {
        space.write(UserAddr(start + page * PAGE_BYTES), &[1]).expect("writable");
    }
    assert!(space.faults() - before < 45, "{} faults", space.faults() - before);
    let area = space.area_at(start).expect("mapped");
    assert_eq!(space.area_report(&area).large, 62 << 20);
    check(&space);
    space.unmap(start, 64 << 20).expect("unmapped");
    assert_eq!(crate::mm::paging::tables_in_use(), 1);
}

/// As malloc(3) does it: at each turn it is trimmed to a little more than before.
#[test]
fn a_heap_that_grows_and_shrinks_takes_little_more_than_it_has() {
    const TURN: u64 = 40;
    let space = fresh();
    for kept in 0..800 {
        map(&space, address(kept), TURN * PAGE_BYTES, RW);
        for page in kept..kept + TURN {
            space.write(UserAddr(address(page)), &[1]).expect("writable");
        }
        space.unmap(address(kept + 1), (TURN - 1) * PAGE_BYTES).expect("unmapped");
    }
    let mut free = 0;
    frame::each_free_dirty(|_, bytes| free += bytes);
    assert!(free <= 2 * TURN * PAGE_BYTES, "{free} bytes were taken and are of no use");
    check(&space);
}

#[test]
fn memory_that_was_freed_comes_back_as_zeros() {
    let space = fresh();
    for round in 0..3 {
        map(&space, BASE, 8 << 20, RW);
        for page in 0..2048 {
            let mut byte = [7];
            space.read(UserAddr(address(page)), &mut byte).expect("readable");
            assert_eq!(byte[0], 0, "round {round} page {page}");
            space.write(UserAddr(address(page)), &[0xaa; 4096]).expect("writable");
        }
        space.unmap(BASE, 8 << 20).expect("unmapped");
    }
}

#[test]
fn the_limit_is_an_out_of_memory_fault_and_not_more() {
    frame::reset_hosted(128 << 20, 16 << 20);
    let space = AddressSpace::new(layout()).expect("enough memory");
    let request = request(Placement::Fixed(BASE), 64 << 20, RW, AreaFlags::NORESERVE, Backing::Anonymous);
    space.map(request, &MemoryLimits::DEFAULT).expect("not promised");
    let mut touched = 0;
    while space.fault(UserAddr(BASE + touched), FaultAccess::Write) == FaultOutcome::Resolved {
        touched += PAGE_BYTES;
    }
    assert_eq!(space.fault(UserAddr(BASE + touched), FaultAccess::Write), FaultOutcome::OutOfMemory);
    assert!(touched > 15 << 20, "{touched} bytes of 16 MiB could be used");
    check(&space);
    space.unmap(BASE, 64 << 20).expect("unmapped");
    assert!(frame::usage().used_bytes <= 2 * PAGE_BYTES);
}

#[test]
fn terabytes_can_be_reserved_without_tables() {
    let space = fresh();
    let flags = AreaFlags::NORESERVE;
    let request = request(Placement::Hint(0), 8 << 40, Prot::empty(), flags, Backing::Anonymous);
    let start = space.map(request, &MemoryLimits::DEFAULT).expect("reserved");
    space.protect(start + (1 << 40), 1 << 20, RW, &MemoryLimits::DEFAULT).expect("a piece of it");
    space.write(UserAddr(start + (1 << 40)), b"x").expect("writable");
    assert_eq!(space.write(UserAddr(start), b"x"), Err(Errno::EFAULT));
    assert!(crate::mm::paging::tables_in_use() <= 4);
    space.unmap(start, 8 << 40).expect("unmapped");
    assert_eq!(crate::mm::paging::tables_in_use(), 1);
}

#[test]
fn stacks_grow_down_to_their_limit_and_keep_a_gap() {
    let space = fresh();
    let top = layout().stack_top;
    let start = top - (128 << 10);
    let place = Placement::Fixed(start);
    space
        .map(request(place, 128 << 10, RW, AreaFlags::GROWSDOWN, Backing::Anonymous), &MemoryLimits::DEFAULT)
        .expect("mapped");
    assert_eq!(space.fault(UserAddr(top - (4 << 20)), FaultAccess::Write), FaultOutcome::Resolved);
    assert_eq!(space.fault(UserAddr(top - (9 << 20)), FaultAccess::Write), FaultOutcome::Unmapped);
    assert_eq!(space.special_name(&space.areas()[0]), Some("[stack]"));
    map(&space, top - (6 << 20), PAGE_BYTES, RW);
    let gap = UserAddr(top - (6 << 20) + 2 * PAGE_BYTES);
    assert_eq!(space.fault(gap, FaultAccess::Write), FaultOutcome::Unmapped);
    check(&space);
}

#[test]
fn truncated_pages_go_from_all_mappings_and_then_fault() {
    let space = fresh();
    let file = TestFile::new(8);
    let flags = AreaFlags::SHARED;
    let start = space
        .map(request(Placement::Hint(0), 8 * PAGE_BYTES, RW, flags, object(&file, 0)), &MemoryLimits::DEFAULT)
        .expect("mapped");
    let private = space
        .map(
            request(Placement::Hint(0), 8 * PAGE_BYTES, RW, AreaFlags::empty(), object(&file, 0)),
            &MemoryLimits::DEFAULT,
        )
        .expect("mapped");
    let child = space.fork().expect("enough memory");
    for space in [&space, &child] {
        space.write(UserAddr(start + 5 * PAGE_BYTES), b"x").expect("writable");
        space.write(UserAddr(private + 5 * PAGE_BYTES), b"y").expect("writable");
    }
    file.pages.set(4);
    let source: Rc<dyn PageSource> = Rc::<TestFile>::clone(&file);
    crate::mm::pages::truncated(&source, 4);
    for space in [&space, &child] {
        for base in [start, private] {
            assert_eq!(space.fault(UserAddr(base + 5 * PAGE_BYTES), FaultAccess::Read), FaultOutcome::BeyondEnd);
            assert_eq!(space.fault(UserAddr(base + 3 * PAGE_BYTES), FaultAccess::Read), FaultOutcome::Resolved);
        }
        check(space);
    }
    assert!(is_mapped_writable(source.id()));
}

#[test]
fn forked_memory_is_copied_once_and_taken_back() {
    let space = fresh();
    map(&space, BASE, 4 << 20, RW);
    for page in 0..1024 {
        space.write(UserAddr(address(page)), &[page as u8]).expect("writable");
    }
    let used = frame::usage().used_bytes;
    let child = space.fork().expect("enough memory");
    assert!(frame::usage().used_bytes - used < 64 << 10, "a fork copies no memory");
    child.write(UserAddr(address(600)), b"c").expect("writable");
    let mut byte = [0];
    space.read(UserAddr(address(600)), &mut byte).expect("readable");
    assert_eq!(byte[0], 600u64 as u8);
    drop(child);
    let used = frame::usage().used_bytes;
    for page in 0..1024 {
        space.write(UserAddr(address(page)), b"p").expect("writable");
    }
    assert_eq!(frame::usage().used_bytes, used, "nothing is copied once the child is gone");
    check(&space);
}

#[test]
fn mremap_grows_in_place_or_moves_and_keeps_large_pages() {
    let space = fresh();
    let limits = MemoryLimits::DEFAULT;
    map(&space, BASE, 4 << 20, RW);
    for page in 0..1024 {
        space.write(UserAddr(address(page)), &[page as u8]).expect("writable");
    }
    assert_eq!(space.remap(BASE, 4 << 20, 5 << 20, Move::Never, false, &limits), Ok(BASE));
    map(&space, BASE + (5 << 20), PAGE_BYTES, Prot::READ);
    assert_eq!(space.remap(BASE, 5 << 20, 6 << 20, Move::Never, false, &limits), Err(Errno::ENOMEM));
    let large = space.area_report(&space.area_at(BASE).expect("mapped")).large;
    assert!(large >= 2 << 20);
    let new = space.remap(BASE, 5 << 20, 6 << 20, Move::May, false, &limits).expect("moved");
    assert!(space.area_at(BASE).is_none());
    let area = space.area_at(new).expect("moved");
    assert_eq!((area.len(), space.area_report(&area).large), (6 << 20, large));
    let byte = |address: u64| {
        let mut byte = [0];
        space.read(UserAddr(address), &mut byte).map(|()| byte[0])
    };
    assert_eq!(byte(new + 700 * PAGE_BYTES), Ok(700u64 as u8));
    // An odd distance: large pages become small ones.
    let odd = BASE + (64 << 20) + PAGE_BYTES;
    assert_eq!(space.remap(new, 6 << 20, 6 << 20, Move::To(odd), true, &limits), Ok(odd));
    assert_eq!(byte(odd + 700 * PAGE_BYTES), Ok(700u64 as u8));
    assert_eq!(byte(new + 700 * PAGE_BYTES), Ok(0), "MREMAP_DONTUNMAP leaves it empty");
    assert_eq!(space.remap(odd, 6 << 20, 1 << 20, Move::May, false, &limits), Ok(odd));
    assert_eq!(space.area_at(odd).expect("mapped").len(), 1 << 20);
    assert_eq!(space.remap(odd, 0, 1 << 20, Move::May, false, &limits), Err(Errno::EINVAL), "private");
    assert_eq!(space.remap(odd, 2 << 20, 3 << 20, Move::May, false, &limits), Err(Errno::EFAULT));
    assert_eq!(space.remap(odd, 8192, 8192, Move::To(odd + 4096), false, &limits), Err(Errno::EINVAL), "overlap");
    check(&space);
}

#[test]
fn advice_on_forks_is_followed() {
    use linux_raw_sys::general as linux;
    let space = fresh();
    map(&space, BASE, 3 * PAGE_BYTES, RW);
    for page in 0..3 {
        space.write(UserAddr(address(page)), b"p").expect("writable");
    }
    space.advise(BASE, PAGE_BYTES, linux::MADV_DONTFORK).expect("advised");
    space.advise(address(1), PAGE_BYTES, linux::MADV_WIPEONFORK).expect("advised");
    let child = space.fork().expect("enough memory");
    let byte = |page: u64| {
        let mut byte = [9];
        child.read(UserAddr(address(page)), &mut byte).map(|()| byte[0])
    };
    assert_eq!((byte(0), byte(1), byte(2)), (Err(Errno::EFAULT), Ok(0), Ok(b'p')));
    assert_eq!(space.areas().len(), 3);
    space.advise(BASE, PAGE_BYTES, linux::MADV_DOFORK).expect("advised");
    space.advise(address(1), PAGE_BYTES, linux::MADV_KEEPONFORK).expect("advised");
    assert_eq!(space.areas().len(), 1, "alike again, so one again");
}

#[test]
fn a_few_discarded_pages_are_zeroed_where_they_are_unless_they_are_shared() {
    use linux_raw_sys::general as linux;
    let space = fresh();
    map(&space, BASE, 8 * PAGE_BYTES, RW);
    let fill = |space: &AddressSpace| (0..8).for_each(|p| space.write(UserAddr(address(p)), b"p").expect("writable"));
    let bytes = |space: &AddressSpace| {
        let byte = |page| {
            let mut byte = [9];
            space.read(UserAddr(address(page)), &mut byte).map(|()| byte[0])
        };
        [0, 1, 2, 3, 4].map(|page| byte(page).expect("readable"))
    };
    fill(&space);
    let used = frame::usage().used_bytes;
    space.advise(address(1), 2 * PAGE_BYTES, linux::MADV_DONTNEED).expect("advised");
    assert_eq!((bytes(&space), frame::usage().used_bytes), (*b"p\0\0pp", used));
    fill(&space);
    let child = space.fork().expect("enough memory");
    child.advise(address(3), PAGE_BYTES, linux::MADV_DONTNEED).expect("advised");
    assert_eq!((bytes(&child), bytes(&space)), (*b"ppp\0p", *b"ppppp"));
    drop(child);
    let resident = frame::usage().used_bytes;
    space.advise(BASE, 5 * PAGE_BYTES, linux::MADV_DONTNEED).expect("advised");
    assert!(frame::usage().used_bytes < resident, "more are given back");
    assert_eq!(bytes(&space), [0; 5]);
    check(&space);
}

#[test]
fn programs_without_memory_for_tables_get_enomem() {
    frame::reset_hosted(64 << 20, 16 << 20);
    let space = AddressSpace::new(layout()).expect("enough memory");
    let mut at = 1 << 32;
    // One page in each 2 MiB: a table of 4 KiB for each.
    let outcome = loop {
        map(&space, at, PAGE_BYTES, RW);
        let outcome = space.fault(UserAddr(at), FaultAccess::Write);
        if outcome != FaultOutcome::Resolved {
            break outcome;
        }
        at += 2 << 20;
    };
    assert_eq!(outcome, FaultOutcome::OutOfMemory);
    assert!(space.fork().is_err());
    check(&space);
    space.clear();
    assert_eq!(crate::mm::paging::tables_in_use(), 1);
}

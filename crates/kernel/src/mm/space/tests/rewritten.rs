//! Rewritten text: what the program runs, and what everybody sees.

use super::super::*;
use super::image::{self, PAGES};
use super::{check, fresh};
use crate::arch::regs::UserRegs;
use crate::mm::addr::UserAddr;
use crate::mm::frame;
use crate::mm::phys;
use crate::rewrite;
use crate::rewrite::shape::{Moved, Refusal, Shape};

const TEXT: u64 = 0x7_0000_0000;
/// Where islands jump to.
const ENTRY: u64 = 0x7ff0_1234_5678;
/// Of the `syscall` instruction, in every page.
const SITE: u64 = 0x120;

/// Page n calls with number n + 1.
fn make_image() {
    image::make(|index, page| {
        page[SITE as usize - 5..SITE as usize + 2].copy_from_slice(&[0xb8, index as u8 + 1, 0, 0, 0, 0x0f, 0x05]);
    });
}

fn map_text(space: &AddressSpace, start: u64) {
    image::map(space, start, PAGES * PAGE_BYTES, Prot::READ | Prot::EXEC);
}

fn site(page: u64) -> u64 {
    TEXT + page * PAGE_BYTES + SITE
}

fn rewrite(space: &AddressSpace, page: u64) -> core::result::Result<(), Refusal> {
    assert_eq!(space.fault(UserAddr(site(page)), FaultAccess::Execute), FaultOutcome::Resolved);
    let mut regs = UserRegs::start(site(page), 0);
    regs.rax = page + 1;
    space.rewrite(site(page), &regs, ENTRY, |_, _, _| true)
}

/// The bytes that the processor would run.
fn loaded(space: &AddressSpace, address: u64, len: usize) -> Vec<u8> {
    let pte = space.table.borrow().lookup(address & !(PAGE_BYTES - 1)).expect("mapped");
    let from = phys::pointer(pte.gpa()).wrapping_add((address % PAGE_BYTES) as usize);
    // SAFETY: within one page that is mapped.
    unsafe { core::slice::from_raw_parts(from, len) }.to_vec()
}

/// The address behind a displacement of 32 bits at `address`.
fn target(space: &AddressSpace, address: u64) -> u64 {
    let bytes = loaded(space, address, 4).try_into().expect("four bytes");
    (address + 4).wrapping_add_signed(i64::from(i32::from_le_bytes(bytes)))
}

/// Follows the site of a page to where its island goes.
fn assert_rewritten(space: &AddressSpace, page: u64) -> u64 {
    assert_eq!(loaded(space, site(page) - 5, 1), [0xe9]);
    assert_eq!(loaded(space, site(page), 2), [0x0f, 0x05]);
    let island = target(space, site(page) - 4);
    assert_eq!(loaded(space, island, 5), [0xb8, page as u8 + 1, 0, 0, 0]);
    assert_eq!(loaded(space, island + 5, 3), [0x48, 0x8d, 0x0d]);
    assert_eq!(target(space, island + 8), site(page) + 2);
    assert_eq!(loaded(space, island + 12, 2), [0xff, 0x25]);
    assert_eq!(loaded(space, target(space, island + 14), 8), ENTRY.to_le_bytes());
    island
}

fn assert_original(space: &AddressSpace, page: u64) {
    let mut seen = [0; 7];
    space.read(UserAddr(site(page) - 5), &mut seen).expect("readable");
    assert_eq!(seen, [0xb8, page as u8 + 1, 0, 0, 0, 0x0f, 0x05]);
}

fn start() -> Rc<AddressSpace> {
    let space = fresh();
    make_image();
    map_text(&space, TEXT);
    space
}

#[test]
fn sites_jump_to_islands_and_are_seen_as_they_were() {
    let space = start();
    for page in 0..8 {
        assert_eq!(rewrite(&space, page), Ok(()));
        let island = assert_rewritten(&space, page);
        assert_original(&space, page);
        let moved = Moved::Immediate { register: 0, value: page as u32 + 1 };
        let (address, pending) = space.site_of(island).expect("an island");
        assert_eq!((address, pending.map(|shape| shape.moved)), (site(page), Some(moved)));
        assert_eq!(space.site_of(island + 5), Some((site(page), None)));
        assert_eq!(space.site_of(site(page)), None);
    }
    check(&space);
    let mut regs = UserRegs::start(assert_rewritten(&space, 3), 0);
    rewrite::leave_island(&space, &mut regs);
    assert_eq!((regs.rip, regs.rax), (site(3), 4));
}

/// A thread may be stopped before, between and behind the instructions that an island has from the site.
#[test]
fn an_instruction_between_is_done_once() {
    let space = fresh();
    image::make(|index, page| {
        let code = [0xb8, index as u8 + 1, 0, 0, 0, 0x40, 0x80, 0xf6, 0x81, 0x0f, 0x05];
        page[SITE as usize - 9..SITE as usize + 2].copy_from_slice(&code);
    });
    map_text(&space, TEXT);
    assert_eq!(rewrite(&space, 2), Ok(()));
    assert_eq!(loaded(&space, site(2) - 9, 1), [0xe9]);
    assert_eq!(loaded(&space, site(2) - 4, 6), [0x40, 0x80, 0xf6, 0x81, 0x0f, 0x05]);
    let island = target(&space, site(2) - 8);
    assert_eq!(loaded(&space, island, 9), [0xb8, 3, 0, 0, 0, 0x40, 0x80, 0xf6, 0x81]);
    assert_eq!(target(&space, island + 12), site(2) + 2);
    for (at, rip, rax) in [(0, site(2) - 4, 3), (5, site(2) - 4, 9), (9, site(2), 9), (16, site(2), 9)] {
        let mut regs = UserRegs { rax: 9, ..UserRegs::start(island + at, 0) };
        rewrite::leave_island(&space, &mut regs);
        assert_eq!((regs.rip, regs.rax), (rip, rax), "{at}");
    }
    check(&space);
}

#[test]
fn other_spaces_get_the_copies() {
    let first = start();
    assert_eq!(rewrite(&first, 2), Ok(()));
    let child = first.fork().expect("enough memory");
    assert_rewritten(&child, 2);
    drop(first);
    let second = AddressSpace::new(child.layout()).expect("enough memory");
    map_text(&second, TEXT);
    assert_eq!(second.fault(UserAddr(site(0)), FaultAccess::Execute), FaultOutcome::Resolved);
    assert_rewritten(&second, 2);
    // A site of the same page: all have it at once.
    assert_eq!(rewrite(&second, 5), Ok(()));
    assert_rewritten(&second, 5);
    for space in [child, second] {
        check(&space);
        space.unmap(TEXT, PAGES * PAGE_BYTES).expect("unmapped");
        check(&space);
    }
}

#[test]
fn text_that_may_be_written_is_the_programs_own() {
    let space = start();
    assert_eq!(rewrite(&space, 1), Ok(()));
    let own = TEXT + PAGE_BYTES;
    let all = Prot::READ | Prot::WRITE | Prot::EXEC;
    space.protect(own, PAGE_BYTES, all, &MemoryLimits::DEFAULT).expect("protected");
    space.write(UserAddr(site(1) + 2), &[0xc3]).expect("writable");
    assert_eq!(loaded(&space, site(1) - 5, 8), [0xb8, 2, 0, 0, 0, 0x0f, 0x05, 0xc3]);
    let regs = UserRegs { rax: 2, ..UserRegs::start(site(1), 0) };
    assert_eq!(space.rewrite(site(1), &regs, ENTRY, |_, _, _| true), Err(Refusal::NotImage));
    space.protect(own, PAGE_BYTES, Prot::READ | Prot::EXEC, &MemoryLimits::DEFAULT).expect("protected");
    assert_eq!(space.rewrite(site(1), &regs, ENTRY, |_, _, _| true), Err(Refusal::NotImage), "a page of its own");
    assert_original(&space, 1);
    check(&space);
}

#[test]
fn a_debuggers_write_changes_the_originals_copy() {
    let space = start();
    assert_eq!(rewrite(&space, 1), Ok(()));
    space.write_memory(site(1) + 2, &[0xcc], Respect::Nothing).expect("private memory");
    assert_eq!(loaded(&space, site(1) - 5, 8), [0xb8, 2, 0, 0, 0, 0x0f, 0x05, 0xcc]);
    check(&space);
}

/// With something mapped where the islands of `space` are by `map`.
fn assert_islands_yield(space: &AddressSpace, map: impl FnOnce(u64)) {
    assert_eq!(rewrite(space, 0), Ok(()));
    let island = assert_rewritten(space, 0);
    map(island & !(PAGE_BYTES - 1));
    assert_eq!(space.fault(UserAddr(site(0)), FaultAccess::Execute), FaultOutcome::Resolved);
    assert_eq!(loaded(space, site(0) - 5, 5), [0xb8, 1, 0, 0, 0]);
    assert_eq!(space.site_of(island), None);
    check(space);
    assert_eq!(rewrite(space, 0), Err(Refusal::NoRoom), "at the same distance in all spaces");
}

#[test]
fn islands_yield_to_new_mappings() {
    let space = start();
    assert_islands_yield(&space, |island| {
        super::map(&space, island, PAGE_BYTES, Prot::READ);
    });
}

#[test]
fn islands_yield_to_moved_mappings() {
    let space = start();
    let other = super::map(&space, TEXT - (1 << 30), PAGE_BYTES, Prot::READ);
    assert_islands_yield(&space, |island| {
        let limits = MemoryLimits::DEFAULT;
        space.remap(other, PAGE_BYTES, PAGE_BYTES, Move::To(island), false, &limits).expect("moved");
    });
}

#[test]
fn moved_text_is_the_images() {
    let space = start();
    assert_eq!(rewrite(&space, 4), Ok(()));
    let to = TEXT + (8 << 30);
    let bytes = PAGES * PAGE_BYTES;
    space.remap(TEXT, bytes, bytes, Move::To(to), false, &MemoryLimits::DEFAULT).expect("moved");
    assert_eq!(space.fault(UserAddr(to + 4 * PAGE_BYTES), FaultAccess::Read), FaultOutcome::Resolved);
    check(&space);
    // It has islands at its new place, as if it were mapped there.
    let jump = to + 4 * PAGE_BYTES + SITE - 4;
    assert_eq!(loaded(&space, target(&space, jump), 5), [0xb8, 5, 0, 0, 0]);
}

/// As a library that is loaded and unloaded again and again, never at the same address.
#[test]
fn islands_of_text_that_is_gone_go() {
    let space = start();
    assert_eq!(rewrite(&space, 0), Ok(()));
    let first = assert_rewritten(&space, 0);
    for round in 1..40 {
        let (from, to) = (TEXT + (round - 1) * (1 << 24), TEXT + round * (1 << 24));
        space.unmap(from, PAGES * PAGE_BYTES).expect("unmapped");
        map_text(&space, to);
        assert_eq!(space.fault(UserAddr(to + SITE), FaultAccess::Execute), FaultOutcome::Resolved);
        let island = target(&space, to + SITE - 4);
        assert_eq!(island.wrapping_sub(to), first.wrapping_sub(TEXT), "at the same distance");
        assert_eq!(space.site_of(island - (1 << 24)), None, "the last ones are not kept");
        assert_eq!(space.table.borrow().lookup((island - (1 << 24)) & !(PAGE_BYTES - 1)), None);
        check(&space);
    }
}

#[test]
fn a_thread_inside_the_bytes_keeps_them() {
    let space = start();
    assert_eq!(space.fault(UserAddr(site(0)), FaultAccess::Execute), FaultOutcome::Resolved);
    let regs = UserRegs { rax: 1, ..UserRegs::start(site(0), 0) };
    let inside = |text: rewrite::text::Id, offset: u64, shape: Shape| {
        assert!(text.is_inside(offset, shape, SITE - 1) && text.is_inside(offset, shape, SITE - 4));
        assert!(!text.is_inside(offset, shape, SITE - 5) && !text.is_inside(offset, shape, SITE));
        false
    };
    assert_eq!(space.rewrite(site(0), &regs, ENTRY, inside), Err(Refusal::InUse));
    assert_original(&space, 0);
    assert_eq!(loaded(&space, site(0) - 5, 1), [0xb8]);
}

#[test]
fn no_memory_leaves_the_text() {
    let space = start();
    assert_eq!(space.fault(UserAddr(site(0)), FaultAccess::Execute), FaultOutcome::Resolved);
    let taken: Vec<_> = core::iter::from_fn(|| frame::Frame::zeroed().ok()).collect();
    assert_eq!(rewrite(&space, 0), Err(Refusal::NoRoom));
    drop(taken);
    assert_eq!(loaded(&space, site(0) - 5, 1), [0xb8]);
    assert_eq!(rewrite(&space, 0), Ok(()));
    check(&space);
}

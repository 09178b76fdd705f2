//! Sites as compilers make them, and bytes that only look like one.

use super::*;
use crate::mm::addr::PAGE_BYTES;
use proptest::prelude::*;

const AT: usize = 0x200;

fn page(before: &[u8]) -> Bytes {
    let mut page = [0xcc; PAGE_BYTES as usize];
    page[AT - before.len()..AT].copy_from_slice(before);
    page[AT..AT + 2].copy_from_slice(&SYSCALL);
    page
}

fn regs(set: impl FnOnce(&mut UserRegs)) -> UserRegs {
    let mut regs = UserRegs::start(0, 0);
    set(&mut regs);
    regs
}

fn shape(page: &Bytes, set: impl FnOnce(&mut UserRegs)) -> Result<Shape, Refusal> {
    of(page, page, AT, &regs(set), |_| None)
}

#[test]
fn a_number_in_eax() {
    let page = page(&[0xb8, 39, 0, 0, 0]);
    let expected = Shape::Immediate { register: 0, value: 39 };
    assert_eq!(shape(&page, |r| r.rax = 39), Ok(expected));
    assert_eq!(shape(&page, |r| r.rax = 40), Err(Refusal::OtherShape), "another number: jumped to");
    let mut copy = page;
    expected.apply(&mut copy, AT, -2);
    assert_eq!(copy[AT - 5..AT + 2], [0xe9, 0xfe, 0xff, 0xff, 0xff, 0x0f, 0x05]);
    assert_eq!(expected.instruction().0[..5], [0xb8, 39, 0, 0, 0]);
}

#[test]
fn the_way_back_from_a_signal_handler_stays() {
    assert_eq!(shape(&page(&[0xb8, 15, 0, 0, 0]), |r| r.rax = 15), Err(Refusal::OtherShape));
}

#[test]
fn other_registers_by_their_value() {
    let page_edx = page(&[0x00, 0xba, 1, 0, 0, 0]);
    assert_eq!(shape(&page_edx, |r| r.rdx = 1), Ok(Shape::Immediate { register: 2, value: 1 }));
    let r8 = page(&[0x41, 0xb8, 9, 0, 0, 0]);
    let expected = Shape::Immediate { register: 8, value: 9 };
    assert_eq!(shape(&r8, |r| r.r8 = 9), Ok(expected));
    assert_eq!(expected.instruction(), ([0x41, 0xb8, 9, 0, 0, 0], 6));
    assert_eq!(shape(&r8, |r| r.rax = 9), Err(Refusal::OtherShape), "a jump behind the load of r8");
    assert_eq!(shape(&r8, |r| (r.rax, r.r8) = (9, 9)), Err(Refusal::OtherShape), "either could be meant");
    // The island needs rcx, and nobody loads rsp so.
    assert_eq!(shape(&page(&[0x00, 0xb9, 1, 0, 0, 0]), |r| r.rcx = 1), Err(Refusal::OtherShape));
    assert_eq!(shape(&page(&[0x00, 0xbc, 1, 0, 0, 0]), |r| r.rsp = 1), Err(Refusal::OtherShape));
}

#[test]
fn stores_with_a_displacement_like_a_load() {
    // movl $0, -72(%rsp); movq $0, -72(%rsp); movl $0, -72(%rsi); cmpl $0, -72(%rdx).
    for store in [&[0xc7, 0x44, 0x24][..], &[0x48, 0xc7, 0x44, 0x24], &[0xc7, 0x46], &[0x81, 0x7a]] {
        let page = page(&[store, &[0xb8, 0, 0, 0, 0]].concat());
        assert_eq!(shape(&page, |r| r.rax = 0), Err(Refusal::OtherShape), "{store:x?}");
    }
    // mov %rax, %rdi and xor %esi, %esi before a load are none.
    for before in [&[0x48, 0x89, 0xc7][..], &[0x48, 0x89, 0xc7, 0x31, 0xf6]] {
        let page = page(&[before, &[0xb8, 3, 0, 0, 0]].concat());
        assert_eq!(shape(&page, |r| r.rax = 3), Ok(Shape::Immediate { register: 0, value: 3 }), "{before:x?}");
    }
}

#[test]
fn ends_of_other_instructions() {
    // lea 39(%rax), %edi; mov $39, %ax and two more bytes; popcnt.
    for before in [0x8d, 0x66, 0x0f] {
        assert_eq!(shape(&page(&[before, 0xb8, 39, 0, 0, 0]), |r| r.rax = 39), Err(Refusal::OtherShape));
    }
    // A quadword is not what a 32-bit immediate gives.
    assert_eq!(shape(&page(&[0, 0xb8, 39, 0, 0, 0]), |r| r.rax = 1 << 32 | 39), Err(Refusal::OtherShape));
}

#[test]
fn reading_jumps_by_a_nop() {
    let mut text = page(&[0x31, 0xc0]);
    assert_eq!(shape(&text, |r| r.rax = 0), Err(Refusal::NoNop));
    for nop in [AT - 128 - HOP, AT + 127 - HOP, AT + 40] {
        let mut near = text;
        near[nop..nop + 8].copy_from_slice(&NOP);
        let expected = Shape::Zero { hop: nop + HOP };
        assert_eq!(shape(&near, |r| r.rax = 0), Ok(expected));
        assert_eq!(shape(&near, |r| r.rax = 1), Err(Refusal::OtherShape));
        let mut copy = near;
        expected.apply(&mut copy, AT, 0x1234_5678);
        assert_eq!(copy[nop..nop + 8], [0x0f, 0x1f, 0x84, 0xe9, 0x78, 0x56, 0x34, 0x12], "still one NOP");
        assert_eq!(copy[AT - 2], 0xeb);
        assert_eq!(AT.wrapping_add_signed(isize::from(copy[AT - 1] as i8)), nop + HOP);
        assert_eq!(of(&near, &copy, AT, &regs(|_| ()), |_| None), Err(Refusal::NoNop), "each NOP serves one site");
    }
    for far in [AT - 129 - HOP, AT + 128 - HOP] {
        let mut page = text;
        page[far..far + 8].copy_from_slice(&NOP);
        assert_eq!(shape(&page, |r| r.rax = 0), Err(Refusal::NoNop));
    }
    text[AT - 3] = 0x45;
    text[AT + 40..AT + 48].copy_from_slice(&NOP);
    assert_eq!(shape(&text, |r| r.rax = 0), Err(Refusal::OtherShape), "xor %r8d, %r8d");
}

#[test]
fn the_sixth_argument_by_its_value() {
    let text = page(&[0x4d, 0x89, 0xc8, 0x4c, 0x8b, 0x4c, 0x24, 0x08]);
    let judged = |page: &Bytes, value| {
        of(page, page, AT, &regs(|r| (r.rsp, r.r9) = (0x1000, 7)), |address| {
            assert_eq!(address, 0x1008);
            value
        })
    };
    assert_eq!(judged(&text, Some(7)), Ok(Shape::SixthArgument));
    assert_eq!(judged(&text, Some(8)), Err(Refusal::OtherShape), "jumped to");
    assert_eq!(judged(&text, None), Err(Refusal::OtherShape));
    assert_eq!(judged(&page(&[0x4c, 0x8b, 0x4c, 0x24, 0x08]), Some(7)), Err(Refusal::OtherShape), "not syscall(2)");
}

#[test]
fn moved_instructions_do_what_they_did() {
    let mut r = regs(|r| (r.rax, r.rflags) = (5, 0xac7));
    assert!(Shape::Zero { hop: 9 }.perform(&mut r, |_| None));
    assert_eq!((r.rax, r.rflags), (0, 0x246));
    assert!(Shape::Immediate { register: 14, value: u32::MAX }.perform(&mut r, |_| None));
    assert_eq!(r.r14, 0xffff_ffff);
    r.rsp = 0x1000;
    assert!(Shape::SixthArgument.perform(&mut r, |address| (address == 0x1008).then_some(7)));
    assert_eq!(r.r9, 7);
    assert!(!Shape::SixthArgument.perform(&mut r, |_| None));
}

proptest! {
    /// Whatever the bytes: what is chosen lies in the page, and its instruction is the one that was there.
    #[test]
    fn what_is_replaced_was_there(
        seed in prop::collection::vec(prop::sample::select(vec![0x0f, 0x05, 0xb8, 0x31, 0xc0, 0x41, 0, 1, 0x1f, 0x84]), 4096),
        at in 0usize..4096,
        rax in 0u64..3,
    ) {
        let mut page: Bytes = seed.try_into().expect("as many");
        if at < 4095 {
            page[at..at + 2].copy_from_slice(&SYSCALL);
        }
        if let Ok(shape) = of(&page, &page, at, &regs(|r| (r.rax, r.r8) = (rax, rax + 1)), |_| Some(0)) {
            let (moved, len) = shape.instruction();
            prop_assert_eq!(&page[at - len..at], &moved[..len]);
            let mut copy = page;
            shape.apply(&mut copy, at, 0x7777_7777);
            let replaced = shape.replaced(at);
            for index in 0..page.len() {
                let inside = replaced.iter().any(|(start, len)| (*start..start + len).contains(&index));
                prop_assert!(inside || page[index] == copy[index]);
            }
            prop_assert_eq!(&copy[at..at + 2], &SYSCALL);
        }
    }
}

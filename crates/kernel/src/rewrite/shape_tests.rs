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

/// With nothing between the instruction and the `syscall`.
fn shape(page: &Bytes, set: impl FnOnce(&mut UserRegs)) -> Result<Moved, Refusal> {
    let found = of(page, page, AT, &regs(set), |_| None)?;
    assert_eq!(found.between, Between::default());
    Ok(found.moved)
}

fn alone(moved: Moved) -> Shape {
    Shape { moved, between: Between::default() }
}

fn followed(moved: Moved, by: &[u8]) -> Shape {
    let mut between = Between { len: by.len(), ..Between::default() };
    between.bytes[..by.len()].copy_from_slice(by);
    Shape { moved, between }
}

#[test]
fn a_number_in_eax() {
    let page = page(&[0xb8, 39, 0, 0, 0]);
    let expected = Moved::Immediate { register: 0, value: 39 };
    assert_eq!(shape(&page, |r| r.rax = 39), Ok(expected));
    assert_eq!(shape(&page, |r| r.rax = 40), Err(Refusal::OtherShape), "another number: jumped to");
    let mut copy = page;
    alone(expected).apply(&mut copy, AT, -2);
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
    assert_eq!(shape(&page_edx, |r| r.rdx = 1), Ok(Moved::Immediate { register: 2, value: 1 }));
    let r8 = page(&[0x41, 0xb8, 9, 0, 0, 0]);
    let expected = Moved::Immediate { register: 8, value: 9 };
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
        assert_eq!(shape(&page, |r| r.rax = 3), Ok(Moved::Immediate { register: 0, value: 3 }), "{before:x?}");
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
        let expected = Moved::Zero { hop: Hop { at: nop + HOP, hidden: (nop, 8) } };
        assert_eq!(shape(&near, |r| r.rax = 0), Ok(expected));
        assert_eq!(shape(&near, |r| r.rax = 1), Err(Refusal::OtherShape));
        let mut copy = near;
        alone(expected).apply(&mut copy, AT, 0x1234_5678);
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

/// The end of Go's Syscall6, and what is behind it.
#[test]
fn moves_jump_by_what_fills_up_the_space_behind() {
    let code = [0x48, 0x89, 0xce, 0x48, 0x89, 0xdf];
    let mut text = page(&code);
    text[AT + 2..].fill(0x90);
    let judged = |text: &Bytes, rbx: u64| shape(text, |r| (r.rbx, r.rdi) = (rbx, 7));
    // 0xcc is in constants as well: movabs $0xcccccccccccccccd, %rax.
    text[AT + 20..AT + 30].copy_from_slice(&[0x48, 0xb8, 0xcd, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc]);
    assert_eq!(judged(&text, 7), Err(Refusal::NoNop));
    text[AT + 40..AT + 50].copy_from_slice(&[0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc]);
    let expected = Moved::Move { from: 3, to: 7, hop: Hop { at: AT + 41, hidden: (AT + 41, 5) } };
    assert_eq!(judged(&text, 7), Ok(expected));
    assert_eq!(judged(&text, 8), Err(Refusal::OtherShape), "jumped to");
    let mut copy = text;
    alone(expected).apply(&mut copy, AT, 0x1234_5678);
    assert_eq!(copy[AT - 6..AT + 2], [0x48, 0x89, 0xce, 0xeb, 42, 0xdf, 0x0f, 0x05]);
    assert_eq!(copy[AT + 40..AT + 50], [0xc3, 0xe9, 0x78, 0x56, 0x34, 0x12, 0xcc, 0xcc, 0xcc, 0xcc]);
    assert_eq!(expected.instruction().0[..3], code[3..]);
    assert_eq!(Moved::Move { from: 14, to: 1, hop: expected.hop().unwrap() }.instruction().0[..3], [0x4c, 0x89, 0xf1]);
    assert_eq!(Moved::Move { from: 6, to: 10, hop: expected.hop().unwrap() }.instruction().0[..3], [0x49, 0x89, 0xf2]);
    let mut r = regs(|r| r.rbx = 5);
    assert!(alone(expected).perform(&mut r, |_| None));
    assert_eq!(r.rdi, 5);
    text[AT - 6] = 0x66;
    assert_eq!(judged(&text, 7), Err(Refusal::OtherShape), "not behind another");
}

/// `mov 8(%rsp), %r9` as syscall(2) has it, `mov 8(%rsp), %rsi` as recvfrom(2).
#[test]
fn loads_by_their_value() {
    for (bytes, register) in [([0x4c, 0x8b, 0x4c, 0x24, 0x08], 9), ([0x48, 0x8b, 0x74, 0x24, 0x08], 6)] {
        let text = page(&bytes);
        let judged = |value| {
            of(&text, &text, AT, &regs(|r| (r.rsp, r.r9, r.rsi) = (0x1000, 7, 7)), |address| {
                assert_eq!(address, 0x1008);
                value
            })
        };
        let expected = Moved::Load { register, displacement: 8 };
        assert_eq!(judged(Some(7)), Ok(alone(expected)));
        assert_eq!(judged(Some(8)), Err(Refusal::OtherShape), "jumped to");
        assert_eq!(judged(None), Err(Refusal::OtherShape));
        assert_eq!(expected.instruction().0[..5], bytes);
    }
    let negative = Moved::Load { register: 14, displacement: -16 };
    assert_eq!(negative.instruction(), ([0x4c, 0x8b, 0x74, 0x24, 0xf0, 0], 5));
}

/// Cancellation points of threads: `mov $nr, %eax; mov 4(%rsp), %edi`; locks: `mov $202, %eax; xor $0x81, %sil`; Zig:
/// `mov $8, %r9d` and three moves.
#[test]
fn instructions_between() {
    let number = [0xb8, 202, 0, 0, 0];
    let moved = Moved::Immediate { register: 0, value: 202 };
    let judged = |between: &[u8], rax: u64| {
        let text = page(&[&number, between].concat());
        of(&text, &text, AT, &regs(|r| r.rax = rax), |_| None)
    };
    let load = [0x8b, 0x7c, 0x24, 0x04];
    for between in [
        &load[..],
        &[0x40, 0x80, 0xf6, 0x81],
        &[0x81, 0xe6, 0x80, 0, 0, 0, 0x40, 0x80, 0xf6, 0x81],
        &[0x31, 0xd2],
        &[0x4c, 0x89, 0xe7, 0x48, 0x89, 0xde, 0x4d, 0x89, 0xfa],
        &[0x48, 0x8b, 0x54, 0x24, 0x10, 0x8b, 0x7c, 0x24, 0x08],
    ] {
        assert_eq!(judged(between, 202), Ok(followed(moved, between)), "{between:x?}");
        assert!(judged(between, 201).is_err(), "jumped to: {between:x?}");
    }
    // mov 4(%rsp), %di; lea 4(%rip), %rdi; a store; a load from elsewhere; a branch; too many.
    for other in [
        &[0x66, 0x8b, 0x7c, 0x24, 0x04][..],
        &[0x48, 0x8d, 0x3d, 4, 0, 0, 0],
        &[0x89, 0x7c, 0x24, 0x04],
        &[0x48, 0x8b, 0x7b, 0x04],
        &[0x74, 0x02],
        &[0x80, 0xf6, 0x81],
        &[0x31, 0xd2].repeat(7),
    ] {
        assert_eq!(judged(other, 202), Err(Refusal::OtherShape), "{other:x?}");
    }

    let shape = followed(moved, &load);
    assert_eq!((shape.moved_len(), shape.between_len(), shape.len()), (5, 4, 9));
    let (copied, len) = shape.instructions();
    assert_eq!(copied[..len], [0xb8, 202, 0, 0, 0, 0x8b, 0x7c, 0x24, 0x04]);
    let mut copy = page(&[&number, &load[..]].concat());
    shape.apply(&mut copy, AT, 0x10);
    assert_eq!(copy[AT - 9..AT + 2], [0xe9, 0x10, 0, 0, 0, 0x8b, 0x7c, 0x24, 0x04, 0x0f, 0x05]);
}

/// sendto(2) of threads: `mov 16(%rsp), %rsi; mov 8(%rsp), %edi`.
#[test]
fn a_load_and_another() {
    let text = page(&[0x48, 0x8b, 0x74, 0x24, 0x10, 0x8b, 0x7c, 0x24, 0x08]);
    let found = of(&text, &text, AT, &regs(|r| (r.rsp, r.rsi) = (0x1000, 0x1010)), Some);
    let expected = followed(Moved::Load { register: 6, displacement: 16 }, &[0x8b, 0x7c, 0x24, 0x08]);
    assert_eq!(found, Ok(expected));
}

#[test]
fn moved_instructions_do_what_they_did() {
    let mut r = regs(|r| (r.rax, r.rflags) = (5, 0xac7));
    assert!(alone(Moved::Zero { hop: Hop { at: 9, hidden: (6, 8) } }).perform(&mut r, |_| None));
    assert_eq!((r.rax, r.rflags), (0, 0x246));
    assert!(alone(Moved::Immediate { register: 14, value: u32::MAX }).perform(&mut r, |_| None));
    assert_eq!(r.r14, 0xffff_ffff);
    r.rsp = 0x1000;
    let load = alone(Moved::Load { register: 9, displacement: 8 });
    assert!(load.perform(&mut r, |address| (address == 0x1008).then_some(7)));
    assert_eq!(r.r9, 7);
    assert!(!load.perform(&mut r, |_| None));
}

proptest! {
    /// Whatever the bytes: what is chosen lies in the page, and its instruction is the one that was there.
    #[test]
    fn what_is_replaced_was_there(
        seed in prop::collection::vec(prop::sample::select(vec![0x0f, 0x05, 0xb8, 0x31, 0xc0, 0x41, 0, 1, 0x1f, 0x84, 0x48, 0x8b, 0x7c, 0x24, 0x89, 0xc3, 0xcc]), 4096),
        at in 0usize..4096,
        rax in 0u64..3,
    ) {
        let mut page: Bytes = seed.try_into().expect("as many");
        if at < 4095 {
            page[at..at + 2].copy_from_slice(&SYSCALL);
        }
        if let Ok(shape) = of(&page, &page, at, &regs(|r| (r.rax, r.r8) = (rax, rax + 1)), |_| Some(0)) {
            let (copied, len) = shape.instructions();
            prop_assert_eq!(&page[at - len..at], &copied[..len]);
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

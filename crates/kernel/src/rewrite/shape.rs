//! What comes before a `syscall` instruction, and how it is replaced by a jump.
//!
//! ```text
//! before                        after
//! mov $nr, %eax   b8 imm32      jmp island      e9 rel32
//! syscall         0f 05         syscall         0f 05
//!
//! xor %eax, %eax  31 c0         jmp hop         eb rel8
//! syscall         0f 05         syscall         0f 05
//! ...                           ...
//! nop   0f 1f 84 00 00000000    nop 0f 1f 84,   hop: jmp island  e9 rel32
//! ```
//! The `syscall` stays, for who jumps there, and so does the NOP, in whose index byte and displacement the second jump
//! hides. One instruction is replaced as a whole, so that no thread can be between its parts.
//!
//! That the bytes before a `syscall` are the instruction that they look like is concluded from the register's value,
//! which is the one that the instruction gives. Where the bytes could be two instructions the longer one must be it.

use crate::arch::regs::UserRegs;
use crate::mm::addr::PAGE_BYTES;

/// Bytes of `syscall`.
pub(crate) const SYSCALL_BYTES: u64 = 2;
const SYSCALL: [u8; 2] = [0x0f, 0x05];
const XOR_EAX: [u8; 2] = [0x31, 0xc0];
/// `mov 8(%rsp), %r9`: the end of syscall(2) in glibc and musl.
const LOAD_SIXTH: [u8; 5] = [0x4c, 0x8b, 0x4c, 0x24, 0x08];
/// `mov %r9, %r8`, which comes before that.
const MOVE_FIFTH: [u8; 3] = [0x4d, 0x89, 0xc8];
/// `nopw 0(%rax,%rax,1)`, of which the last five bytes may be anything.
const NOP: [u8; 8] = [0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0];
/// Where in [`NOP`] those begin.
const HOP: usize = 3;
const JMP: u8 = 0xe9;
const JMP_SHORT: u8 = 0xeb;

/// Bits of RFLAGS: CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = 0x8d5;
/// As `xor` of a register with itself leaves them: PF and ZF.
const OF_ZERO: u64 = 0x44;

pub(crate) type Bytes = [u8; PAGE_BYTES as usize];

/// The instruction before a `syscall` that is moved into an island.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `mov $value, %register` (by number), of 32 bits.
    Immediate { register: u8, value: u32 },
    /// `xor %eax, %eax`, with the place of the second jump from the start of the page.
    Zero { hop: usize },
    /// `mov 8(%rsp), %r9`.
    SixthArgument,
}

/// Why a site stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Not in a private, unwritable mapping of a file of the image.
    NotImage,
    /// The instruction before is in another page.
    PageEdge,
    /// The instruction before is too short, and no long NOP is near.
    NoNop,
    /// The instruction before is one that can't be moved, or can't be told.
    OtherShape,
    /// There is no room for islands near the text, or no memory.
    NoRoom,
    /// A thread is inside the bytes to be replaced.
    InUse,
}

impl Refusal {
    /// For the end of a trace.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotImage => "not text of the image",
            Self::PageEdge => "across the end of a page",
            Self::NoNop => "no long NOP near",
            Self::OtherShape => "another instruction before",
            Self::NoRoom => "no room near the text",
            Self::InUse => "in use",
        }
    }
}

/// The value of a general register by its number in instructions.
fn register(regs: &mut UserRegs, number: u8) -> Option<&mut u64> {
    let UserRegs { rax, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, .. } = regs;
    // rcx is what the island needs, and rsp is never loaded so.
    Some(match number {
        0 => rax,
        2 => rdx,
        3 => rbx,
        5 => rbp,
        6 => rsi,
        7 => rdi,
        8 => r8,
        9 => r9,
        10 => r10,
        11 => r11,
        12 => r12,
        13 => r13,
        14 => r14,
        15 => r15,
        _ => return None,
    })
}

/// Whether the byte behind `before` may be the displacement of an instruction with an immediate: `movl $0, -72(%rsp)`
/// ends like `mov $0, %eax`.
fn is_displacement(before: &[u8]) -> bool {
    let with_immediate = |opcode: u8| matches!(opcode, 0xc7 | 0x81 | 0x69);
    match before {
        // The opcode, ModRM with an 8-bit displacement, and SIB where that asks for one.
        [.., opcode, modrm, _] if with_immediate(*opcode) && modrm & 0xc7 == 0x44 => true,
        [.., opcode, modrm] => with_immediate(*opcode) && modrm & 0xc0 == 0x40 && modrm & 7 != 4,
        _ => false,
    }
}

/// `mov $imm32, %r32` in the five bytes before `at`, and whether it has a prefix byte that makes it one of r8 to r15.
fn immediate(page: &Bytes, at: usize, regs: &UserRegs) -> Option<Shape> {
    let [opcode @ 0xb8..=0xbf, imm @ ..] = &page[at.checked_sub(5)?..at] else { return None };
    let value = u32::from_le_bytes(imm.try_into().ok()?);
    if is_displacement(&page[..at - 5]) {
        return None;
    }
    let low = opcode - 0xb8;
    let mut regs = *regs;
    let mut holds = |number: u8| register(&mut regs, number).is_some_and(|r| *r == u64::from(value));
    let before = at.checked_sub(6).map(|before| page[before]);
    match before {
        // A prefix, or the end of the instruction before. A jump to the `syscall` may find the value in any register, so
        // the one that goes without the prefix is never believed: without it the other load would be lost.
        Some(0x41) => (holds(low + 8) && !holds(low)).then_some(Shape::Immediate { register: low + 8, value }),
        // More prefixes for r8 to r15, a 16-bit operand, a two-byte opcode, an address computed from rax.
        Some(0x43 | 0x45 | 0x47 | 0x66 | 0x0f | 0x8d) => None,
        _ => holds(low).then_some(Shape::Immediate { register: low, value }),
    }
}

/// `mov 8(%rsp), %r9` in the bytes before `at`, as syscall(2) has it, and executed: r9 is what `load` finds there.
fn is_sixth_argument(page: &Bytes, at: usize, regs: &UserRegs, load: impl FnOnce(u64) -> Option<u64>) -> bool {
    page[..at].ends_with(&LOAD_SIXTH)
        && page[..at - LOAD_SIXTH.len()].ends_with(&MOVE_FIFTH)
        && load(regs.rsp.wrapping_add(8)) == Some(regs.r9)
}

/// The shape of the site whose `syscall` is at `at` of a page of text, where `regs` are the registers there. `copy` is
/// the page as it has been rewritten so far, and `load` reads a word of the program's memory.
pub(crate) fn of(
    page: &Bytes,
    copy: &Bytes,
    at: usize,
    regs: &UserRegs,
    load: impl FnOnce(u64) -> Option<u64>,
) -> Result<Shape, Refusal> {
    if at + SYSCALL.len() > page.len() || at < 6 {
        return Err(Refusal::PageEdge);
    }
    if page[at..at + 2] != SYSCALL {
        return Err(Refusal::OtherShape);
    }
    if let Some(shape) = immediate(page, at, regs) {
        // Unwinders know the call that a signal handler returns by.
        let returns = regs.rax == u64::from(linux_raw_sys::general::__NR_rt_sigreturn);
        return if returns { Err(Refusal::OtherShape) } else { Ok(shape) };
    }
    if is_sixth_argument(page, at, regs, load) {
        return Ok(Shape::SixthArgument);
    }
    if page[at - 2..at] == XOR_EAX && !matches!(page[at - 3], 0x40..=0x4f | 0x66) && regs.rax == 0 {
        // The short jump reaches 128 bytes back and 127 on.
        let (first, last) = (at.saturating_sub(128), (at + 127).min(page.len() - 5));
        let free = |hop: &usize| {
            let nop = *hop - HOP..*hop - HOP + NOP.len();
            page[nop.clone()] == NOP && copy[nop] == NOP
        };
        return (first.max(HOP)..=last).find(free).map(|hop| Shape::Zero { hop }).ok_or(Refusal::NoNop);
    }
    Err(Refusal::OtherShape)
}

impl Shape {
    /// The moved instruction: its bytes, and how many they are.
    pub(crate) fn instruction(self) -> ([u8; 6], usize) {
        let mut bytes = [0; 6];
        let len = match self {
            Self::Immediate { register, value } => {
                let extended = usize::from(register >= 8);
                bytes[0] = 0x41;
                bytes[extended] = 0xb8 + register % 8;
                bytes[extended + 1..extended + 5].copy_from_slice(&value.to_le_bytes());
                extended + 5
            }
            Self::Zero { .. } => {
                bytes[..2].copy_from_slice(&XOR_EAX);
                2
            }
            Self::SixthArgument => {
                bytes[..5].copy_from_slice(&LOAD_SIXTH);
                5
            }
        };
        (bytes, len)
    }

    /// The parts of the page that are replaced for the site at `at`: start and length.
    pub(crate) fn replaced(self, at: usize) -> [(usize, usize); 2] {
        let len = self.instruction().1;
        match self {
            Self::Zero { hop } => [(at - len, len), (hop - HOP, NOP.len())],
            _ => [(at - len, len); 2],
        }
    }

    /// Where the jump to the island ends, from which its distance counts.
    pub(crate) fn jump_end(self, at: usize) -> usize {
        5 + match self {
            Self::Zero { hop } => hop,
            _ => at - self.instruction().1,
        }
    }

    /// Rewrites the site at `at`. `distance`: from [`Shape::jump_end`] to the island.
    pub(crate) fn apply(self, copy: &mut Bytes, at: usize, distance: i32) {
        let jump = self.jump_end(at) - 5;
        copy[jump + 1..jump + 5].copy_from_slice(&distance.to_le_bytes());
        copy[jump] = JMP;
        if let Self::Zero { hop } = self {
            copy[at - 1] = (hop as i64 - at as i64) as i8 as u8;
            copy[at - 2] = JMP_SHORT;
        }
    }

    /// Does to registers what the moved instruction does, if it can be done without the program's memory.
    pub(crate) fn perform(self, regs: &mut UserRegs, load: impl FnOnce(u64) -> Option<u64>) -> bool {
        match self {
            Self::Immediate { register: number, value } => {
                if let Some(register) = register(regs, number) {
                    *register = u64::from(value);
                }
                true
            }
            Self::Zero { .. } => {
                regs.rax = 0;
                regs.rflags = regs.rflags & !ARITHMETIC | OF_ZERO;
                true
            }
            Self::SixthArgument => match load(regs.rsp.wrapping_add(8)) {
                Some(value) => {
                    regs.r9 = value;
                    true
                }
                None => false,
            },
        }
    }
}

#[cfg(test)]
#[path = "shape_tests.rs"]
mod tests;

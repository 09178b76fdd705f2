//! What comes before a `syscall` instruction, and how it is replaced by a jump.
//!
//! ```text
//! before                         after
//! mov $nr, %eax    b8 imm32      jmp island      e9 rel32
//! syscall          0f 05         syscall         0f 05
//!
//! mov $nr, %eax    b8 imm32      jmp island      e9 rel32
//! mov 4(%rsp), %edi              mov 4(%rsp), %edi
//! syscall                        syscall
//!
//! xor %eax, %eax   31 c0         jmp hop         eb rel8
//! syscall          0f 05         syscall         0f 05
//! ...                            ...
//! nop   0f 1f 84 00 00000000     nop 0f 1f 84,   hop: jmp island  e9 rel32
//!
//! mov %rbx, %rdi   48 89 df      jmp hop         eb rel8 df
//! syscall          0f 05         syscall         0f 05
//! ...                            ...
//! ret              c3            ret             c3
//! int3 ...         cc cc cc cc cc                hop: jmp island  e9 rel32
//! ```
//! The `syscall` stays, for who jumps there, and so do instructions between and the NOP, in whose index byte and
//! displacement the second jump hides; it may be in what fills up the space behind a function instead. One instruction
//! is replaced as a whole, so that no thread can be between its parts; the island does what it and those between do.
//!
//! That the bytes before a `syscall` are the instruction that they look like is concluded from the register's value,
//! which is the one that the instruction gives. Where the bytes could be two instructions the longer one must be it.

use crate::arch::regs::UserRegs;
use crate::mm::addr::PAGE_BYTES;

/// Bytes of `syscall`.
pub(crate) const SYSCALL_BYTES: u64 = 2;
const SYSCALL: [u8; 2] = [0x0f, 0x05];
const XOR_EAX: [u8; 2] = [0x31, 0xc0];
/// `nopw 0(%rax,%rax,1)`, of which the last five bytes may be anything.
const NOP: [u8; 8] = [0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0];
/// Where in [`NOP`] those begin.
const HOP: usize = 3;
/// `ret` and what fills up the space to the next function, which nobody runs. Not any five such bytes will do: they are
/// common in constants.
const FILLED: [u8; 6] = [0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc];
/// Where in [`FILLED`] the filling begins.
const FILLING: usize = 1;
const JMP: u8 = 0xe9;
const JMP_SHORT: u8 = 0xeb;

/// Bytes of the instructions between the moved one and the `syscall`, at most.
const BETWEEN_MAX_BYTES: usize = 12;
/// Bytes of an island's copy of a site's instructions, at most.
pub(crate) const INSTRUCTIONS_MAX_BYTES: usize = 6 + BETWEEN_MAX_BYTES;

/// Bits of RFLAGS: CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = 0x8d5;
/// As `xor` of a register with itself leaves them: PF and ZF.
const OF_ZERO: u64 = 0x44;

pub(crate) type Bytes = [u8; PAGE_BYTES as usize];

/// The instruction that is moved into an island.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// `mov $value, %register` (by number), of 32 bits.
    Immediate { register: u8, value: u32 },
    /// `mov displacement(%rsp), %register`, of 64 bits.
    Load { register: u8, displacement: i8 },
    /// `xor %eax, %eax`.
    Zero { hop: Hop },
    /// `mov %from, %to`, of 64 bits.
    Move { from: u8, to: u8, hop: Hop },
}

/// The second of two jumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// From the start of the page.
    pub(crate) at: usize,
    /// The instruction that it is hidden in: start and length.
    hidden: (usize, usize),
}

/// Instructions between the moved one and the `syscall`: they stay, and are done in the island as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Between {
    bytes: [u8; BETWEEN_MAX_BYTES],
    len: usize,
}

/// How a site is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) moved: Moved,
    pub(crate) between: Between,
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
fn immediate(page: &Bytes, at: usize, regs: &UserRegs) -> Option<Moved> {
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
        Some(0x41) => (holds(low + 8) && !holds(low)).then_some(Moved::Immediate { register: low + 8, value }),
        // More prefixes for r8 to r15, a 16-bit operand, a two-byte opcode, an address computed from rax.
        Some(0x43 | 0x45 | 0x47 | 0x66 | 0x0f | 0x8d) => None,
        _ => holds(low).then_some(Moved::Immediate { register: low, value }),
    }
}

/// The address of a stack slot.
fn slot(regs: &UserRegs, displacement: i8) -> u64 {
    regs.rsp.wrapping_add_signed(displacement.into())
}

/// `mov displacement(%rsp), %r64` in the five bytes before `at`: the register is what `load` finds there.
fn load(page: &Bytes, at: usize, regs: &UserRegs, load: &impl Fn(u64) -> Option<u64>) -> Option<Moved> {
    let [prefix @ (0x48 | 0x4c), 0x8b, modrm, 0x24, displacement] = page[at.checked_sub(5)?..at] else { return None };
    if modrm & 0xc7 != 0x44 {
        return None;
    }
    let (number, displacement) = (modrm >> 3 & 7 | (prefix & 4) << 1, displacement.cast_signed());
    let value = *register(&mut regs.clone(), number)?;
    (load(slot(regs, displacement)) == Some(value)).then_some(Moved::Load { register: number, displacement })
}

/// The length of the instruction at the start of `code`, if it is one of those that may be between: it depends on
/// registers and the stack only, and does the same wherever it is.
fn plain_instruction(code: &[u8]) -> Option<usize> {
    let (prefix, rest) = match code {
        [0x40..=0x4f, rest @ ..] => (1, rest),
        _ => (0, code),
    };
    let len = match *rest {
        // mov and xor between registers.
        [0x89 | 0x31, 0xc0..=0xff, ..] => 2,
        // mov displacement(%rsp), %register.
        [0x8b, modrm, 0x24, _, ..] if modrm & 0xc7 == 0x44 => 4,
        // xor $imm8, %sil: without its prefix it is another one.
        [0x80, 0xf6, _, ..] if prefix == 1 => 3,
        // and $imm32, %esi.
        [0x81, 0xe6, _, _, _, _, ..] => 6,
        _ => return None,
    };
    Some(prefix + len)
}

/// What is between `start` and `at`, if those are such instructions.
fn between(page: &Bytes, start: usize, at: usize) -> Option<Between> {
    let mut next = start;
    while next < at {
        next += plain_instruction(&page[next..at])?;
    }
    let mut between = Between { len: at - start, ..Between::default() };
    between.bytes.get_mut(..at - start)?.copy_from_slice(&page[start..at]);
    Some(between)
}

/// The shape of the site whose `syscall` is at `at` of a page of text, where `regs` are the registers there. `copy` is
/// the page as it has been rewritten so far, and `word` reads the program's memory.
pub(crate) fn of(
    page: &Bytes,
    copy: &Bytes,
    at: usize,
    regs: &UserRegs,
    word: impl Fn(u64) -> Option<u64>,
) -> Result<Shape, Refusal> {
    if at + SYSCALL.len() > page.len() || at < 6 {
        return Err(Refusal::PageEdge);
    }
    if page[at..at + 2] != SYSCALL {
        return Err(Refusal::OtherShape);
    }
    // Unwinders know the call that a signal handler returns by.
    if regs.rax == u64::from(linux_raw_sys::general::__NR_rt_sigreturn) {
        return Err(Refusal::OtherShape);
    }
    // The end of the moved instruction is known from its value, and so where those between begin.
    for end in (at.saturating_sub(BETWEEN_MAX_BYTES).max(6)..=at).rev() {
        if let Some(between) = between(page, end, at)
            && let Some(moved) = immediate(page, end, regs).or_else(|| load(page, end, regs, &word))
        {
            return Ok(Shape { moved, between });
        }
    }
    if page[at - 2..at] == XOR_EAX && !matches!(page[at - 3], 0x40..=0x4f | 0x66) && regs.rax == 0 {
        let hop = find_hop(page, copy, at).ok_or(Refusal::NoNop)?;
        return Ok(Shape { moved: Moved::Zero { hop }, between: Between::default() });
    }
    if let Some((from, to)) = a_move(page, at, regs) {
        let hop = find_hop(page, copy, at - 1).ok_or(Refusal::NoNop)?;
        return Ok(Shape { moved: Moved::Move { from, to, hop }, between: Between::default() });
    }
    Err(Refusal::OtherShape)
}

/// `mov %from, %to` of 64 bits in the three bytes before `at`, behind another one, as Go's calls have it.
fn a_move(page: &Bytes, at: usize, regs: &UserRegs) -> Option<(u8, u8)> {
    let numbers = |bytes: &[u8]| match *bytes {
        [prefix @ (0x48 | 0x49 | 0x4c | 0x4d), 0x89, modrm @ 0xc0..=0xff] => {
            Some((modrm >> 3 & 7 | (prefix & 4) << 1, modrm & 7 | (prefix & 1) << 3))
        }
        _ => None,
    };
    let (from, to) = numbers(&page[at - 3..at])?;
    numbers(&page[at - 6..at - 3])?;
    let mut regs = *regs;
    // The `syscall` has changed r11 by now, as it has rcx.
    let value = (from != 11).then(|| register(&mut regs, from).copied())??;
    (register(&mut regs, to).copied() == Some(value)).then_some((from, to))
}

/// Room for a second jump that one of two bytes reaches: 128 bytes back and 127 on from `from`, which is behind it.
fn find_hop(page: &Bytes, copy: &Bytes, from: usize) -> Option<Hop> {
    let (first, last) = (from.saturating_sub(128), (from + 127).min(page.len() - 5));
    let is_free = |start: usize, bytes: &[u8]| {
        let range = start..start + bytes.len();
        page.get(range.clone()) == Some(bytes) && copy.get(range) == Some(bytes)
    };
    (first.max(HOP)..=last).find_map(|at| {
        let hidden = match () {
            () if is_free(at - HOP, &NOP) => (at - HOP, NOP.len()),
            () if is_free(at - FILLING, &FILLED) => (at, FILLED.len() - FILLING),
            () => return None,
        };
        Some(Hop { at, hidden })
    })
}

impl Moved {
    /// Its bytes, and how many they are.
    fn instruction(self) -> ([u8; 6], usize) {
        let mut bytes = [0; 6];
        let len = match self {
            Self::Immediate { register, value } => {
                let extended = usize::from(register >= 8);
                bytes[0] = 0x41;
                bytes[extended] = 0xb8 + register % 8;
                bytes[extended + 1..extended + 5].copy_from_slice(&value.to_le_bytes());
                extended + 5
            }
            Self::Load { register, displacement } => {
                let prefix = 0x48 | register >> 3 << 2;
                bytes[..5].copy_from_slice(&[prefix, 0x8b, 0x44 | (register % 8) << 3, 0x24, displacement as u8]);
                5
            }
            Self::Zero { .. } => {
                bytes[..2].copy_from_slice(&XOR_EAX);
                2
            }
            Self::Move { from, to, .. } => {
                let prefix = 0x48 | from >> 3 << 2 | to >> 3;
                bytes[..3].copy_from_slice(&[prefix, 0x89, 0xc0 | (from % 8) << 3 | (to % 8)]);
                3
            }
        };
        (bytes, len)
    }

    /// The second jump, where the instruction is too short for one that reaches the island.
    pub(crate) fn hop(self) -> Option<Hop> {
        match self {
            Self::Zero { hop } | Self::Move { hop, .. } => Some(hop),
            Self::Immediate { .. } | Self::Load { .. } => None,
        }
    }
}

impl Shape {
    /// The island's copy of the program's instructions: its bytes, and how many they are.
    pub(crate) fn instructions(self) -> ([u8; INSTRUCTIONS_MAX_BYTES], usize) {
        let (moved, len) = self.moved.instruction();
        let Between { bytes: between, len: more } = self.between;
        let mut bytes = [0; INSTRUCTIONS_MAX_BYTES];
        bytes[..moved.len()].copy_from_slice(&moved);
        bytes[len..len + more].copy_from_slice(&between[..more]);
        (bytes, len + more)
    }

    /// Bytes of the instruction that is moved.
    pub(crate) fn moved_len(self) -> usize {
        self.moved.instruction().1
    }

    /// Bytes of the instructions between.
    pub(crate) fn between_len(self) -> usize {
        self.between.len
    }

    /// From the start of the moved instruction to the `syscall`.
    pub(crate) fn len(self) -> usize {
        self.moved_len() + self.between_len()
    }

    /// The parts of the page that are replaced for the site at `at`: start and length.
    pub(crate) fn replaced(self, at: usize) -> [(usize, usize); 2] {
        let moved = (at - self.len(), self.moved_len());
        [moved, self.moved.hop().map_or(moved, |hop| hop.hidden)]
    }

    /// Where the jump to the island ends, from which its distance counts.
    pub(crate) fn jump_end(self, at: usize) -> usize {
        5 + self.moved.hop().map_or(at - self.len(), |hop| hop.at)
    }

    /// Rewrites the site at `at`. `distance`: from [`Shape::jump_end`] to the island.
    pub(crate) fn apply(self, copy: &mut Bytes, at: usize, distance: i32) {
        let jump = self.jump_end(at) - 5;
        copy[jump + 1..jump + 5].copy_from_slice(&distance.to_le_bytes());
        copy[jump] = JMP;
        if let Some(hop) = self.moved.hop() {
            let start = at - self.len();
            copy[start + 1] = (hop.at as i64 - (start as i64 + 2)) as i8 as u8;
            copy[start] = JMP_SHORT;
        }
    }

    /// Does to registers what the moved instruction does; whether that could be done: what it loads may not be there.
    pub(crate) fn perform(self, regs: &mut UserRegs, load: impl FnOnce(u64) -> Option<u64>) -> bool {
        let (number, value) = match self.moved {
            Moved::Immediate { register, value } => (register, Some(value.into())),
            Moved::Load { register, displacement } => (register, load(slot(regs, displacement))),
            Moved::Move { from, to, .. } => (to, register(regs, from).copied()),
            Moved::Zero { .. } => {
                regs.rflags = regs.rflags & !ARITHMETIC | OF_ZERO;
                (0, Some(0))
            }
        };
        let Some(value) = value else { return false };
        if let Some(register) = register(regs, number) {
            *register = value;
        }
        true
    }
}

#[cfg(test)]
#[path = "shape_tests.rs"]
mod tests;

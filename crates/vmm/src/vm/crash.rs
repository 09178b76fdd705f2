//! What to tell about a guest that can't go on: registers, and where in the kernel it was.

use super::kernel::Symbols;
use super::memory::GuestMemory;
use super::tables::translate;
use kvm_bindings::kvm_sync_regs;
use std::fmt::Write as _;
use torpor_abi::layout::{DIRECT_MAP_BASE, KERNEL_END};

const MAX_FRAMES: usize = 32;

/// A kernel panic's text with the names of the addresses in its backtrace.
#[must_use]
pub(super) fn panic(text: &str, symbols: &Symbols) -> String {
    format!("guest kernel panic: {}", symbols.annotate(text).trim_end())
}

/// What happened, registers and a backtrace by frame pointers.
#[must_use]
pub(super) fn describe(what: &str, memory: &GuestMemory, state: &kvm_sync_regs, symbols: &Symbols) -> String {
    let (regs, sregs) = (&state.regs, &state.sregs);
    let mut text = format!("{what}\n");
    for line in [
        [
            ("rip", regs.rip),
            ("rflags", regs.rflags),
            ("cs", sregs.cs.selector.into()),
            ("ss", sregs.ss.selector.into()),
        ],
        [("rax", regs.rax), ("rbx", regs.rbx), ("rcx", regs.rcx), ("rdx", regs.rdx)],
        [("rsi", regs.rsi), ("rdi", regs.rdi), ("rbp", regs.rbp), ("rsp", regs.rsp)],
        [("r8", regs.r8), ("r9", regs.r9), ("r10", regs.r10), ("r11", regs.r11)],
        [("r12", regs.r12), ("r13", regs.r13), ("r14", regs.r14), ("r15", regs.r15)],
        [("cr2", sregs.cr2), ("cr3", sregs.cr3), ("fs", sregs.fs.base), ("gs", sregs.gs.base)],
    ] {
        for (name, value) in line {
            let _ = write!(text, "  {name:<6} {value:016x}");
        }
        text.push('\n');
    }
    let mut frame = regs.rbp;
    let mut address = regs.rip;
    for number in 0..MAX_FRAMES {
        // A return address may lie behind the end of a function whose last instruction is the call.
        let name = if number == 0 { symbols.name(address) } else { symbols.caller(address) }.unwrap_or_default();
        let _ = writeln!(text, "  #{number} {address:#x} {name}");
        let read = |va| translate(memory, sregs.cr3, va).and_then(|gpa| memory.read_u64(gpa).ok());
        if !(DIRECT_MAP_BASE..KERNEL_END).contains(&frame) || !frame.is_multiple_of(8) {
            break;
        }
        let (Some(next), Some(return_address)) = (read(frame), read(frame + 8)) else { break };
        // Frames lie ever higher on a stack.
        if next != 0 && next <= frame {
            break;
        }
        (frame, address) = (next, return_address);
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::memory::Gpa;
    use crate::vm::tables;
    use torpor_abi::layout::KERNEL_GPA;

    #[test]
    fn frames_are_followed_to_their_end() {
        let memory = GuestMemory::new(16 << 20).expect("memory");
        let tables = tables::write(&memory, Gpa(KERNEL_GPA), 4096).expect("room");
        let (outer, inner) = (0x40_1000, 0x40_0000);
        memory.write_u64(Gpa(inner), DIRECT_MAP_BASE + outer).expect("in range");
        memory.write_u64(Gpa(inner + 8), 0xaaa1).expect("in range");
        memory.write_u64(Gpa(outer + 8), 0xaaa2).expect("in range");
        let mut state = kvm_sync_regs::default();
        state.regs.rip = 0xaaa0;
        state.regs.rbp = DIRECT_MAP_BASE + inner;
        state.sregs.cr3 = tables.pml4.0;
        let text = describe("it stopped", &memory, &state, &Symbols::new(&[]));
        assert!(text.starts_with("it stopped\n"));
        assert!(text.contains("#0 0xaaa0") && text.contains("#1 0xaaa1") && text.contains("#2 0xaaa2"), "{text}");
        assert!(!text.contains("#3"));
        // A loop of frames ends.
        memory.write_u64(Gpa(outer), DIRECT_MAP_BASE + inner).expect("in range");
        assert!(!describe("", &memory, &state, &Symbols::new(&[])).contains("#3"));
    }
}

//! Sets of registers (PTRACE_GETREGSET, PTRACE_SETREGSET), as bytes.

use super::user_area::{REGISTERS, register, set_register};
use crate::errno::{Errno, Result};
use crate::task::signal::{Area, HEADER_OFFSET, MXCSR_OFFSET, SOFTWARE_OFFSET, enabled};
use crate::task::thread::Thread;
use alloc::vec::Vec;
use linux_raw_sys::elf_uapi as elf;

/// A set of registers.
pub struct RegisterSet {
    /// NT_*.
    pub kind: u32,
    /// Its bytes.
    pub get: fn(&Thread) -> Vec<u8>,
    /// Sets the registers that the bytes, which are no more than [`RegisterSet::get`] gives, hold.
    pub set: fn(&Thread, &[u8]) -> Result<()>,
}

/// What there is: general registers, x87 and SSE, and all of the extended state.
pub const REGISTER_SETS: [RegisterSet; 3] = [
    RegisterSet { kind: elf::NT_PRSTATUS, get: general, set: set_general },
    RegisterSet { kind: elf::NT_PRFPREG, get: legacy, set: set_legacy },
    RegisterSet { kind: elf::NT_X86_XSTATE, get: extended, set: set_extended },
];

const WORD: usize = 8;
/// The components x87 and SSE.
const LEGACY: u8 = 3;
/// The x87 control word that programs start with.
const CONTROL_WORD: u16 = 0x37f;
/// Bits of MXCSR that there are.
const MXCSR_MASK: u32 = 0xffff;

fn general(tracee: &Thread) -> Vec<u8> {
    (0..REGISTERS).flat_map(|index| register(tracee, index).to_le_bytes()).collect()
}

fn set_general(tracee: &Thread, bytes: &[u8]) -> Result<()> {
    for (index, word) in bytes.as_chunks::<WORD>().0.iter().enumerate() {
        set_register(tracee, index, u64::from_le_bytes(*word))?;
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn quad(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

/// The extended state with all that components in their initial configuration have left out.
fn area(tracee: &Thread) -> Area {
    let mut area = Area::of(tracee);
    let bytes = area.bytes_mut();
    if bytes[HEADER_OFFSET] & 1 == 0 {
        bytes[..MXCSR_OFFSET].fill(0);
        bytes[..2].copy_from_slice(&CONTROL_WORD.to_le_bytes());
        // The eight registers of x87.
        bytes[32..160].fill(0);
    }
    bytes[MXCSR_OFFSET + 4..MXCSR_OFFSET + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    bytes[SOFTWARE_OFFSET..HEADER_OFFSET].fill(0);
    area
}

fn legacy(tracee: &Thread) -> Vec<u8> {
    area(tracee).bytes_mut()[..HEADER_OFFSET].to_vec()
}

fn set_legacy(tracee: &Thread, bytes: &[u8]) -> Result<()> {
    if bytes.len() != HEADER_OFFSET || word(bytes, MXCSR_OFFSET) & !MXCSR_MASK != 0 {
        return Err(Errno::EINVAL);
    }
    let mut area = area(tracee);
    area.bytes_mut()[..HEADER_OFFSET].copy_from_slice(bytes);
    area.bytes_mut()[HEADER_OFFSET] |= LEGACY;
    area.load(tracee);
    Ok(())
}

fn extended(tracee: &Thread) -> Vec<u8> {
    let mut area = area(tracee);
    let bytes = area.bytes_mut();
    // Debuggers find out here what the area holds.
    bytes[SOFTWARE_OFFSET..SOFTWARE_OFFSET + WORD].copy_from_slice(&enabled().to_le_bytes());
    bytes.to_vec()
}

fn set_extended(tracee: &Thread, bytes: &[u8]) -> Result<()> {
    let mut area = Area::of(tracee);
    if bytes.len() != area.bytes_mut().len() {
        return Err(Errno::EFAULT);
    }
    let reserved = &bytes[HEADER_OFFSET + WORD..HEADER_OFFSET + 64];
    let unknown = quad(bytes, HEADER_OFFSET) & !enabled() != 0;
    if unknown || reserved.iter().any(|byte| *byte != 0) || word(bytes, MXCSR_OFFSET) & !MXCSR_MASK != 0 {
        return Err(Errno::EINVAL);
    }
    area.bytes_mut().copy_from_slice(bytes);
    area.load(tracee);
    Ok(())
}

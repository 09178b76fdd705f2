//! `struct user` (sys/user.h): general registers as a tracer reads and writes them, word by word.

use super::link_of;
use super::step::{self, TRAP_FLAG};
use crate::arch::regs::UserRegs;
use crate::errno::{Errno, Result};
use crate::mm::addr::USER_END;
use crate::task::signal;
use crate::task::thread::Thread;

/// Bytes of the structure.
pub const USER_BYTES: u64 = 928;
/// Words of `struct user_regs_struct`, with which it begins.
pub(super) const REGISTERS: usize = 27;
/// Where the eight debug registers are.
const DEBUG_REGISTERS: u64 = 848;
const WORD: u64 = 8;
/// DR6 as it is when nothing has happened.
pub(super) const NO_DEBUG_STATUS: u64 = 0xffff_0ff0;
/// What a tracer may change of the flags: all but ID of what the program itself may.
const FLAGS: u64 = UserRegs::RFLAGS_USER & !(1 << 21);

// By their places in `struct user_regs_struct`.
const CS: usize = 17;
const FLAGS_AT: usize = 18;
const SS: usize = 20;
const FS_BASE: usize = 21;
const GS_BASE: usize = 22;
/// ds, es, fs and gs.
const SEGMENTS: usize = 23;
const LAST: usize = REGISTERS - 1;

/// The registers that are as they are in [`UserRegs`], by their places.
fn plain(regs: &mut UserRegs, index: usize) -> Option<&mut u64> {
    let UserRegs {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        orig_rax,
        rip,
        cs,
        rflags,
        rsp,
        ss,
        ..
    } = regs;
    let places =
        [r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, rflags, rsp, ss];
    places.into_iter().nth(index)
}

/// The register at a place.
pub(super) fn register(tracee: &Thread, index: usize) -> u64 {
    match index {
        FS_BASE => tracee.state.fs_base(),
        GS_BASE => tracee.state.gs_base(),
        FLAGS_AT => step::own_flags(tracee),
        // What is left are segments that 64-bit programs do not use.
        _ => plain(&mut tracee.state.regs(), index).map_or(0, |register| *register),
    }
}

/// Sets the register at a place.
pub(super) fn set_register(tracee: &Thread, index: usize, value: u64) -> Result<()> {
    let mut regs = tracee.state.regs();
    match index {
        FS_BASE | GS_BASE if value >= USER_END => return Err(Errno::EIO),
        FS_BASE => tracee.state.set_fs_base(value),
        GS_BASE => tracee.state.set_gs_base(value),
        FLAGS_AT => {
            let link = link_of(tracee);
            // A trap flag from here is the program's; without it the tracer's stays.
            let trap = if value & TRAP_FLAG == 0 && link.trap_flag.get() { TRAP_FLAG } else { 0 };
            link.trap_flag.set(trap != 0);
            regs.rflags = UserRegs::sanitized_rflags(regs.rflags & !FLAGS | value & FLAGS | trap);
            tracee.state.set_regs(&regs);
        }
        // There are no other segments.
        CS | SS | SEGMENTS..=LAST if value != register(tracee, index) => return Err(Errno::EIO),
        _ => {
            if let Some(register) = plain(&mut regs, index) {
                *register = value;
                tracee.state.set_regs(&regs);
                signal::note_registers(tracee);
            }
        }
    }
    Ok(())
}

/// PTRACE_PEEKUSER.
///
/// # Errors
/// EIO for an address that is not a word's.
pub fn peek_user(tracee: &Thread, address: u64) -> Result<u64> {
    check(address)?;
    let index = (address / WORD) as usize;
    Ok(match debug_register(address) {
        Some(6) => link_of(tracee).debug_status.get(),
        None if index < REGISTERS => register(tracee, index),
        _ => 0,
    })
}

/// PTRACE_POKEUSER. The processor's debug registers are out of the kernel's reach: as on Linux where others have them all.
///
/// # Errors
/// EIO for an address that is not a word's or can't be written, and a value that the register can't have; ENOSPC for
/// debug registers.
pub fn poke_user(tracee: &Thread, address: u64, value: u64) -> Result<()> {
    check(address)?;
    let index = (address / WORD) as usize;
    match debug_register(address) {
        Some(4 | 5) => Err(Errno::EIO),
        Some(6) => {
            link_of(tracee).debug_status.set(value);
            Ok(())
        }
        Some(_) => {
            if value == 0 {
                Ok(())
            } else {
                Err(Errno::ENOSPC)
            }
        }
        None if index < REGISTERS => set_register(tracee, index, value),
        None => Err(Errno::EIO),
    }
}

fn check(address: u64) -> Result<()> {
    if address.is_multiple_of(WORD) && address < USER_BYTES { Ok(()) } else { Err(Errno::EIO) }
}

fn debug_register(address: u64) -> Option<u64> {
    address.checked_sub(DEBUG_REGISTERS).map(|offset| offset / WORD).filter(|number| *number < 8)
}

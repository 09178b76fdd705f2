//! The frame of a signal handler on a program's stack: `struct rt_sigframe` (arch/x86/include/asm/sigframe.h), with
//! `struct ucontext` and `struct sigcontext` of asm/ucontext.h and asm/sigcontext.h.
//!
//! From the frame's address up: return address (sa_restorer), ucontext, siginfo, and, 64-byte aligned, the XSAVE area
//! with FP_XSTATE_MAGIC2 behind it. Handlers read and edit all of it; sigreturn(2) takes it back, sanitized.

use super::action::{Action, ActionFlags};
use super::extended::{self, Area};
use super::info::SignalInfo;
use super::number::SignalSet;
use super::stack::{AltStack, SS_AUTODISARM};
use super::state::LastFault;
use crate::arch::regs::UserRegs;
use crate::errno::{Errno, Result};
use crate::mm::addr::{USER_END, UserAddr};
use crate::mm::user;
use crate::task::thread::Thread;
use linux_raw_sys::general as linux;
use torpor_abi::trap::selector;

/// Bytes of `struct rt_sigframe`.
const FRAME_BYTES: usize = 440;
/// uc_flags.
const UC_FLAGS: usize = 8;
/// uc_stack.
const UC_STACK: usize = 24;
/// uc_mcontext, a `struct sigcontext`.
const MCONTEXT: usize = 48;
/// uc_sigmask.
const UC_SIGMASK: usize = MCONTEXT + 256;
/// The siginfo.
const INFO: usize = UC_SIGMASK + 8;

/// uc_flags: fpstate is an XSAVE area; ss is saved, and taken back as it is.
const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;

/// "FPXS", and what follows the XSAVE area (asm/sigcontext.h).
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
const MAGIC2_BYTES: usize = 4;

/// What the psABI lets leaf functions use below their stack pointer.
const RED_ZONE_BYTES: u64 = 128;

/// Bytes that a frame takes at the most (AT_MINSIGSTKSZ): alignment of the XSAVE area and of the frame included.
#[must_use]
pub fn minimum_stack() -> u64 {
    let bytes = FRAME_BYTES + 8 + 63 + 15 + extended::area_bytes() + MAGIC2_BYTES;
    (bytes as u64).next_multiple_of(16).max(u64::from(linux::MINSIGSTKSZ))
}

fn put(frame: &mut [u8; FRAME_BYTES], offset: usize, value: u64) {
    frame[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(frame: &[u8; FRAME_BYTES], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&frame[offset..offset + 8]);
    u64::from_le_bytes(bytes)
}

/// The general registers in the order of `struct sigcontext`.
fn general(regs: &mut UserRegs) -> [&mut u64; 18] {
    let UserRegs { r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, rflags, .. } =
        regs;
    [r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, rflags]
}

/// Where the frame goes.
struct Place {
    frame: u64,
    fpstate: u64,
}

fn place(sp: u64, stack: AltStack, action: &Action) -> Result<Place> {
    let mut top = sp.wrapping_sub(RED_ZONE_BYTES);
    let nested = stack.contains(top);
    let mut entering = false;
    if action.flags.contains(ActionFlags::ONSTACK) && stack.size != 0 && !nested {
        top = stack.base.wrapping_add(stack.size);
        entering = true;
    }
    let fpstate = top.wrapping_sub((extended::area_bytes() + MAGIC2_BYTES) as u64) & !63;
    // As if the handler had been called: 16-byte aligned before the return address.
    let frame = (fpstate.wrapping_sub(FRAME_BYTES as u64) & !15).wrapping_sub(8);
    if (nested || entering) && !stack.spans(frame) {
        return Err(Errno::EFAULT);
    }
    Ok(Place { frame, fpstate })
}

/// Builds the frame and points the thread's registers at the handler. `mask` is what sigreturn(2) shall restore.
///
/// # Errors
/// EFAULT where the stack is not there or too small, or the handler can't be one.
pub(super) fn build(thread: &Thread, info: &SignalInfo, action: &Action, mask: SignalSet) -> Result<()> {
    if !action.flags.contains(ActionFlags::RESTORER) || action.handler >= USER_END {
        return Err(Errno::EFAULT);
    }
    let mut regs = thread.state.regs();
    let stack = thread.signals.alt_stack();
    let Place { frame: at, fpstate } = place(regs.rsp, stack, action)?;
    write_extended(thread, fpstate)?;

    let mut frame = [0; FRAME_BYTES];
    put(&mut frame, 0, action.restorer);
    put(&mut frame, UC_FLAGS, UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS);
    for (n, word) in stack.to_words(stack.flags).into_iter().enumerate() {
        put(&mut frame, UC_STACK + 8 * n, word);
    }
    for (n, register) in general(&mut regs).into_iter().enumerate() {
        put(&mut frame, MCONTEXT + 8 * n, *register);
    }
    let LastFault { vector, error, cr2 } = thread.signals.last_fault.get();
    put(&mut frame, MCONTEXT + 144, regs.cs | regs.ss << 48);
    put(&mut frame, MCONTEXT + 152, error);
    put(&mut frame, MCONTEXT + 160, vector);
    put(&mut frame, MCONTEXT + 168, mask.0);
    put(&mut frame, MCONTEXT + 176, cr2);
    put(&mut frame, MCONTEXT + 184, fpstate);
    put(&mut frame, UC_SIGMASK, mask.0);
    let bytes = info.to_bytes();
    frame[INFO..INFO + bytes.len()].copy_from_slice(&bytes);
    user::write_bytes(UserAddr(at), &frame)?;

    if stack.flags & SS_AUTODISARM != 0 {
        thread.signals.set_alt_stack(AltStack::default());
    }
    let number = u64::from(info.signal.number());
    let start = UserRegs::start(action.handler, at);
    regs.rdi = number;
    regs.rsi = at + INFO as u64;
    regs.rdx = at + UC_FLAGS as u64;
    regs.rax = 0;
    regs.rip = action.handler;
    regs.rsp = at;
    (regs.cs, regs.ss) = (start.cs, start.ss);
    // DF, RF and TF: as Linux clears them.
    regs.rflags &= !(1 << 10 | 1 << 16 | 1 << 8);
    regs.orig_rax = UserRegs::NO_SYSCALL;
    thread.state.set_regs(&regs);
    Area::initial().load(thread);
    Ok(())
}

fn write_extended(thread: &Thread, at: u64) -> Result<()> {
    let mut area = Area::of(thread);
    let bytes = area.bytes_mut();
    let size = bytes.len() as u32;
    // Old readers take the legacy region as valid whatever the header says.
    bytes[extended::HEADER_OFFSET] |= 3;
    let software = &mut bytes[extended::SOFTWARE_OFFSET..extended::HEADER_OFFSET];
    software.fill(0);
    software[0..4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
    software[4..8].copy_from_slice(&(size + MAGIC2_BYTES as u32).to_le_bytes());
    software[8..16].copy_from_slice(&extended::enabled().to_le_bytes());
    software[16..20].copy_from_slice(&size.to_le_bytes());
    user::write_bytes(UserAddr(at), bytes)?;
    user::write(UserAddr(at.wrapping_add(u64::from(size))), &FP_XSTATE_MAGIC2)
}

/// What sigreturn(2) finds besides registers.
pub(super) struct Restored {
    pub(super) mask: SignalSet,
    pub(super) stack: AltStack,
}

/// Takes the thread's registers back from the frame that its stack pointer tells of.
///
/// # Errors
/// EFAULT where the frame is not there or is none.
pub(super) fn restore(thread: &Thread) -> Result<Restored> {
    let mut regs = thread.state.regs();
    // The handler's `ret` has taken the return address.
    let at = regs.rsp.wrapping_sub(8);
    let mut frame = [0; FRAME_BYTES];
    user::read_bytes(UserAddr(at), &mut frame)?;
    for (n, register) in general(&mut regs).into_iter().enumerate() {
        *register = get(&frame, MCONTEXT + 8 * n);
    }
    regs.rflags = UserRegs::sanitized_rflags(regs.rflags);
    // There is no other code or stack segment to return to.
    (regs.cs, regs.ss) = (u64::from(selector::USER_CODE), u64::from(selector::USER_DATA));
    regs.orig_rax = UserRegs::NO_SYSCALL;
    let area = read_extended(get(&frame, MCONTEXT + 184))?;
    thread.state.set_regs(&regs);
    area.load(thread);
    let flags = get(&frame, UC_STACK + 8) as u32;
    Ok(Restored {
        mask: SignalSet(get(&frame, UC_SIGMASK)),
        stack: AltStack { base: get(&frame, UC_STACK), size: get(&frame, UC_STACK + 16), flags },
    })
}

/// The XSAVE area at `at`; the initial state for a null pointer. Without valid software bytes only the legacy region
/// counts, as Linux has it.
fn read_extended(at: u64) -> Result<Area> {
    let mut area = Area::initial();
    if at == 0 {
        return Ok(area);
    }
    let mut legacy = [0; extended::MINIMUM_BYTES];
    user::read_bytes(UserAddr(at), &mut legacy[..extended::HEADER_OFFSET])?;
    let word = |offset: usize| {
        let at = extended::SOFTWARE_OFFSET + offset;
        u32::from_le_bytes([legacy[at], legacy[at + 1], legacy[at + 2], legacy[at + 3]])
    };
    let (magic, extended_size, size) = (word(0), word(4), word(16));
    let components = u64::from(word(8)) | u64::from(word(12)) << 32;
    let known = area.bytes_mut().len() as u32;
    let valid = magic == FP_XSTATE_MAGIC1
        && size >= extended::MINIMUM_BYTES as u32
        && size <= known
        && size <= extended_size
        && user::read::<u32>(UserAddr(at.wrapping_add(u64::from(size)))) == Ok(FP_XSTATE_MAGIC2);
    let bytes = area.bytes_mut();
    if valid {
        user::read_bytes(UserAddr(at), &mut bytes[..size as usize])?;
        let mut header = [0; 8];
        header.copy_from_slice(&bytes[extended::HEADER_OFFSET..extended::HEADER_OFFSET + 8]);
        let used = u64::from_le_bytes(header) & components;
        bytes[extended::HEADER_OFFSET..extended::HEADER_OFFSET + 8].copy_from_slice(&used.to_le_bytes());
    } else {
        bytes[..extended::HEADER_OFFSET].copy_from_slice(&legacy[..extended::HEADER_OFFSET]);
        bytes[extended::HEADER_OFFSET] = 3;
    }
    Ok(area)
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;

//! System calls of a tracee.

use super::{Kind, Link, link_of, stop};
use crate::errno::{Errno, Result};
use crate::task::signal::{self, SIGTRAP, Signal, SignalInfo, TRAP_BRKPT};
use crate::task::thread::Thread;
use alloc::rc::Rc;
use linux_raw_sys::ptrace as linux;

/// What bit 7 of the signal says, with PTRACE_O_TRACESYSGOOD.
const GOOD: u32 = 0x80;

/// The current thread has made a system call; whether that is to be performed, as its registers are now.
pub fn call_begins(me: &Rc<Thread>) -> bool {
    let Some(link) = me.ptrace.link() else { return true };
    // What a tracer sees until there is a result, and what stays of a call that it forbids.
    me.state.set_result(i64::from(-Errno::ENOSYS.0).cast_unsigned());
    if link.calls.get() {
        report(me, &link, linux::PTRACE_EVENTMSG_SYSCALL_ENTRY);
    }
    // The number is an int.
    !me.dying() && me.state.regs().orig_rax as i32 != -1
}

/// The current thread's system call has its result.
pub fn call_ends(me: &Rc<Thread>) {
    let Some(link) = me.ptrace.link().filter(|_| !me.dying()) else { return };
    if link.step.get() {
        // A step over the call ends here, before the next instruction.
        signal::force_info(me, SignalInfo::fault(SIGTRAP, TRAP_BRKPT, me.state.regs().rip));
    } else if link.calls.get() {
        report(me, &link, linux::PTRACE_EVENTMSG_SYSCALL_EXIT);
    }
}

fn report(me: &Rc<Thread>, link: &Link, message: u32) {
    let good = if link.options.get().contains(super::Options::SYSGOOD) { GOOD } else { 0 };
    let outcome = stop::trap(me, Kind::Call, SIGTRAP, SIGTRAP.number() | good, message.into());
    if let Some(signal) = Signal::new(outcome.code) {
        // Of a real-time signal that finds no room nothing is left, as on Linux.
        let _ = signal::send_to_thread(me, SignalInfo::kernel(signal));
    }
}

/// `struct ptrace_syscall_info`: its bytes, and how many of them mean something.
pub type CallInfo = ([u8; INFO_BYTES], usize);

/// Bytes of the structure as far as it is filled in: up to the arguments' end.
const INFO_BYTES: usize = 80;
/// Offset of what depends on `op`.
const CALL: usize = 24;

/// PTRACE_GET_SYSCALL_INFO.
///
/// # Errors
/// ESRCH if the thread is not stopped.
pub fn call_info(tracee: &Thread) -> Result<CallInfo> {
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    let stop = link_of(tracee).stop.get().ok_or(Errno::ESRCH)?;
    let regs = tracee.state.regs();
    let mut info = [0; INFO_BYTES];
    let mut len = CALL;
    let mut put = |at: usize, value: u64| info[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(8, regs.rip);
    put(16, regs.rsp);
    // Only who can tell them from others is told of system calls.
    let good = stop.kind == Kind::Call
        && stop.info.is_some_and(|info| u32::from_le_bytes([info[8], info[9], info[10], info[11]]) & GOOD != 0);
    let op = match u32::try_from(stop.message) {
        Ok(linux::PTRACE_EVENTMSG_SYSCALL_ENTRY) if good => {
            let words = [regs.orig_rax, regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
            for (n, word) in words.into_iter().enumerate() {
                put(CALL + 8 * n, word);
            }
            len = INFO_BYTES;
            linux::PTRACE_SYSCALL_INFO_ENTRY
        }
        Ok(linux::PTRACE_EVENTMSG_SYSCALL_EXIT) if good => {
            put(CALL, regs.rax);
            put(CALL + 8, u64::from((-4095..0).contains(&regs.rax.cast_signed())));
            len = CALL + 9;
            linux::PTRACE_SYSCALL_INFO_EXIT
        }
        _ => linux::PTRACE_SYSCALL_INFO_NONE,
    };
    info[0] = op as u8;
    info[4..8].copy_from_slice(&AUDIT_ARCH_X86_64.to_le_bytes());
    Ok((info, len))
}

//! The point at which a VM stops, and the entry at which one begins whose memory was put together from outside.
//!
//! `snapshot_stop` is a call like any other to the compiler: callee-saved registers are on the kernel stack, all others
//! count for nothing, and the stack pointer is in a static. The resume entry has no stack while the VM process may write to
//! memory, and then one that is no part of a snapshot.

use super::handover;
use crate::arch::tlb;
use core::arch::global_asm;
use core::ptr::{read_volatile, write_volatile};
use core::sync::atomic::Ordering;
use torpor_abi::handover::command;
use torpor_abi::layout::{
    BOOT_TABLES_GPA, DIRECT_MAP_BASE, DOORBELL_GPA, HANDOVER_LIST_GPA, HANDOVER_LIST_MAX, RESUME_STACK_TOP_GPA,
};
use torpor_abi::shared::doorbell;

unsafe extern "C" {
    /// Writes `reason` to `doorbell`; returns when the VM goes on, here or elsewhere.
    fn snapshot_stop(doorbell: *mut u32, reason: u32);
    /// Returns from the `snapshot_stop` whose stack pointer is in memory.
    fn snapshot_continue() -> !;
}

global_asm!(
    r#"
    .section .data.torpor_snapshot, "aw", @progbits
    .balign 8
snapshot_stack: .quad 0

    .section .text.torpor_snapshot, "ax", @progbits
    .globl snapshot_stop
    .balign 16
snapshot_stop:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, snapshot_stack(%rip)
    mov %esi, (%rdi)
    .globl snapshot_continue
snapshot_continue:
    mov snapshot_stack(%rip), %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret

    .globl entry_resume
    .balign 16
entry_resume:
    movabs ${stack}, %rsp
    xor %ebp, %ebp
    call snapshot_commanded
    movabs ${parked}, %rdi
    movl $0, (%rdi)
    jmp entry_resume
    .text
"#,
    parked = const DIRECT_MAP_BASE + DOORBELL_GPA + doorbell::PARKED,
    stack = const DIRECT_MAP_BASE + RESUME_STACK_TOP_GPA,
    options(att_syntax)
);

/// Rings QUIESCED; returns when the VM goes on.
pub(super) fn stop(reason: u32) {
    let doorbell = (DIRECT_MAP_BASE + DOORBELL_GPA + doorbell::QUIESCED) as *mut u32;
    // SAFETY: a write to the doorbell page is an exit, not memory. What the compiler keeps in registers across a call is
    // restored from the stack, and memory may have changed in every other way but that.
    unsafe { snapshot_stop(doorbell, reason) };
}

/// The command that is in the handover page. Runs with the boot page tables, which map the kernel image and the direct map and
/// which nobody changes there, and touches no memory but those tables, the handover and its own stack.
#[unsafe(no_mangle)]
extern "C" fn snapshot_commanded() {
    let entries = handover().entries.load(Ordering::Acquire).min(HANDOVER_LIST_MAX);
    let pair = |index: u32| {
        let at = (DIRECT_MAP_BASE + HANDOVER_LIST_GPA + u64::from(index) * 16) as *const u64;
        // SAFETY: within the list, which the VM process has written before it ran the vCPU.
        unsafe { (read_volatile(at), read_volatile(at.add(1))) }
    };
    match handover().command.load(Ordering::Acquire) {
        command::REST => {
            store_entries(entries, pair);
            tlb::load_root(BOOT_TABLES_GPA);
        }
        command::RESUME => {
            store_entries(entries, pair);
            tlb::load_root(tlb::active().0);
            // SAFETY: the state in memory was left by `snapshot_stop`, and its page tables are loaded.
            unsafe { snapshot_continue() }
        }
        command::TOUCH => {
            let mut root = BOOT_TABLES_GPA;
            for index in 0..entries {
                let (of, address) = pair(index);
                if of != root {
                    root = of;
                    tlb::load_root(root);
                }
                touch(address);
            }
            tlb::load_root(BOOT_TABLES_GPA);
        }
        other => panic!("resume entry: command {other}"),
    }
}

fn store_entries(entries: u32, pair: impl Fn(u32) -> (u64, u64)) {
    for index in 0..entries {
        let (gpa, value) = pair(index);
        // SAFETY: the VM process lists entries of page tables only. None that is in use now is among them but those of the
        // boot tables' kernel stacks, which this code does not use.
        unsafe { write_volatile((DIRECT_MAP_BASE + gpa) as *mut u64, value) };
    }
}

fn touch(address: u64) {
    let byte = (address & !1) as *mut u8;
    // SAFETY: the VM process lists addresses that the loaded tables map, as writable ones where it asks for a write;
    // nothing else runs that could change the byte meanwhile.
    unsafe {
        let value = read_volatile(byte);
        if address & 1 != 0 {
            write_volatile(byte, value);
        }
    }
}

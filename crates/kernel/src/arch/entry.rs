//! Entries into the kernel and the way back: the only assembly besides the context switch.
//!
//! # Privilege
//! Programs and kernel both run at CPL 3. An exception or interrupt enters its gate at CPL 0, where every instruction
//! may be emulated; so the stubs there (`stub_*`) are a few instructions that load a prebuilt frame and `iretq` to the
//! CPL 3 entry (`entry_*`). `syscall` lands on [`stub_syscall`](symbol) at CPL 0 or, on some hosts, stays at CPL 3:
//! the stub's three instructions are right at either.
//!
//! # Interrupts
//! They can't be masked at CPL 3. The VM process injects one at a time: none while `Control::interrupt_busy` is set.
//! One that interrupts a program becomes an entry like a system call. One that interrupts the kernel (told by RIP, the
//! stubs included) sets `deferred` and goes back; busy stays set until the kernel has seen `deferred`, so the frame at
//! the top of its stack is safe. The kernel looks at `deferred` last thing before it returns to a program. Between that
//! look and `iretq` the frame on the kernel stack is complete and untouched, so an interrupt there simply restarts the
//! sequence (`return_to_user`..`return_end`).
//!
//! # Exceptions
//! All that programs cause arrive with their frame at the top of a stack of the trap area (`torpor_abi::trap`), are
//! copied to the thread's kernel stack and handled there. One in kernel code is a bug: panic.
//!
//! # Gates
//! Privileged instructions run through `int3`: the #BP stub knows the addresses of the kernel's own `int3`s. The kernel is
//! linked at a multiple of 4 GiB, so that two comparisons of 32 bits tell them from all others.

use super::regs::USER_REGS_BYTES;
use core::arch::global_asm;
use torpor_abi::layout::KERNEL_BASE;
use torpor_abi::trap::{KERNEL_MAGIC, ist, selector, stack_top_va};

unsafe extern "C" {
    /// Start of a new thread's kernel stack: pops into [`super::thread::first_return`].
    pub(super) fn thread_entry();
    /// Saves callee-saved registers and the stack pointer to `*from`, continues at `to`.
    pub(super) fn switch_stacks(from: *mut u64, to: u64);
    /// Loads CR3 through the gate.
    pub(super) fn gate_load_cr3(cr3: u64);
    /// Where islands jump to, with the return address in rcx: see [`crate::rewrite`].
    pub(super) fn entry_fast();
    /// `invlpg` through the gate.
    pub(super) fn gate_invlpg(address: u64);
    /// The `iretq` frame that the system call stub loads; its stack pointer is the current thread's kernel stack top.
    pub(super) static mut syscall_frame: [u64; 5];
    /// Set by an interrupt in kernel code.
    pub(super) static deferred: core::sync::atomic::AtomicU32;
    /// CR2 of the last page fault.
    pub(super) static page_fault_address: u64;
    /// Address of the `torpor_abi::trap::KernelHeader`.
    pub(super) static TORPOR_KERNEL_HEADER: torpor_abi::trap::KernelHeader;
}

const _: () = assert!(KERNEL_BASE & 0xffff_ffff == 0);

global_asm!(
    r#"
    .section .data.torpor_traps, "aw", @progbits
    .balign 64
    .globl TORPOR_KERNEL_HEADER
TORPOR_KERNEL_HEADER:
    .quad {magic}
    .quad {version}
    .quad entry_boot
    .quad boot_stack_top
    .quad stub_syscall
    .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    .quad stub_exception_\n
    .endr
    .quad stub_event
    .quad stub_spurious
    .quad entry_resume

    # Prebuilt iretq frames: where the stubs bounce to at CPL 3.
    .macro bounce_frame name, entry, stack
    .balign 16
    .globl \name
\name:
    .quad \entry, {user_code}, 0x202, \stack, {user_data}
    .endm
    bounce_frame syscall_frame, entry_syscall, boot_stack_top
    bounce_frame event_frame, entry_event, event_stack_top
    .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    bounce_frame exception_frame_\n, entry_exception_\n, exception_stack_top
    .endr
    bounce_frame spurious_frame, entry_spurious, exception_stack_top

    .balign 8
    # Where the frame is, but from the stub to the entry: the program's stack pointer, and what CR2 holds.
syscall_exchange: .quad syscall_frame
page_fault_exchange: .quad exception_frame_14
    .globl page_fault_address
page_fault_address: .quad 0
    .globl deferred
deferred: .long 0

    .section .bss.torpor_stacks, "aw", @nobits
    .balign 4096
    .skip 32768
boot_stack_top:
    .skip 256
event_stack_top:
    .skip 16384
exception_stack_top:

    .section .text.torpor_entry, "ax", @progbits

    # ---- CPL 0 (or, for syscall, either level) ----
    .balign 16
stub_syscall:
    xchg %rsp, syscall_exchange(%rip)
    iretq

    .balign 16
stub_event:
    lea event_frame(%rip), %rsp
    iretq

    .balign 16
stub_spurious:
    lea spurious_frame(%rip), %rsp
    iretq

    .macro exception_stub n
    .balign 16
stub_exception_\n:
    .if \n == 14
    mov %cr2, %rsp
    xchg %rsp, page_fault_exchange(%rip)
    iretq
    .else
    .if \n == 3
    # Is it one of the gates? The kernel's addresses differ in the lower 32 bits only. Every instruction counts here.
    cmpl ${kernel_high}, 4(%rsp)
    jne 2f
    cmpl $(gate_cr3_after - {kernel_base}), (%rsp)
    jne 1f
    mov %rdi, %cr3
    iretq
1:  cmpl $(gate_invlpg_after - {kernel_base}), (%rsp)
    jne 2f
    invlpg (%rdi)
    iretq
2:
    .endif
    lea exception_frame_\n(%rip), %rsp
    iretq
    .endif
    .endm
    .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    exception_stub \n
    .endr

    # ---- CPL 3 ----
    .globl gate_load_cr3
    .balign 16
gate_load_cr3:
    int3
gate_cr3_after:
    ret
    .globl gate_invlpg
    .balign 16
gate_invlpg:
    int3
gate_invlpg_after:
    ret

    .balign 16
entry_boot:
    xor %ebp, %ebp
    call kernel_main
    ud2

    # Pushes what follows the iretq frame and orig_rax in UserRegs, downwards, with rax and rcx from where they are.
    .macro push_regs rax, rcx
    push %rdi
    push %rsi
    push %rdx
    pushq \rcx
    pushq \rax
    push %r8
    push %r9
    push %r10
    push %r11
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    .endm
    .macro save_vectors
    sub $264, %rsp
    stmxcsr 256(%rsp)
    movl $0, 260(%rsp)
    .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    movups %xmm\n, 16*\n(%rsp)
    .endr
    ldmxcsr kernel_mxcsr(%rip)
    xor %ebp, %ebp
    .endm

    .balign 16
entry_syscall:
    pushq ${user_data}
    pushq syscall_exchange(%rip)
    push %r11
    pushq ${user_code}
    push %rcx
    push %rax
    push_regs %rax, %rcx
    lea syscall_frame(%rip), %rbp
    mov %rbp, syscall_exchange(%rip)
    save_vectors
    mov %rsp, %rdi
    call handle_syscall
    jmp return_to_user

    # As `syscall` does it: rcx is the return address already, r11 takes the flags. Theirs are the flags until popf.
    .globl entry_fast
    .balign 16
entry_fast:
    mov %rsp, %r11
    mov syscall_frame+24(%rip), %rsp
    pushq ${user_data}
    push %r11
    pushfq
    mov (%rsp), %r11
    pushq ${user_code}
    push %rcx
    push %rax
    pushq $0x202
    popfq
    push_regs %rax, %rcx
    save_vectors
    mov %rsp, %rdi
    call handle_fast_syscall
    # falls through

return_to_user:
    mov syscall_frame+24(%rip), %rsp
    sub ${frame_bytes}, %rsp
    cmpl $0, deferred(%rip)
    jne 3f
    .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    movups 16*\n(%rsp), %xmm\n
    .endr
    ldmxcsr 256(%rsp)
    add $264, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rax
    pop %rcx
    pop %rdx
    pop %rsi
    pop %rdi
    add $8, %rsp
    # `popf` and `jmp` cost less than `iretq`, and do where the registers are as after `syscall` and nothing is traced.
    cmp %rcx, (%rsp)
    jne 2f
    cmp %r11, 16(%rsp)
    jne 2f
    test $0x100, %r11d
    jnz 2f
    add $16, %rsp
    popfq
    mov (%rsp), %rsp
    jmp *%rcx
2:  iretq
return_end:
3:  mov %rsp, %rdi
    xor %ebp, %ebp
    call handle_return
    jmp return_to_user

    .balign 16
entry_event:
    push %rax
    push %rcx
    movabs ${event_top}, %rcx
    mov -40(%rcx), %rcx
    movabs ${minus_kernel_base}, %rax
    add %rcx, %rax
    shr $24, %rax
    jz 4f
    # A program was interrupted.
    mov %rsp, %rax
    movabs ${event_top}, %rcx
    mov syscall_frame+24(%rip), %rsp
    pushq -8(%rcx)
    pushq -16(%rcx)
    pushq -24(%rcx)
    pushq -32(%rcx)
    pushq -40(%rcx)
    pushq $-1
    push_regs 8(%rax), (%rax)
    save_vectors
    mov %rsp, %rdi
    call handle_event
    jmp return_to_user
4:  # The kernel was interrupted: leave a note, and restart the way out if it was on it.
    movl $1, deferred(%rip)
    lea return_to_user(%rip), %rax
    cmp %rax, %rcx
    jb 5f
    lea return_end(%rip), %rax
    cmp %rax, %rcx
    jae 5f
    lea return_to_user(%rip), %rax
    movabs ${event_top}, %rcx
    mov %rax, -40(%rcx)
    movq $0x202, -24(%rcx)
5:  pop %rcx
    pop %rax
    movabs ${event_top_frame}, %rsp
    iretq

    .macro exception_entry n, top, error
    .balign 16
entry_exception_\n:
    push %rax
    push %rcx
    push %rdx
    .if \n == 14
    mov page_fault_exchange(%rip), %rax
    mov %rax, page_fault_address(%rip)
    lea exception_frame_14(%rip), %rax
    mov %rax, page_fault_exchange(%rip)
    .endif
    movabs $\top, %rcx
    mov $(\n | (\error << 8)), %eax
    jmp entry_exception
    .endm
    exception_entry 0, {plain_top}, 0
    exception_entry 1, {debug_top}, 0
    exception_entry 2, {plain_top}, 0
    exception_entry 3, {breakpoint_top}, 0
    exception_entry 4, {plain_top}, 0
    exception_entry 5, {plain_top}, 0
    exception_entry 6, {plain_top}, 0
    exception_entry 7, {plain_top}, 0
    exception_entry 8, {double_fault_top}, 1
    exception_entry 9, {plain_top}, 0
    exception_entry 10, {plain_top}, 1
    exception_entry 11, {plain_top}, 1
    exception_entry 12, {plain_top}, 1
    exception_entry 13, {plain_top}, 1
    exception_entry 14, {page_fault_top}, 1
    exception_entry 15, {plain_top}, 0
    exception_entry 16, {plain_top}, 0
    exception_entry 17, {plain_top}, 1
    exception_entry 18, {plain_top}, 0
    exception_entry 19, {plain_top}, 0
    exception_entry 20, {plain_top}, 0
    exception_entry 21, {plain_top}, 1
    .irp n,22,23,24,25,26,27,28
    exception_entry \n, {plain_top}, 0
    .endr
    exception_entry 29, {plain_top}, 1
    exception_entry 30, {plain_top}, 1
    exception_entry 31, {plain_top}, 0
    .balign 16
entry_spurious:
    push %rax
    push %rcx
    push %rdx
    movabs ${plain_top}, %rcx
    mov $0xff, %eax
    # falls through

entry_exception:    # eax = vector | has error code << 8, rcx = top of the trap stack; rdx, rcx, rax on this stack
    movabs ${minus_kernel_base}, %rdx
    add -40(%rcx), %rdx
    shr $24, %rdx
    jz 6f
    mov %rsp, %rdx
    mov syscall_frame+24(%rip), %rsp
    jmp 7f
6:  mov %rsp, %rdx      # in the kernel: stay on this stack, below what was pushed
    and $-16, %rsp
7:  pushq -8(%rcx)
    pushq -16(%rcx)
    pushq -24(%rcx)
    pushq -32(%rcx)
    pushq -40(%rcx)
    pushq $-1
    push %rdi
    push %rsi
    pushq (%rdx)
    pushq 8(%rdx)
    pushq 16(%rdx)
    push %r8
    push %r9
    push %r10
    push %r11
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rcx, %rbx
    mov %eax, %r12d
    mov %rbp, %r13
    save_vectors
    mov %rsp, %rdi
    movzbl %r12b, %esi
    xor %edx, %edx
    shr $8, %r12d
    jz 8f
    mov -48(%rbx), %rdx
8:  movabs ${minus_kernel_base}, %rcx
    add -40(%rbx), %rcx
    shr $24, %rcx
    jz 9f
    call handle_exception
    jmp return_to_user
9:  mov %r13, %rbp
    call kernel_exception
    ud2

    .globl switch_stacks
    .balign 16
switch_stacks:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret

    .globl thread_entry
    .balign 16
thread_entry:
    xor %ebp, %ebp
    call handle_thread_start
    jmp return_to_user

    .section .rodata.torpor_entry, "a", @progbits
    .balign 4
kernel_mxcsr: .long 0x1f80
    .text
"#,
    magic = const KERNEL_MAGIC,
    version = const torpor_abi::boot::VERSION,
    user_code = const selector::USER_CODE,
    user_data = const selector::USER_DATA,
    frame_bytes = const USER_REGS_BYTES,
    minus_kernel_base = const -(KERNEL_BASE as i64),
    kernel_base = const KERNEL_BASE,
    kernel_high = const KERNEL_BASE >> 32,
    event_top = const stack_top_va(ist::EVENT),
    event_top_frame = const stack_top_va(ist::EVENT) - 40,
    plain_top = const stack_top_va(0),
    page_fault_top = const stack_top_va(ist::PAGE_FAULT),
    debug_top = const stack_top_va(ist::DEBUG),
    breakpoint_top = const stack_top_va(ist::BREAKPOINT),
    double_fault_top = const stack_top_va(ist::DOUBLE_FAULT),
    options(att_syntax)
);

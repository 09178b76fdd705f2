//! Descriptor tables and stacks for traps: written by the VM process, used by the processor, the entries' code is the
//! kernel's ([`KernelHeader`] tells where).

use crate::layout::{DIRECT_MAP_BASE, TRAP_GPA};

/// Selectors are Linux's: `iretq` from CPL 3 to CPL 3 is native with these on a software KVM.
pub mod selector {
    /// Ring 0 code, for the trampolines.
    pub const KERNEL_CODE: u16 = 0x10;
    /// Ring 0 data.
    pub const KERNEL_DATA: u16 = 0x18;
    /// Ring 3 data.
    pub const USER_DATA: u16 = 0x2b;
    /// Ring 3 64-bit code.
    pub const USER_CODE: u16 = 0x33;
    /// The task state segment (16 bytes).
    pub const TSS: u16 = 0x40;
}

/// Offsets from [`TRAP_GPA`].
pub const GDT_OFFSET: u64 = 0;
/// Bytes of the GDT (10 entries).
pub const GDT_BYTES: u64 = 0x50;
/// The TSS: 104 bytes, I/O map base beyond its limit, so that port I/O at CPL 3 faults.
pub const TSS_OFFSET: u64 = 0x100;
/// Bytes of the TSS.
pub const TSS_BYTES: u64 = 104;
/// 256 gates of 16 bytes.
pub const IDT_OFFSET: u64 = 0x1000;
/// Bytes of the IDT.
pub const IDT_BYTES: u64 = 0x1000;
/// Stack tops (they grow down): RSP0, then IST 1 to 5; a page each.
pub const STACKS_OFFSET: u64 = 0x2000;
/// Size of each of the six stacks.
pub const STACK_BYTES: u64 = 0x1000;

/// IST numbers (0 is RSP0).
pub mod ist {
    /// Host events.
    pub const EVENT: u8 = 1;
    /// #PF.
    pub const PAGE_FAULT: u8 = 2;
    /// #DB.
    pub const DEBUG: u8 = 3;
    /// #BP.
    pub const BREAKPOINT: u8 = 4;
    /// #DF.
    pub const DOUBLE_FAULT: u8 = 5;
}

/// Virtual address of an offset into the trap area.
#[must_use]
pub const fn trap_va(offset: u64) -> u64 {
    DIRECT_MAP_BASE + TRAP_GPA + offset
}

/// Virtual address of the top of stack `index` (0 is RSP0, 1 to 5 are the ISTs).
#[must_use]
pub const fn stack_top_va(index: u8) -> u64 {
    trap_va(STACKS_OFFSET + (index as u64 + 1) * STACK_BYTES)
}

/// What `syscall` clears in RFLAGS (MSR SFMASK): TF, DF, NT and AC, but not IF. Where `syscall` stays at CPL 3 nothing
/// could ever set IF again. Where it raises to CPL 0, the VM process sees to it that an event waits until the stub's
/// `iretq`: no event ever interrupts CPL 0.
pub const SYSCALL_FLAG_MASK: u64 = 1 << 8 | 1 << 10 | 1 << 14 | 1 << 18;

/// First word of [`KernelHeader`]: "TORPORKN".
pub const KERNEL_MAGIC: u64 = u64::from_le_bytes(*b"TORPORKN");

/// Entry points; the entry address of the kernel's ELF file is where this lies.
/// All addresses are virtual, inside the kernel image.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KernelHeader {
    /// [`KERNEL_MAGIC`].
    pub magic: u64,
    /// [`crate::boot::VERSION`].
    pub version: u64,
    /// First instruction, at CPL 3, with `rsp` = [`KernelHeader::boot_stack_top`].
    pub entry: u64,
    /// See `entry`.
    pub boot_stack_top: u64,
    /// For LSTAR: a stub that is right at CPL 0 and at CPL 3.
    pub syscall_stub: u64,
    /// CPL 0 stubs of vectors 0 to 31.
    pub exception_stubs: [u64; 32],
    /// CPL 0 stub of [`crate::shared::EVENT_VECTOR`].
    pub event_stub: u64,
    /// CPL 0 stub of every other vector.
    pub spurious_stub: u64,
    /// Where a VM whose state was put into memory from outside begins, at CPL 3, with the boot page tables and no stack:
    /// see [`crate::handover`].
    pub resume_entry: u64,
}

//! Guest-physical and guest-virtual memory map.
//!
//! ```text
//! guest-physical                              guest-virtual (kernel slot, PML4 entry 255)
//! 0x0000_0000  trap page, boot info, clock    0x7f80_0000_0000  direct map of guest-physical memory
//! 0x0002_0000  shared control page            0x7ff0_0000_0000  kernel image
//! 0x0004_0000  ring guest -> host             0x7ff8_0000_0000  kernel stacks, guard pages between
//! 0x0008_0000  ring host -> guest
//! 0x000c_0000  handover of the VM's state
//! 0x0020_0000  kernel image
//! ...          page tables, frames
//! ram_bytes    end of RAM
//! 0xf_0000_0000  doorbells (no memory)
//! 0x10_0000_0000 EROFS image, read-only
//! ```
//! The kernel runs at CPL 3 beside the program, so everything is in the lower
//! half; programs own `[USER_BASE, USER_END)`.

/// A page, and the unit of mapping.
pub const PAGE_BYTES: u64 = 4096;
/// What a page-directory entry maps.
pub const LARGE_PAGE_BYTES: u64 = 2 << 20;

/// First and last-plus-one addresses that a program may use (`vm.mmap_min_addr` is 64 KiB, as on Linux).
pub const USER_BASE: u64 = 0x1_0000;
/// See [`USER_BASE`].
pub const USER_END: u64 = 0x7f80_0000_0000;
/// Index of the PML4 entry that every address space shares.
pub const KERNEL_PML4_INDEX: usize = 255;

/// Where guest-physical address 0 appears in the kernel's part of every address space.
pub const DIRECT_MAP_BASE: u64 = 0x7f80_0000_0000;
/// The direct map reaches this far (guest-physical).
pub const DIRECT_MAP_BYTES: u64 = 256 << 30;
/// Where the kernel image is linked; guest-physical [`KERNEL_GPA`].
pub const KERNEL_BASE: u64 = 0x7ff0_0000_0000;
/// The kernel image, bss included, is at most this large.
pub const KERNEL_MAX_BYTES: u64 = 16 << 20;
/// Kernel stacks with guard pages between them.
pub const STACKS_BASE: u64 = 0x7ff8_0000_0000;
/// End of the kernel's part (end of the lower half, less one page as on Linux).
pub const KERNEL_END: u64 = 0x7fff_ffff_f000;

/// [`crate::trap::TrapPage`]: GDT, IDT and TSS.
pub const TRAP_GPA: u64 = 0x1000;
/// Size of the trap area: GDT, TSS, IDT and the five IST stacks and the plain exception stack.
pub const TRAP_BYTES: u64 = 0xf000;
/// [`crate::boot::BootInfo`].
pub const BOOT_INFO_GPA: u64 = 0x1_0000;
/// Room for the boot information.
pub const BOOT_INFO_MAX_BYTES: u64 = 0x1_0000;
/// [`crate::shared::Control`].
pub const CONTROL_GPA: u64 = 0x2_0000;
/// [`crate::clock::ClockPage`]; a page of its own because programs see it as `[vvar]`.
pub const CLOCK_GPA: u64 = 0x2_1000;
/// Page tables that the VM process writes before the first entry.
pub const BOOT_TABLES_GPA: u64 = 0x2_2000;
/// Room for the boot tables (PML4, PDPTs, page directories).
pub const BOOT_TABLES_BYTES: u64 = 0x1_e000;
/// Ring of [`crate::frame`]s from guest to host: its data. Indices are in [`crate::shared::Control`].
pub const TX_RING_GPA: u64 = 0x4_0000;
/// Ring of frames from host to guest: its data.
pub const RX_RING_GPA: u64 = 0x8_0000;
/// Size of each ring's data, a power of two.
pub const RING_BYTES: u64 = 256 << 10;
/// [`crate::handover::Handover`]: not part of a snapshot, and neither are the stack and the list behind it.
pub const HANDOVER_GPA: u64 = 0xc_0000;
/// Top of the stack that the kernel's resume entry uses.
pub const RESUME_STACK_TOP_GPA: u64 = 0xc_8000;
/// The list of a handover: pairs of u64.
pub const HANDOVER_LIST_GPA: u64 = 0xc_8000;
/// Most pairs in the list (1 MiB).
pub const HANDOVER_LIST_MAX: u32 = 0x1_0000;
/// End of the list.
pub const HANDOVER_END_GPA: u64 = HANDOVER_LIST_GPA + HANDOVER_LIST_MAX as u64 * 16;
/// The strings of [`crate::boot::BootInfo`], where the list is later: they are read before there is one. More than fit are
/// in RAM that nobody uses yet.
pub const BOOT_STRINGS_GPA: u64 = HANDOVER_LIST_GPA;
/// Room for them there.
pub const BOOT_STRINGS_ROOM_BYTES: u64 = HANDOVER_END_GPA - HANDOVER_LIST_GPA;
/// Room that arguments and environment have in all, with 8 bytes for a pointer to each: what Linux gives a program whose
/// stack may have 8 MiB.
pub const BOOT_STRINGS_MAX_BYTES: u64 = 2 << 20;
/// The longest argument or variable, its NUL included (Linux's MAX_ARG_STRLEN).
pub const STRING_MAX_BYTES: u64 = 128 << 10;
/// Where the kernel image is loaded.
pub const KERNEL_GPA: u64 = 0x20_0000;

/// A page of guest-physical space without memory: a 4-byte write ends in the VM process. See [`crate::shared`].
pub const DOORBELL_GPA: u64 = 0xf_0000_0000;
/// Where the EROFS image is mapped, read-only.
pub const IMAGE_GPA: u64 = 0x10_0000_0000;
/// The largest image.
pub const IMAGE_MAX_BYTES: u64 = DIRECT_MAP_BYTES - IMAGE_GPA;

/// RAM is a multiple of this.
pub const RAM_ALIGN_BYTES: u64 = LARGE_PAGE_BYTES;
/// The smallest and the largest memory limit of a VM.
pub const MIN_MEMORY_BYTES: u64 = 16 << 20;
/// See [`MIN_MEMORY_BYTES`].
pub const MAX_MEMORY_BYTES: u64 = 14 << 30;

/// Guest-physical RAM for a VM whose programs may use `limit_bytes`: sparse areas are backed in pieces, so the
/// space is larger than the limit; what is used is charged by the guest and bounded by the VM process.
#[must_use]
pub const fn ram_bytes(limit_bytes: u64) -> u64 {
    let wanted = if limit_bytes < (128 << 20) { limit_bytes * 4 } else { limit_bytes * 3 + (128 << 20) };
    let rounded = (wanted + RAM_ALIGN_BYTES - 1) & !(RAM_ALIGN_BYTES - 1);
    if rounded > DOORBELL_GPA - LARGE_PAGE_BYTES { DOORBELL_GPA - LARGE_PAGE_BYTES } else { rounded }
}

const _: () = assert!(HANDOVER_END_GPA <= KERNEL_GPA);

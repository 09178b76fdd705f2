//! How RAM behind the kernel image is divided; see [`super`].

use super::addr::{Gpa, PAGE_BYTES};
use super::metadata::Blocks;
use super::{frame, paging};
use torpor_abi::layout::LARGE_PAGE_BYTES;

/// Page tables get this part of RAM: dense memory needs a 512th of what is mapped, and every process a dozen tables.
const TABLES_SHARE: u64 = 64;
/// And at least this much.
const TABLES_MIN_BYTES: u64 = 4 << 20;

const fn round_up(value: u64, to: u64) -> u64 {
    (value + to - 1) & !(to - 1)
}

/// Takes over RAM from `kernel_end` on. RAM there has never been written, so it is zero. `boot_pml4` is the root whose
/// kernel entry all address spaces share; `limit_bytes` is what may be allocated.
///
/// # Panics
/// If RAM is too small to hold the metadata and some frames.
pub fn init(ram_bytes: u64, limit_bytes: u64, kernel_end: Gpa, boot_pml4: Gpa) {
    let metadata = round_up(kernel_end.0, PAGE_BYTES);
    let (blocks, metadata_bytes) = Blocks::layout(Gpa(metadata), ram_bytes);
    let tables_bytes = (ram_bytes / TABLES_SHARE).max(TABLES_MIN_BYTES);
    let counts = metadata + metadata_bytes;
    let counts_bytes = round_up(paging::metadata_bytes(tables_bytes + LARGE_PAGE_BYTES), PAGE_BYTES);
    let tables = counts + counts_bytes;
    let frames = round_up(tables + tables_bytes, LARGE_PAGE_BYTES);
    assert!(frames + 2 * LARGE_PAGE_BYTES <= ram_bytes, "RAM of {ram_bytes} bytes is too small");
    frame::init(blocks, Gpa(frames), limit_bytes);
    paging::init(Gpa(counts), Gpa(tables), frames - tables, boot_pml4);
}

/// Hosted: a test's RAM: `ram_bytes` of address space, of which `limit_bytes` may be used. Without a call, 1 GiB and 256 MiB.
#[cfg(feature = "hosted")]
pub(super) fn init_hosted(ram_bytes: u64, limit_bytes: u64) {
    super::phys::map_ram(ram_bytes);
    // As in the guest: some pages before the kernel's end, among them the root of the boot tables.
    init(ram_bytes, limit_bytes, Gpa(2 * PAGE_BYTES), Gpa(PAGE_BYTES));
}

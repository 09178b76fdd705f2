//! Page-table changes that the processor must hear of. Each costs about 8 us on a software KVM: batch them.

use crate::mm::addr::Gpa;
use core::sync::atomic::{AtomicU64, Ordering};

/// Forgets the translation of one page in the active address space.
pub fn flush_page(address: u64) {
    // SAFETY: the gate executes `invlpg`, which changes no memory.
    unsafe { super::entry::gate_invlpg(address) };
}

/// Forgets all translations of the active address space.
pub fn flush_all() {
    activate(active());
}

static ACTIVE: AtomicU64 = AtomicU64::new(0);

/// Makes `pml4` the root of the active address space.
///
/// The kernel's part (PML4 entry 255) must be in it, as in every address space that `mm` makes.
pub fn activate(pml4: Gpa) {
    ACTIVE.store(pml4.0, Ordering::Relaxed);
    // SAFETY: `mm` hands out roots whose entry 255 maps the kernel, so this code and its stack stay mapped.
    unsafe { super::entry::gate_load_cr3(pml4.0) };
}

/// Loads a root without making it the active one: for code that needs no more than the kernel's part.
pub(crate) fn load_root(root: u64) {
    // SAFETY: as for `activate`; the callers are the snapshot's.
    unsafe { super::entry::gate_load_cr3(root) };
}

/// Root of the active address space.
#[must_use]
pub fn active() -> Gpa {
    Gpa(ACTIVE.load(Ordering::Relaxed))
}

/// Tells which root the VM process entered the kernel with.
pub(crate) fn set_boot_root(pml4: Gpa) {
    ACTIVE.store(pml4.0, Ordering::Relaxed);
}

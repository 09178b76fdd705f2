//! What the processor and the host must hear of, gathered so that it is told once per operation.

use super::addr::{Gpa, PAGE_BYTES};

#[cfg(not(feature = "hosted"))]
mod hardware {
    pub(crate) use crate::arch::tlb::{active, flush_all, flush_page};
    pub(crate) use crate::host::{discard, populate};
}

/// Hosted: there is no processor that would remember translations; discarded memory reads as zero as in the guest. Unit
/// tests say which root is active and see what is flushed.
#[cfg(feature = "hosted")]
mod hardware {
    use crate::mm::addr::Gpa;
    use core::cell::Cell;

    std::thread_local! {
        static ACTIVE: Cell<u64> = const { Cell::new(0) };
    }

    pub(crate) fn active() -> Gpa {
        Gpa(ACTIVE.get())
    }
    #[cfg(test)]
    pub(crate) fn set_active(root: Gpa) {
        ACTIVE.set(root.0);
    }
    pub(crate) fn flush_all() {
        #[cfg(test)]
        super::testing::LOG.with_borrow_mut(|log| log.push(None));
    }
    pub(crate) fn flush_page(_address: u64) {
        #[cfg(test)]
        super::testing::LOG.with_borrow_mut(|log| log.push(Some(_address)));
    }
    pub(crate) fn populate(_gpa: Gpa, _bytes: u64) {}
    pub(crate) fn discard(gpa: Gpa, bytes: u64) {
        // SAFETY: the frame allocator discards only free frames.
        unsafe { crate::mm::phys::zero(gpa, bytes as usize) };
    }
}

/// For unit tests: what the processor was told.
#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use super::hardware::set_active;
    use alloc::vec::Vec;
    use core::cell::RefCell;

    std::thread_local! {
        pub(super) static LOG: RefCell<Vec<Option<u64>>> = const { RefCell::new(Vec::new()) };
    }

    /// Addresses that were flushed since the last call; `None` is all.
    pub(crate) fn take_log() -> Vec<Option<u64>> {
        LOG.take()
    }
}

pub(super) use hardware::{discard, populate};

/// Whether `root` is the page table that the processor uses now.
#[cfg(not(feature = "hosted"))]
pub(super) fn is_active(root: Gpa) -> bool {
    hardware::active() == root
}

/// Translations of one address space that changed while present. A CR3 reload costs about what one `invlpg` does (both
/// go through a gate), so more than one page is one reload.
#[derive(Default)]
pub(crate) struct Flush {
    page: u64,
    pages: u64,
}

impl Flush {
    /// The translation of the page at `address` was changed or taken away.
    pub(crate) fn page(&mut self, address: u64) {
        if self.pages == 0 || self.page != address {
            self.page = address;
            self.pages += 1;
        }
    }

    /// Many translations were, or a table was freed.
    pub(crate) fn all(&mut self) {
        self.pages = 2;
    }

    /// Tells the processor of changes in the kernel's part, which every address space shares.
    pub(crate) fn finish_kernel(self) {
        if self.pages > 0 {
            hardware::flush_all();
        }
    }

    /// Tells the processor, if `root` is the active page table (another one is loaded anew when it is activated).
    pub(crate) fn finish(self, root: Gpa) {
        if self.pages == 0 || hardware::active() != root {
            return;
        }
        if self.pages == 1 {
            hardware::flush_page(self.page & !(PAGE_BYTES - 1));
        } else {
            hardware::flush_all();
        }
    }
}

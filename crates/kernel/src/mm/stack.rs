//! Kernel stacks: 32 KiB each, an unmapped page below each, so that an overflow is a fault and not corruption.

use super::addr::PAGE_BYTES;
use super::frame::{self, Content, NoMemory};
use super::paging;
use super::tlb::Flush;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use torpor_abi::layout::{KERNEL_END, STACKS_BASE};

/// Size of a kernel stack.
pub const STACK_BYTES: u64 = 32 << 10;
/// From stack to stack: the guard page and the stack.
const STRIDE_BYTES: u64 = STACK_BYTES + PAGE_BYTES;
/// Unused stacks that stay mapped.
const KEEP: usize = 4;

struct Stacks {
    /// Places that were used at some time: stacks have been mapped below this index.
    used: Cell<u64>,
    /// Mapped stacks that nobody uses.
    mapped: RefCell<Vec<u64>>,
    /// Places without memory.
    unmapped: RefCell<Vec<u64>>,
}

crate::global! {
    static STACKS: Stacks =
        Stacks { used: Cell::new(0), mapped: RefCell::new(Vec::new()), unmapped: RefCell::new(Vec::new()) };
}

/// A mapped kernel stack; dropped by somebody who runs on another one.
pub struct KernelStack {
    index: u64,
}

const fn bottom(index: u64) -> u64 {
    STACKS_BASE + index * STRIDE_BYTES + PAGE_BYTES
}

impl KernelStack {
    /// A stack; its memory is charged to the VM's limit.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new() -> Result<Self, NoMemory> {
        if let Some(index) = STACKS.with(|stacks| stacks.mapped.borrow_mut().pop()) {
            return Ok(Self { index });
        }
        let index = STACKS.with(|stacks| {
            stacks.unmapped.borrow_mut().pop().or_else(|| {
                let index = stacks.used.get();
                stacks.used.set(index + 1);
                (bottom(index) + STACK_BYTES <= KERNEL_END).then_some(index)
            })
        });
        let index = index.ok_or(NoMemory)?;
        let stack = Self { index };
        for page in (0..STACK_BYTES).step_by(PAGE_BYTES as usize) {
            let mapped = frame::allocate(Content::Any)
                .and_then(|pfn| paging::map_kernel(bottom(index) + page, pfn).inspect_err(|_| frame::release(pfn)));
            if mapped.is_err() {
                stack.unmap();
                return Err(NoMemory);
            }
        }
        Ok(stack)
    }

    /// Address behind the stack's last byte: where `rsp` starts. 16-byte aligned.
    #[must_use]
    pub const fn top(&self) -> u64 {
        bottom(self.index) + STACK_BYTES
    }

    /// Address of the stack's first byte.
    #[must_use]
    pub const fn bottom(&self) -> u64 {
        bottom(self.index)
    }

    fn unmap(self) {
        let mut flush = Flush::default();
        for page in (0..STACK_BYTES).step_by(PAGE_BYTES as usize) {
            if let Some(pfn) = paging::unmap_kernel(self.bottom() + page) {
                frame::release(pfn);
                flush.all();
            }
        }
        flush.finish_kernel();
        STACKS.with(|stacks| stacks.unmapped.borrow_mut().push(self.index));
        core::mem::forget(self);
    }
}

impl Drop for KernelStack {
    fn drop(&mut self) {
        let keep = STACKS.with(|stacks| {
            let mut mapped = stacks.mapped.borrow_mut();
            let keep = mapped.len() < KEEP;
            if keep {
                mapped.push(self.index);
            }
            keep
        });
        if !keep {
            Self { index: self.index }.unmap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_reused_and_their_memory_comes_back() {
        let before = frame::usage().used_bytes;
        let stacks: Vec<_> = (0..20).map(|_| KernelStack::new().expect("enough memory")).collect();
        assert!(frame::usage().used_bytes >= before + 20 * STACK_BYTES);
        for pair in stacks.windows(2) {
            assert_eq!(pair[1].bottom() - pair[0].top(), PAGE_BYTES);
        }
        drop(stacks);
        let tables = paging::tables_in_use() * PAGE_BYTES;
        assert_eq!(frame::usage().used_bytes, before + KEEP as u64 * STACK_BYTES + tables);
        let again = KernelStack::new().expect("a kept one");
        assert!(again.top() <= bottom(20));
    }
}

//! x86-64: entries, traps, page-table gates, context switch, clock source, doorbells.

pub mod regs;

#[cfg(not(feature = "hosted"))]
mod entry;
#[cfg(not(feature = "hosted"))]
pub mod fpu;
#[cfg(not(feature = "hosted"))]
pub mod panic;
#[cfg(not(feature = "hosted"))]
pub mod thread;
#[cfg(not(feature = "hosted"))]
pub mod tlb;
#[cfg(not(feature = "hosted"))]
pub mod trap;
#[cfg(not(feature = "hosted"))]
pub mod tsc;

/// Keeps the kernel header, which only the loader refers to, in the link.
#[cfg(not(feature = "hosted"))]
#[must_use]
pub fn header() -> *const torpor_abi::trap::KernelHeader {
    &raw const entry::TORPOR_KERNEL_HEADER
}

//! The time stamp counter.

/// Reads the TSC; not before earlier loads.
#[must_use]
pub fn read() -> u64 {
    // SAFETY: both instructions exist on every x86-64 processor and touch no memory.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

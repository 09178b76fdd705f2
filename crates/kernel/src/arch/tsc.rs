//! The time stamp counter.

/// Reads the TSC at about this point of the program; a quarter of what [`read`] costs.
#[must_use]
pub fn read_roughly() -> u64 {
    // SAFETY: the instruction exists on every x86-64 processor and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Reads the TSC; not before earlier loads.
#[must_use]
pub fn read() -> u64 {
    // SAFETY: both instructions exist on every x86-64 processor and touch no memory.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

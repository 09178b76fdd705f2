//! The clock page: how a TSC value becomes a time. Programs read it through the vDSO without a trap.
//!
//! Written by the guest kernel only, under a sequence count (odd while it changes; see Linux's `seqcount_t`).

/// See the module's text. All times in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ClockPage {
    /// Odd while the rest is being written.
    pub sequence: u32,
    /// ns = (tsc - tsc_base) * mult >> shift.
    pub shift: u32,
    /// See `shift`.
    pub mult: u64,
    /// TSC at which the bases below hold.
    pub tsc_base: u64,
    /// CLOCK_MONOTONIC at `tsc_base`; stands still in standby.
    pub monotonic_base_ns: u64,
    /// CLOCK_REALTIME at `tsc_base`.
    pub realtime_base_ns: u64,
    /// CLOCK_BOOTTIME at `tsc_base`; goes on in standby.
    pub boottime_base_ns: u64,
}

//! How a VM's state is handed from one VM process to another: the handover page, and the list behind it.
//!
//! Stopping: the VM process sets [`crate::shared::Control::quiesce`]; at its next idle point or entry the kernel stores the
//! current thread's extended state, fills in the guest's part of the page and the list of free memory, and rings
//! [`crate::shared::doorbell::QUIESCED`]. At that exit all of the VM's state is in its memory: not even the general
//! registers count, since they are on the kernel stack whose address the kernel keeps in a static.
//!
//! Going on: the VM process writes [`command`] into the page and runs the vCPU, either from where it stopped (with
//! [`command::CONTINUE`]), or from the kernel's resume entry ([`crate::trap::KernelHeader::resume_entry`]) with the boot
//! page tables. The resume entry does what the page says, rings [`crate::shared::doorbell::PARKED`], and begins anew.
//! Nothing in [`crate::layout::HANDOVER_GPA`] is part of a snapshot.
//!
//! Page tables of a VM that has run are changed by the guest alone: the list then holds `entries` pairs of u64, the
//! guest-physical address of a page-table entry and its new value.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Values of [`Handover::command`].
pub mod command {
    /// After QUIESCED: go on as if nothing had happened.
    pub const CONTINUE: u32 = 1;
    /// At the resume entry: store the listed page-table entries, then go on where the state in memory was stopped, as a
    /// continuation in another place and at another time.
    pub const RESUME: u32 = 2;
    /// At the resume entry: store the listed page-table entries and park.
    pub const REST: u32 = 3;
    /// At the resume entry: the list holds pairs of a page-table root and a virtual address; touch them (bit 0 of the address:
    /// by a write that changes nothing) and park. The VM process has checked that they are mapped.
    pub const TOUCH: u32 = 4;
    /// After QUIESCED: go on, but over a link whose other end is a new one: all connections are gone, and the windows of
    /// streams with a fixed number are whole, less [`super::Handover::unsent_bytes`].
    pub const RELINK: u32 = 5;
}

/// Values written to [`crate::shared::doorbell::QUIESCED`].
pub mod reason {
    /// The VM process asked for it.
    pub const REQUESTED: u32 = 1;
    /// The program is ready, where [`crate::boot::flags::TEMPLATE`] asked for that.
    pub const READY: u32 = 2;
}

/// Values of [`crate::shared::Control::quiesce`].
pub mod quiesce {
    /// No stop is wanted.
    pub const NONE: u32 = 0;
    /// Stop when nothing is runnable.
    pub const AT_IDLE: u32 = 1;
    /// Stop at the next entry into the kernel.
    pub const AT_ENTRY: u32 = 2;
}

/// Room for a host name.
pub const HOST_NAME_BYTES: usize = 64;

/// At [`crate::layout::HANDOVER_GPA`].
#[repr(C)]
#[derive(Debug)]
pub struct Handover {
    /// One of [`command`] (VM process writes).
    pub command: AtomicU32,
    /// Pairs in the list (VM process writes; at QUIESCED the guest: pairs of address and length of free memory).
    pub entries: AtomicU32,
    /// For RESUME: how long the state was not running, in ns of real time.
    pub slept_ns: AtomicU64,
    /// For RESUME: host CLOCK_MONOTONIC and CLOCK_REALTIME just before the vCPU runs.
    pub host_monotonic_ns: AtomicU64,
    /// See above.
    pub host_realtime_ns: AtomicU64,
    /// For RESUME: frequency of this host's TSC.
    pub tsc_hz: AtomicU64,
    /// For RESUME: generation of the instance's state.
    pub generation: AtomicU64,
    /// For RESUME: fresh random bytes, the instance's uuid, its host name.
    pub seed: [u8; 64],
    /// See above.
    pub uuid: [u8; 16],
    /// Bytes of `host_name` in use; 0 leaves the name as it is.
    pub host_name_len: AtomicU32,
    /// Guest, at QUIESCED: 1 where a process has memory under MADV_WIPEONFORK, as BoringSSL's generator has from the
    /// first number on that is drawn.
    pub drew_random: AtomicU32,
    /// See above.
    pub host_name: [u8; HOST_NAME_BYTES],
    /// Guest, at QUIESCED: the range of all page tables but the boot tables.
    pub tables_gpa: AtomicU64,
    /// See above.
    pub tables_bytes: AtomicU64,
    /// Guest, at QUIESCED: CLOCK_MONOTONIC of the next timer less now in ns; `u64::MAX` for none.
    pub next_deadline_ns: AtomicU64,
    /// For RELINK: DATA bytes on streams 0 to 2 that the guest has sent and the new link's other end will get.
    pub unsent_bytes: [AtomicU32; 3],
}

const _: () = assert!(core::mem::size_of::<Handover>() <= crate::layout::PAGE_BYTES as usize);

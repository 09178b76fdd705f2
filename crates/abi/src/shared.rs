//! The control page (atomics shared with the VM process) and the doorbells.
//!
//! Doorbells are 4-byte writes to [`crate::layout::DOORBELL_GPA`] + offset. [`doorbell::NOTIFY`] is an ioeventfd and
//! does not stop the vCPU; the others end KVM_RUN.
//!
//! Events for the guest: whoever has something new sets [`Control::pending`] and kicks the vCPU. If the vCPU is in
//! [`doorbell::IDLE`] it just returns; if it runs, the VM process injects [`EVENT_VECTOR`], but only while
//! [`Control::interrupt_busy`] is 0, and sets that to 1 before; the guest clears it once the frame is copied away and
//! the handler's stack is free. An event that comes while it is set is not injected: the guest looks at `pending` after it
//! has cleared `interrupt_busy`. Nor is one while `pending` is still set from an earlier one.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Interrupt vector for all host events.
pub const EVENT_VECTOR: u8 = 0x40;

/// Offsets from [`crate::layout::DOORBELL_GPA`].
pub mod doorbell {
    /// ioeventfd: look at the transmit ring and at `wanted_deadline_ns`.
    pub const NOTIFY: u64 = 0x00;
    /// Nothing is runnable: return when `pending` is set (or was set before).
    pub const IDLE: u64 = 0x10;
    /// The VM is over; the value is [`super::exit`].
    pub const EXIT: u64 = 0x20;
    /// Fill in `handshake_*` of the control page.
    pub const CLOCK: u64 = 0x30;
    /// Back `[populate_gpa, populate_gpa + populate_bytes)` with memory now (2 MiB pages where the host can). RAM that lies
    /// higher than what a booted VM has asked for, and than a 32nd of it and 64 MiB, may not be there before.
    pub const POPULATE: u64 = 0x40;
    /// Give the memory of `[populate_gpa, populate_gpa + populate_bytes)` back; it reads as zero afterwards.
    pub const DISCARD: u64 = 0x50;
    /// All of the VM's state is in its memory; the value is one of [`crate::handover::reason`]. See [`crate::handover`].
    pub const QUIESCED: u64 = 0x60;
    /// The resume entry waits for a command. See [`crate::handover`].
    pub const PARKED: u64 = 0x70;
}

/// Values written to [`doorbell::EXIT`].
pub mod exit {
    /// The first program ended; `exit_status` holds its wait status as `wait(2)` gives it.
    pub const PROGRAM: u32 = 0;
    /// The kernel panicked; the text is in the panic area.
    pub const PANIC: u32 = 1;
    /// The program could not be started, or the image was found to be damaged while it ran (EUCLEAN); `exit_status` is the
    /// errno, the text is in the panic area. ENOENT becomes exit status 127; EINVAL (an unknown user, say), EUCLEAN and
    /// ENOMEM become 125; all others 126.
    pub const START_FAILED: u32 = 2;
    /// The first program was killed because the VM's memory is used up; `exit_status` holds its wait status, the text is in
    /// the panic area.
    pub const OUT_OF_MEMORY: u32 = 3;
}

/// Room for a panic's text.
pub const PANIC_TEXT_BYTES: usize = 2048;

/// At [`crate::layout::CONTROL_GPA`]. One page.
#[repr(C, align(64))]
pub struct Control {
    /// Transmit ring: bytes ever written (guest writes).
    pub tx_head: AtomicU32,
    /// Guest: nonzero while the VM process need not be notified about `tx_head` because it is looking anyway (host writes).
    pub tx_polling: AtomicU32,
    _pad0: [u8; 56],
    /// Transmit ring: bytes ever read (host writes).
    pub tx_tail: AtomicU32,
    /// Guest waits for room in the transmit ring: set `pending` when there is some (guest writes).
    pub tx_wants_room: AtomicU32,
    _pad1: [u8; 56],
    /// Receive ring: bytes ever written (host writes).
    pub rx_head: AtomicU32,
    _pad2: [u8; 60],
    /// Receive ring: bytes ever read (guest writes).
    pub rx_tail: AtomicU32,
    /// Host waits for room in the receive ring (host writes; guest notifies when it has made some).
    pub rx_wants_room: AtomicU32,
    _pad3: [u8; 56],
    /// Something happened (host sets to 1, guest clears before it looks).
    pub pending: AtomicU32,
    /// An injected interrupt is being handled; see the module's text.
    pub interrupt_busy: AtomicU32,
    _pad4: [u8; 56],
    /// When the guest wants to be woken or preempted: host CLOCK_MONOTONIC in ns, u64::MAX for never (guest writes, then notifies if it is
    /// earlier than `armed_deadline_ns`).
    pub wanted_deadline_ns: AtomicU64,
    /// What the host's timer is set to (host writes; u64::MAX after it fired).
    pub armed_deadline_ns: AtomicU64,
    _pad5: [u8; 48],
    /// Answer to [`doorbell::CLOCK`]: host CLOCK_MONOTONIC and CLOCK_REALTIME at one moment between the guest's two TSC reads.
    pub handshake_monotonic_ns: AtomicU64,
    /// See above.
    pub handshake_realtime_ns: AtomicU64,
    /// Operand of POPULATE and DISCARD.
    pub populate_gpa: AtomicU64,
    /// See above; a multiple of the page size.
    pub populate_bytes: AtomicU64,
    /// See [`exit`].
    pub exit_status: AtomicU32,
    /// Bytes of `panic_text` in use.
    pub panic_len: AtomicU32,
    /// One of [`crate::handover::quiesce`] (host writes, then sets `pending`).
    pub quiesce: AtomicU32,
    _pad6: [u8; 20],
    /// UTF-8 text of a panic or of a failed start.
    pub panic_text: [u8; PANIC_TEXT_BYTES],
}

const _: () = assert!(core::mem::size_of::<Control>() <= crate::layout::PAGE_BYTES as usize);

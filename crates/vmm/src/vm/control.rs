//! The control page ([`torpor_abi::shared::Control`]), word by word: the guest may change any of it at any time.

use super::memory::{Gpa, GuestMemory};
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use torpor_abi::layout::CONTROL_GPA;
use torpor_abi::shared::{Control as Page, PANIC_TEXT_BYTES};

/// Access to the words of the control page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Control<'a>(pub &'a GuestMemory);

macro_rules! words {
    ($($name:ident: $kind:ty = $getter:ident;)*) => {
        impl<'a> Control<'a> {
            $(
                #[doc = concat!("See [`torpor_abi::shared::Control::", stringify!($name), "`].")]
                #[must_use]
                pub(super) fn $name(self) -> &'a $kind {
                    self.0.$getter(Gpa(CONTROL_GPA + offset_of!(Page, $name) as u64))
                }
            )*
        }
    };
}

words! {
    tx_head: AtomicU32 = atomic_u32;
    tx_polling: AtomicU32 = atomic_u32;
    tx_tail: AtomicU32 = atomic_u32;
    tx_wants_room: AtomicU32 = atomic_u32;
    rx_head: AtomicU32 = atomic_u32;
    rx_tail: AtomicU32 = atomic_u32;
    rx_wants_room: AtomicU32 = atomic_u32;
    pending: AtomicU32 = atomic_u32;
    interrupt_busy: AtomicU32 = atomic_u32;
    wanted_deadline_ns: AtomicU64 = atomic_u64;
    armed_deadline_ns: AtomicU64 = atomic_u64;
    handshake_monotonic_ns: AtomicU64 = atomic_u64;
    handshake_realtime_ns: AtomicU64 = atomic_u64;
    populate_gpa: AtomicU64 = atomic_u64;
    populate_bytes: AtomicU64 = atomic_u64;
    exit_status: AtomicU32 = atomic_u32;
    panic_len: AtomicU32 = atomic_u32;
    quiesce: AtomicU32 = atomic_u32;
}

impl Control<'_> {
    /// The text of a panic or of a failed start, as far as it is one.
    #[must_use]
    pub(super) fn panic_text(self) -> String {
        let len = (self.panic_len().load(Ordering::Acquire) as usize).min(PANIC_TEXT_BYTES);
        let mut text = vec![0; len];
        let at = Gpa(CONTROL_GPA + offset_of!(Page, panic_text) as u64);
        self.0.read(at, &mut text).expect("the layout's constants lie in RAM");
        crate::error::printable(&text)
    }
}

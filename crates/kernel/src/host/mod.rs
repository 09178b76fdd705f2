//! The VM process as the kernel sees it: doorbells, the control page and the rings (`torpor_abi::shared`).

pub mod connection;
pub mod console;
pub mod ring;
pub mod stream;

use core::sync::atomic::Ordering;
use torpor_abi::layout::CONTROL_GPA;
use torpor_abi::shared::{Control, doorbell};

/// Where low guest-physical memory is reached: control page and rings.
#[cfg(not(feature = "hosted"))]
fn low_memory(gpa: u64) -> *mut u8 {
    (torpor_abi::layout::DIRECT_MAP_BASE + gpa) as *mut u8
}

/// Hosted: every thread has such memory of its own, and nobody at the other end but its tests.
#[cfg(feature = "hosted")]
fn low_memory(gpa: u64) -> *mut u8 {
    use torpor_abi::layout::{PAGE_BYTES, RING_BYTES, RX_RING_GPA};
    const PAGES: usize = ((RX_RING_GPA + RING_BYTES) / PAGE_BYTES) as usize;
    #[repr(align(4096))]
    #[derive(Clone)]
    struct Page(#[allow(dead_code, reason = "reached through the pointer")] [u8; PAGE_BYTES as usize]);
    std::thread_local! {
        static MEMORY: *mut u8 = std::vec![Page([0; PAGE_BYTES as usize]); PAGES].leak().as_mut_ptr().cast();
    }
    MEMORY.with(|memory| memory.wrapping_add(gpa as usize))
}

/// The control page.
#[must_use]
pub fn control() -> &'static Control {
    // SAFETY: the direct map is there from the first instruction on, the page is the control page's for ever, and all
    // its fields but the panic text (written through `panic_text`) are atomics.
    unsafe { &*low_memory(CONTROL_GPA).cast::<Control>() }
}

#[cfg(not(feature = "hosted"))]
fn ring_doorbell(offset: u64, value: u32) {
    use torpor_abi::layout::{DIRECT_MAP_BASE, DOORBELL_GPA};
    // SAFETY: the doorbell page is mapped for ever, and a write there is an exit or an ioeventfd, not memory.
    unsafe { core::ptr::write_volatile((DIRECT_MAP_BASE + DOORBELL_GPA + offset) as *mut u32, value) };
}

/// Hosted: nobody listens; tests look at the rings themselves.
#[cfg(feature = "hosted")]
fn ring_doorbell(_offset: u64, _value: u32) {}

/// Tells the VM process that the transmit ring or the wanted deadline has changed, unless it is looking anyway.
pub fn notify() {
    if control().tx_polling.load(Ordering::SeqCst) == 0 {
        ring_doorbell(doorbell::NOTIFY, 1);
    }
}

/// Sleeps until the host has something; `pending` is then set (or was set before).
pub fn idle() {
    ring_doorbell(doorbell::IDLE, 0);
}

/// Host CLOCK_MONOTONIC and CLOCK_REALTIME in ns, at a moment during the call.
#[must_use]
pub fn clock() -> (u64, u64) {
    ring_doorbell(doorbell::CLOCK, 0);
    let control = control();
    (control.handshake_monotonic_ns.load(Ordering::Acquire), control.handshake_realtime_ns.load(Ordering::Acquire))
}

/// Asks for memory behind `[gpa, gpa + bytes)` now, in large pages where the host can. Costs an exit (25 us).
pub fn populate(gpa: crate::mm::addr::Gpa, bytes: u64) {
    range_call(doorbell::POPULATE, gpa.0, bytes);
}

/// Gives the memory of `[gpa, gpa + bytes)` back to the host; it reads as zero afterwards.
pub fn discard(gpa: crate::mm::addr::Gpa, bytes: u64) {
    range_call(doorbell::DISCARD, gpa.0, bytes);
}

fn range_call(offset: u64, gpa: u64, bytes: u64) {
    let control = control();
    control.populate_gpa.store(gpa, Ordering::Release);
    control.populate_bytes.store(bytes, Ordering::Release);
    ring_doorbell(offset, 0);
}

/// Asks for an event at `deadline_ns` (host CLOCK_MONOTONIC; `u64::MAX` for none). A later one than the host's timer is
/// set to needs no doorbell: when the timer fires, the host looks here, and sets it anew. Nor does one just before [`idle`],
/// at which the host looks here as well.
pub fn want_event_at(deadline_ns: u64, before_idle: bool) {
    let control = control();
    // Before the armed one is read: the host writes that one before it reads this.
    control.wanted_deadline_ns.store(deadline_ns, Ordering::SeqCst);
    if !before_idle && deadline_ns < control.armed_deadline_ns.load(Ordering::SeqCst) {
        ring_doorbell(doorbell::NOTIFY, 1);
    }
}

/// Until [`want_event_at`] is called again no event is wanted, so that a doorbell meanwhile does not set a timer for a
/// deadline that has come.
pub fn forget_deadline() {
    control().wanted_deadline_ns.store(u64::MAX, Ordering::SeqCst);
}

/// Ends the VM. `reason` is one of `torpor_abi::shared::exit`, `status` a wait status or an errno.
pub fn exit(reason: u32, status: u32, text: &str) -> ! {
    let control = low_memory(CONTROL_GPA).cast::<Control>();
    let len = text.len().min(torpor_abi::shared::PANIC_TEXT_BYTES);
    // SAFETY: the text area is plain bytes that nothing else refers to; the VM process reads it after the doorbell.
    unsafe {
        let area = (&raw mut (*control).panic_text).cast::<u8>();
        core::ptr::copy_nonoverlapping(text.as_ptr(), area, len);
    }
    self::control().panic_len.store(len as u32, Ordering::Release);
    self::control().exit_status.store(status, Ordering::Release);
    loop {
        ring_doorbell(doorbell::EXIT, reason);
    }
}

/// Handles what the host sent. Called where the kernel was entered and before it idles.
pub fn poll() {
    if control().pending.load(Ordering::Relaxed) != 0 {
        control().pending.store(0, Ordering::SeqCst);
        ring::receive(|_| true);
    }
}

/// The link has a new other end, which knows of no connection. `unsent_bytes` by stream number are still on their way to it.
pub fn relinked(unsent_bytes: [u32; 3]) {
    // Nothing may be said any more on a connection, be it in answer to what its former end had sent.
    connection::lost();
    ring::receive(|header| header.stream < torpor_abi::frame::stream::FIRST_DYNAMIC);
    stream::reattached(unsent_bytes);
}

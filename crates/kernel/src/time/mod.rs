//! Clocks and deadlines.

pub mod alarm;
pub mod clock;
pub mod clocks;
pub mod cpu;
pub mod sleep;
pub mod timer;
#[cfg(any(test, not(feature = "hosted")))]
pub mod vdso;

use crate::wait::{Events, WaitQueue};
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};

/// Nanoseconds of CLOCK_MONOTONIC (the guest's: it stands still in standby).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// Never.
    pub const FAR: Instant = Instant(u64::MAX);

    /// The instant `ns` later; saturates at [`Instant::FAR`].
    #[must_use]
    pub const fn after_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }
}

crate::global! {
    /// The guest's clock.
    pub(crate) static CLOCK: clock::Clock = clock::Clock::new();
}

struct Steps {
    count: Cell<u64>,
    queue: RefCell<Option<Rc<WaitQueue>>>,
}

crate::global! {
    static STEPS: Steps = Steps { count: Cell::new(0), queue: RefCell::new(None) };
}

/// Woken when CLOCK_REALTIME or CLOCK_BOOTTIME has stepped against CLOCK_MONOTONIC.
#[must_use]
pub fn steps() -> Rc<WaitQueue> {
    STEPS.with(|steps| Rc::clone(steps.queue.borrow_mut().get_or_insert_with(WaitQueue::new)))
}

/// How often that has happened.
#[must_use]
pub fn times_stepped() -> u64 {
    STEPS.with(|steps| steps.count.get())
}

/// To be called when it has happened; `set`: because somebody has set the clock (it was not a restore).
pub fn note_step(set: bool) {
    STEPS.with(|steps| steps.count.set(steps.count.get() + 1));
    steps().wake_all(Events::IN);
    alarm::clock_stepped();
    crate::event::timerfd::clock_stepped(set);
}

/// Sets CLOCK_REALTIME, which does not follow the host's from then on.
pub fn set_realtime_ns(ns: u64) {
    CLOCK.with(|c| c.set_realtime(tsc(), ns));
    #[cfg(not(feature = "hosted"))]
    publish();
    note_step(true);
}

/// CLOCK_MONOTONIC now.
#[must_use]
pub fn now() -> Instant {
    CLOCK.with(|c| c.monotonic(tsc()))
}

/// CLOCK_MONOTONIC at about this point of the program, for accounting: the processor may read the clock earlier.
#[must_use]
pub fn now_roughly() -> Instant {
    #[cfg(not(feature = "hosted"))]
    return CLOCK.with(|c| c.monotonic(crate::arch::tsc::read_roughly()));
    #[cfg(feature = "hosted")]
    now()
}

/// Frequency of the TSC as announced at boot.
#[must_use]
pub fn tsc_hz() -> u64 {
    CLOCK.with(clock::Clock::tsc_hz)
}

/// CLOCK_REALTIME now, in ns since the epoch.
#[must_use]
pub fn realtime_ns() -> u64 {
    CLOCK.with(|c| c.realtime_ns(tsc()))
}

/// CLOCK_BOOTTIME now, in ns.
#[must_use]
pub fn boottime_ns() -> u64 {
    CLOCK.with(|c| c.boottime_ns(tsc()))
}

#[cfg(not(feature = "hosted"))]
use crate::arch::tsc::read as tsc;

#[cfg(feature = "hosted")]
crate::global! {
    static STOPPED_AT_NS: core::cell::Cell<Option<u64>> = core::cell::Cell::new(None);
}

/// Hosted: sets this thread's clock, which stands still from then on.
#[cfg(feature = "hosted")]
pub fn set_now(at: Instant) {
    STOPPED_AT_NS.with(|stopped| stopped.set(Some(at.0)));
}

/// Hosted: one tick per nanosecond of the process's life, unless a test has set the time.
#[cfg(feature = "hosted")]
fn tsc() -> u64 {
    use std::sync::OnceLock;
    use std::time::Instant as HostInstant;
    static START: OnceLock<HostInstant> = OnceLock::new();
    CLOCK.with(|c| {
        if c.page().mult == 0 {
            c.start(1_000_000_000, clock::Handshake { tsc: 0, monotonic_ns: 0, realtime_ns: 0 }, 0, 0);
        }
    });
    let stopped = STOPPED_AT_NS.with(core::cell::Cell::get);
    stopped.unwrap_or_else(|| START.get_or_init(HostInstant::now).elapsed().as_nanos() as u64)
}

/// Compares the clock with the host's and writes the clock page.
#[cfg(not(feature = "hosted"))]
pub fn renew() {
    let at = clock::best_handshake(exchange);
    let stepped = CLOCK.with(|c| c.renew(at));
    publish();
    if stepped {
        note_step(true);
    }
}

/// Starts the clock at boot.
#[cfg(not(feature = "hosted"))]
pub fn start(tsc_hz: u64) {
    let at = clock::best_handshake(exchange);
    CLOCK.with(|c| c.start(tsc_hz, at, 0, 0));
    publish();
}

/// Goes on after a restore: `host` is its CLOCK_MONOTONIC and CLOCK_REALTIME now. CLOCK_MONOTONIC goes on where it stood.
#[cfg(not(feature = "hosted"))]
pub fn resume(tsc_hz: u64, host: (u64, u64), monotonic_ns: u64, boottime_ns: u64, own_realtime_ns: u64) {
    let at = clock::Handshake { tsc: tsc(), monotonic_ns: host.0, realtime_ns: host.1 };
    CLOCK.with(|c| c.resume(tsc_hz, at, monotonic_ns, boottime_ns, own_realtime_ns));
    publish();
}

#[cfg(not(feature = "hosted"))]
fn exchange() -> (u64, u64, u64, u64) {
    let before = tsc();
    let (monotonic_ns, realtime_ns) = crate::host::clock();
    (before, monotonic_ns, realtime_ns, tsc())
}

/// Writes the clock page that programs read through the vDSO. The kernel is not preempted and programs do not run
/// meanwhile, but an interrupted reader may resume afterwards: the sequence count tells it to read again.
#[cfg(not(feature = "hosted"))]
fn publish() {
    use core::sync::atomic::{Ordering, compiler_fence};
    let page =
        (torpor_abi::layout::DIRECT_MAP_BASE + torpor_abi::layout::CLOCK_GPA) as *mut torpor_abi::clock::ClockPage;
    let mut new = CLOCK.with(clock::Clock::page);
    // SAFETY: the clock page is the kernel's alone to write; programs map it read-only.
    unsafe {
        let sequence = page.read().sequence;
        new.sequence = sequence.wrapping_add(2) & !1;
        (&raw mut (*page).sequence).write_volatile(sequence | 1);
        compiler_fence(Ordering::SeqCst);
        let body = page.cast::<u32>().add(1);
        core::ptr::copy_nonoverlapping((&raw const new).cast::<u32>().add(1), body, size_of_val(&new) / 4 - 1);
        compiler_fence(Ordering::SeqCst);
        (&raw mut (*page).sequence).write_volatile(new.sequence);
    }
}

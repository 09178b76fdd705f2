//! The guest's clocks, derived from the TSC through the clock page.
//!
//! The page is calibrated against the host in handshakes (one exit between two TSC reads) at boot, after a restore, and
//! about every ten seconds while the guest runs. CLOCK_MONOTONIC never steps: an error against the host is worked off
//! in the next interval by a slightly different rate (as adjtime(3) does). CLOCK_REALTIME is CLOCK_MONOTONIC plus an
//! offset that follows the host's, unless the guest has set its clock.

use super::Instant;
use core::cell::Cell;
use torpor_abi::clock::ClockPage;

/// `mult` is in units of 2^-32 ns per tick.
const SHIFT: u32 = 32;
/// After this long the clock is compared with the host's again.
const RENEW_AFTER_NS: u64 = 10_000_000_000;
/// The most that the rate may differ from the host's to work off an error: 500 ppm, as Linux slews.
const MAX_SLEW: u64 = 2000;
/// A handshake that took longer says too little; the best of several is taken.
const GOOD_HANDSHAKE_TICKS: u64 = 100_000;

/// A correction of CLOCK_REALTIME that is larger is a step, which sleepers hear of.
const STEP_NS: u64 = 1_000_000;

/// One comparison with the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handshake {
    /// TSC in the middle of the exit.
    pub tsc: u64,
    /// Host CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
    /// Host CLOCK_REALTIME.
    pub realtime_ns: u64,
}

/// Conversion between TSC, guest time and host time.
#[derive(Default)]
pub struct Clock {
    page: Cell<ClockPage>,
    /// Host CLOCK_MONOTONIC minus the guest's.
    host_ahead_ns: Cell<u64>,
    first: Cell<Handshake>,
    /// The guest has set CLOCK_REALTIME.
    own_realtime: Cell<bool>,
}

impl Clock {
    /// A clock that has not been set.
    #[must_use]
    pub const fn new() -> Self {
        let page = ClockPage {
            sequence: 0,
            shift: SHIFT,
            mult: 0,
            tsc_base: 0,
            monotonic_base_ns: 0,
            realtime_base_ns: 0,
            boottime_base_ns: 0,
        };
        let never = Handshake { tsc: 0, monotonic_ns: 0, realtime_ns: 0 };
        Self {
            page: Cell::new(page),
            host_ahead_ns: Cell::new(0),
            first: Cell::new(never),
            own_realtime: Cell::new(false),
        }
    }

    /// Starts the clock at `monotonic_ns` and `boottime_ns`, at boot or after a restore.
    pub fn start(&self, tsc_hz: u64, at: Handshake, monotonic_ns: u64, boottime_ns: u64) {
        self.first.set(at);
        self.host_ahead_ns.set(at.monotonic_ns.wrapping_sub(monotonic_ns));
        self.page.set(ClockPage {
            sequence: self.page.get().sequence,
            shift: SHIFT,
            mult: ((1_000_000_000u128 << SHIFT) / u128::from(tsc_hz.max(1))) as u64,
            tsc_base: at.tsc,
            monotonic_base_ns: monotonic_ns,
            realtime_base_ns: at.realtime_ns,
            boottime_base_ns: boottime_ns,
        });
    }

    /// Starts the clock again after a restore. `own_realtime_ns` is CLOCK_REALTIME where the guest has set it.
    pub fn resume(&self, tsc_hz: u64, at: Handshake, monotonic_ns: u64, boottime_ns: u64, own_realtime_ns: u64) {
        self.start(tsc_hz, at, monotonic_ns, boottime_ns);
        if self.own_realtime.get() {
            self.set_realtime(at.tsc, own_realtime_ns);
        }
    }

    /// Whether [`Clock::renew`] is due.
    #[must_use]
    pub fn renewal_due(&self, tsc: u64) -> bool {
        self.elapsed_ns(tsc) > RENEW_AFTER_NS
    }

    /// Corrects rate and offset after a new handshake. Returns whether CLOCK_REALTIME has stepped: the host's was set.
    pub fn renew(&self, at: Handshake) -> bool {
        let (first, mut page) = (self.first.get(), self.page.get());
        let (ticks, ns) = (at.tsc.wrapping_sub(first.tsc), at.monotonic_ns.wrapping_sub(first.monotonic_ns));
        if ticks == 0 || ticks > u64::MAX / 2 {
            return false;
        }
        let elapsed = self.elapsed_ns(at.tsc);
        let monotonic = page.monotonic_base_ns + elapsed;
        let rate = ((u128::from(ns) << SHIFT) / u128::from(ticks)) as u64;
        let host_view = at.monotonic_ns.wrapping_sub(self.host_ahead_ns.get());
        let error_ns = host_view.wrapping_sub(monotonic).cast_signed();
        let slew = i128::from(rate) * i128::from(error_ns) / i128::from(RENEW_AFTER_NS);
        let bound = i128::from(rate / MAX_SLEW);
        page.mult = (i128::from(rate) + slew.clamp(-bound, bound)) as u64;
        page.tsc_base = at.tsc;
        page.monotonic_base_ns = monotonic;
        page.boottime_base_ns += elapsed;
        let realtime = page.realtime_base_ns.wrapping_add(elapsed);
        let host_realtime = at.realtime_ns.wrapping_sub(error_ns.cast_unsigned());
        page.realtime_base_ns = if self.own_realtime.get() { realtime } else { host_realtime };
        self.page.set(page);
        page.realtime_base_ns.abs_diff(realtime) > STEP_NS
    }

    /// Sets CLOCK_REALTIME.
    pub fn set_realtime(&self, tsc: u64, ns: u64) {
        let mut page = self.page.get();
        page.realtime_base_ns = ns.wrapping_sub(self.elapsed_ns(tsc));
        self.own_realtime.set(true);
        self.page.set(page);
    }

    /// The page as it should stand in memory.
    #[must_use]
    pub fn page(&self) -> ClockPage {
        self.page.get()
    }

    /// The present rate as a frequency in Hz.
    #[must_use]
    pub fn tsc_hz(&self) -> u64 {
        ((1_000_000_000u128 << SHIFT) / u128::from(self.page.get().mult.max(1))) as u64
    }

    fn elapsed_ns(&self, tsc: u64) -> u64 {
        let page = self.page.get();
        // A TSC read just before the base was set may be a little smaller.
        let ticks = tsc.saturating_sub(page.tsc_base);
        ((u128::from(ticks) * u128::from(page.mult)) >> SHIFT) as u64
    }

    /// CLOCK_MONOTONIC at a TSC value.
    #[must_use]
    pub fn monotonic(&self, tsc: u64) -> Instant {
        Instant(self.page.get().monotonic_base_ns + self.elapsed_ns(tsc))
    }

    /// CLOCK_REALTIME in ns since the epoch.
    #[must_use]
    pub fn realtime_ns(&self, tsc: u64) -> u64 {
        self.page.get().realtime_base_ns.wrapping_add(self.elapsed_ns(tsc))
    }

    /// CLOCK_BOOTTIME in ns.
    #[must_use]
    pub fn boottime_ns(&self, tsc: u64) -> u64 {
        self.page.get().boottime_base_ns + self.elapsed_ns(tsc)
    }

    /// The host's CLOCK_MONOTONIC at a guest instant, for deadlines; [`Instant::FAR`] stays far.
    #[must_use]
    pub fn host_deadline_ns(&self, at: Instant) -> u64 {
        if at == Instant::FAR { u64::MAX } else { at.0.wrapping_add(self.host_ahead_ns.get()) }
    }
}

/// Picks the shortest of up to five handshakes; `exchange` gives the TSC before, the host's two clocks, the TSC after.
pub fn best_handshake(mut exchange: impl FnMut() -> (u64, u64, u64, u64)) -> Handshake {
    let mut best = (u64::MAX, Handshake::default());
    for _ in 0..5 {
        let (before, monotonic_ns, realtime_ns, after) = exchange();
        let ticks = after.wrapping_sub(before);
        if ticks < best.0 {
            best = (ticks, Handshake { tsc: before.wrapping_add(ticks / 2), monotonic_ns, realtime_ns });
        }
        if ticks < GOOD_HANDSHAKE_TICKS {
            break;
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slews_towards_the_host_and_never_steps() {
        let clock = Clock::new();
        let hz = 2_450_000_000u64;
        // The announced frequency is 100 ppm off.
        let host_ns = |tsc: u64| 5_000_000_000 + (u128::from(tsc) * 1_000_000_000 / 2_450_245_000) as u64;
        let at = |tsc: u64| Handshake { tsc, monotonic_ns: host_ns(tsc), realtime_ns: 1_000 + host_ns(tsc) };
        clock.start(hz, at(0), 0, 0);
        let mut last = Instant(0);
        for second in 1..200u64 {
            let tsc = second * hz;
            let before = clock.monotonic(tsc);
            assert!(before > last);
            if clock.renewal_due(tsc) {
                clock.renew(at(tsc));
                let after = clock.monotonic(tsc);
                assert!(after.0.abs_diff(before.0) <= 1, "no step: {before:?} {after:?}");
            }
            last = clock.monotonic(tsc);
        }
        let tsc = 200 * hz;
        let host_view = host_ns(tsc) - 5_000_000_000;
        assert!(clock.monotonic(tsc).0.abs_diff(host_view) < 20_000, "converges");
        assert!(clock.host_deadline_ns(clock.monotonic(tsc)).abs_diff(host_ns(tsc)) < 20_000);
    }
}

//! Load averages (proc(5), /proc/loadavg): runnable threads, averaged over 1, 5 and 15 minutes as Linux does.

use super::sched;
use crate::time::{self, Instant};
use core::cell::Cell;

/// Fraction bits of a load.
pub const FRACTION_BITS: u32 = 11;
const ONE: u64 = 1 << FRACTION_BITS;
/// How often a sample is due.
pub(super) const PERIOD_NS: u64 = 5_000_000_000;
/// ONE / exp(5 s / 1, 5, 15 min).
const DECAY: [u64; 3] = [1884, 2014, 2037];
/// After so many samples without load nothing is left.
const FORGOTTEN: u64 = 4096;

struct Loads {
    values: Cell<[u64; 3]>,
    sampled: Cell<Instant>,
}

crate::global! {
    static LOADS: Loads = Loads { values: Cell::new([0; 3]), sampled: Cell::new(Instant(0)) };
}

/// One sample with `runnable` threads.
const fn step(load: u64, decay: u64, runnable: u64) -> u64 {
    let active = runnable * ONE;
    let next = load * decay + active * (ONE - decay);
    // Rounded up while it rises, so that it gets there.
    (if active >= load { next + ONE - 1 } else { next }) / ONE
}

/// Called now and then: `runnable` threads have been runnable since the last call.
pub(super) fn sample(now: Instant, runnable: usize) {
    LOADS.with(|loads| {
        let due = now.0.saturating_sub(loads.sampled.get().0) / PERIOD_NS;
        if due == 0 {
            return;
        }
        loads.sampled.set(loads.sampled.get().after_ns(due * PERIOD_NS));
        let mut values = loads.values.get();
        for (value, decay) in values.iter_mut().zip(DECAY) {
            for _ in 0..due.min(FORGOTTEN) {
                *value = step(*value, decay, runnable as u64);
            }
        }
        loads.values.set(values);
    });
}

/// The three averages, with [`FRACTION_BITS`].
#[must_use]
pub fn current() -> [u32; 3] {
    sample(time::now(), sched::runnable());
    LOADS.with(|loads| loads.values.get().map(|load| load.min(u64::from(u32::MAX)) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_to_the_number_of_runnable_threads_and_falls_to_nothing() {
        let mut load = 0;
        for _ in 0..12 {
            load = step(load, DECAY[0], 2);
        }
        // One minute: 2 * (1 - 1/e) = 1.26.
        assert!((load * 100 / ONE).abs_diff(126) <= 2, "{load}");
        for _ in 0..500 {
            load = step(load, DECAY[0], 2);
        }
        assert_eq!(load, 2 * ONE);
        for _ in 0..500 {
            load = step(load, DECAY[0], 0);
        }
        assert_eq!(load, 0);
    }
}

//! When to look at a processor-time clock again that shall reach a value.

/// The shortest and longest time between two looks.
const SHORTEST_NS: u64 = 1_000_000;
const LONGEST_NS: u64 = 128_000_000;

/// A clock of processor time needs at least as long to reach a value as is missing. While what it counts does not run at
/// all, looks get rarer, so that it does not keep an idle virtual CPU awake.
#[derive(Default)]
pub struct Pace {
    last: Option<u64>,
    pause_ns: u64,
}

impl Pace {
    /// Nanoseconds until the next look at a clock that shows `now` and shall reach `goal`.
    #[must_use]
    pub fn next_ns(&mut self, now: u64, goal: u64) -> u64 {
        let idle = self.last.replace(now) == Some(now);
        self.pause_ns = if idle { (self.pause_ns * 2).clamp(SHORTEST_NS, LONGEST_NS) } else { 0 };
        (goal - now).max(SHORTEST_NS).max(self.pause_ns)
    }
}

//! Which runnable thread is next: the policies of sched(7), without threads or clocks.
//!
//! Real-time threads (SCHED_FIFO, SCHED_RR) come first, by priority. All others share the processor by virtual runtime:
//! the time that a thread has run, divided by its weight; the one with the least is next. A thread that wakes up gets at
//! most [`WAKEUP_CREDIT_NS`] of virtual time in advance of the others: enough to run at once beside one that computes,
//! too little to starve it.

use alloc::collections::BTreeMap;

/// How far behind the others a thread that slept may be.
pub const WAKEUP_CREDIT_NS: u64 = 6_000_000;
/// A thread that wakes up takes the processor away from one that is at least this much ahead of it.
pub const WAKEUP_GRANULARITY_NS: u64 = 1_000_000;
/// All runnable threads should have run once within this time, as long as slices do not get too small.
pub const LATENCY_NS: u64 = 12_000_000;
/// The smallest time slice.
pub const MIN_SLICE_NS: u64 = 2_000_000;
/// Time slice of SCHED_RR (sched_rr_get_interval(2)).
pub const RR_SLICE_NS: u64 = 100_000_000;

/// In each of these periods real-time threads leave a twentieth to the others that want to run
/// (kernel.sched_rt_period_us).
pub const REALTIME_PERIOD_NS: u64 = 1_000_000_000;
/// Their share of a period (kernel.sched_rt_runtime_us).
pub const REALTIME_SHARE_NS: u64 = 950_000_000;

/// Scheduling policies with Linux's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "sched(7)")]
pub enum Policy {
    #[default]
    Other = 0,
    Fifo = 1,
    RoundRobin = 2,
    Batch = 3,
    Idle = 5,
}

/// A thread's parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params {
    /// Its policy.
    pub policy: Policy,
    /// 1 to 99 for the real-time policies, 0 for the others.
    pub priority: u8,
    /// -20 to 19; counts for SCHED_OTHER and SCHED_BATCH.
    pub nice: i8,
}

/// Weight of nice 0.
const UNIT_WEIGHT: u64 = 1024;
/// Weights of nice -20 to 19: each step is a factor of 1.25, so that one step is about 10 % of the processor (sched(7)).
const WEIGHTS: [u64; 40] = {
    let mut weights = [UNIT_WEIGHT; 40];
    let mut i = 20;
    while i > 0 {
        weights[i - 1] = weights[i] * 5 / 4;
        i -= 1;
    }
    let mut i = 20;
    while i < 39 {
        weights[i + 1] = (weights[i] * 4 + 2) / 5;
        i += 1;
    }
    weights
};
/// Rank of all threads that are not real-time ones.
const OTHERS: u8 = 100;
/// Weight of SCHED_IDLE.
const IDLE_WEIGHT: u64 = 3;

impl Params {
    /// Whether the policy is a real-time one.
    #[must_use]
    pub const fn realtime(self) -> bool {
        matches!(self.policy, Policy::Fifo | Policy::RoundRobin)
    }

    /// With a real-time priority that was lent, if it is higher than its own: then as SCHED_FIFO unless it is SCHED_RR.
    #[must_use]
    pub const fn with_priority(self, lent: u8) -> Self {
        if lent <= self.priority {
            return self;
        }
        let policy = if self.realtime() { self.policy } else { Policy::Fifo };
        Self { policy, priority: lent, ..self }
    }

    const fn weight(self) -> u64 {
        match self.policy {
            Policy::Idle => IDLE_WEIGHT,
            _ => WEIGHTS[(self.nice as i64 + 20) as usize],
        }
    }

    /// Virtual time for `ns` of real time.
    #[must_use]
    pub const fn virtual_ns(self, ns: u64) -> u64 {
        ns.saturating_mul(UNIT_WEIGHT) / self.weight()
    }

    /// Smaller runs first; equal for all that share the processor by virtual runtime.
    const fn rank(self) -> u8 {
        if self.realtime() { 99 - self.priority } else { OTHERS }
    }
}

/// A place in the queue: the smallest is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    rank: u8,
    virtual_ns: u64,
    sequence: u64,
}

/// Why a thread is put into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was created or woken.
    Woken,
    /// Its slice is over, or it yielded.
    Expired,
    /// Another one took the processor away: real-time threads stay first of their priority.
    Preempted,
}

/// Runnable threads that do not run.
pub struct RunQueue<T> {
    queue: BTreeMap<Key, T>,
    /// Grows by one with every place behind, so that places in front can be numbered downwards from the middle.
    behind: u64,
    in_front: u64,
    /// Never falls; no runnable thread is far behind it.
    floor_ns: u64,
    /// When the period began, and what real-time threads have run in it.
    period_start_ns: u64,
    realtime_ns: u64,
}

impl<T> RunQueue<T> {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            queue: BTreeMap::new(),
            behind: 1 << 63,
            in_front: (1 << 63) - 1,
            floor_ns: 0,
            period_start_ns: 0,
            realtime_ns: 0,
        }
    }

    /// Puts a thread in, whose virtual runtime may be raised to what the queue's rules give. Returns its place.
    pub fn insert(&mut self, thread: T, params: Params, virtual_ns: &mut u64, reason: Reason) -> Key {
        if reason == Reason::Woken {
            let credit = if params.policy == Policy::Other { WAKEUP_CREDIT_NS } else { 0 };
            *virtual_ns = (*virtual_ns).max(self.floor_ns.saturating_sub(credit));
        }
        let sequence = if reason == Reason::Preempted && params.realtime() {
            self.in_front -= 1;
            self.in_front
        } else {
            self.behind += 1;
            self.behind
        };
        let key = Key { rank: params.rank(), virtual_ns: if params.realtime() { 0 } else { *virtual_ns }, sequence };
        self.queue.insert(key, thread);
        key
    }

    /// Takes a thread out.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.queue.remove(&key)
    }

    /// Takes the next thread out.
    pub fn pop(&mut self) -> Option<T> {
        let key = self.first()?;
        if key.rank == OTHERS {
            self.floor_ns = self.floor_ns.max(key.virtual_ns);
        }
        self.queue.remove(&key)
    }

    /// The place of the next: one of the others where real-time threads have had their share.
    fn first(&self) -> Option<Key> {
        let (first, _) = self.queue.first_key_value()?;
        let others = Key { rank: OTHERS, virtual_ns: 0, sequence: 0 };
        let other = if self.share_is_spent() { self.queue.range(others..).next() } else { None };
        Some(other.map_or(*first, |(key, _)| *key))
    }

    fn share_is_spent(&self) -> bool {
        self.realtime_ns >= REALTIME_SHARE_NS
    }

    /// Whether rank `a` comes before rank `b`, which is another.
    fn comes_first(&self, a: u8, b: u8) -> bool {
        match (a == OTHERS, b == OTHERS) {
            (false, true) => !self.share_is_spent(),
            (true, false) => self.share_is_spent(),
            _ => a < b,
        }
    }

    /// Tells the queue that the running thread has run for `ns` until `now_ns`, and how far it has come by that.
    pub fn advance(&mut self, params: Params, virtual_ns: u64, now_ns: u64, ns: u64) {
        if now_ns.saturating_sub(self.period_start_ns) >= REALTIME_PERIOD_NS {
            (self.period_start_ns, self.realtime_ns) = (now_ns, 0);
        }
        if params.realtime() {
            self.realtime_ns += ns;
        }
        if !params.realtime() {
            let least = self.queue.first_key_value().map_or(u64::MAX, |(key, _)| key.virtual_ns);
            self.floor_ns = self.floor_ns.max(virtual_ns.min(least));
        }
    }

    /// Where a new thread starts: behind those that are runnable.
    #[must_use]
    pub fn floor_ns(&self) -> u64 {
        self.floor_ns
    }

    /// Virtual runtime of the last waiting thread that shares the processor with one of these parameters; 0 if there is none.
    #[must_use]
    pub fn last_virtual_ns(&self, params: Params) -> u64 {
        let last = Key { rank: params.rank(), virtual_ns: u64::MAX, sequence: u64::MAX };
        self.queue
            .range(..=last)
            .next_back()
            .filter(|(key, _)| key.rank == last.rank)
            .map_or(0, |(key, _)| key.virtual_ns)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether a thread that has just been put in at `key` should take the processor from the running one at once.
    #[must_use]
    pub fn preempts(&self, key: Key, woken: Params, running: Params, running_virtual_ns: u64) -> bool {
        if key.rank != running.rank() {
            return self.comes_first(key.rank, running.rank());
        }
        if running.realtime() || woken.policy != Policy::Other {
            return running.policy == Policy::Idle && woken.policy != Policy::Idle;
        }
        running.policy == Policy::Idle || key.virtual_ns + WAKEUP_GRANULARITY_NS < running_virtual_ns
    }

    /// Whether the running thread, which has had the processor for `ran_ns`, should give it to the first of the queue.
    #[must_use]
    pub fn slice_over(&self, running: Params, running_virtual_ns: u64, ran_ns: u64) -> bool {
        let Some(first) = self.first() else { return false };
        if first.rank != running.rank() {
            return self.comes_first(first.rank, running.rank());
        }
        match running.policy {
            Policy::Fifo => false,
            Policy::RoundRobin => ran_ns >= RR_SLICE_NS,
            _ => {
                let slice = (LATENCY_NS / (self.queue.len() as u64 + 1)).max(MIN_SLICE_NS);
                ran_ns >= slice && first.virtual_ns < running_virtual_ns
            }
        }
    }
}

impl<T> Default for RunQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    /// Runs always-runnable threads for `total_ns` with ticks of 2 ms; returns what each got.
    fn share(params: &[Params], total_ns: u64) -> Vec<u64> {
        const TICK_NS: u64 = 2_000_000;
        let mut queue = RunQueue::new();
        let mut virtual_ns = vec![0; params.len()];
        let mut got = vec![0; params.len()];
        for (i, p) in params.iter().enumerate() {
            queue.insert(i, *p, &mut virtual_ns[i], Reason::Woken);
        }
        let mut at = 0;
        let mut running = queue.pop().expect("a thread");
        let mut ran = 0;
        while at < total_ns {
            at += TICK_NS;
            ran += TICK_NS;
            got[running] += TICK_NS;
            virtual_ns[running] += params[running].virtual_ns(TICK_NS);
            queue.advance(params[running], virtual_ns[running], at, TICK_NS);
            if queue.slice_over(params[running], virtual_ns[running], ran) {
                queue.insert(running, params[running], &mut virtual_ns[running], Reason::Expired);
                running = queue.pop().expect("a thread");
                ran = 0;
            }
        }
        got
    }

    fn nice(nice: i8) -> Params {
        Params { nice, ..Params::default() }
    }

    #[test]
    fn equal_threads_get_equal_time() {
        for n in [2u64, 3, 7, 50] {
            let got = share(&vec![nice(0); n as usize], n * 1_000_000_000);
            for ns in got {
                assert!(ns.abs_diff(1_000_000_000) < 20_000_000, "{ns} of {n}");
            }
        }
    }

    #[test]
    fn nice_values_weigh() {
        let got = share(&[nice(0), nice(5)], 10_000_000_000);
        let ratio = got[0] as f64 / got[1] as f64;
        assert!((2.8..3.3).contains(&ratio), "{ratio}");
        let got = share(&[nice(19), nice(-20)], 10_000_000_000);
        assert!(got[0] > 0 && got[0] < got[1] / 1000, "{got:?}");
    }

    #[test]
    fn fifo_runs_until_it_blocks_and_round_robin_alternates() {
        let fifo = Params { policy: Policy::Fifo, priority: 10, nice: 0 };
        assert_eq!(share(&[fifo, fifo, nice(0)], 900_000_000)[1..], [0, 0]);
        let rr = Params { policy: Policy::RoundRobin, ..fifo };
        assert_eq!(share(&[rr, rr, nice(0)], 800_000_000), [400_000_000, 400_000_000, 0]);
    }

    #[test]
    fn realtime_threads_leave_a_twentieth_to_the_others() {
        let fifo = Params { policy: Policy::Fifo, priority: 10, nice: 0 };
        assert_eq!(share(&[fifo, nice(0), nice(0)], 10_000_000_000), [9_500_000_000, 250_000_000, 250_000_000]);
        assert_eq!(share(&[fifo], 10_000_000_000), [10_000_000_000]);
    }

    #[test]
    fn idle_policy_gets_what_is_left() {
        let idle = Params { policy: Policy::Idle, ..Params::default() };
        let got = share(&[idle, nice(0)], 10_000_000_000);
        assert!(got[0] < got[1] / 200, "{got:?}");
    }

    #[test]
    fn a_woken_thread_preempts_one_that_computes_but_cannot_starve_it() {
        let mut queue = RunQueue::new();
        let computes = nice(0);
        let computes_ns = 5_000_000_000;
        queue.advance(computes, computes_ns, computes_ns, computes_ns);
        let mut server_ns = 17;
        let key = queue.insert("server", nice(0), &mut server_ns, Reason::Woken);
        assert!(queue.preempts(key, nice(0), computes, computes_ns));
        assert_eq!(server_ns, computes_ns - WAKEUP_CREDIT_NS);
        let batch = Params { policy: Policy::Batch, ..Params::default() };
        let mut batch_ns = 0;
        let key = queue.insert("batch", batch, &mut batch_ns, Reason::Woken);
        assert!(!queue.preempts(key, batch, computes, computes_ns));
        assert_eq!(batch_ns, computes_ns);
    }

    #[test]
    fn a_preempted_realtime_thread_stays_first_of_its_priority() {
        let mut queue = RunQueue::new();
        let fifo = Params { policy: Policy::Fifo, priority: 10, nice: 0 };
        let mut ns = 0;
        queue.insert("waits", fifo, &mut ns, Reason::Woken);
        queue.insert("preempted", fifo, &mut ns, Reason::Preempted);
        assert_eq!(queue.pop(), Some("preempted"));
        queue.insert("yields", fifo, &mut ns, Reason::Expired);
        assert_eq!(queue.pop(), Some("waits"));
    }
}

//! What processes have used (getrusage(2), times(2)).

use super::process::Process;
use super::thread::Thread;

/// Resources used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in programs, in nanoseconds.
    pub user_ns: u64,
    /// Processor time in the kernel, in nanoseconds.
    pub system_ns: u64,
    /// Page faults.
    pub faults: u64,
    /// The largest resident set, in KiB.
    pub max_rss_kib: u64,
    /// Times the processor was given up to wait.
    pub voluntary_switches: u64,
    /// Times the processor was taken away.
    pub involuntary_switches: u64,
}

impl Usage {
    /// Both together; the largest resident set is the larger one.
    #[must_use]
    pub fn plus(self, other: &Usage) -> Self {
        Self {
            user_ns: self.user_ns + other.user_ns,
            system_ns: self.system_ns + other.system_ns,
            faults: self.faults + other.faults,
            max_rss_kib: self.max_rss_kib.max(other.max_rss_kib),
            voluntary_switches: self.voluntary_switches + other.voluntary_switches,
            involuntary_switches: self.involuntary_switches + other.involuntary_switches,
        }
    }

    /// Of one thread so far.
    #[must_use]
    pub fn of_thread(thread: &Thread) -> Self {
        let (voluntary_switches, involuntary_switches) = thread.sched.switches();
        Self {
            user_ns: thread.sched.user_ns(),
            system_ns: thread.sched.system_ns(),
            voluntary_switches,
            involuntary_switches,
            ..Self::default()
        }
    }

    /// Of a process's threads, the ended ones included. Up to date after [`super::sched::account`].
    #[must_use]
    pub fn of_process(process: &Process) -> Self {
        if let Some(space) = process.try_space() {
            process.note_memory(&space);
        }
        process.threads().iter().fold(process.ended_usage(), |sum, thread| sum.plus(&Self::of_thread(thread)))
    }
}

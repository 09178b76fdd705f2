//! RLIMIT_CPU: a process that has used more processor time than its soft limit gets SIGXCPU, and again every second; at the
//! hard limit it is killed (getrlimit(2)).

use super::exit;
use super::limits::{INFINITY, Limit, Resource};
use super::process::Process;
use super::signal::{self, SIGKILL, SIGXCPU, SignalInfo};
use super::status::WaitStatus;
use crate::time;
use crate::time::clocks::{Count, CpuClock};
use crate::time::cpu::Pace;
use crate::time::timer::{Expire, Timer};
use alloc::rc::{Rc, Weak};
use core::cell::RefCell;

const SECOND_NS: u64 = 1_000_000_000;

/// Looks at a process's processor time while that is limited.
#[derive(Default)]
pub struct CpuLimit {
    timer: Timer,
    pace: RefCell<Pace>,
}

struct Look(Weak<Process>);

impl Expire for Look {
    fn expire(&self) {
        if let Some(process) = self.0.upgrade().filter(|process| !process.is_exiting()) {
            enforce(&process);
        }
    }
}

impl CpuLimit {
    /// Called when the limit may have changed, and for a new process.
    pub fn watch(process: &Rc<Process>) {
        let limit = process.limits(Resource::Cpu);
        let goal_s = limit.soft.min(limit.hard);
        let watch = &process.cpu_limit;
        if goal_s == INFINITY {
            watch.timer.cancel();
            return;
        }
        let now = used_ns(process);
        let goal = goal_s.saturating_mul(SECOND_NS);
        let pause = if now >= goal { 0 } else { watch.pace.borrow_mut().next_ns(now, goal) };
        watch.timer.arm(time::now().after_ns(pause), Rc::new(Look(Rc::downgrade(process))));
    }

    /// The process has ended.
    pub(super) fn stop(&self) {
        self.timer.cancel();
    }
}

fn used_ns(process: &Rc<Process>) -> u64 {
    CpuClock::Process(Rc::clone(process), Count::All).now_ns()
}

fn enforce(process: &Rc<Process>) {
    let limit = process.limits(Resource::Cpu);
    let used = used_ns(process);
    let reached = |seconds: u64| used >= seconds.saturating_mul(SECOND_NS);
    if reached(limit.hard) {
        exit::exit_group(process, WaitStatus::signaled(SIGKILL.number(), false));
        return;
    }
    if reached(limit.soft) {
        // A standard signal from the kernel always finds room.
        let _ = signal::send_to_process(process, SignalInfo::kernel(SIGXCPU));
        process.set_limits(Resource::Cpu, Limit { soft: limit.soft.saturating_add(1), ..limit });
    }
    CpuLimit::watch(process);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::signal::SignalSet;
    use crate::task::{sched, testing};

    #[test]
    fn a_signal_every_second_and_the_end_at_the_hard_limit() {
        let start = time::Instant(5_000_000_000);
        time::set_now(start);
        let me = testing::enter();
        signal::block(SignalSet::of(SIGXCPU));
        me.process.set_limits(Resource::Cpu, Limit { soft: 1, hard: 3 });
        CpuLimit::watch(&me.process);
        sched::leave_kernel();
        let run_until = |ms: u64| {
            time::set_now(start.after_ns(ms * 1_000_000));
            sched::run_expired(time::now());
            signal::take_of(SignalSet::of(SIGXCPU)).is_some()
        };
        assert!(!run_until(990));
        assert!(run_until(1010) && !run_until(1020));
        assert!(run_until(2010));
        assert_eq!(me.process.limits(Resource::Cpu), Limit { soft: 3, hard: 3 });
        assert!(!me.dying() && !run_until(3010) && me.dying());
        assert_eq!(me.process.group_exit.get(), Some(WaitStatus::signaled(9, false)));
    }
}

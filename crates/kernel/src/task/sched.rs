//! The scheduler: who runs, who sleeps, and for how long somebody has run.
//!
//! There is no idle thread. A thread that gives up the processor looks for the next one itself and, while there is none,
//! idles on its own kernel stack; if it becomes runnable again there is no switch at all.
//!
//! Kernel code is never preempted. Whoever finds that another thread should run ([`make_runnable`], [`tick`]) sets
//! [`need_resched`], which is looked at before a return to a program.

use super::ThreadState;
use super::loadavg;
use super::runqueue::{Key, Params, Reason, RunQueue};
use super::thread::Thread;
use crate::errno::Errno;
use crate::mm::frame;
use crate::mm::space::AddressSpace;
use crate::time::{self, Instant, timer};
use crate::wait::{Events, Registration, WaitQueue, Wake};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

pub use timer::{next_deadline, run_expired};

/// How often [`tick`] should come while [`wants_tick`].
pub const TICK_NS: u64 = 2_000_000;

/// What a sleep can be ended by, other than what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// By signals.
    Interruptible,
    /// By the thread's end only.
    Killable,
    /// By nothing.
    Uninterruptible,
}

/// Why a wait ended without what it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// By a signal or the thread's end.
    Interrupted,
    /// The deadline has come.
    TimedOut,
}

impl From<WaitError> for Errno {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::Interrupted => Errno::ERESTARTSYS,
            WaitError::TimedOut => Errno::ETIMEDOUT,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not started, or asleep.
    Sleeping,
    /// In the run queue.
    Queued(Key),
    Running,
    Dead,
}

/// A thread's share of the scheduler.
pub struct Entity {
    state: Cell<State>,
    params: Cell<Params>,
    /// Real-time priority that others lend it (`super::futex::Lending`); 0 for none.
    lent_priority: Cell<u8>,
    virtual_ns: Cell<u64>,
    user_ns: Cell<u64>,
    system_ns: Cell<u64>,
    voluntary_switches: Cell<u64>,
    involuntary_switches: Cell<u64>,
    /// SCHED_RESET_ON_FORK.
    pub reset_on_fork: Cell<bool>,
    /// May not be killed or interrupted: state D of /proc/PID/stat.
    uninterruptible: Cell<bool>,
}

impl Entity {
    pub(super) fn new() -> Self {
        Self {
            state: Cell::new(State::Sleeping),
            params: Cell::new(Params::default()),
            lent_priority: Cell::new(0),
            virtual_ns: Cell::new(0),
            user_ns: Cell::new(0),
            system_ns: Cell::new(0),
            voluntary_switches: Cell::new(0),
            involuntary_switches: Cell::new(0),
            reset_on_fork: Cell::new(false),
            uninterruptible: Cell::new(false),
        }
    }

    /// Time spent in the program, in nanoseconds; up to date for the current thread after [`account`].
    #[must_use]
    pub fn user_ns(&self) -> u64 {
        self.user_ns.get()
    }

    /// Time spent in the kernel, in nanoseconds.
    #[must_use]
    pub fn system_ns(&self) -> u64 {
        self.system_ns.get()
    }

    /// How often it gave the processor up to wait, and how often it was taken away.
    #[must_use]
    pub fn switches(&self) -> (u64, u64) {
        (self.voluntary_switches.get(), self.involuntary_switches.get())
    }

    /// Policy, priority and nice value of its own.
    #[must_use]
    pub fn params(&self) -> Params {
        self.params.get()
    }

    /// What the scheduler goes by: with the priority that is lent to it, if that is higher.
    #[must_use]
    pub fn effective(&self) -> Params {
        self.params.get().with_priority(self.lent_priority.get())
    }

    /// The letter of /proc/PID/stat: R, S or D (T and Z are the process's affair).
    #[must_use]
    pub fn letter(&self) -> u8 {
        match self.state.get() {
            State::Running | State::Queued(_) => b'R',
            State::Dead => b'X',
            State::Sleeping if self.uninterruptible.get() => b'D',
            State::Sleeping => b'S',
        }
    }
}

/// Who spends the processor's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spender {
    /// The current thread's program.
    Program,
    /// The kernel, for the current thread.
    Kernel,
    /// Nobody: the current thread sleeps, and no other is runnable.
    Idle,
}

struct Scheduler {
    current: RefCell<Option<Rc<Thread>>>,
    queue: RefCell<RunQueue<Rc<Thread>>>,
    need_resched: Cell<bool>,
    /// Up to when time has been accounted.
    accounted_to: Cell<Instant>,
    /// How long the current thread has had the processor.
    ran_ns: Cell<u64>,
    /// Whom the time belongs to that passes.
    spender: Cell<Spender>,
    /// What the current thread has run in its program and in the kernel, and not been charged with yet.
    uncharged_ns: [Cell<u64>; 2],
    /// What the kernel held when that was last charged to a process.
    kernel_pages: Cell<u64>,
    idle_ns: Cell<u64>,
    switches: Cell<u64>,
    /// A thread that has ended, whose kernel stack is in use until the next one runs.
    dead: RefCell<Option<Rc<Thread>>>,
    /// The address space that is loaded: kept while it is.
    loaded: RefCell<Option<Rc<AddressSpace>>>,
}

crate::global! {
    static SCHED: Scheduler = Scheduler {
        current: RefCell::new(None),
        queue: RefCell::new(RunQueue::new()),
        need_resched: Cell::new(false),
        accounted_to: Cell::new(Instant(0)),
        ran_ns: Cell::new(0),
        spender: Cell::new(Spender::Kernel),
        uncharged_ns: [Cell::new(0), Cell::new(0)],
        kernel_pages: Cell::new(0),
        idle_ns: Cell::new(0),
        switches: Cell::new(0),
        dead: RefCell::new(None),
        loaded: RefCell::new(None),
    };
}

pub(super) fn current() -> Option<Rc<Thread>> {
    SCHED.with(|sched| sched.current.borrow().clone())
}

/// Makes `thread` the current one without a switch: the first thread of the system, whose program boot then enters.
pub fn start_first(thread: &Rc<Thread>) {
    SCHED.with(|sched| {
        sched.queue.replace(RunQueue::new());
        thread.sched.state.set(State::Running);
        sched.accounted_to.set(time::now());
        sched.spender.set(Spender::Kernel);
        sched.uncharged_ns.iter().for_each(|ns| ns.set(0));
        sched.ran_ns.set(0);
        let before = sched.current.replace(Some(Rc::clone(thread)));
        drop(before);
    });
    load_space(thread);
}

/// Makes a new thread runnable, with its maker's policy unless that said otherwise (SCHED_RESET_ON_FORK).
pub(super) fn start(thread: &Rc<Thread>, maker: &Thread) {
    account();
    let entity = &thread.sched;
    let params = maker.sched.params.get();
    let reset = maker.sched.reset_on_fork.get();
    entity.params.set(if reset {
        Params { nice: if params.realtime() { 0 } else { params.nice.max(0) }, ..Params::default() }
    } else {
        params
    });
    // As far as its maker, so that making threads gains no time.
    entity.virtual_ns.set(maker.sched.virtual_ns.get());
    make_runnable(thread);
}

/// Makes a new or sleeping thread runnable. No effect on one that runs, is runnable, or has ended.
pub fn make_runnable(thread: &Rc<Thread>) {
    if thread.sched.state.get() != State::Sleeping {
        return;
    }
    account();
    SCHED.with(|sched| {
        let params = thread.sched.effective();
        let mut virtual_ns = thread.sched.virtual_ns.get();
        let mut queue = sched.queue.borrow_mut();
        let key = queue.insert(Rc::clone(thread), params, &mut virtual_ns, Reason::Woken);
        thread.sched.virtual_ns.set(virtual_ns);
        thread.sched.state.set(State::Queued(key));
        if let Some(running) = &*sched.current.borrow()
            && queue.preempts(key, params, running.sched.effective(), running.sched.virtual_ns.get())
        {
            sched.need_resched.set(true);
        }
    });
}

/// Whether [`schedule`] should be called before the return to the program.
#[must_use]
pub fn need_resched() -> bool {
    SCHED.with(|sched| sched.need_resched.get())
}

/// Whether more than one thread is runnable, so that [`tick`] is needed every [`TICK_NS`].
#[must_use]
pub fn wants_tick() -> bool {
    SCHED.with(|sched| !sched.queue.borrow().is_empty())
}

/// Called from the event interrupt every [`TICK_NS`] at most: sets [`need_resched`] when the current thread's time slice is over.
pub fn tick() {
    account();
    loadavg::sample(time::now(), runnable());
    SCHED.with(|sched| {
        let Some(running) = sched.current.borrow().clone() else { return };
        let entity = &running.sched;
        if sched.queue.borrow().slice_over(entity.effective(), entity.virtual_ns.get(), sched.ran_ns.get()) {
            sched.need_resched.set(true);
        }
    });
}

/// The way in: what has run since [`leave_kernel`] was the program. Called at every entry from a program.
pub fn enter_kernel() {
    SCHED.with(|sched| sched.pass_on(Spender::Kernel));
}

/// The way out: the program runs from here on. Called last thing before every return to a program.
pub fn leave_kernel() {
    SCHED.with(|sched| sched.pass_on(Spender::Program));
}

impl Scheduler {
    /// Notes the time since the last call as its spender's. All that entries and returns need, so it is quick.
    fn note_time(&self) {
        let now = time::now_roughly();
        let ns = now.0.saturating_sub(self.accounted_to.replace(now).0);
        let total = match self.spender.get() {
            Spender::Program => &self.uncharged_ns[0],
            Spender::Kernel => &self.uncharged_ns[1],
            Spender::Idle => &self.idle_ns,
        };
        total.set(total.get() + ns);
    }

    /// From now on time is `spender`'s.
    fn pass_on(&self, spender: Spender) {
        self.note_time();
        self.spender.set(spender);
    }
}

/// Charges the current thread with what it has run since the last call, and its process with what the kernel took for it.
pub fn account() {
    SCHED.with(|sched| {
        sched.note_time();
        let [user_ns, system_ns] = [0, 1].map(|n| sched.uncharged_ns[n].take());
        let current = sched.current.borrow();
        let kernel_pages = frame::kernel_pages();
        let taken = kernel_pages.wrapping_sub(sched.kernel_pages.replace(kernel_pages)).cast_signed();
        let Some(thread) = &*current else { return };
        let charged = &thread.process.kernel_pages;
        charged.set(charged.get() + taken);
        let entity = &thread.sched;
        entity.user_ns.set(entity.user_ns.get() + user_ns);
        entity.system_ns.set(entity.system_ns.get() + system_ns);
        let ns = user_ns + system_ns;
        sched.ran_ns.set(sched.ran_ns.get() + ns);
        let params = entity.effective();
        entity.virtual_ns.set(entity.virtual_ns.get() + params.virtual_ns(ns));
        sched.queue.borrow_mut().advance(params, entity.virtual_ns.get(), sched.accounted_to.get().0, ns);
    });
}

/// Time during which nothing was runnable, since boot.
#[must_use]
pub fn idle_ns() -> u64 {
    SCHED.with(|sched| sched.idle_ns.get())
}

/// Context switches since boot.
#[must_use]
pub fn switches() -> u64 {
    SCHED.with(|sched| sched.switches.get())
}

/// How many threads are runnable, the current one included.
#[must_use]
pub fn runnable() -> usize {
    SCHED.with(|sched| sched.queue.borrow().len() + 1)
}

/// Changes policy, priority or nice value.
pub fn set_params(thread: &Rc<Thread>, params: Params) {
    account();
    thread.sched.params.set(params);
    find_new_place(thread);
}

/// Lends a thread a real-time priority, or none with 0; whether it runs with another one by that.
pub(super) fn lend(thread: &Rc<Thread>, priority: u8) -> bool {
    let before = thread.sched.effective();
    if before == thread.sched.params.get().with_priority(priority) {
        thread.sched.lent_priority.set(priority);
        return false;
    }
    account();
    thread.sched.lent_priority.set(priority);
    find_new_place(thread);
    true
}

/// A thread's parameters are others now.
fn find_new_place(thread: &Rc<Thread>) {
    SCHED.with(|sched| {
        if let State::Queued(key) = thread.sched.state.get() {
            let mut queue = sched.queue.borrow_mut();
            let mut virtual_ns = thread.sched.virtual_ns.get();
            if let Some(thread) = queue.remove(key) {
                let params = thread.sched.effective();
                let key = queue.insert(Rc::clone(&thread), params, &mut virtual_ns, Reason::Expired);
                thread.sched.state.set(State::Queued(key));
            }
        }
        sched.need_resched.set(true);
    });
}

/// Lets the next thread run if there is one that should; the current one stays runnable. Before the return to a program.
pub fn schedule() {
    let reason = if SCHED.with(|sched| sched.need_resched.get()) { Reason::Preempted } else { Reason::Expired };
    requeue_current(reason);
    switch_to_next();
}

/// sched_yield(2): behind all others of the same rank.
pub fn yield_now() {
    account();
    SCHED.with(|sched| {
        if let Some(running) = &*sched.current.borrow() {
            let entity = &running.sched;
            // Past the last one that shares the processor by virtual runtime.
            let last = sched.queue.borrow().last_virtual_ns(entity.effective());
            entity.virtual_ns.set(entity.virtual_ns.get().max(last));
        }
    });
    requeue_current(Reason::Expired);
    switch_to_next();
}

fn requeue_current(reason: Reason) {
    account();
    SCHED.with(|sched| {
        let Some(running) = sched.current.borrow().clone() else { return };
        let entity = &running.sched;
        let mut virtual_ns = entity.virtual_ns.get();
        let slice_over = entity.effective().realtime()
            && sched.queue.borrow().slice_over(entity.effective(), virtual_ns, sched.ran_ns.get());
        let reason = if slice_over { Reason::Expired } else { reason };
        let key = sched.queue.borrow_mut().insert(Rc::clone(&running), entity.effective(), &mut virtual_ns, reason);
        entity.state.set(State::Queued(key));
    });
}

/// Waits until `cond` gives something. It is looked at first, and again whenever one of `queues` is woken.
///
/// Hosted, there is nobody else to run: the clock jumps to the next deadline, and a wait without one panics.
///
/// # Errors
/// [`WaitError::TimedOut`] once CLOCK_MONOTONIC has reached `deadline`, [`WaitError::Interrupted`] as `kind` says.
pub fn wait_until<T>(
    queues: &[&Rc<WaitQueue>],
    deadline: Option<Instant>,
    kind: Sleep,
    cond: impl FnMut() -> Option<T>,
) -> Result<T, WaitError> {
    wait(queues, deadline, kind, false, cond)
}

/// As [`wait_until`], of several waiters on a queue only one is woken (accept(2), pipes). A wake-up that this waiter could
/// not use because it was interrupted goes to the next.
///
/// # Errors
/// As [`wait_until`].
pub fn wait_until_exclusive<T>(
    queues: &[&Rc<WaitQueue>],
    deadline: Option<Instant>,
    kind: Sleep,
    cond: impl FnMut() -> Option<T>,
) -> Result<T, WaitError> {
    wait(queues, deadline, kind, true, cond)
}

fn wait<T>(
    queues: &[&Rc<WaitQueue>],
    deadline: Option<Instant>,
    kind: Sleep,
    exclusive: bool,
    mut cond: impl FnMut() -> Option<T>,
) -> Result<T, WaitError> {
    if let Some(value) = cond() {
        return Ok(value);
    }
    let me = super::current();
    let waker = me.waker();
    let registrations: Vec<Registration> =
        queues.iter().map(|queue| queue.register(Rc::clone(waker) as Rc<dyn Wake>, exclusive)).collect();
    let timer = timer::Timer::new();
    if let Some(deadline) = deadline {
        timer.arm(deadline, Rc::clone(waker) as Rc<dyn timer::Expire>);
    }
    let mut used = false;
    let error = loop {
        waker.rearm();
        if let Some(value) = cond() {
            return Ok(value);
        }
        if interrupted(&me, kind) {
            break WaitError::Interrupted;
        }
        if deadline.is_some_and(|deadline| time::now() >= deadline) {
            break WaitError::TimedOut;
        }
        if !waker.woken() {
            me.sched.uninterruptible.set(kind != Sleep::Interruptible);
            sleep(&me);
        }
        used = waker.woken();
    };
    drop(registrations);
    if exclusive && used {
        for queue in queues {
            queue.wake(Events::empty());
        }
    }
    Err(error)
}

fn interrupted(thread: &Thread, kind: Sleep) -> bool {
    match kind {
        Sleep::Interruptible => thread.dying() || thread.signals.pending(),
        Sleep::Killable => thread.dying(),
        Sleep::Uninterruptible => false,
    }
}

/// Gives up the processor until somebody makes the thread runnable.
fn sleep(me: &Thread) {
    account();
    me.sched.state.set(State::Sleeping);
    me.sched.voluntary_switches.set(me.sched.voluntary_switches.get() + 1);
    switch_to_next();
}

/// Ends the current thread, which has been taken out of all tables. The caller's frames hold nothing that needs a drop.
pub fn retire() -> ! {
    account();
    SCHED.with(|sched| {
        let me = sched.current.borrow().clone();
        if let Some(thread) = &me {
            thread.sched.state.set(State::Dead);
        }
        sched.dead.replace(me);
    });
    switch_to_next();
    unreachable!("a thread that has ended runs");
}

/// Runs the next runnable thread, idling until there is one. Returns when the current thread is the next again.
fn switch_to_next() {
    let next = loop {
        let next = SCHED.with(|sched| sched.queue.borrow_mut().pop());
        if let Some(next) = next {
            break next;
        }
        // Who has run all the time since the last sample counts; short activity does not.
        let busy = SCHED.with(|sched| sched.ran_ns.get() >= loadavg::PERIOD_NS);
        loadavg::sample(time::now(), usize::from(busy));
        SCHED.with(|sched| sched.pass_on(Spender::Idle));
        arch_idle();
        SCHED.with(|sched| sched.pass_on(Spender::Kernel));
        loadavg::sample(time::now(), 0);
        timer::run_expired(time::now());
    };
    next.sched.state.set(State::Running);
    let states = SCHED.with(|sched| {
        sched.need_resched.set(false);
        sched.ran_ns.set(0);
        let prev = sched.current.replace(Some(Rc::clone(&next)));
        let prev = prev.filter(|prev| !Rc::ptr_eq(prev, &next))?;
        if let State::Queued(_) = prev.sched.state.get() {
            prev.sched.involuntary_switches.set(prev.sched.involuntary_switches.get() + 1);
        }
        sched.switches.set(sched.switches.get() + 1);
        // Bare pointers: a thread that has ended never comes back to drop what its stack holds.
        Some((&raw const prev.state, &raw const next.state))
    });
    let Some((from, to)) = states else { return };
    load_space(&next);
    drop(next);
    // SAFETY: `to` is in the current thread, which SCHED.current keeps. `from` is in a thread that its process keeps, or
    // SCHED.dead if it has ended.
    let (from, to) = unsafe { (&*from, &*to) };
    arch_switch(from, to);
    finish_switch();
}

/// The first thing on the next thread's stack after a switch; a new thread's entry calls it, too.
pub fn finish_switch() {
    let dead = SCHED.with(|sched| sched.dead.take());
    drop(dead);
}

/// Goes over to the current thread's new address space: execve(2).
pub(super) fn reload_space(me: &Thread) {
    load_space(me);
}

fn load_space(thread: &Thread) {
    let Some(space) = thread.process.try_space() else { return };
    let before = SCHED.with(|sched| {
        let same = sched.loaded.borrow().as_ref().is_some_and(|loaded| Rc::ptr_eq(loaded, &space));
        if same {
            return None;
        }
        arch_activate(&space);
        sched.loaded.replace(Some(space))
    });
    drop(before);
}

#[cfg(feature = "hosted")]
use super::hosted::{activate as arch_activate, idle as arch_idle, switch as arch_switch};
#[cfg(not(feature = "hosted"))]
use crate::arch::{thread::switch as arch_switch, trap::idle as arch_idle};
#[cfg(not(feature = "hosted"))]
fn arch_activate(space: &AddressSpace) {
    crate::arch::tlb::activate(space.root());
}
const _: fn(&ThreadState, &ThreadState) = arch_switch;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::testing;

    #[test]
    fn waits_for_time_and_for_wakeups() {
        let _me = testing::enter();
        let start = Instant(5_000_000_000);
        time::set_now(start);
        let queue = WaitQueue::new();
        let outcome = wait_until(&[&queue], Some(start.after_ns(500)), Sleep::Interruptible, || None::<()>);
        assert_eq!(outcome, Err(WaitError::TimedOut));
        assert_eq!(time::now(), start.after_ns(500));
        assert!(queue.is_empty());

        let ready = Rc::new(Cell::new(false));
        let timer = timer::Timer::new();
        let (flag, wakes) = (Rc::clone(&ready), Rc::clone(&queue));
        timer.arm(
            start.after_ns(700),
            Rc::new(move || {
                flag.set(true);
                wakes.wake(Events::IN);
            }),
        );
        let deadline = Some(start.after_ns(900));
        assert_eq!(wait_until(&[&queue], deadline, Sleep::Interruptible, || ready.get().then_some(7)), Ok(7));
        assert_eq!(time::now(), start.after_ns(700));
    }

    #[test]
    fn the_end_of_a_thread_ends_its_sleep() {
        let me = testing::enter();
        me.doom();
        assert_eq!(wait_until(&[], None, Sleep::Killable, || None::<()>), Err(WaitError::Interrupted));
    }

    #[test]
    #[should_panic(expected = "would block")]
    fn a_sleep_for_ever_panics() {
        let _me = testing::enter();
        let _ = wait_until(&[], None, Sleep::Interruptible, || None::<()>);
    }

    #[test]
    fn time_asleep_is_nobodys() {
        let start = Instant(5_000_000_000);
        time::set_now(start);
        let me = testing::enter();
        let idle_ns = idle_ns();
        let deadline = Some(start.after_ns(5_000));
        assert_eq!(wait_until(&[], deadline, Sleep::Interruptible, || None::<()>), Err(WaitError::TimedOut));
        account();
        assert_eq!((me.sched.user_ns(), me.sched.system_ns()), (0, 0));
        assert_eq!(super::idle_ns() - idle_ns, 5_000);
    }

    #[test]
    fn time_is_charged_to_program_and_kernel() {
        let start = Instant(5_000_000_000);
        time::set_now(start);
        let me = testing::enter();
        leave_kernel();
        time::set_now(start.after_ns(300));
        enter_kernel();
        time::set_now(start.after_ns(350));
        yield_now();
        assert_eq!((me.sched.user_ns(), me.sched.system_ns()), (300, 50));
    }
}

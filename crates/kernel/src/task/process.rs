//! Processes: an address space, threads, children, and what they share.

use super::cpu_limit::CpuLimit;
use super::limits::{Limit, Limits, Resource};
use super::pid;
use super::session::Group;
use super::signal::{ProcessSignals, Signal};
use super::status::WaitStatus;
use super::thread::Thread;
use super::usage::Usage;
use crate::fs::context::Location;
use crate::mm::space::AddressSpace;
use crate::time;
use crate::time::alarm::ProcessTimers;
use crate::wait::{Events, WaitQueue};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// As whom somebody logged in (pam_loginuid(8)), and the number of that login. Nothing else depends on either.
#[derive(Clone, Copy)]
pub struct Login {
    /// /proc/PID/loginuid.
    pub uid: u32,
    /// /proc/PID/sessionid.
    pub session: u32,
}

crate::global! {
    static LOGINS: Cell<u32> = Cell::new(0);
}

impl Login {
    const NOBODY: Self = Self { uid: u32::MAX, session: u32::MAX };

    /// A new one; `u32::MAX` for nobody's.
    #[must_use]
    pub fn of(uid: u32) -> Self {
        if uid == u32::MAX {
            return Self::NOBODY;
        }
        LOGINS.with(|logins| {
            logins.set(logins.get().wrapping_add(1));
            Self { uid, session: logins.get() }
        })
    }
}

/// A process. Its tables hold it until it has been waited for.
pub struct Process {
    pid: u32,
    /// Dispositions and the process-wide queue of signals.
    pub signals: ProcessSignals,
    /// Interval timers and POSIX timers.
    pub timers: ProcessTimers,
    /// Enforces RLIMIT_CPU.
    pub(super) cpu_limit: CpuLimit,
    /// Woken when a child changes its state (wait4(2)).
    pub child_events: Rc<WaitQueue>,
    /// Woken when this process has ended (pidfd_open(2)) and when it is continued.
    pub own_events: Rc<WaitQueue>,
    /// When it was created: CLOCK_BOOTTIME in ns.
    pub started_boottime_ns: u64,
    parent: RefCell<Weak<Process>>,
    children: RefCell<Vec<Rc<Process>>>,
    group: RefCell<Rc<Group>>,
    threads: RefCell<Vec<Rc<Thread>>>,
    space: RefCell<Option<Rc<AddressSpace>>>,
    limits: RefCell<Limits>,
    executable: RefCell<Option<Location>>,
    /// Real user of its first thread, kept for what is told about a zombie.
    pub(super) uid: Cell<u32>,
    pub(super) name: Cell<[u8; super::thread::NAME_BYTES]>,
    /// Signal for the parent at the end. Anything but SIGCHLD makes it a "clone child" for wait4(2).
    pub(super) exit_signal: Cell<Option<Signal>>,
    /// All threads end with this status (exit_group(2), a fatal signal).
    pub(super) group_exit: Cell<Option<WaitStatus>>,
    /// Set when no thread is left.
    pub(super) ended: Cell<Option<WaitStatus>>,
    /// The thread of the parent that made it.
    pub(super) creator_tid: Cell<u32>,
    /// Where execve(2) put the strings.
    pub arguments: Cell<ArgumentArea>,
    /// While a parent waits for this child of vfork(2) to let go of its memory.
    pub(super) vfork: RefCell<Option<Rc<WaitQueue>>>,
    pub(super) executed: Cell<bool>,
    /// How many of its threads are in execve(2), beyond the decision what privileges it gives.
    pub(super) executing: Cell<u32>,
    pub(super) ended_usage: Cell<Usage>,
    pub(super) children_usage: Cell<Usage>,
    /// PR_SET_CHILD_SUBREAPER.
    pub child_subreaper: Cell<bool>,
    /// PR_SET_DUMPABLE.
    pub dumpable: Cell<bool>,
    /// personality(2).
    pub personality: Cell<u32>,
    /// What membarrier(2) was told that it will be used for.
    pub membarrier: Cell<u32>,
    /// Score adjustment for the OOM killer: -1000 to 1000.
    pub oom_score_adj: Cell<i16>,
    /// Who logged in.
    pub login: Cell<Login>,
    /// The VM's memory was used up, and it was the one to end for that.
    pub(super) out_of_memory: Cell<bool>,
    /// Ends so that others have memory: no tracer may hold it up.
    pub(super) makes_room: Cell<bool>,
    /// The tracer that is told of its end before its parent.
    pub(super) claimant: RefCell<Weak<Thread>>,
    /// Pages that the kernel took while it worked for it, less those that it gave back.
    pub(super) kernel_pages: Cell<i64>,
    /// What it has read and written, for /proc/PID/io.
    pub transfers: Cell<TransferCounts>,
}

/// Data that went through read(2) and write(2) and their kin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransferCounts {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Calls that read.
    pub reads: u64,
    /// Calls that wrote.
    pub writes: u64,
}

/// Where execve(2) put a program's arguments and environment, for /proc/PID/cmdline and /proc/PID/environ: addresses in
/// the process's memory, which the program may have overwritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArgumentArea {
    /// First byte of the arguments.
    pub args_start: u64,
    /// Behind the last argument's NUL.
    pub args_end: u64,
    /// First byte of the environment.
    pub env_start: u64,
    /// Behind the last variable's NUL.
    pub env_end: u64,
    /// The stack pointer that the program started with.
    pub stack_start: u64,
}

/// What a process starts with.
pub(super) struct Seed {
    pub(super) pid: u32,
    pub(super) parent: Weak<Process>,
    pub(super) group: Rc<Group>,
    pub(super) signals: ProcessSignals,
    pub(super) space: Option<Rc<AddressSpace>>,
    pub(super) limits: Limits,
    pub(super) exit_signal: Option<Signal>,
}

impl Process {
    pub(super) fn new(seed: Seed) -> Rc<Self> {
        Rc::new(Self {
            pid: seed.pid,
            signals: seed.signals,
            timers: ProcessTimers::default(),
            cpu_limit: CpuLimit::default(),
            child_events: WaitQueue::new(),
            own_events: WaitQueue::new(),
            started_boottime_ns: time::boottime_ns(),
            parent: RefCell::new(seed.parent),
            children: RefCell::default(),
            group: RefCell::new(seed.group),
            threads: RefCell::default(),
            space: RefCell::new(seed.space),
            limits: RefCell::new(seed.limits),
            executable: RefCell::default(),
            uid: Cell::new(0),
            name: Cell::default(),
            exit_signal: Cell::new(seed.exit_signal),
            group_exit: Cell::new(None),
            ended: Cell::new(None),
            creator_tid: Cell::new(0),
            arguments: Cell::default(),
            vfork: RefCell::default(),
            executing: Cell::new(0),
            executed: Cell::new(false),
            ended_usage: Cell::default(),
            children_usage: Cell::default(),
            child_subreaper: Cell::new(false),
            dumpable: Cell::new(true),
            personality: Cell::new(0),
            membarrier: Cell::new(0),
            oom_score_adj: Cell::new(0),
            login: Cell::new(Login::NOBODY),
            out_of_memory: Cell::new(false),
            makes_room: Cell::new(false),
            claimant: RefCell::default(),
            kernel_pages: Cell::new(0),
            transfers: Cell::default(),
        })
    }

    /// What a child has from its parent besides what [`Process::new`] was given.
    pub(super) fn inherit(&self, parent: &Process, creator_tid: u32) {
        self.creator_tid.set(creator_tid);
        self.set_executable(parent.executable());
        self.arguments.set(parent.arguments.get());
        self.dumpable.set(parent.dumpable.get());
        self.personality.set(parent.personality.get());
        self.oom_score_adj.set(parent.oom_score_adj.get());
        self.login.set(parent.login.get());
    }

    /// Its id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has threads; otherwise it is a zombie.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.ended.get().is_none()
    }

    /// Whether it has ended and been waited for.
    #[must_use]
    pub fn is_reaped(&self) -> bool {
        !pid::process(self.pid).is_some_and(|process| core::ptr::eq(Rc::as_ptr(&process), self))
    }

    /// How it ended; `None` while it is alive.
    #[must_use]
    pub fn ended(&self) -> Option<WaitStatus> {
        self.ended.get()
    }

    /// Whether it is going to end: exit_group(2) or a fatal signal.
    #[must_use]
    pub fn is_exiting(&self) -> bool {
        self.group_exit.get().is_some() || self.ended.get().is_some()
    }

    /// Whether it has called execve(2) since it was created.
    #[must_use]
    pub fn has_executed(&self) -> bool {
        self.executed.get()
    }

    /// Whether this is process 1, which the kernel plays ([`super::init`]).
    #[must_use]
    pub fn is_init(&self) -> bool {
        self.pid == super::init::INIT
    }

    /// Its parent; `None` for init.
    #[must_use]
    pub fn parent(&self) -> Option<Rc<Process>> {
        self.parent.borrow().upgrade()
    }

    pub(super) fn set_parent(&self, parent: &Rc<Process>) {
        *self.parent.borrow_mut() = Rc::downgrade(parent);
    }

    /// Its children, zombies included, the oldest first.
    #[must_use]
    pub fn children(&self) -> Vec<Rc<Process>> {
        self.children.borrow().clone()
    }

    pub(super) fn add_child(&self, child: &Rc<Process>) {
        self.children.borrow_mut().push(Rc::clone(child));
    }

    pub(super) fn remove_child(&self, child: &Process) {
        let at = self.children.borrow().iter().position(|c| core::ptr::eq(Rc::as_ptr(c), child));
        let gone = at.map(|at| self.children.borrow_mut().remove(at));
        drop(gone);
    }

    pub(super) fn take_children(&self) -> Vec<Rc<Process>> {
        self.children.take()
    }

    /// Its process group.
    #[must_use]
    pub fn group(&self) -> Rc<Group> {
        Rc::clone(&self.group.borrow())
    }

    pub(super) fn set_group(&self, group: Rc<Group>) -> Rc<Group> {
        self.group.replace(group)
    }

    /// The living threads, the oldest first.
    #[must_use]
    pub fn threads(&self) -> Vec<Rc<Thread>> {
        self.threads.borrow().clone()
    }

    /// How many threads live.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        self.threads.borrow().len()
    }

    /// Some living thread, the first one if it lives.
    #[must_use]
    pub fn any_thread(&self) -> Option<Rc<Thread>> {
        self.threads.borrow().first().cloned()
    }

    pub(super) fn add_thread(&self, thread: &Rc<Thread>) {
        self.threads.borrow_mut().push(Rc::clone(thread));
    }

    /// Takes a thread out; returns how many are left.
    pub(super) fn remove_thread(&self, thread: &Thread) -> usize {
        let at = self.threads.borrow().iter().position(|t| core::ptr::eq(Rc::as_ptr(t), thread));
        let gone = at.map(|at| self.threads.borrow_mut().remove(at));
        drop(gone);
        self.thread_count()
    }

    /// The address space.
    ///
    /// # Panics
    /// If the process has exited; see [`Process::try_space`] for other processes than the current one.
    #[must_use]
    pub fn space(&self) -> Rc<AddressSpace> {
        self.try_space().expect("a living process has an address space")
    }

    /// The address space; `None` for a process that has exited.
    #[must_use]
    pub fn try_space(&self) -> Option<Rc<AddressSpace>> {
        self.space.borrow().clone()
    }

    /// Replaces the address space; gives back the old one, which the caller drops outside of any borrow.
    pub fn set_space(&self, space: Option<Rc<AddressSpace>>) -> Option<Rc<AddressSpace>> {
        self.space.replace(space)
    }

    /// Whether another process has the same address space (vfork(2), CLONE_VM).
    pub(super) fn space_is_shared(&self) -> bool {
        let Some(space) = self.try_space() else { return false };
        pid::processes().iter().any(|other| {
            !core::ptr::eq(Rc::as_ptr(other), self)
                && other.try_space().is_some_and(|theirs| Rc::ptr_eq(&theirs, &space))
        })
    }

    /// Takes faults and the largest resident set over into what the process has used.
    pub(super) fn note_memory(&self, space: &AddressSpace) {
        let mut usage = self.ended_usage.get();
        usage.faults = usage.faults.max(space.faults());
        usage.max_rss_kib = usage.max_rss_kib.max(space.resident_pages().peak_pages * 4);
        self.ended_usage.set(usage);
    }

    /// The program it runs (`/proc/PID/exe`).
    #[must_use]
    pub fn executable(&self) -> Option<Location> {
        self.executable.borrow().clone()
    }

    /// Sets the program it runs.
    pub fn set_executable(&self, location: Option<Location>) {
        let before = self.executable.replace(location);
        drop(before);
    }

    /// The name of its first thread, of a zombie too.
    #[must_use]
    pub fn name(&self) -> Vec<u8> {
        if let Some(thread) = self.any_thread() {
            return thread.name();
        }
        let name = self.name.get();
        name.iter().copied().take_while(|b| *b != 0).collect()
    }

    /// Real user, of a zombie too.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.any_thread().map_or(self.uid.get(), |thread| thread.creds().uid)
    }

    /// The soft limit of a resource; [`super::limits::INFINITY`] for none.
    #[must_use]
    pub fn limit(&self, resource: Resource) -> u64 {
        self.limits.borrow().get(resource).soft
    }

    /// Both limits of a resource.
    #[must_use]
    pub fn limits(&self, resource: Resource) -> Limit {
        self.limits.borrow().get(resource)
    }

    /// All limits, for a child.
    #[must_use]
    pub fn all_limits(&self) -> Limits {
        self.limits.borrow().clone()
    }

    /// Sets both limits of a resource; rules are the caller's.
    pub fn set_limits(&self, resource: Resource, limit: Limit) {
        self.limits.borrow_mut().set(resource, limit);
    }

    /// What its ended threads have used.
    #[must_use]
    pub fn ended_usage(&self) -> Usage {
        self.ended_usage.get()
    }

    /// What its children have used that it has waited for, and theirs.
    #[must_use]
    pub fn children_usage(&self) -> Usage {
        self.children_usage.get()
    }

    /// The signal that the parent gets at the end.
    #[must_use]
    pub fn exit_signal(&self) -> Option<Signal> {
        self.exit_signal.get()
    }

    /// Lets a parent go on that waits in vfork(2): this process does not use its memory any more.
    pub(super) fn release_vfork(&self) {
        let queue = self.vfork.take();
        if let Some(queue) = queue {
            queue.wake_all(Events::empty());
        }
    }
}

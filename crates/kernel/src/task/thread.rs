//! Threads: what the scheduler runs.

use super::ThreadState;
use super::creds::Credentials;
use super::futex::Lending;
use super::process::Process;
use super::ptrace;
use super::sched;
use super::signal::{Signal, ThreadSignals};
use super::status::WaitStatus;
use crate::fs::context::FsContext;
use crate::fs::fdtable::FdTable;
use crate::ipc::sem::UndoList;
use crate::mm::addr::UserAddr;
use crate::time::timer::Expire;
use crate::wait::{Events, Wake};
use alloc::rc::{Rc, Weak};
use core::cell::{Cell, RefCell};

/// Bytes of a thread's name, the NUL included (TASK_COMM_LEN).
pub const NAME_BYTES: usize = 16;

/// What a thread shares with others or has for itself, by the flags of clone(2).
pub struct Shared {
    /// CLONE_FILES.
    pub files: Rc<FdTable>,
    /// CLONE_FS; `None` in hosted tests that need no paths.
    pub fs: Option<Rc<FsContext>>,
}

/// A thread. Alive from its creation until [`super::exit`] has taken it out of its process.
pub struct Thread {
    tid: Cell<u32>,
    /// The process it belongs to, for good.
    pub process: Rc<Process>,
    /// Registers, kernel stack, extended state.
    pub state: ThreadState,
    /// The scheduler's share.
    pub sched: sched::Entity,
    /// Mask and queue of signals.
    pub signals: ThreadSignals,
    /// Who traces it, and whom it traces.
    pub ptrace: ptrace::Share,
    /// The address that set_tid_address(2) named, cleared and woken at exit.
    pub clear_child_tid: Cell<UserAddr>,
    /// Head of the robust futex list (set_robust_list(2)).
    pub robust_list: Cell<UserAddr>,
    /// Locks that it waits for, and who waits for its own.
    pub lending: Lending,
    /// What semop(2) is to undo when its last holder ends.
    pub undo_list: RefCell<Option<Rc<UndoList>>>,
    files: RefCell<Option<Rc<FdTable>>>,
    fs: RefCell<Option<Rc<FsContext>>>,
    creds: RefCell<Rc<Credentials>>,
    name: Cell<[u8; NAME_BYTES]>,
    dying: Cell<bool>,
    /// What it gave to exit(2).
    pub(super) exit_status: Cell<WaitStatus>,
    waker: Rc<Waker>,
    /// PR_SET_PDEATHSIG.
    pub parent_death_signal: Cell<Option<Signal>>,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: Cell<bool>,
    /// What ioprio_set(2) has set.
    pub io_priority: Cell<u16>,
    /// PR_SET_TIMERSLACK in nanoseconds, and what PR_SET_TIMERSLACK with 0 goes back to.
    pub timer_slack_ns: Cell<(u64, u64)>,
    /// The system call could not access the program's memory for want of a page.
    pub short_of_memory: Cell<bool>,
    /// Pages that it was given although the limit was reached, since there was room last: see [`super::oom::lend`].
    pub lent_pages: Cell<u32>,
}

/// Timer slack of the first thread in nanoseconds.
const TIMER_SLACK_NS: u64 = 50_000;

/// How others wake a thread: registered in wait queues and timers, so that these do not keep a dead thread alive.
pub(super) struct Waker {
    thread: Weak<Thread>,
    /// Set by every wake-up; a thread about to sleep clears it before it looks at its condition.
    woken: Cell<bool>,
}

impl Wake for Waker {
    fn wake(&self, _: Events) -> bool {
        if self.woken.replace(true) {
            return false;
        }
        let Some(thread) = self.thread.upgrade() else { return false };
        sched::make_runnable(&thread);
        true
    }
}

impl Expire for Waker {
    fn expire(&self) {
        self.wake(Events::empty());
    }
}

impl Waker {
    pub(super) fn rearm(&self) {
        self.woken.set(false);
    }

    pub(super) fn woken(&self) -> bool {
        self.woken.get()
    }
}

impl Thread {
    /// A thread that is in no table and not runnable yet.
    #[must_use]
    pub fn new(
        tid: u32,
        process: &Rc<Process>,
        state: ThreadState,
        creds: Rc<Credentials>,
        signals: ThreadSignals,
        shared: Shared,
    ) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            tid: Cell::new(tid),
            process: Rc::clone(process),
            state,
            sched: sched::Entity::new(),
            signals,
            ptrace: ptrace::Share::default(),
            clear_child_tid: Cell::new(UserAddr::NULL),
            robust_list: Cell::new(UserAddr::NULL),
            lending: Lending::default(),
            undo_list: RefCell::default(),
            files: RefCell::new(Some(shared.files)),
            fs: RefCell::new(shared.fs),
            creds: RefCell::new(creds),
            name: Cell::new([0; NAME_BYTES]),
            dying: Cell::new(false),
            exit_status: Cell::new(WaitStatus(0)),
            waker: Rc::new(Waker { thread: me.clone(), woken: Cell::new(false) }),
            parent_death_signal: Cell::new(None),
            no_new_privs: Cell::new(false),
            io_priority: Cell::new(0),
            timer_slack_ns: Cell::new((TIMER_SLACK_NS, TIMER_SLACK_NS)),
            short_of_memory: Cell::new(false),
            lent_pages: Cell::new(0),
        })
    }

    /// Its id, unique in the system. Changes only when a thread that is not the first one calls execve(2).
    #[must_use]
    pub fn tid(&self) -> u32 {
        self.tid.get()
    }

    /// Takes another id: a thread that calls execve(2) becomes the first one.
    pub(super) fn set_tid(&self, tid: u32) {
        self.tid.set(tid);
    }

    /// What a new thread has from its maker besides what [`Thread::new`] was given.
    pub(super) fn inherit(&self, maker: &Thread) {
        self.name.set(maker.name.get());
        self.no_new_privs.set(maker.no_new_privs.get());
        self.io_priority.set(maker.io_priority.get());
        let (slack_ns, _) = maker.timer_slack_ns.get();
        self.timer_slack_ns.set((slack_ns, slack_ns));
    }

    /// Whether this is the thread that the process is named after.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.tid.get() == self.process.pid()
    }

    /// The descriptor table.
    ///
    /// # Panics
    /// If the thread has exited; see [`Thread::try_files`] for other threads than the current one.
    #[must_use]
    pub fn files(&self) -> Rc<FdTable> {
        self.try_files().expect("a living thread has descriptors")
    }

    /// The descriptor table; `None` for a thread that has exited.
    #[must_use]
    pub fn try_files(&self) -> Option<Rc<FdTable>> {
        self.files.borrow().clone()
    }

    /// Replaces the descriptor table; gives back the old one, which the caller drops outside of any borrow.
    pub fn set_files(&self, files: Option<Rc<FdTable>>) -> Option<Rc<FdTable>> {
        self.files.replace(files)
    }

    /// Gives it a descriptor table that nobody shares.
    pub fn unshare_files(&self) {
        if let Some(files) = self.set_files(None) {
            self.set_files(Some(if Rc::strong_count(&files) > 1 { files.duplicate() } else { files }));
        }
    }

    /// Root, working directory and umask.
    ///
    /// # Panics
    /// If the thread has exited; see [`Thread::try_fs`] for other threads than the current one.
    #[must_use]
    pub fn fs(&self) -> Rc<FsContext> {
        self.try_fs().expect("a living thread has a working directory")
    }

    /// Root, working directory and umask; `None` for a thread that has exited.
    #[must_use]
    pub fn try_fs(&self) -> Option<Rc<FsContext>> {
        self.fs.borrow().clone()
    }

    /// Replaces root, working directory and umask; gives back the old ones.
    pub fn set_fs(&self, fs: Option<Rc<FsContext>>) -> Option<Rc<FsContext>> {
        self.fs.replace(fs)
    }

    /// Who it is.
    #[must_use]
    pub fn creds(&self) -> Rc<Credentials> {
        Rc::clone(&self.creds.borrow())
    }

    /// Changes who it is. Rules are the caller's.
    pub fn set_creds(&self, creds: Credentials) {
        *self.creds.borrow_mut() = Rc::new(creds);
    }

    /// Its name (PR_SET_NAME), without NULs.
    #[must_use]
    pub fn name(&self) -> alloc::vec::Vec<u8> {
        let name = self.name.get();
        let len = name.iter().position(|b| *b == 0).unwrap_or(NAME_BYTES);
        name[..len].to_vec()
    }

    pub(super) fn name_bytes(&self) -> [u8; NAME_BYTES] {
        self.name.get()
    }

    /// Sets the name; it is cut to 15 bytes.
    pub fn set_name(&self, name: &[u8]) {
        let mut fixed = [0; NAME_BYTES];
        let len = name.iter().position(|b| *b == 0).unwrap_or(name.len()).min(NAME_BYTES - 1);
        fixed[..len].copy_from_slice(&name[..len]);
        self.name.set(fixed);
    }

    /// Whether the thread ends before it next returns to its program.
    #[must_use]
    pub fn dying(&self) -> bool {
        self.dying.get()
    }

    /// Makes the thread end before it next returns to its program, and wakes it from any sleep that may be killed.
    pub fn doom(self: &Rc<Self>) {
        if self.dying.replace(true) {
            // Its tracer holds it up no longer, nor will.
            self.ptrace.killed_again.set(true);
        }
        self.interrupt();
    }

    /// Wakes the thread from whatever it sleeps in, so that it looks at its signals.
    pub fn interrupt(&self) {
        self.waker.wake(Events::empty());
    }

    /// For wait queues and timers.
    pub(super) fn waker(&self) -> &Rc<Waker> {
        &self.waker
    }
}

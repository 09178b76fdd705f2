//! Making threads and processes (fork(2), vfork(2), clone(2), clone3).

use super::cpu_limit::CpuLimit;
use super::process::{Process, Seed};
use super::sched::{self, Sleep};
use super::session;
use super::signal::{ProcessSignals, SIGCHLD, Signal, ThreadSignals};
use super::thread::{Shared, Thread};
use super::{ThreadState, current, limits, pid, ptrace};
use crate::errno::{Errno, Result};
use crate::ipc::sem::UndoList;
use crate::mm::addr::{USER_END, UserAddr};
use crate::mm::space::Respect;
use crate::mm::user;
use crate::wait::WaitQueue;
use alloc::rc::Rc;
use linux_raw_sys::general as linux;

#[allow(missing_docs, reason = "clone(2)")]
mod flags {
    use linux_raw_sys::general as linux;

    bitflags::bitflags! {
        /// Flags of clone(2) and clone3 without the exit signal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct CloneFlags: u64 {
            const VM = linux::CLONE_VM as u64;
            const FS = linux::CLONE_FS as u64;
            const FILES = linux::CLONE_FILES as u64;
            const SIGHAND = linux::CLONE_SIGHAND as u64;
            const PIDFD = linux::CLONE_PIDFD as u64;
            const PTRACE = linux::CLONE_PTRACE as u64;
            const VFORK = linux::CLONE_VFORK as u64;
            const PARENT = linux::CLONE_PARENT as u64;
            const THREAD = linux::CLONE_THREAD as u64;
            const NEWNS = linux::CLONE_NEWNS as u64;
            const SYSVSEM = linux::CLONE_SYSVSEM as u64;
            const SETTLS = linux::CLONE_SETTLS as u64;
            const PARENT_SETTID = linux::CLONE_PARENT_SETTID as u64;
            const CHILD_CLEARTID = linux::CLONE_CHILD_CLEARTID as u64;
            const DETACHED = linux::CLONE_DETACHED as u64;
            const UNTRACED = linux::CLONE_UNTRACED as u64;
            const CHILD_SETTID = linux::CLONE_CHILD_SETTID as u64;
            const NEWCGROUP = linux::CLONE_NEWCGROUP as u64;
            const NEWUTS = linux::CLONE_NEWUTS as u64;
            const NEWIPC = linux::CLONE_NEWIPC as u64;
            const NEWUSER = linux::CLONE_NEWUSER as u64;
            const NEWPID = linux::CLONE_NEWPID as u64;
            const NEWNET = linux::CLONE_NEWNET as u64;
            const IO = linux::CLONE_IO as u64;
            const CLEAR_SIGHAND = linux::CLONE_CLEAR_SIGHAND;
            const INTO_CGROUP = linux::CLONE_INTO_CGROUP;
            const NEWTIME = linux::CLONE_NEWTIME as u64;
        }
    }
}
pub use flags::CloneFlags;

impl CloneFlags {
    /// Everything that asks for a namespace of its own.
    pub const NAMESPACES: CloneFlags = Self::NEWNS
        .union(Self::NEWCGROUP)
        .union(Self::NEWUTS)
        .union(Self::NEWIPC)
        .union(Self::NEWUSER)
        .union(Self::NEWPID)
        .union(Self::NEWNET)
        .union(Self::NEWTIME);
}

/// What shall be made.
#[derive(Clone, Copy, Debug)]
pub struct CloneArgs {
    /// What is shared and what else is to be done.
    pub flags: CloneFlags,
    /// Signal for the parent when the new process ends.
    pub exit_signal: Option<Signal>,
    /// Stack pointer; null for the caller's.
    pub stack: UserAddr,
    /// FS base, with [`CloneFlags::SETTLS`].
    pub tls: u64,
    /// Where the id is stored in the caller's memory, with [`CloneFlags::PARENT_SETTID`].
    pub parent_tid: UserAddr,
    /// Where the id is stored in the new one's memory, and cleared when it ends.
    pub child_tid: UserAddr,
    /// Where the descriptor is stored, with [`CloneFlags::PIDFD`].
    pub pidfd: UserAddr,
    /// The id that the new thread shall have; 0 for any.
    pub wanted_tid: u32,
}

/// How many threads there may be (kernel.threads-max): each needs a kernel stack.
pub const MAX_THREADS: usize = 16384;

fn check(args: &CloneArgs, me: &Thread) -> Result<()> {
    let flags = args.flags;
    let needs = |a, b| flags.contains(a) && !flags.contains(b);
    if needs(CloneFlags::THREAD, CloneFlags::SIGHAND)
        || needs(CloneFlags::SIGHAND, CloneFlags::VM)
        || flags.contains(CloneFlags::FS | CloneFlags::NEWNS)
        || flags.contains(CloneFlags::CLEAR_SIGHAND | CloneFlags::SIGHAND)
        || flags.contains(CloneFlags::PIDFD | CloneFlags::DETACHED)
        || (flags.contains(CloneFlags::THREAD) && flags.intersects(CloneFlags::NEWUSER | CloneFlags::NEWPID))
    {
        return Err(Errno::EINVAL);
    }
    if flags.intersects(CloneFlags::NAMESPACES) {
        return Err(Errno::EPERM);
    }
    // No cgroup file system to name a group by; no descriptors for single threads.
    if flags.contains(CloneFlags::INTO_CGROUP) || flags.contains(CloneFlags::PIDFD | CloneFlags::THREAD) {
        return Err(Errno::EINVAL);
    }
    if flags.contains(CloneFlags::SETTLS) && args.tls >= USER_END {
        return Err(Errno::EPERM);
    }
    if args.wanted_tid != 0 && !me.creds().has(linux::CAP_SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    if pid::thread_count() >= MAX_THREADS {
        return Err(Errno::EAGAIN);
    }
    check_process_limit(me)
}

/// RLIMIT_NPROC counts threads of the same real user.
fn check_process_limit(me: &Thread) -> Result<()> {
    let limit = me.process.limit(limits::Resource::Processes);
    let creds = me.creds();
    if limit == limits::INFINITY
        || creds.uid == 0
        || creds.has(linux::CAP_SYS_RESOURCE)
        || creds.has(linux::CAP_SYS_ADMIN)
    {
        return Ok(());
    }
    let mine: usize = pid::processes().iter().filter(|p| p.uid() == creds.uid).map(|p| p.thread_count()).sum();
    if mine as u64 >= limit { Err(Errno::EAGAIN) } else { Ok(()) }
}

/// clone3: makes a thread or a process, which starts with the caller's registers and result 0. Returns its id; with
/// [`CloneFlags::VFORK`], once it has called execve(2) or ended.
///
/// # Errors
/// As clone(2).
pub fn clone(args: &CloneArgs) -> Result<u32> {
    let me = current();
    check(args, &me)?;
    let flags = args.flags;
    // From here on nothing blocks until the id is taken.
    let tid = if args.wanted_tid == 0 { pid::allocate()? } else { pid::claim(args.wanted_tid)? };

    let mut regs = me.state.regs();
    regs.rax = 0;
    regs.rflags = ptrace::own_flags(&me);
    if !args.stack.is_null() {
        regs.rsp = args.stack.0;
    }
    let fs_base = if flags.contains(CloneFlags::SETTLS) { args.tls } else { me.state.fs_base() };
    let state = ThreadState::new_user(&regs, fs_base, me.state.gs_base())?;
    state.copy_extended(&me.state);

    let process =
        if flags.contains(CloneFlags::THREAD) { Rc::clone(&me.process) } else { new_process(tid, &me, args)? };
    let shared = Shared {
        files: if flags.contains(CloneFlags::FILES) { me.files() } else { me.files().duplicate() },
        fs: me.try_fs().map(|fs| if flags.contains(CloneFlags::FS) { fs } else { fs.duplicate() }),
    };
    let signals = ThreadSignals::inherit(&me.signals);
    let thread = Thread::new(tid, &process, state, me.creds(), signals, shared);
    thread.inherit(&me);
    if flags.contains(CloneFlags::SYSVSEM) {
        *thread.undo_list.borrow_mut() = Some(UndoList::of(&me));
    }
    // A copy of the memory, or the memory itself until execve(2), keeps its alternate stack; a thread needs its own.
    if !flags.contains(CloneFlags::VM) || flags.contains(CloneFlags::VFORK) {
        thread.signals.set_alt_stack(me.signals.alt_stack());
    }
    if flags.contains(CloneFlags::CHILD_CLEARTID) {
        thread.clear_child_tid.set(args.child_tid);
    }
    if let Err(error) = store_ids(args, &me, &thread, tid) {
        super::exit::close_files(&thread);
        return Err(error);
    }

    process.add_thread(&thread);
    pid::add_thread(&thread);
    if !flags.contains(CloneFlags::THREAD) {
        session::join(&process);
        pid::add_process(&process);
        CpuLimit::watch(&process);
        let parent = if flags.contains(CloneFlags::PARENT) { me.process.parent() } else { None };
        parent.as_ref().unwrap_or(&me.process).add_child(&process);
    }
    let released = flags.contains(CloneFlags::VFORK).then(WaitQueue::new);
    process_vfork(&process, released.as_ref());
    let event = ptrace::fork_event(&me, flags, args.exit_signal);
    if event.is_some() || flags.contains(CloneFlags::PTRACE) {
        ptrace::inherit(&thread, &me);
    }
    sched::start(&thread, &me);
    drop(thread);
    if let Some(event) = event {
        ptrace::report(&me, event, tid.into());
    }
    if let Some(released) = released {
        // A signal that ends the caller ends the wait; the child goes on alone.
        let is_released = || process.vfork.borrow().is_none().then_some(());
        if sched::wait_until(&[&released], None, Sleep::Killable, is_released).is_ok() {
            ptrace::report(&me, ptrace::Event::VforkDone, tid.into());
        }
    }
    Ok(tid)
}

fn process_vfork(process: &Process, released: Option<&Rc<WaitQueue>>) {
    if let Some(released) = released {
        *process.vfork.borrow_mut() = Some(Rc::clone(released));
    }
}

fn new_process(tid: u32, me: &Rc<Thread>, args: &CloneArgs) -> Result<Rc<Process>> {
    let flags = args.flags;
    let space = me.process.space();
    let space = if flags.contains(CloneFlags::VM) { space } else { space.fork()? };
    let parent = if flags.contains(CloneFlags::PARENT) {
        me.process.parent().ok_or(Errno::EINVAL)?
    } else {
        Rc::clone(&me.process)
    };
    let actions = me.process.signals.actions();
    let actions = if flags.contains(CloneFlags::SIGHAND) {
        actions
    } else if flags.contains(CloneFlags::CLEAR_SIGHAND) {
        Rc::new(actions.after_exec())
    } else {
        Rc::new(actions.duplicate())
    };
    let process = Process::new(Seed {
        pid: tid,
        parent: Rc::downgrade(&parent),
        group: me.process.group(),
        signals: ProcessSignals::with_actions(actions),
        space: Some(space),
        limits: me.process.all_limits(),
        exit_signal: if flags.contains(CloneFlags::PARENT) { me.process.exit_signal() } else { args.exit_signal },
    });
    process.inherit(&me.process, me.tid());
    Ok(process)
}

/// Stores the id where it was asked for, and makes the descriptor. The child's memory may not be the current one.
fn store_ids(args: &CloneArgs, me: &Thread, thread: &Thread, tid: u32) -> Result<()> {
    let flags = args.flags;
    if flags.contains(CloneFlags::PIDFD) {
        let file = super::pidfd::open(&thread.process, crate::fs::file::OpenFlags::empty());
        let limit = me.process.limit(limits::Resource::OpenFiles) as usize;
        let files = me.files();
        let fd = files.insert(file, true, 0, limit)?;
        if let Err(error) = user::write(args.pidfd, &fd) {
            drop(files.remove(fd));
            return Err(error);
        }
    }
    // As on Linux, what can't be stored is not an error: the thread exists.
    if flags.contains(CloneFlags::PARENT_SETTID) {
        let _ = user::write(args.parent_tid, &tid);
    }
    if flags.contains(CloneFlags::CHILD_SETTID) {
        let _ = thread.process.space().write_memory(args.child_tid.0, &tid.to_ne_bytes(), Respect::Protection);
    }
    Ok(())
}

/// fork(2).
#[must_use]
pub const fn fork_args() -> CloneArgs {
    CloneArgs {
        flags: CloneFlags::empty(),
        exit_signal: Some(SIGCHLD),
        stack: UserAddr::NULL,
        tls: 0,
        parent_tid: UserAddr::NULL,
        child_tid: UserAddr::NULL,
        pidfd: UserAddr::NULL,
        wanted_tid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::space::{AddressSpace, Layout};
    use crate::task::pid;
    use crate::task::signal::JobReport;
    use crate::task::status::WaitStatus;
    use crate::task::testing::{end, enter, spawn};
    use crate::task::wait_child::{Options, Which, wait};
    use crate::task::{exit, session};

    fn enter_with_memory() -> Rc<Thread> {
        crate::mm::frame::reset_hosted(64 << 20, 64 << 20);
        let me = enter();
        let space = AddressSpace::new(Layout::randomised([1, 2], 8 << 20)).expect("memory");
        drop(me.process.set_space(Some(space)));
        me
    }

    const NOW: Options = Options::EXITED.union(Options::NOHANG);

    #[test]
    fn a_child_is_waited_for_once_and_its_id_is_free_afterwards() {
        let me = enter_with_memory();
        let child = spawn(&fork_args()).expect("fork");
        let pid = child.tid();
        assert_eq!((pid, child.process.parent().map(|p| p.pid())), (3, Some(2)));
        assert_eq!(wait(&Which::Any, NOW), Ok(None));
        end(&child, 7);
        assert!(pid::process(pid).is_some() && pid::thread(pid).is_none());
        let seen = wait(&Which::Pid(pid), NOW | Options::NOWAIT).expect("a child").expect("a zombie");
        assert_eq!(seen.status, WaitStatus::exited(7));
        let event = wait(&Which::Any, Options::EXITED).expect("a child").expect("a zombie");
        assert_eq!((event.pid, event.status), (pid, WaitStatus::exited(7)));
        assert!(child.process.is_reaped());
        assert_eq!(wait(&Which::Any, NOW), Err(Errno::ECHILD));
        assert!(me.process.children().is_empty());
    }

    #[test]
    fn which_children_count() {
        let me = enter_with_memory();
        let child = spawn(&fork_args()).expect("fork");
        let silent = spawn(&CloneArgs { exit_signal: None, ..fork_args() }).expect("clone");
        session::set_pgid(&me.process, child.tid(), 0).expect("a child that has not executed");
        assert_eq!(wait(&Which::Group(child.tid()), NOW), Ok(None));
        assert_eq!(wait(&Which::Group(99), NOW), Err(Errno::ECHILD));
        assert_eq!(wait(&Which::Pid(silent.tid()), NOW), Err(Errno::ECHILD));
        assert_eq!(wait(&Which::Pid(silent.tid()), NOW | Options::CLONE), Ok(None));
        assert_eq!(wait(&Which::Pid(child.tid()), NOW | Options::CLONE), Err(Errno::ECHILD));
        end(&silent, 0);
        assert_eq!(wait(&Which::Any, NOW), Ok(None));
        assert!(wait(&Which::Any, NOW | Options::ALL).expect("children").is_some());
    }

    #[test]
    fn stops_and_continuations_are_told_once_and_only_if_asked_for() {
        let _me = enter_with_memory();
        let child = spawn(&fork_args()).expect("fork");
        let stop = crate::task::signal::Signal::new(19).expect("SIGSTOP");
        child.process.signals.set_job_report(JobReport::Stopped(stop));
        assert_eq!(wait(&Which::Any, NOW), Ok(None));
        let event = wait(&Which::Any, NOW | Options::STOPPED).expect("a child").expect("a change");
        assert_eq!(event.status, WaitStatus::stopped(19));
        assert_eq!(wait(&Which::Any, NOW | Options::STOPPED), Ok(None));
    }

    #[test]
    fn orphans_go_to_the_subreaper_else_to_init_where_they_vanish() {
        let me = enter_with_memory();
        let parent = spawn(&fork_args()).expect("fork");
        let reaper = spawn(&fork_args()).expect("fork");
        sched::start_first(&parent);
        let orphan = spawn(&fork_args()).expect("fork");
        sched::start_first(&reaper);
        reaper.process.child_subreaper.set(true);
        let middle = spawn(&fork_args()).expect("fork");
        sched::start_first(&middle);
        let kept = spawn(&fork_args()).expect("fork");
        sched::start_first(&me);
        end(&parent, 0);
        end(&middle, 0);
        assert_eq!(orphan.process.parent().map(|p| p.pid()), Some(1));
        assert_eq!(kept.process.parent().map(|p| p.pid()), Some(reaper.tid()));
        end(&orphan, 3);
        assert!(orphan.process.is_reaped());
        end(&kept, 3);
        assert!(!kept.process.is_reaped());
        // The reaper's own zombies go with it.
        end(&reaper, 0);
        assert!(kept.process.is_reaped() && middle.process.is_reaped() && !reaper.process.is_reaped());
    }

    #[test]
    fn the_last_thread_ends_the_process_with_its_status() {
        let _me = enter_with_memory();
        let child = spawn(&fork_args()).expect("fork");
        sched::start_first(&child);
        let flags = CloneFlags::VM | CloneFlags::SIGHAND | CloneFlags::THREAD | CloneFlags::FILES | CloneFlags::FS;
        let second = spawn(&CloneArgs { flags, exit_signal: None, ..fork_args() }).expect("clone");
        assert!(Rc::ptr_eq(&second.process, &child.process));
        end(&child, 5);
        assert!(child.process.is_alive());
        end(&second, 6);
        assert_eq!(child.process.ended(), Some(WaitStatus::exited(6)));
    }

    #[test]
    fn exit_group_dooms_all_threads_and_its_first_status_counts() {
        let me = enter_with_memory();
        let child = spawn(&fork_args()).expect("fork");
        exit::exit_group(&child.process, WaitStatus::signaled(9, false));
        exit::exit_group(&child.process, WaitStatus::exited(0));
        assert!(child.dying() && !me.dying());
        end(&child, 0);
        assert_eq!(child.process.ended(), Some(WaitStatus::signaled(9, false)));
    }

    #[test]
    fn flags_that_make_no_sense_together_and_namespaces() {
        let _me = enter_with_memory();
        let clone_with = |flags| clone(&CloneArgs { flags, ..fork_args() });
        assert_eq!(clone_with(CloneFlags::THREAD), Err(Errno::EINVAL));
        assert_eq!(clone_with(CloneFlags::SIGHAND), Err(Errno::EINVAL));
        assert_eq!(clone_with(CloneFlags::NEWUSER), Err(Errno::EPERM));
        assert_eq!(clone(&CloneArgs { wanted_tid: 1, ..fork_args() }), Err(Errno::EEXIST));
        assert_eq!(clone(&CloneArgs { wanted_tid: 700, ..fork_args() }), Ok(700));
    }

    #[test]
    fn groups_and_sessions() {
        let me = enter_with_memory();
        assert_eq!(session::set_sid(&me.process), Err(Errno::EPERM));
        assert_eq!(session::set_pgid(&me.process, 0, 0), Err(Errno::EPERM));
        let child = spawn(&fork_args()).expect("fork");
        assert_eq!(session::set_pgid(&me.process, child.tid(), 77), Err(Errno::EPERM));
        child.process.executed.set(true);
        assert_eq!(session::set_pgid(&me.process, child.tid(), 0), Err(Errno::EACCES));
        assert_eq!(session::set_pgid(&child.process, 0, 0), Ok(()));
        assert_eq!(session::set_sid(&child.process), Err(Errno::EPERM));
        let other = spawn(&fork_args()).expect("fork");
        assert_eq!(session::set_sid(&other.process), Ok(other.tid()));
        assert_eq!(session::set_pgid(&me.process, other.tid(), 0), Err(Errno::EPERM));
        assert_eq!(other.process.group().session().sid(), other.tid());
        assert_eq!(session::set_pgid(&me.process, 4242, 0), Err(Errno::ESRCH));
    }
}

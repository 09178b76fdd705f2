//! Who traces whom, and who is told of an end, on hosted threads, which never stop.

use super::*;
use crate::arch::regs::UserRegs;
use crate::mm::space::{AddressSpace, Layout};
use crate::task::fork::{CloneArgs, CloneFlags, fork_args};
use crate::task::sched;
use crate::task::status::WaitStatus;
use crate::task::testing::{end, enter, spawn};
use crate::task::wait_child::{Options as WaitOptions, Which, wait};

const NOW: WaitOptions = WaitOptions::EXITED.union(WaitOptions::NOHANG);

fn enter_with_memory() -> Rc<Thread> {
    crate::mm::frame::reset_hosted(64 << 20, 64 << 20);
    let me = enter();
    let space = AddressSpace::new(Layout::randomised([1, 2], 8 << 20)).expect("memory");
    drop(me.process.set_space(Some(space)));
    me
}

fn child() -> Rc<Thread> {
    spawn(&fork_args()).expect("fork")
}

/// Runs `f` as another thread.
fn as_thread<R>(thread: &Rc<Thread>, f: impl FnOnce() -> R) -> R {
    let me = current();
    sched::start_first(thread);
    let result = f();
    sched::start_first(&me);
    result
}

fn tid(thread: &Thread) -> i32 {
    thread.tid().cast_signed()
}

#[test]
fn a_child_asks_its_parent_to_trace_it() {
    let me = enter_with_memory();
    let child = child();
    assert!(tracee(tid(&child)).is_err());
    as_thread(&child, || {
        assert_eq!(trace_me(), Ok(()));
        assert_eq!(trace_me(), Err(Errno::EPERM), "it is traced already");
    });
    assert!(child.ptrace.tracer().is_some_and(|tracer| Rc::ptr_eq(&tracer, &me)));
    assert!(tracee(tid(&child)).is_ok());
    assert!(stopped_tracee(tid(&child)).is_err(), "it runs");
    assert!(crate::syscall::dispatch::watched());
    end(&child, 3);
    assert!(!crate::syscall::dispatch::watched());
    let event = wait(&Which::Any, NOW).expect("a child").expect("its end");
    assert_eq!((event.pid, event.status), (child.tid(), WaitStatus::exited(3)));
    assert!(child.process.is_reaped());
    assert_eq!(trace_me(), Err(Errno::EPERM), "the parent is init");
}

#[test]
fn a_tracer_is_told_of_an_end_before_the_parent() {
    let _me = enter_with_memory();
    let (target, tracer) = (child(), child());
    as_thread(&tracer, || assert_eq!(seize(tid(&target), 0), Ok(())));
    end(&target, 5);
    let of_target = Which::Pid(target.tid());
    assert_eq!(wait(&of_target, NOW), Ok(None), "it is there, but the parent's turn has not come");
    as_thread(&tracer, || {
        assert_eq!(wait(&of_target, NOW).map(|event| event.map(|event| event.status.0)), Ok(Some(5 << 8)));
        assert_eq!(wait(&of_target, NOW), Err(Errno::ECHILD));
    });
    assert_eq!(wait(&of_target, NOW).map(|event| event.map(|event| event.status.0)), Ok(Some(5 << 8)));
    assert!(target.process.is_reaped());
}

#[test]
fn the_end_of_a_tracer_leaves_its_tracees_alone_or_kills_them() {
    let _me = enter_with_memory();
    let (left, killed, ended, tracer) = (child(), child(), child(), child());
    as_thread(&tracer, || {
        assert_eq!(seize(tid(&left), 0), Ok(()));
        assert_eq!(seize(tid(&killed), u64::from(linux::PTRACE_O_EXITKILL)), Ok(()));
        assert_eq!(seize(tid(&ended), 0), Ok(()));
        assert_eq!(seize(tid(&ended), 0), Err(Errno::EPERM));
        assert_eq!(seize(tid(&tracer), 0), Err(Errno::EPERM));
        assert_eq!(seize(1, 0), Err(Errno::EPERM));
        assert_eq!(seize(tid(&left), 1 << 30), Err(Errno::EIO));
    });
    end(&ended, 0);
    assert_eq!(wait(&Which::Pid(ended.tid()), NOW), Ok(None));
    end(&tracer, 0);
    assert!(!left.ptrace.is_traced() && !left.dying());
    assert!(!killed.ptrace.is_traced() && killed.dying());
    assert!(matches!(wait(&Which::Pid(ended.tid()), NOW), Ok(Some(_))), "the parent's turn");
}

#[test]
fn the_id_of_a_thread_is_kept_until_its_tracer_knows_of_its_end() {
    let _me = enter_with_memory();
    let leader = child();
    let flags = CloneFlags::THREAD | CloneFlags::SIGHAND | CloneFlags::VM;
    let thread =
        as_thread(&leader, || spawn(&CloneArgs { flags, exit_signal: None, ..fork_args() }).expect("a thread"));
    assert_eq!(seize(tid(&thread), 0), Ok(()));
    end(&thread, 4);
    assert_eq!(pid::claim(thread.tid()), Err(Errno::EEXIST));
    assert_eq!(wait(&Which::Pid(leader.tid()), NOW), Ok(None));
    let event = wait(&Which::Pid(thread.tid()), NOW).expect("a tracee").expect("its end");
    assert_eq!(event.status, WaitStatus::exited(4));
    assert_eq!(pid::claim(thread.tid()), Ok(thread.tid()));
}

#[test]
fn registers_have_their_places_and_limits() {
    let _me = enter_with_memory();
    let child = child();
    assert_eq!(seize(tid(&child), 0), Ok(()));
    let mut regs = UserRegs::start(0x1000, 0x2000);
    (regs.r15, regs.rbx, regs.orig_rax) = (15, 3, 39);
    child.state.set_regs(&regs);
    let word = |at: u64| peek_user(&child, at);
    assert_eq!([word(0), word(40), word(120), word(128), word(152)], [15, 3, 39, 0x1000, 0x2000].map(Ok));
    assert_eq!(word(4), Err(Errno::EIO));
    assert_eq!([word(USER_BYTES - 8), word(USER_BYTES)], [Ok(0), Err(Errno::EIO)]);
    assert_eq!(poke_user(&child, 136, 0x10), Err(Errno::EIO), "there is no other code segment");
    assert_eq!(poke_user(&child, 168, u64::MAX), Err(Errno::EIO));
    assert_eq!(poke_user(&child, 848, 0x1000), Err(Errno::ENOSPC), "no debug registers");
    assert_eq!(poke_user(&child, 144, u64::MAX), Ok(()));
    assert_eq!(child.state.regs().rflags & 0x7000, 0, "IOPL and NT stay");
}

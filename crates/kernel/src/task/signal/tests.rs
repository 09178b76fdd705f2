//! Sending and delivering, on hosted threads.

use super::*;
use crate::errno::Errno;
use crate::task::limits::{Limit, Resource};
use crate::task::status::WaitStatus;
use crate::task::testing;
use crate::task::thread::Thread;
use alloc::rc::Rc;
use linux_raw_sys::general as linux;

const HANDLER: u64 = 0x40_0000;

/// A thread with a stack in `room`.
fn program(room: &mut [u128]) -> Rc<Thread> {
    let me = testing::enter();
    let mut regs = crate::arch::regs::UserRegs::start(0x1000, room.as_mut_ptr_range().end as u64);
    regs.orig_rax = u64::from(linux::__NR_read);
    me.state.set_regs(&regs);
    me
}

fn catch(me: &Thread, signal: Signal, flags: ActionFlags) {
    let action = Action { handler: HANDLER, flags: flags | ActionFlags::RESTORER, restorer: 2, mask: SignalSet::EMPTY };
    action_of(&me.process, signal, Some(action));
}

/// What the system call of `me` gave, and what its program sees after delivery: the result or the restarted number.
fn after_interruption(me: &Rc<Thread>, error: Errno) -> (u64, u64) {
    let mut regs = me.state.regs();
    let rip = regs.rip;
    regs.rax = i64::from(-error.0).cast_unsigned();
    me.state.set_regs(&regs);
    note_interrupted_call(me);
    while work_pending() {
        deliver();
    }
    let mut regs = me.state.regs();
    if regs.rip == HANDLER {
        regs.rsp += 8;
        me.state.set_regs(&regs);
        sigreturn();
        regs = me.state.regs();
    }
    (rip - regs.rip, regs.rax)
}

#[test]
fn interrupted_calls_restart_by_the_rules() {
    let mut room = vec![0u128; 4096];
    let eintr = i64::from(-Errno::EINTR.0).cast_unsigned();
    let read = u64::from(linux::__NR_read);
    let restart = u64::from(linux::__NR_restart_syscall);
    for (error, none, plain, restarting) in [
        (Errno::ERESTARTSYS, (2, read), (0, eintr), (2, read)),
        (Errno::ERESTARTNOINTR, (2, read), (2, read), (2, read)),
        (Errno::ERESTARTNOHAND, (2, read), (0, eintr), (0, eintr)),
        (Errno::ERESTART_RESTARTBLOCK, (2, restart), (0, eintr), (0, eintr)),
    ] {
        let me = program(&mut room);
        assert_eq!(after_interruption(&me, error), none, "{error:?} without a handler");
        let me = program(&mut room);
        catch(&me, SIGUSR1, ActionFlags::empty());
        send_self(SIGUSR1);
        assert_eq!(after_interruption(&me, error), plain, "{error:?} with a handler");
        let me = program(&mut room);
        catch(&me, SIGUSR1, ActionFlags::RESTART);
        send_self(SIGUSR1);
        assert_eq!(after_interruption(&me, error), restarting, "{error:?} with SA_RESTART");
    }
}

#[test]
fn masks_hold_back_and_come_back() {
    let mut room = vec![0u128; 4096];
    let me = program(&mut room);
    catch(&me, SIGUSR1, ActionFlags::empty());
    procmask(SignalSet::of(SIGUSR1));
    send_self(SIGUSR1);
    assert!(!work_pending());
    // sigsuspend(2) lets it in; the handler's return brings the mask back.
    assert_eq!(suspend(SignalSet::of(SIGUSR2)), Err(Errno::ERESTARTNOHAND));
    assert_eq!(after_interruption(&me, Errno::ERESTARTNOHAND).0, 0);
    assert_eq!(me.signals.blocked(), SignalSet::of(SIGUSR1));
    assert!(me.signals.own_pending().is_empty());
    // In the handler the signal itself is blocked unless SA_NODEFER says otherwise.
    for (flags, inside) in [(ActionFlags::empty(), SignalSet::of(SIGUSR2)), (ActionFlags::NODEFER, SignalSet::EMPTY)] {
        procmask(SignalSet::EMPTY);
        catch(&me, SIGUSR2, flags | ActionFlags::RESETHAND);
        send_self(SIGUSR2);
        deliver();
        assert_eq!(me.signals.blocked(), inside);
        assert_eq!(me.process.signals.actions().get(SIGUSR2).handler, SIG_DFL);
    }
}

#[test]
fn default_actions() {
    let mut room = vec![0u128; 4096];
    let me = program(&mut room);
    send_self(SIGCHLD);
    send_self(SIGCONT);
    assert!(!me.dying() && me.signals.own_pending().is_empty());
    procmask(SignalSet::of(SIGTERM));
    send_self(SIGTERM);
    assert!(!me.dying());
    procmask(SignalSet::EMPTY);
    assert!(me.signals.pending());
    let me = program(&mut room);
    send_self(SIGTERM);
    assert!(me.dying());
    assert_eq!(me.process.group_exit.get(), Some(WaitStatus::signaled(15, false)));
}

#[test]
fn init_is_out_of_reach() {
    let _me = testing::enter();
    let init = crate::task::pid::process(crate::task::init::INIT).expect("always there");
    let thread = init.any_thread().expect("init lives");
    for signal in [SIGTERM, SIGKILL, SIGSTOP] {
        send_to_process(&init, SignalInfo::lost(signal)).expect("no error");
        send_to_thread(&thread, SignalInfo::lost(signal)).expect("no error");
    }
    assert!(!thread.dying() && !thread.signals.pending() && init.signals.shared_pending().is_empty());
}

#[test]
fn a_blocked_fault_ends_the_process_and_a_caught_one_tells_the_address() {
    let mut room = vec![0u128; 4096];
    let fault =
        Fault { signal: SIGSEGV, code: SEGV_MAPERR, address: 0xabc0, vector: 14, error: 6, cr2: 0xabc0, rip: 0x1000 };
    let me = program(&mut room);
    catch(&me, SIGSEGV, ActionFlags::SIGINFO);
    force(&fault);
    deliver();
    let regs = me.state.regs();
    assert_eq!(regs.rip, HANDLER);
    // SAFETY: the frame is in `room`; these are the fields of a siginfo_t and a ucontext_t there.
    let (address, error, trap, cr2) = unsafe {
        let uc = regs.rdx as *const libc::ucontext_t;
        let gregs = (*uc).uc_mcontext.gregs;
        let of = |n: i32| gregs[n as usize];
        let si = regs.rsi as *const libc::siginfo_t;
        ((*si).si_addr() as u64, of(libc::REG_ERR), of(libc::REG_TRAPNO), of(libc::REG_CR2))
    };
    assert_eq!((address, error, trap, cr2), (0xabc0, 6, 14, 0xabc0));
    // A second one inside the handler, where SIGSEGV is blocked.
    force(&fault);
    assert!(me.dying());
    let me = program(&mut room);
    let ignored = Action { handler: SIG_IGN, ..Action::DEFAULT };
    action_of(&me.process, SIGSEGV, Some(ignored));
    force(&fault);
    assert!(me.dying());
}

#[test]
fn waiting_takes_a_blocked_signal_with_its_information() {
    let mut room = vec![0u128; 4096];
    let me = program(&mut room);
    let rt = Signal::new(40).expect("in range");
    let set = SignalSet::of(rt).with(SIGHUP);
    procmask(set);
    me.process.set_limits(Resource::PendingSignals, Limit { soft: 2, hard: 2 });
    let info = |n: u32| SignalInfo::process(rt, SI_QUEUE, n, 0);
    for n in [1, 2] {
        send_to_process(&me.process, info(n)).expect("room");
    }
    assert_eq!(send_to_process(&me.process, info(3)), Err(Errno::EAGAIN));
    send_to_thread(&me, SignalInfo::lost(SIGHUP)).expect("room");
    let soon = Some(crate::time::now().after_ns(1000));
    assert_eq!(wait_for(set, soon).map(|info| info.signal), Ok(SIGHUP));
    assert_eq!(wait_for(set, soon), Ok(info(1)));
    assert_eq!(wait_for(set, soon), Ok(info(2)));
    assert_eq!(wait_for(set, soon), Err(Errno::EAGAIN));
}

#[test]
fn continuing_undoes_stopping_and_the_other_way_round() {
    let mut room = vec![0u128; 4096];
    let me = program(&mut room);
    procmask(SignalSet::of(SIGTSTP).with(SIGCONT));
    let send = |signal| send_to_process(&me.process, SignalInfo::lost(signal)).expect("room");
    send(SIGTSTP);
    assert!(me.process.signals.shared_pending().has(SIGTSTP));
    catch(&me, SIGCONT, ActionFlags::empty());
    send(SIGCONT);
    assert_eq!(me.process.signals.shared_pending(), SignalSet::of(SIGCONT));
    send(SIGTSTP);
    assert_eq!(me.process.signals.shared_pending(), SignalSet::of(SIGTSTP));
    procmask(SignalSet::of(SIGCONT));
    // A group whose members' parents are all in other sessions is orphaned: SIGTSTP is ignored.
    deliver();
    assert_eq!(me.process.signals.stopped(), None);
    assert!(!work_pending());
}

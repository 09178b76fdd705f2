//! Single steps. The processor's trap flag is the tracer's only as long as it steps, and hidden from who reads registers.

use super::{Kind, link_of, stop};
use crate::task::signal::SIGTRAP;
use crate::task::thread::Thread;
use alloc::rc::Rc;

/// TF.
pub(super) const TRAP_FLAG: u64 = 1 << 8;

/// The program's own flags of a thread's.
pub(in crate::task) fn own_flags(thread: &Thread) -> u64 {
    let hidden = thread.ptrace.link().is_some_and(|link| link.trap_flag.get());
    let flags = thread.state.regs().rflags;
    if hidden { flags & !TRAP_FLAG } else { flags }
}

/// Lets the thread stop after its next instruction.
pub(super) fn begin_step(tracee: &Thread) {
    let link = link_of(tracee);
    link.step.set(true);
    let mut regs = tracee.state.regs();
    if regs.rflags & TRAP_FLAG == 0 {
        regs.rflags |= TRAP_FLAG;
        tracee.state.set_regs(&regs);
        link.trap_flag.set(true);
    }
}

/// Ends stepping; whether the thread was stepped.
pub(in crate::task) fn end_step(tracee: &Thread) -> bool {
    let Some(link) = tracee.ptrace.link() else { return false };
    if link.trap_flag.take() {
        let mut regs = tracee.state.regs();
        regs.rflags &= !TRAP_FLAG;
        tracee.state.set_regs(&regs);
    }
    link.step.take()
}

/// A step has led into a signal handler: the tracer sees its first instruction.
pub(in crate::task) fn stepped_into_handler(me: &Rc<Thread>) {
    stop::trap(me, Kind::Event, SIGTRAP, SIGTRAP.number(), 0);
}

//! A system call of the running thread: number and arguments from its registers, the result into them.

use super::{dispatch, trace};
use crate::errno::{Errno, Result};
use crate::task::thread::Thread;
use crate::task::{current, oom, ptrace, signal};

/// Performs the call. It takes what memory it needs; if that was too much, somebody gives some back before it returns.
pub(crate) fn system_call() {
    let thread = current();
    if dispatch::watched() {
        if ptrace::call_begins(&thread) {
            perform(&thread, dispatch::tracing());
        }
        ptrace::call_ends(&thread);
    } else {
        perform(&thread, false);
    }
    oom::relieve();
}

/// With `traced`, `--trace` shows it.
fn perform(thread: &Thread, traced: bool) {
    let regs = thread.state.regs();
    let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
    let number = regs.orig_rax;
    if traced {
        trace::enter(thread.tid(), number, args);
    }
    thread.short_of_memory.set(false);
    let mut result = dispatch::call(number, args);
    if result == Err(Errno::EFAULT) && thread.short_of_memory.get() && oom::make_room() {
        // As where the program itself touches memory that can't be had: it waits for it.
        result = Err(Errno::ERESTARTNOINTR);
    }
    if traced {
        trace::leave(thread.tid(), &result);
    }
    if !thread.state.take_replaced() {
        set_result(thread, result);
    }
}

fn set_result(thread: &Thread, result: Result<u64>) {
    thread.state.set_result(match result {
        Ok(value) => value,
        Err(error) => {
            if error.0 >= 512 {
                // ERESTART...: what becomes of it depends on the signals.
                signal::note_interrupted_call(thread);
            }
            u64::from_ne_bytes(i64::from(-error.0).to_ne_bytes())
        }
    });
}

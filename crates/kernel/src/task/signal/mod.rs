//! Signals of threads and processes (signal(7)).
//!
//! A signal is sent ([`send`]): put into the queue of a thread or of a process, and one thread that does not block it is
//! told (`attention`) and woken. That thread looks before its program goes on ([`work_pending`], [`deliver`]): a stop, the
//! end of the process, or a frame on the program's stack ([`frame`]) and the handler's address in the registers.
//!
//! Names and rules are Linux's kernel/signal.c and arch/x86/kernel/signal.c as far as programs can see them.

pub mod action;
mod deliver;
mod extended;
mod frame;
pub mod info;
mod job;
mod mask;
pub mod number;
pub mod queue;
mod send;
pub mod stack;
mod state;
#[cfg(test)]
mod tests;

pub use action::{Action, ActionFlags, Actions, SIG_DFL, SIG_IGN};
pub use deliver::{deliver, note_interrupted_call, note_registers, restart_call, set_restart, sigreturn, work_pending};
pub(super) use extended::{Area, HEADER_OFFSET, MXCSR_OFFSET, SOFTWARE_OFFSET, enabled};
pub use frame::minimum_stack;
pub use info::*;
pub use job::{child_exited, thread_gone};
pub(super) use job::{child_info, ignores_children, participate, tell, tell_parent};
pub use mask::{block, procmask, suspend, take_of, wait_for, with_mask};
pub use number::*;
pub use send::{
    Fault, Target, action_of, force, may_send, send_from, send_self, send_to_process, send_to_thread, withdraw,
};
pub(super) use send::{add_pending, force_info};
pub use stack::{AltStack, SS_DISABLE};
pub(super) use state::refresh;
pub use state::{JobReport, ProcessSignals, Restart, ThreadSignals};

//! The guest kernel: the Linux x86-64 system call ABI for one microVM, at CPL 3 beside its programs.
//!
//! One virtual CPU, and kernel code is never preempted: it runs until it blocks in [`wait`] or returns to a program.
//! So kernel objects are `Rc` and `Cell`/`RefCell`, and there are no locks; the one rule is that **no `RefCell` borrow is
//! held across a call that can block** (a violation panics instead of corrupting). Interrupts that arrive in the kernel
//! only set a flag.
//!
//! Kernel code takes no page faults: programs' memory is reached through [`mm::user`], which walks and populates first.
//!
//! With feature `hosted` (the default) the crate is an ordinary library for tests and fuzzing; the guest's build has it off.
#![cfg_attr(not(feature = "hosted"), no_std)]

extern crate alloc;

pub use torpor_abi as abi;

pub mod accounts;
pub mod arch;
#[cfg(not(feature = "hosted"))]
pub mod boot;
pub mod dev;
pub mod errno;
pub mod event;
pub mod fs;
pub mod host;
pub mod hosts;
pub mod ipc;
pub mod mm;
pub mod net;
pub mod random;
pub mod rewrite;
#[cfg(not(feature = "hosted"))]
pub mod snapshot;
pub mod sync;
pub mod syscall;
pub mod task;
pub mod time;
pub mod wait;

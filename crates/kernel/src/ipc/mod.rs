//! System V IPC (sysvipc(7)): shared memory, semaphores, message queues.
//!
//! Objects outlive their makers. An identifier names an object until IPC_RMID, also for who keeps an [`alloc::rc::Rc`] of it
//! while it sleeps: such a one looks at [`Permissions::is_removed`] when it wakes.

pub mod limits;
pub mod msg;
mod permissions;
pub mod sem;
pub mod shm;
mod table;

pub use permissions::{Change, Permissions, Want};
pub use table::{IPC_PRIVATE, Object, Request};

use crate::time;

/// What timestamps of objects count in: seconds of CLOCK_REALTIME.
pub(crate) fn now_s() -> i64 {
    (time::realtime_ns() / 1_000_000_000).cast_signed()
}

/// Process id that objects remember.
fn caller() -> u32 {
    crate::task::try_current().map_or(0, |thread| thread.process.pid())
}

//! Waiting for several files: what poll(2) and select(2) have in common.

use crate::errno::{Errno, Result};
use crate::fs::file::OpenFile;
use crate::task::sched::{Sleep, WaitError, wait_until};
use crate::time::{self, Instant};
use crate::wait::{Events, WaitQueue};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// A file that is polled.
pub struct Polled {
    /// The file; `None` is never ready.
    pub file: Option<Rc<OpenFile>>,
    /// What is waited for.
    pub wanted: Events,
    /// What was found.
    pub ready: Events,
}

impl Polled {
    fn look(&mut self) -> bool {
        if let Some(file) = &self.file {
            self.ready = file.poll() & self.wanted;
        }
        !self.ready.is_empty()
    }
}

/// Waits until one of the files is ready (or had `ready` set before) or `deadline` has passed. Returns how many are.
///
/// # Errors
/// [`WaitError::Interrupted`].
pub fn wait(files: &mut [Polled], deadline: Option<Instant>) -> core::result::Result<usize, WaitError> {
    let count = files.iter_mut().filter_map(|polled| polled.look().then_some(())).count();
    if count > 0 || deadline.is_some_and(|at| at <= time::now()) {
        return Ok(count);
    }
    let queues: Vec<Rc<WaitQueue>> = files.iter().filter_map(|polled| polled.file.as_ref()?.ops.wait_queue()).collect();
    let queues: Vec<&Rc<WaitQueue>> = queues.iter().collect();
    let found = wait_until(&queues, deadline, Sleep::Interruptible, || {
        let count = files.iter_mut().filter_map(|polled| polled.look().then_some(())).count();
        (count > 0).then_some(count)
    });
    match found {
        Err(WaitError::TimedOut) => Ok(0),
        found => found,
    }
}

/// The deadline of a time-out in milliseconds; negative is none.
#[must_use]
pub fn deadline_after_ms(timeout_ms: i32) -> Option<Instant> {
    u64::try_from(timeout_ms).ok().map(|ms| time::now().after_ns(ms * 1_000_000))
}

/// The deadline after `sec` seconds and `nsec` nanoseconds.
///
/// # Errors
/// EINVAL if it is negative or `nsec` a second or more.
pub fn deadline_after(sec: i64, nsec: i64) -> Result<Instant> {
    let sec = u64::try_from(sec).map_err(|_| Errno::EINVAL)?;
    let nsec = u64::try_from(nsec).ok().filter(|n| *n < 1_000_000_000).ok_or(Errno::EINVAL)?;
    Ok(time::now().after_ns(sec.saturating_mul(1_000_000_000).saturating_add(nsec)))
}

/// What is left until `deadline`, in nanoseconds.
#[must_use]
pub fn remaining_ns(deadline: Instant) -> u64 {
    deadline.0.saturating_sub(time::now().0)
}

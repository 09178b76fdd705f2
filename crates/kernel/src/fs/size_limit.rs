//! RLIMIT_FSIZE: how large a process may make files (setrlimit(2)).

use crate::errno::{Errno, Result};
use crate::task::limits::{INFINITY, Resource};
use crate::task::signal::{SIGXFSZ, send_self};
use crate::task::try_current;

/// Of the current process; the kernel itself, before there is one, has none.
fn limit() -> u64 {
    try_current().map_or(INFINITY, |me| me.process.limit(Resource::FileSize))
}

/// Sends the signal that comes with the error.
fn exceeded() -> Errno {
    send_self(SIGXFSZ);
    Errno::EFBIG
}

/// How far a write to `[offset, end)` may go: at least one byte.
///
/// # Errors
/// EFBIG, and SIGXFSZ, if it may not even begin.
pub fn writable_end(offset: u64, end: u64) -> Result<u64> {
    let limit = limit();
    if offset >= limit { Err(exceeded()) } else { Ok(end.min(limit)) }
}

/// Whether a file of `old` bytes may become one of `new`.
///
/// # Errors
/// EFBIG, and SIGXFSZ, if it may not.
pub fn check(old: u64, new: u64) -> Result<()> {
    if new > old && new > limit() { Err(exceeded()) } else { Ok(()) }
}

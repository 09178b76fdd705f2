//! File timestamps.

use super::inode::Timestamp;

/// The present time.
#[must_use]
pub fn now() -> Timestamp {
    let ns = crate::time::realtime_ns();
    Timestamp { sec: (ns / 1_000_000_000) as i64, nsec: (ns % 1_000_000_000) as u32 }
}

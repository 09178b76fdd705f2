//! Messages of the kernel: kept for syslog(2), and sent to the host where there is one.

use crate::time;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

/// At most this many messages are kept.
const KEPT: usize = 64;
/// The longest message; the rest is cut off.
const MAX_MESSAGE_BYTES: usize = 200;
/// What all of them together need at most.
pub const CAPACITY_BYTES: usize = KEPT * MAX_MESSAGE_BYTES;

crate::global! {
    static MESSAGES: RefCell<VecDeque<String>> = RefCell::new(VecDeque::new());
}

/// Records a message with the time since boot.
pub fn message(text: core::fmt::Arguments<'_>) {
    let at = time::boottime_ns();
    let mut line = format!("[{:5}.{:06}] {text}", at / 1_000_000_000, at / 1000 % 1_000_000);
    line.truncate(line.floor_char_boundary(MAX_MESSAGE_BYTES - 8));
    #[cfg(not(feature = "hosted"))]
    crate::host::stream::log(format_args!("{line}"));
    MESSAGES.with(|messages| {
        let mut messages = messages.borrow_mut();
        if messages.len() == KEPT {
            messages.pop_front();
        }
        messages.push_back(line);
    });
}

/// The messages that are kept, the oldest first.
#[must_use]
pub fn messages() -> Vec<String> {
    MESSAGES.with(|messages| messages.borrow().iter().cloned().collect())
}

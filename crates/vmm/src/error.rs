//! How a run ends without the program: one line for standard error and an exit status as `docker run` uses them.

use std::fmt;
use std::path::Path;

/// The VM or its set-up failed.
pub const STATUS_FAILED: u8 = 125;
/// The program is there but can't be executed.
pub const STATUS_NOT_EXECUTABLE: u8 = 126;
/// There is no such program in the image.
pub const STATUS_NOT_FOUND: u8 = 127;

/// A VM that was ended by a command, as a container that `docker checkpoint` ends: 128 + SIGKILL.
pub const STATUS_STOPPED: u8 = 137;

/// The end of a run for another reason than the program's own exit.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit status for the caller.
    pub status: u8,
    /// What was wrong with which input, and what to do; may have further lines (registers, a backtrace).
    pub message: String,
}

impl Failure {
    /// A failure of the VM or of its set-up.
    pub fn new(message: impl Into<String>) -> Self {
        Self { status: STATUS_FAILED, message: message.into() }
    }

    /// A command at the control socket ended the VM.
    #[must_use]
    pub fn stopped() -> Self {
        Self { status: STATUS_STOPPED, message: "the VM was ended by a command".into() }
    }

    /// The guest answered `errno` when it was to start the program, or, with EUCLEAN, found `image` damaged.
    #[must_use]
    pub fn start(errno: i32, message: String, image: &Path) -> Self {
        let message = if errno == libc::EUCLEAN { format!("image {}: {message}", image.display()) } else { message };
        let status = match errno {
            libc::ENOENT => STATUS_NOT_FOUND,
            // Not the program's fault: an unknown user, a damaged image, no memory.
            libc::EINVAL | libc::EUCLEAN | libc::ENOMEM => STATUS_FAILED,
            _ => STATUS_NOT_EXECUTABLE,
        };
        Self { status, message }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Text from the other side of a trust boundary, fit for a terminal: control characters but newline and tab are
/// replaced.
#[must_use]
pub fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_keeps_text_and_removes_escapes() {
        assert_eq!(printable(b"a\tb\nc"), "a\tb\nc");
        assert_eq!(printable(b"\x1b[2J\xff"), "\u{fffd}[2J\u{fffd}");
    }
}

//! Lines of the server's log, which is standard error.

use std::fmt;
use std::io::{self, Write};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Writes a line of the log: `say!("accepting connections: {error}")`.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::said::line(format_args!($($text)*)) };
}

/// Writes a line behind the time.
pub fn line(text: fmt::Arguments<'_>) {
    let now = OffsetDateTime::now_utc().truncate_to_second();
    let time = if is_journal() { None } else { now.format(&Rfc3339).ok() };
    let time = time.map_or_else(String::new, |time| time + " ");
    // In one piece, as others write there too. Who has closed it does not want to know.
    let _ = io::stderr().write_all(format!("{time}torpor-proxy: {text}\n").as_bytes());
}

/// Whether systemd's journal reads it (systemd.exec(5)), which has times by itself.
fn is_journal() -> bool {
    let Ok(found) = rustix::fs::fstat(io::stderr()) else { return false };
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == format!("{}:{}", found.st_dev, found.st_ino))
}

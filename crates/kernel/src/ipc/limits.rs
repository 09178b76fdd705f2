//! What System V IPC may take up: the settings in /proc/sys/kernel.

use crate::errno::{Errno, Result};
use alloc::format;
use alloc::string::String;
use core::cell::Cell;

/// The most objects of a kind that identifiers leave room for (IPCMNI).
const MAX_OBJECTS: u64 = 32768;
/// Settings that are an `int` on Linux go as far.
const MAX_INT: u64 = i32::MAX as u64;

/// A setting: numbers, in one line.
pub struct Setting {
    /// Its name in /proc/sys/kernel.
    pub name: &'static str,
    values: &'static [Value],
}

struct Value {
    cell: usize,
    max: u64,
}

const COUNT: usize = 10;
const SHMMAX: usize = 0;
const SHMALL: usize = 1;
const SHMMNI: usize = 2;
const SEMMSL: usize = 3;
const SEMMNS: usize = 4;
const SEMOPM: usize = 5;
const SEMMNI: usize = 6;
const MSGMAX: usize = 7;
const MSGMNB: usize = 8;
const MSGMNI: usize = 9;

crate::global! {
    static LIMITS: [Cell<u64>; COUNT] = [
        Cell::new(u64::MAX - (1 << 24)),
        Cell::new(u64::MAX - (1 << 24)),
        Cell::new(4096),
        Cell::new(32_000),
        Cell::new(1_024_000_000),
        Cell::new(500),
        Cell::new(32_000),
        Cell::new(8192),
        Cell::new(16_384),
        Cell::new(32_000),
    ];
}

/// All settings.
pub const SETTINGS: &[Setting] = &[
    Setting { name: "shmmax", values: &[Value { cell: SHMMAX, max: u64::MAX }] },
    Setting { name: "shmall", values: &[Value { cell: SHMALL, max: u64::MAX }] },
    Setting { name: "shmmni", values: &[Value { cell: SHMMNI, max: MAX_OBJECTS }] },
    Setting {
        name: "sem",
        values: &[
            Value { cell: SEMMSL, max: MAX_INT },
            Value { cell: SEMMNS, max: MAX_INT },
            Value { cell: SEMOPM, max: MAX_INT },
            Value { cell: SEMMNI, max: MAX_OBJECTS },
        ],
    },
    Setting { name: "msgmax", values: &[Value { cell: MSGMAX, max: MAX_INT }] },
    Setting { name: "msgmnb", values: &[Value { cell: MSGMNB, max: MAX_INT }] },
    Setting { name: "msgmni", values: &[Value { cell: MSGMNI, max: MAX_OBJECTS }] },
];

impl Setting {
    /// The line that is read.
    #[must_use]
    pub fn text(&self) -> String {
        let values: alloc::vec::Vec<_> = self.values.iter().map(|value| format!("{}", get(value.cell))).collect();
        format!("{}\n", values.join("\t"))
    }

    /// Takes what is written; a line may give the first of several numbers only.
    ///
    /// # Errors
    /// EINVAL for what is no number, or too large.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        let text = core::str::from_utf8(bytes).map_err(|_| Errno::EINVAL)?;
        for (word, value) in text.split_ascii_whitespace().zip(self.values) {
            let number = word.parse::<u64>().ok().filter(|number| *number <= value.max).ok_or(Errno::EINVAL)?;
            LIMITS.with(|limits| limits[value.cell].set(number));
        }
        Ok(())
    }
}

fn get(cell: usize) -> u64 {
    LIMITS.with(|limits| limits[cell].get())
}

/// Bytes of a segment.
#[must_use]
pub fn shmmax_bytes() -> u64 {
    get(SHMMAX)
}

/// Pages of all segments.
#[must_use]
pub fn shmall_pages() -> u64 {
    get(SHMALL)
}

/// Segments.
#[must_use]
pub fn shmmni() -> u64 {
    get(SHMMNI)
}

/// Semaphores of a set.
#[must_use]
pub fn semmsl() -> u64 {
    get(SEMMSL)
}

/// Semaphores of all sets.
#[must_use]
pub fn semmns() -> u64 {
    get(SEMMNS)
}

/// Operations of one semop(2).
#[must_use]
pub fn semopm() -> u64 {
    get(SEMOPM)
}

/// Sets.
#[must_use]
pub fn semmni() -> u64 {
    get(SEMMNI)
}

/// Bytes of a message.
#[must_use]
pub fn msgmax_bytes() -> u64 {
    get(MSGMAX)
}

/// Bytes of a queue, where nothing else was set for it.
#[must_use]
pub fn msgmnb_bytes() -> u64 {
    get(MSGMNB)
}

/// Queues.
#[must_use]
pub fn msgmni() -> u64 {
    get(MSGMNI)
}

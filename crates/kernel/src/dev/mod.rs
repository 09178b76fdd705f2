//! Character devices (Linux's Documentation/admin-guide/devices.txt).

mod generation;
mod memory;
pub mod tty;
mod vsock;

use crate::errno::{Errno, Result};
use crate::fs::device::{major, make, minor};
use crate::fs::file::{FileOps, OpenFlags};
use crate::fs::inode::{FileType, Metadata, Timestamp};
use crate::task::current;
use alloc::rc::Rc;

pub use generation::renew as renew_generation;

/// Opens a character device by number.
///
/// # Errors
/// ENXIO where there is no such device.
pub fn open(rdev: u64, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
    match (major(rdev), minor(rdev)) {
        (1, number) => memory::open(number),
        (5, 0) => {
            // /dev/tty: the controlling terminal (tty(4)).
            let terminal = current().process.group().session().terminal().ok_or(Errno::ENXIO)?;
            open_terminal(terminal.device(), flags | OpenFlags::NOCTTY)
        }
        (5, 2) => tty::pty::open_master(),
        (10, vsock::MINOR) => Ok(Rc::new(vsock::Vsock)),
        (10, generation::MINOR) => generation::open(flags),
        _ => open_terminal(rdev, flags),
    }
}

fn open_terminal(rdev: u64, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
    match (major(rdev), minor(rdev)) {
        (136, number) => tty::pty::open_slave(number, flags),
        _ => Err(Errno::ENXIO),
    }
}

/// What stands in /dev from the start: name, device number, mode.
pub const NODES: &[(&str, u64, u32)] = &[
    ("null", make(1, 3), 0o666),
    ("zero", make(1, 5), 0o666),
    ("full", make(1, 7), 0o666),
    ("random", make(1, 8), 0o666),
    ("urandom", make(1, 9), 0o666),
    ("tty", make(5, 0), 0o666),
    ("ptmx", make(5, 2), 0o666),
    ("vsock", make(10, vsock::MINOR), 0o600),
    ("vmgenid", make(10, generation::MINOR), 0o444),
];

/// Symbolic links in /dev.
pub const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Metadata of a device that was not opened through an inode.
pub(crate) fn device_metadata(rdev: u64, mode: u32) -> Metadata {
    Metadata {
        dev: 0,
        ino: 1,
        file_type: FileType::CharDevice,
        mode,
        nlink: 1,
        uid: 0,
        gid: 5,
        rdev,
        size: 0,
        block_bytes: 1024,
        blocks: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: None,
    }
}

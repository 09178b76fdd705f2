//! FIFOs, devices and sockets: what opening their inodes leads to is registered here by those who implement them.

use super::file::{FileOps, OpenFlags};
use super::inode::{FileType, Inode};
use crate::errno::{Errno, Result};
use alloc::rc::Rc;
use core::cell::Cell;

/// Opens a FIFO (fifo(7)): makes or finds the pipe in the inode's attachment, and waits for the other end.
pub type FifoOpener = fn(&Rc<dyn Inode>, OpenFlags) -> Result<Rc<dyn FileOps>>;
/// Opens a device of the given number; ENXIO where there is no such device.
pub type DeviceOpener = fn(u64, OpenFlags) -> Result<Rc<dyn FileOps>>;

crate::global! {
    static FIFO: Cell<Option<FifoOpener>> = Cell::new(None);
}

crate::global! {
    static CHARACTER: Cell<Option<DeviceOpener>> = Cell::new(None);
}

/// Sets what opens FIFOs.
pub fn set_fifo_opener(opener: FifoOpener) {
    FIFO.with(|fifo| fifo.set(Some(opener)));
}

/// Sets what opens character devices. There are no block devices: ENXIO.
pub fn set_device_opener(opener: DeviceOpener) {
    CHARACTER.with(|device| device.set(Some(opener)));
}

/// Opens an inode that is neither a regular file nor a directory, whichever file system it is in.
///
/// # Errors
/// ENXIO for sockets and for devices without a driver, ELOOP for symbolic links, else the opener's.
pub fn open(inode: &Rc<dyn Inode>, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
    let meta = inode.metadata();
    match meta.file_type {
        FileType::Fifo => FIFO.with(Cell::get).ok_or(Errno::ENXIO)?(inode, flags),
        FileType::CharDevice => CHARACTER.with(Cell::get).ok_or(Errno::ENXIO)?(meta.rdev, flags),
        FileType::Symlink => Err(Errno::ELOOP),
        _ => Err(Errno::ENXIO),
    }
}

//! Who may do what with an inode, and the notes of access times.

use super::clock;
use super::context::Location;
use super::inode::{FileType, Inode, Metadata, may_access};
use super::mount::MountFlags;
use crate::errno::{Errno, Result};
use crate::task::creds::Credentials;
use alloc::rc::Rc;
use linux_raw_sys::general::{CAP_FOWNER, CAP_FSETID};

/// Bits of access(2).
pub const READ: u32 = 4;
/// See [`READ`].
pub const WRITE: u32 = 2;
/// See [`READ`].
pub const EXECUTE: u32 = 1;

const DAY_S: i64 = 86400;
/// Bit of the mode: sticky.
pub const S_ISVTX: u32 = 0o1000;
/// Bit of the mode: set group ID.
pub const S_ISGID: u32 = 0o2000;
/// Bit of the mode: set user ID.
pub const S_ISUID: u32 = 0o4000;

/// EACCES unless `who` may access the object in the `wanted` ways; EROFS for writing through a read-only mount.
///
/// # Errors
/// EACCES, EROFS.
pub fn check(location: &Location, who: &Credentials, wanted: u32) -> Result<()> {
    let meta = location.inode.metadata();
    if wanted & WRITE != 0 && matches!(meta.file_type, FileType::Regular | FileType::Directory | FileType::Symlink) {
        location.mount.check_writable()?;
    }
    if may_access(&meta, who, wanted) { Ok(()) } else { Err(Errno::EACCES) }
}

/// Whether `who` owns the object or may act as its owner (CAP_FOWNER).
#[must_use]
pub fn is_owner(meta: &Metadata, who: &Credentials) -> bool {
    who.fsuid == meta.uid || who.has(CAP_FOWNER)
}

/// EPERM or EACCES unless names may be added to the directory.
///
/// # Errors
/// ENOENT if the directory is removed, EROFS, EACCES.
pub fn check_add(directory: &Location, who: &Credentials) -> Result<()> {
    if directory.entry.is_removed() {
        return Err(Errno::ENOENT);
    }
    check(directory, who, WRITE | EXECUTE)
}

/// Whether `who` may remove (or rename) `victim` from `directory`, by permission and sticky bit.
///
/// # Errors
/// EROFS, EACCES, EPERM.
pub fn check_remove(directory: &Location, victim: &Rc<dyn Inode>, who: &Credentials) -> Result<()> {
    check(directory, who, WRITE | EXECUTE)?;
    let meta = directory.inode.metadata();
    let sticky = meta.mode & S_ISVTX != 0;
    if sticky && meta.uid != who.fsuid && victim.metadata().uid != who.fsuid && !who.has(CAP_FOWNER) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// Whether `who` may give the object another name: its owner may, and others only what they could read and write and
/// gains them nothing (fs.protected_hardlinks of proc_sys_fs(5), which is always on).
///
/// # Errors
/// EPERM.
pub fn check_link(meta: &Metadata, who: &Credentials) -> Result<()> {
    let privileged = meta.mode & S_ISUID != 0 || meta.mode & (S_ISGID | 0o010) == (S_ISGID | 0o010);
    let harmless = meta.file_type == FileType::Regular && !privileged && may_access(meta, who, READ | WRITE);
    if harmless || is_owner(meta, who) { Ok(()) } else { Err(Errno::EPERM) }
}

/// Notes an access in atime as the mount says: relatime notes the first access after a change, and one a day.
pub fn note_access(location: &Location) {
    let flags = location.mount.flags.get();
    if flags.intersects(MountFlags::NOATIME | MountFlags::RDONLY) {
        return;
    }
    let meta = location.inode.metadata();
    if meta.file_type == FileType::Directory && flags.contains(MountFlags::NODIRATIME) {
        return;
    }
    let now = clock::now();
    let due = !flags.contains(MountFlags::RELATIME)
        || meta.atime <= meta.mtime
        || meta.atime <= meta.ctime
        || now.sec - meta.atime.sec >= DAY_S;
    if due && now != meta.atime {
        location.inode.accessed(now);
    }
}

/// The mode without the bits that a write or a change of owner by an unprivileged user clears (inode(7)); `None` if it
/// stays as it is.
#[must_use]
pub fn without_set_id(meta: &Metadata) -> Option<u32> {
    if meta.file_type == FileType::Directory {
        return None;
    }
    let mut mode = meta.mode & !S_ISUID;
    // Without group execution the bit meant mandatory locking, and stays.
    if meta.mode & (S_ISGID | 0o010) == (S_ISGID | 0o010) {
        mode &= !S_ISGID;
    }
    (mode != meta.mode).then_some(mode)
}

/// The mode after a change of the data by `who`: a privileged writer leaves it alone (CAP_FSETID).
#[must_use]
pub fn mode_after_write(meta: &Metadata, who: &Credentials) -> Option<u32> {
    if who.has(CAP_FSETID) { None } else { without_set_id(meta) }
}

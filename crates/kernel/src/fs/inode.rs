//! Inodes: the objects of file systems, and what every open file answers to fstat(2).

use super::file::{FileOps, OpenFlags};
use crate::errno::{Errno, Result};
use crate::mm::pages::PageSource;
use crate::task::creds::Credentials;
use alloc::boxed::Box;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::cell::RefCell;

/// The type of a file: the `S_IFMT` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names of inode(7)")]
pub enum FileType {
    /// No type bits at all: epoll, eventfd and other anonymous inodes.
    Anonymous = 0,
    Fifo = 0o010_000,
    CharDevice = 0o020_000,
    Directory = 0o040_000,
    BlockDevice = 0o060_000,
    Regular = 0o100_000,
    Symlink = 0o120_000,
    Socket = 0o140_000,
}

/// Seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds, negative before 1970.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: u32,
}

/// What stat(2) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Device number of the file system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Type.
    pub file_type: FileType,
    /// Permission bits, set-user-ID, set-group-ID and sticky bits: 12 bits.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Preferred I/O size in bytes.
    pub block_bytes: u32,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation, where known.
    pub btime: Option<Timestamp>,
}

/// Numbers of a file system for statfs(2), in units of its block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsStatistics {
    /// Magic number (linux/magic.h).
    pub magic: u64,
    /// Block size in bytes.
    pub block_bytes: u64,
    /// Size in blocks.
    pub blocks: u64,
    /// Blocks that are left.
    pub blocks_free: u64,
    /// Inodes in all, used or not.
    pub inodes: u64,
    /// Inodes that are left.
    pub inodes_free: u64,
}

/// What is attached to the inode of a FIFO or of a bound socket while it is in use: the pipe or the socket, which its
/// users keep alive. See [`super::special`].
#[derive(Default)]
pub struct Attachment(RefCell<Option<Weak<dyn Any>>>);

impl Attachment {
    /// What is attached, if it is still alive.
    #[must_use]
    pub fn get(&self) -> Option<Rc<dyn Any>> {
        self.0.borrow().as_ref().and_then(Weak::upgrade)
    }

    /// Attaches `object`; does not keep it alive.
    pub fn set(&self, object: &Rc<dyn Any>) {
        let old = self.0.borrow_mut().replace(Rc::downgrade(object));
        drop(old);
    }
}

/// A change of metadata; `None` leaves a field alone. Permission has been checked by the caller; ctime is set by the inode.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "named as in Metadata")]
pub struct SetMetadata {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<Timestamp>,
    pub mtime: Option<Timestamp>,
}

/// An entry of a directory as getdents64(2) gives it.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Inode number.
    pub ino: u64,
    /// Where to go on after this entry.
    pub next: u64,
    /// Type.
    pub file_type: FileType,
    /// Name, no slash, no NUL.
    pub name: Box<[u8]>,
}

/// What a new inode shall be.
#[derive(Clone, Debug)]
pub struct NewInode {
    /// Type.
    pub file_type: FileType,
    /// Permission bits, umask already applied.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// For devices.
    pub rdev: u64,
}

/// An object of a file system. Names handed in are single components without `/`, never `.` or `..`, at most 255 bytes.
/// Permission checks are the caller's (see [`super::inode::may_access`]); the defaults are what an inode that is no
/// directory (or has no such thing) answers.
pub trait Inode: Any {
    /// For downcasts within a file system (link, rename).
    fn as_any(&self) -> &dyn Any;

    /// What stat(2) tells.
    fn metadata(&self) -> Metadata;

    /// Changes metadata; a size change truncates or extends.
    ///
    /// # Errors
    /// EROFS, EPERM, EFBIG, ENOSPC and others as chmod(2), chown(2), truncate(2) and utimensat(2) say.
    fn set_metadata(&self, change: &SetMetadata) -> Result<()> {
        let _ = change;
        Err(Errno::EPERM)
    }

    /// Opens the inode: the operations of a new open file description.
    ///
    /// # Errors
    /// As open(2); ENXIO for a socket or a device without driver.
    fn open(self: Rc<Self>, flags: OpenFlags) -> Result<Rc<dyn FileOps>>;

    /// Its data for mmap(2), where it can be mapped.
    fn pages(self: Rc<Self>) -> Option<Rc<dyn PageSource>> {
        None
    }

    /// Whether the names in this directory change through this trait only, so that what a lookup found stays true.
    fn keeps_names(&self) -> bool {
        false
    }

    /// Where the pipe of a FIFO or the socket bound to a name is kept; `None` for other types.
    fn attachment(&self) -> Option<&Attachment> {
        None
    }

    /// Numbers of the file system that the inode belongs to.
    ///
    /// # Errors
    /// ENOSYS where it has none.
    fn statistics(&self) -> Result<FsStatistics> {
        Err(Errno::ENOSYS)
    }

    /// Notes an access at `now` in atime; the caller has decided that it counts (relatime, noatime).
    fn accessed(&self, now: Timestamp) {
        let _ = now;
    }

    /// Finds a name in this directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR.
    fn lookup(&self, name: &[u8]) -> Result<Rc<dyn Inode>> {
        let _ = name;
        Err(Errno::ENOTDIR)
    }

    /// Up to `max` entries from `cookie` on (0 is the start); `.` and `..` included.
    ///
    /// # Errors
    /// ENOTDIR.
    fn read_dir(&self, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        let _ = (cookie, max);
        Err(Errno::ENOTDIR)
    }

    /// Creates a file, directory, device, FIFO or socket in this directory.
    ///
    /// # Errors
    /// EEXIST, ENOSPC, EROFS, ENOTDIR.
    fn create(&self, name: &[u8], new: &NewInode) -> Result<Rc<dyn Inode>> {
        let _ = (name, new);
        Err(Errno::ENOTDIR)
    }

    /// Creates a symbolic link.
    ///
    /// # Errors
    /// As [`Inode::create`].
    fn symlink(&self, name: &[u8], target: &[u8], new: &NewInode) -> Result<Rc<dyn Inode>> {
        let _ = (name, target, new);
        Err(Errno::ENOTDIR)
    }

    /// Makes an inode without a name (O_TMPFILE) in this directory's file system; `linkable`: linkat(2) may give it one.
    ///
    /// # Errors
    /// EOPNOTSUPP where the file system can't.
    fn tmpfile(&self, new: &NewInode, linkable: bool) -> Result<Rc<dyn Inode>> {
        let _ = (new, linkable);
        Err(Errno::EOPNOTSUPP)
    }

    /// Gives `target` (of the same file system) another name here.
    ///
    /// # Errors
    /// EXDEV, EEXIST, EPERM, EMLINK.
    fn link(&self, name: &[u8], target: &Rc<dyn Inode>) -> Result<()> {
        let _ = (name, target);
        Err(Errno::ENOTDIR)
    }

    /// Removes a name; a directory only if `directory` and empty.
    ///
    /// # Errors
    /// ENOENT, EISDIR, ENOTDIR, ENOTEMPTY.
    fn unlink(&self, name: &[u8], directory: bool) -> Result<()> {
        let _ = (name, directory);
        Err(Errno::ENOTDIR)
    }

    /// Moves `name` to `new_name` in `new_parent` (same file system), with the RENAME_ flags of rename(2).
    ///
    /// # Errors
    /// As rename(2).
    fn rename(&self, name: &[u8], new_parent: &Rc<dyn Inode>, new_name: &[u8], flags: u32) -> Result<()> {
        let _ = (name, new_parent, new_name, flags);
        Err(Errno::ENOTDIR)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// EINVAL for anything else.
    fn read_link(&self) -> Result<Vec<u8>> {
        Err(Errno::EINVAL)
    }

    /// Where following this link leads directly, for the links of /proc/PID/{fd,exe,cwd,root} that are more than their text.
    fn magic_link(&self) -> Option<super::context::Location> {
        None
    }

    /// Value of an extended attribute (xattr(7)).
    ///
    /// # Errors
    /// ENODATA, EOPNOTSUPP.
    fn xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        let _ = name;
        Err(Errno::EOPNOTSUPP)
    }

    /// Sets (`Some`) or removes (`None`) an extended attribute, with the XATTR_ flags of setxattr(2).
    ///
    /// # Errors
    /// EEXIST, ENODATA, ENOSPC, EOPNOTSUPP.
    fn set_xattr(&self, name: &[u8], value: Option<&[u8]>, flags: u32) -> Result<()> {
        let _ = (name, value, flags);
        Err(Errno::EOPNOTSUPP)
    }

    /// Names of the extended attributes.
    ///
    /// # Errors
    /// EOPNOTSUPP.
    fn list_xattrs(&self) -> Result<Vec<Box<[u8]>>> {
        Ok(Vec::new())
    }
}

/// Whether `who` may access an object in the ways of `wanted` (bits of R_OK 4, W_OK 2, X_OK 1), by owner, group and other
/// bits and the capabilities CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (path_resolution(7)).
#[must_use]
pub fn may_access(meta: &Metadata, who: &Credentials, wanted: u32) -> bool {
    let granted = if who.fsuid == meta.uid {
        meta.mode >> 6
    } else if who.in_group(meta.gid) {
        meta.mode >> 3
    } else {
        meta.mode
    } & 7;
    if wanted & !granted == 0 {
        return true;
    }
    let directory = meta.file_type == FileType::Directory;
    if who.has(crate::task::creds::CAP_DAC_OVERRIDE) {
        // Execution still needs one execute bit, except for searching a directory.
        return wanted & 1 == 0 || directory || meta.mode & 0o111 != 0;
    }
    who.has(crate::task::creds::CAP_DAC_READ_SEARCH) && (wanted == 4 || (directory && wanted & 2 == 0))
}

//! Who calls, and what the paths in a system call's arguments mean to it.

use super::context::{FsContext, Location};
use super::file::OpenFile;
use super::inode::{FileType, Inode, Metadata, NewInode};
use super::path::{Resolve, Walk};
use crate::errno::{Errno, Result};
use crate::task::creds::Credentials;
use alloc::rc::Rc;
use linux_raw_sys::general::{AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW};

/// The calling thread's share of path resolution.
pub struct Caller {
    /// Who it is.
    pub creds: Rc<Credentials>,
    /// Root, working directory, umask.
    pub fs: Rc<FsContext>,
}

/// What a path or a descriptor in a system call means.
pub enum Target {
    /// Something in the name space.
    Location(Location),
    /// An open object that is in no file system (a pipe, a socket).
    Anonymous(Rc<OpenFile>),
}

impl Target {
    /// What stat(2) tells.
    #[must_use]
    pub fn metadata(&self) -> Metadata {
        match self {
            Target::Location(location) => location.inode.metadata(),
            Target::Anonymous(file) => file.metadata(),
        }
    }

    /// The place in the name space.
    ///
    /// # Errors
    /// `error` for an anonymous object.
    pub fn location(self, error: Errno) -> Result<Location> {
        match self {
            Target::Location(location) => Ok(location),
            Target::Anonymous(_) => Err(error),
        }
    }

    /// What an open file is about.
    #[must_use]
    pub fn of(file: &Rc<OpenFile>) -> Self {
        match &file.location {
            Some(location) => Target::Location(location.clone()),
            None => Target::Anonymous(Rc::clone(file)),
        }
    }
}

impl Caller {
    /// The current thread.
    #[must_use]
    pub fn current() -> Self {
        let thread = crate::task::current();
        Self { creds: thread.creds(), fs: thread.fs() }
    }

    /// Where a path relative to `dirfd` (or AT_FDCWD) starts.
    ///
    /// # Errors
    /// EBADF, ENOTDIR.
    pub fn start(&self, dirfd: i32, path: &[u8]) -> Result<Location> {
        if path.first() == Some(&b'/') {
            return Ok(self.fs.root.borrow().clone());
        }
        self.directory(dirfd)
    }

    /// The directory that `dirfd` (or AT_FDCWD) refers to.
    ///
    /// # Errors
    /// EBADF, ENOTDIR.
    pub fn directory(&self, dirfd: i32) -> Result<Location> {
        if dirfd == AT_FDCWD {
            return Ok(self.fs.cwd.borrow().clone());
        }
        let file = crate::task::current().files().get(dirfd)?;
        let location = file.location.clone().ok_or(Errno::ENOTDIR)?;
        if is_directory(&location.inode) { Ok(location) } else { Err(Errno::ENOTDIR) }
    }

    /// A resolution of `path` from `start`.
    ///
    /// # Errors
    /// As [`Walk::new`].
    pub fn walk(&self, start: Location, path: &[u8], resolve: Resolve) -> Result<Walk<'_>> {
        Walk::new(&self.creds, self.fs.root.borrow().clone(), start, path, resolve)
    }

    /// A resolution of `path` relative to `dirfd`.
    ///
    /// # Errors
    /// As [`Caller::start`] and [`Caller::walk`].
    pub fn walk_at(&self, dirfd: i32, path: &[u8]) -> Result<Walk<'_>> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        self.walk(self.start(dirfd, path)?, path, Resolve::empty())
    }

    /// What is at `path` relative to `dirfd`; a symbolic link at the end is followed if `follow`.
    ///
    /// # Errors
    /// As path_resolution(7) says.
    pub fn find(&self, dirfd: i32, path: &[u8], follow: bool) -> Result<Location> {
        self.walk_at(dirfd, path)?.to_end(follow)
    }

    /// As [`Caller::find`] with AT_SYMLINK_NOFOLLOW and AT_EMPTY_PATH of `at_flags`: an empty path may be the object
    /// that `dirfd` refers to.
    ///
    /// # Errors
    /// As [`Caller::find`].
    pub fn target(&self, dirfd: i32, path: &[u8], at_flags: u32) -> Result<Target> {
        if path.is_empty() && at_flags & AT_EMPTY_PATH != 0 {
            if dirfd == AT_FDCWD {
                return Ok(Target::Location(self.fs.cwd.borrow().clone()));
            }
            return Ok(Target::of(&crate::task::current().files().get(dirfd)?));
        }
        self.find(dirfd, path, at_flags & AT_SYMLINK_NOFOLLOW == 0).map(Target::Location)
    }

    /// Owner and mode of something new: `mode` without the umask's bits.
    #[must_use]
    pub fn new_inode(&self, file_type: FileType, mode: u32, rdev: u64) -> NewInode {
        let mode = mode & 0o7777 & !self.fs.umask.get();
        NewInode { file_type, mode, uid: self.creds.fsuid, gid: self.creds.fsgid, rdev }
    }
}

/// Whether the inode is a directory.
#[must_use]
pub fn is_directory(inode: &Rc<dyn Inode>) -> bool {
    inode.metadata().file_type == FileType::Directory
}

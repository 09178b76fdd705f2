//! Open file descriptions (open(2)): what descriptors refer to.

use super::async_io::Owner;
use super::context::Location;
use super::inode::{Inode, Metadata, SetMetadata};
use super::{lock, notify};
use crate::errno::{Errno, Result};
use crate::mm::pages::PageSource;
use crate::mm::user::{Dest, Source};
use crate::wait::{Events, Registration, WaitQueue};
use alloc::rc::Rc;
use bitflags::bitflags;
use core::any::Any;
use core::cell::{Cell, RefCell};

bitflags! {
    /// Flags of open(2), with Linux's x86-64 values; the low two bits are the access mode.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// `O_WRONLY` of open(2).
        const WRONLY = 0o1;
        /// `O_RDWR` of open(2).
        const RDWR = 0o2;
        /// `O_CREAT` of open(2).
        const CREAT = 0o100;
        /// `O_EXCL` of open(2).
        const EXCL = 0o200;
        /// `O_NOCTTY` of open(2).
        const NOCTTY = 0o400;
        /// `O_TRUNC` of open(2).
        const TRUNC = 0o1000;
        /// `O_APPEND` of open(2).
        const APPEND = 0o2000;
        /// `O_NONBLOCK` of open(2).
        const NONBLOCK = 0o4000;
        /// `O_DSYNC` of open(2).
        const DSYNC = 0o10000;
        /// `O_ASYNC` of open(2).
        const ASYNC = 0o20000;
        /// `O_DIRECT` of open(2).
        const DIRECT = 0o40000;
        /// `O_LARGEFILE` of open(2).
        const LARGEFILE = 0o100_000;
        /// `O_DIRECTORY` of open(2).
        const DIRECTORY = 0o200_000;
        /// `O_NOFOLLOW` of open(2).
        const NOFOLLOW = 0o400_000;
        /// `O_NOATIME` of open(2).
        const NOATIME = 0o1_000_000;
        /// `O_CLOEXEC` of open(2).
        const CLOEXEC = 0o2_000_000;
        /// `O_SYNC_BIT` of open(2).
        const SYNC_BIT = 0o4_000_000;
        /// `O_PATH` of open(2).
        const PATH = 0o10_000_000;
        /// `O_TMPFILE_BIT` of open(2).
        const TMPFILE_BIT = 0o20_000_000;
    }
}

impl OpenFlags {
    /// Whether data may be read.
    #[must_use]
    pub const fn readable(self) -> bool {
        self.bits() & 3 != 1 && !self.contains(OpenFlags::PATH)
    }

    /// Whether data may be written.
    #[must_use]
    pub const fn writable(self) -> bool {
        matches!(self.bits() & 3, 1 | 2) && !self.contains(OpenFlags::PATH)
    }
}

/// What can be done with an open file. Blocking operations honour [`OpenFlags::NONBLOCK`] of `file` with EAGAIN and are
/// interrupted by signals with ERESTARTSYS (see [`crate::task::sched::wait_until`]).
pub trait FileOps: Any {
    /// For downcasts (a socket call on a descriptor: ENOTSOCK where the downcast fails).
    fn as_any(&self) -> &dyn Any;

    /// Reads at `offset` (ignored by what has no positions). 0 is end of file.
    ///
    /// # Errors
    /// EINVAL where the object can't be read.
    fn read(&self, file: &OpenFile, dst: &mut Dest<'_>, offset: u64) -> Result<usize> {
        let _ = (file, dst, offset);
        Err(Errno::EINVAL)
    }

    /// Whether there is such a thing as reading the object; EINVAL for every attempt otherwise.
    fn can_read(&self) -> bool {
        true
    }

    /// Whether there is such a thing as writing the object; EINVAL for every attempt otherwise.
    fn can_write(&self) -> bool {
        true
    }

    /// Writes at `offset`; with O_APPEND the object puts the bytes at its end and the caller passes any offset.
    /// Returns the bytes written and the position behind them.
    ///
    /// # Errors
    /// EINVAL where the object can't be written.
    fn write(&self, file: &OpenFile, src: &mut Source<'_>, offset: u64) -> Result<(usize, u64)> {
        let _ = (file, src, offset);
        Err(Errno::EINVAL)
    }

    /// Whether preadv2(2) takes RWF_NOWAIT of the file; EOPNOTSUPP otherwise.
    fn knows_nowait(&self, _file: &OpenFile) -> bool {
        false
    }

    /// Whether the file has positions (lseek(2), pread(2)); ESPIPE otherwise.
    fn seekable(&self) -> bool {
        false
    }

    /// For SEEK_END, SEEK_DATA and SEEK_HOLE: the new position. SEEK_SET and SEEK_CUR are the caller's.
    ///
    /// # Errors
    /// ENXIO, EINVAL.
    fn seek(&self, file: &OpenFile, offset: i64, whence: u32) -> Result<u64> {
        let _ = (file, offset, whence);
        Err(Errno::ESPIPE)
    }

    /// What is ready now. The default is a regular file: always readable and writable.
    fn poll(&self, file: &OpenFile) -> Events {
        let _ = file;
        Events::READABLE | Events::WRITABLE
    }

    /// The queue that is woken when [`FileOps::poll`] may answer otherwise; `None`: it never does (EPERM for epoll).
    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        None
    }

    /// ioctl(2). FIONBIO, FIOCLEX, FIONCLEX and FIOASYNC are the caller's.
    ///
    /// # Errors
    /// ENOTTY for a request that the object does not know.
    fn ioctl(&self, file: &OpenFile, request: u32, argument: u64) -> Result<u64> {
        let _ = (file, request, argument);
        Err(Errno::ENOTTY)
    }

    /// The commands of fcntl(2) that belong to the object: F_GETPIPE_SZ, F_SETPIPE_SZ, F_ADD_SEALS, F_GET_SEALS.
    ///
    /// # Errors
    /// EINVAL for a command that the object does not know (EBADF for the pipe commands is the caller's).
    fn fcntl(&self, file: &OpenFile, command: u32, argument: u64) -> Result<u64> {
        let _ = (file, command, argument);
        Err(Errno::EINVAL)
    }

    /// What mmap(2) maps; ENODEV where it can't be.
    fn pages(&self) -> Option<Rc<dyn PageSource>> {
        None
    }

    /// Makes the data durable as far as this file system can: fsync(2).
    ///
    /// # Errors
    /// EINVAL for what can't be synchronised (pipes, sockets).
    fn sync(&self) -> Result<()> {
        Err(Errno::EINVAL)
    }

    /// fallocate(2).
    ///
    /// # Errors
    /// ENODEV, ESPIPE, EOPNOTSUPP, ENOSPC.
    fn allocate(&self, file: &OpenFile, mode: u32, offset: u64, len: u64) -> Result<()> {
        let _ = (file, mode, offset, len);
        Err(Errno::ENODEV)
    }

    /// What fstat(2) tells, for objects that are no inodes of a file system (then `OpenFile::location` is `None`).
    fn metadata(&self) -> Metadata;

    /// fchmod(2), fchown(2), futimens(3), for objects without a location.
    ///
    /// # Errors
    /// EOPNOTSUPP where all objects of a kind share one inode (epoll, eventfd, ...).
    fn set_metadata(&self, change: &SetMetadata) -> Result<()> {
        let _ = change;
        Err(Errno::EOPNOTSUPP)
    }

    /// Text behind the colon of `/proc/PID/fd/N` and lines for `/proc/PID/fdinfo/N`, for objects without a location:
    /// such as `anon_inode:[eventpoll]`, `pipe:[123]`.
    fn describe(&self) -> alloc::string::String;

    /// Extra lines of /proc/PID/fdinfo/N.
    fn fdinfo(&self) -> alloc::string::String {
        alloc::string::String::new()
    }

    /// Opens the same object once more, through its link in /proc/PID/fd; for objects without a location.
    ///
    /// # Errors
    /// ENXIO where that can't be done (sockets).
    fn reopen(&self, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
        let _ = flags;
        Err(Errno::ENXIO)
    }

    /// Called once per close(2) of a descriptor (pending data); the last reference ends with `Drop`.
    fn closed(&self, file: &OpenFile) {
        let _ = file;
    }
}

/// An open file description.
pub struct OpenFile {
    /// What it does.
    pub ops: Rc<dyn FileOps>,
    /// Access mode and status flags; CLOEXEC is per descriptor and not here.
    pub flags: Cell<OpenFlags>,
    /// File position in bytes.
    pub position: Cell<u64>,
    /// Where it was opened; `None` for pipes, sockets and other anonymous objects.
    pub location: Option<Location>,
    /// Who hears of readiness by signals (F_SETOWN).
    pub owner: Cell<Option<Owner>>,
    /// Signal for I/O (F_SETSIG), 0 for SIGIO.
    pub owner_signal: Cell<u32>,
    /// What tells the owner, while [`OpenFlags::ASYNC`] asks for it.
    pub notice: RefCell<Option<Registration>>,
    /// Bookkeeping that other modules attach to a description (epoll): dropped with it.
    pub attachments: RefCell<alloc::vec::Vec<Rc<dyn Any>>>,
}

impl OpenFile {
    /// A description of an anonymous object.
    #[must_use]
    pub fn anonymous(ops: Rc<dyn FileOps>, flags: OpenFlags) -> Rc<Self> {
        Self::new(ops, flags, None)
    }

    /// A description of something that was opened by name.
    #[must_use]
    pub fn new(ops: Rc<dyn FileOps>, flags: OpenFlags, location: Option<Location>) -> Rc<Self> {
        let kept =
            flags & !(OpenFlags::CLOEXEC | OpenFlags::CREAT | OpenFlags::EXCL | OpenFlags::NOCTTY | OpenFlags::TRUNC);
        Rc::new(Self {
            ops,
            flags: Cell::new(kept),
            position: Cell::new(0),
            location,
            owner: Cell::new(None),
            owner_signal: Cell::new(0),
            notice: RefCell::default(),
            attachments: RefCell::default(),
        })
    }

    /// Whether operations must not block.
    #[must_use]
    pub fn nonblocking(&self) -> bool {
        self.flags.get().contains(OpenFlags::NONBLOCK)
    }

    /// The flags that F_GETFL tells: as on every 64-bit Linux, open(2) always sets O_LARGEFILE.
    #[must_use]
    pub fn shown_flags(&self) -> OpenFlags {
        let flags = self.flags.get();
        let large = self.location.is_some() && !flags.contains(OpenFlags::PATH);
        flags | if large { OpenFlags::LARGEFILE } else { OpenFlags::empty() }
    }

    /// Runs `call` with other status flags. A call that would block with them lets others see them meanwhile.
    pub fn with_flags<T>(&self, set: OpenFlags, clear: OpenFlags, call: impl FnOnce() -> T) -> T {
        let flags = self.flags.get();
        self.flags.set((flags | set) - clear);
        let result = call();
        self.flags.set(flags);
        result
    }

    /// Whether a transfer stays within the positions that there are.
    ///
    /// # Errors
    /// EINVAL.
    pub fn check_span(&self, offset: u64, len: usize) -> Result<()> {
        let end = offset.checked_add(len as u64);
        if end.is_some_and(|end| end <= i64::MAX as u64) || !self.ops.seekable() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Reads at the file position and moves it.
    ///
    /// # Errors
    /// EBADF if not open for reading, else the object's.
    pub fn read(&self, dst: &mut Dest<'_>) -> Result<usize> {
        if !self.flags.get().readable() {
            return Err(Errno::EBADF);
        }
        self.check_span(self.position.get(), dst.remaining())?;
        let n = self.ops.read(self, dst, self.position.get())?;
        if self.ops.seekable() {
            self.position.set(self.position.get() + n as u64);
        }
        Ok(n)
    }

    /// Writes at the file position (or at the end, with O_APPEND) and moves it.
    ///
    /// # Errors
    /// EBADF if not open for writing, else the object's.
    pub fn write(&self, src: &mut Source<'_>) -> Result<usize> {
        if !self.flags.get().writable() {
            return Err(Errno::EBADF);
        }
        self.check_span(self.position.get(), src.remaining())?;
        let (n, end) = self.ops.write(self, src, self.position.get())?;
        if self.ops.seekable() {
            self.position.set(end);
        }
        Ok(n)
    }

    /// What is ready now.
    #[must_use]
    pub fn poll(&self) -> Events {
        self.ops.poll(self)
    }

    /// What fstat(2) tells.
    #[must_use]
    pub fn metadata(&self) -> Metadata {
        match &self.location {
            Some(location) => location.inode.metadata(),
            None => self.ops.metadata(),
        }
    }

    /// The inode, where it was opened by name.
    #[must_use]
    pub fn inode(&self) -> Option<Rc<dyn Inode>> {
        self.location.as_ref().map(|l| Rc::clone(&l.inode))
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        lock::description_ended(self);
        if let Some(location) = self.location.as_ref().filter(|_| !self.flags.get().contains(OpenFlags::PATH)) {
            let written = self.flags.get().writable();
            notify::event(
                location,
                if written { notify::mask::IN_CLOSE_WRITE } else { notify::mask::IN_CLOSE_NOWRITE },
            );
        }
    }
}

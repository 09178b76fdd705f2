//! Opening, reading, writing and descriptors.

use super::event::install;
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::event::pipe::PipeEnd;
use crate::fs::caller::Caller;
use crate::fs::file::{OpenFile, OpenFlags};
use crate::fs::inode::{FileType, SetMetadata};
use crate::fs::open::{self, How};
use crate::fs::path::MAX_PATH_BYTES;
use crate::fs::{access, notify};
use crate::mm::addr::{PAGE_BYTES, USER_END, UserAddr};
use crate::mm::user::{self, Dest, Segment, Source};
use crate::task::current;
use crate::task::limits::Resource;
use alloc::rc::Rc;
use alloc::vec::Vec;
use linux_raw_sys::general as linux;
use linux_raw_sys::ioctl as io;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_read as u16, "read", sys_read, &[Arg::Fd, Arg::BufOut, Arg::Size]),
    Syscall::full(linux::__NR_write as u16, "write", sys_write, &[Arg::Fd, Arg::BufIn, Arg::Size]),
    Syscall::full(linux::__NR_pread64 as u16, "pread64", sys_pread64, &[Arg::Fd, Arg::BufOut, Arg::Size, Arg::Int]),
    Syscall::full(linux::__NR_pwrite64 as u16, "pwrite64", sys_pwrite64, &[Arg::Fd, Arg::BufIn, Arg::Size, Arg::Int]),
    Syscall::full(linux::__NR_readv as u16, "readv", sys_readv, &[Arg::Fd, Arg::IovecOut, Arg::Size]),
    Syscall::full(linux::__NR_writev as u16, "writev", sys_writev, &[Arg::Fd, Arg::IovecIn, Arg::Size]),
    Syscall::full(linux::__NR_preadv as u16, "preadv", sys_preadv, &[Arg::Fd, Arg::IovecOut, Arg::Size, Arg::Int]),
    Syscall::full(linux::__NR_pwritev as u16, "pwritev", sys_pwritev, &[Arg::Fd, Arg::IovecIn, Arg::Size, Arg::Int]),
    Syscall::partial(
        linux::__NR_preadv2 as u16,
        "preadv2",
        RW_FLAGS_GAP,
        sys_preadv2,
        &[Arg::Fd, Arg::IovecOut, Arg::Size, Arg::Int, Arg::Size, Arg::Hex],
    ),
    Syscall::partial(
        linux::__NR_pwritev2 as u16,
        "pwritev2",
        RW_FLAGS_GAP,
        sys_pwritev2,
        &[Arg::Fd, Arg::IovecIn, Arg::Size, Arg::Int, Arg::Size, Arg::Hex],
    ),
    Syscall::full(linux::__NR_open as u16, "open", sys_open, &[Arg::Path, Arg::OpenFlags, Arg::Mode]),
    Syscall::full(linux::__NR_openat as u16, "openat", sys_openat, &[Arg::DirFd, Arg::Path, Arg::OpenFlags, Arg::Mode]),
    Syscall::full(linux::__NR_openat2 as u16, "openat2", sys_openat2, &[Arg::DirFd, Arg::Path, Arg::Ptr, Arg::Size]),
    Syscall::full(linux::__NR_creat as u16, "creat", sys_creat, &[Arg::Path, Arg::Mode]),
    Syscall::full(linux::__NR_close as u16, "close", sys_close, &[Arg::Fd]),
    Syscall::partial(
        linux::__NR_close_range as u16,
        "close_range",
        "CLOSE_RANGE_UNSHARE gives EINVAL",
        sys_close_range,
        &[Arg::Size, Arg::Size, Arg::Hex],
    ),
    Syscall::full(linux::__NR_dup as u16, "dup", sys_dup, &[Arg::Fd]),
    Syscall::full(linux::__NR_dup2 as u16, "dup2", sys_dup2, &[Arg::Fd, Arg::Fd]),
    Syscall::full(linux::__NR_dup3 as u16, "dup3", sys_dup3, &[Arg::Fd, Arg::Fd, Arg::OpenFlags]),
    Syscall::partial(
        linux::__NR_fcntl as u16,
        "fcntl",
        "no record locks, leases and directory notification yet (EINVAL)",
        sys_fcntl,
        &[Arg::Fd, Arg::FcntlCmd, Arg::FcntlArg],
    ),
    Syscall::full(linux::__NR_ioctl as u16, "ioctl", sys_ioctl, &[Arg::Fd, Arg::IoctlCmd, Arg::IoctlArg]),
    Syscall::full(linux::__NR_lseek as u16, "lseek", sys_lseek, &[Arg::Fd, Arg::Int, Arg::Whence]),
    Syscall::full(linux::__NR_truncate as u16, "truncate", sys_truncate, &[Arg::Path, Arg::Size]),
    Syscall::full(linux::__NR_ftruncate as u16, "ftruncate", sys_ftruncate, &[Arg::Fd, Arg::Size]),
    Syscall::full(linux::__NR_fallocate as u16, "fallocate", sys_fallocate, &[Arg::Fd, Arg::Hex, Arg::Size, Arg::Size]),
    Syscall::full(linux::__NR_fsync as u16, "fsync", sys_fsync, &[Arg::Fd]),
    Syscall::full(linux::__NR_fdatasync as u16, "fdatasync", sys_fsync, &[Arg::Fd]),
    Syscall::full(linux::__NR_sync as u16, "sync", |_| Ok(0), &[]),
    Syscall::full(linux::__NR_syncfs as u16, "syncfs", sys_syncfs, &[Arg::Fd]),
    Syscall::full(linux::__NR_fadvise64 as u16, "fadvise64", sys_fadvise64, &[Arg::Fd, Arg::Size, Arg::Size, Arg::Int]),
];

/// MAX_RW_COUNT.
const MAX_TRANSFER_BYTES: usize = 0x7fff_f000;
/// UIO_MAXIOV.
const MAX_PIECES: usize = 1024;

/// The description behind a descriptor that is not O_PATH.
fn file(fd: i32) -> Result<Rc<OpenFile>> {
    let file = current().files().get(fd)?;
    if file.flags.get().contains(OpenFlags::PATH) { Err(Errno::EBADF) } else { Ok(file) }
}

/// A path argument.
pub(super) fn path(addr: UserAddr) -> Result<Vec<u8>> {
    user::read_cstr(addr, MAX_PATH_BYTES, Errno::ENAMETOOLONG)
}

/// The buffer that arguments 1 and 2 tell of. One that does not lie in user space is refused whatever there is to move.
fn one(args: Args) -> Result<[Segment; 1]> {
    if args.u64(1).checked_add(args.u64(2)).is_none_or(|end| end > USER_END) {
        return Err(Errno::EFAULT);
    }
    Ok([Segment { addr: args.addr(1), len: args.usize(2).min(MAX_TRANSFER_BYTES) }])
}

/// EBADF if not open for reading, EINVAL for what can't be read at all.
fn check_readable(file: &OpenFile) -> Result<()> {
    if !file.flags.get().readable() {
        return Err(Errno::EBADF);
    }
    if file.ops.can_read() { Ok(()) } else { Err(Errno::EINVAL) }
}

/// EBADF if not open for writing, EINVAL for what can't be written at all.
fn check_writable(file: &OpenFile) -> Result<()> {
    if !file.flags.get().writable() {
        return Err(Errno::EBADF);
    }
    if file.ops.can_write() { Ok(()) } else { Err(Errno::EINVAL) }
}

/// The description behind a descriptor that can be read.
fn readable(fd: i32) -> Result<Rc<OpenFile>> {
    let file = file(fd)?;
    check_readable(&file)?;
    Ok(file)
}

/// The description behind a descriptor that can be written.
fn writable(fd: i32) -> Result<Rc<OpenFile>> {
    let file = file(fd)?;
    check_writable(&file)?;
    Ok(file)
}

/// The array of `struct iovec` that arguments 1 and 2 tell of; all together at most [`MAX_TRANSFER_BYTES`].
pub(super) fn segments(args: Args) -> Result<Vec<Segment>> {
    let count = args.usize(2);
    if count > MAX_PIECES {
        return Err(Errno::EINVAL);
    }
    let mut left = MAX_TRANSFER_BYTES;
    let mut segments = Vec::with_capacity(count);
    for n in 0..count as u64 {
        let [base, len] = user::read::<[u64; 2]>(args.addr(1).offset(16 * n))?;
        let len = isize::try_from(len).map_err(|_| Errno::EINVAL)? as usize;
        segments.push(Segment { addr: UserAddr(base), len: len.min(left) });
        left -= len.min(left);
    }
    Ok(segments)
}

fn read(file: &Rc<OpenFile>, segments: &[Segment]) -> Result<u64> {
    let n = file.read(&mut Dest::user(segments))?;
    note_read(file, n);
    Ok(n as u64)
}

/// What follows from a read of `n` bytes: access time, inotify.
pub(super) fn note_read(file: &OpenFile, n: usize) {
    if let Some(location) = file.location.as_ref().filter(|_| n > 0) {
        if !file.flags.get().contains(OpenFlags::NOATIME) {
            access::note_access(location);
        }
        notify::event(location, notify::mask::IN_ACCESS);
    }
}

fn write(file: &Rc<OpenFile>, segments: &[Segment]) -> Result<u64> {
    let n = file.write(&mut Source::user(segments))?;
    note_write(file, n);
    Ok(n as u64)
}

/// What follows from a write of `n` bytes: inotify.
pub(super) fn note_write(file: &OpenFile, n: usize) {
    if let Some(location) = file.location.as_ref().filter(|_| n > 0) {
        notify::event(location, notify::mask::IN_MODIFY);
    }
}

/// The position argument of the calls that have one: checked before anything else.
fn position(args: Args) -> Result<u64> {
    u64::try_from(args.i64(3)).map_err(|_| Errno::EINVAL)
}

/// Reads at an offset. A call with several buffers has the `flags` of preadv2(2).
fn read_at<S: AsRef<[Segment]>>(
    file: &OpenFile,
    segments: impl FnOnce() -> Result<S>,
    offset: u64,
    flags: Option<u32>,
) -> Result<u64> {
    if !file.ops.seekable() {
        return Err(Errno::ESPIPE);
    }
    check_readable(file)?;
    let segments = segments()?;
    if flags.is_some() && nothing(segments.as_ref()) {
        return Ok(0);
    }
    let flags = flags.unwrap_or(0);
    let n = with_rw_flags(file, flags, || file.ops.read(file, &mut Dest::user(segments.as_ref()), offset))?;
    note_read(file, n);
    Ok(n as u64)
}

/// Writes at an offset. A call with several buffers has the `flags` of pwritev2(2).
fn write_at<S: AsRef<[Segment]>>(
    file: &OpenFile,
    segments: impl FnOnce() -> Result<S>,
    offset: u64,
    flags: Option<u32>,
) -> Result<u64> {
    if !file.ops.seekable() {
        return Err(Errno::ESPIPE);
    }
    check_writable(file)?;
    let segments = segments()?;
    if flags.is_some() && nothing(segments.as_ref()) {
        return Ok(0);
    }
    let flags = flags.unwrap_or(0);
    let (n, _) = with_rw_flags(file, flags, || file.ops.write(file, &mut Source::user(segments.as_ref()), offset))?;
    note_write(file, n);
    Ok(n as u64)
}

fn sys_read(args: Args) -> Result<u64> {
    read(&readable(args.i32(0))?, &one(args)?)
}

fn sys_write(args: Args) -> Result<u64> {
    write(&writable(args.i32(0))?, &one(args)?)
}

fn sys_pread64(args: Args) -> Result<u64> {
    let offset = position(args)?;
    read_at(&*file(args.i32(0))?, || one(args), offset, None)
}

fn sys_pwrite64(args: Args) -> Result<u64> {
    let offset = position(args)?;
    write_at(&*file(args.i32(0))?, || one(args), offset, None)
}

/// Whether a call with several buffers has nothing to do, whatever the object.
fn nothing(segments: &[Segment]) -> bool {
    segments.iter().all(|segment| segment.len == 0)
}

fn read_vectored(file: &Rc<OpenFile>, segments: &[Segment]) -> Result<u64> {
    if nothing(segments) { Ok(0) } else { read(file, segments) }
}

fn write_vectored(file: &Rc<OpenFile>, segments: &[Segment]) -> Result<u64> {
    if nothing(segments) { Ok(0) } else { write(file, segments) }
}

fn sys_readv(args: Args) -> Result<u64> {
    read_vectored(&readable(args.i32(0))?, &segments(args)?)
}

fn sys_writev(args: Args) -> Result<u64> {
    write_vectored(&writable(args.i32(0))?, &segments(args)?)
}

fn sys_preadv(args: Args) -> Result<u64> {
    let offset = position(args)?;
    read_at(&*file(args.i32(0))?, || segments(args), offset, Some(0))
}

fn sys_pwritev(args: Args) -> Result<u64> {
    let offset = position(args)?;
    write_at(&*file(args.i32(0))?, || segments(args), offset, Some(0))
}

/// linux/fs.h; newer than the constants at hand.
const RWF_NOAPPEND: u32 = 0x20;

const RW_FLAGS_GAP: &str = "RWF_ATOMIC and RWF_DONTCACHE give EOPNOTSUPP";

/// Runs `act` with the status flags as the RWF_* `flags` of preadv2(2) want them for this one call. Everything is memory
/// here, so that RWF_HIPRI, RWF_DSYNC and RWF_SYNC ask for nothing.
fn with_rw_flags<T>(file: &OpenFile, flags: u32, act: impl FnOnce() -> Result<T>) -> Result<T> {
    const IDLE: u32 = linux::RWF_HIPRI | linux::RWF_DSYNC | linux::RWF_SYNC;
    const BOTH: u32 = linux::RWF_APPEND | RWF_NOAPPEND;
    if flags & !(IDLE | BOTH | linux::RWF_NOWAIT) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if flags & BOTH == BOTH {
        return Err(Errno::EINVAL);
    }
    let kept = file.flags.get();
    let mut wanted = kept;
    if flags & BOTH != 0 {
        wanted.set(OpenFlags::APPEND, flags & linux::RWF_APPEND != 0);
    }
    if flags & linux::RWF_NOWAIT != 0 {
        wanted |= OpenFlags::NONBLOCK; // the call does not block then, so that nobody else sees it
    }
    file.flags.set(wanted);
    let done = act();
    file.flags.set(kept);
    done
}

fn sys_preadv2(args: Args) -> Result<u64> {
    let flags = args.u32(5);
    if args.i64(3) == -1 {
        let (file, segments) = (readable(args.i32(0))?, segments(args)?);
        return if nothing(&segments) { Ok(0) } else { with_rw_flags(&file, flags, || read(&file, &segments)) };
    }
    let (offset, file) = (position(args)?, file(args.i32(0))?);
    read_at(&file, || segments(args), offset, Some(flags))
}

fn sys_pwritev2(args: Args) -> Result<u64> {
    let flags = args.u32(5);
    if args.i64(3) == -1 {
        let (file, segments) = (writable(args.i32(0))?, segments(args)?);
        // What takes single messages only (eventfd) knows no flags.
        let message = file.metadata().file_type == FileType::Anonymous;
        if message && flags & !linux::RWF_HIPRI != 0 && !nothing(&segments) {
            return Err(Errno::EOPNOTSUPP);
        }
        return if nothing(&segments) { Ok(0) } else { with_rw_flags(&file, flags, || write(&file, &segments)) };
    }
    let (offset, file) = (position(args)?, file(args.i32(0))?);
    write_at(&file, || segments(args), offset, Some(flags))
}

fn open_at(dirfd: i32, addr: UserAddr, how: How) -> Result<u64> {
    let caller = Caller::current();
    let path = path(addr)?;
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    let start = caller.start(dirfd, &path)?;
    install(open::open(&caller, start, &path, how)?, how.flags)
}

fn sys_open(args: Args) -> Result<u64> {
    open_at(linux::AT_FDCWD, args.addr(0), How::of_open(args.u32(1), args.u32(2))?)
}

fn sys_openat(args: Args) -> Result<u64> {
    open_at(args.i32(0), args.addr(1), How::of_open(args.u32(2), args.u32(3))?)
}

fn sys_creat(args: Args) -> Result<u64> {
    let flags = OpenFlags::CREAT | OpenFlags::WRONLY | OpenFlags::TRUNC;
    open_at(linux::AT_FDCWD, args.addr(0), How::of_open(flags.bits(), args.u32(1))?)
}

/// Bytes of the `struct open_how` that is known: three words.
const HOW_BYTES: usize = 24;

fn sys_openat2(args: Args) -> Result<u64> {
    let size = args.usize(3);
    if size < HOW_BYTES {
        return Err(Errno::EINVAL);
    }
    if size > PAGE_BYTES as usize {
        return Err(Errno::E2BIG);
    }
    let [flags, mode, resolve] = user::read::<[u64; 3]>(args.addr(2))?;
    // A longer one is a newer program's: fine as long as it asks for nothing new.
    let mut extra = alloc::vec![0; size - HOW_BYTES];
    user::read_bytes(args.addr(2).offset(HOW_BYTES as u64), &mut extra)?;
    if extra.iter().any(|b| *b != 0) {
        return Err(Errno::E2BIG);
    }
    open_at(args.i32(0), args.addr(1), How::of_openat2(flags, mode, resolve)?)
}

/// Runs what a close(2) of a descriptor entails; the last reference is dropped outside of any borrow.
pub(crate) fn closed(file: Rc<OpenFile>) {
    file.ops.closed(&file);
    if let Some(location) = &file.location {
        let mask =
            if file.flags.get().writable() { notify::mask::IN_CLOSE_WRITE } else { notify::mask::IN_CLOSE_NOWRITE };
        if Rc::strong_count(&file) == 1 {
            notify::event(location, mask);
        }
    }
    drop(file);
}

fn sys_close(args: Args) -> Result<u64> {
    closed(current().files().remove(args.i32(0))?);
    Ok(0)
}

/// linux/close_range.h.
const CLOSE_RANGE_CLOEXEC: u32 = 4;

fn sys_close_range(args: Args) -> Result<u64> {
    let (first, last, flags) = (args.u32(0), args.u32(1), args.u32(2));
    if first > last || flags & !CLOSE_RANGE_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let files = current().files();
    if flags & CLOSE_RANGE_CLOEXEC != 0 {
        for fd in files.open() {
            if (first..=last).contains(&(fd as u32)) {
                files.set_close_on_exec(fd, true)?;
            }
        }
        return Ok(0);
    }
    for file in files.drain(first as usize, last as usize, |_| true) {
        closed(file);
    }
    Ok(0)
}

fn limit() -> usize {
    usize::try_from(current().process.limit(Resource::OpenFiles)).unwrap_or(usize::MAX)
}

fn sys_dup(args: Args) -> Result<u64> {
    let files = current().files();
    Ok(files.insert(files.get(args.i32(0))?, false, 0, limit())? as u64)
}

fn dup_to(old: i32, new: i32, close_on_exec: bool) -> Result<u64> {
    let files = current().files();
    let file = files.get(old)?;
    if let Some(replaced) = files.replace(new, file, close_on_exec, limit())? {
        closed(replaced);
    }
    Ok(new as u64)
}

fn sys_dup2(args: Args) -> Result<u64> {
    if args.i32(0) == args.i32(1) {
        current().files().get(args.i32(0))?;
        return Ok(args.u64(0) & 0xffff_ffff);
    }
    dup_to(args.i32(0), args.i32(1), false)
}

fn sys_dup3(args: Args) -> Result<u64> {
    let flags = OpenFlags::from_bits_truncate(args.u32(2));
    if args.u32(2) & !OpenFlags::CLOEXEC.bits() != 0 || args.i32(0) == args.i32(1) {
        return Err(Errno::EINVAL);
    }
    dup_to(args.i32(0), args.i32(1), flags.contains(OpenFlags::CLOEXEC))
}

/// Flags that F_SETFL can change.
const SETTABLE: OpenFlags = OpenFlags::APPEND
    .union(OpenFlags::NONBLOCK)
    .union(OpenFlags::ASYNC)
    .union(OpenFlags::DIRECT)
    .union(OpenFlags::NOATIME);

fn sys_fcntl(args: Args) -> Result<u64> {
    let files = current().files();
    let fd = args.i32(0);
    let opened = files.get(fd)?;
    let command = args.u32(1);
    let with_path =
        matches!(command, linux::F_DUPFD | linux::F_DUPFD_CLOEXEC | linux::F_GETFD | linux::F_SETFD | linux::F_GETFL);
    if opened.flags.get().contains(OpenFlags::PATH) && !with_path {
        return Err(Errno::EBADF);
    }
    match command {
        linux::F_DUPFD | linux::F_DUPFD_CLOEXEC => {
            let from = usize::try_from(args.i32(2)).ok().filter(|from| *from < limit()).ok_or(Errno::EINVAL)?;
            Ok(files.insert(opened, command == linux::F_DUPFD_CLOEXEC, from, limit())? as u64)
        }
        linux::F_GETFD => Ok(u64::from(files.close_on_exec(fd)?)),
        linux::F_SETFD => {
            files.set_close_on_exec(fd, args.u64(2) & 1 != 0)?;
            Ok(0)
        }
        linux::F_GETFL => {
            // As on every 64-bit Linux, open(2) always sets O_LARGEFILE.
            let large = if opened.location.is_some() { OpenFlags::LARGEFILE } else { OpenFlags::empty() };
            Ok(u64::from((opened.flags.get() | large).bits()))
        }
        linux::F_SETFL => {
            let wanted = OpenFlags::from_bits_truncate(args.u32(2)) & SETTABLE;
            opened.flags.set((opened.flags.get() - SETTABLE) | wanted);
            Ok(0)
        }
        linux::F_GETOWN => Ok(i64::from(opened.owner.get()).cast_unsigned()),
        linux::F_SETOWN => {
            opened.owner.set(args.i32(2));
            Ok(0)
        }
        linux::F_GETSIG => Ok(u64::from(opened.owner_signal.get())),
        linux::F_SETSIG => {
            if args.u64(2) > 64 {
                return Err(Errno::EINVAL);
            }
            opened.owner_signal.set(args.u32(2));
            Ok(0)
        }
        linux::F_ADD_SEALS if !opened.flags.get().writable() => Err(Errno::EPERM),
        linux::F_SETPIPE_SZ | linux::F_GETPIPE_SZ if PipeEnd::of(&opened).is_none() => Err(Errno::EBADF),
        _ => opened.ops.fcntl(&opened, command, args.u64(2)),
    }
}

fn sys_ioctl(args: Args) -> Result<u64> {
    let opened = file(args.i32(0))?;
    let (request, argument) = (args.u32(1), args.u64(2));
    let files = current().files();
    match request {
        io::FIOCLEX => files.set_close_on_exec(args.i32(0), true).map(|()| 0),
        io::FIONCLEX => files.set_close_on_exec(args.i32(0), false).map(|()| 0),
        io::FIONBIO | io::FIOASYNC => {
            let flag = if request == io::FIONBIO { OpenFlags::NONBLOCK } else { OpenFlags::ASYNC };
            let on = user::read::<i32>(UserAddr(argument))? != 0;
            let mut flags = opened.flags.get();
            flags.set(flag, on);
            opened.flags.set(flags);
            Ok(0)
        }
        io::FIONREAD if opened.metadata().file_type == FileType::Regular => {
            let left = opened.metadata().size.saturating_sub(opened.position.get());
            user::write(UserAddr(argument), &(left.min(i32::MAX as u64) as i32))?;
            Ok(0)
        }
        _ => opened.ops.ioctl(&opened, request, argument),
    }
}

fn sys_lseek(args: Args) -> Result<u64> {
    let opened = file(args.i32(0))?;
    let (offset, whence) = (args.i64(1), args.u32(2));
    if whence > linux::SEEK_HOLE {
        return Err(Errno::EINVAL);
    }
    match opened.metadata().file_type {
        // These have no positions, and don't mind.
        FileType::Anonymous => return Ok(0),
        FileType::CharDevice if opened.ops.seekable() => return Ok(0),
        FileType::Directory => {}
        _ if opened.ops.seekable() => {}
        _ => return Err(Errno::ESPIPE),
    }
    let position = match whence {
        linux::SEEK_SET => offset,
        linux::SEEK_CUR => opened.position.get().cast_signed().checked_add(offset).ok_or(Errno::EOVERFLOW)?,
        _ => opened.ops.seek(&opened, offset, whence)?.cast_signed(),
    };
    let position = u64::try_from(position).map_err(|_| Errno::EINVAL)?;
    opened.position.set(position);
    Ok(position)
}

fn sys_truncate(args: Args) -> Result<u64> {
    let caller = Caller::current();
    let size = u64::try_from(args.i64(1)).map_err(|_| Errno::EINVAL)?;
    let place = caller.find(linux::AT_FDCWD, &path(args.addr(0))?, true)?;
    match place.inode.metadata().file_type {
        FileType::Directory => return Err(Errno::EISDIR),
        FileType::Regular => {}
        _ => return Err(Errno::EINVAL),
    }
    access::check(&place, &caller.creds, access::WRITE)?;
    let mode = access::mode_after_write(&place.inode.metadata(), &caller.creds);
    place.inode.set_metadata(&SetMetadata { size: Some(size), mode, ..SetMetadata::default() })?;
    notify::event(&place, notify::mask::IN_MODIFY);
    Ok(0)
}

fn sys_ftruncate(args: Args) -> Result<u64> {
    let size = u64::try_from(args.i64(1)).map_err(|_| Errno::EINVAL)?;
    let opened = file(args.i32(0))?;
    if !opened.flags.get().writable() {
        return Err(Errno::EINVAL);
    }
    let place = opened.location.as_ref().ok_or(Errno::EINVAL)?;
    let meta = place.inode.metadata();
    if meta.file_type != FileType::Regular {
        return Err(Errno::EINVAL);
    }
    let mode = access::mode_after_write(&meta, &current().creds());
    place.inode.set_metadata(&SetMetadata { size: Some(size), mode, ..SetMetadata::default() })?;
    notify::event(place, notify::mask::IN_MODIFY);
    Ok(0)
}

fn sys_fallocate(args: Args) -> Result<u64> {
    let opened = file(args.i32(0))?;
    let mode = args.u32(1);
    let (offset, len) = (args.i64(2), args.i64(3));
    if offset < 0 || len <= 0 {
        return Err(Errno::EINVAL);
    }
    match mode & !linux::FALLOC_FL_KEEP_SIZE {
        0 | linux::FALLOC_FL_ZERO_RANGE => {}
        linux::FALLOC_FL_PUNCH_HOLE if mode & linux::FALLOC_FL_KEEP_SIZE != 0 => {}
        linux::FALLOC_FL_UNSHARE_RANGE => {}
        linux::FALLOC_FL_COLLAPSE_RANGE | linux::FALLOC_FL_INSERT_RANGE if mode & linux::FALLOC_FL_KEEP_SIZE == 0 => {}
        _ => return Err(Errno::EOPNOTSUPP),
    }
    if !opened.flags.get().writable() {
        return Err(Errno::EBADF);
    }
    match opened.metadata().file_type {
        FileType::Regular => {}
        FileType::Fifo => return Err(Errno::ESPIPE),
        FileType::Directory => return Err(Errno::EISDIR),
        _ => return Err(Errno::ENODEV),
    }
    offset.checked_add(len).ok_or(Errno::EFBIG)?;
    opened.ops.allocate(&opened, mode, offset as u64, len as u64)?;
    Ok(0)
}

fn sys_fsync(args: Args) -> Result<u64> {
    file(args.i32(0))?.ops.sync()?;
    Ok(0)
}

fn sys_syncfs(args: Args) -> Result<u64> {
    file(args.i32(0))?;
    Ok(0)
}

fn sys_fadvise64(args: Args) -> Result<u64> {
    let opened = file(args.i32(0))?;
    if opened.metadata().file_type == FileType::Fifo {
        return Err(Errno::ESPIPE);
    }
    // Advice about a page cache that everything lives in: nothing to do, but the arguments are checked (posix_fadvise(2)).
    if args.u32(3) > 5 || args.i64(2) < 0 { Err(Errno::EINVAL) } else { Ok(0) }
}

//! Reading and writing, and telling that data is to be stored or will be read.

use super::file::file;
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::fs::file::{OpenFile, OpenFlags};
use crate::fs::inode::FileType;
use crate::fs::{access, notify};
use crate::mm::addr::UserAddr;
use crate::mm::user::{self, Dest, Segment, Source};
use crate::task::current;
use crate::task::process::TransferCounts;
use alloc::rc::Rc;
use alloc::vec::Vec;
use linux_raw_sys::general as linux;

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
    Syscall::full(linux::__NR_fsync as u16, "fsync", sys_fsync, &[Arg::Fd]),
    Syscall::full(linux::__NR_fdatasync as u16, "fdatasync", sys_fsync, &[Arg::Fd]),
    Syscall::full(linux::__NR_sync as u16, "sync", |_| Ok(0), &[]),
    Syscall::full(linux::__NR_syncfs as u16, "syncfs", sys_syncfs, &[Arg::Fd]),
    Syscall::full(linux::__NR_fadvise64 as u16, "fadvise64", sys_fadvise64, &[Arg::Fd, Arg::Size, Arg::Size, Arg::Int]),
    Syscall::full(
        linux::__NR_sync_file_range as u16,
        "sync_file_range",
        sys_sync_file_range,
        &[Arg::Fd, Arg::Int, Arg::Int, Arg::Hex],
    ),
    Syscall::full(linux::__NR_readahead as u16, "readahead", sys_readahead, &[Arg::Fd, Arg::Int, Arg::Size]),
];

/// MAX_RW_COUNT.
const MAX_TRANSFER_BYTES: usize = 0x7fff_f000;
/// UIO_MAXIOV.
const MAX_PIECES: usize = 1024;

/// The buffer that arguments 1 and 2 tell of. One that does not lie in user space is refused whatever there is to move.
fn one(args: Args) -> Result<[Segment; 1]> {
    user::check_range(args.addr(1), args.u64(2))?;
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

/// What follows from a read of `n` bytes: it is counted; access time, inotify.
pub(super) fn note_read(file: &OpenFile, n: usize) {
    let transfers = &current().process.transfers;
    let counts = transfers.get();
    transfers.set(TransferCounts { read_bytes: counts.read_bytes + n as u64, reads: counts.reads + 1, ..counts });
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

/// What follows from a write of `n` bytes: it is counted; inotify.
pub(super) fn note_write(file: &OpenFile, n: usize) {
    let transfers = &current().process.transfers;
    let counts = transfers.get();
    transfers.set(TransferCounts {
        written_bytes: counts.written_bytes + n as u64,
        writes: counts.writes + 1,
        ..counts
    });
    if let Some(location) = file.location.as_ref().filter(|_| n > 0) {
        notify::event(location, notify::mask::IN_MODIFY);
    }
}

/// The position argument of the calls that have one: checked before anything else.
fn position(args: Args) -> Result<u64> {
    u64::try_from(args.i64(3)).map_err(|_| Errno::EINVAL)
}

/// Whether a call with several buffers has nothing to do, whatever the object.
fn nothing(segments: &[Segment]) -> bool {
    segments.iter().all(|segment| segment.len == 0)
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
    let mut dst = Dest::user(segments.as_ref());
    file.check_span(offset, dst.remaining())?;
    let n = with_rw_flags(file, flags.unwrap_or(0), || file.ops.read(file, &mut dst, offset))?;
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
    let mut src = Source::user(segments.as_ref());
    file.check_span(offset, src.remaining())?;
    let (n, _) = with_rw_flags(file, flags.unwrap_or(0), || file.ops.write(file, &mut src, offset))?;
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

fn read_vectored(file: &Rc<OpenFile>, segments: &[Segment], flags: u32) -> Result<u64> {
    if nothing(segments) { Ok(0) } else { with_rw_flags(file, flags, || read(file, segments)) }
}

fn write_vectored(file: &Rc<OpenFile>, segments: &[Segment], flags: u32) -> Result<u64> {
    if nothing(segments) { Ok(0) } else { with_rw_flags(file, flags, || write(file, segments)) }
}

fn sys_readv(args: Args) -> Result<u64> {
    read_vectored(&readable(args.i32(0))?, &segments(args)?, 0)
}

fn sys_writev(args: Args) -> Result<u64> {
    write_vectored(&writable(args.i32(0))?, &segments(args)?, 0)
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
    let nowait = flags & linux::RWF_NOWAIT != 0;
    if flags & !(IDLE | BOTH | linux::RWF_NOWAIT) != 0 || (nowait && !file.ops.knows_nowait(file)) {
        return Err(Errno::EOPNOTSUPP);
    }
    if flags & BOTH == BOTH {
        return Err(Errno::EINVAL);
    }
    let mut set = OpenFlags::empty();
    set.set(OpenFlags::NONBLOCK, nowait);
    set.set(OpenFlags::APPEND, flags & linux::RWF_APPEND != 0);
    let mut clear = OpenFlags::empty();
    clear.set(OpenFlags::APPEND, flags & RWF_NOAPPEND != 0);
    file.with_flags(set, clear, act)
}

fn sys_preadv2(args: Args) -> Result<u64> {
    let flags = args.u32(5);
    if args.i64(3) == -1 {
        return read_vectored(&readable(args.i32(0))?, &segments(args)?, flags);
    }
    let offset = position(args)?;
    read_at(&*file(args.i32(0))?, || segments(args), offset, Some(flags))
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
        return write_vectored(&file, &segments, flags);
    }
    let offset = position(args)?;
    write_at(&*file(args.i32(0))?, || segments(args), offset, Some(flags))
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

fn sys_sync_file_range(args: Args) -> Result<u64> {
    let known = linux::SYNC_FILE_RANGE_WAIT_BEFORE | linux::SYNC_FILE_RANGE_WRITE | linux::SYNC_FILE_RANGE_WAIT_AFTER;
    let opened = file(args.i32(0))?;
    let (offset, len) = (args.i64(1), args.i64(2));
    if args.u32(3) & !known != 0 || offset < 0 || len < 0 || offset.checked_add(len).is_none() {
        return Err(Errno::EINVAL);
    }
    match opened.metadata().file_type {
        FileType::Regular | FileType::BlockDevice | FileType::Directory => Ok(0),
        _ => Err(Errno::ESPIPE),
    }
}

fn sys_readahead(args: Args) -> Result<u64> {
    let opened = file(args.i32(0))?;
    if !opened.flags.get().readable() {
        return Err(Errno::EBADF);
    }
    // All data is in memory.
    match opened.metadata().file_type {
        FileType::Regular | FileType::BlockDevice => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

//! Opening files, descriptors, and what is done with files besides reading and writing.

use super::event::install;
use super::lock;
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::event::pipe::PipeEnd;
use crate::fs::async_io::{self, Owner, Whose};
use crate::fs::caller::Caller;
use crate::fs::file::{OpenFile, OpenFlags};
use crate::fs::inode::{FileType, SetMetadata};
use crate::fs::open::{self, How};
use crate::fs::path::{MAX_PATH_BYTES, Resolve};
use crate::fs::{access, notify, size_limit};
use crate::mm::addr::{PAGE_BYTES, UserAddr};
use crate::mm::user;
use crate::task::current;
use crate::task::limits::Resource;
use alloc::rc::Rc;
use alloc::vec::Vec;
use linux_raw_sys::general as linux;
use linux_raw_sys::ioctl as io;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_open as u16, "open", sys_open, &[Arg::Path, Arg::OpenFlags, Arg::Mode]),
    Syscall::full(linux::__NR_openat as u16, "openat", sys_openat, &[Arg::DirFd, Arg::Path, Arg::OpenFlags, Arg::Mode]),
    Syscall::full(linux::__NR_openat2 as u16, "openat2", sys_openat2, &[Arg::DirFd, Arg::Path, Arg::Ptr, Arg::Size]),
    Syscall::full(linux::__NR_creat as u16, "creat", sys_creat, &[Arg::Path, Arg::Mode]),
    Syscall::full(linux::__NR_close as u16, "close", sys_close, &[Arg::Fd]),
    Syscall::full(linux::__NR_close_range as u16, "close_range", sys_close_range, &[Arg::Size, Arg::Size, Arg::Hex]),
    Syscall::full(linux::__NR_dup as u16, "dup", sys_dup, &[Arg::Fd]),
    Syscall::full(linux::__NR_dup2 as u16, "dup2", sys_dup2, &[Arg::Fd, Arg::Fd]),
    Syscall::full(linux::__NR_dup3 as u16, "dup3", sys_dup3, &[Arg::Fd, Arg::Fd, Arg::OpenFlags]),
    Syscall::partial(
        linux::__NR_fcntl as u16,
        "fcntl",
        "no leases (F_SETLEASE), directory notification (F_NOTIFY) and write hints: EINVAL; with O_ASYNC no signal tells of room in a socket",
        sys_fcntl,
        &[Arg::Fd, Arg::FcntlCmd, Arg::FcntlArg],
    ),
    Syscall::full(linux::__NR_ioctl as u16, "ioctl", sys_ioctl, &[Arg::Fd, Arg::IoctlCmd, Arg::IoctlArg]),
    Syscall::full(linux::__NR_lseek as u16, "lseek", sys_lseek, &[Arg::Fd, Arg::Int, Arg::Whence]),
    Syscall::full(linux::__NR_truncate as u16, "truncate", sys_truncate, &[Arg::Path, Arg::Size]),
    Syscall::full(linux::__NR_ftruncate as u16, "ftruncate", sys_ftruncate, &[Arg::Fd, Arg::Size]),
    Syscall::full(linux::__NR_fallocate as u16, "fallocate", sys_fallocate, &[Arg::Fd, Arg::Hex, Arg::Size, Arg::Size]),
];

/// The description behind a descriptor that is not O_PATH.
pub(super) fn file(fd: i32) -> Result<Rc<OpenFile>> {
    current().files().opened(fd)
}

/// A path argument.
pub(super) fn path(addr: UserAddr) -> Result<Vec<u8>> {
    user::read_cstr(addr, MAX_PATH_BYTES, Errno::ENAMETOOLONG)
}

fn open_at(dirfd: i32, addr: UserAddr, how: How) -> Result<u64> {
    let caller = Caller::current();
    let path = path(addr)?;
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    // A start that is never left is where absolute paths begin as well.
    let confined = how.resolve.intersects(Resolve::BENEATH | Resolve::IN_ROOT);
    let start = if confined { caller.directory(dirfd)? } else { caller.start(dirfd, &path)? };
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

fn sys_close(args: Args) -> Result<u64> {
    current().files().close(args.i32(0))?;
    Ok(0)
}

/// linux/close_range.h.
const CLOSE_RANGE_UNSHARE: u32 = 2;
const CLOSE_RANGE_CLOEXEC: u32 = 4;

fn sys_close_range(args: Args) -> Result<u64> {
    let (first, last, flags) = (args.u32(0), args.u32(1), args.u32(2));
    if first > last || flags & !(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & CLOSE_RANGE_UNSHARE != 0 {
        current().unshare_files();
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
        files.closed(file);
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
        files.closed(replaced);
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
        linux::F_GETFL => Ok(u64::from(opened.shown_flags().bits())),
        linux::F_SETFL => {
            let mut wanted = OpenFlags::from_bits_truncate(args.u32(2)) & SETTABLE;
            if !async_io::is_possible(&opened) {
                wanted.remove(OpenFlags::ASYNC);
            }
            let old = opened.flags.get();
            if (old ^ wanted).contains(OpenFlags::ASYNC) {
                async_io::set(&opened, fd, wanted.contains(OpenFlags::ASYNC));
            }
            opened.flags.set((old - SETTABLE) | wanted);
            Ok(0)
        }
        linux::F_GETOWN => Ok(i64::from(owner_number(&opened)).cast_unsigned()),
        linux::F_SETOWN => set_owner(&opened, args.i32(2)),
        linux::F_GETOWN_EX => {
            let (kind, id) = match opened.owner.get().and_then(|owner| owner.whose()) {
                None => (linux::F_OWNER_TID, 0),
                Some(Whose::Thread(tid)) => (linux::F_OWNER_TID, tid),
                Some(Whose::Process(pid)) => (linux::F_OWNER_PID, pid),
                Some(Whose::Group(pgid)) => (linux::F_OWNER_PGRP, pgid),
            };
            user::write(args.addr(2), &[kind, id])?;
            Ok(0)
        }
        linux::F_SETOWN_EX => {
            let [kind, id] = user::read::<[u32; 2]>(args.addr(2))?;
            let whose = match kind {
                linux::F_OWNER_TID => Whose::Thread(id),
                linux::F_OWNER_PID => Whose::Process(id),
                linux::F_OWNER_PGRP => Whose::Group(id),
                _ => return Err(Errno::EINVAL),
            };
            opened.owner.set(if id == 0 { None } else { Some(Owner::new(whose)?) });
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
        linux::F_GETLK | linux::F_OFD_GETLK => lock::get(&opened, command, args.addr(2)),
        linux::F_SETLK | linux::F_SETLKW | linux::F_OFD_SETLK | linux::F_OFD_SETLKW => {
            lock::set(&opened, fd, command, args.addr(2))
        }
        // No events: an end of notifications, of which there are none.
        linux::F_NOTIFY if args.u32(2) & !linux::DN_MULTISHOT == 0 => Ok(0),
        linux::F_NOTIFY if opened.metadata().file_type != FileType::Directory => Err(Errno::ENOTDIR),
        // No file system here has leases, so there is none to be found.
        linux::F_GETLEASE => Ok(u64::from(linux::F_UNLCK)),
        linux::F_ADD_SEALS if !opened.flags.get().writable() => Err(Errno::EPERM),
        linux::F_SETPIPE_SZ | linux::F_GETPIPE_SZ if PipeEnd::of(&opened).is_none() => Err(Errno::EBADF),
        _ => opened.ops.fcntl(&opened, command, args.u64(2)),
    }
}

/// F_SETOWN: a process, a negative process group, or 0 for nobody.
fn set_owner(file: &OpenFile, id: i32) -> Result<u64> {
    let number = id.unsigned_abs();
    let owner = match id {
        i32::MIN => return Err(Errno::EINVAL),
        0 => None,
        1.. => Some(Owner::new(Whose::Process(number))?),
        _ => Some(Owner::new(Whose::Group(number))?),
    };
    file.owner.set(owner);
    Ok(0)
}

/// F_GETOWN, as [`set_owner`] takes it.
fn owner_number(file: &OpenFile) -> i32 {
    match file.owner.get().and_then(|owner| owner.whose()) {
        None => 0,
        Some(Whose::Thread(id) | Whose::Process(id)) => id.cast_signed(),
        Some(Whose::Group(id)) => -id.cast_signed(),
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
            if request == io::FIOASYNC && on != flags.contains(flag) {
                if !async_io::is_possible(&opened) {
                    return Err(Errno::ENOTTY);
                }
                async_io::set(&opened, args.i32(0), on);
            }
            flags.set(flag, on);
            opened.flags.set(flags);
            Ok(0)
        }
        io::FIOSETOWN | io::SIOCSPGRP if opened.metadata().file_type == FileType::Socket => {
            set_owner(&opened, user::read::<i32>(UserAddr(argument))?)
        }
        io::FIOGETOWN | io::SIOCGPGRP if opened.metadata().file_type == FileType::Socket => {
            user::write(UserAddr(argument), &owner_number(&opened))?;
            Ok(0)
        }
        io::FIONREAD if opened.metadata().file_type == FileType::Regular => {
            // As on Linux, less than nothing behind the end, and cut to an int.
            let left = opened.metadata().size.wrapping_sub(opened.position.get());
            user::write(UserAddr(argument), &(left as i32))?;
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
        linux::SEEK_CUR => opened.position.get().cast_signed().checked_add(offset).ok_or(Errno::EINVAL)?,
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
    size_limit::check(place.inode.metadata().size, size)?;
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
    size_limit::check(meta.size, size)?;
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

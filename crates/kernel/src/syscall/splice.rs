//! splice(2), tee(2), vmsplice(2), sendfile(2), copy_file_range(2).

use super::table::{Arg, Args, Syscall};
use super::transfer::{note_read, note_write, segments};
use crate::errno::{Errno, Result};
use crate::event::pipe::PipeEnd;
use crate::event::pipe::splice::{self, MAX_BYTES, Place};
use crate::fs::file::{OpenFile, OpenFlags};
use crate::fs::inode::FileType;
use crate::mm::addr::UserAddr;
use crate::mm::user::{self, Dest, Source};
use crate::task;
use alloc::rc::Rc;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_sendfile as u16, "sendfile", sys_sendfile, &[Arg::Fd, Arg::Fd, Arg::Ptr, Arg::Size]),
    Syscall::full(
        linux::__NR_splice as u16,
        "splice",
        sys_splice,
        &[Arg::Fd, Arg::Ptr, Arg::Fd, Arg::Ptr, Arg::Size, Arg::Hex],
    ),
    Syscall::full(linux::__NR_tee as u16, "tee", sys_tee, &[Arg::Fd, Arg::Fd, Arg::Size, Arg::Hex]),
    Syscall::full(linux::__NR_vmsplice as u16, "vmsplice", sys_vmsplice, &[Arg::Fd, Arg::IovecIn, Arg::Size, Arg::Hex]),
    Syscall::full(
        linux::__NR_copy_file_range as u16,
        "copy_file_range",
        sys_copy_file_range,
        &[Arg::Fd, Arg::Ptr, Arg::Fd, Arg::Ptr, Arg::Size, Arg::Hex],
    ),
];

/// SPLICE_F_MOVE, NONBLOCK, MORE and GIFT; all but NONBLOCK are hints.
const FLAGS: u32 = 0xf;
const NONBLOCK: u32 = 0x2;

fn opened(fd: i32) -> Result<Rc<OpenFile>> {
    task::current().files().opened(fd)
}

fn check_modes(from: &OpenFile, to: &OpenFile) -> Result<()> {
    if from.flags.get().readable() && to.flags.get().writable() { Ok(()) } else { Err(Errno::EBADF) }
}

/// Reads an optional `loff_t`.
fn read_offset(addr: UserAddr) -> Result<Option<u64>> {
    if addr.is_null() {
        return Ok(None);
    }
    u64::try_from(user::read::<i64>(addr)?).map(Some).map_err(|_| Errno::EINVAL)
}

fn write_offset(addr: UserAddr, place: &Place<'_>) -> Result<()> {
    match place.offset {
        Some(offset) => user::write(addr, &offset),
        None => Ok(()),
    }
}

fn check_flags(flags: u32) -> Result<bool> {
    if flags & !FLAGS != 0 { Err(Errno::EINVAL) } else { Ok(flags & NONBLOCK != 0) }
}

fn sys_splice(args: Args) -> Result<u64> {
    let (in_offset, out_offset) = (args.addr(1), args.addr(3));
    let len = args.usize(4).min(MAX_BYTES);
    if args.usize(4) == 0 {
        return Ok(0);
    }
    let nonblock = check_flags(args.u32(5))?;
    let (from, to) = (opened(args.i32(0))?, opened(args.i32(2))?);
    // A pipe has no positions, which comes before everything else.
    let (source, target) = (PipeEnd::of(&from), PipeEnd::of(&to));
    if source.is_some() && !in_offset.is_null() || target.is_some() && !out_offset.is_null() {
        return Err(Errno::ESPIPE);
    }
    check_modes(&from, &to)?;
    match (source, target) {
        (Some(source), Some(target)) => {
            let nonblock = nonblock || from.nonblocking() || to.nonblocking();
            splice::between_pipes(source, target, len, nonblock).map(|n| n as u64)
        }
        (Some(source), None) => {
            check_seekable(&to, out_offset)?;
            if to.flags.get().contains(OpenFlags::APPEND) {
                return Err(Errno::EINVAL);
            }
            let mut place = Place { file: &to, offset: read_offset(out_offset)? };
            let nonblock = nonblock || from.nonblocking();
            let n = splice::to_file(source, &mut place, len, nonblock)?;
            note_write(&to, n);
            write_offset(out_offset, &place)?;
            Ok(n as u64)
        }
        (None, Some(target)) => {
            check_seekable(&from, in_offset)?;
            let mut place = Place { file: &from, offset: read_offset(in_offset)? };
            let nonblock = nonblock || to.nonblocking();
            let n = splice::from_file(&mut place, target, len, nonblock)?;
            note_read(&from, n);
            write_offset(in_offset, &place)?;
            Ok(n as u64)
        }
        (None, None) => Err(Errno::EINVAL),
    }
}

/// An offset makes sense only for what has positions.
fn check_seekable(file: &OpenFile, offset: UserAddr) -> Result<()> {
    if offset.is_null() || file.ops.seekable() { Ok(()) } else { Err(Errno::EINVAL) }
}

fn sys_tee(args: Args) -> Result<u64> {
    let nonblock = check_flags(args.u32(3))?;
    if args.usize(2) == 0 {
        return Ok(0);
    }
    let (from, to) = (opened(args.i32(0))?, opened(args.i32(1))?);
    check_modes(&from, &to)?;
    let (Some(source), Some(target)) = (PipeEnd::of(&from), PipeEnd::of(&to)) else { return Err(Errno::EINVAL) };
    let nonblock = nonblock || from.nonblocking() || to.nonblocking();
    splice::tee(source, target, args.usize(2).min(MAX_BYTES), nonblock).map(|n| n as u64)
}

fn sys_vmsplice(args: Args) -> Result<u64> {
    let nonblock = check_flags(args.u32(3))?;
    let file = opened(args.i32(0))?;
    let segments = segments(args)?;
    if segments.iter().all(|segment| segment.len == 0) {
        return Ok(0);
    }
    let end = PipeEnd::of(&file).ok_or(Errno::EBADF)?;
    let nonblock = nonblock || file.nonblocking();
    let moved = if file.flags.get().writable() {
        splice::from_memory(&mut Source::user(&segments), end, nonblock)?
    } else {
        splice::to_memory(end, &mut Dest::user(&segments), nonblock)?
    };
    Ok(moved as u64)
}

fn sys_sendfile(args: Args) -> Result<u64> {
    let offset_addr = args.addr(2);
    let offset = if offset_addr.is_null() { None } else { Some(user::read::<i64>(offset_addr)?) };
    let from = opened(args.i32(1))?;
    if !from.flags.get().readable() {
        return Err(Errno::EBADF);
    }
    if offset.is_some() && !from.ops.seekable() {
        return Err(Errno::ESPIPE);
    }
    let offset = offset.map(u64::try_from).transpose().map_err(|_| Errno::EINVAL)?;
    if args.i64(3) < 0 {
        return Err(Errno::EINVAL);
    }
    let to = opened(args.i32(0))?;
    check_modes(&from, &to)?;
    let len = args.usize(3).min(MAX_BYTES);
    let mut source = Place { file: &from, offset };
    let n = if let Some(target) = PipeEnd::of(&to) {
        if len == 0 { 0 } else { splice::from_file(&mut source, target, len, to.nonblocking())? }
    } else {
        let file_type = from.metadata().file_type;
        if !matches!(file_type, FileType::Regular | FileType::BlockDevice | FileType::Anonymous) {
            return Err(Errno::EINVAL);
        }
        if to.flags.get().contains(OpenFlags::APPEND) {
            return Err(Errno::EINVAL);
        }
        if len == 0 { 0 } else { splice::copy(&mut source, &mut Place { file: &to, offset: None }, len)? }
    };
    note_read(&from, n);
    note_write(&to, n);
    write_offset(offset_addr, &source)?;
    Ok(n as u64)
}

fn sys_copy_file_range(args: Args) -> Result<u64> {
    let (in_offset, out_offset) = (args.addr(1), args.addr(3));
    let (from, to) = (opened(args.i32(0))?, opened(args.i32(2))?);
    // Negative ones are refused with the range.
    let raw = |addr: UserAddr| if addr.is_null() { Ok(None) } else { user::read::<u64>(addr).map(Some) };
    let mut source = Place { file: &from, offset: raw(in_offset)? };
    let mut target = Place { file: &to, offset: raw(out_offset)? };
    if args.u32(5) != 0 {
        return Err(Errno::EINVAL);
    }
    let (from_meta, to_meta) = (from.metadata(), to.metadata());
    for meta in [&from_meta, &to_meta] {
        match meta.file_type {
            FileType::Regular => {}
            FileType::Directory => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
    }
    let to_flags = to.flags.get();
    if !from.flags.get().readable() || !to_flags.writable() || to_flags.contains(OpenFlags::APPEND) {
        return Err(Errno::EBADF);
    }
    if from_meta.dev != to_meta.dev {
        return Err(Errno::EXDEV);
    }
    let at = |place: &Place<'_>| place.offset.unwrap_or(place.file.position.get());
    let (start, target_start) = (at(&source), at(&target));
    let len = args.u64(4);
    for start in [start, target_start] {
        let end = start.checked_add(len).ok_or(Errno::EOVERFLOW)?;
        if end > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
    }
    let len = len.min(from_meta.size.saturating_sub(start)).min(MAX_BYTES as u64);
    if from_meta.ino == to_meta.ino && start < target_start + len && target_start < start + len {
        return Err(Errno::EINVAL);
    }
    let n = splice::copy(&mut source, &mut target, len as usize)?;
    note_read(&from, n);
    note_write(&to, n);
    write_offset(in_offset, &source)?;
    write_offset(out_offset, &target)?;
    Ok(n as u64)
}

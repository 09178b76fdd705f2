//! What is known of files: stat, permissions, owners, extended attributes, file systems.

use super::file::path;
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::fs::access::{self, is_owner};
use crate::fs::caller::{Caller, Target};
use crate::fs::context::Location;
use crate::fs::device::{major, minor};
use crate::fs::inode::{FileType, Metadata, SetMetadata, may_access};
use crate::fs::notify;
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::creds::Credentials;
use crate::task::current;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_stat as u16, "stat", sys_stat, &[Arg::Path, Arg::Stat]),
    Syscall::full(linux::__NR_lstat as u16, "lstat", sys_lstat, &[Arg::Path, Arg::Stat]),
    Syscall::full(linux::__NR_fstat as u16, "fstat", sys_fstat, &[Arg::Fd, Arg::Stat]),
    Syscall::full(
        linux::__NR_newfstatat as u16,
        "newfstatat",
        sys_newfstatat,
        &[Arg::DirFd, Arg::Path, Arg::Stat, Arg::AtFlags],
    ),
    Syscall::full(
        linux::__NR_statx as u16,
        "statx",
        sys_statx,
        &[Arg::DirFd, Arg::Path, Arg::AtFlags, Arg::StatxMask, Arg::Statx],
    ),
    Syscall::full(linux::__NR_access as u16, "access", sys_access, &[Arg::Path, Arg::AccessMode]),
    Syscall::full(linux::__NR_faccessat as u16, "faccessat", sys_faccessat, &[Arg::DirFd, Arg::Path, Arg::AccessMode]),
    Syscall::full(
        linux::__NR_faccessat2 as u16,
        "faccessat2",
        sys_faccessat2,
        &[Arg::DirFd, Arg::Path, Arg::AccessMode, Arg::AtFlags],
    ),
    Syscall::full(linux::__NR_chmod as u16, "chmod", sys_chmod, &[Arg::Path, Arg::Mode]),
    Syscall::full(linux::__NR_fchmod as u16, "fchmod", sys_fchmod, &[Arg::Fd, Arg::Mode]),
    Syscall::full(linux::__NR_fchmodat as u16, "fchmodat", sys_fchmodat, &[Arg::DirFd, Arg::Path, Arg::Mode]),
    Syscall::full(452, "fchmodat2", sys_fchmodat2, &[Arg::DirFd, Arg::Path, Arg::Mode, Arg::AtFlags]),
    Syscall::full(linux::__NR_chown as u16, "chown", sys_chown, &[Arg::Path, Arg::Uid, Arg::Uid]),
    Syscall::full(linux::__NR_lchown as u16, "lchown", sys_lchown, &[Arg::Path, Arg::Uid, Arg::Uid]),
    Syscall::full(linux::__NR_fchown as u16, "fchown", sys_fchown, &[Arg::Fd, Arg::Uid, Arg::Uid]),
    Syscall::full(
        linux::__NR_fchownat as u16,
        "fchownat",
        sys_fchownat,
        &[Arg::DirFd, Arg::Path, Arg::Uid, Arg::Uid, Arg::AtFlags],
    ),
    Syscall::full(linux::__NR_umask as u16, "umask", sys_umask, &[Arg::Mode]),
    Syscall::full(linux::__NR_statfs as u16, "statfs", sys_statfs, &[Arg::Path, Arg::Ptr]),
    Syscall::full(linux::__NR_fstatfs as u16, "fstatfs", sys_fstatfs, &[Arg::Fd, Arg::Ptr]),
    Syscall::full(
        linux::__NR_getxattr as u16,
        "getxattr",
        |a| get_xattr(by_path(a, true)?, a),
        &[Arg::Path, Arg::Path, Arg::Ptr, Arg::Size],
    ),
    Syscall::full(
        linux::__NR_lgetxattr as u16,
        "lgetxattr",
        |a| get_xattr(by_path(a, false)?, a),
        &[Arg::Path, Arg::Path, Arg::Ptr, Arg::Size],
    ),
    Syscall::full(
        linux::__NR_fgetxattr as u16,
        "fgetxattr",
        |a| get_xattr(by_fd(a)?, a),
        &[Arg::Fd, Arg::Path, Arg::Ptr, Arg::Size],
    ),
    Syscall::full(
        linux::__NR_setxattr as u16,
        "setxattr",
        |a| set_xattr(by_path(a, true)?, a),
        &[Arg::Path, Arg::Path, Arg::BufIn, Arg::Size, Arg::XattrFlags],
    ),
    Syscall::full(
        linux::__NR_lsetxattr as u16,
        "lsetxattr",
        |a| set_xattr(by_path(a, false)?, a),
        &[Arg::Path, Arg::Path, Arg::BufIn, Arg::Size, Arg::XattrFlags],
    ),
    Syscall::full(
        linux::__NR_fsetxattr as u16,
        "fsetxattr",
        |a| set_xattr(by_fd(a)?, a),
        &[Arg::Fd, Arg::Path, Arg::BufIn, Arg::Size, Arg::XattrFlags],
    ),
    Syscall::full(
        linux::__NR_listxattr as u16,
        "listxattr",
        |a| list_xattr(by_path(a, true)?, a),
        &[Arg::Path, Arg::Ptr, Arg::Size],
    ),
    Syscall::full(
        linux::__NR_llistxattr as u16,
        "llistxattr",
        |a| list_xattr(by_path(a, false)?, a),
        &[Arg::Path, Arg::Ptr, Arg::Size],
    ),
    Syscall::full(
        linux::__NR_flistxattr as u16,
        "flistxattr",
        |a| list_xattr(by_fd(a)?, a),
        &[Arg::Fd, Arg::Ptr, Arg::Size],
    ),
    Syscall::full(
        linux::__NR_removexattr as u16,
        "removexattr",
        |a| remove_xattr(by_path(a, true)?, a),
        &[Arg::Path, Arg::Path],
    ),
    Syscall::full(
        linux::__NR_lremovexattr as u16,
        "lremovexattr",
        |a| remove_xattr(by_path(a, false)?, a),
        &[Arg::Path, Arg::Path],
    ),
    Syscall::full(
        linux::__NR_fremovexattr as u16,
        "fremovexattr",
        |a| remove_xattr(by_fd(a)?, a),
        &[Arg::Fd, Arg::Path],
    ),
];

const CWD: i32 = linux::AT_FDCWD;

/// `struct stat` of x86-64.
fn write_stat(addr: UserAddr, m: &Metadata) -> Result<u64> {
    let mut out: Vec<u8> = Vec::with_capacity(144);
    out.extend(m.dev.to_ne_bytes());
    out.extend(m.ino.to_ne_bytes());
    out.extend(u64::from(m.nlink).to_ne_bytes());
    for word in [m.file_type as u32 | m.mode, m.uid, m.gid, 0] {
        out.extend(word.to_ne_bytes());
    }
    out.extend(m.rdev.to_ne_bytes());
    out.extend(m.size.to_ne_bytes());
    out.extend(u64::from(m.block_bytes).to_ne_bytes());
    out.extend(m.blocks.to_ne_bytes());
    for time in [m.atime, m.mtime, m.ctime] {
        out.extend(time.sec.to_ne_bytes());
        out.extend(u64::from(time.nsec).to_ne_bytes());
    }
    out.resize(144, 0);
    user::write_bytes(addr, &out)?;
    Ok(0)
}

fn sys_stat(args: Args) -> Result<u64> {
    let place = Caller::current().find(CWD, &path(args.addr(0))?, true)?;
    write_stat(args.addr(1), &place.inode.metadata())
}

fn sys_lstat(args: Args) -> Result<u64> {
    let place = Caller::current().find(CWD, &path(args.addr(0))?, false)?;
    write_stat(args.addr(1), &place.inode.metadata())
}

fn sys_fstat(args: Args) -> Result<u64> {
    write_stat(args.addr(1), &current().files().get(args.i32(0))?.metadata())
}

const STAT_FLAGS: u32 =
    linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH | linux::AT_NO_AUTOMOUNT | linux::AT_STATX_SYNC_TYPE;

fn sys_newfstatat(args: Args) -> Result<u64> {
    if args.u32(3) & !STAT_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let target = Caller::current().target(args.i32(0), &path(args.addr(1))?, args.u32(3))?;
    write_stat(args.addr(2), &target.metadata())
}

fn sys_statx(args: Args) -> Result<u64> {
    const STATX_RESERVED: u32 = 0x8000_0000;
    let flags = args.u32(2);
    let both = flags & linux::AT_STATX_SYNC_TYPE == linux::AT_STATX_SYNC_TYPE;
    if flags & !STAT_FLAGS != 0 || both || args.u32(3) & STATX_RESERVED != 0 {
        return Err(Errno::EINVAL);
    }
    // A null path with AT_EMPTY_PATH is the descriptor itself, since Linux 6.11.
    let path =
        if args.addr(1).is_null() && flags & linux::AT_EMPTY_PATH != 0 { Vec::new() } else { path(args.addr(1))? };
    let target = Caller::current().target(args.i32(0), &path, flags)?;
    let m = target.metadata();
    let (mount_id, mount_root) = match &target {
        Target::Location(place) => (Some(place.mount.id), Rc::ptr_eq(&place.mount.root, &place.entry)),
        Target::Anonymous(_) => (None, false),
    };
    let mut mask = linux::STATX_BASIC_STATS;
    mask |= if m.btime.is_some() { linux::STATX_BTIME } else { 0 };
    mask |= if mount_id.is_some() { linux::STATX_MNT_ID } else { 0 };
    let mut out = [0; 256];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    for (at, word) in [
        (0, mask),
        (4, m.block_bytes),
        (16, m.nlink),
        (20, m.uid),
        (24, m.gid),
        (128, major(m.rdev)),
        (132, minor(m.rdev)),
        (136, major(m.dev)),
        (140, minor(m.dev)),
    ] {
        put(at, &word.to_ne_bytes());
    }
    put(28, &((m.file_type as u32 | m.mode) as u16).to_ne_bytes());
    let known_attributes = u64::from(linux::STATX_ATTR_MOUNT_ROOT);
    let attributes = if mount_root { known_attributes } else { 0 };
    for (at, value) in [
        (8, attributes),
        (56, known_attributes),
        (32, m.ino),
        (40, m.size),
        (48, m.blocks),
        (144, u64::from(mount_id.unwrap_or(0))),
    ] {
        put(at, &value.to_ne_bytes());
    }
    for (at, time) in [(64, m.atime), (80, m.btime.unwrap_or_default()), (96, m.ctime), (112, m.mtime)] {
        put(at, &time.sec.to_ne_bytes());
        put(at + 8, &time.nsec.to_ne_bytes());
    }
    user::write_bytes(args.addr(4), &out)?;
    Ok(0)
}

fn check_access(dirfd: i32, path: &[u8], wanted: u32, flags: u32) -> Result<u64> {
    let known = linux::AT_EACCESS | linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH;
    if wanted & !7 != 0 || flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let caller = Caller::current();
    // The real ids count, with the capabilities that they would have (access(2)).
    let who = if flags & linux::AT_EACCESS != 0 {
        (*caller.creds).clone()
    } else {
        let real = &caller.creds;
        let effective = if real.uid == 0 { real.permitted } else { 0 };
        Credentials { fsuid: real.uid, fsgid: real.gid, effective, ..(**real).clone() }
    };
    let target = caller.target(dirfd, path, flags)?;
    let meta = target.metadata();
    if let Target::Location(place) = &target
        && wanted & access::WRITE != 0
        && matches!(meta.file_type, FileType::Regular | FileType::Directory | FileType::Symlink)
    {
        place.mount.check_writable()?;
    }
    if may_access(&meta, &who, wanted) { Ok(0) } else { Err(Errno::EACCES) }
}

fn sys_access(args: Args) -> Result<u64> {
    check_access(CWD, &path(args.addr(0))?, args.u32(1), 0)
}

fn sys_faccessat(args: Args) -> Result<u64> {
    check_access(args.i32(0), &path(args.addr(1))?, args.u32(2), 0)
}

fn sys_faccessat2(args: Args) -> Result<u64> {
    check_access(args.i32(0), &path(args.addr(1))?, args.u32(2), args.u32(3))
}

/// EROFS where nothing may be changed.
pub(super) fn check_writable(target: &Target) -> Result<()> {
    match target {
        Target::Location(place) => place.mount.check_writable(),
        Target::Anonymous(_) => Ok(()),
    }
}

pub(super) fn change(target: &Target, change: &SetMetadata) -> Result<u64> {
    match target {
        Target::Location(place) => {
            place.inode.set_metadata(change)?;
            notify::event(place, notify::mask::IN_ATTRIB);
        }
        Target::Anonymous(file) => file.ops.set_metadata(change)?,
    }
    Ok(0)
}

fn chmod(target: &Target, mode: u32) -> Result<u64> {
    let caller = Caller::current();
    let meta = target.metadata();
    if meta.file_type == FileType::Symlink {
        return Err(Errno::EOPNOTSUPP);
    }
    check_writable(target)?;
    if !is_owner(&meta, &caller.creds) {
        return Err(Errno::EPERM);
    }
    let mut mode = mode & 0o7777;
    if meta.file_type != FileType::Directory && !caller.creds.in_group(meta.gid) && !caller.creds.has(linux::CAP_FSETID)
    {
        mode &= !access::S_ISGID;
    }
    change(target, &SetMetadata { mode: Some(mode), ..SetMetadata::default() })
}

fn opened(fd: i32) -> Result<Target> {
    current().files().opened(fd).map(|file| Target::of(&file))
}

fn sys_chmod(args: Args) -> Result<u64> {
    chmod(&Caller::current().target(CWD, &path(args.addr(0))?, 0)?, args.u32(1))
}

fn sys_fchmod(args: Args) -> Result<u64> {
    chmod(&opened(args.i32(0))?, args.u32(1))
}

fn sys_fchmodat(args: Args) -> Result<u64> {
    chmod(&Caller::current().target(args.i32(0), &path(args.addr(1))?, 0)?, args.u32(2))
}

fn sys_fchmodat2(args: Args) -> Result<u64> {
    if args.u32(3) & !(linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let target = Caller::current().target(args.i32(0), &path(args.addr(1))?, args.u32(3))?;
    chmod(&target, args.u32(2))
}

fn chown(target: &Target, uid: u32, gid: u32) -> Result<u64> {
    let caller = Caller::current();
    let creds = &caller.creds;
    let meta = target.metadata();
    let given = |id: u32| (id != u32::MAX).then_some(id);
    let (uid, gid) = (given(uid), given(gid));
    check_writable(target)?;
    if !creds.has(linux::CAP_CHOWN) {
        let uid_allowed = uid.is_none_or(|uid| uid == meta.uid && creds.fsuid == meta.uid);
        let gid_allowed = gid.is_none_or(|gid| creds.fsuid == meta.uid && (gid == meta.gid || creds.in_group(gid)));
        if !uid_allowed || !gid_allowed {
            return Err(Errno::EPERM);
        }
    }
    let mode = access::without_set_id(&meta);
    change(target, &SetMetadata { uid, gid, mode, ..SetMetadata::default() })
}

fn sys_chown(args: Args) -> Result<u64> {
    chown(&Caller::current().target(CWD, &path(args.addr(0))?, 0)?, args.u32(1), args.u32(2))
}

fn sys_lchown(args: Args) -> Result<u64> {
    let target = Caller::current().target(CWD, &path(args.addr(0))?, linux::AT_SYMLINK_NOFOLLOW)?;
    chown(&target, args.u32(1), args.u32(2))
}

fn sys_fchown(args: Args) -> Result<u64> {
    chown(&opened(args.i32(0))?, args.u32(1), args.u32(2))
}

fn sys_fchownat(args: Args) -> Result<u64> {
    if args.u32(4) & !(linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let target = Caller::current().target(args.i32(0), &path(args.addr(1))?, args.u32(4))?;
    chown(&target, args.u32(2), args.u32(3))
}

fn sys_umask(args: Args) -> Result<u64> {
    Ok(u64::from(current().fs().umask.replace(args.u32(0) & 0o777)))
}

fn write_statfs(place: Option<&Location>, addr: UserAddr) -> Result<u64> {
    let place = place.ok_or(Errno::ENOSYS)?;
    let s = place.inode.statistics()?;
    let dev = place.inode.metadata().dev;
    let flags = u64::from(place.mount.flags.get().bits()) | 0x20;
    let words = [
        s.magic,
        s.block_bytes,
        s.blocks,
        s.blocks_free,
        s.blocks_free,
        s.inodes,
        s.inodes_free,
        dev,
        255,
        s.block_bytes,
        flags,
        0,
        0,
        0,
        0,
    ];
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    user::write_bytes(addr, &bytes)?;
    Ok(0)
}

fn sys_statfs(args: Args) -> Result<u64> {
    write_statfs(Some(&Caller::current().find(CWD, &path(args.addr(0))?, true)?), args.addr(1))
}

fn sys_fstatfs(args: Args) -> Result<u64> {
    write_statfs(current().files().get(args.i32(0))?.location.as_ref(), args.addr(1))
}

/// XATTR_SIZE_MAX and XATTR_LIST_MAX.
const MAX_XATTR_BYTES: usize = 65_536;

fn by_path(args: Args, follow: bool) -> Result<Location> {
    Caller::current().find(CWD, &path(args.addr(0))?, follow)
}

fn by_fd(args: Args) -> Result<Location> {
    opened(args.i32(0))?.location(Errno::EOPNOTSUPP)
}

/// The attribute's name, with the rules of its class (xattr(7)).
fn xattr_name(place: &Location, addr: UserAddr, writing: bool) -> Result<Vec<u8>> {
    let name = user::read_cstr(addr, 255, Errno::ERANGE)?;
    if name.is_empty() {
        return Err(Errno::ERANGE);
    }
    let caller = Caller::current();
    let meta = place.inode.metadata();
    if writing {
        place.mount.check_writable()?;
    }
    if name.starts_with(b"user.") {
        if !matches!(meta.file_type, FileType::Regular | FileType::Directory) {
            return Err(if writing { Errno::EPERM } else { Errno::ENODATA });
        }
        let wanted = if writing { access::WRITE } else { access::READ };
        if !may_access(&meta, &caller.creds, wanted) {
            return Err(Errno::EACCES);
        }
    } else if name.starts_with(b"trusted.") {
        if !caller.creds.has(linux::CAP_SYS_ADMIN) {
            return Err(if writing { Errno::EPERM } else { Errno::ENODATA });
        }
    } else if name.starts_with(b"security.") {
        if writing && !caller.creds.has(linux::CAP_SYS_ADMIN) && !caller.creds.has(linux::CAP_SETFCAP) {
            return Err(Errno::EPERM);
        }
    } else {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(name)
}

/// Gives `value` to a caller with room for `room` bytes at `addr`; 0 asks for the length.
fn give(value: &[u8], addr: UserAddr, room: usize) -> Result<u64> {
    if room > 0 {
        if value.len() > room {
            return Err(Errno::ERANGE);
        }
        user::write_bytes(addr, value)?;
    }
    Ok(value.len() as u64)
}

fn get_xattr(place: Location, args: Args) -> Result<u64> {
    let name = xattr_name(&place, args.addr(1), false)?;
    give(&place.inode.xattr(&name)?, args.addr(2), args.usize(3))
}

fn set_xattr(place: Location, args: Args) -> Result<u64> {
    let name = xattr_name(&place, args.addr(1), true)?;
    if args.u32(4) & !3 != 0 {
        return Err(Errno::EINVAL);
    }
    if args.usize(3) > MAX_XATTR_BYTES {
        return Err(Errno::E2BIG);
    }
    let mut value = vec![0; args.usize(3)];
    user::read_bytes(args.addr(2), &mut value)?;
    place.inode.set_xattr(&name, Some(&value), args.u32(4))?;
    notify::event(&place, notify::mask::IN_ATTRIB);
    Ok(0)
}

fn remove_xattr(place: Location, args: Args) -> Result<u64> {
    let name = xattr_name(&place, args.addr(1), true)?;
    place.inode.set_xattr(&name, None, 0)?;
    notify::event(&place, notify::mask::IN_ATTRIB);
    Ok(0)
}

fn list_xattr(place: Location, args: Args) -> Result<u64> {
    let trusted = current().creds().has(linux::CAP_SYS_ADMIN);
    let mut list = Vec::new();
    for name in place.inode.list_xattrs()? {
        if trusted || !name.starts_with(b"trusted.") {
            list.extend(&name[..]);
            list.push(0);
        }
    }
    give(&list, args.addr(1), args.usize(2))
}

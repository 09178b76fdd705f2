//! Directories and names.

use super::file::{file, path};
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::fs::access::{self, EXECUTE};
use crate::fs::caller::Caller;
use crate::fs::inode::{DirEntry, FileType};
use crate::fs::path as resolution;
use crate::fs::{device, mount, names};
use crate::mm::user;
use crate::task::current;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_getdents64 as u16, "getdents64", sys_getdents64, &[Arg::Fd, Arg::Dirents, Arg::Size]),
    Syscall::full(linux::__NR_getdents as u16, "getdents", sys_getdents, &[Arg::Fd, Arg::Ptr, Arg::Size]),
    Syscall::full(linux::__NR_getcwd as u16, "getcwd", sys_getcwd, &[Arg::BufOut, Arg::Size]),
    Syscall::full(linux::__NR_chdir as u16, "chdir", sys_chdir, &[Arg::Path]),
    Syscall::full(linux::__NR_fchdir as u16, "fchdir", sys_fchdir, &[Arg::Fd]),
    Syscall::full(linux::__NR_chroot as u16, "chroot", sys_chroot, &[Arg::Path]),
    Syscall::full(linux::__NR_mkdir as u16, "mkdir", sys_mkdir, &[Arg::Path, Arg::Mode]),
    Syscall::full(linux::__NR_mkdirat as u16, "mkdirat", sys_mkdirat, &[Arg::DirFd, Arg::Path, Arg::Mode]),
    Syscall::full(linux::__NR_mknod as u16, "mknod", sys_mknod, &[Arg::Path, Arg::Mode, Arg::Hex]),
    Syscall::full(linux::__NR_mknodat as u16, "mknodat", sys_mknodat, &[Arg::DirFd, Arg::Path, Arg::Mode, Arg::Hex]),
    Syscall::full(linux::__NR_rmdir as u16, "rmdir", sys_rmdir, &[Arg::Path]),
    Syscall::full(linux::__NR_unlink as u16, "unlink", sys_unlink, &[Arg::Path]),
    Syscall::full(linux::__NR_unlinkat as u16, "unlinkat", sys_unlinkat, &[Arg::DirFd, Arg::Path, Arg::AtFlags]),
    Syscall::full(linux::__NR_symlink as u16, "symlink", sys_symlink, &[Arg::Path, Arg::Path]),
    Syscall::full(linux::__NR_symlinkat as u16, "symlinkat", sys_symlinkat, &[Arg::Path, Arg::DirFd, Arg::Path]),
    Syscall::full(linux::__NR_link as u16, "link", sys_link, &[Arg::Path, Arg::Path]),
    Syscall::full(
        linux::__NR_linkat as u16,
        "linkat",
        sys_linkat,
        &[Arg::DirFd, Arg::Path, Arg::DirFd, Arg::Path, Arg::AtFlags],
    ),
    Syscall::full(linux::__NR_rename as u16, "rename", sys_rename, &[Arg::Path, Arg::Path]),
    Syscall::full(
        linux::__NR_renameat as u16,
        "renameat",
        sys_renameat,
        &[Arg::DirFd, Arg::Path, Arg::DirFd, Arg::Path],
    ),
    Syscall::full(
        linux::__NR_renameat2 as u16,
        "renameat2",
        sys_renameat2,
        &[Arg::DirFd, Arg::Path, Arg::DirFd, Arg::Path, Arg::RenameFlags],
    ),
    Syscall::full(linux::__NR_readlink as u16, "readlink", sys_readlink, &[Arg::Path, Arg::BufOut, Arg::Size]),
    Syscall::full(
        linux::__NR_readlinkat as u16,
        "readlinkat",
        sys_readlinkat,
        &[Arg::DirFd, Arg::Path, Arg::BufOut, Arg::Size],
    ),
    Syscall::partial(
        linux::__NR_mount as u16,
        "mount",
        "bind and tmpfs; others give EPERM",
        sys_mount,
        &[Arg::Path, Arg::Path, Arg::Path, Arg::Hex, Arg::Ptr],
    ),
    Syscall::full(linux::__NR_umount2 as u16, "umount2", sys_umount2, &[Arg::Path, Arg::Hex]),
];

const CWD: i32 = linux::AT_FDCWD;

/// The most entries that are asked of a directory at a time.
const BATCH: usize = 64;

/// Both calls: `record` adds an entry in the program's format.
fn read_entries(args: Args, record: fn(&DirEntry, &mut Vec<u8>)) -> Result<u64> {
    let file = file(args.i32(0))?;
    let inode = file.inode().filter(|i| i.metadata().file_type == FileType::Directory).ok_or(Errno::ENOTDIR)?;
    if inode.metadata().nlink == 0 {
        // It has been removed.
        return Err(Errno::ENOENT);
    }
    let room = args.usize(2).min(1 << 20);
    let mut out: Vec<u8> = Vec::new();
    let mut position = file.position.get();
    'full: loop {
        let entries = inode.read_dir(position, BATCH)?;
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            let end = out.len();
            record(&entry, &mut out);
            if out.len() > room {
                out.truncate(end);
                break 'full;
            }
            position = entry.next;
        }
    }
    if out.is_empty() && !inode.read_dir(position, 1)?.is_empty() {
        return Err(Errno::EINVAL);
    }
    user::write_bytes(args.addr(1), &out)?;
    file.position.set(position);
    if let Some(location) = &file.location {
        access::note_access(location);
    }
    Ok(out.len() as u64)
}

/// `struct linux_dirent64`: u64 ino, s64 off, u16 reclen, u8 type, name with NUL, padded to 8 bytes.
fn sys_getdents64(args: Args) -> Result<u64> {
    read_entries(args, |entry, out| {
        let end = out.len() + (19 + entry.name.len() + 1).next_multiple_of(8);
        let reclen = (end - out.len()) as u16;
        out.extend(entry.ino.to_ne_bytes());
        out.extend(entry.next.to_ne_bytes());
        out.extend(reclen.to_ne_bytes());
        out.push((entry.file_type as u32 >> 12) as u8);
        out.extend(&entry.name[..]);
        out.resize(end, 0);
    })
}

/// `struct linux_dirent`: as the other, but the type is the last byte.
fn sys_getdents(args: Args) -> Result<u64> {
    read_entries(args, |entry, out| {
        let end = out.len() + (18 + entry.name.len() + 2).next_multiple_of(8);
        let reclen = (end - out.len()) as u16;
        out.extend(entry.ino.to_ne_bytes());
        out.extend(entry.next.to_ne_bytes());
        out.extend(reclen.to_ne_bytes());
        out.extend(&entry.name[..]);
        out.resize(end - 1, 0);
        out.push((entry.file_type as u32 >> 12) as u8);
    })
}

fn sys_getcwd(args: Args) -> Result<u64> {
    let fs = current().fs();
    let (cwd, root) = (fs.cwd.borrow().clone(), fs.root.borrow().clone());
    let mut path = resolution::working_directory(&cwd, &root)?;
    path.push(0);
    if path.len() > args.usize(1) {
        return Err(Errno::ERANGE);
    }
    user::write_bytes(args.addr(0), &path)?;
    Ok(path.len() as u64)
}

fn enter(place: crate::fs::context::Location, caller: &Caller) -> Result<crate::fs::context::Location> {
    if place.inode.metadata().file_type != FileType::Directory {
        return Err(Errno::ENOTDIR);
    }
    access::check(&place, &caller.creds, EXECUTE)?;
    Ok(place)
}

fn sys_chdir(args: Args) -> Result<u64> {
    let caller = Caller::current();
    let place = enter(caller.find(CWD, &path(args.addr(0))?, true)?, &caller)?;
    let old = caller.fs.cwd.replace(place);
    drop(old);
    Ok(0)
}

fn sys_fchdir(args: Args) -> Result<u64> {
    let caller = Caller::current();
    let file = current().files().get(args.i32(0))?;
    let place = enter(file.location.clone().ok_or(Errno::ENOTDIR)?, &caller)?;
    let old = caller.fs.cwd.replace(place);
    drop(old);
    Ok(0)
}

fn sys_chroot(args: Args) -> Result<u64> {
    let caller = Caller::current();
    let place = enter(caller.find(CWD, &path(args.addr(0))?, true)?, &caller)?;
    if !caller.creds.has(linux::CAP_SYS_CHROOT) {
        return Err(Errno::EPERM);
    }
    let old = caller.fs.root.replace(place);
    drop(old);
    Ok(0)
}

fn make(dirfd: i32, path: &[u8], file_type: FileType, mode: u32, rdev: u64) -> Result<u64> {
    let caller = Caller::current();
    let new = caller.new_inode(file_type, mode, rdev);
    names::make(&caller, caller.walk_at(dirfd, path)?, new)?;
    Ok(0)
}

fn sys_mkdir(args: Args) -> Result<u64> {
    make(CWD, &path(args.addr(0))?, FileType::Directory, args.u32(1) & 0o1777, 0)
}

fn sys_mkdirat(args: Args) -> Result<u64> {
    make(args.i32(0), &path(args.addr(1))?, FileType::Directory, args.u32(2) & 0o1777, 0)
}

fn mknod(dirfd: i32, path: &[u8], mode: u32, dev: u32) -> Result<u64> {
    let file_type = match mode & 0o170_000 {
        0 | 0o100_000 => FileType::Regular,
        0o010_000 => FileType::Fifo,
        0o140_000 => FileType::Socket,
        0o020_000 => FileType::CharDevice,
        0o060_000 => FileType::BlockDevice,
        0o040_000 => return Err(Errno::EPERM),
        _ => return Err(Errno::EINVAL),
    };
    let is_device = matches!(file_type, FileType::CharDevice | FileType::BlockDevice);
    // The 32-bit encoding of mknod(2): minor bits 0-7 and 20-31, major bits 8-19.
    let rdev = device::make(dev >> 8 & 0xfff, dev & 0xff | dev >> 12 & 0xf_ff00);
    make(dirfd, path, file_type, mode & 0o7777, if is_device { rdev } else { 0 })
}

fn sys_mknod(args: Args) -> Result<u64> {
    mknod(CWD, &path(args.addr(0))?, args.u32(1), args.u32(2))
}

fn sys_mknodat(args: Args) -> Result<u64> {
    mknod(args.i32(0), &path(args.addr(1))?, args.u32(2), args.u32(3))
}

fn sys_rmdir(args: Args) -> Result<u64> {
    let caller = Caller::current();
    names::rmdir(&caller, caller.walk_at(CWD, &path(args.addr(0))?)?)?;
    Ok(0)
}

fn sys_unlink(args: Args) -> Result<u64> {
    let caller = Caller::current();
    names::unlink(&caller, caller.walk_at(CWD, &path(args.addr(0))?)?)?;
    Ok(0)
}

fn sys_unlinkat(args: Args) -> Result<u64> {
    let caller = Caller::current();
    let path = path(args.addr(1))?;
    let walk = caller.walk_at(args.i32(0), &path)?;
    match args.u32(2) {
        0 => names::unlink(&caller, walk)?,
        linux::AT_REMOVEDIR => names::rmdir(&caller, walk)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn symlink(target: &[u8], dirfd: i32, path: &[u8]) -> Result<u64> {
    if target.is_empty() {
        return Err(Errno::ENOENT);
    }
    let caller = Caller::current();
    names::symlink(&caller, caller.walk_at(dirfd, path)?, target)?;
    Ok(0)
}

fn sys_symlink(args: Args) -> Result<u64> {
    symlink(&path(args.addr(0))?, CWD, &path(args.addr(1))?)
}

fn sys_symlinkat(args: Args) -> Result<u64> {
    symlink(&path(args.addr(0))?, args.i32(1), &path(args.addr(2))?)
}

fn link(old: (i32, &[u8]), new: (i32, &[u8]), flags: u32) -> Result<u64> {
    if flags & !(linux::AT_SYMLINK_FOLLOW | linux::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let caller = Caller::current();
    let nofollow = if flags & linux::AT_SYMLINK_FOLLOW == 0 { linux::AT_SYMLINK_NOFOLLOW } else { 0 };
    let target = caller.target(old.0, old.1, nofollow | flags & linux::AT_EMPTY_PATH)?;
    let new = caller.walk_at(new.0, new.1)?;
    names::link(&caller, target, new)?;
    Ok(0)
}

fn sys_link(args: Args) -> Result<u64> {
    link((CWD, &path(args.addr(0))?), (CWD, &path(args.addr(1))?), 0)
}

fn sys_linkat(args: Args) -> Result<u64> {
    link((args.i32(0), &path(args.addr(1))?), (args.i32(2), &path(args.addr(3))?), args.u32(4))
}

fn rename(old: (i32, &[u8]), new: (i32, &[u8]), flags: u32) -> Result<u64> {
    let known = linux::RENAME_NOREPLACE | linux::RENAME_EXCHANGE | linux::RENAME_WHITEOUT;
    if flags & !known != 0
        || (flags & linux::RENAME_EXCHANGE != 0 && flags & (linux::RENAME_NOREPLACE | linux::RENAME_WHITEOUT) != 0)
    {
        return Err(Errno::EINVAL);
    }
    let caller = Caller::current();
    names::rename(&caller, caller.walk_at(old.0, old.1)?, || caller.walk_at(new.0, new.1), flags)?;
    Ok(0)
}

fn sys_rename(args: Args) -> Result<u64> {
    rename((CWD, &path(args.addr(0))?), (CWD, &path(args.addr(1))?), 0)
}

fn sys_renameat(args: Args) -> Result<u64> {
    rename((args.i32(0), &path(args.addr(1))?), (args.i32(2), &path(args.addr(3))?), 0)
}

fn sys_renameat2(args: Args) -> Result<u64> {
    rename((args.i32(0), &path(args.addr(1))?), (args.i32(2), &path(args.addr(3))?), args.u32(4))
}

fn readlink(dirfd: i32, path: &[u8], addr: crate::mm::addr::UserAddr, len: i32) -> Result<u64> {
    let len = usize::try_from(len).ok().filter(|len| *len > 0).ok_or(Errno::EINVAL)?;
    let caller = Caller::current();
    let flags = linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH;
    let place = caller.target(dirfd, path, flags)?.location(Errno::EINVAL)?;
    let text = place.inode.read_link().map_err(|error| if path.is_empty() { Errno::ENOENT } else { error })?;
    let text = &text[..text.len().min(len)];
    user::write_bytes(addr, text)?;
    Ok(text.len() as u64)
}

fn sys_readlink(args: Args) -> Result<u64> {
    let path = path(args.addr(0))?;
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    readlink(CWD, &path, args.addr(1), args.i32(2))
}

fn sys_readlinkat(args: Args) -> Result<u64> {
    readlink(args.i32(0), &path(args.addr(1))?, args.addr(2), args.i32(3))
}

fn sys_mount(args: Args) -> Result<u64> {
    let caller = Caller::current();
    if !caller.creds.has(linux::CAP_SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let place = caller.find(CWD, &path(args.addr(1))?, true)?;
    let flags = args.u32(3);
    if flags & linux::MS_BIND != 0 && flags & linux::MS_REMOUNT == 0 {
        let what = caller.find(CWD, &path(args.addr(0))?, true)?;
        mount::bind(&what, &place, flags & linux::MS_REC != 0)?;
        return Ok(0);
    }
    if flags & (linux::MS_REMOUNT | linux::MS_MOVE) != 0 || path(args.addr(2))? != b"tmpfs" {
        return Err(Errno::EPERM);
    }
    let mut new = caller.new_inode(FileType::Directory, 0o1777, 0);
    new.mode = 0o1777;
    let root = crate::fs::overlay::Tree::tmpfs(crate::fs::init::default_limits(), &new)?;
    let source: Box<[u8]> = path(args.addr(0)).unwrap_or_else(|_| b"tmpfs".to_vec()).into();
    let description = mount::Description { fs_type: "tmpfs", source, options: String::new() };
    mount::mount(&place, root, description, mount::MountFlags::from_bits_truncate(flags))?;
    Ok(0)
}

fn sys_umount2(args: Args) -> Result<u64> {
    let caller = Caller::current();
    if !caller.creds.has(linux::CAP_SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let flags = args.u32(1);
    if flags & !(linux::MNT_FORCE | linux::MNT_DETACH | linux::MNT_EXPIRE | linux::UMOUNT_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let place = caller.find(CWD, &path(args.addr(0))?, flags & linux::UMOUNT_NOFOLLOW == 0)?;
    mount::unmount(place, flags & linux::MNT_DETACH != 0)?;
    Ok(0)
}

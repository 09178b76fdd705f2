//! inotify_init(2).

use super::event::{install, open_flags};
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::event::inotify::{Inotify, inotify};
use crate::fs::access;
use crate::fs::caller::{Caller, is_directory};
use crate::fs::file::OpenFlags;
use crate::fs::path::MAX_PATH_BYTES;
use crate::mm::user;
use crate::task;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_inotify_init as u16, "inotify_init", sys_inotify_init, &[]),
    Syscall::full(linux::__NR_inotify_init1 as u16, "inotify_init1", sys_inotify_init1, &[Arg::OpenFlags]),
    Syscall::partial(
        linux::__NR_inotify_add_watch as u16,
        "inotify_add_watch",
        "IN_DELETE_SELF comes with the last name, not with the last close",
        sys_inotify_add_watch,
        &[Arg::Fd, Arg::Path, Arg::Hex],
    ),
    Syscall::full(linux::__NR_inotify_rm_watch as u16, "inotify_rm_watch", sys_inotify_rm_watch, &[Arg::Fd, Arg::Int]),
];

/// Bits that inotify_add_watch(2) knows.
const KNOWN: u32 = linux::IN_ALL_EVENTS
    | linux::IN_UNMOUNT
    | linux::IN_Q_OVERFLOW
    | linux::IN_IGNORED
    | linux::IN_ONLYDIR
    | linux::IN_DONT_FOLLOW
    | linux::IN_EXCL_UNLINK
    | linux::IN_MASK_CREATE
    | linux::IN_MASK_ADD
    | linux::IN_ISDIR
    | linux::IN_ONESHOT;

fn sys_inotify_init(_: Args) -> Result<u64> {
    install(inotify(OpenFlags::empty())?, OpenFlags::empty())
}

fn sys_inotify_init1(args: Args) -> Result<u64> {
    let flags = open_flags(args.u32(0), OpenFlags::NONBLOCK | OpenFlags::CLOEXEC)?;
    install(inotify(flags)?, flags)
}

fn sys_inotify_add_watch(args: Args) -> Result<u64> {
    let mask = args.u32(2);
    if mask & KNOWN == 0 {
        return Err(Errno::EINVAL);
    }
    let file = task::current().files().opened(args.i32(0))?;
    if mask & linux::IN_MASK_ADD != 0 && mask & linux::IN_MASK_CREATE != 0 {
        return Err(Errno::EINVAL);
    }
    let instance = Inotify::of(&file)?;
    let path = user::read_cstr(args.addr(1), MAX_PATH_BYTES, Errno::ENAMETOOLONG)?;
    let caller = Caller::current();
    let place = caller.find(linux::AT_FDCWD, &path, mask & linux::IN_DONT_FOLLOW == 0)?;
    if mask & linux::IN_ONLYDIR != 0 && !is_directory(&place.inode) {
        return Err(Errno::ENOTDIR);
    }
    access::check(&place, &caller.creds, access::READ)?;
    instance.add(&place.inode, mask).map(|wd| wd as u64)
}

fn sys_inotify_rm_watch(args: Args) -> Result<u64> {
    let file = task::current().files().opened(args.i32(0))?;
    if Inotify::of(&file)?.remove(args.i32(1)) { Ok(0) } else { Err(Errno::EINVAL) }
}

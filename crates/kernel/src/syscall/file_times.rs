//! Setting the times of files: utimensat(2) and its ancestors.

use super::attributes::{change, check_writable};
use super::file::{file, path};
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::fs::access::{self, is_owner};
use crate::fs::caller::{Caller, Target};
use crate::fs::inode::{SetMetadata, Timestamp, may_access};
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::time;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(
        linux::__NR_utimensat as u16,
        "utimensat",
        sys_utimensat,
        &[Arg::DirFd, Arg::Path, Arg::Ptr, Arg::AtFlags],
    ),
    Syscall::full(linux::__NR_futimesat as u16, "futimesat", sys_futimesat, &[Arg::DirFd, Arg::Path, Arg::Ptr]),
    Syscall::full(linux::__NR_utimes as u16, "utimes", sys_utimes, &[Arg::Path, Arg::Ptr]),
    Syscall::full(linux::__NR_utime as u16, "utime", sys_utime, &[Arg::Path, Arg::Ptr]),
];

const CWD: i32 = linux::AT_FDCWD;

/// What a program asks for one of the times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Now,
    Omit,
    /// Seconds and nanoseconds, not checked yet.
    At(i64, i64),
}

impl Wanted {
    fn of_timespec(sec: i64, nsec: i64) -> Self {
        match u32::try_from(nsec) {
            Ok(linux::UTIME_NOW) => Wanted::Now,
            Ok(linux::UTIME_OMIT) => Wanted::Omit,
            _ => Wanted::At(sec, nsec),
        }
    }

    /// The time to set; `None` leaves it alone.
    fn time(self, now: Timestamp) -> Result<Option<Timestamp>> {
        match self {
            Wanted::Now => Ok(Some(now)),
            Wanted::Omit => Ok(None),
            Wanted::At(sec, nsec) => {
                let nsec = u32::try_from(nsec).ok().filter(|n| *n < 1_000_000_000).ok_or(Errno::EINVAL)?;
                Ok(Some(Timestamp { sec, nsec }))
            }
        }
    }
}

/// Times of last access and last change.
type Times = [Wanted; 2];

/// Two pairs of numbers; a null pointer means now.
fn read_times(addr: UserAddr, pair: impl Fn(i64, i64) -> Result<Wanted>) -> Result<Times> {
    if addr.is_null() {
        return Ok([Wanted::Now; 2]);
    }
    let [atime, atime_part, mtime, mtime_part] = user::read::<[i64; 4]>(addr)?;
    Ok([pair(atime, atime_part)?, pair(mtime, mtime_part)?])
}

/// Two `struct timeval`.
fn read_timevals(addr: UserAddr) -> Result<Times> {
    read_times(
        addr,
        |sec, usec| {
            if (0..1_000_000).contains(&usec) { Ok(Wanted::At(sec, usec * 1000)) } else { Err(Errno::EINVAL) }
        },
    )
}

fn set_times(target: &Target, times: Times) -> Result<u64> {
    let ns = time::realtime_ns();
    let now = Timestamp { sec: (ns / 1_000_000_000).cast_signed(), nsec: (ns % 1_000_000_000) as u32 };
    let [atime, mtime] = times;
    let change_to = SetMetadata { atime: atime.time(now)?, mtime: mtime.time(now)?, ..SetMetadata::default() };
    check_writable(target)?;
    let caller = Caller::current();
    let meta = target.metadata();
    if !is_owner(&meta, &caller.creds) {
        // To set both to now, it is enough to be able to write (utimensat(2)).
        if times != [Wanted::Now; 2] {
            return Err(Errno::EPERM);
        }
        if !may_access(&meta, &caller.creds, access::WRITE) {
            return Err(Errno::EACCES);
        }
    }
    change(target, &change_to)
}

fn set_at(dirfd: i32, addr: UserAddr, times: Times) -> Result<u64> {
    set_times(&Caller::current().target(dirfd, &path(addr)?, 0)?, times)
}

fn sys_utimensat(args: Args) -> Result<u64> {
    let times = read_times(args.addr(2), |sec, nsec| Ok(Wanted::of_timespec(sec, nsec)))?;
    if times == [Wanted::Omit; 2] {
        // Nothing to do, so nothing else is looked at.
        return Ok(0);
    }
    let flags = args.u32(3);
    if args.addr(1).is_null() && args.i32(0) != CWD {
        // futimens(3).
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        return set_times(&Target::of(&file(args.i32(0))?), times);
    }
    if flags & !(linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    set_times(&Caller::current().target(args.i32(0), &path(args.addr(1))?, flags)?, times)
}

fn sys_futimesat(args: Args) -> Result<u64> {
    let times = read_timevals(args.addr(2))?;
    if args.addr(1).is_null() && args.i32(0) != CWD {
        return set_times(&Target::of(&file(args.i32(0))?), times);
    }
    set_at(args.i32(0), args.addr(1), times)
}

fn sys_utimes(args: Args) -> Result<u64> {
    set_at(CWD, args.addr(0), read_timevals(args.addr(1))?)
}

fn sys_utime(args: Args) -> Result<u64> {
    let times = if args.addr(1).is_null() {
        [Wanted::Now; 2]
    } else {
        user::read::<[i64; 2]>(args.addr(1))?.map(|sec| Wanted::At(sec, 0))
    };
    set_at(CWD, args.addr(0), times)
}

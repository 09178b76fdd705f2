//! Locks on files: flock(2), and the commands of fcntl(2) for record locks.

use super::file::file;
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::fs::file::OpenFile;
use crate::fs::lock::{self, Kind, LAST_OFFSET, Owner, Range, Record, Space};
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::current;
use alloc::rc::Rc;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] =
    &[Syscall::full(linux::__NR_flock as u16, "flock", sys_flock, &[Arg::Fd, Arg::Hex])];

/// `struct flock` of x86-64: s16 type, s16 whence, padding, s64 start, s64 len, s32 pid, padding.
type Raw = [u64; 4];

/// The fields of a `struct flock`.
struct Flock {
    lock_type: u32,
    whence: u32,
    start: i64,
    len: i64,
    pid: i32,
}

impl Flock {
    fn read(addr: UserAddr) -> Result<Self> {
        let [head, start, len, pid] = user::read::<Raw>(addr)?;
        // Types and origins are small positive numbers: as unsigned ones, negative values are none that is known.
        let (lock_type, whence) = (head & 0xffff, head >> 16 & 0xffff);
        Ok(Self {
            lock_type: lock_type as u32,
            whence: whence as u32,
            start: start.cast_signed(),
            len: len.cast_signed(),
            pid: pid as i32,
        })
    }

    fn write(&self, addr: UserAddr) -> Result<()> {
        let raw: Raw = [
            u64::from(self.lock_type) | u64::from(self.whence) << 16,
            self.start.cast_unsigned(),
            self.len.cast_unsigned(),
            u64::from(self.pid.cast_unsigned()),
        ];
        user::write(addr, &raw)
    }

    /// The kind that is asked for; `None` is F_UNLCK.
    fn kind(&self) -> Result<Option<Kind>> {
        match self.lock_type {
            linux::F_RDLCK => Ok(Some(Kind::Shared)),
            linux::F_WRLCK => Ok(Some(Kind::Exclusive)),
            linux::F_UNLCK => Ok(None),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Which bytes: a negative length is those before the start, none all from there on.
    fn range(&self, file: &OpenFile) -> Result<Range> {
        let origin = match self.whence {
            linux::SEEK_SET => 0,
            linux::SEEK_CUR => file.position.get().cast_signed(),
            linux::SEEK_END => file.metadata().size.cast_signed(),
            _ => return Err(Errno::EINVAL),
        };
        let start = origin.checked_add(self.start).ok_or(Errno::EOVERFLOW)?;
        let byte = |at: i64| u64::try_from(at).map_err(|_| Errno::EINVAL);
        let first = byte(start)?;
        match self.len {
            0 => Ok(Range { first, last: LAST_OFFSET }),
            1.. => {
                let last = start.checked_add(self.len - 1).ok_or(Errno::EOVERFLOW)?;
                Ok(Range { first, last: byte(last)? })
            }
            _ => Ok(Range { first: byte(start.checked_add(self.len).ok_or(Errno::EINVAL)?)?, last: byte(start - 1)? }),
        }
    }
}

/// Whether a command is of open file descriptions rather than of processes.
const fn is_ofd(command: u32) -> bool {
    matches!(command, linux::F_OFD_GETLK | linux::F_OFD_SETLK | linux::F_OFD_SETLKW)
}

fn description(file: &Rc<OpenFile>) -> Owner {
    Owner::Description(Rc::as_ptr(file).addr())
}

/// The owner that a command is about.
///
/// # Errors
/// EINVAL for a process in the arguments of a command that is not about processes.
fn owner(file: &Rc<OpenFile>, command: u32, flock: &Flock) -> Result<Owner> {
    match (is_ofd(command), flock.pid) {
        (false, _) => Ok(current().files().lock_owner()),
        (true, 0) => Ok(description(file)),
        (true, _) => Err(Errno::EINVAL),
    }
}

/// F_GETLK and F_OFD_GETLK: what stands in the way of a lock.
///
/// # Errors
/// EFAULT, EINVAL, EOVERFLOW.
pub(super) fn get(file: &Rc<OpenFile>, command: u32, addr: UserAddr) -> Result<u64> {
    let mut flock = Flock::read(addr)?;
    let kind = flock.kind()?;
    let range = flock.range(file)?;
    let owner = owner(file, command, &flock)?;
    let found = match kind {
        Some(kind) => lock::test(file, &Record { owner, pid: 0, kind, range }),
        // Since Linux 6.6: the description's own locks.
        None if is_ofd(command) => lock::held(file, Space::Records, owner, range),
        None => return Err(Errno::EINVAL),
    };
    match found {
        None => flock.lock_type = linux::F_UNLCK,
        Some(held) => {
            let exclusive = held.kind == Kind::Exclusive;
            flock.lock_type = if exclusive { linux::F_WRLCK } else { linux::F_RDLCK };
            flock.whence = linux::SEEK_SET;
            flock.start = held.range.first.cast_signed();
            let to_end = held.range.last == LAST_OFFSET;
            flock.len = if to_end { 0 } else { (held.range.last - held.range.first + 1).cast_signed() };
            flock.pid = if matches!(held.owner, Owner::Table(_)) { held.pid.cast_signed() } else { -1 };
        }
    }
    flock.write(addr)?;
    Ok(0)
}

/// F_SETLK, F_SETLKW, F_OFD_SETLK and F_OFD_SETLKW on what `fd` refers to.
///
/// # Errors
/// EAGAIN, EBADF, EDEADLK, EFAULT, EINVAL, ENOLCK, EOVERFLOW, ERESTARTSYS.
pub(super) fn set(file: &Rc<OpenFile>, fd: i32, command: u32, addr: UserAddr) -> Result<u64> {
    let flock = Flock::read(addr)?;
    let range = flock.range(file)?;
    let kind = flock.kind()?;
    let flags = file.flags.get();
    let open = match kind {
        Some(Kind::Shared) => flags.readable(),
        Some(Kind::Exclusive) => flags.writable(),
        None => true,
    };
    if !open {
        return Err(Errno::EBADF);
    }
    let owner = owner(file, command, &flock)?;
    let Some(kind) = kind else {
        lock::unlock(file, Space::Records, owner, range);
        return Ok(0);
    };
    let wait = matches!(command, linux::F_SETLKW | linux::F_OFD_SETLKW);
    let me = current();
    lock::lock(file, Space::Records, &Record { owner, pid: me.process.pid(), kind, range }, wait)?;
    // Another thread may have closed the descriptor meanwhile, and found no lock to take away.
    if !is_ofd(command) && !me.files().get(fd).is_ok_and(|now| Rc::ptr_eq(&now, file)) {
        lock::unlock(file, Space::Records, owner, range);
        return Err(Errno::EBADF);
    }
    Ok(0)
}

fn sys_flock(args: Args) -> Result<u64> {
    let operation = args.u32(1);
    let wait = operation & linux::LOCK_NB == 0;
    let kind = match operation & !linux::LOCK_NB {
        linux::LOCK_SH => Some(Kind::Shared),
        linux::LOCK_EX => Some(Kind::Exclusive),
        linux::LOCK_UN => None,
        _ => return Err(Errno::EINVAL),
    };
    let file = file(args.i32(0))?;
    let owner = description(&file);
    let Some(kind) = kind else {
        lock::unlock(&file, Space::Files, owner, Range::ALL);
        return Ok(0);
    };
    let pid = current().process.pid();
    let wanted = Record { owner, pid, kind, range: Range::ALL };
    // Not in one step (flock(2)): the lock that is to be converted is given up first, and may go to somebody else.
    if lock::held(&file, Space::Files, owner, Range::ALL).is_none_or(|held| held.kind != kind) {
        lock::unlock(&file, Space::Files, owner, Range::ALL);
        lock::lock(&file, Space::Files, &wanted, wait)?;
    }
    Ok(0)
}

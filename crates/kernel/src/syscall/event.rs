//! eventfd(2), and how new descriptors come into the table.

use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::event::eventfd::eventfd;
use crate::fs::file::{OpenFile, OpenFlags};
use crate::task;
use crate::task::limits::Resource;
use alloc::rc::Rc;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_eventfd as u16, "eventfd", sys_eventfd, &[Arg::Size]),
    Syscall::full(linux::__NR_eventfd2 as u16, "eventfd2", sys_eventfd2, &[Arg::Size, Arg::OpenFlags]),
];

const SEMAPHORE: u32 = linux::EFD_SEMAPHORE;

fn sys_eventfd(args: Args) -> Result<u64> {
    install(eventfd(args.u32(0), false, OpenFlags::empty()), OpenFlags::empty())
}

fn sys_eventfd2(args: Args) -> Result<u64> {
    let flags = args.u32(1);
    let semaphore = flags & SEMAPHORE != 0;
    let flags = open_flags(flags & !SEMAPHORE, OpenFlags::NONBLOCK | OpenFlags::CLOEXEC)?;
    install(eventfd(args.u32(0), semaphore, flags), flags)
}

/// The flags of a call that takes some of open(2)'s.
///
/// # Errors
/// EINVAL if there are others than `allowed`.
pub(super) fn open_flags(bits: u32, allowed: OpenFlags) -> Result<OpenFlags> {
    OpenFlags::from_bits(bits).filter(|flags| allowed.contains(*flags)).ok_or(Errno::EINVAL)
}

/// Gives an open file the lowest free descriptor of the current thread; of `flags` O_CLOEXEC counts.
///
/// # Errors
/// EMFILE.
pub(super) fn install(file: Rc<OpenFile>, flags: OpenFlags) -> Result<u64> {
    let thread = task::current();
    let limit = usize::try_from(thread.process.limit(Resource::OpenFiles)).unwrap_or(usize::MAX);
    let fd = thread.files().insert(file, flags.contains(OpenFlags::CLOEXEC), 0, limit)?;
    Ok(fd as u64)
}

//! pipe(2).

use super::event::{install, open_flags};
use super::table::{Arg, Args, Syscall};
use crate::errno::Result;
use crate::event::pipe;
use crate::fs::file::OpenFlags;
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_pipe as u16, "pipe", sys_pipe, &[Arg::FdPair]),
    Syscall::full(linux::__NR_pipe2 as u16, "pipe2", sys_pipe2, &[Arg::FdPair, Arg::OpenFlags]),
];

fn sys_pipe(args: Args) -> Result<u64> {
    open(args.addr(0), OpenFlags::empty())
}

fn sys_pipe2(args: Args) -> Result<u64> {
    let allowed = OpenFlags::NONBLOCK | OpenFlags::CLOEXEC | OpenFlags::DIRECT;
    open(args.addr(0), open_flags(args.u32(1), allowed)?)
}

fn open(addr: UserAddr, flags: OpenFlags) -> Result<u64> {
    let (reader, writer) = pipe::pipe(flags);
    let read_fd = install(reader, flags)? as i32;
    let undo = |fd| drop(task::current().files().remove(fd));
    let write_fd = install(writer, flags).inspect_err(|_| undo(read_fd))? as i32;
    user::write(addr, &[read_fd, write_fd]).inspect_err(|_| {
        undo(read_fd);
        undo(write_fd);
    })?;
    Ok(0)
}

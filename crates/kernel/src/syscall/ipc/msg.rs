//! msgget(2), msgsnd(2), msgrcv(2), msgctl(2).

use super::super::table::{Arg, Args, Syscall};
use super::{
    IPC_INFO, IPC_NOWAIT, IPC_RMID, IPC_SET, IPC_STAT, Lookup, PERMISSION_WORDS, int, not_negative, pair, read_change,
    request, write_ints, write_object,
};
use crate::errno::{Errno, Result};
use crate::ipc::msg::{self, Message, Queue, Room, Wanted};
use crate::ipc::{Object, Want, limits};
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::current;
use alloc::vec::Vec;
use linux_raw_sys::general::{__NR_msgctl, __NR_msgget, __NR_msgrcv, __NR_msgsnd, CAP_SYS_RESOURCE};

pub(crate) const CALLS: &[Syscall] = &[
    Syscall::full(__NR_msgget as u16, "msgget", sys_msgget, &[Arg::Hex, Arg::Mode]),
    Syscall::full(__NR_msgsnd as u16, "msgsnd", sys_msgsnd, &[Arg::Int, Arg::Ptr, Arg::Size, Arg::Hex]),
    Syscall::full(__NR_msgrcv as u16, "msgrcv", sys_msgrcv, &[Arg::Int, Arg::Ptr, Arg::Size, Arg::Int, Arg::Hex]),
    Syscall::full(__NR_msgctl as u16, "msgctl", sys_msgctl, &[Arg::Int, Arg::Int, Arg::Ptr]),
];

const MSG_STAT: i32 = 11;
const MSG_INFO: i32 = 12;
const MSG_STAT_ANY: i32 = 13;
const MSG_NOERROR: u32 = 0o10000;
const MSG_EXCEPT: u32 = 0o20000;
const MSG_COPY: u32 = 0o40000;

/// The text behind the type in `struct msgbuf`.
const TEXT_OFFSET: u64 = 8;
/// Where qbytes is in `struct msqid64_ds`.
const MAX_BYTES_OFFSET: u64 = 8 * (PERMISSION_WORDS as u64 + 5);

fn sys_msgget(args: Args) -> Result<u64> {
    msg::get(request(args, 1)).map(|id| id as u64)
}

fn sys_msgsnd(args: Args) -> Result<u64> {
    let (id, addr, bytes, flags) = (args.i32(0), args.addr(1), args.u64(2), args.u32(3));
    let kind: i64 = user::read(addr)?;
    if bytes > limits::msgmax_bytes() {
        return Err(Errno::EINVAL);
    }
    not_negative(id)?;
    if kind < 1 {
        return Err(Errno::EINVAL);
    }
    let mut text = Vec::new();
    text.try_reserve_exact(bytes as usize).map_err(|_| Errno::ENOMEM)?;
    text.resize(bytes as usize, 0);
    user::read_bytes(addr.offset(TEXT_OFFSET), &mut text)?;
    msg::send(id, Message { kind, text }, flags & IPC_NOWAIT != 0).map(|()| 0)
}

fn sys_msgrcv(args: Args) -> Result<u64> {
    let (id, addr, kind, flags) = (args.i32(0), args.addr(1), args.i64(3), args.u32(4));
    not_negative(id)?;
    if args.i64(2) < 0 {
        return Err(Errno::EINVAL);
    }
    let room = Room { bytes: args.usize(2), truncate: flags & MSG_NOERROR != 0 };
    let no_wait = flags & IPC_NOWAIT != 0;
    let message = if flags & MSG_COPY != 0 {
        if flags & MSG_EXCEPT != 0 || !no_wait {
            return Err(Errno::EINVAL);
        }
        msg::copy(id, kind, room)?
    } else {
        msg::receive(id, Wanted::new(kind, flags & MSG_EXCEPT != 0), room, no_wait)?
    };
    let len = message.text.len().min(room.bytes);
    user::write(addr, &message.kind)?;
    user::write_bytes(addr.offset(TEXT_OFFSET), &message.text[..len])?;
    Ok(len as u64)
}

fn sys_msgctl(args: Args) -> Result<u64> {
    let (id, command, addr) = (not_negative(args.i32(0))?, args.i32(1), args.addr(2));
    match command {
        IPC_INFO => {
            // msgpool, msgmap, msgtql and msgseg limit nothing on Linux.
            let total = limits::msgmni() * limits::msgmnb_bytes() / 1024;
            info(addr, [int(total), int(limits::msgmnb_bytes()), int(limits::msgmnb_bytes())])
        }
        MSG_INFO => {
            let queues = msg::all();
            let messages: usize = queues.iter().map(|queue| queue.count()).sum();
            let bytes: u64 = queues.iter().map(|queue| queue.bytes.get()).sum();
            info(addr, [queues.len() as u32, messages as u32, int(bytes)])
        }
        IPC_STAT => stat(id, addr, Lookup::Id),
        MSG_STAT => stat(id, addr, Lookup::Index),
        MSG_STAT_ANY => stat(id, addr, Lookup::IndexUnchecked),
        IPC_SET => {
            let change = read_change(addr)?;
            let max_bytes: u64 = user::read(addr.offset(MAX_BYTES_OFFSET))?;
            let queue = msg::find(id)?;
            queue.permissions().check_control()?;
            if max_bytes > limits::msgmnb_bytes() && !current().creds().has(CAP_SYS_RESOURCE) {
                return Err(Errno::EPERM);
            }
            queue.permissions().change(change)?;
            queue.max_bytes.set(max_bytes);
            queue.look_again();
            Ok(0)
        }
        IPC_RMID => {
            let queue = msg::find(id)?;
            queue.permissions().check_control()?;
            queue.remove();
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `struct msginfo`: msgpool, msgmap, msgmax, msgmnb, msgmni, msgssz, msgtql, msgseg (16 bits).
fn info(addr: UserAddr, [msgpool, msgmap, msgtql]: [u32; 3]) -> Result<u64> {
    const SEGMENT_BYTES: u32 = 16;
    const SEGMENTS: u32 = 0xffff;
    let (max, queue, queues) = (int(limits::msgmax_bytes()), int(limits::msgmnb_bytes()), int(limits::msgmni()));
    write_ints(addr, &[msgpool, msgmap, max, queue, queues, SEGMENT_BYTES, msgtql, SEGMENTS])?;
    Ok(u64::from(msg::highest_index()))
}

fn stat(id: i32, addr: UserAddr, lookup: Lookup) -> Result<u64> {
    let queue = if lookup == Lookup::Id { msg::find(id) } else { msg::at_index(id) }?;
    if lookup != Lookup::IndexUnchecked {
        queue.permissions().check(Want::READ)?;
    }
    write_object(addr, queue.permissions(), &words(&queue))?;
    Ok(if lookup == Lookup::Id { 0 } else { queue.permissions().id as u64 })
}

/// `struct msqid64_ds` behind its permissions.
fn words(queue: &Queue) -> [u64; 9] {
    [
        queue.sent_s.get().cast_unsigned(),
        queue.received_s.get().cast_unsigned(),
        queue.changed_s.get().cast_unsigned(),
        queue.bytes.get(),
        queue.count() as u64,
        queue.max_bytes.get(),
        pair(queue.sender_pid.get(), queue.receiver_pid.get()),
        0,
        0,
    ]
}

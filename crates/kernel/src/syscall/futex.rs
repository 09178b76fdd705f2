//! futex(2) and futex_waitv(2).

use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::futex::{self, MATCH_ANY, Scope, WaitFor, WakeOp};
use crate::task::signal::set_restart;
use crate::time::clocks::{WallClock, to_ns};
use crate::time::sleep::Deadline;
use alloc::boxed::Box;
use alloc::vec::Vec;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(
        linux::__NR_futex as u16,
        "futex",
        sys_futex,
        &[Arg::Ptr, Arg::FutexOp, Arg::Size, Arg::Ptr, Arg::Ptr, Arg::Hex],
    ),
    Syscall::full(
        linux::__NR_futex_waitv as u16,
        "futex_waitv",
        sys_futex_waitv,
        &[Arg::Ptr, Arg::Size, Arg::Hex, Arg::Timespec, Arg::ClockId],
    ),
];

fn read_time(addr: UserAddr) -> Result<u64> {
    to_ns(user::read(addr)?, 1)
}

fn sys_futex(args: Args) -> Result<u64> {
    let op = args.u32(1);
    let command = op & linux::FUTEX_CMD_MASK.cast_unsigned();
    let scope = if op & linux::FUTEX_PRIVATE_FLAG != 0 { Scope::Private } else { Scope::Shared };
    let realtime = op & linux::FUTEX_CLOCK_REALTIME != 0;
    let takes_realtime = [linux::FUTEX_WAIT_BITSET, linux::FUTEX_WAIT_REQUEUE_PI, linux::FUTEX_LOCK_PI2];
    if realtime && !takes_realtime.contains(&command) {
        return Err(Errno::ENOSYS);
    }
    let clock = if realtime || command == linux::FUTEX_LOCK_PI { WallClock::Realtime } else { WallClock::Monotonic };
    let absolute = || -> Result<Option<Deadline>> {
        let addr = args.addr(3);
        if addr.is_null() { Ok(None) } else { Ok(Some(Deadline::at(clock, read_time(addr)?))) }
    };
    let (first, second) = (args.addr(0), args.addr(4));
    let (count, count2, value3) = (args.i32(2), args.i32(3), args.u32(5));
    let number = |n: usize| n as u64;
    match command {
        linux::FUTEX_WAIT => {
            // Relative, and restarted with the same end.
            let relative = if args.addr(3).is_null() { None } else { Some(read_time(args.addr(3))?) };
            wait(first, scope, args.u32(2), relative.map(Deadline::after), MATCH_ANY)
        }
        linux::FUTEX_WAIT_BITSET => wait(first, scope, args.u32(2), absolute()?, value3),
        linux::FUTEX_WAKE => futex::wake(first, scope, count, MATCH_ANY).map(number),
        linux::FUTEX_WAKE_BITSET => futex::wake(first, scope, count, value3).map(number),
        linux::FUTEX_REQUEUE => futex::requeue(first, second, scope, (count, count2), None).map(number),
        linux::FUTEX_CMP_REQUEUE => futex::requeue(first, second, scope, (count, count2), Some(value3)).map(number),
        linux::FUTEX_WAKE_OP => {
            let op = WakeOp::new(value3)?;
            futex::wake_op(first, second, scope, (count, count2), op).map(number)
        }
        linux::FUTEX_LOCK_PI | linux::FUTEX_LOCK_PI2 => futex::lock_pi(first, scope, absolute()?).map(|()| 0),
        linux::FUTEX_TRYLOCK_PI => futex::trylock_pi(first, scope).map(|()| 0),
        linux::FUTEX_WAIT_REQUEUE_PI => {
            futex::wait_requeue_pi(first, scope, args.u32(2), absolute()?, second).map(|()| 0)
        }
        linux::FUTEX_CMP_REQUEUE_PI => futex::requeue_pi(first, second, scope, (count, count2), value3).map(number),
        linux::FUTEX_UNLOCK_PI => futex::unlock_pi(first, scope).map(|()| 0),
        _ => Err(Errno::ENOSYS),
    }
}

fn wait(addr: UserAddr, scope: Scope, expected: u32, deadline: Option<Deadline>, bits: u32) -> Result<u64> {
    match futex::wait(addr, scope, expected, deadline, bits) {
        Ok(()) => Ok(0),
        Err(Errno::ERESTARTSYS) if deadline.is_some() => {
            Err(set_restart(Box::new(move || wait(addr, scope, expected, deadline, bits))))
        }
        Err(error) => Err(error),
    }
}

fn sys_futex_waitv(args: Args) -> Result<u64> {
    /// Flags of an entry, which the constants at hand lack: FUTEX2_SIZE_MASK and FUTEX2_PRIVATE.
    const SIZE: u32 = 3;
    const PRIVATE: u32 = 128;
    let count = args.u32(1);
    if args.u32(2) != 0 || count == 0 || count > linux::FUTEX_WAITV_MAX || args.addr(0).is_null() {
        return Err(Errno::EINVAL);
    }
    let deadline = if args.addr(3).is_null() {
        None
    } else {
        let clock = match args.u32(4) {
            linux::CLOCK_MONOTONIC => WallClock::Monotonic,
            linux::CLOCK_REALTIME => WallClock::Realtime,
            _ => return Err(Errno::EINVAL),
        };
        Some(Deadline::at(clock, read_time(args.addr(3))?))
    };
    let mut words = Vec::with_capacity(count as usize);
    for n in 0..u64::from(count) {
        // struct futex_waitv: value, address, flags, reserved.
        let [value, addr, flags] = user::read::<[u64; 3]>(args.addr(0).offset(24 * n))?;
        let (flags, reserved) = (flags as u32, flags >> 32);
        let expected = u32::try_from(value).map_err(|_| Errno::EINVAL)?;
        if flags & !PRIVATE & !SIZE != 0 || flags & SIZE != linux::FUTEX_32 || reserved != 0 {
            return Err(Errno::EINVAL);
        }
        let scope = if flags & PRIVATE != 0 { Scope::Private } else { Scope::Shared };
        words.push(WaitFor { addr: UserAddr(addr), scope, expected });
    }
    futex::wait_any(&words, deadline, MATCH_ANY).map(|index| index as u64)
}

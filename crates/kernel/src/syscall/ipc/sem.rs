//! semget(2), semop(2), semtimedop(2), semctl(2).

use super::super::table::{Arg, Args, Syscall};
use super::{
    IPC_INFO, IPC_NOWAIT, IPC_RMID, IPC_SET, IPC_STAT, Lookup, int, not_negative, read_change, request, write_ints,
    write_object,
};
use crate::errno::{Errno, Result};
use crate::ipc::sem::{self, Awaited, MAX_VALUE, Operation, Set};
use crate::ipc::{Object, Want, limits};
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::time::clocks::to_ns;
use crate::time::sleep::Deadline;
use alloc::vec;
use alloc::vec::Vec;
use linux_raw_sys::general::{__NR_semctl, __NR_semget, __NR_semop, __NR_semtimedop};

pub(crate) const CALLS: &[Syscall] = &[
    Syscall::full(__NR_semget as u16, "semget", sys_semget, &[Arg::Hex, Arg::Int, Arg::Mode]),
    Syscall::full(__NR_semop as u16, "semop", sys_semop, &[Arg::Int, Arg::Ptr, Arg::Size]),
    Syscall::full(__NR_semctl as u16, "semctl", sys_semctl, &[Arg::Int, Arg::Int, Arg::Int, Arg::Hex]),
    Syscall::full(
        __NR_semtimedop as u16,
        "semtimedop",
        sys_semtimedop,
        &[Arg::Int, Arg::Ptr, Arg::Size, Arg::Timespec],
    ),
];

const GETPID: i32 = 11;
const GETVAL: i32 = 12;
const GETALL: i32 = 13;
const GETNCNT: i32 = 14;
const GETZCNT: i32 = 15;
const SETVAL: i32 = 16;
const SETALL: i32 = 17;
const SEM_STAT: i32 = 18;
const SEM_INFO: i32 = 19;
const SEM_STAT_ANY: i32 = 20;
const SEM_UNDO: u32 = 0x1000;

/// Bytes of `struct sembuf`: number, change, flags.
const OPERATION_BYTES: usize = 6;
/// What IPC_INFO gives as the size of an undo structure.
const UNDO_BYTES: u32 = 20;

fn sys_semget(args: Args) -> Result<u64> {
    sem::get(request(args, 2), args.i32(1)).map(|id| id as u64)
}

fn sys_semop(args: Args) -> Result<u64> {
    operate(args, None)
}

fn sys_semtimedop(args: Args) -> Result<u64> {
    let timeout = args.addr(3);
    // What can't be read is an error at once; what makes no sense, after the operations have been read.
    let timeout = if timeout.is_null() { None } else { Some(user::read::<[i64; 2]>(timeout)?) };
    operate(args, timeout)
}

fn operate(args: Args, timeout: Option<[i64; 2]>) -> Result<u64> {
    let (id, count) = (args.i32(0), args.u32(2));
    if u64::from(count) > limits::semopm() {
        return Err(Errno::E2BIG);
    }
    if count == 0 {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; count as usize * OPERATION_BYTES];
    user::read_bytes(args.addr(1), &mut bytes)?;
    not_negative(id)?;
    let deadline = timeout.map(|timeout| to_ns(timeout, 1)).transpose()?.map(Deadline::after);
    let operations: Vec<Operation> = bytes.chunks_exact(OPERATION_BYTES).map(operation).collect();
    sem::operate(id, operations, deadline).map(|()| 0)
}

fn operation(bytes: &[u8]) -> Operation {
    let short = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let flags = u32::from(short(4));
    Operation {
        number: short(0),
        change: short(2).cast_signed(),
        no_wait: flags & IPC_NOWAIT != 0,
        undo: flags & SEM_UNDO != 0,
    }
}

fn sys_semctl(args: Args) -> Result<u64> {
    let (id, number, command, addr) = (not_negative(args.i32(0))?, args.i32(1), args.i32(2), args.addr(3));
    let readable = || find(id, Want::READ);
    match command {
        IPC_INFO => info(addr, UNDO_BYTES, MAX_VALUE as u32),
        SEM_INFO => info(addr, sem::count() as u32, sem::used() as u32),
        IPC_STAT => stat(id, addr, Lookup::Id),
        SEM_STAT => stat(id, addr, Lookup::Index),
        SEM_STAT_ANY => stat(id, addr, Lookup::IndexUnchecked),
        GETALL => {
            let bytes: Vec<u8> = readable()?.values().iter().flat_map(|value| value.to_ne_bytes()).collect();
            user::write_bytes(addr, &bytes).map(|()| 0)
        }
        GETVAL => readable()?.value(number).map(|value| value as u64),
        GETPID => readable()?.last_pid(number).map(u64::from),
        GETNCNT => readable()?.waiting(number, Awaited::Increase).map(|count| count as u64),
        GETZCNT => readable()?.waiting(number, Awaited::Zero).map(|count| count as u64),
        SETVAL => {
            let value = args.i32(3);
            if !(0..=MAX_VALUE).contains(&value) {
                return Err(Errno::ERANGE);
            }
            let set = sem::find(id)?;
            set.value(number)?;
            set.permissions().check(Want::WRITE)?;
            set.set_value(number, value).map(|()| 0)
        }
        SETALL => set_all(&*find(id, Want::WRITE)?, addr),
        IPC_SET => {
            let change = read_change(addr)?;
            let set = sem::find(id)?;
            set.permissions().check_control()?;
            set.permissions().change(change)?;
            set.changed_s.set(crate::ipc::now_s());
            Ok(0)
        }
        IPC_RMID => {
            let set = sem::find(id)?;
            set.permissions().check_control()?;
            set.remove();
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn find(id: i32, want: Want) -> Result<alloc::rc::Rc<Set>> {
    let set = sem::find(id)?;
    set.permissions().check(want)?;
    Ok(set)
}

fn set_all(set: &Set, addr: UserAddr) -> Result<u64> {
    let mut bytes = vec![0; set.count * 2];
    user::read_bytes(addr, &mut bytes)?;
    let values: Vec<u16> = bytes.chunks_exact(2).map(|two| u16::from_ne_bytes([two[0], two[1]])).collect();
    if values.iter().any(|value| i32::from(*value) > MAX_VALUE) {
        return Err(Errno::ERANGE);
    }
    set.set_values(&values);
    Ok(0)
}

/// `struct seminfo`: semmap, semmni, semmns, semmnu, semmsl, semopm, semume, semusz, semvmx, semaem.
fn info(addr: UserAddr, semusz: u32, semaem: u32) -> Result<u64> {
    let (sets, all, per_set, operations) =
        (int(limits::semmni()), int(limits::semmns()), int(limits::semmsl()), int(limits::semopm()));
    // Three of them are made up of others on Linux; they limit nothing.
    let ints = [all, sets, all, all, per_set, operations, operations, semusz, MAX_VALUE as u32, semaem];
    write_ints(addr, &ints)?;
    Ok(u64::from(sem::highest_index()))
}

/// `struct semid64_ds`.
fn stat(id: i32, addr: UserAddr, lookup: Lookup) -> Result<u64> {
    let set = if lookup == Lookup::Id { sem::find(id) } else { sem::at_index(id) }?;
    if lookup != Lookup::IndexUnchecked {
        set.permissions().check(Want::READ)?;
    }
    let (operated_s, changed_s) = (set.operated_s.get().cast_unsigned(), set.changed_s.get().cast_unsigned());
    write_object(addr, set.permissions(), &[operated_s, 0, changed_s, 0, set.count as u64, 0, 0])?;
    Ok(if lookup == Lookup::Id { 0 } else { set.permissions().id as u64 })
}

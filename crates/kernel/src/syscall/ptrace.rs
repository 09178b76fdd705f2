//! ptrace(2).

use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::mm::addr::UserAddr;
use crate::mm::space::{AddressSpace, Respect};
use crate::mm::user;
use crate::task::ptrace::{self, REGISTER_SETS, RegisterSet};
use crate::task::signal::{SIGINFO_BYTES, SignalSet, USED_BYTES};
use crate::task::thread::Thread;
use alloc::rc::Rc;
use linux_raw_sys::{elf_uapi as elf, general, ptrace as linux};

pub(super) const CALLS: &[Syscall] = &[Syscall::partial(
    general::__NR_ptrace as u16,
    "ptrace",
    "no hardware breakpoints (ENOSPC); EIO for PTRACE_PEEKSIGINFO, PTRACE_SYSEMU, PTRACE_SINGLEBLOCK, PTRACE_ARCH_PRCTL, \
     PTRACE_SET_SYSCALL_INFO, those of seccomp, rseq and dispatch by the program; EINVAL for PTRACE_O_TRACESECCOMP and \
     PTRACE_O_SUSPEND_SECCOMP; PTRACE_TRACEME of a child of init gives EPERM",
    sys_ptrace,
    &[Arg::PtraceRequest, Arg::Pid, Arg::Ptr, Arg::Ptr],
)];

const WORD_BYTES: usize = 8;
/// Room for any set of registers.
const WHOLE: u64 = u64::MAX - 7;

fn sys_ptrace(args: Args) -> Result<u64> {
    // A request beyond an int is none.
    let request = u32::try_from(args.i64(0)).unwrap_or(u32::MAX);
    let (tid, address, data) = (args.i32(1), args.u64(2), args.u64(3));
    match request {
        linux::PTRACE_TRACEME => ptrace::trace_me()?,
        linux::PTRACE_ATTACH => ptrace::attach(tid)?,
        linux::PTRACE_SEIZE if address != 0 => return Err(Errno::EIO),
        linux::PTRACE_SEIZE => ptrace::seize(tid, data)?,
        linux::PTRACE_KILL => ptrace::kill(&ptrace::tracee(tid)?),
        linux::PTRACE_INTERRUPT => ptrace::interrupt(&ptrace::tracee(tid)?)?,
        _ => return of_stopped(request, &ptrace::stopped_tracee(tid)?, address, args.addr(3)),
    }
    Ok(0)
}

/// Requests about a tracee that is stopped.
fn of_stopped(request: u32, tracee: &Rc<Thread>, address: u64, data: UserAddr) -> Result<u64> {
    match request {
        linux::PTRACE_PEEKTEXT | linux::PTRACE_PEEKDATA => {
            let mut word = [0; WORD_BYTES];
            space(tracee)?.read_memory(address, &mut word, Respect::Nothing).map_err(|_| Errno::EIO)?;
            user::write_bytes(data, &word)?;
        }
        linux::PTRACE_POKETEXT | linux::PTRACE_POKEDATA => {
            let word = data.0.to_le_bytes();
            space(tracee)?.write_memory(address, &word, Respect::Nothing).map_err(|_| Errno::EIO)?;
        }
        linux::PTRACE_PEEKUSR => user::write(data, &ptrace::peek_user(tracee, address)?)?,
        linux::PTRACE_POKEUSR => ptrace::poke_user(tracee, address, data.0)?,
        linux::PTRACE_CONT => ptrace::resume(tracee, data.0, false, false)?,
        linux::PTRACE_SYSCALL => ptrace::resume(tracee, data.0, true, false)?,
        linux::PTRACE_SINGLESTEP => ptrace::resume(tracee, data.0, false, true)?,
        linux::PTRACE_LISTEN => ptrace::listen(tracee)?,
        linux::PTRACE_DETACH => ptrace::detach(tracee, data.0)?,
        linux::PTRACE_SETOPTIONS | linux::PTRACE_OLDSETOPTIONS => ptrace::set_options(tracee, data.0)?,
        linux::PTRACE_GETEVENTMSG => user::write(data, &ptrace::event_message(tracee))?,
        linux::PTRACE_GETSIGINFO => {
            let mut info = [0; SIGINFO_BYTES];
            info[..USED_BYTES].copy_from_slice(&ptrace::signal_info(tracee)?);
            user::write_bytes(data, &info)?;
        }
        linux::PTRACE_SETSIGINFO => {
            let mut info = [0; SIGINFO_BYTES];
            user::read_bytes(data, &mut info)?;
            ptrace::set_signal_info(tracee, core::array::from_fn(|n| info[n]))?;
        }
        linux::PTRACE_GETSIGMASK | linux::PTRACE_SETSIGMASK if address != WORD_BYTES as u64 => {
            return Err(Errno::EINVAL);
        }
        linux::PTRACE_GETSIGMASK => user::write(data, &tracee.signals.own_mask().0)?,
        linux::PTRACE_SETSIGMASK => ptrace::set_mask(tracee, SignalSet(user::read(data)?)),
        linux::PTRACE_GETREGS => get(tracee, elf::NT_PRSTATUS, data)?,
        linux::PTRACE_SETREGS => set(tracee, elf::NT_PRSTATUS, data)?,
        linux::PTRACE_GETFPREGS => get(tracee, elf::NT_PRFPREG, data)?,
        linux::PTRACE_SETFPREGS => set(tracee, elf::NT_PRFPREG, data)?,
        linux::PTRACE_GETREGSET | linux::PTRACE_SETREGSET => {
            let [base, len] = user::read::<[u64; 2]>(data)?;
            let set = register_set(address)?;
            let len = transfer(request == linux::PTRACE_SETREGSET, set, tracee, UserAddr(base), len)?;
            user::write(data.offset(WORD_BYTES as u64), &len)?;
        }
        linux::PTRACE_GET_SYSCALL_INFO => {
            let (info, len) = ptrace::call_info(tracee)?;
            user::write_bytes(data, &info[..len.min(usize::try_from(address).unwrap_or(usize::MAX))])?;
            return Ok(len as u64);
        }
        _ => return Err(Errno::EIO),
    }
    Ok(0)
}

fn space(tracee: &Thread) -> Result<Rc<AddressSpace>> {
    tracee.process.try_space().ok_or(Errno::EIO)
}

fn register_set(kind: u64) -> Result<&'static RegisterSet> {
    REGISTER_SETS.iter().find(|set| u64::from(set.kind) == kind).ok_or(Errno::EINVAL)
}

/// Transfers as much of a set as `len` has room for; how much that is.
fn transfer(write: bool, set: &RegisterSet, tracee: &Thread, at: UserAddr, len: u64) -> Result<u64> {
    if !len.is_multiple_of(WORD_BYTES as u64) {
        return Err(Errno::EINVAL);
    }
    let mut bytes = (set.get)(tracee);
    bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
    if write {
        user::read_bytes(at, &mut bytes)?;
        (set.set)(tracee, &bytes)?;
    } else {
        user::write_bytes(at, &bytes)?;
    }
    Ok(bytes.len() as u64)
}

fn get(tracee: &Thread, kind: u32, at: UserAddr) -> Result<()> {
    transfer(false, register_set(kind.into())?, tracee, at, WHOLE).map(drop)
}

fn set(tracee: &Thread, kind: u32, at: UserAddr) -> Result<()> {
    transfer(true, register_set(kind.into())?, tracee, at, WHOLE).map(drop)
}

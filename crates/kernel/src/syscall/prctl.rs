//! prctl(2), arch_prctl(2) and personality(2).

use super::ids::apply;
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::mm::addr::{USER_END, UserAddr};
use crate::mm::user;
use crate::task::creds::{self, Credentials};
use crate::task::current;
use crate::task::load::ADDR_NO_RANDOMIZE;
use crate::task::signal::Signal;
use crate::task::thread::{NAME_BYTES, Thread};
use linux_raw_sys::{general as linux, prctl};

pub(super) const CALLS: &[Syscall] = &[
    Syscall::partial(
        linux::__NR_prctl as u16,
        "prctl",
        "names of memory, seccomp filters, PR_SET_MM, core scheduling, speculation and others give EINVAL",
        sys_prctl,
        &[Arg::PrctlOp, Arg::Hex, Arg::Hex, Arg::Hex, Arg::Hex],
    ),
    Syscall::partial(
        linux::__NR_arch_prctl as u16,
        "arch_prctl",
        "no CPUID faulting, no permission for dynamic XSAVE features, no shadow stacks",
        sys_arch_prctl,
        &[Arg::ArchPrctlOp, Arg::Ptr],
    ),
    Syscall::partial(
        linux::__NR_personality as u16,
        "personality",
        "only ADDR_NO_RANDOMIZE",
        sys_personality,
        &[Arg::Hex],
    ),
];

/// 0 or 1, else EINVAL.
fn flag(value: u64) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Errno::EINVAL),
    }
}

/// EINVAL unless arguments `from` to 4 are zero.
fn rest_is_zero(args: Args, from: usize) -> Result<()> {
    if (from..5).all(|n| args.u64(n) == 0) { Ok(()) } else { Err(Errno::EINVAL) }
}

fn sys_prctl(args: Args) -> Result<u64> {
    let me = current();
    let (process, value) = (&me.process, args.u64(1));
    match args.u32(0) {
        prctl::PR_SET_NAME => {
            let mut name = [0; NAME_BYTES];
            read_name(args.addr(1), &mut name)?;
            me.set_name(&name);
        }
        prctl::PR_GET_NAME => {
            let mut name = me.name();
            name.resize(NAME_BYTES, 0);
            user::write_bytes(args.addr(1), &name)?;
        }
        prctl::PR_SET_PDEATHSIG => me.parent_death_signal.set(match u32::try_from(value) {
            Ok(0) => None,
            Ok(signo) => Some(Signal::new(signo).ok_or(Errno::EINVAL)?),
            Err(_) => return Err(Errno::EINVAL),
        }),
        prctl::PR_GET_PDEATHSIG => {
            let signo = me.parent_death_signal.get().map_or(0, Signal::number);
            user::write(args.addr(1), &signo)?;
        }
        prctl::PR_SET_DUMPABLE => process.dumpable.set(flag(value)?),
        prctl::PR_GET_DUMPABLE => return Ok(u64::from(process.dumpable.get())),
        prctl::PR_SET_CHILD_SUBREAPER => process.child_subreaper.set(value != 0),
        prctl::PR_GET_CHILD_SUBREAPER => user::write(args.addr(1), &u32::from(process.child_subreaper.get()))?,
        prctl::PR_SET_NO_NEW_PRIVS => {
            rest_is_zero(args, 2)?;
            if value != 1 {
                return Err(Errno::EINVAL);
            }
            me.no_new_privs.set(true);
        }
        prctl::PR_GET_NO_NEW_PRIVS => {
            rest_is_zero(args, 1)?;
            return Ok(u64::from(me.no_new_privs.get()));
        }
        prctl::PR_SET_TIMERSLACK => {
            let (_, default_ns) = me.timer_slack_ns.get();
            let wanted = if value.cast_signed() <= 0 { default_ns } else { value };
            me.timer_slack_ns.set((wanted, default_ns));
        }
        prctl::PR_GET_TIMERSLACK => return Ok(me.timer_slack_ns.get().0),
        prctl::PR_GET_TID_ADDRESS => user::write(args.addr(1), &me.clear_child_tid.get().0)?,
        prctl::PR_GET_TSC => user::write(args.addr(1), &prctl::PR_TSC_ENABLE)?,
        prctl::PR_SET_TSC if value == u64::from(prctl::PR_TSC_ENABLE) => {}
        prctl::PR_GET_TIMING => return Ok(u64::from(prctl::PR_TIMING_STATISTICAL)),
        prctl::PR_SET_TIMING if value == u64::from(prctl::PR_TIMING_STATISTICAL) => {}
        // No filter is ever in force.
        prctl::PR_GET_SECCOMP => return Ok(0),
        _ => return capabilities(&me, args),
    }
    Ok(0)
}

/// The name ends at a NUL, which need not be within mapped memory's end.
fn read_name(at: UserAddr, name: &mut [u8; NAME_BYTES]) -> Result<()> {
    for (n, byte) in name.iter_mut().enumerate().take(NAME_BYTES - 1) {
        *byte = user::read(at.offset(n as u64))?;
        if *byte == 0 {
            break;
        }
    }
    Ok(())
}

fn capability(value: u64) -> Result<u64> {
    if value <= u64::from(linux::CAP_LAST_CAP) { Ok(1 << value) } else { Err(Errno::EINVAL) }
}

/// The operations about capabilities.
fn capabilities(me: &Thread, args: Args) -> Result<u64> {
    let creds = me.creds();
    let value = args.u64(1);
    match args.u32(0) {
        prctl::PR_CAPBSET_READ => return Ok(u64::from(creds.bounding & capability(value)? != 0)),
        prctl::PR_CAPBSET_DROP => {
            let bit = capability(value)?;
            if !creds.has(linux::CAP_SETPCAP) {
                return Err(Errno::EPERM);
            }
            apply(Credentials { bounding: creds.bounding & !bit, ..(*creds).clone() });
        }
        prctl::PR_GET_KEEPCAPS => return Ok(u64::from(creds.secure(creds::SECBIT_KEEP_CAPS))),
        prctl::PR_SET_KEEPCAPS => {
            let on = flag(value)?;
            if creds.secure(creds::SECBIT_KEEP_CAPS_LOCKED) {
                return Err(Errno::EPERM);
            }
            let others = creds.securebits & !creds::SECBIT_KEEP_CAPS;
            let securebits = others | if on { creds::SECBIT_KEEP_CAPS } else { 0 };
            apply(Credentials { securebits, ..(*creds).clone() });
        }
        prctl::PR_GET_SECUREBITS => return Ok(u64::from(creds.securebits)),
        prctl::PR_SET_SECUREBITS => {
            let new = u32::try_from(value).ok().filter(|bits| bits & !creds::SECBITS_ALL == 0).ok_or(Errno::EPERM)?;
            // A lock keeps itself and the flag below it.
            let locks = creds.securebits & creds::SECBITS_LOCKS;
            if (creds.securebits ^ new) & (locks >> 1 | locks) & !(new & creds::SECBITS_LOCKS & !locks) != 0
                || !creds.has(linux::CAP_SETPCAP)
            {
                return Err(Errno::EPERM);
            }
            apply(Credentials { securebits: new, ..(*creds).clone() });
        }
        prctl::PR_CAP_AMBIENT => return ambient(&creds, args),
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn ambient(creds: &Credentials, args: Args) -> Result<u64> {
    rest_is_zero(args, 3)?;
    let operation = args.u32(1);
    if operation == prctl::PR_CAP_AMBIENT_CLEAR_ALL {
        rest_is_zero(args, 2)?;
        apply(Credentials { ambient: 0, ..creds.clone() });
        return Ok(0);
    }
    let bit = capability(args.u64(2))?;
    let new = match operation {
        prctl::PR_CAP_AMBIENT_IS_SET => return Ok(u64::from(creds.ambient & bit != 0)),
        prctl::PR_CAP_AMBIENT_LOWER => creds.ambient & !bit,
        prctl::PR_CAP_AMBIENT_RAISE => {
            if creds.permitted & creds.inheritable & bit == 0 || creds.secure(creds::SECBIT_NO_CAP_AMBIENT_RAISE) {
                return Err(Errno::EPERM);
            }
            creds.ambient | bit
        }
        _ => return Err(Errno::EINVAL),
    };
    apply(Credentials { ambient: new, ..creds.clone() });
    Ok(0)
}

/// Codes of arch_prctl(2), of which the constants at hand have one.
mod arch {
    pub(super) const SET_GS: u32 = 0x1001;
    pub(super) const SET_FS: u32 = 0x1002;
    pub(super) const GET_FS: u32 = 0x1003;
    pub(super) const GET_GS: u32 = 0x1004;
    pub(super) const GET_CPUID: u32 = 0x1011;
    pub(super) const SET_CPUID: u32 = 0x1012;
}

fn sys_arch_prctl(args: Args) -> Result<u64> {
    let me = current();
    let value = args.u64(1);
    match args.u32(0) {
        arch::SET_FS | arch::SET_GS if value >= USER_END => return Err(Errno::EPERM),
        arch::SET_FS => me.state.set_fs_base(value),
        arch::SET_GS => me.state.set_gs_base(value),
        arch::GET_FS => user::write(args.addr(1), &me.state.fs_base())?,
        arch::GET_GS => user::write(args.addr(1), &me.state.gs_base())?,
        // The instruction can't be made to fault.
        arch::GET_CPUID => return Ok(1),
        arch::SET_CPUID => return Err(Errno::ENODEV),
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn sys_personality(args: Args) -> Result<u64> {
    const ASK: u32 = u32::MAX;
    let personality = &current().process.personality;
    let old = personality.get();
    match args.u32(0) {
        ASK => {}
        new if new & !ADDR_NO_RANDOMIZE == 0 => personality.set(new),
        _ => return Err(Errno::EINVAL),
    }
    Ok(u64::from(old))
}

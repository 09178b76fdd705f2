//! The system as a whole, and what a thread takes apart: uname(2), membarrier(2), unshare(2).

use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::fs::proc::namespace::NamespaceFile;
use crate::ipc::sem::UndoList;
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::fork::CloneFlags;
use crate::task::status::WaitStatus;
use crate::task::{current, init, pidfd, uts};
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use linux_raw_sys::general as linux;
use linux_raw_sys::general::membarrier_cmd as command;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::full(linux::__NR_uname as u16, "uname", sys_uname, &[Arg::Out(&Arg::Utsname)]),
    Syscall::full(linux::__NR_sethostname as u16, "sethostname", sys_sethostname, &[Arg::BufIn, Arg::Size]),
    Syscall::full(linux::__NR_setdomainname as u16, "setdomainname", sys_setdomainname, &[Arg::BufIn, Arg::Size]),
    Syscall::partial(
        linux::__NR_membarrier as u16,
        "membarrier",
        "no restartable sequences",
        sys_membarrier,
        &[Arg::Int, Arg::Hex, Arg::Int],
    ),
    Syscall::partial(
        linux::__NR_unshare as u16,
        "unshare",
        "no namespaces (CLONE_NEW* gives EPERM)",
        sys_unshare,
        &[Arg::CloneFlags],
    ),
    Syscall::partial(linux::__NR_setns as u16, "setns", "no namespaces (EPERM)", sys_setns, &[Arg::Fd, Arg::Hex]),
    Syscall::partial(
        linux::__NR_reboot as u16,
        "reboot",
        "the VM ends, whether it is to be halted, powered off or restarted",
        sys_reboot,
        &[Arg::Hex, Arg::Hex, Arg::Hex],
    ),
    Syscall::partial(
        linux::__NR_syslog as u16,
        "syslog",
        "only reading the whole buffer and its size; nothing can be cleared",
        sys_syslog,
        &[Arg::Int, Arg::Ptr, Arg::Int],
    ),
];

/// Bytes of each field of `struct new_utsname`.
const FIELD_BYTES: usize = uts::MAX_NAME_BYTES + 1;

fn sys_uname(args: Args) -> Result<u64> {
    let (host, domain) = (uts::host_name(), uts::domain_name());
    let fields: [&[u8]; 6] = [
        uts::SYSTEM.as_bytes(),
        &host,
        uts::RELEASE.as_bytes(),
        uts::VERSION.as_bytes(),
        uts::MACHINE.as_bytes(),
        &domain,
    ];
    let mut raw = [0; 6 * FIELD_BYTES];
    for (room, field) in raw.chunks_exact_mut(FIELD_BYTES).zip(fields) {
        let len = field.len().min(FIELD_BYTES - 1);
        room[..len].copy_from_slice(&field[..len]);
    }
    user::write_bytes(args.addr(0), &raw)?;
    Ok(0)
}

fn read_name(args: Args) -> Result<Vec<u8>> {
    if !current().creds().has(linux::CAP_SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let len = usize::try_from(args.i32(1)).ok().filter(|len| *len <= uts::MAX_NAME_BYTES).ok_or(Errno::EINVAL)?;
    let mut name = vec![0; len];
    user::read_bytes(args.addr(0), &mut name)?;
    Ok(name)
}

fn sys_sethostname(args: Args) -> Result<u64> {
    uts::set_host_name(&read_name(args)?)?;
    Ok(0)
}

fn sys_setdomainname(args: Args) -> Result<u64> {
    uts::set_domain_name(&read_name(args)?)?;
    Ok(0)
}

/// What the second number of reboot(2) may be.
const REBOOT_MAGIC: [u32; 4] =
    [linux::LINUX_REBOOT_MAGIC2, linux::LINUX_REBOOT_MAGIC2A, linux::LINUX_REBOOT_MAGIC2B, linux::LINUX_REBOOT_MAGIC2C];

fn sys_reboot(args: Args) -> Result<u64> {
    if !current().creds().has(linux::CAP_SYS_BOOT) {
        return Err(Errno::EPERM);
    }
    if args.u32(0) != linux::LINUX_REBOOT_MAGIC1 || !REBOOT_MAGIC.contains(&args.u32(1)) {
        return Err(Errno::EINVAL);
    }
    match args.u32(2) {
        linux::LINUX_REBOOT_CMD_CAD_ON | linux::LINUX_REBOOT_CMD_CAD_OFF => Ok(0),
        linux::LINUX_REBOOT_CMD_RESTART
        | linux::LINUX_REBOOT_CMD_RESTART2
        | linux::LINUX_REBOOT_CMD_HALT
        | linux::LINUX_REBOOT_CMD_POWER_OFF => {
            init::end_system(WaitStatus::exited(0));
            Ok(0)
        }
        // No hibernation, no other kernel.
        _ => Err(Errno::EINVAL),
    }
}

/// With one processor every entry into the kernel is a barrier for all threads; what is left is bookkeeping.
fn sys_membarrier(args: Args) -> Result<u64> {
    const REGISTRATIONS: u32 = command::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED as u32
        | command::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED as u32
        | command::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE as u32;
    const BARRIERS: u32 = command::MEMBARRIER_CMD_GLOBAL as u32
        | command::MEMBARRIER_CMD_GLOBAL_EXPEDITED as u32
        | command::MEMBARRIER_CMD_PRIVATE_EXPEDITED as u32
        | command::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE as u32
        | command::MEMBARRIER_CMD_GET_REGISTRATIONS as u32;
    const PRIVATE: u32 = command::MEMBARRIER_CMD_PRIVATE_EXPEDITED as u32;
    const SYNC_CORE: u32 = command::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE as u32;
    if args.u32(1) != 0 {
        return Err(Errno::EINVAL);
    }
    let registered = &current().process.membarrier;
    match args.u32(0) {
        0 => Ok(u64::from(REGISTRATIONS | BARRIERS)),
        cmd if cmd.is_power_of_two() && cmd & REGISTRATIONS != 0 => {
            registered.set(registered.get() | cmd);
            Ok(0)
        }
        // The registration's number is twice the barrier's.
        cmd @ (PRIVATE | SYNC_CORE) if registered.get() & cmd << 1 == 0 => Err(Errno::EPERM),
        cmd if cmd == command::MEMBARRIER_CMD_GET_REGISTRATIONS as u32 => Ok(u64::from(registered.get())),
        cmd if cmd.is_power_of_two() && cmd & BARRIERS != 0 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

fn sys_unshare(args: Args) -> Result<u64> {
    let known = CloneFlags::NAMESPACES
        | CloneFlags::FS
        | CloneFlags::FILES
        | CloneFlags::SYSVSEM
        | CloneFlags::THREAD
        | CloneFlags::SIGHAND
        | CloneFlags::VM;
    let flags = CloneFlags::from_bits(args.u64(0)).filter(|flags| known.contains(*flags)).ok_or(Errno::EINVAL)?;
    if flags.intersects(CloneFlags::NAMESPACES) {
        return Err(Errno::EPERM);
    }
    let me = current();
    let alone = me.process.thread_count() == 1;
    if flags.intersects(CloneFlags::THREAD | CloneFlags::SIGHAND | CloneFlags::VM) && !alone {
        return Err(Errno::EINVAL);
    }
    if flags.contains(CloneFlags::SYSVSEM) {
        UndoList::leave(&me);
    }
    if flags.contains(CloneFlags::FS)
        && let Some(fs) = me.set_fs(None)
    {
        me.set_fs(Some(if Rc::strong_count(&fs) > 1 { fs.duplicate() } else { fs }));
    }
    if flags.contains(CloneFlags::FILES) {
        me.unshare_files();
    }
    Ok(0)
}

fn sys_setns(args: Args) -> Result<u64> {
    let file = current().files().opened(args.i32(0))?;
    let wanted = CloneFlags::from_bits(u64::from(args.u32(1)));
    let wanted = wanted.filter(|flags| CloneFlags::NAMESPACES.contains(*flags)).ok_or(Errno::EINVAL)?;
    match NamespaceFile::kind_of(&file) {
        Some(kind) if wanted.is_empty() || wanted == kind => Err(Errno::EPERM),
        // A descriptor of a process names all its namespaces, of which some have to be asked for.
        None if pidfd::process_of(&file).is_ok() && !wanted.is_empty() => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

fn sys_syslog(args: Args) -> Result<u64> {
    /// Actions of syslog(2).
    const CLOSE: i32 = 0;
    const OPEN: i32 = 1;
    const READ_ALL: i32 = 3;
    const SIZE_UNREAD: i32 = 9;
    const SIZE_BUFFER: i32 = 10;
    if !current().creds().has(linux::CAP_SYSLOG) {
        return Err(Errno::EPERM);
    }
    let text: Vec<u8> =
        crate::task::log::messages().iter().flat_map(|line| alloc::format!("<6>{line}\n").into_bytes()).collect();
    match args.i32(0) {
        CLOSE | OPEN => Ok(0),
        READ_ALL => {
            let room = usize::try_from(args.i32(2)).map_err(|_| Errno::EINVAL)?;
            if args.addr(1) == UserAddr::NULL {
                return Err(Errno::EINVAL);
            }
            let tail = &text[text.len() - text.len().min(room)..];
            user::write_bytes(args.addr(1), tail)?;
            Ok(tail.len() as u64)
        }
        SIZE_UNREAD => Ok(text.len() as u64),
        SIZE_BUFFER => Ok(crate::task::log::CAPACITY_BYTES as u64),
        _ => Err(Errno::EINVAL),
    }
}

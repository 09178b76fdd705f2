//! memfd_create(2).

use super::event::install;
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::event::memfd::{MAX_NAME_BYTES, memfd};
use crate::fs::file::OpenFlags;
use crate::mm::user;
use linux_raw_sys::general::{__NR_memfd_create, MFD_ALLOW_SEALING, MFD_CLOEXEC, MFD_EXEC, MFD_NOEXEC_SEAL};

pub(super) const CALLS: &[Syscall] = &[Syscall::partial(
    __NR_memfd_create as u16,
    "memfd_create",
    "no huge pages (EINVAL)",
    sys_memfd_create,
    &[Arg::Path, Arg::Hex],
)];

fn sys_memfd_create(args: Args) -> Result<u64> {
    let flags = args.u32(1);
    let exclusive = MFD_EXEC | MFD_NOEXEC_SEAL;
    if flags & !(MFD_CLOEXEC | MFD_ALLOW_SEALING | exclusive) != 0 || flags & exclusive == exclusive {
        return Err(Errno::EINVAL);
    }
    let name = user::read_cstr(args.addr(0), MAX_NAME_BYTES, Errno::EINVAL)?;
    let file = memfd(&name, flags & MFD_ALLOW_SEALING != 0, flags & MFD_NOEXEC_SEAL != 0)?;
    install(file, if flags & MFD_CLOEXEC != 0 { OpenFlags::CLOEXEC } else { OpenFlags::empty() })
}

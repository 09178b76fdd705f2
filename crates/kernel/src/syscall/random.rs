//! getrandom(2).

use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::mm::user;
use crate::random;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[Syscall::full(
    linux::__NR_getrandom as u16,
    "getrandom",
    sys_getrandom,
    &[Arg::BufOut, Arg::Size, Arg::RandomFlags],
)];

fn sys_getrandom(args: Args) -> Result<u64> {
    let flags = args.u32(2);
    let both = linux::GRND_RANDOM | linux::GRND_INSECURE;
    if flags & !(linux::GRND_NONBLOCK | both) != 0 || flags & both == both {
        return Err(Errno::EINVAL);
    }
    let len = args.usize(1).min(0x01ff_ffff);
    let mut done = 0;
    let mut buffer = [0; 256];
    while done < len {
        let n = (len - done).min(buffer.len());
        random::fill(&mut buffer[..n]);
        match user::write_bytes(args.addr(0).offset(done as u64), &buffer[..n]) {
            Ok(()) => done += n,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done as u64)
}

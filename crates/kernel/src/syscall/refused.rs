//! Calls that Linux refuses as it is configured for containers: with the error that such a Linux gives, before it looks at
//! any argument.

use super::table::{Arg, Args, Support, Syscall};
use crate::errno::{Errno, Result};
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    refusal(linux::__NR_io_uring_setup, "io_uring_setup", "as with kernel.io_uring_disabled=2", eperm),
    refusal(linux::__NR_fanotify_init, "fanotify_init", "as without CAP_SYS_ADMIN", eperm),
    refusal(linux::__NR_userfaultfd, "userfaultfd", "as with vm.unprivileged_userfaultfd=0", eperm),
    refusal(linux::__NR_perf_event_open, "perf_event_open", "as with kernel.perf_event_paranoid=4", eacces),
    refusal(linux::__NR_bpf, "bpf", "as with kernel.unprivileged_bpf_disabled=2", eperm),
];

const fn refusal(number: u32, name: &'static str, why: &'static str, handler: fn(Args) -> Result<u64>) -> Syscall {
    let args = &[Arg::Hex, Arg::Hex, Arg::Hex];
    Syscall { number: number as u16, name, support: Support::Refused(why), handler, args }
}

fn eperm(_: Args) -> Result<u64> {
    Err(Errno::EPERM)
}

fn eacces(_: Args) -> Result<u64> {
    Err(Errno::EACCES)
}

//! One argument as text.

use super::flags::{self, bits, one};
use super::structures as st;
use super::text::{buffer, octal, path, pointer, strings};
use crate::errno::Result;
use crate::syscall::table::Arg;
use alloc::string::String;
use core::fmt::Write;
use linux_raw_sys::general as linux;

/// A call as far as it has come.
pub(super) struct Call<'a> {
    /// What its arguments are.
    pub kinds: &'a [Arg],
    /// Their values.
    pub args: &'a [u64; 6],
    /// There once the call has returned.
    pub result: Option<&'a Result<u64>>,
}

impl Call<'_> {
    /// The result of a call that has succeeded.
    fn done(&self) -> Option<u64> {
        self.result.and_then(|result| result.as_ref().ok()).copied()
    }

    fn arg(&self, n: usize) -> u64 {
        self.args.get(n).copied().unwrap_or(0)
    }
}

/// Whether the call fills it in, so that it can be shown only afterwards.
pub(super) fn is_output(kind: Arg) -> bool {
    matches!(
        kind,
        Arg::Out(_)
            | Arg::BufOut
            | Arg::IovecOut
            | Arg::Stat
            | Arg::Statx
            | Arg::Dirents
            | Arg::FdPair
            | Arg::WaitStatus
            | Arg::PollFds
            | Arg::FdSet
            | Arg::EpollEvents
            | Arg::FcntlArg
            | Arg::IoctlArg
    )
}

/// Whether argument `n` says nothing: a mode, where the flags before it make no file.
fn is_idle(call: &Call<'_>, n: usize) -> bool {
    let makes_files = u64::from(linux::O_CREAT | (linux::O_TMPFILE & !linux::O_DIRECTORY));
    call.kinds[n] == Arg::Mode && n > 0 && call.kinds[n - 1] == Arg::OpenFlags && call.arg(n - 1) & makes_files == 0
        || call.kinds[n] == Arg::FcntlArg && flags::takes_no_argument(call.arg(n - 1))
}

/// Appends argument `n`.
pub(super) fn show(out: &mut String, call: &Call<'_>, n: usize) {
    if is_idle(call, n) {
        return;
    }
    if n > 0 {
        out.push_str(", ");
    }
    value(out, call, n, call.kinds[n]);
}

fn value(out: &mut String, call: &Call<'_>, n: usize, kind: Arg) {
    let value = call.args[n];
    let next = call.arg(n + 1);
    match kind {
        Arg::Out(kind) if call.done().is_some() => self::value(out, call, n, *kind),
        Arg::Out(_) | Arg::Ptr => pointer(out, value),
        Arg::Int | Arg::Fd | Arg::Pid | Arg::Uid => {
            let _ = write!(out, "{}", value as i32);
        }
        Arg::Size => {
            let _ = write!(out, "{value}");
        }
        Arg::Hex => {
            let _ = write!(out, "{value:#x}");
        }
        Arg::Mode => octal(out, value & 0xffff_ffff),
        Arg::DirFd if value as i32 == linux::AT_FDCWD => out.push_str("AT_FDCWD"),
        Arg::DirFd => {
            let _ = write!(out, "{}", value as i32);
        }
        Arg::Path => path(out, value),
        Arg::Strings => strings(out, value),
        Arg::BufIn => buffer(out, value, next as usize),
        Arg::BufOut => match call.done() {
            Some(len) => buffer(out, value, len as usize),
            None => pointer(out, value),
        },
        Arg::OpenFlags => flags::open(out, value),
        Arg::CloneFlags => {
            bits(out, value & !0xff, flags::CLONE, "0");
            if value & 0xff != 0 {
                out.push('|');
                st::signal(out, value & 0xff);
            }
        }
        Arg::FutexOp => {
            let both = u64::from(linux::FUTEX_PRIVATE_FLAG | linux::FUTEX_CLOCK_REALTIME);
            one(out, value & !both, flags::FUTEX);
            if value & both != 0 {
                out.push('|');
                bits(out, value & both, flags::FUTEX_FLAGS, "");
            }
        }
        Arg::SocketType => {
            one(out, value & 0xf, flags::SOCKET_TYPE);
            if value & !0xf != 0 {
                out.push('|');
                bits(out, value & !0xf, flags::SOCKET_FLAGS, "");
            }
        }
        Arg::SocketOption => one(out, value, flags::socket_options(call.arg(n - 1))),
        Arg::FcntlArg => st::fcntl_argument(out, call.arg(n - 1), value, call.done().is_some()),
        Arg::IoctlArg => st::ioctl_argument(out, call.arg(n - 1), value, call.done().is_some()),
        _ => match flags::names_of(kind) {
            Some((names, true)) => bits(out, value & 0xffff_ffff, names, "0"),
            Some((names, false)) => one(out, value & 0xffff_ffff, names),
            None => structure(out, call, n, kind),
        },
    }
}

fn structure(out: &mut String, call: &Call<'_>, n: usize, kind: Arg) {
    let value = call.args[n];
    let next = call.arg(n + 1);
    let done = call.done();
    if value == 0 && kind != Arg::Signal {
        return out.push_str("NULL");
    }
    let shown = match kind {
        Arg::IovecIn => st::iovec(out, value, next as usize, usize::MAX),
        Arg::IovecOut => st::iovec(out, value, next as usize, done.unwrap_or(0) as usize),
        Arg::Signal => {
            st::signal(out, value & 0xffff_ffff);
            Some(())
        }
        Arg::SigSet => st::signal_set(out, value),
        Arg::SigAction => st::signal_action(out, value),
        Arg::SigInfo => st::signal_info_at(out, value),
        Arg::SigEvent => st::signal_event(out, value),
        Arg::SigStack => st::signal_stack(out, value),
        Arg::Timespec => st::time(out, value, "tv_nsec"),
        Arg::Timeval => st::time(out, value, "tv_usec"),
        Arg::Itimerspec => st::timer(out, value, "tv_nsec"),
        Arg::Itimerval => st::timer(out, value, "tv_usec"),
        Arg::CloneArgs => st::clone_args(out, value, next as usize),
        Arg::EpollEvent => st::epoll_events(out, value, None),
        Arg::EpollEvents => done.and_then(|count| st::epoll_events(out, value, Some(count))),
        Arg::PollFds => st::poll_fds(out, value, next as usize, done.is_some()),
        Arg::FdSet => st::fd_set(out, value, call.arg(0) as usize),
        Arg::SockAddr => st::socket_address(out, value),
        Arg::MsgHdr => st::message(out, value, done),
        Arg::WaitStatus => done.filter(|pid| *pid > 0).and_then(|_| st::wait_status(out, value)),
        Arg::Rlimit => st::limits(out, value),
        Arg::Rusage => st::usage(out, value),
        Arg::Utsname => st::system_name(out, value),
        Arg::IntAt => st::int_at(out, value),
        Arg::LongAt => st::long_at(out, value),
        Arg::Stat => done.and_then(|_| st::stat(out, value)),
        Arg::Statx => done.and_then(|_| st::statx(out, value)),
        Arg::Dirents => done.and_then(|len| st::directory_entries(out, value, len)),
        Arg::FdPair => done.and_then(|_| st::descriptor_pair(out, value)),
        _ => None,
    };
    if shown.is_none() {
        pointer(out, value);
    }
}

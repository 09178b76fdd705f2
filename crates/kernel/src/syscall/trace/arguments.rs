//! One argument as text.

use super::flags::{self, bits, one};
use crate::errno::Result;
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::syscall::table::Arg;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::fmt::Write;

/// Bytes of strings and buffers that are shown, as with strace's default.
const SHOWN_BYTES: usize = 32;
/// Paths are shown whole up to this.
const SHOWN_PATH_BYTES: usize = 256;

/// Whether the call fills it in, so that it can be shown only afterwards.
pub(super) fn is_output(kind: Arg) -> bool {
    matches!(
        kind,
        Arg::BufOut | Arg::IovecOut | Arg::Stat | Arg::Dirents | Arg::FdPair | Arg::WaitStatus | Arg::PollFds
    )
}

fn quoted(out: &mut String, bytes: &[u8], more: bool) {
    out.push('"');
    for byte in bytes {
        let _ = match byte {
            b'\n' => write!(out, "\\n"),
            b'\t' => write!(out, "\\t"),
            b'\r' => write!(out, "\\r"),
            b'"' | b'\\' => write!(out, "\\{}", *byte as char),
            0x20..0x7f => write!(out, "{}", *byte as char),
            _ => write!(out, "\\{byte:o}"),
        };
    }
    out.push('"');
    if more {
        out.push_str("...");
    }
}

fn buffer(out: &mut String, addr: u64, len: usize) {
    let mut bytes = vec![0; len.min(SHOWN_BYTES)];
    match user::read_bytes(UserAddr(addr), &mut bytes) {
        Ok(()) => quoted(out, &bytes, len > SHOWN_BYTES),
        Err(_) => pointer(out, addr),
    }
}

fn pointer(out: &mut String, addr: u64) {
    let _ = if addr == 0 { write!(out, "NULL") } else { write!(out, "{addr:#x}") };
}

fn path(out: &mut String, addr: u64) {
    match user::read_cstr(UserAddr(addr), SHOWN_PATH_BYTES, crate::errno::Errno::ENAMETOOLONG) {
        Ok(text) => quoted(out, &text, false),
        Err(_) => pointer(out, addr),
    }
}

fn strings(out: &mut String, addr: u64) {
    out.push('[');
    for n in 0..8u64 {
        match user::read::<u64>(UserAddr(addr).offset(8 * n)) {
            Ok(0) | Err(_) => break,
            Ok(string) => {
                if n > 0 {
                    out.push_str(", ");
                }
                path(out, string);
            }
        }
    }
    out.push(']');
}

fn pair_of_u64(out: &mut String, addr: u64, names: (&str, &str)) {
    match user::read::<[i64; 2]>(UserAddr(addr)) {
        Ok([first, second]) => {
            let _ = write!(out, "{{{}={first}, {}={second}}}", names.0, names.1);
        }
        Err(_) => pointer(out, addr),
    }
}

fn signal(out: &mut String, number: u64) {
    let _ = match number {
        1..=31 => write!(out, "{}", flags::SIGNALS[number as usize - 1]),
        32..=64 => write!(out, "SIGRT_{}", number - 32),
        _ => write!(out, "{number}"),
    };
}

fn signal_set(out: &mut String, addr: u64) {
    let Ok(set) = user::read::<u64>(UserAddr(addr)) else { return pointer(out, addr) };
    // The shorter of the set and its complement, as strace does.
    let (set, complement) = if set.count_ones() > 32 { (!set, true) } else { (set, false) };
    out.push_str(if complement { "~[" } else { "[" });
    let mut first = true;
    for number in 1..=64u64 {
        if set >> (number - 1) & 1 == 1 {
            if !core::mem::take(&mut first) {
                out.push(' ');
            }
            signal(out, number);
        }
    }
    out.push(']');
}

fn iovec(out: &mut String, addr: u64, count: usize, mut left: usize) {
    out.push('[');
    for n in 0..count.min(4) as u64 {
        let Ok([base, len]) = user::read::<[u64; 2]>(UserAddr(addr).offset(16 * n)) else { break };
        let shown = (len as usize).min(left);
        left -= shown;
        out.push_str(if n > 0 { ", {iov_base=" } else { "{iov_base=" });
        buffer(out, base, shown);
        let _ = write!(out, ", iov_len={len}}}");
    }
    out.push_str(if count > 4 { ", ...]" } else { "]" });
}

fn socket_address(out: &mut String, addr: u64) {
    let Ok(family) = user::read::<u16>(UserAddr(addr)) else { return pointer(out, addr) };
    let port = || {
        user::read::<[u32; 2]>(UserAddr(addr))
            .map_or(0, |w| u16::from_be_bytes([(w[0] >> 16) as u8, (w[0] >> 24) as u8]))
    };
    out.push_str("{sa_family=");
    one(out, u64::from(family), flags::DOMAIN);
    if family == 1 {
        out.push_str(", sun_path=");
        path(out, addr + 2);
    } else if family == 2 {
        let ip = user::read::<u32>(UserAddr(addr + 4)).unwrap_or(0).to_le_bytes();
        let _ = write!(out, ", {}.{}.{}.{}:{}", ip[0], ip[1], ip[2], ip[3], port());
    } else if family == 10 {
        let mut ip = [0; 16];
        let _ = user::read_bytes(UserAddr(addr + 8), &mut ip);
        let _ = write!(out, ", [{}]:{}", core::net::Ipv6Addr::from(ip), port());
    }
    out.push('}');
}

fn poll_fds(out: &mut String, addr: u64, count: usize, returned: bool) {
    out.push('[');
    for n in 0..count.min(8) as u64 {
        let Ok([fd, events]) = user::read::<[u32; 2]>(UserAddr(addr).offset(8 * n)) else { break };
        let _ = write!(out, "{}{{fd={}, events=", if n > 0 { ", " } else { "" }, fd.cast_signed());
        bits(out, u64::from(events & 0xffff), flags::POLL, "0");
        if returned && events >> 16 != 0 {
            out.push_str(", revents=");
            bits(out, u64::from(events >> 16), flags::POLL, "0");
        }
        out.push('}');
    }
    out.push(']');
}

/// Appends argument `n`; `result` is there after the call.
pub(super) fn show(out: &mut String, kinds: &[Arg], args: &[u64; 6], n: usize, result: Option<&Result<u64>>) {
    if n > 0 {
        out.push_str(", ");
    }
    let value = args[n];
    let next = args.get(n + 1).copied().unwrap_or(0) as usize;
    let done = match result {
        Some(Ok(value)) => Some(*value as usize),
        _ => None,
    };
    match kinds[n] {
        Arg::Int | Arg::Fd | Arg::Pid | Arg::Uid => {
            let _ = write!(out, "{}", value as i32);
        }
        Arg::Size => {
            let _ = write!(out, "{value}");
        }
        Arg::Hex => {
            let _ = write!(out, "{value:#x}");
        }
        Arg::Mode => {
            let _ = write!(out, "{value:#o}");
        }
        Arg::DirFd if value as i32 == -100 => out.push_str("AT_FDCWD"),
        Arg::DirFd => {
            let _ = write!(out, "{}", value as i32);
        }
        Arg::Ptr | Arg::SigAction | Arg::MsgHdr | Arg::Rlimit => pointer(out, value),
        Arg::Path => path(out, value),
        Arg::Strings => strings(out, value),
        Arg::BufIn => buffer(out, value, next),
        Arg::BufOut => match done {
            Some(len) => buffer(out, value, len),
            None => pointer(out, value),
        },
        Arg::IovecIn => iovec(out, value, next, usize::MAX),
        Arg::IovecOut => iovec(out, value, next, done.unwrap_or(0)),
        Arg::Signal => signal(out, value & 0xffff_ffff),
        Arg::SigSet => signal_set(out, value),
        Arg::Timespec => pair_of_u64(out, value, ("tv_sec", "tv_nsec")),
        Arg::Timeval => pair_of_u64(out, value, ("tv_sec", "tv_usec")),
        Arg::ClockId => one(out, value, flags::CLOCK),
        Arg::OpenFlags => {
            out.push_str(["O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"][(value & 3) as usize]);
            if value & !3 != 0 {
                out.push('|');
                bits(out, value & !3, flags::OPEN, "");
            }
        }
        Arg::AtFlags => bits(out, value, flags::AT, "0"),
        Arg::MmapProt => bits(out, value, flags::PROT, "PROT_NONE"),
        Arg::MmapFlags => bits(out, value, flags::MAP, "0"),
        Arg::Madvise => one(out, value, flags::MADV),
        Arg::CloneFlags => {
            bits(out, value & !0xff, flags::CLONE, "0");
            if value & 0xff != 0 {
                out.push('|');
                signal(out, value & 0xff);
            }
        }
        Arg::FutexOp => {
            one(out, value & 0x7f, flags::FUTEX);
            if value & !0x7f != 0 {
                out.push('|');
                bits(out, value & !0x7f, flags::FUTEX_FLAGS, "");
            }
        }
        Arg::EpollOp => one(out, value, flags::EPOLL_OP),
        Arg::EpollEvent => match user::read::<[u32; 2]>(UserAddr(value)) {
            Ok([events, data]) => {
                out.push_str("{events=");
                bits(out, u64::from(events), flags::EPOLL, "0");
                let _ = write!(out, ", data={data:#x}}}");
            }
            Err(_) => pointer(out, value),
        },
        Arg::PollFds => poll_fds(out, value, next, true),
        Arg::FcntlCmd => one(out, value, flags::FCNTL),
        Arg::IoctlCmd => one(out, value & 0xffff_ffff, flags::IOCTL),
        Arg::Whence => one(out, value, flags::WHENCE),
        Arg::SocketDomain => one(out, value, flags::DOMAIN),
        Arg::SocketType => {
            one(out, value & 0xf, flags::SOCKET_TYPE);
            if value & !0xf != 0 {
                out.push('|');
                bits(out, value & !0xf, flags::SOCKET_FLAGS, "");
            }
        }
        Arg::SocketLevel => one(out, value, flags::LEVEL),
        Arg::SockAddr => socket_address(out, value),
        Arg::MsgFlags => bits(out, value, flags::MSG, "0"),
        Arg::WaitOptions => bits(out, value, flags::WAIT, "0"),
        Arg::WaitStatus => match (done, user::read::<i32>(UserAddr(value))) {
            (Some(pid), Ok(status)) if pid > 0 => out.push_str(&format!("[{status:#x}]")),
            _ => pointer(out, value),
        },
        Arg::Resource => one(out, value, flags::RESOURCE),
        Arg::Stat => match (done, user::read::<[u64; 4]>(UserAddr(value))) {
            // st_mode is the low half of the fourth word of struct stat, st_size its seventh word.
            (Some(_), Ok(words)) => {
                let size = user::read::<u64>(UserAddr(value + 48)).unwrap_or(0);
                let _ = write!(out, "{{st_mode={:#o}, st_size={size}}}", words[3] & 0xffff_ffff);
            }
            _ => pointer(out, value),
        },
        Arg::Dirents => match done {
            Some(len) => {
                let _ = write!(out, "{value:#x} /* {len} bytes of entries */");
            }
            None => pointer(out, value),
        },
        Arg::PrctlOp => one(out, value, flags::PRCTL),
        Arg::ArchPrctlOp => one(out, value, flags::ARCH_PRCTL),
        Arg::FdPair => match (done, user::read::<[i32; 2]>(UserAddr(value))) {
            (Some(_), Ok([first, second])) => {
                let _ = write!(out, "[{first}, {second}]");
            }
            _ => pointer(out, value),
        },
    }
}

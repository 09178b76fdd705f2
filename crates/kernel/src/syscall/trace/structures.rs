//! Structures in a program's memory as text. All return `None`, and add nothing, where the memory can't be read.

use super::flags::{self, bits, one};
use super::text::{buffer, octal, path, pointer, quoted};
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::signal::{SIGINFO_BYTES, Signal, SignalInfo, USED_BYTES};
use alloc::string::String;
use core::fmt::Write;
use linux_raw_sys::{general as linux, ioctl};

/// Elements of arrays that are shown.
const SHOWN: usize = 16;

/// `N` bytes at an address.
fn bytes<const N: usize>(addr: u64) -> Option<[u8; N]> {
    let mut all = [0; N];
    user::read_bytes(UserAddr(addr), &mut all).ok().map(|()| all)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn quad(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

/// Elements in brackets; `show` adds one and tells whether it could be read.
fn list(out: &mut String, count: usize, mut show: impl FnMut(&mut String, u64) -> Option<()>) {
    out.push('[');
    for n in 0..count {
        out.push_str(if n > 0 { ", " } else { "" });
        if n == SHOWN {
            out.push_str("...");
            break;
        }
        if show(out, n as u64).is_none() {
            out.push_str("???");
            break;
        }
    }
    out.push(']');
}

pub(super) fn signal(out: &mut String, number: u64) {
    let name = u32::try_from(number).ok().and_then(Signal::new).and_then(Signal::name);
    let _ = match (name, number) {
        (Some(name), _) => write!(out, "{name}"),
        (None, 32..=64) => write!(out, "SIGRT_{}", number - 32),
        _ => write!(out, "{number}"),
    };
}

fn set(out: &mut String, set: u64) {
    // The shorter of the set and its complement.
    let (set, complement) = if set.count_ones() > 32 { (!set, true) } else { (set, false) };
    out.push_str(if complement { "~[" } else { "[" });
    let mut first = true;
    for number in (1..=64u64).filter(|number| set >> (number - 1) & 1 == 1) {
        out.push_str(if core::mem::take(&mut first) { "" } else { " " });
        let mut name = String::new();
        signal(&mut name, number);
        out.push_str(name.strip_prefix("SIG").unwrap_or(&name));
    }
    out.push(']');
}

pub(super) fn signal_set(out: &mut String, addr: u64) -> Option<()> {
    set(out, quad(&bytes::<8>(addr)?, 0));
    Some(())
}

pub(super) fn signal_action(out: &mut String, addr: u64) -> Option<()> {
    let raw = bytes::<32>(addr)?;
    out.push_str("{sa_handler=");
    match quad(&raw, 0) {
        0 => out.push_str("SIG_DFL"),
        1 => out.push_str("SIG_IGN"),
        handler => pointer(out, handler),
    }
    out.push_str(", sa_mask=");
    set(out, quad(&raw, 24));
    out.push_str(", sa_flags=");
    bits(out, quad(&raw, 8), flags::SA, "0");
    if quad(&raw, 8) & u64::from(linux::SA_RESTORER) != 0 {
        out.push_str(", sa_restorer=");
        pointer(out, quad(&raw, 16));
    }
    out.push('}');
    Some(())
}

/// A siginfo as strace shows it.
pub(super) fn signal_info(out: &mut String, info: &SignalInfo) {
    let number = info.signal.number();
    out.push_str("{si_signo=");
    signal(out, u64::from(number));
    out.push_str(", si_code=");
    match flags::signal_code(number, info.code) {
        Some(name) => out.push_str(name),
        None => {
            let _ = write!(out, "{}", info.code);
        }
    }
    let _ = match (number, info.code) {
        (linux::SIGCHLD, 1..=6) => {
            let _ = write!(out, ", si_pid={}, si_uid={}, si_status=", info.pid(), info.uid());
            if info.code == 1 {
                let _ = write!(out, "{}", info.status());
            } else {
                signal(out, u64::from(info.status().cast_unsigned()));
            }
            let (user, system) = info.child_ticks();
            write!(out, ", si_utime={user}, si_stime={system}")
        }
        (linux::SIGSEGV | linux::SIGBUS | linux::SIGFPE | linux::SIGILL | linux::SIGTRAP, 1..=0x7f) => {
            out.push_str(", si_addr=");
            pointer(out, info.address());
            Ok(())
        }
        (_, linux::SI_TIMER) => {
            write!(out, ", si_timerid={}, si_overrun={}, si_value={:#x}", info.timer_id(), info.overrun(), info.value())
        }
        (_, linux::SI_QUEUE) => {
            write!(out, ", si_pid={}, si_uid={}, si_value={:#x}", info.pid(), info.uid(), info.value())
        }
        (_, ..=0) => write!(out, ", si_pid={}, si_uid={}", info.pid(), info.uid()),
        _ => Ok(()),
    };
    out.push('}');
}

pub(super) fn signal_info_at(out: &mut String, addr: u64) -> Option<()> {
    let raw = bytes::<SIGINFO_BYTES>(addr)?;
    let mut used = [0; USED_BYTES];
    used.copy_from_slice(&raw[..USED_BYTES]);
    match Signal::new(word(&raw, 0)) {
        Some(signal) => signal_info(out, &SignalInfo::from_user(signal, &used)),
        None => out.push_str("{}"),
    }
    Some(())
}

pub(super) fn signal_event(out: &mut String, addr: u64) -> Option<()> {
    let raw = bytes::<24>(addr)?;
    let _ = write!(out, "{{sigev_value={:#x}, sigev_signo=", quad(&raw, 0));
    signal(out, u64::from(word(&raw, 8)));
    out.push_str(", sigev_notify=");
    one(out, u64::from(word(&raw, 12)), flags::SIGEV);
    if u64::from(word(&raw, 12)) == u64::from(linux::SIGEV_THREAD_ID) {
        let _ = write!(out, ", sigev_notify_thread_id={}", word(&raw, 16));
    }
    out.push('}');
    Some(())
}

pub(super) fn signal_stack(out: &mut String, addr: u64) -> Option<()> {
    let raw = bytes::<24>(addr)?;
    out.push_str("{ss_sp=");
    pointer(out, quad(&raw, 0));
    out.push_str(", ss_flags=");
    bits(out, u64::from(word(&raw, 8)), flags::SS, "0");
    let _ = write!(out, ", ss_size={}}}", quad(&raw, 16));
    Some(())
}

/// `struct timespec` or `struct timeval`: the name of the second field tells.
pub(super) fn time(out: &mut String, addr: u64, part: &str) -> Option<()> {
    let raw = bytes::<16>(addr)?;
    let _ = write!(out, "{{tv_sec={}, {part}={}}}", quad(&raw, 0).cast_signed(), quad(&raw, 8).cast_signed());
    Some(())
}

pub(super) fn timer(out: &mut String, addr: u64, part: &str) -> Option<()> {
    bytes::<32>(addr)?;
    out.push_str("{it_interval=");
    time(out, addr, part)?;
    out.push_str(", it_value=");
    time(out, addr + 16, part)?;
    out.push('}');
    Some(())
}

pub(super) fn clone_args(out: &mut String, addr: u64, len: usize) -> Option<()> {
    if len < linux::CLONE_ARGS_SIZE_VER0 as usize {
        return None;
    }
    let raw = bytes::<{ linux::CLONE_ARGS_SIZE_VER0 as usize }>(addr)?;
    out.push_str("{flags=");
    bits(out, quad(&raw, 0), flags::CLONE, "0");
    for (name, at) in [(", child_tid=", 16), (", parent_tid=", 24), (", stack=", 40), (", tls=", 56)] {
        if quad(&raw, at) != 0 {
            out.push_str(name);
            pointer(out, quad(&raw, at));
        }
    }
    out.push_str(", exit_signal=");
    signal(out, quad(&raw, 32));
    let _ = write!(out, ", stack_size={:#x}}}", quad(&raw, 48));
    Some(())
}

fn epoll_event(out: &mut String, addr: u64) -> Option<()> {
    let raw = bytes::<12>(addr)?;
    out.push_str("{events=");
    bits(out, u64::from(word(&raw, 0)), flags::EPOLL, "0");
    let _ = write!(out, ", data={:#x}}}", quad(&raw, 4));
    Some(())
}

/// One event, or an array of `count`.
pub(super) fn epoll_events(out: &mut String, addr: u64, count: Option<u64>) -> Option<()> {
    match count {
        None => epoll_event(out, addr)?,
        Some(count) => list(out, count as usize, |out, n| epoll_event(out, addr + 12 * n)),
    }
    Some(())
}

pub(super) fn poll_fds(out: &mut String, addr: u64, count: usize, returned: bool) -> Option<()> {
    list(out, count, |out, n| {
        let raw = bytes::<8>(addr + 8 * n)?;
        let (events, ready) = (word(&raw, 4) & 0xffff, word(&raw, 4) >> 16);
        let _ = write!(out, "{{fd={}, events=", word(&raw, 0).cast_signed());
        bits(out, u64::from(events), flags::POLL, "0");
        if returned && ready != 0 {
            out.push_str(", revents=");
            bits(out, u64::from(ready), flags::POLL, "0");
        }
        out.push('}');
        Some(())
    });
    Some(())
}

pub(super) fn fd_set(out: &mut String, addr: u64, descriptors: usize) -> Option<()> {
    let raw = bytes::<128>(addr)?;
    out.push('[');
    let mut first = true;
    for fd in (0..descriptors.min(1024)).filter(|fd| raw[fd / 8] >> (fd % 8) & 1 == 1) {
        let _ = write!(out, "{}{fd}", if core::mem::take(&mut first) { "" } else { " " });
    }
    out.push(']');
    Some(())
}

/// `left` bytes of the buffers are valid.
pub(super) fn iovec(out: &mut String, addr: u64, count: usize, mut left: usize) -> Option<()> {
    list(out, count, |out, n| {
        let raw = bytes::<16>(addr + 16 * n)?;
        let len = quad(&raw, 8) as usize;
        let shown = len.min(left);
        left -= shown;
        out.push_str("{iov_base=");
        buffer(out, quad(&raw, 0), shown);
        let _ = write!(out, ", iov_len={len}}}");
        Some(())
    });
    Some(())
}

pub(super) fn socket_address(out: &mut String, addr: u64) -> Option<()> {
    let raw = bytes::<2>(addr)?;
    let family = u16::from_le_bytes(raw);
    out.push_str("{sa_family=");
    one(out, u64::from(family), flags::DOMAIN);
    match family {
        1 => {
            out.push_str(", sun_path=");
            // An abstract name begins with a NUL, and is shown as with `ss`.
            if bytes::<1>(addr + 2)? == [0] {
                out.push('@');
                path(out, addr + 3);
            } else {
                path(out, addr + 2);
            }
        }
        2 => {
            let [_, _, p, q, a, b, c, d] = bytes::<8>(addr)?;
            let port = u16::from_be_bytes([p, q]);
            let _ = write!(out, ", sin_port=htons({port}), sin_addr=inet_addr(\"{a}.{b}.{c}.{d}\")");
        }
        10 => {
            let raw = bytes::<28>(addr)?;
            let mut ip = [0; 16];
            ip.copy_from_slice(&raw[8..24]);
            let (port, ip) = (u16::from_be_bytes([raw[2], raw[3]]), core::net::Ipv6Addr::from(ip));
            let _ = write!(out, ", sin6_port=htons({port}), sin6_addr=\"{ip}\"");
        }
        _ => {}
    }
    out.push('}');
    Some(())
}

/// `done`: how many bytes have been received.
pub(super) fn message(out: &mut String, addr: u64, done: Option<u64>) -> Option<()> {
    let raw = bytes::<56>(addr)?;
    out.push_str("{msg_name=");
    if quad(&raw, 0) == 0 || socket_address(out, quad(&raw, 0)).is_none() {
        pointer(out, quad(&raw, 0));
    }
    let _ = write!(out, ", msg_namelen={}, msg_iov=", word(&raw, 8));
    iovec(out, quad(&raw, 16), quad(&raw, 24) as usize, done.map_or(usize::MAX, |len| len as usize));
    let _ = write!(out, ", msg_iovlen={}, msg_controllen={}, msg_flags=", quad(&raw, 24), quad(&raw, 40));
    bits(out, u64::from(word(&raw, 48)), flags::MSG, "0");
    out.push('}');
    Some(())
}

pub(super) fn wait_status(out: &mut String, addr: u64) -> Option<()> {
    let status = word(&bytes::<4>(addr)?, 0);
    let (low, high) = (status & 0x7f, u64::from(status >> 8 & 0xff));
    let end = match low {
        _ if status == 0xffff => {
            out.push_str("[{WIFCONTINUED(s)");
            ""
        }
        0 => {
            let _ = write!(out, "[{{WIFEXITED(s) && WEXITSTATUS(s) == {high}");
            ""
        }
        0x7f => {
            out.push_str("[{WIFSTOPPED(s) && WSTOPSIG(s) == ");
            signal(out, high);
            ""
        }
        _ => {
            out.push_str("[{WIFSIGNALED(s) && WTERMSIG(s) == ");
            signal(out, u64::from(low));
            if status & 0x80 != 0 { " && WCOREDUMP(s)" } else { "" }
        }
    };
    out.push_str(end);
    out.push_str("}]");
    Some(())
}

pub(super) fn limits(out: &mut String, addr: u64) -> Option<()> {
    let raw = bytes::<16>(addr)?;
    for (name, at) in [("{rlim_cur=", 0), (", rlim_max=", 8)] {
        out.push_str(name);
        let _ = match quad(&raw, at) {
            u64::MAX => write!(out, "RLIM64_INFINITY"),
            limit if limit > 0 && limit.is_multiple_of(1024) => write!(out, "{}*1024", limit / 1024),
            limit => write!(out, "{limit}"),
        };
    }
    out.push('}');
    Some(())
}

pub(super) fn usage(out: &mut String, addr: u64) -> Option<()> {
    bytes::<144>(addr)?;
    out.push_str("{ru_utime=");
    time(out, addr, "tv_usec")?;
    out.push_str(", ru_stime=");
    time(out, addr + 16, "tv_usec")?;
    out.push_str(", ...}");
    Some(())
}

pub(super) fn system_name(out: &mut String, addr: u64) -> Option<()> {
    let raw = bytes::<130>(addr)?;
    for (name, at) in [("{sysname=", 0), (", nodename=", 65)] {
        out.push_str(name);
        let field = &raw[at..at + 65];
        quoted(out, &field[..field.iter().position(|byte| *byte == 0).unwrap_or(65)], false);
    }
    out.push_str(", ...}");
    Some(())
}

pub(super) fn int_at(out: &mut String, addr: u64) -> Option<()> {
    let _ = write!(out, "[{}]", word(&bytes::<4>(addr)?, 0).cast_signed());
    Some(())
}

pub(super) fn long_at(out: &mut String, addr: u64) -> Option<()> {
    let _ = write!(out, "[{:#x}]", quad(&bytes::<8>(addr)?, 0));
    Some(())
}

fn mode(out: &mut String, mode: u32) {
    one(out, u64::from(mode & linux::S_IFMT), flags::FILE_TYPE);
    let special = mode & 0o7000;
    if special != 0 {
        out.push('|');
        bits(out, u64::from(special), flags::FILE_SPECIAL, "");
    }
    out.push('|');
    octal(out, u64::from(mode & 0o777));
}

/// What is told of a file besides its mode: a device's number or a size.
fn size_or_device(out: &mut String, file_mode: u32, prefix: &str, size: u64, device: (u64, u64)) {
    let _ = match file_mode & linux::S_IFMT {
        linux::S_IFCHR | linux::S_IFBLK => {
            write!(out, ", {prefix}_rdev=makedev({:#x}, {:#x}), ...}}", device.0, device.1)
        }
        _ => write!(out, ", {prefix}_size={size}, ...}}"),
    };
}

pub(super) fn stat(out: &mut String, addr: u64) -> Option<()> {
    let raw = bytes::<144>(addr)?;
    let device = quad(&raw, 40);
    let numbers = (crate::fs::device::major(device).into(), crate::fs::device::minor(device).into());
    out.push_str("{st_mode=");
    mode(out, word(&raw, 24));
    size_or_device(out, word(&raw, 24), "st", quad(&raw, 48), numbers);
    Some(())
}

pub(super) fn statx(out: &mut String, addr: u64) -> Option<()> {
    let raw = bytes::<256>(addr)?;
    let file_mode = word(&raw, 28) & 0xffff;
    out.push_str("{stx_mask=");
    bits(out, u64::from(word(&raw, 0)), flags::STATX, "0");
    out.push_str(", stx_mode=");
    mode(out, file_mode);
    let numbers = (u64::from(word(&raw, 128)), u64::from(word(&raw, 132)));
    size_or_device(out, file_mode, "stx", quad(&raw, 40), numbers);
    Some(())
}

pub(super) fn directory_entries(out: &mut String, addr: u64, len: u64) -> Option<()> {
    let (mut at, mut count) = (0, 0);
    while at < len {
        let raw = bytes::<24>(addr + at)?;
        at += u64::from(word(&raw, 16) & 0xffff).max(24);
        count += 1;
    }
    let _ = write!(out, "{addr:#x} /* {count} entries */");
    Some(())
}

pub(super) fn descriptor_pair(out: &mut String, addr: u64) -> Option<()> {
    let raw = bytes::<8>(addr)?;
    let _ = write!(out, "[{}, {}]", word(&raw, 0).cast_signed(), word(&raw, 4).cast_signed());
    Some(())
}

/// What belongs to a command of fcntl(2).
pub(super) fn fcntl_argument(out: &mut String, command: u64, value: u64, done: bool) {
    match command as u32 {
        linux::F_SETFD => bits(out, value, flags::FD, "0"),
        linux::F_SETFL => flags::open(out, value),
        linux::F_SETSIG => signal(out, value),
        linux::F_ADD_SEALS => bits(out, value, flags::SEALS, "0"),
        linux::F_SETLK
        | linux::F_SETLKW
        | linux::F_GETLK
        | linux::F_OFD_SETLK
        | linux::F_OFD_SETLKW
        | linux::F_OFD_GETLK
            if done =>
        {
            let Some(raw) = bytes::<32>(value) else { return pointer(out, value) };
            out.push_str("{l_type=");
            one(out, u64::from(word(&raw, 0) & 0xffff), flags::LOCK);
            out.push_str(", l_whence=");
            one(out, u64::from(word(&raw, 0) >> 16), flags::WHENCE);
            let _ = write!(out, ", l_start={}, l_len={}}}", quad(&raw, 8).cast_signed(), quad(&raw, 16).cast_signed());
        }
        linux::F_DUPFD | linux::F_DUPFD_CLOEXEC | linux::F_SETOWN | linux::F_SETPIPE_SZ => {
            let _ = write!(out, "{}", value as i32);
        }
        _ => pointer(out, value),
    }
}

/// What belongs to a request of ioctl(2).
pub(super) fn ioctl_argument(out: &mut String, request: u64, value: u64, done: bool) {
    let shown = match request as u32 {
        _ if !done => None,
        ioctl::TIOCGWINSZ | ioctl::TIOCSWINSZ => bytes::<8>(value).map(|raw| {
            let (rows, columns) = (word(&raw, 0) & 0xffff, word(&raw, 0) >> 16);
            let (x, y) = (word(&raw, 4) & 0xffff, word(&raw, 4) >> 16);
            let _ = write!(out, "{{ws_row={rows}, ws_col={columns}, ws_xpixel={x}, ws_ypixel={y}}}");
        }),
        ioctl::TCGETS | ioctl::TCSETS | ioctl::TCSETSW | ioctl::TCSETSF => bytes::<36>(value).map(|raw| {
            for (name, at) in [("{c_iflag=", 0), (", c_oflag=", 4), (", c_cflag=", 8), (", c_lflag=", 12)] {
                let _ = write!(out, "{name}{:#x}", word(&raw, at));
            }
            out.push_str(", ...}");
        }),
        ioctl::TIOCGPGRP
        | ioctl::TIOCSPGRP
        | ioctl::TIOCGSID
        | ioctl::TIOCGPTN
        | ioctl::TIOCSPTLCK
        | ioctl::FIONREAD
        | ioctl::FIONBIO
        | ioctl::FIOASYNC
        | ioctl::TIOCPKT => int_at(out, value),
        _ => None,
    };
    if shown.is_none() {
        pointer(out, value);
    }
}

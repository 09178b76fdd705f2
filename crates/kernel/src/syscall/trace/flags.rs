//! Names of flags and constants.

use crate::syscall::table::Arg;
use alloc::string::String;
use core::fmt::Write;
use linux_raw_sys::{general as g, ioctl, net, prctl, ptrace};

/// A table of names.
pub(super) type Names = &'static [(&'static str, u64)];

macro_rules! names {
    ($module:ident: $($name:ident)*) => { &[$((stringify!($name), $module::$name as u64)),*] };
}

/// Flags joined by `|`; bits without a name in hexadecimal; `zero` where none is set.
pub(super) fn bits(out: &mut String, value: u64, names: Names, zero: &str) {
    let mut left = value;
    let mut first = true;
    for (name, bit) in names {
        if *bit != 0 && left & bit == *bit {
            left &= !bit;
            let _ = write!(out, "{}{name}", if first { "" } else { "|" });
            first = false;
        }
    }
    if left != 0 {
        let _ = write!(out, "{}{left:#x}", if first { "" } else { "|" });
    } else if first {
        out.push_str(zero);
    }
}

/// One of several values.
pub(super) fn one(out: &mut String, value: u64, names: Names) {
    match names.iter().find(|(_, v)| *v == value) {
        Some((name, _)) => out.push_str(name),
        None => {
            let _ = write!(out, "{value:#x}");
        }
    }
}

/// Of what an argument is made that is nothing but flags (`true`) or one of several constants.
pub(super) fn names_of(kind: Arg) -> Option<(Names, bool)> {
    Some(match kind {
        Arg::AccessMode => (ACCESS, true),
        Arg::AtFlags => (AT, true),
        Arg::MmapProt => (PROT, true),
        Arg::MmapFlags => (MAP, true),
        Arg::MremapFlags => (MREMAP, true),
        Arg::MsgFlags => (MSG, true),
        Arg::WaitOptions => (WAIT, true),
        Arg::EpollFlags => (EPOLL_CREATE, true),
        Arg::RandomFlags => (GRND, true),
        Arg::RenameFlags => (RENAME, true),
        Arg::XattrFlags => (XATTR, true),
        Arg::StatxMask => (STATX, true),
        Arg::SocketFlags => (SOCKET_FLAGS, true),
        Arg::TimerFlags => (TIMER, true),
        Arg::ClockId => (CLOCK, false),
        Arg::Madvise => (MADV, false),
        Arg::EpollOp => (EPOLL_OP, false),
        Arg::FcntlCmd => (FCNTL, false),
        Arg::IoctlCmd => (IOCTL, false),
        Arg::Whence => (WHENCE, false),
        Arg::SocketDomain => (DOMAIN, false),
        Arg::SocketLevel => (LEVEL, false),
        Arg::ShutdownHow => (SHUTDOWN, false),
        Arg::Resource => (RESOURCE, false),
        Arg::RusageWho => (RUSAGE, false),
        Arg::PrctlOp => (PRCTL, false),
        Arg::ArchPrctlOp => (ARCH_PRCTL, false),
        Arg::PtraceRequest => (PTRACE, false),
        Arg::SigHow => (SIG_HOW, false),
        Arg::WaitIdType => (ID_TYPE, false),
        Arg::ItimerId => (ITIMER, false),
        _ => return None,
    })
}

/// Flags of open(2) with their access mode.
pub(super) fn open(out: &mut String, value: u64) {
    out.push_str(["O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"][(value & 3) as usize]);
    if value & !3 != 0 {
        out.push('|');
        bits(out, value & !3, OPEN, "");
    }
}

/// Options of setsockopt(2) at a level.
pub(super) fn socket_options(level: u64) -> Names {
    match level {
        0 => IP_OPTIONS,
        1 => SOCKET_OPTIONS,
        6 => TCP_OPTIONS,
        41 => IPV6_OPTIONS,
        _ => &[],
    }
}

/// Commands of fcntl(2) that have no argument.
pub(super) fn takes_no_argument(command: u64) -> bool {
    matches!(command as u32, g::F_GETFD | g::F_GETFL | g::F_GETOWN | g::F_GETSIG | g::F_GETPIPE_SZ | g::F_GET_SEALS)
}

/// Name of an si_code (sigaction(2)).
pub(super) fn signal_code(signal: u32, code: i32) -> Option<&'static str> {
    let names: &[&str] = match signal {
        _ if code <= 0 || code == 0x80 => {
            return Some(match code {
                0 => "SI_USER",
                0x80 => "SI_KERNEL",
                -1 => "SI_QUEUE",
                -2 => "SI_TIMER",
                -3 => "SI_MESGQ",
                -4 => "SI_ASYNCIO",
                -5 => "SI_SIGIO",
                -6 => "SI_TKILL",
                _ => return None,
            });
        }
        g::SIGCHLD => &["CLD_EXITED", "CLD_KILLED", "CLD_DUMPED", "CLD_TRAPPED", "CLD_STOPPED", "CLD_CONTINUED"],
        g::SIGSEGV => &["SEGV_MAPERR", "SEGV_ACCERR", "SEGV_BNDERR", "SEGV_PKUERR"],
        g::SIGBUS => &["BUS_ADRALN", "BUS_ADRERR", "BUS_OBJERR"],
        g::SIGFPE => &[
            "FPE_INTDIV",
            "FPE_INTOVF",
            "FPE_FLTDIV",
            "FPE_FLTOVF",
            "FPE_FLTUND",
            "FPE_FLTRES",
            "FPE_FLTINV",
            "FPE_FLTSUB",
        ],
        g::SIGILL => &["ILL_ILLOPC", "ILL_ILLOPN", "ILL_ILLADR", "ILL_ILLTRP", "ILL_PRVOPC"],
        g::SIGTRAP => &["TRAP_BRKPT", "TRAP_TRACE"],
        g::SIGIO => &["POLL_IN", "POLL_OUT", "POLL_MSG", "POLL_ERR", "POLL_PRI", "POLL_HUP"],
        _ => &[],
    };
    names.get(usize::try_from(code).ok()?.checked_sub(1)?).copied()
}

/// open(2), without the access mode.
pub(super) const OPEN: Names = names!(g: O_CREAT O_EXCL O_NOCTTY O_TRUNC O_APPEND O_NONBLOCK O_SYNC O_DSYNC FASYNC O_DIRECT O_LARGEFILE O_TMPFILE O_DIRECTORY O_NOFOLLOW O_NOATIME O_CLOEXEC O_PATH);
pub(super) const AT: Names =
    names!(g: AT_SYMLINK_NOFOLLOW AT_REMOVEDIR AT_SYMLINK_FOLLOW AT_NO_AUTOMOUNT AT_EMPTY_PATH);
pub(super) const PROT: Names = names!(g: PROT_READ PROT_WRITE PROT_EXEC PROT_GROWSDOWN);
pub(super) const MAP: Names = names!(g: MAP_SHARED MAP_PRIVATE MAP_FIXED MAP_ANONYMOUS MAP_32BIT MAP_GROWSDOWN MAP_DENYWRITE MAP_EXECUTABLE MAP_LOCKED MAP_NORESERVE MAP_POPULATE MAP_NONBLOCK MAP_STACK MAP_HUGETLB MAP_SYNC MAP_FIXED_NOREPLACE);
pub(super) const MADV: Names = names!(g: MADV_NORMAL MADV_RANDOM MADV_SEQUENTIAL MADV_WILLNEED MADV_DONTNEED MADV_FREE MADV_REMOVE MADV_DONTFORK MADV_DOFORK MADV_MERGEABLE MADV_UNMERGEABLE MADV_HUGEPAGE MADV_NOHUGEPAGE MADV_DONTDUMP MADV_DODUMP MADV_WIPEONFORK MADV_KEEPONFORK MADV_COLD MADV_PAGEOUT MADV_POPULATE_READ MADV_POPULATE_WRITE MADV_COLLAPSE);
pub(super) const CLONE: Names = names!(g: CLONE_VM CLONE_FS CLONE_FILES CLONE_SIGHAND CLONE_PIDFD CLONE_PTRACE CLONE_VFORK CLONE_PARENT CLONE_THREAD CLONE_NEWNS CLONE_SYSVSEM CLONE_SETTLS CLONE_PARENT_SETTID CLONE_CHILD_CLEARTID CLONE_UNTRACED CLONE_CHILD_SETTID CLONE_NEWCGROUP CLONE_NEWUTS CLONE_NEWIPC CLONE_NEWUSER CLONE_NEWPID CLONE_NEWNET CLONE_IO CLONE_CLEAR_SIGHAND CLONE_INTO_CGROUP);
pub(super) const FUTEX: Names = names!(g: FUTEX_WAIT FUTEX_WAKE FUTEX_FD FUTEX_REQUEUE FUTEX_CMP_REQUEUE FUTEX_WAKE_OP FUTEX_LOCK_PI FUTEX_UNLOCK_PI FUTEX_TRYLOCK_PI FUTEX_WAIT_BITSET FUTEX_WAKE_BITSET FUTEX_WAIT_REQUEUE_PI FUTEX_CMP_REQUEUE_PI FUTEX_LOCK_PI2);
pub(super) const FUTEX_FLAGS: Names = names!(g: FUTEX_PRIVATE_FLAG FUTEX_CLOCK_REALTIME);
pub(super) const CLOCK: Names = names!(g: CLOCK_REALTIME CLOCK_MONOTONIC CLOCK_PROCESS_CPUTIME_ID CLOCK_THREAD_CPUTIME_ID CLOCK_MONOTONIC_RAW CLOCK_REALTIME_COARSE CLOCK_MONOTONIC_COARSE CLOCK_BOOTTIME CLOCK_REALTIME_ALARM CLOCK_BOOTTIME_ALARM CLOCK_TAI);
pub(super) const EPOLL_OP: Names = names!(g: EPOLL_CTL_ADD EPOLL_CTL_DEL EPOLL_CTL_MOD);
pub(super) const EPOLL: Names = names!(g: EPOLLIN EPOLLPRI EPOLLOUT EPOLLERR EPOLLHUP EPOLLRDNORM EPOLLRDBAND EPOLLWRNORM EPOLLWRBAND EPOLLRDHUP EPOLLEXCLUSIVE EPOLLWAKEUP EPOLLONESHOT EPOLLET);
pub(super) const POLL: Names =
    names!(g: POLLIN POLLPRI POLLOUT POLLERR POLLHUP POLLNVAL POLLRDNORM POLLRDBAND POLLWRNORM POLLWRBAND POLLRDHUP);
pub(super) const FCNTL: Names = names!(g: F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_GETLK F_SETLK F_SETLKW F_SETOWN F_GETOWN F_SETSIG F_GETSIG F_SETOWN_EX F_GETOWN_EX F_OFD_GETLK F_OFD_SETLK F_OFD_SETLKW F_DUPFD_CLOEXEC F_SETPIPE_SZ F_GETPIPE_SZ F_ADD_SEALS F_GET_SEALS);
pub(super) const WHENCE: Names = names!(g: SEEK_SET SEEK_CUR SEEK_END SEEK_DATA SEEK_HOLE);
pub(super) const WAIT: Names = names!(g: WNOHANG WUNTRACED WEXITED WCONTINUED WNOWAIT __WNOTHREAD __WALL __WCLONE);
pub(super) const RESOURCE: Names = names!(g: RLIMIT_CPU RLIMIT_FSIZE RLIMIT_DATA RLIMIT_STACK RLIMIT_CORE RLIMIT_RSS RLIMIT_NPROC RLIMIT_NOFILE RLIMIT_MEMLOCK RLIMIT_AS RLIMIT_LOCKS RLIMIT_SIGPENDING RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_RTTIME);
pub(super) const DOMAIN: Names = names!(net: AF_UNSPEC AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET AF_VSOCK);
pub(super) const SOCKET_TYPE: &[(&str, u64)] =
    &[("SOCK_STREAM", 1), ("SOCK_DGRAM", 2), ("SOCK_RAW", 3), ("SOCK_SEQPACKET", 5)];
pub(super) const SOCKET_FLAGS: &[(&str, u64)] = &[("SOCK_NONBLOCK", 0o4000), ("SOCK_CLOEXEC", 0o2_000_000)];
pub(super) const LEVEL: &[(&str, u64)] =
    &[("SOL_IP", 0), ("SOL_SOCKET", 1), ("SOL_TCP", 6), ("SOL_UDP", 17), ("SOL_IPV6", 41)];
pub(super) const MSG: &[(&str, u64)] = &[
    ("MSG_OOB", 1),
    ("MSG_PEEK", 2),
    ("MSG_DONTROUTE", 4),
    ("MSG_CTRUNC", 8),
    ("MSG_TRUNC", 0x20),
    ("MSG_DONTWAIT", 0x40),
    ("MSG_EOR", 0x80),
    ("MSG_WAITALL", 0x100),
    ("MSG_NOSIGNAL", 0x4000),
    ("MSG_MORE", 0x8000),
    ("MSG_WAITFORONE", 0x10000),
    ("MSG_CMSG_CLOEXEC", 0x4000_0000),
];
pub(super) const PRCTL: Names = names!(prctl: PR_SET_PDEATHSIG PR_GET_PDEATHSIG PR_GET_DUMPABLE PR_SET_DUMPABLE PR_GET_KEEPCAPS PR_SET_KEEPCAPS PR_SET_NAME PR_GET_NAME PR_GET_SECCOMP PR_SET_SECCOMP PR_CAPBSET_READ PR_CAPBSET_DROP PR_GET_SECUREBITS PR_SET_SECUREBITS PR_SET_TIMERSLACK PR_GET_TIMERSLACK PR_SET_MM PR_SET_CHILD_SUBREAPER PR_GET_CHILD_SUBREAPER PR_SET_NO_NEW_PRIVS PR_GET_NO_NEW_PRIVS PR_SET_THP_DISABLE PR_GET_THP_DISABLE PR_CAP_AMBIENT PR_SET_VMA);
pub(super) const PTRACE: Names = names!(ptrace: PTRACE_TRACEME PTRACE_PEEKTEXT PTRACE_PEEKDATA PTRACE_PEEKUSR PTRACE_POKETEXT PTRACE_POKEDATA PTRACE_POKEUSR PTRACE_CONT PTRACE_KILL PTRACE_SINGLESTEP PTRACE_GETREGS PTRACE_SETREGS PTRACE_GETFPREGS PTRACE_SETFPREGS PTRACE_ATTACH PTRACE_DETACH PTRACE_SYSCALL PTRACE_SETOPTIONS PTRACE_GETEVENTMSG PTRACE_GETSIGINFO PTRACE_SETSIGINFO PTRACE_GETREGSET PTRACE_SETREGSET PTRACE_SEIZE PTRACE_INTERRUPT PTRACE_LISTEN PTRACE_PEEKSIGINFO PTRACE_GETSIGMASK PTRACE_SETSIGMASK PTRACE_GET_SYSCALL_INFO);
pub(super) const ARCH_PRCTL: &[(&str, u64)] = &[
    ("ARCH_SET_GS", 0x1001),
    ("ARCH_SET_FS", 0x1002),
    ("ARCH_GET_FS", 0x1003),
    ("ARCH_GET_GS", 0x1004),
    ("ARCH_CET_STATUS", 0x3001),
];
pub(super) const IOCTL: Names = names!(ioctl: TCGETS TCSETS TCSETSW TCSETSF TIOCGWINSZ TIOCSWINSZ TIOCGPGRP TIOCSPGRP TIOCGSID TIOCSCTTY TIOCNOTTY TIOCGPTN TIOCSPTLCK TIOCGPTPEER FIONREAD FIONBIO FIOCLEX FIONCLEX FIOASYNC TCFLSH TCSBRK TCXONC TIOCPKT FICLONE);
pub(super) const ACCESS: &[(&str, u64)] = &[("R_OK", 4), ("W_OK", 2), ("X_OK", 1)];
pub(super) const MREMAP: Names = names!(g: MREMAP_MAYMOVE MREMAP_FIXED MREMAP_DONTUNMAP);
pub(super) const EPOLL_CREATE: &[(&str, u64)] = &[("EPOLL_CLOEXEC", g::EPOLL_CLOEXEC as u64)];
pub(super) const GRND: Names = names!(g: GRND_NONBLOCK GRND_RANDOM GRND_INSECURE);
pub(super) const RENAME: Names = names!(g: RENAME_NOREPLACE RENAME_EXCHANGE RENAME_WHITEOUT);
pub(super) const XATTR: &[(&str, u64)] = &[("XATTR_CREATE", 1), ("XATTR_REPLACE", 2)];
pub(super) const STATX: Names = names!(g: STATX_BASIC_STATS STATX_TYPE STATX_MODE STATX_NLINK STATX_UID STATX_GID STATX_ATIME STATX_MTIME STATX_CTIME STATX_INO STATX_SIZE STATX_BLOCKS STATX_BTIME STATX_MNT_ID);
pub(super) const TIMER: &[(&str, u64)] = &[("TIMER_ABSTIME", 1), ("TFD_TIMER_CANCEL_ON_SET", 2)];
pub(super) const SHUTDOWN: &[(&str, u64)] = &[("SHUT_RD", 0), ("SHUT_WR", 1), ("SHUT_RDWR", 2)];
pub(super) const RUSAGE: &[(&str, u64)] = &[("RUSAGE_SELF", 0), ("RUSAGE_CHILDREN", 0xffff_ffff), ("RUSAGE_THREAD", 1)];
pub(super) const SIG_HOW: Names = names!(g: SIG_BLOCK SIG_UNBLOCK SIG_SETMASK);
pub(super) const SA: Names = names!(g: SA_NOCLDSTOP SA_NOCLDWAIT SA_SIGINFO SA_EXPOSE_TAGBITS SA_RESTORER SA_ONSTACK SA_RESTART SA_NODEFER SA_RESETHAND);
pub(super) const SS: Names = names!(g: SS_ONSTACK SS_DISABLE SS_AUTODISARM);
pub(super) const SIGEV: Names = names!(g: SIGEV_SIGNAL SIGEV_NONE SIGEV_THREAD SIGEV_THREAD_ID);
pub(super) const ID_TYPE: Names = names!(g: P_ALL P_PID P_PGID P_PIDFD);
pub(super) const ITIMER: Names = names!(g: ITIMER_REAL ITIMER_VIRTUAL ITIMER_PROF);
pub(super) const FD: Names = names!(g: FD_CLOEXEC);
pub(super) const LOCK: Names = names!(g: F_RDLCK F_WRLCK F_UNLCK);
pub(super) const SEALS: &[(&str, u64)] =
    &[("F_SEAL_SEAL", 1), ("F_SEAL_SHRINK", 2), ("F_SEAL_GROW", 4), ("F_SEAL_WRITE", 8), ("F_SEAL_FUTURE_WRITE", 16)];
pub(super) const FILE_TYPE: Names = names!(g: S_IFREG S_IFDIR S_IFLNK S_IFCHR S_IFBLK S_IFIFO S_IFSOCK);
pub(super) const FILE_SPECIAL: Names = names!(g: S_ISUID S_ISGID S_ISVTX);
pub(super) const SOCKET_OPTIONS: Names = names!(net: SO_DEBUG SO_REUSEADDR SO_TYPE SO_ERROR SO_DONTROUTE SO_BROADCAST SO_SNDBUF SO_RCVBUF SO_KEEPALIVE SO_OOBINLINE SO_PRIORITY SO_LINGER SO_REUSEPORT SO_PASSCRED SO_PEERCRED SO_RCVLOWAT SO_SNDLOWAT SO_RCVTIMEO_OLD SO_SNDTIMEO_OLD SO_ACCEPTCONN SO_PROTOCOL SO_DOMAIN SO_INCOMING_CPU);
pub(super) const TCP_OPTIONS: Names = names!(net: TCP_NODELAY TCP_MAXSEG TCP_CORK TCP_KEEPIDLE TCP_KEEPINTVL TCP_KEEPCNT TCP_SYNCNT TCP_LINGER2 TCP_DEFER_ACCEPT TCP_WINDOW_CLAMP TCP_INFO TCP_QUICKACK TCP_CONGESTION TCP_USER_TIMEOUT TCP_FASTOPEN);
pub(super) const IP_OPTIONS: Names =
    names!(net: IP_TOS IP_TTL IP_RECVERR IP_MTU_DISCOVER IP_PKTINFO IP_FREEBIND IP_TRANSPARENT IP_BIND_ADDRESS_NO_PORT);
pub(super) const IPV6_OPTIONS: &[(&str, u64)] =
    &[("IPV6_V6ONLY", 26), ("IPV6_RECVERR", 25), ("IPV6_RECVPKTINFO", 49), ("IPV6_TCLASS", 67)];

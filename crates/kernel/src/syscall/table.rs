//! The system call table as data: what each call is named, how far it goes, and how a trace shows it.

use crate::errno::Result;

/// How far a system call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// All that its manual page says.
    Full,
    /// The reason says what is missing; what is missing gives an error.
    Partial(&'static str),
    /// Always an error, which Linux gives where it is configured so; the reason says how.
    Refused(&'static str),
}

/// Argument of a system call, for `--trace`. Structures are shown as they are when the call enters, unless [`Arg::Out`] says
/// that the call fills them in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after what they show")]
pub enum Arg {
    /// What stands there once the call has succeeded; otherwise the address.
    Out(&'static Arg),
    /// Signed decimal.
    Int,
    /// Unsigned decimal (sizes, counts).
    Size,
    /// Hexadecimal.
    Hex,
    /// Octal mode; not shown behind flags of open(2) that make no file.
    Mode,
    /// Modes of access(2).
    AccessMode,
    /// Address.
    Ptr,
    Fd,
    /// Directory descriptor, AT_FDCWD by name.
    DirFd,
    /// NUL-terminated path or string.
    Path,
    /// NUL-terminated array of strings (argv).
    Strings,
    /// Input buffer; its length is the next argument.
    BufIn,
    /// Output buffer, shown after the call; its length is the result.
    BufOut,
    /// Array of iovec; the count is the next argument.
    IovecIn,
    IovecOut,
    Signal,
    SigSet,
    SigAction,
    SigInfo,
    SigHow,
    SigEvent,
    SigStack,
    Timespec,
    Timeval,
    /// Two timespecs: the interval and the value of a timer.
    Itimerspec,
    Itimerval,
    ItimerId,
    TimerFlags,
    ClockId,
    OpenFlags,
    AtFlags,
    MmapProt,
    MmapFlags,
    MremapFlags,
    Madvise,
    CloneFlags,
    CloneArgs,
    FutexOp,
    EpollOp,
    EpollFlags,
    EpollEvent,
    /// Array of struct epoll_event; the count is the result.
    EpollEvents,
    PollFds,
    /// fd_set; the number of descriptors is the first argument.
    FdSet,
    FcntlCmd,
    /// What belongs to the command before it.
    FcntlArg,
    IoctlCmd,
    /// What belongs to the command before it.
    IoctlArg,
    Whence,
    SocketDomain,
    SocketType,
    SocketLevel,
    SocketFlags,
    /// Of the level before it.
    SocketOption,
    ShutdownHow,
    SockAddr,
    MsgFlags,
    MsgHdr,
    WaitOptions,
    WaitStatus,
    WaitIdType,
    Resource,
    Rlimit,
    RusageWho,
    Rusage,
    Utsname,
    RandomFlags,
    RenameFlags,
    XattrFlags,
    StatxMask,
    /// An int in memory.
    IntAt,
    /// A long in memory.
    LongAt,
    Stat,
    Statx,
    Dirents,
    Pid,
    Uid,
    PtraceRequest,
    PrctlOp,
    ArchPrctlOp,
    /// Two descriptors, shown after the call.
    FdPair,
}

/// A system call's handler: six arguments as they stand in the registers; the current thread is [`crate::task`]'s affair.
pub type Handler = fn(Args) -> Result<u64>;

/// The six arguments.
#[derive(Clone, Copy, Debug)]
pub struct Args(pub [u64; 6]);

impl Args {
    /// Argument `n` as it is.
    #[must_use]
    pub const fn u64(self, n: usize) -> u64 {
        self.0[n]
    }

    /// Argument `n` as a C `unsigned int`: the upper half of the register does not count.
    #[must_use]
    pub const fn u32(self, n: usize) -> u32 {
        self.0[n] as u32
    }

    /// Argument `n` as a C `int`.
    #[must_use]
    pub const fn i32(self, n: usize) -> i32 {
        self.0[n] as i32
    }

    /// Argument `n` as a C `long`.
    #[must_use]
    pub const fn i64(self, n: usize) -> i64 {
        self.0[n].cast_signed()
    }

    /// Argument `n` as a `size_t`.
    #[must_use]
    pub const fn usize(self, n: usize) -> usize {
        self.0[n] as usize
    }

    /// Argument `n` as an address.
    #[must_use]
    pub const fn addr(self, n: usize) -> crate::mm::addr::UserAddr {
        crate::mm::addr::UserAddr(self.0[n])
    }
}

/// One system call.
#[derive(Clone, Copy)]
pub struct Syscall {
    /// Its number on x86-64.
    pub number: u16,
    /// Its name.
    pub name: &'static str,
    /// How far it goes.
    pub support: Support,
    /// What does it.
    pub handler: Handler,
    /// For `--trace`.
    pub args: &'static [Arg],
}

impl Syscall {
    /// A call that does all that its manual page says.
    #[must_use]
    pub const fn full(number: u16, name: &'static str, handler: Handler, args: &'static [Arg]) -> Self {
        Self { number, name, support: Support::Full, handler, args }
    }

    /// A call with a gap.
    #[must_use]
    pub const fn partial(
        number: u16,
        name: &'static str,
        gap: &'static str,
        handler: Handler,
        args: &'static [Arg],
    ) -> Self {
        Self { number, name, support: Support::Partial(gap), handler, args }
    }
}

/// Every group's table. A number that stands in none gives ENOSYS and is counted by name ([`super::names`]).
pub const GROUPS: &[&[Syscall]] = &[
    super::attributes::CALLS,
    super::directory::CALLS,
    super::epoll::CALLS,
    super::signal::CALLS,
    super::event::CALLS,
    super::futex::CALLS,
    super::file::CALLS,
    super::file_times::CALLS,
    super::transfer::CALLS,
    super::exec::CALLS,
    super::inotify::CALLS,
    super::ioprio::CALLS,
    super::ipc::msg::CALLS,
    super::ipc::sem::CALLS,
    super::ipc::shm::CALLS,
    super::lock::CALLS,
    super::memfd::CALLS,
    super::memory::CALLS,
    super::pipe::CALLS,
    super::poll::CALLS,
    super::refused::CALLS,
    super::signalfd::CALLS,
    super::splice::CALLS,
    super::timerfd::CALLS,
    super::process_vm::CALLS,
    super::socket::CALLS,
    super::ids::CALLS,
    super::prctl::CALLS,
    super::process::CALLS,
    super::ptrace::CALLS,
    super::random::CALLS,
    super::resource::CALLS,
    super::sched::CALLS,
    super::system::CALLS,
    super::time::CALLS,
];

//! Sockets (socket(2) and its relatives).

use super::event::install;
use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::fs::file::{OpenFile, OpenFlags};
use crate::mm::addr::UserAddr;
use crate::mm::user::{self, Dest, Segment, Source};
use crate::net::address::{Address, MAX_ADDRESS_BYTES};
use crate::net::control::{self, MAX_CONTROL_BYTES, Passed};
use crate::net::options::level;
use crate::net::socket::{Family, Kind};
use crate::net::{Socket, SocketFile, msg};
use crate::task::current;
use crate::time;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::partial(
        linux::__NR_socket as u16,
        "socket",
        "AF_UNIX, AF_INET, AF_INET6, AF_VSOCK streams, and NETLINK_ROUTE for dumps; no raw and packet sockets, no ICMP",
        sys_socket,
        &[Arg::SocketDomain, Arg::SocketType, Arg::Int],
    ),
    Syscall::full(
        linux::__NR_socketpair as u16,
        "socketpair",
        sys_socketpair,
        &[Arg::SocketDomain, Arg::SocketType, Arg::Int, Arg::FdPair],
    ),
    Syscall::full(linux::__NR_bind as u16, "bind", sys_bind, &[Arg::Fd, Arg::SockAddr, Arg::Size]),
    Syscall::full(linux::__NR_listen as u16, "listen", sys_listen, &[Arg::Fd, Arg::Int]),
    Syscall::full(
        linux::__NR_accept as u16,
        "accept",
        sys_accept,
        &[Arg::Fd, Arg::Out(&Arg::SockAddr), Arg::Out(&Arg::IntAt)],
    ),
    Syscall::full(
        linux::__NR_accept4 as u16,
        "accept4",
        sys_accept4,
        &[Arg::Fd, Arg::Out(&Arg::SockAddr), Arg::Out(&Arg::IntAt), Arg::SocketFlags],
    ),
    Syscall::full(linux::__NR_connect as u16, "connect", sys_connect, &[Arg::Fd, Arg::SockAddr, Arg::Size]),
    Syscall::full(
        linux::__NR_getsockname as u16,
        "getsockname",
        sys_getsockname,
        &[Arg::Fd, Arg::Out(&Arg::SockAddr), Arg::Out(&Arg::IntAt)],
    ),
    Syscall::full(
        linux::__NR_getpeername as u16,
        "getpeername",
        sys_getpeername,
        &[Arg::Fd, Arg::Out(&Arg::SockAddr), Arg::Out(&Arg::IntAt)],
    ),
    Syscall::partial(
        linux::__NR_sendto as u16,
        "sendto",
        "no out-of-band data",
        sys_sendto,
        &[Arg::Fd, Arg::BufIn, Arg::Size, Arg::MsgFlags, Arg::SockAddr, Arg::Size],
    ),
    Syscall::partial(
        linux::__NR_recvfrom as u16,
        "recvfrom",
        "no out-of-band data",
        sys_recvfrom,
        &[Arg::Fd, Arg::BufOut, Arg::Size, Arg::MsgFlags, Arg::Out(&Arg::SockAddr), Arg::Out(&Arg::IntAt)],
    ),
    Syscall::partial(
        linux::__NR_sendmsg as u16,
        "sendmsg",
        "no out-of-band data",
        sys_sendmsg,
        &[Arg::Fd, Arg::MsgHdr, Arg::MsgFlags],
    ),
    Syscall::partial(
        linux::__NR_recvmsg as u16,
        "recvmsg",
        "no out-of-band data",
        sys_recvmsg,
        &[Arg::Fd, Arg::Out(&Arg::MsgHdr), Arg::MsgFlags],
    ),
    Syscall::partial(
        linux::__NR_sendmmsg as u16,
        "sendmmsg",
        "no out-of-band data",
        sys_sendmmsg,
        &[Arg::Fd, Arg::Ptr, Arg::Size, Arg::MsgFlags],
    ),
    Syscall::partial(
        linux::__NR_recvmmsg as u16,
        "recvmmsg",
        "no out-of-band data",
        sys_recvmmsg,
        &[Arg::Fd, Arg::Ptr, Arg::Size, Arg::MsgFlags, Arg::Timespec],
    ),
    Syscall::full(linux::__NR_shutdown as u16, "shutdown", sys_shutdown, &[Arg::Fd, Arg::ShutdownHow]),
    Syscall::partial(
        linux::__NR_setsockopt as u16,
        "setsockopt",
        "options that have a meaning on the loopback interface",
        sys_setsockopt,
        &[Arg::Fd, Arg::SocketLevel, Arg::SocketOption, Arg::IntAt, Arg::Size],
    ),
    Syscall::partial(
        linux::__NR_getsockopt as u16,
        "getsockopt",
        "options that have a meaning on the loopback interface",
        sys_getsockopt,
        &[Arg::Fd, Arg::SocketLevel, Arg::SocketOption, Arg::Out(&Arg::IntAt), Arg::Out(&Arg::IntAt)],
    ),
];

const SOCK_TYPE: u32 = 0xf;
/// UIO_MAXIOV, also the most messages of sendmmsg(2).
const MAX_PIECES: usize = 1024;
/// MAX_RW_COUNT: what one call transfers at most.
const MAX_TRANSFER_BYTES: usize = 0x7fff_f000;

/// Family, type, protocol and descriptor flags.
fn parse_kind(args: Args) -> Result<(Family, Kind, u32, OpenFlags)> {
    let flags = OpenFlags::from_bits(args.u32(1) & !SOCK_TYPE)
        .filter(|f| (OpenFlags::NONBLOCK | OpenFlags::CLOEXEC).contains(*f))
        .ok_or(Errno::EINVAL)?;
    let family = match args.u32(0) {
        1 => Family::Unix,
        2 => Family::Inet,
        10 => Family::Inet6,
        // NETLINK_ROUTE is the only protocol.
        16 if args.u32(2) == 0 => Family::Netlink,
        16 => return Err(Errno::EPROTONOSUPPORT),
        40 => Family::Vsock,
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    let kind = match args.u32(1) & SOCK_TYPE {
        1 => Kind::Stream,
        2 if family != Family::Vsock => Kind::Datagram,
        5 if family == Family::Unix => Kind::SeqPacket,
        // Unix sockets take SOCK_RAW for SOCK_DGRAM.
        3 if family == Family::Unix => Kind::Datagram,
        3 if family == Family::Netlink => Kind::Datagram,
        3 => return Err(Errno::EPROTONOSUPPORT),
        _ => return Err(Errno::ESOCKTNOSUPPORT),
    };
    let protocol = match (family, kind, args.u32(2)) {
        (Family::Unix, _, 0 | 1) | (Family::Vsock, _, 0) | (Family::Netlink, Kind::Datagram, 0) => 0,
        (Family::Inet | Family::Inet6, Kind::Stream, 0 | 6) => 6,
        (Family::Inet | Family::Inet6, Kind::Datagram, 0 | 17) => 17,
        (Family::Inet | Family::Inet6, Kind::Datagram, level::UDPLITE) => level::UDPLITE,
        _ => return Err(Errno::EPROTONOSUPPORT),
    };
    Ok((family, kind, protocol, flags))
}

fn open_socket(socket: Rc<Socket>, flags: OpenFlags) -> Rc<OpenFile> {
    OpenFile::anonymous(Rc::new(SocketFile(socket)), OpenFlags::RDWR | flags)
}

/// The socket behind a descriptor, and whether its operations must not block.
fn socket(fd: i32) -> Result<(Rc<Socket>, bool)> {
    let file = current().files().opened(fd)?;
    let socket = file.ops.as_any().downcast_ref::<SocketFile>().map(|s| Rc::clone(&s.0)).ok_or(Errno::ENOTSOCK)?;
    Ok((socket, file.nonblocking()))
}

fn read_address(addr: UserAddr, len: u32) -> Result<Address> {
    if len as usize > MAX_ADDRESS_BYTES {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; len as usize];
    user::read_bytes(addr, &mut bytes)?;
    Address::decode(&bytes)
}

/// A shorter address is none for the socket, whatever family it names.
fn least_address_bytes(socket: &Socket) -> u32 {
    match socket.family {
        Family::Unix => 0,
        Family::Inet | Family::Vsock => 16,
        Family::Inet6 => 24,
        Family::Netlink => 12,
    }
}

/// The address of sendto(2) and sendmsg(2). Connections have no use for one and don't look at it.
fn read_target(socket: &Socket, addr: UserAddr, len: u32) -> Result<Option<Address>> {
    let unused = match socket.kind {
        Kind::Datagram => false,
        Kind::Stream => socket.family != Family::Unix,
        Kind::SeqPacket => true,
    };
    if addr.is_null() || unused {
        return Ok(None);
    }
    read_address(addr, len).map(Some)
}

/// Writes an address as accept(2) says: as much as fits, and its true length. A null address is left out.
fn write_address(address: &Address, addr: UserAddr, len_addr: UserAddr) -> Result<()> {
    if addr.is_null() {
        return Ok(());
    }
    let room = user::read::<i32>(len_addr)?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let bytes = address.encode();
    user::write_bytes(addr, &bytes[..bytes.len().min(room)])?;
    user::write(len_addr, &(bytes.len() as u32))
}

fn sys_socket(args: Args) -> Result<u64> {
    let (family, kind, protocol, flags) = parse_kind(args)?;
    install(open_socket(Socket::new(family, kind, protocol)?, flags), flags)
}

fn sys_socketpair(args: Args) -> Result<u64> {
    let (family, kind, _, flags) = parse_kind(args)?;
    if family != Family::Unix {
        return Err(Errno::EOPNOTSUPP);
    }
    let [a, b] = Socket::pair(kind)?;
    let first = install(open_socket(a, flags), flags)?;
    let close = |fd: u64| drop(current().files().remove(fd as i32));
    let second = install(open_socket(b, flags), flags).inspect_err(|_| close(first))?;
    user::write(args.addr(3), &[first as i32, second as i32]).inspect_err(|_| {
        close(first);
        close(second);
    })?;
    Ok(0)
}

fn sys_bind(args: Args) -> Result<u64> {
    let (socket, _) = socket(args.i32(0))?;
    let address = read_address(args.addr(1), args.u32(2));
    if args.u32(2) < least_address_bytes(&socket) {
        return Err(Errno::EINVAL);
    }
    socket.bind(&address?)?;
    Ok(0)
}

fn sys_listen(args: Args) -> Result<u64> {
    let (socket, _) = socket(args.i32(0))?;
    socket.listen(args.i32(1))?;
    #[cfg(not(feature = "hosted"))]
    crate::snapshot::listening(&socket);
    Ok(0)
}

fn sys_accept(args: Args) -> Result<u64> {
    accept(args, 0)
}

fn sys_accept4(args: Args) -> Result<u64> {
    accept(args, args.u32(3))
}

fn accept(args: Args, flags: u32) -> Result<u64> {
    let allowed = OpenFlags::NONBLOCK | OpenFlags::CLOEXEC;
    let flags = OpenFlags::from_bits(flags).filter(|f| allowed.contains(*f)).ok_or(Errno::EINVAL)?;
    let (listener, nonblocking) = socket(args.i32(0))?;
    let accepted = listener.accept(nonblocking)?;
    let remote = accepted.remote_address().unwrap_or(Address::Unspecified);
    let fd = install(open_socket(accepted, flags), flags)?;
    write_address(&remote, args.addr(1), args.addr(2)).inspect_err(|_| drop(current().files().remove(fd as i32)))?;
    Ok(fd)
}

fn sys_connect(args: Args) -> Result<u64> {
    let (socket, nonblocking) = socket(args.i32(0))?;
    let short = args.u32(2) < least_address_bytes(&socket);
    let refused = |error| if error == Errno::EAFNOSUPPORT && short { Errno::EINVAL } else { error };
    socket.connect(&read_address(args.addr(1), args.u32(2))?, nonblocking).map_err(refused)?;
    Ok(0)
}

fn sys_getsockname(args: Args) -> Result<u64> {
    let (socket, _) = socket(args.i32(0))?;
    write_address(&socket.local_address(), args.addr(1), args.addr(2))?;
    Ok(0)
}

fn sys_getpeername(args: Args) -> Result<u64> {
    let (socket, _) = socket(args.i32(0))?;
    write_address(&socket.remote_address()?, args.addr(1), args.addr(2))?;
    Ok(0)
}

fn sys_sendto(args: Args) -> Result<u64> {
    let (socket, nonblocking) = socket(args.i32(0))?;
    let to = read_target(&socket, args.addr(4), args.u32(5))?;
    let segments = [Segment { addr: args.addr(1), len: args.usize(2).min(MAX_TRANSFER_BYTES) }];
    let sent = socket.send(&mut Source::user(&segments), to.as_ref(), &Passed::default(), args.u32(3), nonblocking)?;
    Ok(sent as u64)
}

fn sys_recvfrom(args: Args) -> Result<u64> {
    let (socket, nonblocking) = socket(args.i32(0))?;
    let segments = [Segment { addr: args.addr(1), len: args.usize(2).min(MAX_TRANSFER_BYTES) }];
    let received = socket.receive(&mut Dest::user(&segments), args.u32(3), nonblocking)?;
    match &received.from {
        Some(from) => write_address(from, args.addr(4), args.addr(5))?,
        None if !args.addr(4).is_null() => user::write(args.addr(5), &0u32)?,
        None => {}
    }
    Ok(received.bytes as u64)
}

/// `struct msghdr`: name, namelen, iov, iovlen, control, controllen, flags.
struct Header {
    at: UserAddr,
    name: UserAddr,
    name_len: u32,
    segments: Vec<Segment>,
    control: UserAddr,
    control_len: usize,
}

impl Header {
    fn read(at: UserAddr) -> Result<Self> {
        let word = |offset: u64| user::read::<u64>(at.offset(offset));
        let count = usize::try_from(word(24)?).unwrap_or(usize::MAX);
        if count > MAX_PIECES {
            return Err(Errno::EMSGSIZE);
        }
        let iov = UserAddr(word(16)?);
        let mut segments = Vec::with_capacity(count);
        let mut left = MAX_TRANSFER_BYTES;
        for n in 0..count as u64 {
            let [base, len] = user::read::<[u64; 2]>(iov.offset(16 * n))?;
            let len = isize::try_from(len).map_err(|_| Errno::EINVAL)? as usize;
            segments.push(Segment { addr: UserAddr(base), len: len.min(left) });
            left -= len.min(left);
        }
        Ok(Self {
            at,
            name: UserAddr(word(0)?),
            name_len: user::read(at.offset(8))?,
            segments,
            control: UserAddr(word(32)?),
            control_len: usize::try_from(word(40)?).unwrap_or(usize::MAX),
        })
    }
}

fn send_message(socket: &Rc<Socket>, nonblocking: bool, at: UserAddr, flags: u32) -> Result<u64> {
    let header = Header::read(at)?;
    let name = if header.name_len == 0 { UserAddr::NULL } else { header.name };
    let to = read_target(socket, name, header.name_len)?;
    let mut passed = Passed::default();
    if !header.control.is_null() && header.control_len > 0 && socket.has_target(to.is_some()) {
        if header.control_len > MAX_CONTROL_BYTES {
            return Err(Errno::ENOBUFS);
        }
        let mut bytes = vec![0; header.control_len];
        user::read_bytes(header.control, &mut bytes)?;
        passed = control::parse(&bytes, socket)?;
    }
    let sent = socket.send(&mut Source::user(&header.segments), to.as_ref(), &passed, flags, nonblocking)?;
    Ok(sent as u64)
}

fn receive_message(socket: &Rc<Socket>, nonblocking: bool, at: UserAddr, flags: u32) -> Result<u64> {
    let header = Header::read(at)?;
    let received = socket.receive(&mut Dest::user(&header.segments), flags, nonblocking)?;
    let mut writer = control::Writer::new(if header.control.is_null() { 0 } else { header.control_len });
    if let Some(at_ns) = received.arrived_ns {
        writer.arrival(&socket.options, at_ns);
    }
    if let Some(sender) = received.sender.filter(|_| socket.options.on(1, crate::net::options::name::PASSCRED)) {
        writer.credentials(sender);
    }
    let cloexec = if flags & msg::CMSG_CLOEXEC != 0 { OpenFlags::CLOEXEC } else { OpenFlags::empty() };
    if !received.rights.is_empty() {
        writer.rights(received.rights, |file| Ok(install(file, cloexec)? as i32));
    }
    if let Some(packet) = received.packet {
        packet.tell(socket.family == Family::Inet6, &socket.options, &mut writer);
    }
    let mut out_flags = flags & msg::CMSG_CLOEXEC;
    out_flags |= if received.truncated { msg::TRUNC } else { 0 };
    out_flags |= if writer.truncated { msg::CTRUNC } else { 0 };
    let bytes = writer.finish();
    user::write_bytes(header.control, &bytes)?;
    if !header.name.is_null() {
        let name = received.from.as_ref().map(Address::encode).unwrap_or_default();
        user::write_bytes(header.name, &name[..name.len().min(header.name_len as usize)])?;
        user::write(header.at.offset(8), &(name.len() as u32))?;
    }
    user::write(header.at.offset(40), &(bytes.len() as u64))?;
    user::write(header.at.offset(48), &out_flags)?;
    Ok(received.bytes as u64)
}

fn sys_sendmsg(args: Args) -> Result<u64> {
    let (socket, nonblocking) = socket(args.i32(0))?;
    send_message(&socket, nonblocking, args.addr(1), args.u32(2))
}

fn sys_recvmsg(args: Args) -> Result<u64> {
    let (socket, nonblocking) = socket(args.i32(0))?;
    receive_message(&socket, nonblocking, args.addr(1), args.u32(2))
}

/// `struct mmsghdr` is a msghdr of 56 bytes and a length.
const MMSG_BYTES: u64 = 64;

fn sys_sendmmsg(args: Args) -> Result<u64> {
    let (socket, nonblocking) = socket(args.i32(0))?;
    let count = u64::from(args.u32(2)).min(MAX_PIECES as u64);
    for n in 0..count {
        let at = args.addr(1).offset(MMSG_BYTES * n);
        match send_message(&socket, nonblocking, at, args.u32(3)) {
            Ok(sent) => user::write(at.offset(56), &(sent as u32))?,
            Err(error) if n == 0 => return Err(error),
            Err(_) => return Ok(n),
        }
    }
    Ok(count)
}

fn sys_recvmmsg(args: Args) -> Result<u64> {
    const WAITFORONE: u32 = 0x10000;
    let (socket, nonblocking) = socket(args.i32(0))?;
    let count = u64::from(args.u32(2)).min(MAX_PIECES as u64);
    let deadline = if args.addr(4).is_null() {
        None
    } else {
        let [sec, nsec] = user::read::<[i64; 2]>(args.addr(4))?;
        let (sec, nsec) = (u64::try_from(sec), u64::try_from(nsec));
        let (Ok(sec), Ok(nsec @ 0..1_000_000_000)) = (sec, nsec) else { return Err(Errno::EINVAL) };
        Some(time::now().after_ns(sec.saturating_mul(1_000_000_000).saturating_add(nsec)))
    };
    let mut flags = args.u32(3) & !WAITFORONE;
    for n in 0..count {
        let at = args.addr(1).offset(MMSG_BYTES * n);
        match receive_message(&socket, nonblocking, at, flags) {
            Ok(bytes) => user::write(at.offset(56), &(bytes as u32))?,
            Err(error) if n == 0 => return Err(error),
            Err(_) => return Ok(n),
        }
        if args.u32(3) & WAITFORONE != 0 {
            flags |= msg::DONTWAIT;
        }
        // The time-out is looked at only after each datagram (recvmmsg(2), BUGS).
        if deadline.is_some_and(|deadline| time::now() >= deadline) {
            return Ok(n + 1);
        }
    }
    Ok(count)
}

fn sys_shutdown(args: Args) -> Result<u64> {
    socket(args.i32(0))?.0.shutdown(args.u32(1))?;
    Ok(0)
}

fn sys_setsockopt(args: Args) -> Result<u64> {
    let (socket, _) = socket(args.i32(0))?;
    let len = usize::try_from(args.i32(4)).map_err(|_| Errno::EINVAL)?;
    let mut bytes = vec![0; len.min(256)];
    user::read_bytes(args.addr(3), &mut bytes)?;
    socket.set_option(args.u32(1), args.u32(2), &bytes)?;
    Ok(0)
}

fn sys_getsockopt(args: Args) -> Result<u64> {
    let (socket, _) = socket(args.i32(0))?;
    let room = usize::try_from(user::read::<i32>(args.addr(4))?).map_err(|_| Errno::EINVAL)?;
    let value = socket.option(args.u32(1), args.u32(2))?;
    let len = value.len().min(room);
    user::write_bytes(args.addr(3), &value[..len])?;
    user::write(args.addr(4), &(len as u32))?;
    Ok(0)
}

//! TCP and UDP (tcp(7), udp(7), ip(7), ipv6(7)): addresses, and who talks to whom inside the guest.

use super::address::{Address, InetAddress};
use super::control::Source;
use super::interfaces::{LOOPBACK, OUTSIDE};
use super::options::level;
use super::socket::{Family, Kind, Socket, State};
use super::{bound, outside};
use crate::errno::{Errno, Result};
use crate::task::current;
use crate::wait::Events;
use alloc::rc::Rc;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use linux_raw_sys::general::CAP_NET_BIND_SERVICE;

/// net.ipv4.ip_unprivileged_port_start.
const PRIVILEGED_PORTS: u16 = 1024;

/// Whether the address is this machine's: 127.0.0.0/8, ::1, the interface's, or one of them as IPv4-mapped.
fn is_local(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback() || ip == outside::own_address(ip.is_ipv6())
}

/// An address of the socket's own family.
///
/// # Errors
/// EAFNOSUPPORT for IPv6 on an IPv4 socket, and for IPv4 on an IPv6 socket that excludes it.
fn of_family(socket: &Socket, address: InetAddress) -> Result<InetAddress> {
    let v6 = address.ip.is_ipv6();
    if v6 != socket.is_v6() {
        return Err(if socket.family == Family::Inet { Errno::EAFNOSUPPORT } else { Errno::EINVAL });
    }
    if socket.v6_only() && address.ip.to_canonical().is_ipv4() {
        return Err(Errno::ENETUNREACH);
    }
    Ok(address)
}

pub(super) fn bind(socket: &Rc<Socket>, address: InetAddress) -> Result<()> {
    let address = of_family(socket, address)?;
    if socket.local_inet().port != 0 {
        return Err(Errno::EINVAL);
    }
    if !address.ip.is_unspecified() && !is_local(address.ip) {
        return Err(Errno::EADDRNOTAVAIL);
    }
    if address.port != 0 && address.port < PRIVILEGED_PORTS && !current().creds().has(CAP_NET_BIND_SERVICE) {
        return Err(Errno::EACCES);
    }
    bind_port(socket, address)
}

fn bind_port(socket: &Rc<Socket>, address: InetAddress) -> Result<()> {
    let port = bound::bind_port(socket, address)?;
    *socket.local.borrow_mut() = Address::Inet(InetAddress { ip: address.ip, port });
    Ok(())
}

/// A port for a socket that has none.
pub(super) fn ensure_bound(socket: &Rc<Socket>) -> Result<()> {
    if socket.local_inet().port == 0 { bind_port(socket, socket.local_inet()) } else { Ok(()) }
}

pub(super) fn before_listen(socket: &Rc<Socket>) -> Result<()> {
    ensure_bound(socket)?;
    // Two listeners share a port only by SO_REUSEPORT: bind again in the role of a listener.
    let address = socket.local_inet();
    bound::release_port(socket, address.port);
    bound::bind_port(socket, address).map(|_| ())
}

/// The address that is meant, and whether it is outside.
fn route(to: InetAddress) -> (InetAddress, bool) {
    if to.ip.is_unspecified() {
        // Linux takes the wildcard for this machine.
        let ip = if to.ip.is_ipv6() { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
        return (InetAddress { ip, port: to.port }, false);
    }
    (to, !is_local(to.ip))
}

/// The source address for packets to `to`.
pub(super) fn source_for(socket: &Socket, to: InetAddress) -> InetAddress {
    let local = socket.local_inet();
    if local.ip.is_unspecified() { routed_source(socket, to) } else { local }
}

/// The same as the route has it, whatever the socket is bound to.
fn routed_source(socket: &Socket, to: InetAddress) -> InetAddress {
    let canonical = to.ip.to_canonical();
    let ip = match canonical {
        ip if !ip.is_loopback() => outside::own_address(ip.is_ipv6()),
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    from_port_of(socket, ip)
}

fn from_port_of(socket: &Socket, ip: IpAddr) -> InetAddress {
    InetAddress { ip, port: socket.local_inet().port }.in_family(socket.is_v6())
}

/// The source address that the sender of a datagram has chosen, as far as that goes with `to`.
///
/// # Errors
/// ENODEV for an interface that is not there; ENETUNREACH (IPv6: EINVAL) for an address that is not this machine's; EINVAL
/// for one that nobody can have, or of another family.
fn chosen_source(socket: &Socket, to: InetAddress, source: Source) -> Result<InetAddress> {
    let ip = match (source.ip, to.ip.to_canonical().is_ipv4()) {
        // What is said of the other family counts for none of this one.
        (IpAddr::V4(_), false) => return Ok(source_for(socket, to)),
        (IpAddr::V6(_), true) if !socket.is_v6() => return Ok(source_for(socket, to)),
        (IpAddr::V6(ip), true) => IpAddr::V4(ip.to_ipv4_mapped().ok_or(Errno::EINVAL)?),
        (ip, _) => ip,
    };
    if ![0, LOOPBACK, OUTSIDE].contains(&source.interface) {
        return Err(Errno::ENODEV);
    }
    match ip {
        ip if ip.is_unspecified() => return Ok(routed_source(socket, to)),
        IpAddr::V4(ip) if ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0 => return Err(Errno::EINVAL),
        IpAddr::V4(_) if !is_local(ip) => return Err(Errno::ENETUNREACH),
        IpAddr::V6(six) if six.to_ipv4_mapped().is_some() || !is_local(ip) => return Err(Errno::EINVAL),
        _ => {}
    }
    Ok(from_port_of(socket, ip))
}

pub(super) fn connect(socket: &Rc<Socket>, address: InetAddress, nonblocking: bool) -> Result<()> {
    let (to, is_outside) = route(of_family(socket, address)?);
    if socket.kind == Kind::Datagram {
        ensure_bound(socket)?;
        let source = source_for(socket, to);
        if is_outside {
            check_outside(socket)?;
            outside::connect_datagrams(socket, to, outside_source(source)?)?;
        }
        *socket.local.borrow_mut() = Address::Inet(source);
        *socket.remote.borrow_mut() = Some(Address::Inet(to));
        return Ok(());
    }
    ensure_bound(socket)?;
    let source = source_for(socket, to);
    if is_outside {
        return outside::connect(socket, to, outside_source(source)?, nonblocking);
    }
    let target = bound::find_port(level::TCP, to, source);
    let refused = |socket: &Socket| {
        if !nonblocking {
            return Err(Errno::ECONNREFUSED);
        }
        refuse(socket);
        Err(Errno::EINPROGRESS)
    };
    let Some(target) = target else { return refused(socket) };
    let child = Socket::new(target.family, Kind::Stream, target.protocol)?;
    let v6 = target.is_v6();
    *child.local.borrow_mut() = Address::Inet(to.in_family(v6));
    *child.remote.borrow_mut() = Some(Address::Inet(source.in_family(v6)));
    child.inherit(&target);
    let admitted = match target.offer(Rc::clone(&child)) {
        Ok(admitted) => admitted.is_some(),
        Err(_) => return refused(socket),
    };
    *socket.local.borrow_mut() = Address::Inet(source);
    *socket.remote.borrow_mut() = Some(Address::Inet(to));
    if admitted {
        Socket::join(socket, &child);
        socket.queue.wake(Events::WRITABLE);
    } else {
        target.await_room(socket, child);
    }
    if nonblocking {
        socket.connecting.set(true);
        return Err(Errno::EINPROGRESS);
    }
    await_admission(socket)
}

/// Nobody listens: a client that does not wait for its connection learns of it by SO_ERROR, as over a real network.
pub(super) fn refuse(socket: &Socket) {
    socket.state.replace(State::Idle);
    socket.error.set(Some(Errno::ECONNREFUSED));
    socket.connecting.set(true);
    socket.read_ended.set(true);
    socket.write_ended.set(true);
    socket.queue.wake_all(Events::ERR | Events::HUP | Events::WRITABLE);
}

/// Waits until a listener has let a client's connection in.
pub(super) fn await_admission(socket: &Socket) -> Result<()> {
    let outcome = || (!socket.is_waiting()).then(|| socket.take_error().map_or(Ok(()), Err));
    let result = socket.wait(false, socket.send_deadline(), &socket.queue, outcome);
    // Where the time of SO_SNDTIMEO is over, or a signal has come, the attempt goes on.
    socket.connecting.set(socket.is_waiting());
    match result {
        Err(Errno::EAGAIN) => Err(Errno::EINPROGRESS),
        Err(Errno::ECONNREFUSED) => {
            socket.disconnect();
            Err(Errno::ECONNREFUSED)
        }
        other => other,
    }
}

/// A source address that the outside can answer.
///
/// # Errors
/// EINVAL for a loopback address.
fn outside_source(source: InetAddress) -> Result<InetAddress> {
    if source.ip.to_canonical().is_loopback() { Err(Errno::EINVAL) } else { Ok(source) }
}

/// Whether a protocol for datagrams leads outside.
///
/// # Errors
/// ENETUNREACH for UDP-Lite.
fn check_outside(socket: &Socket) -> Result<()> {
    if socket.protocol == level::UDP { Ok(()) } else { Err(Errno::ENETUNREACH) }
}

/// Who receives what a socket sends.
pub(super) enum DatagramTarget {
    /// Somebody at `to` here, and the source address as they see it; or nobody.
    Local { to: InetAddress, target: Option<(Rc<Socket>, InetAddress)> },
    /// `to` outside, `from` here.
    Outside { to: InetAddress, from: InetAddress },
}

/// Who receives what `socket` sends to `to`, from the address that it has chosen or the route gives.
pub(super) fn datagram_target(socket: &Rc<Socket>, to: InetAddress, chosen: Option<Source>) -> Result<DatagramTarget> {
    let (to, is_outside) = route(of_family(socket, to)?);
    ensure_bound(socket)?;
    let source = match chosen {
        Some(chosen) => chosen_source(socket, to, chosen)?,
        None => source_for(socket, to),
    };
    if is_outside {
        check_outside(socket)?;
        return Ok(DatagramTarget::Outside { to, from: outside_source(source)? });
    }
    let target = bound::find_port(socket.protocol, to, source);
    Ok(DatagramTarget::Local {
        to,
        target: target.map(|target| (Rc::clone(&target), source.in_family(target.is_v6()))),
    })
}

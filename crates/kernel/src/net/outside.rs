//! Sockets whose other end is outside of the guest: [`Connection`]s as programs see them.

use super::address::{Address, InetAddress};
use super::bound;
use super::options::level;
use super::packet::Packet;
use super::queue::Message;
use super::socket::{Kind, Socket, State};
use super::traffic::{self, Way};
use crate::errno::{Errno, Result};
use crate::host::connection::{Connection, DATAGRAM_MAX_BYTES, Owner, refuse};
use crate::wait::Events;
use alloc::collections::BTreeMap;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use torpor_abi::endpoint::{ENDPOINT_BYTES, Endpoint, Transport, network};
use torpor_abi::frame::Header;

fn endpoint(address: InetAddress) -> Endpoint {
    Endpoint::Inet(SocketAddr::new(address.ip.to_canonical(), address.port))
}

fn address(endpoint: SocketAddr) -> InetAddress {
    InetAddress { ip: endpoint.ip(), port: endpoint.port() }
}

/// The errno that the host gave; what is none is EIO.
fn errno(number: u32) -> Errno {
    i32::try_from(number).ok().filter(|n| (1..4096).contains(n)).map_or(Errno::EIO, Errno)
}

/// The guest's address towards outside addresses of a family.
pub(super) fn own_address(v6: bool) -> IpAddr {
    if v6 { IpAddr::V6(network::GUEST_V6) } else { IpAddr::V4(network::GUEST_V4) }
}

fn owner_of(socket: &Rc<Socket>) -> Weak<dyn Owner> {
    let weak: Weak<Socket> = Rc::downgrade(socket);
    weak
}

impl Owner for Socket {
    fn opened(&self) {
        self.queue.wake_all(Events::WRITABLE);
    }

    fn data(&self, first: &[u8], second: &[u8]) {
        if self.kind == Kind::Datagram {
            if let Some((from, bytes)) = split_datagram(first, second) {
                deliver(self, from, bytes);
            }
            if let Some(connection) = &*self.outside_datagrams.borrow() {
                connection.consumed(first.len() + second.len());
            }
            return;
        }
        if self.is_inet() {
            traffic::count(Way::In, first.len() + second.len());
        }
        if self.read_ended.get() {
            // Nobody will read it (SHUT_RD).
            if let Some(connection) = self.outside() {
                connection.consumed(first.len() + second.len());
            }
            return;
        }
        for piece in [first, second] {
            if !piece.is_empty() {
                self.incoming.push_stream(Message::new(piece.to_vec(), None, Vec::new(), None));
            }
        }
        self.queue.wake(Events::READABLE);
    }

    fn ended(&self) {
        self.read_ended.set(true);
        self.queue.wake_all(Events::READABLE | Events::RDHUP | Events::HUP);
    }

    fn closed(&self, number: u32) {
        if number != 0 {
            self.error.set(Some(errno(number)));
        }
        if self.kind != Kind::Datagram {
            self.read_ended.set(true);
            self.write_ended.set(true);
        }
        self.queue.wake_all(Events::all());
    }

    fn fault(&self, number: u32) {
        self.error.set(Some(errno(number)));
        self.queue.wake_all(Events::ERR | Events::READABLE);
    }

    fn writable(&self) {
        self.queue.wake(Events::WRITABLE);
    }
}

/// connect(2) of a TCP socket to an address outside.
pub(super) fn connect(socket: &Rc<Socket>, to: InetAddress, from: InetAddress, nonblocking: bool) -> Result<()> {
    let queue = Rc::clone(&socket.queue);
    let connection = Connection::open(Transport::Tcp, endpoint(to), endpoint(from), owner_of(socket), queue)?;
    *socket.state.borrow_mut() = State::Outside(connection);
    *socket.local.borrow_mut() = Address::Inet(from);
    *socket.remote.borrow_mut() = Some(Address::Inet(to));
    socket.read_ended.set(false);
    socket.write_ended.set(false);
    if nonblocking {
        socket.connecting.set(true);
        return Err(Errno::EINPROGRESS);
    }
    await_connection(socket)
}

/// Waits until a connect(2) that is under way has come to its end.
pub(super) fn await_connection(socket: &Rc<Socket>) -> Result<()> {
    let Some(connection) = socket.outside() else { return Err(Errno::EINVAL) };
    let outcome = || {
        if connection.is_opened() {
            return Some(Ok(()));
        }
        socket.take_error().map(Err)
    };
    match socket.wait(false, socket.send_deadline(), &socket.queue, outcome) {
        Ok(()) => {
            socket.connecting.set(false);
            Ok(())
        }
        // The time of SO_SNDTIMEO is over; the attempt goes on.
        Err(Errno::EAGAIN) => {
            socket.connecting.set(true);
            Err(Errno::EINPROGRESS)
        }
        Err(error @ (Errno::EINTR | Errno::ERESTARTSYS)) => {
            socket.connecting.set(true);
            Err(error)
        }
        Err(error) => {
            failed(socket);
            Err(error)
        }
    }
}

/// A connect(2) has failed: the socket may try again.
pub(super) fn failed(socket: &Socket) {
    let before = socket.state.replace(State::Idle);
    if let State::Outside(connection) = before {
        connection.close(Errno::ECONNRESET.0.unsigned_abs());
    }
    *socket.remote.borrow_mut() = None;
    socket.connecting.set(false);
    socket.read_ended.set(false);
    socket.write_ended.set(false);
}

/// A connection of the host's: TCP to a published port, a published UDP port, or vsock.
pub fn incoming(header: Header, payload: &[u8]) {
    let ends = Endpoint::first_of(payload).and_then(|to| Ok((to, Endpoint::first_of(&payload[ENDPOINT_BYTES..])?)));
    let Ok((to, from)) = ends else { return refuse(header.stream, Errno::EINVAL) };
    match (Transport::from_argument(header.argument), to, from) {
        (Some(Transport::Tcp), Endpoint::Inet(to), Endpoint::Inet(from)) => {
            accept_tcp(header, address(to), address(from))
        }
        (Some(Transport::Udp), Endpoint::Inet(to), _) => PublishedPort::open(header, to.port(), to.is_ipv6()),
        (Some(Transport::Vsock), Endpoint::Vsock { port: to, .. }, Endpoint::Vsock { port: from, .. }) => {
            super::vsock::accept(header, to, from);
        }
        _ => refuse(header.stream, Errno::EINVAL),
    }
}

/// The same end as the other family sees it: whoever comes by IPv6 to a server that knows only IPv4 comes from the
/// gateway there, as behind a proxy.
fn translated(to: InetAddress, from: InetAddress) -> (InetAddress, InetAddress) {
    let v6 = to.ip.is_ipv4();
    let gateway = if v6 { IpAddr::V6(network::GATEWAY_V6) } else { IpAddr::V4(network::GATEWAY_V4) };
    (InetAddress { ip: own_address(v6), port: to.port }, InetAddress { ip: gateway, port: from.port })
}

fn accept_tcp(header: Header, to: InetAddress, from: InetAddress) {
    let (other_to, other_from) = translated(to, from);
    let found = bound::find_port(level::TCP, to, from).map(|listener| (listener, to, from)).or_else(|| {
        bound::find_port(level::TCP, other_to, other_from).map(|listener| (listener, other_to, other_from))
    });
    let Some((listener, to, from)) = found else { return refuse(header.stream, Errno::ECONNREFUSED) };
    let Ok(child) = Socket::new(listener.family, Kind::Stream, listener.protocol) else {
        return refuse(header.stream, Errno::ENOBUFS);
    };
    let v6 = listener.is_v6();
    *child.local.borrow_mut() = Address::Inet(to.in_family(v6));
    *child.remote.borrow_mut() = Some(Address::Inet(from.in_family(v6)));
    offer(header, Transport::Tcp, &listener, &child);
}

/// Puts a new connection into a listener's backlog, or refuses it.
pub(super) fn offer(header: Header, transport: Transport, listener: &Rc<Socket>, child: &Rc<Socket>) {
    child.inherit(listener);
    let queue = Rc::clone(&child.queue);
    let Ok(connection) = Connection::take(header, transport, owner_of(child), queue) else { return };
    *child.state.borrow_mut() = State::Outside(Rc::clone(&connection));
    match listener.offer(Rc::clone(child)) {
        Ok(Some(())) => connection.accept(),
        Ok(None) | Err(_) => connection.close(Errno::ECONNREFUSED.0.unsigned_abs()),
    }
}

fn split_datagram<'a>(first: &'a [u8], second: &'a [u8]) -> Option<(InetAddress, Vec<u8>)> {
    let whole = [first, second].concat();
    match Endpoint::first_of(&whole).ok()? {
        Endpoint::Inet(from) => Some((address(from), whole[ENDPOINT_BYTES..].to_vec())),
        Endpoint::Vsock { .. } => None,
    }
}

/// Puts a datagram into a socket's queue; what does not fit, or comes from another peer than the connected one, is lost.
fn deliver(socket: &Socket, from: InetAddress, bytes: Vec<u8>) {
    traffic::count(Way::In, bytes.len());
    let stranger = socket.remote_inet().is_some_and(|remote| remote.canonical() != from.canonical());
    if stranger || socket.read_ended.get() || socket.incoming.room_bytes() < bytes.len().max(1) {
        return;
    }
    let from = from.in_family(socket.is_v6());
    let packet = Packet::from_outside(own_address(from.canonical().ip.is_ipv6()));
    socket.incoming.push(Message::datagram(bytes, from, packet));
    socket.queue.wake(Events::READABLE);
}

/// connect(2) of a UDP socket to an address outside: the host says at once whether it may be reached.
pub(super) fn connect_datagrams(socket: &Rc<Socket>, to: InetAddress, from: InetAddress) -> Result<()> {
    let queue = Rc::clone(&socket.queue);
    let connection = Connection::open(Transport::Udp, endpoint(to), endpoint(from), owner_of(socket), queue)?;
    let before = socket.outside_datagrams.replace(Some(Rc::clone(&connection)));
    if let Some(before) = before {
        before.close(0);
    }
    let outcome = || if connection.is_opened() { Some(Ok(())) } else { socket.take_error().map(Err) };
    let result = socket.wait(false, None, &socket.queue, outcome);
    if result.is_err() {
        connection.close(0);
        socket.outside_datagrams.replace(None);
    }
    result
}

/// Sends a datagram to an address outside: false while there is no room.
///
/// # Errors
/// EMSGSIZE for one that is too long to be sent in one piece; as [`Connection::open`].
pub(super) fn send_datagram(socket: &Rc<Socket>, to: InetAddress, from: InetAddress, bytes: &[u8]) -> Result<bool> {
    if bytes.len() > DATAGRAM_MAX_BYTES {
        return Err(Errno::EMSGSIZE);
    }
    let v6 = to.ip.to_canonical().is_ipv6();
    let published = PORTS.with(|ports| ports.borrow().get(&(from.port, v6)).cloned());
    if let Some(connection) = published.as_ref().and_then(|port| port.connection.borrow().clone()) {
        return Ok(connection.write_datagram(endpoint(to), bytes));
    }
    let known = socket.outside_datagrams.borrow().clone();
    let connection = match known.filter(|known| !known.is_closed()) {
        Some(known) => known,
        None => {
            let any = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
            // A connected one whose connection is gone gets another.
            let peer = socket.remote_inet().filter(|peer| peer.canonical() == to.canonical());
            let peer = peer.unwrap_or(InetAddress { ip: any, port: 0 });
            let queue = Rc::clone(&socket.queue);
            let new = Connection::open(Transport::Udp, endpoint(peer), endpoint(from), owner_of(socket), queue)?;
            *socket.outside_datagrams.borrow_mut() = Some(Rc::clone(&new));
            new
        }
    };
    Ok(connection.write_datagram(endpoint(to), bytes))
}

crate::global! {
    /// Published UDP ports by (port, IPv6).
    static PORTS: RefCell<BTreeMap<(u16, bool), Rc<PublishedPort>>> = RefCell::new(BTreeMap::new());
}

/// A UDP port that is published on the host: whoever is bound to it receives and answers through it.
struct PublishedPort {
    port: u16,
    v6: bool,
    connection: RefCell<Option<Rc<Connection>>>,
}

impl PublishedPort {
    fn open(header: Header, port: u16, v6: bool) {
        let new = Rc::new(Self { port, v6, connection: RefCell::new(None) });
        let owner: Weak<PublishedPort> = Rc::downgrade(&new);
        let Ok(connection) = Connection::take(header, Transport::Udp, owner, crate::wait::WaitQueue::new()) else {
            return;
        };
        connection.accept();
        *new.connection.borrow_mut() = Some(connection);
        PORTS.with(|ports| ports.borrow_mut().insert((port, v6), new));
    }
}

impl Owner for PublishedPort {
    fn data(&self, first: &[u8], second: &[u8]) {
        let to = InetAddress { ip: own_address(self.v6), port: self.port };
        if let Some((from, bytes)) = split_datagram(first, second)
            && let Some(socket) = bound::find_port(level::UDP, to, from)
        {
            deliver(&socket, from, bytes);
        }
        if let Some(connection) = &*self.connection.borrow() {
            connection.consumed(first.len() + second.len());
        }
    }

    fn closed(&self, _errno: u32) {
        PORTS.with(|ports| ports.borrow_mut().remove(&(self.port, self.v6)));
    }
}

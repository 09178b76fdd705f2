//! The broker of host sockets: the only one in which a guest's connections exist as sockets.
//!
//! It never blocks. Its owner polls [`Sockets::as_fd`], hands over what epoll has to say ([`Sockets::look`]) and the
//! guest's frames ([`Sockets::take`]), and lets it fill messages ([`Sockets::fill`]). What is held for a guest is bounded
//! by the windows it was given, these by a budget; what is held for the host's peers stays in the host's sockets.

mod bytes;
mod datagrams;
mod names;
mod publish;
mod vsock;

pub use publish::{Bound, Publish};
pub use vsock::Vsock;

use crate::ledger::{Side, Violation};
use crate::outbox::Outbox;
use crate::policy::{self, Policy};
use bytes::{ByteStream, Served};
use datagrams::DatagramStream;
use names::{Asker, Names};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, acceptfrom_with, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use torpor_abi::endpoint::{ENDPOINT_BYTES, Endpoint, Transport, network};
use torpor_abi::frame::{Header, MAX_PAYLOAD_BYTES, is_guest_number, kind, stream};

/// What all streams together may grow beyond their first window.
const GROWTH_BUDGET_BYTES: usize = 64 << 20;
/// Connections that were offered to the guest and not answered; more wait in the host's kernel.
const OFFERED_MAX: usize = 256;
/// Host programs that have connected to vsock and not said where to.
const CALLERS_MAX: usize = 64;
const NAMES_PORT: u16 = 53;

/// A buffer for one payload.
type Chunk = [u8; MAX_PAYLOAD_BYTES as usize];

/// Kinds of epoll tokens; the rest of a token is a number of that kind.
mod token {
    pub(super) const STREAM: u64 = 0;
    pub(super) const LISTENER: u64 = 1 << 32;
    pub(super) const NAMES: u64 = 2 << 32;
    pub(super) const PEER: u64 = 3 << 32;
    pub(super) const CALLER: u64 = 4 << 32;
    pub(super) const KIND: u64 = !0 << 32;
}

enum Stream {
    Bytes(ByteStream),
    Datagrams(DatagramStream),
}

enum Listener {
    Tcp { socket: OwnedFd, guest_port: u16 },
    Vsock(Vsock),
}

/// See the module's text.
pub struct Sockets {
    epoll: OwnedFd,
    policy: Policy,
    names: Names,
    listeners: Vec<Listener>,
    /// Listeners that may have a connection.
    acceptable: HashSet<usize>,
    callers: HashMap<u64, vsock::Caller>,
    streams: HashMap<u32, Stream>,
    /// Streams of which each has something to do, once.
    active: VecDeque<u32>,
    is_active: HashSet<u32>,
    /// Frames of no stream that is served: openings and last words.
    control: VecDeque<(Header, Vec<u8>)>,
    /// Streams by the tokens of their peers' sockets.
    peers: HashMap<u64, u32>,
    offered: usize,
    growth_bytes: usize,
    next_number: u32,
    next_token: u64,
    buffer: Box<Chunk>,
}

/// What streams need of the whole to reach the outside.
pub(crate) struct Reach<'a> {
    policy: &'a Policy,
    names: &'a mut Names,
    epoll: &'a OwnedFd,
    peers: &'a mut HashMap<u64, u32>,
    next_token: &'a mut u64,
}

impl Reach<'_> {
    fn is_names(&self, to: SocketAddr) -> bool {
        to.ip().to_canonical() == IpAddr::V4(network::NAMES_V4) && to.port() == NAMES_PORT
    }

    fn ask(&mut self, asker: Asker, query: &[u8]) -> Option<Vec<u8>> {
        self.names.ask(asker, query, self.policy.allows_names())
    }

    /// Where a connection to `to` really goes, if it may.
    fn judge(&self, to: SocketAddr) -> Result<SocketAddr, Errno> {
        let target = hosts_name(to);
        if is_guest_network(target.ip()) {
            return Err(Errno::HOSTUNREACH);
        }
        if self.policy.allows(target.ip(), policy::is_own) { Ok(target) } else { Err(Errno::ACCESS) }
    }

    fn watch_peer(&mut self, socket: &OwnedFd, number: u32) -> Result<u64, Errno> {
        let token = token::PEER | *self.next_token;
        *self.next_token = (*self.next_token + 1) & u64::from(u32::MAX);
        watch(self.epoll, socket, token)?;
        self.peers.insert(token, number);
        Ok(token)
    }

    fn forget(&mut self, token: u64) {
        self.peers.remove(&token);
    }
}

/// An address of the guest's as the host knows it: the gateway is the host's loopback address.
fn hosts_name(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip().to_canonical() {
        IpAddr::V4(network::GATEWAY_V4) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(network::GATEWAY_V6) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The other way round. Loopback addresses mean the guest itself there, and programs trust them.
#[must_use]
pub fn guests_name(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip().to_canonical() {
        IpAddr::V4(v4) if v4.is_loopback() => IpAddr::V4(network::GATEWAY_V4),
        IpAddr::V6(v6) if v6.is_loopback() => IpAddr::V6(network::GATEWAY_V6),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn is_guest_network(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == network::GUEST_V4.octets()[..3],
        IpAddr::V6(v6) => v6.segments()[..4] == network::GUEST_V6.segments()[..4],
    }
}

fn watch(epoll: &OwnedFd, socket: impl AsFd, token: u64) -> Result<(), Errno> {
    let events = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    epoll::add(epoll, socket, EventData::new_u64(token), events)
}

/// The number by which the guest knows an error. What is the host's own trouble becomes a lack of buffers.
fn errno_of(error: Errno) -> u32 {
    let error =
        if matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOSPC) { Errno::NOBUFS } else { error };
    error.raw_os_error().unsigned_abs()
}

impl Sockets {
    /// For one VM: its policy, its published ports, its vsock.
    ///
    /// # Errors
    /// What epoll_create1(2) and eventfd(2) give.
    pub fn new(policy: Policy, bound: Vec<Bound>, vsock: Option<Vsock>) -> io::Result<Self> {
        raise_descriptor_limit();
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let names = Names::new()?;
        watch(&epoll, names.as_fd(), token::NAMES)?;
        let mut sockets = Self {
            epoll,
            policy,
            names,
            listeners: Vec::new(),
            acceptable: HashSet::new(),
            callers: HashMap::new(),
            streams: HashMap::new(),
            active: VecDeque::new(),
            is_active: HashSet::new(),
            control: VecDeque::new(),
            peers: HashMap::new(),
            offered: 0,
            growth_bytes: GROWTH_BUDGET_BYTES,
            next_number: stream::FIRST_DYNAMIC,
            next_token: 0,
            buffer: Box::new([0; MAX_PAYLOAD_BYTES as usize]),
        };
        for one in bound {
            match one.transport {
                Transport::Udp => sockets.publish_datagrams(one)?,
                _ => sockets.add_listener(Listener::Tcp { socket: one.socket, guest_port: one.guest_port })?,
            }
        }
        if let Some(vsock) = vsock {
            sockets.add_listener(Listener::Vsock(vsock))?;
        }
        Ok(sockets)
    }

    fn add_listener(&mut self, listener: Listener) -> Result<(), Errno> {
        let token = token::LISTENER | self.listeners.len() as u64;
        match &listener {
            Listener::Tcp { socket, .. } => watch(&self.epoll, socket, token)?,
            Listener::Vsock(vsock) => watch(&self.epoll, &vsock.listener, token)?,
        }
        self.listeners.push(listener);
        Ok(())
    }

    fn publish_datagrams(&mut self, bound: Bound) -> Result<(), Errno> {
        let number = self.next_number;
        self.next_number += 2;
        watch(&self.epoll, &bound.socket, token::STREAM | u64::from(number))?;
        let (to, any) = if bound.local.is_ipv6() {
            (IpAddr::V6(network::GUEST_V6), IpAddr::V6(Ipv6Addr::UNSPECIFIED))
        } else {
            (IpAddr::V4(network::GUEST_V4), IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        };
        self.announce(number, Transport::Udp, [inet(to, bound.guest_port), inet(any, 0)]);
        self.streams.insert(number, Stream::Datagrams(DatagramStream::new(self.next_token, Some(bound.socket))));
        self.next_token += 1;
        self.activate(number);
        Ok(())
    }

    fn announce(&mut self, number: u32, transport: Transport, ends: [Endpoint; 2]) {
        let payload = ends.map(|end| end.encode()).concat();
        let len = payload.len() as u32;
        let header = Header { stream: number, kind: kind::OPEN, len, argument: transport as u32 };
        self.control.push_back((header, payload));
    }

    /// Readable when [`Sockets::look`] has something to see.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Bytes of the guest that wait for the host's sockets.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.streams.values().all(|stream| match stream {
            Stream::Bytes(bytes) => bytes.waiting_bytes() == 0,
            Stream::Datagrams(_) => true,
        })
    }

    /// The VM is gone: sockets stay as long as there is something to write, the others go.
    pub fn finish(&mut self) {
        self.listeners.clear();
        self.streams.retain(|_, stream| matches!(stream, Stream::Bytes(bytes) if bytes.waiting_bytes() > 0));
        for stream in self.streams.values_mut() {
            if let Stream::Bytes(bytes) = stream {
                bytes.close();
            }
        }
    }

    /// Everything is reset.
    pub fn reset(mut self) {
        for (_, stream) in self.streams.drain() {
            if let Stream::Bytes(bytes) = stream {
                bytes.reset();
            }
        }
    }

    /// Resets one stream, which the guest no longer knows as we do.
    pub fn abort(&mut self, number: u32) {
        if self.streams.contains_key(&number) {
            self.end_stream(number, true);
            self.last_word(number, errno_of(Errno::CONNRESET));
        }
    }

    /// Keeps so many connections, and resets the youngest of the others.
    pub fn keep_connections(&mut self, count: usize) {
        let mut numbers: Vec<u32> = self
            .streams
            .iter()
            .filter_map(|(number, stream)| matches!(stream, Stream::Bytes(_)).then_some(*number))
            .collect();
        numbers.sort_unstable();
        for number in numbers.into_iter().skip(count) {
            self.abort(number);
        }
    }

    /// The policy from now on; what is connected stays so.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// All streams that are open.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Those of them that are connections.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.streams.values().filter(|stream| matches!(stream, Stream::Bytes(_))).count()
    }

    /// Whether someone outside has something to say to a guest that may not be spoken to: bytes, an end, an answer.
    #[must_use]
    pub fn has_word(&self) -> bool {
        self.active.iter().any(|number| match self.streams.get(number) {
            Some(Stream::Bytes(bytes)) => bytes.has_word(),
            Some(Stream::Datagrams(datagrams)) => datagrams.has_word(),
            None => false,
        })
    }

    fn activate(&mut self, number: u32) {
        if self.is_active.insert(number) {
            self.active.push_back(number);
        }
    }

    /// Takes in what epoll has to say; returns whether there may be more.
    pub fn look(&mut self) -> bool {
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 128];
        let count = match epoll::wait(&self.epoll, &mut events[..], Some(&rustix::event::Timespec::default())) {
            Ok(count) => count,
            Err(Errno::INTR) => return true,
            // Nothing else can go wrong with a descriptor of our own; the next call would say the same.
            Err(_) => return false,
        };
        for event in &events[..count] {
            let (flags, token) = (event.flags, event.data.u64());
            let number = (token & !token::KIND) as u32;
            match token & token::KIND {
                token::STREAM => self.stream_ready(number, token, flags),
                token::LISTENER => {
                    self.acceptable.insert(number as usize);
                }
                token::NAMES => self.take_answers(),
                token::PEER => {
                    if let Some(&number) = self.peers.get(&token) {
                        self.stream_ready(number, token, flags);
                    }
                }
                _ => self.caller_ready(token),
            }
        }
        count == events.len()
    }

    fn stream_ready(&mut self, number: u32, token: u64, flags: EventFlags) {
        match self.streams.get_mut(&number) {
            Some(Stream::Bytes(bytes)) => bytes.ready(flags),
            Some(Stream::Datagrams(datagrams)) => datagrams.ready(token),
            None => return,
        }
        self.activate(number);
    }

    fn take_answers(&mut self) {
        for (asker, answer) in self.names.answers() {
            if let Some(Stream::Datagrams(datagrams)) = self.streams.get_mut(&asker.stream)
                && datagrams.serial == asker.serial
            {
                datagrams.answer(asker.server, answer);
                self.activate(asker.stream);
            }
        }
    }

    fn caller_ready(&mut self, token: u64) {
        let Some(caller) = self.callers.get_mut(&token) else { return };
        match caller.port() {
            Ok(None) => {}
            Ok(Some(port)) => {
                let caller = self.callers.remove(&token).expect("just found");
                // The descriptor gets a token of its own as a stream.
                let _ = epoll::delete(&self.epoll, &caller.socket);
                self.offer_vsock(caller.socket, port);
            }
            Err(_) => {
                self.callers.remove(&token);
            }
        }
    }

    /// A frame of the guest on a connection; the ledger has judged it.
    ///
    /// # Errors
    /// A payload that can't be read.
    pub fn take(&mut self, header: &Header, payload: &[u8]) -> Result<(), Violation> {
        let number = header.stream;
        let unreadable = |_| Violation::Payload { stream: number, kind: header.kind };
        if header.kind == kind::OPEN {
            let to = Endpoint::first_of(payload).map_err(unreadable)?;
            let from = Endpoint::first_of(payload.get(ENDPOINT_BYTES..).unwrap_or(&[])).map_err(unreadable)?;
            let transport = Transport::from_argument(header.argument).ok_or(Violation::Number(number))?;
            return self.open(number, transport, to, from);
        }
        // A stream that has said its last word already hears nothing more.
        let Some(stream) = self.streams.get_mut(&number) else { return Ok(()) };
        match (stream, header.kind) {
            (Stream::Bytes(bytes), kind::DATA) => bytes.data(payload),
            (Stream::Bytes(bytes), kind::SHUTDOWN) => bytes.end(),
            (Stream::Bytes(bytes), kind::OPENED) => {
                self.offered -= usize::from(bytes.is_offered());
                bytes.opened();
            }
            (Stream::Bytes(bytes), kind::CLOSE) if header.argument == 0 && !bytes.is_offered() => bytes.close(),
            (Stream::Datagrams(datagrams), kind::DATA) => {
                let Endpoint::Inet(to) = Endpoint::first_of(payload).map_err(unreadable)? else {
                    return Err(Violation::Payload { stream: number, kind: header.kind });
                };
                datagrams.taken(header.len);
                let mut reach = Reach {
                    policy: &self.policy,
                    names: &mut self.names,
                    epoll: &self.epoll,
                    peers: &mut self.peers,
                    next_token: &mut self.next_token,
                };
                datagrams.send(to, &payload[ENDPOINT_BYTES..], &mut reach, number);
            }
            (_, kind::CLOSE) => {
                self.end_stream(number, true);
                self.last_word(number, 0);
                return Ok(());
            }
            _ => {}
        }
        self.activate(number);
        Ok(())
    }

    fn open(&mut self, number: u32, transport: Transport, to: Endpoint, from: Endpoint) -> Result<(), Violation> {
        let mismatch = Err(Violation::Payload { stream: number, kind: kind::OPEN });
        match (transport, to, from) {
            (Transport::Tcp, Endpoint::Inet(to), Endpoint::Inet(_)) => match self.connect(to) {
                Ok(socket) => self.add_bytes(number, ByteStream::connecting(socket)),
                Err(error) => self.last_word(number, errno_of(error)),
            },
            (Transport::Udp, Endpoint::Inet(to), Endpoint::Inet(_)) => {
                let mut datagrams = DatagramStream::new(self.next_token, None);
                self.next_token += 1;
                if to.port() != 0 {
                    let mut reach = Reach {
                        policy: &self.policy,
                        names: &mut self.names,
                        epoll: &self.epoll,
                        peers: &mut self.peers,
                        next_token: &mut self.next_token,
                    };
                    if let Err(error) = datagrams.connect(to, &mut reach, number) {
                        self.last_word(number, errno_of(error));
                        return Ok(());
                    }
                    let header = Header { stream: number, kind: kind::OPENED, len: 0, argument: 0 };
                    self.control.push_back((header, Vec::new()));
                }
                self.streams.insert(number, Stream::Datagrams(datagrams));
                self.activate(number);
            }
            (Transport::Vsock, Endpoint::Vsock { cid, port }, Endpoint::Vsock { .. }) => {
                match self.connect_vsock(cid, port) {
                    Ok(socket) => self.add_bytes(number, ByteStream::connecting(socket)),
                    Err(error) => self.last_word(number, errno_of(error)),
                }
            }
            _ => return mismatch,
        }
        Ok(())
    }

    /// Begins a TCP connection of the guest.
    fn connect(&mut self, to: SocketAddr) -> Result<OwnedFd, Errno> {
        let reach = Reach {
            policy: &self.policy,
            names: &mut self.names,
            epoll: &self.epoll,
            peers: &mut self.peers,
            next_token: &mut self.next_token,
        };
        if reach.is_names(to) {
            return Err(Errno::CONNREFUSED);
        }
        let target = reach.judge(to)?;
        let family = if target.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        prepare(&socket)?;
        match rustix::net::connect(&socket, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error),
        }
    }

    fn connect_vsock(&self, cid: u32, port: u32) -> Result<OwnedFd, Errno> {
        let vsock = self.listeners.iter().find_map(|listener| match listener {
            Listener::Vsock(vsock) => Some(vsock),
            Listener::Tcp { .. } => None,
        });
        if cid != network::HOST_CID {
            return Err(Errno::NODEV);
        }
        // As virtio-vsock answers for a port where nobody listens.
        vsock.ok_or(Errno::CONNRESET)?.connect(port).map_err(|_| Errno::CONNRESET)
    }

    fn add_bytes(&mut self, number: u32, bytes: ByteStream) {
        if let Err(error) = watch(&self.epoll, bytes.socket(), token::STREAM | u64::from(number)) {
            return self.last_word(number, errno_of(error));
        }
        self.offered += usize::from(bytes.is_offered());
        self.streams.insert(number, Stream::Bytes(bytes));
        self.activate(number);
    }

    fn last_word(&mut self, number: u32, errno: u32) {
        self.control.push_back((Header { stream: number, kind: kind::CLOSE, len: 0, argument: errno }, Vec::new()));
    }

    /// Gives up a stream's sockets.
    fn end_stream(&mut self, number: u32, reset: bool) {
        match self.streams.remove(&number) {
            Some(Stream::Bytes(bytes)) => {
                self.offered -= usize::from(bytes.is_offered());
                self.growth_bytes += bytes.growth_bytes();
                if reset {
                    bytes.reset();
                }
            }
            Some(Stream::Datagrams(datagrams)) => datagrams.close(|token| {
                self.peers.remove(&token);
            }),
            None => {}
        }
    }

    /// Accepts what the guest can be offered now.
    fn accept(&mut self, out: &Outbox) {
        for at in std::mem::take(&mut self.acceptable) {
            loop {
                let waiting = self.offered + self.control.len();
                if waiting >= OFFERED_MAX || !out.ledger.may_open(Side::Host) {
                    self.acceptable.insert(at);
                    break;
                }
                let Some(listener) = self.listeners.get(at) else { break };
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let (socket, guest_port) = match listener {
                    Listener::Tcp { socket, guest_port } => (socket, Some(*guest_port)),
                    Listener::Vsock(vsock) => (&vsock.listener, None),
                };
                match (acceptfrom_with(socket, flags), guest_port) {
                    (Ok((socket, Some(peer))), Some(port)) => {
                        if let Ok(peer) = SocketAddr::try_from(peer)
                            && prepare(&socket).is_ok()
                        {
                            self.offer_tcp(out, socket, peer, port);
                        }
                    }
                    (Ok((socket, _)), _) => self.greet(socket),
                    (Err(Errno::AGAIN), _) => break,
                    (Err(Errno::INTR | Errno::CONNABORTED), _) => {}
                    // Too many descriptors, say: tried again when something has changed.
                    (Err(_), _) => {
                        self.acceptable.insert(at);
                        break;
                    }
                }
            }
        }
    }

    fn greet(&mut self, socket: OwnedFd) {
        let token = token::CALLER | self.next_token;
        self.next_token += 1;
        if self.callers.len() < CALLERS_MAX && watch(&self.epoll, &socket, token).is_ok() {
            self.callers.insert(token, vsock::Caller::new(socket));
        }
    }

    /// A number that is free: in the ledger, and among those that are about to be entered there.
    fn free_number(&mut self, taken: impl Fn(u32) -> bool) -> u32 {
        loop {
            let number = self.next_number;
            self.next_number = number.checked_add(2).unwrap_or(stream::FIRST_DYNAMIC);
            debug_assert!(!is_guest_number(number));
            if !taken(number) && !self.streams.contains_key(&number) {
                return number;
            }
        }
    }

    fn offer_tcp(&mut self, out: &Outbox, socket: OwnedFd, peer: SocketAddr, guest_port: u16) {
        let number = self.free_number(|number| out.ledger.connection(number).is_some());
        let from = guests_name(peer);
        let to = if from.is_ipv6() { IpAddr::V6(network::GUEST_V6) } else { IpAddr::V4(network::GUEST_V4) };
        self.announce(number, Transport::Tcp, [inet(to, guest_port), Endpoint::Inet(from)]);
        self.add_bytes(number, ByteStream::offered(socket, None));
    }

    fn offer_vsock(&mut self, socket: OwnedFd, port: u32) {
        // Numbers of vsock are few: that the ledger still has one of 2^31 before is not to be expected, and is looked at
        // when the frame is sent.
        let number = self.free_number(|_| false);
        let to = Endpoint::Vsock { cid: network::GUEST_CID, port };
        let from = Endpoint::Vsock { cid: network::HOST_CID, port: number };
        self.announce(number, Transport::Vsock, [to, from]);
        self.add_bytes(number, ByteStream::offered(socket, Some(format!("OK {port}\n").into_bytes())));
    }

    /// Appends to the message what there is to say, as far as it fits.
    pub fn fill(&mut self, out: &mut Outbox) {
        self.accept(out);
        while let Some((header, payload)) = self.control.front() {
            if !out.message.fits(header.len) {
                return;
            }
            out.push(*header, payload);
            self.control.pop_front();
        }
        for _ in 0..self.active.len() {
            let Some(number) = self.active.pop_front() else { break };
            self.is_active.remove(&number);
            let full = match self.streams.get_mut(&number) {
                None => false,
                Some(Stream::Datagrams(datagrams)) => datagrams.serve(number, out, &mut self.buffer),
                Some(Stream::Bytes(bytes)) => {
                    match bytes.serve(number, out, &mut self.buffer, &mut self.growth_bytes) {
                        Served::Waiting => false,
                        Served::More => true,
                        Served::Over => {
                            self.end_stream(number, false);
                            false
                        }
                    }
                }
            };
            if full {
                self.activate(number);
                // Others may still have a few bytes to say, but in the order in which they came.
                return;
            }
        }
    }

    /// Whether [`Sockets::fill`] has more to say.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.active.is_empty() || !self.control.is_empty()
    }
}

fn inet(ip: IpAddr, port: u16) -> Endpoint {
    Endpoint::Inet(SocketAddr::new(ip, port))
}

/// What every TCP socket gets: each frame is sent at once, and a peer that is gone is noticed.
fn prepare(socket: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)
}

/// As many descriptors as this process may have: every connection is one.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where it can't be raised the old one holds, and accept(2) says so when it is reached.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

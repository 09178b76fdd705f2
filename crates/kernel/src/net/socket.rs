//! The socket itself: what it is, whom it is connected to, and its life.

use super::address::{Address, InetAddress, UnixName, VsockAddress};
use super::options::{Options, level, name};
use super::queue::{Message, Queue, Sender};
use super::{bound, inet, interfaces, outside, unix, vsock};
use crate::errno::{Errno, Result};
use crate::event::anon;
use crate::fs::file::{FileOps, OpenFile};
use crate::fs::inode::{FileType, Metadata, SetMetadata};
use crate::host::connection::Connection;
use crate::mm::addr::UserAddr;
use crate::mm::user::{self, Dest, Source};
use crate::task::current;
use crate::task::sched::{Sleep, WaitError, wait_until};
use crate::time::{self, Instant};
use crate::wait::{Events, WaitQueue};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use core::any::Any;
use core::cell::{Cell, RefCell};
use linux_raw_sys::general::CAP_NET_ADMIN;

/// net.core.rmem_default.
const DEFAULT_BUFFER_BYTES: usize = 212_992;
/// net.core.rmem_max and wmem_max, doubled as setsockopt(2) does.
const MAX_BUFFER_BYTES: usize = 2 * 212_992;
/// SOCK_MIN_RCVBUF, about.
const MIN_BUFFER_BYTES: usize = 4608;
/// net.core.somaxconn.
const MAX_BACKLOG: usize = 4096;
/// Device number of sockets: major 0, minor 8.
const SOCKET_DEV: u64 = 8;
/// How many sockets there may be.
const MAX_SOCKETS: usize = 1 << 20;

/// SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names of socket(2)")]
pub enum Kind {
    Stream = 1,
    Datagram = 2,
    SeqPacket = 5,
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of socket(2)")]
pub enum Family {
    Unix = 1,
    Inet = 2,
    Inet6 = 10,
    Netlink = 16,
    Vsock = 40,
}

/// Connections that nobody has accepted yet.
pub(super) struct Listener {
    pub(super) pending: VecDeque<Rc<Socket>>,
    pub(super) backlog: usize,
    /// Connections of TCP for which there was no room, in the order in which they came; each is held by its client.
    waiting: VecDeque<Weak<Socket>>,
}

pub(super) enum State {
    Idle,
    Listening(Listener),
    /// The other end; it may be gone.
    Connected(Weak<Socket>),
    /// A client of TCP for whose connection, the other end, the listener has no room yet: a SYN that is repeated.
    Waiting(#[expect(dead_code, reason = "holds it")] Rc<Socket>),
    /// With an end outside: connected, or about to be.
    Outside(Rc<Connection>),
}

/// A socket.
pub struct Socket {
    /// Address family.
    pub family: Family,
    /// Type.
    pub kind: Kind,
    /// Protocol number as SO_PROTOCOL tells.
    pub protocol: u32,
    /// Options that are numbers.
    pub options: Options,
    pub(super) incoming: Queue,
    pub(super) queue: Rc<WaitQueue>,
    /// Unix datagram sockets that have connected to this one and wait for its room.
    pub(super) senders: RefCell<alloc::vec::Vec<Weak<Socket>>>,
    pub(super) state: RefCell<State>,
    pub(super) local: RefCell<Address>,
    pub(super) remote: RefCell<Option<Address>>,
    /// SHUT_RD, or the peer has shut down its writing half (or is gone).
    pub(super) read_ended: Cell<bool>,
    pub(super) write_ended: Cell<bool>,
    /// SO_ERROR.
    pub(super) error: Cell<Option<Errno>>,
    /// Credentials of the peer at connect(2) or listen(2) (SO_PEERCRED).
    pub(super) peer_sender: Cell<Sender>,
    /// A connect(2) that was answered with EINPROGRESS and not asked about since.
    pub(super) connecting: Cell<bool>,
    /// A datagram socket's way to the outside, once it was used.
    pub(super) outside_datagrams: RefCell<Option<Rc<Connection>>>,
    send_buffer_bytes: Cell<usize>,
    receive_timeout_ns: Cell<u64>,
    send_timeout_ns: Cell<u64>,
    linger: Cell<[i32; 2]>,
    metadata: Cell<Metadata>,
}

crate::global! {
    static COUNT: Cell<usize> = Cell::new(0);
}

/// Pid, effective uid and gid of the caller.
pub(super) fn sender() -> Sender {
    let thread = current();
    let creds = thread.creds();
    [thread.process.pid(), creds.euid, creds.egid]
}

/// What fstat(2) tells of a new socket of the caller's.
fn metadata() -> Metadata {
    let creds = current().creds();
    Metadata {
        dev: SOCKET_DEV,
        ino: anon::unique_ino(),
        file_type: FileType::Socket,
        mode: 0o777,
        uid: creds.fsuid,
        gid: creds.fsgid,
        ..anon::metadata()
    }
}

impl Socket {
    /// A new socket.
    ///
    /// # Errors
    /// ENFILE when there are too many.
    pub fn new(family: Family, kind: Kind, protocol: u32) -> Result<Rc<Self>> {
        COUNT.with(|count| {
            if count.get() >= MAX_SOCKETS {
                return Err(Errno::ENFILE);
            }
            count.set(count.get() + 1);
            Ok(())
        })?;
        let local = match family {
            Family::Unix => Address::Unix(UnixName::Unnamed),
            Family::Netlink => Address::Netlink(0),
            Family::Vsock => Address::Vsock(VsockAddress { cid: u32::MAX, port: u32::MAX }),
            _ => Address::Inet(InetAddress::any(family == Family::Inet6)),
        };
        Ok(Rc::new(Self {
            family,
            kind,
            protocol,
            options: Options::default(),
            incoming: Queue::new(DEFAULT_BUFFER_BYTES),
            queue: WaitQueue::new(),
            senders: RefCell::default(),
            state: RefCell::new(State::Idle),
            local: RefCell::new(local),
            remote: RefCell::new(None),
            read_ended: Cell::new(false),
            write_ended: Cell::new(false),
            error: Cell::new(None),
            peer_sender: Cell::new([0, u32::MAX, u32::MAX]),
            connecting: Cell::new(false),
            outside_datagrams: RefCell::new(None),
            send_buffer_bytes: Cell::new(DEFAULT_BUFFER_BYTES),
            receive_timeout_ns: Cell::new(0),
            send_timeout_ns: Cell::new(0),
            linger: Cell::new([0; 2]),
            metadata: Cell::new(metadata()),
        }))
    }

    /// Makes two sockets each other's peer.
    pub(super) fn join(a: &Rc<Self>, b: &Rc<Self>) {
        *a.state.borrow_mut() = State::Connected(Rc::downgrade(b));
        *b.state.borrow_mut() = State::Connected(Rc::downgrade(a));
    }

    /// socketpair(2).
    ///
    /// # Errors
    /// ENFILE.
    pub fn pair(kind: Kind) -> Result<[Rc<Self>; 2]> {
        let (a, b) = (Self::new(Family::Unix, kind, 0)?, Self::new(Family::Unix, kind, 0)?);
        Self::join(&a, &b);
        for socket in [&a, &b] {
            *socket.remote.borrow_mut() = Some(Address::Unix(UnixName::Unnamed));
            socket.peer_sender.set(sender());
        }
        Ok([a, b])
    }

    pub(super) fn is_inet(&self) -> bool {
        matches!(self.family, Family::Inet | Family::Inet6)
    }

    pub(super) fn is_unix(&self) -> bool {
        self.family == Family::Unix
    }

    /// What an accepted socket has from its listener.
    pub(super) fn inherit(&self, listener: &Socket) {
        self.options.inherit(&listener.options);
        self.send_buffer_bytes.set(listener.send_buffer_bytes.get());
        self.incoming.limit_bytes.set(listener.incoming.limit_bytes.get());
        self.linger.set(listener.linger.get());
    }

    pub(super) fn is_v6(&self) -> bool {
        self.family == Family::Inet6
    }

    pub(super) fn v6_only(&self) -> bool {
        self.options.on(level::IPV6, name::V6ONLY)
    }

    pub(super) fn what(&self) -> (bool, bool, bool) {
        (self.is_inet(), self.is_v6(), self.kind == Kind::Stream)
    }

    pub(super) fn is_listening(&self) -> bool {
        matches!(*self.state.borrow(), State::Listening(_))
    }

    /// The other end; `None` if not connected or gone.
    pub(super) fn peer(&self) -> Option<Rc<Socket>> {
        match &*self.state.borrow() {
            State::Connected(peer) => peer.upgrade(),
            _ => None,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(*self.state.borrow(), State::Connected(_) | State::Outside(_))
    }

    /// The connection of a socket whose other end is outside.
    pub(super) fn outside(&self) -> Option<Rc<Connection>> {
        match &*self.state.borrow() {
            State::Outside(connection) => Some(Rc::clone(connection)),
            _ => None,
        }
    }

    /// What connect(2) says to a stream socket that was told to connect before; None where it may do so now.
    pub(super) fn connecting_again(self: &Rc<Self>, nonblocking: bool) -> Option<Result<()>> {
        if self.is_waiting() {
            return Some(if nonblocking { Err(Errno::EALREADY) } else { inet::await_admission(self) });
        }
        let on_its_way = self.outside().is_some_and(|connection| !connection.is_opened());
        if !on_its_way && !self.connecting.get() {
            return self.is_connected().then_some(Err(Errno::EISCONN));
        }
        if let Some(error) = self.take_error() {
            if on_its_way {
                outside::failed(self);
            } else {
                self.disconnect();
                self.error.set(None);
            }
            return Some(Err(error));
        }
        if on_its_way {
            return Some(if nonblocking { Err(Errno::EALREADY) } else { outside::await_connection(self) });
        }
        if self.remote.borrow().is_none() {
            // It has failed or was reset, and somebody has heard why.
            self.disconnect();
            self.error.set(None);
            return Some(Err(Errno::ECONNABORTED));
        }
        self.connecting.set(false);
        Some(Ok(()))
    }

    /// Takes a netlink port; without a wish one that nobody has.
    pub(super) fn bind_netlink(&self, port: u32) {
        let known = matches!(*self.local.borrow(), Address::Netlink(known) if known != 0);
        if !known {
            let port = if port == 0 { anon::unique_ino() as u32 | 1 << 31 } else { port };
            *self.local.borrow_mut() = Address::Netlink(port);
        }
    }

    /// TCP's name for the state: TCP_ESTABLISHED 1, SYN_SENT 2, CLOSE 7, CLOSE_WAIT 8, LISTEN 10.
    pub(super) fn tcp_state(&self) -> u8 {
        match () {
            () if self.is_listening() => 10,
            () if self.is_waiting() => 2,
            () if !self.is_connected() => 7,
            () if self.outside().is_some_and(|connection| !connection.is_opened()) => 2,
            () if self.read_ended.get() => 8,
            () => 1,
        }
    }

    /// Inode number.
    pub(super) fn ino(&self) -> u64 {
        self.metadata.get().ino
    }

    /// Owner.
    pub(super) fn uid(&self) -> u32 {
        self.metadata.get().uid
    }

    /// Local address of a vsock socket.
    pub(super) fn local_vsock(&self) -> VsockAddress {
        match &*self.local.borrow() {
            Address::Vsock(address) => *address,
            _ => VsockAddress { cid: u32::MAX, port: u32::MAX },
        }
    }

    /// Local address of an inet socket.
    pub(super) fn local_inet(&self) -> InetAddress {
        match &*self.local.borrow() {
            Address::Inet(address) => *address,
            _ => InetAddress::any(self.is_v6()),
        }
    }

    pub(super) fn remote_inet(&self) -> Option<InetAddress> {
        match &*self.remote.borrow() {
            Some(Address::Inet(address)) => Some(*address),
            _ => None,
        }
    }

    /// getsockname(2).
    #[must_use]
    pub fn local_address(&self) -> Address {
        self.local.borrow().clone()
    }

    /// getpeername(2).
    ///
    /// # Errors
    /// ENOTCONN.
    pub fn remote_address(&self) -> Result<Address> {
        let opened = self.outside().is_none_or(|connection| connection.is_opened());
        if self.kind != Kind::Datagram && !(self.is_connected() && opened) {
            return Err(Errno::ENOTCONN);
        }
        self.remote.borrow().clone().ok_or(Errno::ENOTCONN)
    }

    /// bind(2).
    ///
    /// # Errors
    /// As bind(2).
    pub fn bind(self: &Rc<Self>, address: &Address) -> Result<()> {
        match (self.family, address) {
            (Family::Unix, Address::Unix(name)) => unix::bind(self, name),
            (Family::Vsock, Address::Vsock(address)) => vsock::bind(self, *address),
            (Family::Netlink, Address::Netlink(port)) => {
                self.bind_netlink(*port);
                Ok(())
            }
            (Family::Unix | Family::Vsock | Family::Netlink, _) => Err(Errno::EINVAL),
            (_, Address::Inet(address)) => inet::bind(self, *address),
            (Family::Inet, Address::Unspecified) => inet::bind(self, InetAddress::any(false)),
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }

    /// listen(2).
    ///
    /// # Errors
    /// EOPNOTSUPP for datagrams, EINVAL if connected or a Unix socket without name, EADDRINUSE.
    pub fn listen(self: &Rc<Self>, backlog: i32) -> Result<()> {
        if self.kind == Kind::Datagram {
            return Err(Errno::EOPNOTSUPP);
        }
        if self.is_connected() || self.connecting.get() {
            return Err(Errno::EINVAL);
        }
        let backlog = usize::try_from(backlog).unwrap_or(usize::MAX).min(MAX_BACKLOG);
        if let State::Listening(listener) = &mut *self.state.borrow_mut() {
            listener.backlog = backlog;
        }
        if self.is_listening() {
            self.admit();
            return Ok(());
        }
        match self.family {
            Family::Unix if self.local_address() == Address::Unix(UnixName::Unnamed) => return Err(Errno::EINVAL),
            Family::Vsock if self.local_vsock().port == u32::MAX => return Err(Errno::EINVAL),
            Family::Unix | Family::Vsock | Family::Netlink => {}
            Family::Inet | Family::Inet6 => inet::before_listen(self)?,
        }
        self.peer_sender.set(sender());
        *self.state.borrow_mut() =
            State::Listening(Listener { pending: VecDeque::new(), backlog, waiting: VecDeque::new() });
        Ok(())
    }

    /// The next connection of a listener.
    fn try_accept(&self) -> Result<Option<Rc<Socket>>> {
        match &mut *self.state.borrow_mut() {
            // A Unix listener that was shut down stays one, and accepts nothing more.
            State::Listening(listener) if listener.pending.is_empty() && self.read_ended.get() => Err(Errno::EINVAL),
            State::Listening(listener) => Ok(listener.pending.pop_front()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// accept(2).
    ///
    /// # Errors
    /// EINVAL if not listening, EAGAIN, ERESTARTSYS.
    pub fn accept(&self, nonblocking: bool) -> Result<Rc<Socket>> {
        if self.kind == Kind::Datagram {
            return Err(Errno::EOPNOTSUPP);
        }
        let accepted =
            self.wait(nonblocking, self.receive_deadline(), &self.queue, || self.try_accept().transpose())?;
        // Somebody may wait for room in the backlog.
        self.admit();
        self.queue.wake(Events::WRITABLE);
        Ok(accepted)
    }

    /// Lets those in that wait for room in the backlog.
    fn admit(&self) {
        while let Some(child) = self.next_admitted() {
            if let Some(client) = child.peer() {
                Socket::join(&client, &child);
                client.queue.wake(Events::WRITABLE);
            }
            self.queue.wake(Events::READABLE);
        }
    }

    fn next_admitted(&self) -> Option<Rc<Socket>> {
        let State::Listening(listener) = &mut *self.state.borrow_mut() else { return None };
        if listener.pending.len() > listener.backlog {
            return None;
        }
        loop {
            // One whose client has given up is gone.
            if let Some(child) = listener.waiting.pop_front()?.upgrade() {
                listener.pending.push_back(Rc::clone(&child));
                return Some(child);
            }
        }
    }

    /// Lets a client wait for room in the backlog, with the other end of its connection.
    pub(super) fn await_room(&self, client: &Rc<Socket>, child: Rc<Socket>) {
        let State::Listening(listener) = &mut *self.state.borrow_mut() else { return };
        if listener.waiting.len() == listener.waiting.capacity() {
            listener.waiting.retain(|waiting| waiting.strong_count() > 0);
        }
        listener.waiting.push_back(Rc::downgrade(&child));
        *child.state.borrow_mut() = State::Connected(Rc::downgrade(client));
        *client.state.borrow_mut() = State::Waiting(child);
    }

    /// Whether a listener has still to let this client's connection in.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(*self.state.borrow(), State::Waiting(_))
    }

    /// Puts a new connection into a listener's backlog: `None` if that is full.
    pub(super) fn offer(&self, child: Rc<Socket>) -> Result<Option<()>> {
        {
            let mut state = self.state.borrow_mut();
            let State::Listening(listener) = &mut *state else { return Err(Errno::ECONNREFUSED) };
            if self.read_ended.get() {
                return Err(Errno::ECONNREFUSED);
            }
            if listener.pending.len() > listener.backlog {
                return Ok(None);
            }
            listener.pending.push_back(child);
        }
        self.queue.wake(Events::READABLE);
        Ok(Some(()))
    }

    /// connect(2).
    ///
    /// # Errors
    /// As connect(2).
    pub fn connect(self: &Rc<Self>, address: &Address, nonblocking: bool) -> Result<()> {
        match (self.family, address) {
            (_, Address::Unspecified) if self.is_inet() || self.kind == Kind::Datagram => {
                self.disconnect();
                Ok(())
            }
            _ if self.is_listening() => Err(if self.is_inet() { Errno::EISCONN } else { Errno::EINVAL }),
            // A stream's state comes before the address.
            (Family::Inet | Family::Inet6, address) if self.kind == Kind::Stream => {
                match (self.connecting_again(nonblocking), address) {
                    (Some(done), _) => done,
                    (None, Address::Inet(address)) => inet::connect(self, *address, nonblocking),
                    (None, _) => Err(Errno::EAFNOSUPPORT),
                }
            }
            (Family::Unix, Address::Unix(name)) => unix::connect(self, name, nonblocking),
            (Family::Vsock, Address::Vsock(address)) => vsock::connect(self, *address, nonblocking),
            (Family::Netlink, Address::Netlink(0)) => {
                self.bind_netlink(0);
                *self.remote.borrow_mut() = Some(Address::Netlink(0));
                Ok(())
            }
            (Family::Unix | Family::Vsock | Family::Netlink, _) => Err(Errno::EINVAL),
            (_, Address::Inet(address)) => inet::connect(self, *address, nonblocking),
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }

    /// connect(2) to AF_UNSPEC: the socket is as new again, but for its own address.
    pub(super) fn disconnect(&self) {
        if self.is_unix() {
            return unix::leave_peer(self);
        }
        let state = self.state.replace(State::Idle);
        let was_connected = matches!(state, State::Connected(_) | State::Outside(_));
        if self.kind == Kind::Datagram {
            self.leave(&state, false);
        } else {
            // TCP resets a connection that it gives up so, and hears of that itself.
            self.leave(&state, true);
            self.read_ended.set(false);
            self.write_ended.set(false);
            self.connecting.set(false);
            if was_connected {
                self.error.set(Some(Errno::ECONNRESET));
            }
            drop(self.incoming.take_all());
        }
        reset_pending(state);
        *self.remote.borrow_mut() = None;
        self.queue.wake_all(Events::all());
    }

    /// A reset has come from the other end. One that had already ended its half finds nobody for ours: EPIPE.
    pub(super) fn reset(&self) {
        self.error.set(Some(if self.is_inet() && self.read_ended.get() { Errno::EPIPE } else { Errno::ECONNRESET }));
        self.read_ended.set(true);
        self.write_ended.set(true);
        if self.is_inet() {
            *self.remote.borrow_mut() = None;
        }
        self.queue.wake_all(Events::all());
    }

    /// Whether the other end is `peer`.
    pub(super) fn points_to(&self, peer: &Socket) -> bool {
        matches!(&*self.state.borrow(), State::Connected(p) if core::ptr::eq(p.as_ptr(), peer))
    }

    /// Tells the other end that this one is gone, in order or by a reset.
    fn leave(&self, state: &State, reset: bool) {
        if let State::Outside(connection) = state {
            // An attempt that is not finished is reset as well.
            let in_order = connection.is_opened() && !reset;
            connection.close(if in_order { 0 } else { Errno::ECONNRESET.0.unsigned_abs() });
        }
        if let Some(connection) = self.outside_datagrams.take() {
            connection.close(0);
        }
        let State::Connected(peer) = state else { return };
        let Some(peer) = peer.upgrade() else { return };
        if peer.points_to(self) && self.kind != Kind::Datagram {
            if reset {
                peer.reset();
            }
            peer.read_ended.set(true);
            if self.is_unix() {
                peer.write_ended.set(true);
            }
        }
        peer.queue.wake_all(Events::all());
    }

    /// Waits on `queue` as a blocking socket operation does: EAGAIN when it must not, or when its timeout is over.
    pub(super) fn wait<T>(
        &self,
        nonblocking: bool,
        deadline: Option<Instant>,
        queue: &Rc<WaitQueue>,
        mut attempt: impl FnMut() -> Option<Result<T>>,
    ) -> Result<T> {
        if let Some(done) = attempt() {
            return done;
        }
        if nonblocking {
            return Err(Errno::EAGAIN);
        }
        match wait_until(&[&self.queue, queue], deadline, Sleep::Interruptible, attempt) {
            Ok(done) => done,
            Err(WaitError::TimedOut) => Err(Errno::EAGAIN),
            // With a timeout set, a call is not restarted (signal(7)).
            Err(WaitError::Interrupted) if deadline.is_some() => Err(Errno::EINTR),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn receive_deadline(&self) -> Option<Instant> {
        Some(self.receive_timeout_ns.get()).filter(|ns| *ns > 0).map(|ns| time::now().after_ns(ns))
    }

    pub(super) fn send_deadline(&self) -> Option<Instant> {
        Some(self.send_timeout_ns.get()).filter(|ns| *ns > 0).map(|ns| time::now().after_ns(ns))
    }

    /// shutdown(2): 0 reading, 1 writing, 2 both.
    ///
    /// # Errors
    /// EINVAL, ENOTCONN.
    pub fn shutdown(&self, how: u32) -> Result<()> {
        if how > 2 {
            return Err(Errno::EINVAL);
        }
        let listening = self.is_listening();
        let associated = self.kind == Kind::Datagram && self.remote.borrow().is_some();
        if self.is_inet() && !self.is_connected() && !listening && !associated {
            // Linux shuts it down all the same.
            self.read_ended.set(self.read_ended.get() || how != 1);
            self.write_ended.set(self.write_ended.get() || how != 0);
            self.queue.wake_all(Events::all());
            return Err(Errno::ENOTCONN);
        }
        let peer = self.peer();
        if how != 1 {
            self.read_ended.set(true);
            if let Some(peer) = peer.as_ref().filter(|_| self.is_unix() && self.kind != Kind::Datagram) {
                peer.write_ended.set(true);
                peer.queue.wake_all(Events::WRITABLE | Events::HUP);
            }
        }
        if how != 0 {
            self.write_ended.set(true);
            if let Some(connection) = self.outside() {
                connection.shutdown();
            }
            if let Some(peer) = peer.as_ref().filter(|_| self.kind != Kind::Datagram) {
                peer.read_ended.set(true);
                peer.queue.wake_all(Events::READABLE | Events::RDHUP | Events::HUP);
            }
        }
        if listening && !self.is_unix() && how != 1 {
            let gone = self.state.replace(State::Idle);
            reset_pending(gone);
            self.read_ended.set(false);
            self.write_ended.set(false);
        }
        self.queue.wake_all(Events::all());
        Ok(())
    }

    /// The last descriptor is closed.
    fn close(&self) {
        let state = self.state.replace(State::Idle);
        // Data that nobody read, or SO_LINGER with 0, resets the connection.
        self.leave(&state, !self.incoming.is_empty() || self.linger.get() == [1, 0]);
        reset_pending(state);
        self.release_port();
        if let Address::Unix(UnixName::Abstract(name)) = &*self.local.borrow() {
            bound::release_abstract(self, name);
        }
        super::queue::bury(self.incoming.take_all());
        self.wake_senders();
        self.queue.wake_all(Events::all());
    }

    fn release_port(&self) {
        if self.is_inet() && self.local_inet().port != 0 {
            bound::release_port(self, self.local_inet().port);
        } else if self.family == Family::Vsock {
            vsock::release(self);
        }
    }

    /// Takes the pending error (SO_ERROR).
    pub(super) fn take_error(&self) -> Option<Errno> {
        self.error.take()
    }

    /// Whether `len` more bytes may be sent to `peer` now: any room will do for streams, a message must fit whole.
    pub(super) fn send_room(&self, peer: &Socket) -> usize {
        self.buffer_bytes(peer).saturating_sub(peer.incoming.used_bytes())
    }

    /// The two ends' buffers are one, as large as the smaller of them.
    fn buffer_bytes(&self, peer: &Socket) -> usize {
        peer.incoming.limit_bytes.get().min(self.send_buffer_bytes.get())
    }

    /// Whether a connection is told to be writable: Unix sockets while at most a quarter of the buffer is in use, TCP while a
    /// quarter is free.
    fn may_write(&self, peer: &Socket) -> bool {
        let quarter = self.buffer_bytes(peer) / 4;
        if self.is_unix() { peer.incoming.used_bytes() <= quarter } else { self.send_room(peer) > quarter }
    }

    fn poll(&self) -> Events {
        if let State::Listening(listener) = &*self.state.borrow() {
            let quiet = listener.pending.is_empty() && !self.read_ended.get();
            let ready = if quiet { Events::empty() } else { Events::READABLE };
            return ready | if self.read_ended.get() { Events::HUP } else { Events::empty() };
        }
        if self.is_waiting() {
            return Events::empty();
        }
        let mut ready = Events::empty();
        let connection = self.kind != Kind::Datagram;
        if !self.incoming.is_empty() || self.read_ended.get() {
            ready |= Events::READABLE;
        }
        if self.error.get().is_some() {
            ready |= Events::ERR;
            // The end of a TCP connection can be read. Whoever has disconnected has nothing to read, not even that.
            let tcp = self.is_inet() && connection;
            let ended = tcp && (self.is_connected() || self.connecting.get());
            ready |= if ended { Events::READABLE | Events::WRITABLE } else { Events::empty() };
        }
        if connection {
            if self.read_ended.get() {
                ready |= Events::RDHUP;
            }
            if (self.read_ended.get() && self.write_ended.get()) || !self.is_connected() {
                ready |= Events::HUP;
            }
            if let Some(connection) = self.outside() {
                if self.write_ended.get() || connection.write_room() > 0 {
                    ready |= Events::WRITABLE;
                }
                return ready;
            }
            match self.peer() {
                Some(peer) if self.may_write(&peer) => ready |= Events::WRITABLE,
                Some(_) => {}
                None => ready |= Events::WRITABLE,
            }
            if self.write_ended.get() {
                ready |= Events::WRITABLE;
            }
        } else {
            if self.peer().is_none_or(|peer| self.may_write(&peer)) {
                ready |= Events::WRITABLE;
            }
            if self.read_ended.get() {
                ready |= Events::RDHUP;
                ready |= if self.write_ended.get() { Events::HUP } else { Events::empty() };
            }
        }
        ready
    }

    /// Whether sockets of this kind have options at a level at all. Unix sockets have none but the general ones.
    fn has_level(&self, level: u32) -> bool {
        match level {
            level::SOCKET => true,
            level::IP => self.is_inet(),
            level::IPV6 => self.is_inet() && self.is_v6(),
            level::TCP => self.is_inet() && self.kind == Kind::Stream,
            level::UDP => self.is_inet() && self.kind == Kind::Datagram,
            level::VSOCK => self.family == Family::Vsock,
            level::UDPLITE => self.is_inet() && self.protocol == level::UDPLITE,
            _ => false,
        }
    }

    /// setsockopt(2) with `bytes` as the value.
    ///
    /// # Errors
    /// ENOPROTOOPT, EINVAL.
    pub fn set_option(&self, level: u32, name: u32, bytes: &[u8]) -> Result<()> {
        let int = |at: usize| -> Result<i32> {
            let word = bytes.get(at..at + 4).ok_or(Errno::EINVAL)?;
            Ok(i32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
        };
        if !self.has_level(level) {
            return Err(if self.is_inet() { Errno::ENOPROTOOPT } else { Errno::EOPNOTSUPP });
        }
        if level == level::SOCKET {
            match name {
                name::SNDBUF | name::SNDBUFFORCE | name::RCVBUF | name::RCVBUFFORCE => {
                    // The kernel doubles the value to leave room for its own bookkeeping (socket(7)).
                    let size = (int(0)?.max(0) as usize).saturating_mul(2).clamp(MIN_BUFFER_BYTES, MAX_BUFFER_BYTES);
                    if matches!(name, name::SNDBUF | name::SNDBUFFORCE) {
                        self.send_buffer_bytes.set(size);
                    } else {
                        self.incoming.limit_bytes.set(size);
                    }
                    return Ok(());
                }
                name::LINGER => {
                    self.linger.set([i32::from(int(0)? != 0), int(4)?]);
                    return Ok(());
                }
                name::RCVTIMEO | name::SNDTIMEO | name::RCVTIMEO_NEW | name::SNDTIMEO_NEW => {
                    let value = bytes.get(..16).ok_or(Errno::EINVAL)?;
                    let quad = |at: usize| i64::from_ne_bytes(value[at..at + 8].try_into().unwrap_or([0; 8]));
                    let (seconds, micros) = (quad(0), quad(8));
                    if !(0..1_000_000).contains(&micros) {
                        return Err(Errno::EDOM);
                    }
                    // A negative time means none, as 0 does.
                    let ns =
                        u64::try_from(seconds).map_or(0, |s| s.saturating_mul(1_000_000_000) + micros as u64 * 1000);
                    let timeout = if matches!(name, name::RCVTIMEO | name::RCVTIMEO_NEW) {
                        &self.receive_timeout_ns
                    } else {
                        &self.send_timeout_ns
                    };
                    timeout.set(ns);
                    return Ok(());
                }
                name::MARK if !current().creds().has(CAP_NET_ADMIN) => return Err(Errno::EPERM),
                _ => {}
            }
        }
        if level == level::TCP && name == 13 && self.what() == (true, self.is_v6(), true) {
            // TCP_CONGESTION: there is nothing to control, and these two are there.
            let algorithm = bytes.split(|b| *b == 0).next().unwrap_or(&[]);
            return if matches!(algorithm, b"cubic" | b"reno") { Ok(()) } else { Err(Errno::ENOENT) };
        }
        if level == level::VSOCK {
            return vsock::set_buffer(self, name, bytes);
        }
        if level == level::IPV6 {
            self.options.get(level, name, self.what())?;
        }
        // Options of IP may be given as one byte (ip(7)).
        let value =
            if level == level::IP && bytes.len() < 4 { bytes.first().map_or(0, |b| i32::from(*b)) } else { int(0)? };
        self.options.set(level, name, self.what(), value)
    }

    /// getsockopt(2): the value's bytes.
    ///
    /// # Errors
    /// ENOPROTOOPT.
    pub fn option(&self, level: u32, name: u32) -> Result<alloc::vec::Vec<u8>> {
        let int = |value: i32| Ok(value.to_ne_bytes().to_vec());
        let time = |ns: u64| {
            let mut out = ((ns / 1_000_000_000) as i64).to_ne_bytes().to_vec();
            out.extend(((ns % 1_000_000_000 / 1000) as i64).to_ne_bytes());
            Ok(out)
        };
        if !self.has_level(level) {
            return Err(if self.is_inet() && self.is_v6() { Errno::ENOPROTOOPT } else { Errno::EOPNOTSUPP });
        }
        if level == level::SOCKET {
            return match name {
                name::TYPE => int(self.kind as i32),
                name::DOMAIN => int(self.family as i32),
                name::PROTOCOL => int(self.protocol as i32),
                name::ERROR => int(self.take_error().map_or(0, |e| e.0)),
                name::ACCEPTCONN => int(i32::from(self.is_listening())),
                name::SNDBUF => int(self.send_buffer_bytes.get() as i32),
                name::RCVBUF => int(self.incoming.limit_bytes.get() as i32),
                name::LINGER => Ok(self.linger.get().iter().flat_map(|v| v.to_ne_bytes()).collect()),
                name::RCVTIMEO | name::RCVTIMEO_NEW => time(self.receive_timeout_ns.get()),
                name::SNDTIMEO | name::SNDTIMEO_NEW => time(self.send_timeout_ns.get()),
                name::PEERCRED if self.is_unix() => {
                    Ok(self.peer_sender.get().iter().flat_map(|v| v.to_ne_bytes()).collect())
                }
                _ => int(self.options.get(level, name, self.what())?),
            };
        }
        if level == level::VSOCK {
            return vsock::buffer(self, name);
        }
        if level == level::TCP && name == 13 && self.what() == (true, self.is_v6(), true) {
            return Ok(b"cubic\0\0\0\0\0\0\0\0\0\0\0".to_vec());
        }
        if level == level::TCP && name == name::TCP_INFO && self.is_inet() && self.kind == Kind::Stream {
            // struct tcp_info: the state, all else zero.
            let mut info = alloc::vec![0; 104];
            info[0] = self.tcp_state();
            return Ok(info);
        }
        int(self.options.get(level, name, self.what())?)
    }
}

/// Connections that nobody will accept: their other ends are reset.
fn reset_pending(state: State) {
    if let State::Listening(listener) = state {
        for child in listener.pending {
            if let Some(connection) = child.outside() {
                connection.close(Errno::ECONNRESET.0.unsigned_abs());
            }
            if let Some(peer) = child.peer() {
                peer.reset();
            }
        }
        for child in listener.waiting {
            if let Some(client) = child.upgrade().and_then(|child| child.peer()) {
                inet::refuse(&client);
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        COUNT.with(|count| count.set(count.get() - 1));
        self.release_port();
    }
}

/// A socket as an open file.
pub struct SocketFile(pub Rc<Socket>);

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl FileOps for SocketFile {
    fn knows_nowait(&self, _file: &OpenFile) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, file: &OpenFile, dst: &mut Dest<'_>, _offset: u64) -> Result<usize> {
        if dst.remaining() == 0 {
            return Ok(0);
        }
        Ok(self.0.receive(dst, 0, file.nonblocking())?.bytes)
    }

    fn write(&self, file: &OpenFile, src: &mut Source<'_>, _offset: u64) -> Result<(usize, u64)> {
        let nothing = super::control::Passed::default();
        Ok((self.0.send(src, None, &nothing, 0, file.nonblocking())?, 0))
    }

    fn poll(&self, _file: &OpenFile) -> Events {
        self.0.poll()
    }

    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        Some(Rc::clone(&self.0.queue))
    }

    fn ioctl(&self, _file: &OpenFile, request: u32, argument: u64) -> Result<u64> {
        use linux_raw_sys::ioctl as io;
        let socket = &self.0;
        let value = match request {
            io::FIONREAD if socket.is_listening() => return Err(Errno::EINVAL),
            io::FIONREAD if socket.kind == Kind::Stream => socket.incoming.readable_bytes(),
            io::FIONREAD => socket.incoming.first_bytes(),
            io::SIOCATMARK if socket.kind == Kind::Stream => 0, // there is no out-of-band data
            io::SIOCATMARK if !socket.is_inet() => return Err(Errno::EOPNOTSUPP),
            io::TIOCOUTQ => socket.peer().map_or(0, |peer| peer.incoming.readable_bytes()),
            _ => return interfaces::ioctl(request, argument),
        };
        user::write(UserAddr(argument), &(value.min(i32::MAX as usize) as i32))?;
        Ok(0)
    }

    fn metadata(&self) -> Metadata {
        self.0.metadata.get()
    }

    fn set_metadata(&self, change: &SetMetadata) -> Result<()> {
        anon::change(&self.0.metadata, change);
        Ok(())
    }

    fn describe(&self) -> String {
        format!("socket:[{}]", self.0.metadata.get().ino)
    }
}

/// Bytes of a message together with who sent it.
pub(super) fn message(
    bytes: alloc::vec::Vec<u8>,
    from: Option<Address>,
    passed: &super::control::Passed,
    unix: bool,
) -> Message {
    let sender = unix.then(|| passed.sender.unwrap_or_else(sender));
    Message::new(bytes, from, passed.rights.clone(), sender)
}

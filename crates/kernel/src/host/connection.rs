//! A connection to the outside, from the guest's side: a numbered stream that is opened, used and closed
//! (`torpor_abi::frame`, "Connections"). What it means to programs is the affair of its owner, in [`crate::net`].

use super::ring;
use super::stream::{
    Receiver, is_registered, register, room_for_data, send_soon, take_deferred_of_connections, unregister,
};
use crate::errno::{Errno, Result};
use crate::mm::user::Source;
use crate::wait::WaitQueue;
use alloc::collections::BTreeMap;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use torpor_abi::endpoint::{ENDPOINT_BYTES, Endpoint, Transport};
use torpor_abi::frame::{
    ATTACH_BYTES, CONNECTION_WINDOW_BYTES, Header, MAX_CONNECTIONS, MAX_PAYLOAD_BYTES, MAX_WINDOW_BYTES,
    is_guest_number, kind, stream,
};

/// The largest datagram that fits into a frame.
pub const DATAGRAM_MAX_BYTES: usize = MAX_PAYLOAD_BYTES as usize - ENDPOINT_BYTES;
/// Of the memory limit this part may be held for connections that nobody reads.
const BUDGET_SHARE: u64 = 8;

/// What hears of a connection's events. Called from the kernel's entry; must not block.
pub trait Owner {
    /// The host has made the connection.
    fn opened(&self) {}
    /// Bytes, or one datagram with the endpoint that it comes from. In two pieces, as the ring may wrap.
    fn data(&self, first: &[u8], second: &[u8]);
    /// No more bytes come.
    fn ended(&self) {}
    /// The host has given the connection up: 0, or the errno that tells why.
    fn closed(&self, errno: u32);
    /// A datagram met an error.
    fn fault(&self, _errno: u32) {}
    /// More may be sent.
    fn writable(&self) {}
}

/// See the module's text.
pub struct Connection {
    number: u32,
    transport: Transport,
    owner: Weak<dyn Owner>,
    /// Where it is waited for room.
    queue: Rc<WaitQueue>,
    opened: Cell<bool>,
    ended: Cell<bool>,
    closed: Cell<bool>,
    host_closed: Cell<bool>,
    may_send_bytes: Cell<u32>,
    /// What the host may have under way, and what of it was used up and not handed back.
    window_bytes: Cell<u32>,
    owed_bytes: Cell<u32>,
    /// Payload bytes of all DATA frames, for moving to another VM process.
    sent_bytes: Cell<u64>,
    received_bytes: Cell<u64>,
    /// The host has named it since the last move, or it is younger. Until then nothing is said.
    attached: Cell<bool>,
    /// Kinds and arguments of the frames that wait for that.
    held: RefCell<Vec<(u16, u32)>>,
}

#[derive(Default)]
struct Table {
    connections: RefCell<BTreeMap<u32, Weak<Connection>>>,
    last_number: Cell<u32>,
    opened: Cell<usize>,
    used_bytes: Cell<u64>,
    /// After a move, until the host has named what goes on.
    resuming: Cell<bool>,
    incarnation: Cell<u32>,
}

crate::global! {
    static TABLE: Table = Table {
        connections: RefCell::new(BTreeMap::new()),
        last_number: Cell::new(stream::FIRST_DYNAMIC - 1),
        opened: Cell::new(0),
        used_bytes: Cell::new(0),
        resuming: Cell::new(false),
        incarnation: Cell::new(0),
    };
}

/// Takes `bytes` from what all connections may hold; false where that is too much.
fn reserve(bytes: u32) -> bool {
    TABLE.with(|table| {
        let used = table.used_bytes.get() + u64::from(bytes);
        let fits = used <= crate::mm::frame::usage().limit_bytes / BUDGET_SHARE;
        if fits {
            table.used_bytes.set(used);
        }
        fits
    })
}

fn release(bytes: u32) {
    TABLE.with(|table| table.used_bytes.set(table.used_bytes.get() - u64::from(bytes)));
}

impl Connection {
    fn new(number: u32, transport: Transport, opened: bool, owner: Weak<dyn Owner>, queue: Rc<WaitQueue>) -> Rc<Self> {
        let new = Rc::new(Self {
            number,
            transport,
            owner,
            queue,
            opened: Cell::new(opened),
            ended: Cell::new(false),
            closed: Cell::new(false),
            host_closed: Cell::new(false),
            may_send_bytes: Cell::new(CONNECTION_WINDOW_BYTES),
            window_bytes: Cell::new(CONNECTION_WINDOW_BYTES),
            owed_bytes: Cell::new(0),
            sent_bytes: Cell::new(0),
            received_bytes: Cell::new(0),
            attached: Cell::new(!TABLE.with(|table| table.resuming.get())),
            held: RefCell::default(),
        });
        register(number, new.clone());
        TABLE.with(|table| table.connections.borrow_mut().insert(number, Rc::downgrade(&new)));
        new
    }

    /// Opens a connection; `from` is its end here. It is there once [`Owner::opened`] was called; a datagram connection
    /// to port 0 is unconnected, and there at once.
    ///
    /// # Errors
    /// EADDRNOTAVAIL when there are too many, ENOBUFS when they hold too much memory.
    pub fn open(
        transport: Transport,
        to: Endpoint,
        from: Endpoint,
        owner: Weak<dyn Owner>,
        queue: Rc<WaitQueue>,
    ) -> Result<Rc<Self>> {
        if TABLE.with(|table| table.opened.get()) >= MAX_CONNECTIONS {
            return Err(Errno::EADDRNOTAVAIL);
        }
        if !reserve(CONNECTION_WINDOW_BYTES) {
            return Err(Errno::ENOBUFS);
        }
        let number = TABLE.with(|table| {
            table.opened.set(table.opened.get() + 1);
            loop {
                let next = table.last_number.get().checked_add(2).unwrap_or(stream::FIRST_DYNAMIC + 1);
                table.last_number.set(next);
                if !is_registered(next) {
                    return next;
                }
            }
        });
        let there = matches!(to, Endpoint::Inet(to) if transport == Transport::Udp && to.port() == 0);
        let new = Self::new(number, transport, there, owner, queue);
        new.attached.set(true);
        send_soon(number, kind::OPEN, transport as u32, &[to.encode(), from.encode()].concat());
        new.offer_datagrams();
        Ok(new)
    }

    /// Takes a connection that the host has opened: either [`Connection::accept`] or [`Connection::close`] follows.
    ///
    /// # Errors
    /// ENOBUFS when connections hold too much memory; it is refused then.
    pub fn take(
        header: Header,
        transport: Transport,
        owner: Weak<dyn Owner>,
        queue: Rc<WaitQueue>,
    ) -> Result<Rc<Self>> {
        if !reserve(CONNECTION_WINDOW_BYTES) {
            refuse(header.stream, Errno::ENOBUFS);
            return Err(Errno::ENOBUFS);
        }
        Ok(Self::new(header.stream, transport, false, owner, queue))
    }

    /// Accepts a connection of the host's.
    pub fn accept(&self) {
        self.opened.set(true);
        self.say(kind::OPENED, 0);
        self.offer_datagrams();
    }

    /// Datagrams are delivered or dropped as they come: the largest window from the start.
    fn offer_datagrams(&self) {
        if self.transport == Transport::Udp {
            let growth = 3 * CONNECTION_WINDOW_BYTES;
            if reserve(growth) {
                self.window_bytes.set(self.window_bytes.get() + growth);
                self.say(kind::CREDIT, growth);
            }
        }
    }

    fn say(&self, what: u16, argument: u32) {
        if self.attached.get() {
            send_soon(self.number, what, argument, &[]);
        } else {
            self.held.borrow_mut().push((what, argument));
        }
    }

    /// Whether either side has given it up.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.get() || self.host_closed.get()
    }

    /// Whether bytes can be sent and received.
    #[must_use]
    pub fn is_opened(&self) -> bool {
        self.opened.get()
    }

    /// Bytes that [`Connection::write`] would take now.
    #[must_use]
    pub fn write_room(&self) -> usize {
        let mute = !self.opened.get() || !self.attached.get() || self.closed.get() || self.ended.get();
        if mute || self.may_send_bytes.get() == 0 {
            return 0;
        }
        room_for_data(1, &self.queue).min(self.may_send_bytes.get() as usize)
    }

    /// Sends as much as window and ring take, one frame at most: `None` if that is nothing.
    ///
    /// # Errors
    /// EFAULT.
    pub fn write(&self, src: &mut Source<'_>) -> Result<Option<usize>> {
        if !self.opened.get() || !self.attached.get() {
            return Ok(None);
        }
        let wanted = src.remaining().min(MAX_PAYLOAD_BYTES as usize).min(self.may_send_bytes.get() as usize);
        if wanted == 0 {
            return Ok((src.remaining() == 0).then_some(0));
        }
        let len = wanted.min(room_for_data(wanted, &self.queue));
        if len == 0 {
            return Ok(None);
        }
        let sent = ring::send_filled(self.number, &[], len, |piece| src.take(piece))?;
        self.count_sent(sent);
        Ok(Some(sent))
    }

    /// Sends a datagram of at most [`DATAGRAM_MAX_BYTES`]; false while there is no room.
    pub fn write_datagram(&self, to: Endpoint, bytes: &[u8]) -> bool {
        let len = ENDPOINT_BYTES + bytes.len();
        if !self.attached.get() || (self.may_send_bytes.get() as usize) < len || room_for_data(len, &self.queue) < len {
            return false;
        }
        ring::send(self.number, kind::DATA, 0, &[&to.encode(), bytes]);
        self.count_sent(len);
        true
    }

    fn count_sent(&self, len: usize) {
        self.may_send_bytes.set(self.may_send_bytes.get() - len as u32);
        self.sent_bytes.set(self.sent_bytes.get() + len as u64);
        ring::flush();
    }

    /// Received bytes were read, or dropped: the host may send as many again, and a busy connection more than that.
    pub fn consumed(&self, bytes: usize) {
        if self.closed.get() || self.host_closed.get() {
            return;
        }
        let owed = self.owed_bytes.get() + bytes as u32;
        let window = self.window_bytes.get();
        if owed < window / 4 {
            self.owed_bytes.set(owed);
            return;
        }
        let growth = if self.transport == Transport::Udp { 0 } else { window.min(MAX_WINDOW_BYTES - window) };
        let growth = if reserve(growth) { growth } else { 0 };
        self.window_bytes.set(window + growth);
        self.owed_bytes.set(0);
        self.say(kind::CREDIT, owed + growth);
    }

    /// No more bytes will be sent.
    pub fn shutdown(&self) {
        if self.opened.get() && !self.closed.get() && !self.ended.replace(true) {
            self.say(kind::SHUTDOWN, 0);
        }
    }

    /// Gives the connection up: in order with 0, what was sent still arrives; with an errno it is reset.
    pub fn close(&self, errno: u32) {
        if self.closed.replace(true) {
            return;
        }
        release(self.window_bytes.get());
        self.say(kind::CLOSE, errno);
        self.forget_if_over();
    }

    fn forget_if_over(&self) {
        if self.closed.get() && self.host_closed.get() {
            unregister(self.number);
            TABLE.with(|table| {
                table.connections.borrow_mut().remove(&self.number);
                if is_guest_number(self.number) {
                    table.opened.set(table.opened.get() - 1);
                }
            });
        }
    }

    fn owner(&self) -> Option<Rc<dyn Owner>> {
        if self.closed.get() { None } else { self.owner.upgrade() }
    }

    /// The host's picture of a connection after a move, compared with ours.
    fn attach(&self, incarnation: u32, payload: &[u8]) {
        if is_stale(incarnation) {
            return;
        }
        let count = |at: usize| payload.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let agree = count(0) == Some(self.received_bytes.get()) && count(8) == Some(self.sent_bytes.get());
        if agree {
            self.attached.set(true);
            let mut counts = [0; ATTACH_BYTES as usize];
            counts[..8].copy_from_slice(&self.sent_bytes.get().to_le_bytes());
            counts[8..].copy_from_slice(&self.received_bytes.get().to_le_bytes());
            send_soon(self.number, kind::ATTACH, incarnation, &counts);
            for (what, argument) in self.held.take() {
                self.say(what, argument);
            }
            if let Some(owner) = self.owner() {
                owner.writable();
            }
        } else {
            self.attached.set(true);
            self.held.take();
            self.reset();
            if self.closed.get() {
                // Its CLOSE was held back.
                self.say(kind::CLOSE, Errno::ECONNRESET.0.unsigned_abs());
            }
            self.close(Errno::ECONNRESET.0.unsigned_abs());
        }
    }

    /// The other end knows nothing of it, and is told nothing.
    fn lose(&self) {
        self.reset();
        self.held.take();
        self.host_closed.set(true);
        if !self.closed.replace(true) {
            release(self.window_bytes.get());
        }
        self.forget_if_over();
    }

    /// To a socket of datagrams it means nothing: it has no peer that could be gone.
    fn reset(&self) {
        if let Some(owner) = self.owner() {
            let errno = if self.transport == Transport::Udp { 0 } else { Errno::ECONNRESET.0.unsigned_abs() };
            owner.closed(errno);
        }
    }
}

impl Receiver for Connection {
    fn receive(&self, header: Header, first: &[u8], second: &[u8]) {
        let owner = self.owner();
        match header.kind {
            kind::DATA => {
                self.received_bytes.set(self.received_bytes.get() + u64::from(header.len));
                if let Some(owner) = owner {
                    owner.data(first, second);
                }
            }
            kind::CREDIT => {
                self.may_send_bytes.set(self.may_send_bytes.get().saturating_add(header.argument));
                if let Some(owner) = owner {
                    owner.writable();
                }
            }
            kind::OPENED => {
                self.opened.set(true);
                if let Some(owner) = owner {
                    owner.opened();
                }
            }
            kind::SHUTDOWN => {
                if let Some(owner) = owner {
                    owner.ended();
                }
            }
            kind::FAULT => {
                if let Some(owner) = owner {
                    owner.fault(header.argument);
                }
            }
            kind::ATTACH => self.attach(header.argument, &[first, second].concat()),
            kind::CLOSE => {
                self.host_closed.set(true);
                if let Some(owner) = owner {
                    owner.closed(header.argument);
                }
                if self.closed.get() {
                    self.forget_if_over();
                } else {
                    self.close(0);
                }
            }
            _ => {}
        }
    }
}

/// Refuses a connection that the host has opened.
pub fn refuse(number: u32, errno: Errno) {
    send_soon(number, kind::CLOSE, errno.0.unsigned_abs(), &[]);
}

/// Whether a frame about moving is left from an earlier move.
fn is_stale(incarnation: u32) -> bool {
    TABLE.with(|table| table.incarnation.get() != incarnation)
}

/// A frame on a number that is not in use here.
pub(super) fn unknown(header: Header, payload: &[u8]) {
    match header.kind {
        kind::OPEN => crate::net::outside::incoming(header, payload),
        // After a move the host still knows what we have no memory of.
        kind::ATTACH if !is_stale(header.argument) => refuse(header.stream, Errno::ECONNRESET),
        _ => {}
    }
}

/// The guest has moved to another VM process, and the host has named all connections that go on.
pub fn resumed(incarnation: u32) {
    if is_stale(incarnation) {
        return;
    }
    TABLE.with(|table| table.resuming.set(false));
    let all: Vec<_> = TABLE.with(|table| table.connections.borrow().values().filter_map(Weak::upgrade).collect());
    for connection in all {
        let told = connection.attached.get() || (connection.closed.get() && connection.held.borrow().is_empty());
        if !told {
            connection.lose();
        }
    }
}

/// The link has a new other end, which knows of no connection.
pub fn lost() {
    take_deferred_of_connections();
    TABLE.with(|table| table.resuming.set(false));
    let all: Vec<_> = TABLE.with(|table| table.connections.borrow().values().filter_map(Weak::upgrade).collect());
    all.iter().for_each(|connection| connection.lose());
}

/// To be called once in a VM process that continues this guest, before it looks at its rings: connections that the host
/// does not name until it says RESUMED are gone. `incarnation` is the one that begins, modulo 2^32.
pub fn moved(incarnation: u32) {
    TABLE.with(|table| {
        table.incarnation.set(incarnation);
        table.resuming.set(true);
        for connection in table.connections.borrow().values().filter_map(Weak::upgrade) {
            connection.attached.set(false);
        }
    });
    // What had no room in the ring was never said: it waits like all else, but for the opening of a connection, which the
    // host can't name. Of one that is gone here the host learns when it names it.
    for (number, what, argument, payload) in take_deferred_of_connections() {
        let connection = TABLE.with(|table| table.connections.borrow().get(&number).and_then(Weak::upgrade));
        match (what, connection) {
            (kind::OPEN, Some(connection)) => {
                connection.attached.set(true);
                send_soon(number, what, argument, &payload);
            }
            (kind::ATTACH, _) | (_, None) => {}
            (_, Some(connection)) => connection.held.borrow_mut().push((what, argument)),
        }
    }
}

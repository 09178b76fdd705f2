//! The link to a VM process: frames, the ledger that judges them, the streams that the proxy opens over it, and the
//! guest's own connections (`torpor_streams::sockets`).
//!
//! A [`Link`] outlives VM processes. While its guest sleeps it has no wire; its streams and the guest's sockets stay as
//! they are, and go on over the next wire. Writers send at once, from their own task; one task per link receives, and
//! sends what could not be sent.

mod egress;
mod stream;
mod wire;

pub use stream::{Opening, Stream};

use crate::link::egress::Egress;
use crate::link::stream::Half;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Instant;
use torpor_abi::endpoint::{Endpoint, Transport, network};
use torpor_abi::frame::{Header, MAX_WINDOW_BYTES, is_guest_number, kind, stream as numbers};
use torpor_streams::ledger::{Side, Violation};
use torpor_streams::link::{MESSAGE_MAX_BYTES, split_frame};
use torpor_streams::parked::{Parked, agrees};
use torpor_streams::policy::Policy;
use uuid::Uuid;
use wire::Wire;

const ECONNRESET: u32 = 104;
/// Messages before other tasks get their turn.
const ROUNDS: usize = 32;
/// What the windows of one link's streams may grow by in all.
const GROWTH_BUDGET_BYTES: usize = 16 << 20;
/// Output is credited in portions, since each wakes the guest.
const OUTPUT_CREDIT_BYTES: u32 = torpor_abi::frame::INITIAL_WINDOW_BYTES / 2;

/// Who wants to know what happens on a link. Called without any borrow held.
pub trait Owner {
    /// The guest has written this to its standard output or standard error.
    fn output(&self, bytes: &[u8]);
    /// A connection has something to say while nothing may be sent.
    fn has_word(&self);
    /// A connection that the guest has opened is gone, or the guest does not hold its VM awake any more.
    fn let_go(&self);
    /// The VM process has closed its end, or broke the rules.
    fn ended(&self, violation: Option<Violation>);
}

/// See the module's text.
pub struct Link {
    /// Whose it is.
    pub instance: Uuid,
    inner: RefCell<Inner>,
    owner: RefCell<Weak<dyn Owner>>,
    last_traffic: Cell<Instant>,
}

struct Inner {
    /// None while the guest sleeps.
    wire: Option<Wire>,
    generation: u64,
    /// Nothing is sent.
    quiet: bool,
    streams: HashMap<u32, Half>,
    next_number: u32,
    egress: Option<Egress>,
    /// Connections of the guest's own when this was last looked at.
    outgoing: usize,
    policy: Policy,
    /// A program of the guest wants its VM to stay awake.
    held: bool,
    /// Last words of streams that nobody holds any more.
    farewells: Vec<(u32, u32)>,
    output_owed: [u32; 2],
    /// Streams that are to be told of more window.
    owed: Vec<u32>,
    growth_bytes: usize,
    pump: Option<Waker>,
    word: bool,
    /// The pump has nothing more to do, ever.
    gone: bool,
}

/// What is to be told to the owner after an inner borrow has ended.
#[derive(Default)]
struct News {
    output: Vec<u8>,
    word: bool,
    let_go: bool,
    end: Option<Option<Violation>>,
}

/// What a link carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Payload bytes from the guest.
    pub rx_bytes: u64,
    /// To the guest.
    pub tx_bytes: u64,
}

impl Link {
    /// A link over `socket`, whose guest is of `generation`, made at `made_ns` of CLOCK_MONOTONIC. The caller runs
    /// [`Link::pump`].
    ///
    /// # Errors
    /// Where the runtime can't watch the descriptor.
    pub fn new(instance: Uuid, generation: u64, made_ns: u64, socket: OwnedFd, policy: Policy) -> io::Result<Rc<Self>> {
        let mut wire = Wire::new(socket)?;
        wire.begin(generation);
        let inner = Inner {
            wire: Some(wire),
            generation,
            quiet: false,
            streams: HashMap::new(),
            // A guest keeps a number that it has closed and an earlier proxy has not: each link begins elsewhere.
            next_number: numbers::FIRST_DYNAMIC + (made_ns / 1000) as u32 % (1 << 30) / 2 * 2,
            egress: None,
            outgoing: 0,
            policy,
            held: false,
            farewells: Vec::new(),
            output_owed: [0; 2],
            owed: Vec::new(),
            growth_bytes: GROWTH_BUDGET_BYTES,
            pump: None,
            word: false,
            gone: false,
        };
        let link = Rc::new(Self {
            instance,
            inner: RefCell::new(inner),
            owner: RefCell::new(Weak::<Nobody>::new()),
            last_traffic: Cell::new(Instant::now()),
        });
        link.inner.borrow_mut().send();
        Ok(link)
    }

    /// Who is told.
    pub fn set_owner(&self, owner: Weak<dyn Owner>) {
        self.owner.replace(owner);
    }

    /// Serves the link until [`Link::reset`].
    pub async fn pump(self: Rc<Self>) {
        let mut buffer = vec![0; MESSAGE_MAX_BYTES];
        std::future::poll_fn(|cx| {
            let mut news = News::default();
            let gone = {
                let mut inner = self.inner.borrow_mut();
                if !inner.pump.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    inner.pump = Some(cx.waker().clone());
                }
                inner.poll(cx, &mut buffer, &mut news, &self.last_traffic);
                inner.gone
            };
            self.spread(news);
            if gone { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn spread(&self, news: News) {
        let owner = self.owner.borrow().upgrade();
        let Some(owner) = owner else { return };
        if !news.output.is_empty() {
            owner.output(&news.output);
        }
        if news.word {
            owner.has_word();
        }
        if news.let_go {
            owner.let_go();
        }
        if let Some(violation) = news.end {
            owner.ended(violation);
        }
    }

    /// Tells the owner if a connection has something to say.
    fn report_word(&self) {
        let word = std::mem::take(&mut self.inner.borrow_mut().word);
        if word {
            self.spread(News { word, ..News::default() });
        }
    }

    /// Opens a connection to a port of the guest's; `peer` is who the guest is told it is from.
    ///
    /// # Errors
    /// Where there are too many, or no guest runs.
    pub fn connect(self: &Rc<Self>, port: u16, peer: Option<SocketAddr>) -> io::Result<(Stream, Opening)> {
        self.open(|number| tcp_ends(number, port, peer), false)
    }

    /// Opens a connection to a vsock port of the guest's, over which it is told something that is no traffic.
    ///
    /// # Errors
    /// As [`Link::connect`].
    pub fn connect_notice(self: &Rc<Self>, port: u32) -> io::Result<(Stream, Opening)> {
        let ends = |number| {
            let to = Endpoint::Vsock { cid: network::GUEST_CID, port };
            (Transport::Vsock, [to, Endpoint::Vsock { cid: network::HOST_CID, port: number }])
        };
        self.open(ends, true)
    }

    fn open(
        self: &Rc<Self>,
        ends: impl Fn(u32) -> (Transport, [Endpoint; 2]),
        is_notice: bool,
    ) -> io::Result<(Stream, Opening)> {
        let (half, opening) = Half::new(is_notice);
        let mut inner = self.inner.borrow_mut();
        let number = inner.open(ends, half)?;
        inner.send();
        drop(inner);
        Ok((Stream::new(self.clone(), number, is_notice), opening))
    }

    /// Closes a connection under whoever holds it.
    pub fn close(&self, number: u32) {
        let mut inner = self.inner.borrow_mut();
        if let Some(half) = inner.streams.get_mut(&number) {
            half.end(0);
            inner.farewell(number, 0);
            inner.send();
        }
    }

    /// Sends nothing from now on; what could not be sent yet waits.
    pub fn quiet(&self) {
        self.inner.borrow_mut().quiet = true;
    }

    /// Sends again.
    pub fn go_on(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.quiet = false;
        inner.word = false;
        inner.wake_streams();
        inner.send();
        inner.wake_pump();
    }

    /// Has the owner told again of what waits to be said.
    pub fn look_again(&self) {
        self.inner.borrow().wake_pump();
    }

    /// Whether the guest has anything open that a sleep must keep.
    #[must_use]
    pub fn has_connections(&self) -> bool {
        let inner = self.inner.borrow();
        inner.streams.values().any(|half| !half.said_close)
            || inner.egress.as_ref().is_some_and(|egress| egress.sockets.stream_count() > 0)
    }

    /// TCP connections that the guest has opened.
    #[must_use]
    pub fn outgoing(&self) -> usize {
        self.inner.borrow().egress.as_ref().map_or(0, |egress| egress.sockets.connection_count())
    }

    /// Keeps so many of the TCP connections that the guest has opened, and resets the youngest.
    pub fn park_at_most(&self, count: usize) {
        if let Some(egress) = &mut self.inner.borrow_mut().egress {
            egress.sockets.keep_connections(count);
        }
    }

    /// Whether a program of the guest wants its VM to stay awake.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.inner.borrow().held
    }

    /// When bytes last went over a connection, either way.
    #[must_use]
    pub fn last_traffic(&self) -> Instant {
        self.last_traffic.get()
    }

    /// Payload bytes so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.inner.borrow().wire.as_ref().map_or_else(Traffic::default, |wire| wire.traffic)
    }

    /// Takes all that has come so far, and nothing more: the VM has stopped, and has sent what it had to say before.
    pub fn drain(&self) {
        let mut buffer = vec![0; MESSAGE_MAX_BYTES];
        let mut news = News::default();
        let mut inner = self.inner.borrow_mut();
        while let Some(wire) = inner.wire.as_mut().filter(|wire| !wire.ended) {
            let Some(len) = wire.receive(&mut buffer).filter(|len| *len > 0) else { break };
            if let Err(violation) = inner.take_message(&buffer[..len], &mut news, &self.last_traffic) {
                inner.end_wire(Some(violation), &mut news);
            }
        }
        if let Some(wire) = &mut inner.wire {
            wire.ended = true;
        }
        drop(inner);
        self.spread(news);
    }

    /// Goes on over a new wire, with all connections: the guest was restored as `generation`.
    ///
    /// # Errors
    /// Where the runtime can't watch the descriptor, or what was kept can't go on.
    pub fn resume(&self, socket: OwnedFd, generation: u64, policy: Policy) -> io::Result<()> {
        let mut wire = Wire::new(socket)?;
        let mut inner = self.inner.borrow_mut();
        if let Some(old) = inner.wire.take() {
            let before = generation.wrapping_sub(1);
            let ours = self.instance.into_bytes();
            let (ledger, undelivered) = old.into_parts();
            let parked = Parked::of(ours, before, &ledger, &undelivered).map_err(io::Error::other)?;
            wire.resume(&parked, ours, before).map_err(io::Error::other)?;
        } else {
            wire.begin(generation);
        }
        inner.wire = Some(wire);
        inner.generation = generation;
        inner.held = false;
        inner.quiet = false;
        inner.word = false;
        if let Some(egress) = &mut inner.egress {
            egress.sockets.set_policy(policy.clone());
        }
        inner.policy = policy;
        inner.output_owed = [0; 2];
        self.last_traffic.set(Instant::now());
        inner.wake_streams();
        inner.send();
        inner.wake_pump();
        Ok(())
    }

    /// Everything on the link is over: its streams are reset, its wire is closed.
    pub fn reset(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.wire = None;
        if let Some(egress) = inner.egress.take() {
            egress.sockets.reset();
        }
        for half in inner.streams.values_mut() {
            half.end(ECONNRESET);
        }
        inner.gone = true;
        inner.wake_pump();
    }
}

/// Who a TCP connection leads to, and who it is from; the gateway where that is nobody.
fn tcp_ends(number: u32, port: u16, peer: Option<SocketAddr>) -> (Transport, [Endpoint; 2]) {
    let from = peer.unwrap_or_else(|| {
        let port = 1024 + (number / 2 % 60_000) as u16;
        SocketAddr::new(network::GATEWAY_V4.into(), port)
    });
    let to = match from {
        SocketAddr::V4(_) => SocketAddr::new(network::GUEST_V4.into(), port),
        SocketAddr::V6(_) => SocketAddr::new(network::GUEST_V6.into(), port),
    };
    (Transport::Tcp, [Endpoint::Inet(to), Endpoint::Inet(from)])
}

/// No one, until an owner is set.
struct Nobody;

impl Owner for Nobody {
    fn output(&self, _: &[u8]) {}
    fn has_word(&self) {}
    fn let_go(&self) {}
    fn ended(&self, _: Option<Violation>) {}
}

impl Inner {
    fn poll(&mut self, cx: &mut std::task::Context<'_>, buffer: &mut [u8], news: &mut News, last: &Cell<Instant>) {
        for round in 0.. {
            if round == ROUNDS {
                cx.waker().wake_by_ref();
                break;
            }
            let Some(wire) = self.wire.as_mut().filter(|wire| !wire.ended) else { break };
            match wire.poll_receive(cx, buffer) {
                Poll::Pending => break,
                Poll::Ready(0) => {
                    self.end_wire(None, news);
                    break;
                }
                Poll::Ready(len) => {
                    if let Err(violation) = self.take_message(&buffer[..len], news, last) {
                        self.end_wire(Some(violation), news);
                        break;
                    }
                }
            }
        }
        if let Some(egress) = &mut self.egress {
            egress.poll_look(cx);
        }
        self.send();
        while !self.quiet
            && let Some(wire) = &mut self.wire
            && wire.poll_unblocked(cx).is_ready()
        {
            self.streams.values_mut().for_each(Half::wake_writer);
            self.send();
        }
        let outgoing = self.egress.as_ref().map_or(0, |egress| egress.sockets.connection_count());
        news.let_go |= outgoing < self.outgoing;
        self.outgoing = outgoing;
        news.word |= std::mem::take(&mut self.word);
    }

    fn end_wire(&mut self, violation: Option<Violation>, news: &mut News) {
        if let Some(wire) = &mut self.wire {
            wire.ended = true;
        }
        news.end = Some(violation);
    }

    fn take_message(&mut self, mut message: &[u8], news: &mut News, last: &Cell<Instant>) -> Result<(), Violation> {
        while !message.is_empty() {
            let (header, payload, rest) = split_frame(message)?;
            message = rest;
            self.take_frame(&header, payload, news, last)?;
        }
        Ok(())
    }

    fn take_frame(
        &mut self,
        header: &Header,
        payload: &[u8],
        news: &mut News,
        last: &Cell<Instant>,
    ) -> Result<(), Violation> {
        let number = header.stream;
        // What the VM process has to say about the VM is for torpord, which hears it over its own socket.
        if number == numbers::CONTROL && header.kind >= torpor_streams::link::report::EXITED {
            return Ok(());
        }
        let Some(wire) = &mut self.wire else { return Ok(()) };
        let ledger = &mut wire.out.ledger;
        let expected = ledger.attach_counts(number);
        ledger.from_guest(header)?;
        if number < numbers::FIRST_DYNAMIC {
            if header.kind == kind::HELD {
                self.held = header.argument != 0;
                news.let_go |= !self.held;
            }
            if header.kind == kind::DATA && matches!(number, numbers::STDOUT | numbers::STDERR) {
                news.output.extend_from_slice(payload);
                self.output_owed[(number - numbers::STDOUT) as usize] += header.len;
            }
            return Ok(());
        }
        wire.traffic.rx_bytes += u64::from(header.len);
        let is_ours = || self.streams.get(&number).is_some_and(|half| !half.is_notice);
        if header.kind == kind::DATA && (is_guest_number(number) || is_ours()) {
            last.set(Instant::now());
        }
        if header.kind == kind::ATTACH {
            if !agrees(payload, expected.unwrap_or_default()) {
                self.reset_stream(number);
            }
            return Ok(());
        }
        if is_guest_number(number) {
            if self.egress.is_none() {
                match Egress::new(self.policy.clone()) {
                    Ok(egress) => self.egress = Some(egress),
                    // No descriptors are left, say: as if the network were down.
                    Err(_) if header.kind == kind::OPEN => {
                        self.farewells.push((number, 105));
                        return Ok(());
                    }
                    Err(_) => return Ok(()),
                }
                self.wake_pump();
            }
            if let Some(egress) = &mut self.egress {
                egress.sockets.take(header, payload)?;
            }
            return Ok(());
        }
        let Some(half) = self.streams.get_mut(&number) else {
            // It has said its last word before this came.
            return Ok(());
        };
        half.take(header, payload);
        if header.kind == kind::CLOSE {
            self.farewell(number, 0);
        }
        Ok(())
    }

    /// A stream on which the guest claims other counts.
    fn reset_stream(&mut self, number: u32) {
        if is_guest_number(number) {
            if let Some(egress) = &mut self.egress {
                egress.sockets.abort(number);
            }
        } else if let Some(half) = self.streams.get_mut(&number) {
            half.end(ECONNRESET);
            self.farewell(number, ECONNRESET);
        }
    }

    /// Our last word on a stream, said once.
    fn farewell(&mut self, number: u32, errno: u32) {
        if let Some(half) = self.streams.get_mut(&number) {
            if std::mem::replace(&mut half.said_close, true) {
                return;
            }
            self.growth_bytes += half.growth_bytes();
        }
        self.farewells.push((number, errno));
        self.hold();
    }

    /// Whether what there is to say must wait for more than room: then the owner is to hear of it.
    fn hold(&mut self) -> bool {
        let held = self.quiet || self.wire.as_ref().is_none_or(|wire| wire.ended);
        self.word |= held && !self.gone;
        held
    }

    fn wake_pump(&self) {
        if let Some(pump) = &self.pump {
            pump.wake_by_ref();
        }
    }

    fn wake_streams(&mut self) {
        for half in self.streams.values_mut() {
            half.wake();
        }
    }

    fn open(&mut self, ends: impl Fn(u32) -> (Transport, [Endpoint; 2]), half: Half) -> io::Result<u32> {
        let quiet = self.quiet;
        let Some(wire) = self.wire.as_mut().filter(|wire| !wire.ended && !quiet) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if !wire.out.ledger.may_open(Side::Host) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let number = loop {
            let number = self.next_number;
            self.next_number = number.checked_add(2).unwrap_or(numbers::FIRST_DYNAMIC);
            if wire.out.ledger.connection(number).is_none() && !self.streams.contains_key(&number) {
                break number;
            }
        };
        let (transport, ends) = ends(number);
        let payload = ends.map(|end| end.encode()).concat();
        let header = Header { stream: number, kind: kind::OPEN, len: payload.len() as u32, argument: transport as u32 };
        wire.push(header, &payload);
        self.streams.insert(number, half);
        Ok(number)
    }

    /// Sends what there is to say, as far as the VM process takes it.
    fn send(&mut self) {
        if self.quiet || self.wire.as_ref().is_none_or(|wire| wire.ended) {
            let egress_word = self.egress.as_mut().is_some_and(|egress| egress.sockets.has_word());
            if egress_word {
                self.hold();
            }
            return;
        }
        let Some(wire) = &mut self.wire else { return };
        loop {
            while wire.out.message.fits(0)
                && let Some((number, errno)) = self.farewells.pop()
            {
                // A stream that was not resumed is not known any more.
                if wire.out.ledger.connection(number).is_some() {
                    wire.push(Header { stream: number, kind: kind::CLOSE, len: 0, argument: errno }, &[]);
                }
            }
            for (at, owed) in self.output_owed.iter_mut().enumerate() {
                if *owed >= OUTPUT_CREDIT_BYTES && wire.out.message.fits(0) {
                    let header = Header {
                        stream: numbers::STDOUT + at as u32,
                        kind: kind::CREDIT,
                        len: 0,
                        argument: std::mem::take(owed),
                    };
                    wire.push(header, &[]);
                }
            }
            if let Some(egress) = &mut self.egress {
                egress.sockets.fill(&mut wire.out);
            }
            while wire.out.message.fits(0)
                && let Some(number) = self.owed.pop()
            {
                let Some(half) = self.streams.get_mut(&number).filter(|half| !half.is_over()) else { continue };
                let grow = half.window_bytes.min(MAX_WINDOW_BYTES - half.window_bytes);
                let grow = if self.growth_bytes >= grow as usize { grow } else { 0 };
                self.growth_bytes -= grow as usize;
                half.window_bytes += grow;
                let argument = std::mem::take(&mut half.consumed_bytes) + grow;
                wire.push(Header { stream: number, kind: kind::CREDIT, len: 0, argument }, &[]);
            }
            if !wire.flush() {
                // The pump learns when there is room.
                return self.wake_pump();
            }
            if self.owed.is_empty()
                && self.farewells.is_empty()
                && !self.egress.as_ref().is_some_and(|egress| egress.sockets.has_more())
            {
                return;
            }
        }
    }

    /// Hands back window to the guest for bytes that were read, in portions.
    fn credit(&mut self, number: u32) {
        let Some(half) = self.streams.get(&number) else { return };
        if half.consumed_bytes >= half.window_bytes / 4 && !half.is_over() && !self.owed.contains(&number) {
            self.owed.push(number);
            self.send();
        }
    }
}

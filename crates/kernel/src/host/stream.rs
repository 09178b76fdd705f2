//! Numbered streams to the host, with flow control (`torpor_abi::frame`).

use super::ring;
use crate::errno::{Errno, Result};
use crate::mm::user::{Dest, Source};
use crate::sync::Global;
use crate::wait::{Events, WaitQueue};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, OnceCell, RefCell};
use torpor_abi::frame::{Header, INITIAL_WINDOW_BYTES, MAX_PAYLOAD_BYTES, kind, stream};
use torpor_abi::handover::quiesce;

/// What receives the frames of one stream number. Called from the kernel's entry; must not block.
pub trait Receiver {
    /// The payload comes in two pieces (the ring may wrap).
    fn receive(&self, header: Header, first: &[u8], second: &[u8]);

    /// The other end is a new one. Nothing is on its way but `unsent_bytes[number]` of ours: both windows are whole again,
    /// less that.
    fn reattached(&self, _unsent_bytes: [u32; 3]) {}
}

/// A frame that had no room yet: stream, kind, argument, payload.
pub(super) type Deferred = (u32, u16, u32, Vec<u8>);

#[derive(Default)]
struct Registry {
    receivers: RefCell<BTreeMap<u32, Rc<dyn Receiver>>>,
    room: OnceCell<Rc<WaitQueue>>,
    waiting_for_room: Cell<bool>,
    /// Whom to tell besides when there is room; each once.
    blocked: RefCell<Vec<Rc<WaitQueue>>>,
    /// Frames without which the host's picture of a stream is wrong: a few for each stream at most.
    deferred: RefCell<VecDeque<Deferred>>,
}

crate::global! {
    static REGISTRY: Registry = Registry {
        receivers: RefCell::new(BTreeMap::new()),
        room: OnceCell::new(),
        waiting_for_room: Cell::new(false),
        blocked: RefCell::new(Vec::new()),
        deferred: RefCell::new(VecDeque::new()),
    };
}

fn registry<R>(f: impl FnOnce(&Registry) -> R) -> R {
    Global::with(&REGISTRY, f)
}

/// Gives a stream number to a receiver; replaces the former one.
pub fn register(number: u32, receiver: Rc<dyn Receiver>) {
    registry(|r| r.receivers.borrow_mut().insert(number, receiver));
}

/// Frees a stream number; frames that still come for it are dropped.
pub fn unregister(number: u32) {
    registry(|r| r.receivers.borrow_mut().remove(&number));
}

/// After a restore, or when the link was replaced: every stream's other end is a new one.
pub fn reattached(unsent_bytes: [u32; 3]) {
    let receivers: Vec<_> = registry(|r| r.receivers.borrow().values().cloned().collect());
    receivers.iter().for_each(|receiver| receiver.reattached(unsent_bytes));
    registry(|r| r.waiting_for_room.set(false));
    room_queue().wake_all(Events::WRITABLE);
}

/// Whether a number is in use.
pub(super) fn is_registered(number: u32) -> bool {
    registry(|r| r.receivers.borrow().contains_key(&number))
}

/// Hands a frame to its receiver.
pub(super) fn dispatch(header: Header, first: &[u8], second: &[u8]) {
    let receiver = registry(|r| r.receivers.borrow().get(&header.stream).cloned());
    match receiver {
        Some(receiver) => receiver.receive(header, first, second),
        None => super::connection::unknown(header, &[first, second].concat()),
    }
}

/// Sends a frame now or, where the ring has no room, as soon as it has, before any data of connections.
pub(crate) fn send_soon(number: u32, what: u16, argument: u32, payload: &[u8]) {
    let frame = (number, what, argument, payload.to_vec());
    registry(|r| r.deferred.borrow_mut().push_back(frame));
    send_deferred();
}

/// Takes back what connections have not been able to say.
pub(super) fn take_deferred_of_connections() -> VecDeque<Deferred> {
    registry(|r| {
        let (ours, console) = r.deferred.take().into_iter().partition(|(number, ..)| *number >= stream::FIRST_DYNAMIC);
        r.deferred.replace(console);
        ours
    })
}

fn send_deferred() {
    registry(|r| {
        let mut deferred = r.deferred.borrow_mut();
        let before = deferred.len();
        while let Some((number, what, argument, payload)) = deferred.front() {
            // A header needs room as well where the payload is empty.
            if ring::room(payload.len() + 8) < payload.len() + 8 {
                r.waiting_for_room.set(true);
                break;
            }
            ring::send(*number, *what, *argument, &[payload]);
            deferred.pop_front();
        }
        if deferred.len() < before {
            ring::flush();
        }
    });
}

/// Bytes that a connection's next frame may carry; where that is none, `queue` is woken when there is room.
pub(super) fn room_for_data(wanted: usize, queue: &Rc<WaitQueue>) -> usize {
    let room = || if registry(|r| r.deferred.borrow().is_empty()) { ring::room(wanted) } else { 0 };
    let now = room();
    if now > 0 {
        return now;
    }
    registry(|r| {
        r.waiting_for_room.set(true);
        let mut blocked = r.blocked.borrow_mut();
        if !blocked.iter().any(|known| Rc::ptr_eq(known, queue)) {
            blocked.push(Rc::clone(queue));
        }
    });
    now
}

/// The queue that is woken when the transmit ring has room again.
fn room_queue() -> Rc<WaitQueue> {
    registry(|r| Rc::clone(r.room.get_or_init(WaitQueue::new)))
}

/// Called at every event: wakes who waits for room in the transmit ring.
pub(super) fn room_available() {
    if registry(|r| r.waiting_for_room.replace(false)) {
        super::control().tx_wants_room.store(0, core::sync::atomic::Ordering::SeqCst);
        send_deferred();
        room_queue().wake_all(Events::WRITABLE);
        for queue in registry(|r| r.blocked.take()) {
            queue.wake_all(Events::WRITABLE);
        }
    }
}

/// Sends text to a stream without flow control (trace, kernel messages), waiting for room without scheduling. What finds
/// none until the VM process wants a stop is lost: that may be what makes room.
pub fn send_text(number: u32, text: &[u8]) {
    for piece in text.chunks(MAX_PAYLOAD_BYTES as usize) {
        while ring::room(piece.len()) < piece.len() {
            if super::control().quiesce.load(core::sync::atomic::Ordering::SeqCst) != quiesce::NONE {
                return;
            }
            ring::flush();
            super::idle();
            // The event stays noted for the next `poll`, which must not run here: it could re-enter the caller.
            super::control().pending.store(0, core::sync::atomic::Ordering::SeqCst);
            registry(|r| r.waiting_for_room.set(true));
        }
        ring::send(number, kind::DATA, 0, &[piece]);
    }
    ring::flush();
}

/// One line of the kernel's log.
pub fn log(text: core::fmt::Arguments<'_>) {
    send_text(stream::TRACE, alloc::format!("torpor: {text}\n").as_bytes());
}

/// A byte stream with a window in each direction.
pub struct HostStream {
    number: u32,
    received: RefCell<VecDeque<u8>>,
    end_received: Cell<bool>,
    consumed_bytes: Cell<u32>,
    credit_bytes: Cell<u32>,
    /// Received from an end that is no more, and not read yet: the present end is not credited with them.
    orphaned_bytes: Cell<u32>,
    write_closed: Cell<bool>,
    queue: Rc<WaitQueue>,
}

impl HostStream {
    /// Registers the stream.
    #[must_use]
    pub fn open(number: u32) -> Rc<Self> {
        let opened = Rc::new(Self {
            number,
            received: RefCell::default(),
            end_received: Cell::new(false),
            consumed_bytes: Cell::new(0),
            credit_bytes: Cell::new(INITIAL_WINDOW_BYTES),
            orphaned_bytes: Cell::new(0),
            write_closed: Cell::new(false),
            queue: WaitQueue::new(),
        });
        register(number, opened.clone());
        opened
    }

    /// Woken when [`HostStream::poll`] changes.
    #[must_use]
    pub fn wait_queue(&self) -> Rc<WaitQueue> {
        Rc::clone(&self.queue)
    }

    /// Says that nothing will come (standard input that is not connected).
    pub fn set_end(&self) {
        self.end_received.set(true);
    }

    /// Bytes that can be read at once.
    #[must_use]
    pub fn available(&self) -> usize {
        self.received.borrow().len()
    }

    /// What is ready: readable at the end of input as well; ERR once the host no longer takes bytes.
    #[must_use]
    pub fn poll(&self) -> Events {
        let mut ready = Events::empty();
        if !self.received.borrow().is_empty() || self.end_received.get() {
            ready |= Events::READABLE;
        }
        if self.write_closed.get() {
            ready |= Events::ERR;
        } else if self.credit_bytes.get() > 0 && ring::room(1) > 0 {
            ready |= Events::WRITABLE;
        }
        ready
    }

    /// Takes what is there: `None` if nothing is and the end has not come, 0 at the end.
    ///
    /// # Errors
    /// EFAULT.
    pub fn try_read(&self, dst: &mut Dest<'_>) -> Result<Option<usize>> {
        let mut received = self.received.borrow_mut();
        if received.is_empty() {
            return Ok(self.end_received.get().then_some(0));
        }
        let mut total = 0;
        while dst.remaining() > 0 && !received.is_empty() {
            let n = match dst.put(received.as_slices().0) {
                Ok(n) => n,
                Err(error) if total == 0 => return Err(error),
                Err(_) => break,
            };
            received.drain(..n);
            total += n;
        }
        self.credit(total as u32);
        Ok(Some(total))
    }

    fn credit(&self, bytes: u32) {
        let orphaned = self.orphaned_bytes.get().min(bytes);
        self.orphaned_bytes.set(self.orphaned_bytes.get() - orphaned);
        let owed = self.consumed_bytes.get() + bytes - orphaned;
        // A quarter of the window at a time: fewer frames, and the sender never runs dry while bytes are wanted.
        if owed < INITIAL_WINDOW_BYTES / 4 || ring::room(0) == 0 {
            self.consumed_bytes.set(owed);
            return;
        }
        self.consumed_bytes.set(0);
        ring::send(self.number, kind::CREDIT, owed, &[]);
        ring::flush();
    }

    /// Sends as much as window and ring take: `None` if that is nothing.
    ///
    /// # Errors
    /// EPIPE once the host no longer takes bytes; EFAULT.
    pub fn try_write(&self, src: &mut Source<'_>) -> Result<Option<usize>> {
        if self.write_closed.get() {
            return Err(Errno::EPIPE);
        }
        let wanted = src.remaining().min(4096);
        let n = wanted.min(self.credit_bytes.get() as usize).min(ring::room(wanted));
        if n == 0 {
            return Ok((wanted == 0).then_some(0));
        }
        let mut buffer = [0; 4096];
        let n = src.take(&mut buffer[..n])?;
        self.credit_bytes.set(self.credit_bytes.get() - n as u32);
        ring::send(self.number, kind::DATA, 0, &[&buffer[..n]]);
        ring::flush();
        Ok(Some(n))
    }

    /// Bytes that [`HostStream::try_write`] would take now.
    #[must_use]
    pub fn write_room(&self) -> usize {
        if self.write_closed.get() { 0 } else { ring::room(4096).min(self.credit_bytes.get() as usize) }
    }

    /// Tells the host that no more bytes come.
    pub fn shutdown(&self) {
        send_soon(self.number, kind::SHUTDOWN, 0, &[]);
    }

    /// Queues to wait on before writing: the stream's and the ring's.
    #[must_use]
    pub fn write_queues(&self) -> [Rc<WaitQueue>; 2] {
        registry(|r| r.waiting_for_room.set(true));
        [Rc::clone(&self.queue), room_queue()]
    }
}

impl Receiver for HostStream {
    fn reattached(&self, unsent_bytes: [u32; 3]) {
        let unsent = unsent_bytes.get(self.number as usize).copied().unwrap_or(0);
        self.credit_bytes.set(INITIAL_WINDOW_BYTES.saturating_sub(unsent));
        self.consumed_bytes.set(0);
        self.orphaned_bytes.set(self.received.borrow().len() as u32);
        self.queue.wake(Events::WRITABLE);
    }

    fn receive(&self, header: Header, first: &[u8], second: &[u8]) {
        match header.kind {
            kind::DATA => {
                let mut received = self.received.borrow_mut();
                received.extend(first);
                received.extend(second);
                drop(received);
                self.queue.wake(Events::READABLE);
            }
            kind::CREDIT => {
                self.credit_bytes.set(self.credit_bytes.get().saturating_add(header.argument));
                self.queue.wake(Events::WRITABLE);
            }
            kind::SHUTDOWN => {
                // On standard input: no more bytes come. On the others: nobody takes ours.
                if self.number == stream::STDOUT || self.number == stream::STDERR {
                    self.write_closed.set(true);
                }
                self.end_received.set(true);
                self.queue.wake_all(Events::READABLE | Events::WRITABLE | Events::ERR);
            }
            _ => {}
        }
    }
}

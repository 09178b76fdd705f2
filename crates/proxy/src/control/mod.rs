//! torpord, as the proxy sees it: one connection at a time, requests and notices both ways.

pub mod envelope;
pub mod messages;
pub mod output;
pub mod server;

use crate::limits::CONTROL_QUEUE_MAX_BYTES;
use crate::watched::Watched;
use envelope::Received;
use messages::{Incoming, Refusal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use tokio::io::Interest;
use tokio::sync::{Notify, oneshot};

/// While more is queued, output of guests waits where it is bounded by the link.
const OUTPUT_ROOM_BYTES: usize = 1 << 20;

/// Why a request of the proxy got no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskError {
    /// torpord is not there, or went away before it answered: to be asked again of the next.
    Lost,
    /// Its answer.
    Refused(Refusal),
}

type Answer = Result<Box<RawValue>, AskError>;

/// A connection of torpord's.
pub struct Connection {
    socket: Watched,
    queue: RefCell<VecDeque<Vec<u8>>>,
    queued_bytes: Cell<usize>,
    more: Notify,
    broken: Cell<bool>,
}

impl Connection {
    /// Over a connected socket.
    ///
    /// # Errors
    /// Where the runtime can't watch it.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: Watched::new(socket)?,
            queue: RefCell::default(),
            queued_bytes: Cell::new(0),
            more: Notify::new(),
            broken: Cell::new(false),
        })
    }

    fn send(&self, object: &impl Serialize) {
        let object = serde_json::to_vec(object).expect("messages have no maps with odd keys");
        let datagram = envelope::wrap(&object).expect("messages are cut to size where they are made");
        if self.queue.borrow().is_empty() {
            match envelope::send(self.socket.get_ref(), &datagram) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return self.give_up(),
            }
        }
        self.queued_bytes.set(self.queued_bytes.get() + datagram.len());
        self.queue.borrow_mut().push_back(datagram);
        if self.queued_bytes.get() > CONTROL_QUEUE_MAX_BYTES {
            self.give_up();
        }
        self.more.notify_one();
    }

    /// Answers a request.
    pub fn answer(&self, id: u64, result: Result<impl Serialize, Refusal>) {
        #[derive(Serialize)]
        struct Reply<T> {
            id: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            ok: Option<T>,
            #[serde(skip_serializing_if = "Option::is_none")]
            error: Option<Refusal>,
        }
        let (ok, error) = match result {
            Ok(ok) => (Some(ok), None),
            Err(error) => (None, Some(error)),
        };
        self.send(&Reply { id, ok, error });
    }

    fn give_up(&self) {
        self.broken.set(true);
        self.more.notify_one();
    }

    /// The next datagram; sends what waits meanwhile. `None` when the connection has ended or is given up.
    pub async fn receive(&self, buffer: &mut [u8], sent: impl Fn()) -> io::Result<Option<Received>> {
        loop {
            if self.broken.get() {
                return Err(io::Error::other("it does not read what it is told"));
            }
            let interest = if self.queue.borrow().is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let mut guard = tokio::select! {
                guard = self.socket.ready(interest) => guard?,
                () = self.more.notified() => continue,
            };
            if guard.ready().is_writable() && !self.queue.borrow().is_empty() {
                match self.drain() {
                    Ok(()) => sent(),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        guard.clear_ready_matching(tokio::io::Ready::WRITABLE);
                    }
                    Err(error) => return Err(error),
                }
            }
            if guard.ready().is_readable() || guard.ready().is_read_closed() {
                match envelope::receive(self.socket.get_ref(), buffer) {
                    Ok(received) => return Ok(received),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        guard.clear_ready_matching(tokio::io::Ready::READABLE);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Sends what is queued.
    fn drain(&self) -> io::Result<()> {
        let mut queue = self.queue.borrow_mut();
        while let Some(datagram) = queue.front() {
            envelope::send(self.socket.get_ref(), datagram)?;
            self.queued_bytes.set(self.queued_bytes.get() - datagram.len());
            queue.pop_front();
        }
        Ok(())
    }
}

/// See the module's text.
#[derive(Default)]
pub struct Control {
    current: RefCell<Option<Rc<Connection>>>,
    next_id: Cell<u64>,
    pending: RefCell<HashMap<u64, oneshot::Sender<Answer>>>,
    arrived: Notify,
}

#[derive(Serialize)]
struct Request<'a, T> {
    id: u64,
    ask: HashMap<&'a str, T>,
}

#[derive(Serialize)]
struct Notice<'a, T> {
    tell: HashMap<&'a str, T>,
}

impl Control {
    /// Whether there is a torpord.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// Whether this connection is that of the torpord that counts.
    #[must_use]
    pub fn is_current(&self, connection: &Rc<Connection>) -> bool {
        self.current.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(current, connection))
    }

    /// Waits until there is a torpord.
    pub async fn present(&self) {
        while !self.is_present() {
            self.arrived.notified().await;
        }
    }

    /// `connection` has said hello: it replaces the one before.
    pub fn set_current(&self, connection: Rc<Connection>) {
        if let Some(old) = self.current.replace(Some(connection)) {
            old.give_up();
            self.pending.borrow_mut().clear();
        }
        self.arrived.notify_waiters();
    }

    /// `connection` has ended.
    pub fn ended(&self, connection: &Rc<Connection>) {
        if self.is_current(connection) {
            self.current.replace(None);
            self.pending.borrow_mut().clear();
        }
    }

    /// An answer of torpord's; false where none was due.
    pub fn take_answer(&self, incoming: Incoming) -> bool {
        let answer = match (incoming.ok, incoming.error) {
            (Some(ok), None) => Ok(ok),
            (None, Some(refusal)) => Err(AskError::Refused(refusal)),
            _ => return false,
        };
        let Some(waiter) = self.pending.borrow_mut().remove(&incoming.id) else { return false };
        // Whoever asked may have stopped waiting.
        let _ = waiter.send(answer);
        true
    }

    /// Asks torpord, and waits for its answer.
    ///
    /// # Errors
    /// [`AskError`]; an answer that can't be read counts as a refusal of code `protocol`.
    pub async fn ask<T: DeserializeOwned>(&self, name: &str, fields: &impl Serialize) -> Result<T, AskError> {
        let connection = self.current.borrow().clone().ok_or(AskError::Lost)?;
        let id = self.next_id.get() + 1;
        self.next_id.set(id);
        let (sender, receiver) = oneshot::channel();
        self.pending.borrow_mut().insert(id, sender);
        connection.send(&Request { id, ask: HashMap::from([(name, fields)]) });
        let answer = receiver.await.map_err(|_| AskError::Lost)??;
        serde_json::from_str(answer.get()).map_err(|error| {
            AskError::Refused(Refusal { code: "protocol".into(), message: format!("answer to {name}: {error}") })
        })
    }

    /// Tells torpord; without one nothing happens.
    pub fn tell(&self, name: &str, fields: &impl Serialize) {
        if let Some(connection) = &*self.current.borrow() {
            connection.send(&Notice { tell: HashMap::from([(name, fields)]) });
        }
    }

    /// Whether output of guests may be told now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.current.borrow().as_ref().is_some_and(|current| current.queued_bytes.get() < OUTPUT_ROOM_BYTES)
    }
}

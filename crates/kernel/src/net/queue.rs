//! What a socket has received and nobody has read: a byte stream or messages, with what travels beside them.

use super::address::{Address, InetAddress};
use super::packet::Packet;
use crate::fs::file::OpenFile;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// Who sent (`struct ucred`): pid, uid, gid.
pub type Sender = [u32; 3];

/// A message, or a piece of a stream.
#[derive(Clone, Default)]
pub struct Message {
    /// Its bytes from `start` on.
    data: Vec<u8>,
    start: usize,
    /// Source address, for datagrams.
    pub from: Option<Address>,
    /// Descriptors that were passed.
    pub rights: Vec<Rc<OpenFile>>,
    /// Credentials of the sender, for Unix sockets.
    pub sender: Option<Sender>,
    /// What the packet of a datagram over IP says.
    pub packet: Option<Packet>,
    /// When it arrived: CLOCK_REALTIME in ns.
    pub arrived_ns: u64,
}

impl Message {
    /// A whole message.
    #[must_use]
    pub fn new(data: Vec<u8>, from: Option<Address>, rights: Vec<Rc<OpenFile>>, sender: Option<Sender>) -> Self {
        Self { data, from, rights, sender, ..Self::default() }
    }

    /// A datagram over IP.
    #[must_use]
    pub(super) fn datagram(data: Vec<u8>, from: InetAddress, packet: Packet) -> Self {
        let (from, packet) = (Some(Address::Inet(from)), Some(packet));
        Self { data, from, packet, ..Self::default() }
    }

    /// What is left of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.data[self.start..]
    }
}

/// See the module's text.
pub struct Queue {
    messages: RefCell<VecDeque<Message>>,
    bytes: Cell<usize>,
    /// Bytes that may wait (the receive and send buffers of the two ends, as one).
    pub limit_bytes: Cell<usize>,
}

/// Pieces of a stream up to this size are joined.
const JOIN_BYTES: usize = 16 << 10;
/// What a message costs besides its bytes, so that empty ones are bounded, too.
const MESSAGE_COST_BYTES: usize = 64;

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self { messages: RefCell::default(), bytes: Cell::new(0), limit_bytes: Cell::new(limit_bytes) }
    }

    /// Payload bytes that wait, with the messages' own cost.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.bytes.get() + self.messages.borrow().len() * MESSAGE_COST_BYTES
    }

    /// Payload bytes that wait.
    #[must_use]
    pub fn readable_bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Bytes of the first message.
    #[must_use]
    pub fn first_bytes(&self) -> usize {
        self.messages.borrow().front().map_or(0, |m| m.bytes().len())
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.borrow().is_empty()
    }

    /// Bytes that fit now.
    #[must_use]
    pub fn room_bytes(&self) -> usize {
        self.limit_bytes.get().saturating_sub(self.used_bytes())
    }

    /// Appends a message.
    pub fn push(&self, mut message: Message) {
        message.arrived_ns = crate::time::realtime_ns();
        self.bytes.set(self.bytes.get() + message.bytes().len());
        self.messages.borrow_mut().push_back(message);
    }

    /// Appends to a stream; joins with the piece before where both are plain and by the same sender.
    pub fn push_stream(&self, message: Message) {
        let mut messages = self.messages.borrow_mut();
        if let Some(last) = messages.back_mut() {
            let plain = message.rights.is_empty()
                && last.rights.is_empty()
                && last.sender == message.sender
                && last.from == message.from;
            if plain && last.data.len() + message.bytes().len() <= JOIN_BYTES {
                last.data.extend_from_slice(message.bytes());
                self.bytes.set(self.bytes.get() + message.bytes().len());
                return;
            }
        }
        drop(messages);
        self.push(message);
    }

    /// Looks at the first message.
    pub fn first<R>(&self, look: impl FnOnce(&Message) -> R) -> Option<R> {
        self.messages.borrow().front().map(look)
    }

    /// Takes the first message.
    pub fn pop(&self) -> Option<Message> {
        let message = self.messages.borrow_mut().pop_front()?;
        self.bytes.set(self.bytes.get() - message.bytes().len());
        Some(message)
    }

    /// Runs `copy` on the bytes of the stream's pieces in turn, from `skip` bytes on, until it takes less than it was
    /// given or a piece with rights or another sender begins (`boundary`). Returns the bytes taken.
    pub fn read_pieces<E>(&self, boundary: bool, mut copy: impl FnMut(&[u8]) -> Result<usize, E>) -> Result<usize, E> {
        let messages = self.messages.borrow();
        let mut total = 0;
        let mut sender = None;
        for (n, message) in messages.iter().enumerate() {
            if n > 0 && (!message.rights.is_empty() || (boundary && sender != message.sender)) {
                break;
            }
            sender = message.sender;
            let taken = match copy(message.bytes()) {
                Ok(taken) => taken,
                Err(error) if total == 0 => return Err(error),
                Err(_) => break,
            };
            total += taken;
            // What was passed with this piece is delivered with it, and ends the read.
            if taken < message.bytes().len() || (n == 0 && !message.rights.is_empty()) {
                break;
            }
        }
        Ok(total)
    }

    /// Takes `len` bytes off the stream's front; returns the rights of the pieces that were begun.
    pub fn consume(&self, mut len: usize) -> Vec<Rc<OpenFile>> {
        let mut rights = Vec::new();
        let mut messages = self.messages.borrow_mut();
        self.bytes.set(self.bytes.get() - len.min(self.bytes.get()));
        while let Some(front) = messages.front_mut() {
            rights.append(&mut front.rights);
            let here = front.bytes().len();
            if len < here {
                front.start += len;
                break;
            }
            len -= here;
            messages.pop_front();
            if len == 0 {
                break;
            }
        }
        rights
    }

    /// Throws everything away; the caller drops it outside of any borrow.
    #[must_use]
    pub fn take_all(&self) -> VecDeque<Message> {
        self.bytes.set(0);
        self.messages.take()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        bury(self.messages.take());
    }
}

crate::global! {
    /// Messages whose descriptors are still to be let go of.
    static GRAVES: RefCell<Vec<VecDeque<Message>>> = RefCell::new(Vec::new());
}
crate::global! {
    static BURYING: Cell<bool> = Cell::new(false);
}

/// Drops messages. A descriptor in one may be the last of a socket that has messages with descriptors, and so on: however
/// many there are, one after the other and not one within the other, for which a kernel stack is too small.
pub(super) fn bury(messages: VecDeque<Message>) {
    if messages.iter().all(|message| message.rights.is_empty()) {
        return;
    }
    GRAVES.with(|graves| graves.borrow_mut().push(messages));
    if BURYING.with(|burying| burying.replace(true)) {
        return;
    }
    while let Some(messages) = GRAVES.with(|graves| graves.borrow_mut().pop()) {
        drop(messages);
    }
    BURYING.with(|burying| burying.set(false));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_stream_is_its_bytes(steps in proptest::collection::vec((any::<bool>(), 0usize..5000), 1..60)) {
            let queue = Queue::new(usize::MAX);
            let mut model = std::collections::VecDeque::new();
            let mut next = 0u8;
            for (write, len) in steps {
                if write {
                    let bytes: Vec<u8> = (0..len).map(|_| { next = next.wrapping_add(1); next }).collect();
                    model.extend(&bytes);
                    queue.push_stream(Message::new(bytes, None, Vec::new(), None));
                } else {
                    let mut got = Vec::new();
                    let n = queue.read_pieces(false, |piece| {
                        let take = piece.len().min(len - got.len());
                        got.extend_from_slice(&piece[..take]);
                        Ok::<_, ()>(take)
                    }).unwrap();
                    prop_assert_eq!(n, len.min(model.len()));
                    let expected: Vec<u8> = model.drain(..n).collect();
                    prop_assert_eq!(got, expected);
                    if n > 0 { queue.consume(n); }
                }
                prop_assert_eq!(queue.readable_bytes(), model.len());
            }
        }
    }
}

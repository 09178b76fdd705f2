//! Message queues (msgget(2), msgsnd(2), msgrcv(2)).
//!
//! A message goes straight to the first receiver that waits for one like it.

use super::permissions::{Permissions, Want};
use super::table::{Object, Request, Table};
use super::{caller, limits, now_s};
use crate::errno::{Errno, Result};
use crate::task::current;
use crate::task::sched::{self, Sleep};
use crate::task::thread::Thread;
use crate::wait::{Events, WaitQueue};
use alloc::collections::VecDeque;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// At least 1.
    pub kind: i64,
    /// What it says.
    pub text: Vec<u8>,
}

/// Which message a receiver wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The first.
    Any,
    /// The first of a type.
    Equal(i64),
    /// The first of another type (MSG_EXCEPT).
    Other(i64),
    /// The first of the lowest type, which is at most this.
    Lowest(i64),
}

impl Wanted {
    /// As msgrcv(2) has it.
    #[must_use]
    pub const fn new(kind: i64, except: bool) -> Self {
        match kind {
            0 => Self::Any,
            i64::MIN..0 => Self::Lowest(kind.saturating_neg()),
            _ if except => Self::Other(kind),
            _ => Self::Equal(kind),
        }
    }

    fn matches(self, message: &Message) -> bool {
        match self {
            Self::Any => true,
            Self::Equal(kind) => message.kind == kind,
            Self::Other(kind) => message.kind != kind,
            Self::Lowest(kind) => message.kind <= kind,
        }
    }

    /// Where in the queue the message is.
    fn find(self, messages: &VecDeque<Message>) -> Option<usize> {
        let matching = messages.iter().enumerate().filter(|(_, message)| self.matches(message));
        match self {
            Self::Lowest(_) => matching.min_by_key(|(_, message)| message.kind),
            _ => matching.into_iter().next(),
        }
        .map(|(at, _)| at)
    }
}

/// How much a receiver takes of a message.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes.
    pub bytes: usize,
    /// What is more is cut off (MSG_NOERROR).
    pub truncate: bool,
}

impl Room {
    const fn check(self, message: &Message) -> Result<()> {
        if message.text.len() > self.bytes && !self.truncate { Err(Errno::E2BIG) } else { Ok(()) }
    }
}

struct Receiver {
    thread: Weak<Thread>,
    pid: u32,
    wanted: Wanted,
    room: Room,
    outcome: RefCell<Option<Result<Message>>>,
}

impl Receiver {
    fn end(&self, outcome: Result<Message>) {
        *self.outcome.borrow_mut() = Some(outcome);
        if let Some(thread) = self.thread.upgrade() {
            thread.interrupt();
        }
    }
}

/// A queue.
pub struct Queue {
    permissions: Permissions,
    messages: RefCell<VecDeque<Message>>,
    receivers: RefCell<Vec<Rc<Receiver>>>,
    /// Woken when there is more room.
    senders: Rc<WaitQueue>,
    /// Bytes of text in the queue.
    pub bytes: Cell<u64>,
    /// How many bytes may be in it, and how many messages.
    pub max_bytes: Cell<u64>,
    /// When a message was last sent, in seconds of CLOCK_REALTIME; 0 for never.
    pub sent_s: Cell<i64>,
    /// When one was last received.
    pub received_s: Cell<i64>,
    /// When it was made or changed.
    pub changed_s: Cell<i64>,
    /// Who sent last.
    pub sender_pid: Cell<u32>,
    /// Who received last.
    pub receiver_pid: Cell<u32>,
}

crate::global! {
    static QUEUES: RefCell<Table<Queue>> = RefCell::new(Table::new());
}

impl Object for Queue {
    fn permissions(&self) -> &Permissions {
        &self.permissions
    }
}

impl Queue {
    /// Messages in it.
    #[must_use]
    pub fn count(&self) -> usize {
        self.messages.borrow().len()
    }

    fn fits(&self, bytes: usize) -> bool {
        let max = self.max_bytes.get();
        self.bytes.get() + bytes as u64 <= max && (self.count() as u64) < max
    }

    fn check(&self, want: Want) -> Result<()> {
        self.permissions.check(want)?;
        if self.permissions.is_removed() { Err(Errno::EIDRM) } else { Ok(()) }
    }

    /// Whether a sender may go on; `None` while there is no room.
    fn ready(&self, bytes: usize) -> Option<Result<()>> {
        match self.check(Want::WRITE) {
            Ok(()) => self.fits(bytes).then_some(Ok(())),
            Err(error) => Some(Err(error)),
        }
    }

    /// Gives a message to the first receiver that waits for it, else queues it. A receiver without room for it fails.
    fn deliver(&self, message: Message) {
        loop {
            let at = self.receivers.borrow().iter().position(|receiver| receiver.wanted.matches(&message));
            let Some(at) = at else { break };
            let receiver = self.receivers.borrow_mut().remove(at);
            if let Err(error) = receiver.room.check(&message) {
                receiver.end(Err(error));
                continue;
            }
            self.receiver_pid.set(receiver.pid);
            self.received_s.set(now_s());
            return receiver.end(Ok(message));
        }
        self.bytes.set(self.bytes.get() + message.text.len() as u64);
        self.messages.borrow_mut().push_back(message);
    }

    /// Takes a message out; `None` if there is none like it.
    fn take(&self, wanted: Wanted, room: Room) -> Result<Option<Message>> {
        let mut messages = self.messages.borrow_mut();
        let Some(at) = wanted.find(&messages) else { return Ok(None) };
        room.check(&messages[at])?;
        let message = messages.remove(at);
        drop(messages);
        self.bytes.set(self.bytes.get() - message.as_ref().map_or(0, |message| message.text.len() as u64));
        self.received_s.set(now_s());
        self.receiver_pid.set(caller());
        self.senders.wake_all(Events::OUT);
        Ok(message)
    }

    /// IPC_SET changed something: whoever waits looks again.
    pub fn look_again(&self) {
        self.changed_s.set(now_s());
        self.senders.wake_all(Events::empty());
        for receiver in self.receivers.take() {
            receiver.end(Err(Errno::EAGAIN));
        }
    }

    /// IPC_RMID: whoever waits gets EIDRM.
    pub fn remove(&self) {
        QUEUES.with(|table| table.borrow_mut().remove(self));
        for receiver in self.receivers.take() {
            receiver.end(Err(Errno::EIDRM));
        }
        self.senders.wake_all(Events::empty());
    }
}

/// msgget(2): the identifier of a queue.
///
/// # Errors
/// EEXIST, ENOENT, EACCES, ENOSPC.
pub fn get(request: Request) -> Result<i32> {
    let make = |permissions| {
        Ok(Queue {
            permissions,
            messages: RefCell::default(),
            receivers: RefCell::default(),
            senders: WaitQueue::new(),
            bytes: Cell::new(0),
            max_bytes: Cell::new(limits::msgmnb_bytes()),
            sent_s: Cell::new(0),
            received_s: Cell::new(0),
            changed_s: Cell::new(now_s()),
            sender_pid: Cell::new(0),
            receiver_pid: Cell::new(0),
        })
    };
    QUEUES.with(|table| table.borrow_mut().get(request, limits::msgmni() as usize, |_| Ok(()), make))
}

/// msgsnd(2).
///
/// # Errors
/// EINVAL, EACCES, EIDRM; EAGAIN where it would have to wait and must not; ERESTARTNOHAND when interrupted.
pub fn send(id: i32, message: Message, no_wait: bool) -> Result<()> {
    let queue = find(id)?;
    let bytes = message.text.len();
    let ready = || queue.ready(bytes);
    let outcome = match ready() {
        Some(outcome) => outcome,
        None if no_wait => Err(Errno::EAGAIN),
        None => sched::wait_until(&[&queue.senders], None, Sleep::Interruptible, ready)
            .unwrap_or(Err(Errno::ERESTARTNOHAND)),
    };
    // A queue that was removed meanwhile can't be asked for permissions.
    outcome.map_err(|error| if queue.permissions.is_removed() { Errno::EIDRM } else { error })?;
    queue.sender_pid.set(caller());
    queue.sent_s.set(now_s());
    queue.deliver(message);
    Ok(())
}

/// msgrcv(2).
///
/// # Errors
/// EINVAL, EACCES, EIDRM, E2BIG; ENOMSG where it would have to wait and must not; ERESTARTNOHAND when interrupted.
pub fn receive(id: i32, wanted: Wanted, room: Room, no_wait: bool) -> Result<Message> {
    let queue = find(id)?;
    loop {
        queue.check(Want::READ)?;
        if let Some(message) = queue.take(wanted, room)? {
            return Ok(message);
        }
        if no_wait {
            return Err(Errno::ENOMSG);
        }
        let me = current();
        let receiver = Rc::new(Receiver {
            thread: Rc::downgrade(&me),
            pid: me.process.pid(),
            wanted,
            room,
            outcome: RefCell::new(None),
        });
        queue.receivers.borrow_mut().push(Rc::clone(&receiver));
        let woken = || receiver.outcome.take();
        let outcome = sched::wait_until(&[], None, Sleep::Interruptible, woken);
        queue.receivers.borrow_mut().retain(|other| !Rc::ptr_eq(other, &receiver));
        // A message that came together with a signal has been received.
        match outcome.ok().or_else(woken) {
            Some(Err(Errno::EAGAIN)) => {}
            Some(outcome) => return outcome,
            None => return Err(Errno::ERESTARTNOHAND),
        }
    }
}

/// msgrcv(2) with MSG_COPY: a copy of the message at a place in the queue.
///
/// # Errors
/// EINVAL, EACCES, ENOMSG, E2BIG.
pub fn copy(id: i32, place: i64, room: Room) -> Result<Message> {
    let queue = find(id)?;
    queue.check(Want::READ)?;
    let messages = queue.messages.borrow();
    let message = usize::try_from(place).ok().and_then(|place| messages.get(place)).ok_or(Errno::ENOMSG)?;
    room.check(message)?;
    if message.text.len() > room.bytes { Err(Errno::EINVAL) } else { Ok(message.clone()) }
}

/// The queue with an identifier.
///
/// # Errors
/// EINVAL.
pub fn find(id: i32) -> Result<Rc<Queue>> {
    QUEUES.with(|table| table.borrow().find(id))
}

/// The queue at an index (MSG_STAT).
///
/// # Errors
/// EINVAL.
pub fn at_index(index: i32) -> Result<Rc<Queue>> {
    QUEUES.with(|table| table.borrow().at_index(index))
}

/// All queues.
#[must_use]
pub fn all() -> Vec<Rc<Queue>> {
    QUEUES.with(|table| table.borrow().all())
}

/// The largest index in use.
#[must_use]
pub fn highest_index() -> u32 {
    QUEUES.with(|table| table.borrow().highest_index())
}

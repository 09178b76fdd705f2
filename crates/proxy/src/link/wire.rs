//! One VM process's end: its socket, and what was said over it.

use crate::watched::Watched;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};
use torpor_abi::frame::{Header, kind, stream};
use torpor_streams::ledger::Ledger;
use torpor_streams::link::{Message, receive};
use torpor_streams::outbox::Outbox;
use torpor_streams::parked::{BadState, Parked, incarnation_argument};

use super::Traffic;

/// See the module's text.
pub(super) struct Wire {
    socket: Watched,
    pub(super) out: Outbox,
    /// Whole messages that come before that of `out`.
    before: Vec<Message>,
    /// The socket took no more.
    pub(super) blocked: bool,
    /// The other end is closed, and all was received.
    pub(super) ended: bool,
    pub(super) traffic: Traffic,
}

impl Wire {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let out = Outbox::new(false);
        Ok(Self {
            socket: Watched::new(socket)?,
            out,
            before: Vec::new(),
            blocked: false,
            ended: false,
            traffic: Traffic::default(),
        })
    }

    /// Says that nothing goes on from before.
    pub(super) fn begin(&mut self, generation: u64) {
        let argument = incarnation_argument(generation);
        self.push(Header { stream: stream::CONTROL, kind: kind::RESUMED, len: 0, argument }, &[]);
    }

    /// Continues what was parked by the incarnation `before`.
    pub(super) fn resume(&mut self, parked: &Parked, instance: [u8; 16], before: u64) -> Result<(), BadState> {
        let mut messages = Vec::new();
        let mut message = Message::default();
        parked.attach(instance, before, &mut self.out.ledger, |header, payload| {
            if !message.fits(header.len) {
                messages.push(std::mem::take(&mut message));
            }
            message.push(header, payload);
        })?;
        messages.push(message);
        messages.reverse();
        self.before = messages;
        Ok(())
    }

    /// The ledger, and the frames that were entered there and not sent.
    pub(super) fn into_parts(self) -> (Ledger, Vec<u8>) {
        let mut bytes = Vec::new();
        for message in self.before.into_iter().rev().chain([self.out.message]) {
            bytes.append(&mut message.into_bytes());
        }
        (self.out.ledger, bytes)
    }

    /// Appends a frame that fits.
    pub(super) fn push(&mut self, header: Header, payload: &[u8]) {
        self.traffic.tx_bytes += u64::from(header.len);
        self.out.push(header, payload);
    }

    /// Sends all; false where the socket takes no more.
    pub(super) fn flush(&mut self) -> bool {
        self.blocked = !flush(self.socket.get_ref(), &mut self.before, &mut self.out.message);
        !self.blocked
    }

    /// Ready when a socket that took no more has taken all.
    pub(super) fn poll_unblocked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.blocked && !self.ended {
            let Ok(mut guard) = ready!(self.socket.poll_write_ready(cx)) else { return Poll::Pending };
            self.blocked = !flush(self.socket.get_ref(), &mut self.before, &mut self.out.message);
            if !self.blocked {
                return Poll::Ready(());
            }
            guard.clear_ready();
        }
        Poll::Pending
    }

    /// A message's length, 0 at the end; none where there is none yet.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        match receive(self.socket.get_ref(), buffer) {
            Ok(len) => Some(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => Some(0),
        }
    }

    /// A message's length; 0 at the end, an error included.
    pub(super) fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<usize> {
        loop {
            let Ok(mut guard) = ready!(self.socket.poll_read_ready(cx)) else { return Poll::Ready(0) };
            match receive(self.socket.get_ref(), buffer) {
                Ok(len) => return Poll::Ready(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(_) => return Poll::Ready(0),
            }
        }
    }
}

fn flush(socket: &OwnedFd, before: &mut Vec<Message>, last: &mut Message) -> bool {
    loop {
        let message = before.last_mut().unwrap_or(&mut *last);
        if !message.is_empty() {
            match message.send(socket) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // The other end is closed. Its last words are still to be received, and then its end.
                Err(_) => *message = Message::default(),
            }
        }
        if before.pop().is_none() {
            return true;
        }
    }
}

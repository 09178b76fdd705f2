//! A byte stream of a guest and the host's socket that it ends in.

use super::{Chunk, errno_of};
use crate::outbox::Outbox;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use torpor_abi::frame::{CONNECTION_WINDOW_BYTES, Header, MAX_PAYLOAD_BYTES, MAX_WINDOW_BYTES, kind};

/// Once the guest has closed, its peer must take what is left within this time without a pause.
const LINGER: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// connect(2) is under way; the guest waits for OPENED.
    Connecting,
    /// OPEN was sent; the guest has not answered.
    Offered,
    Open,
}

/// What a stream is after it was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    /// Nothing can be done until something happens.
    Waiting,
    /// The message is full.
    More,
    /// Both sides are through; CLOSE was sent.
    Over,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct ByteStream {
    socket: OwnedFd,
    phase: Phase,
    /// What epoll, edge-triggered, has said and was not found wrong since.
    readable: bool,
    writable: bool,
    /// The end or an error lies behind what can be read: no other edge will tell of it.
    hung_up: bool,
    /// SHUTDOWN was sent to the guest.
    read_ended: bool,
    /// From the guest, for the socket.
    to_write: VecDeque<u8>,
    /// Written and not handed back yet.
    written_bytes: u32,
    /// What the guest may have under way.
    window_bytes: u32,
    /// The guest has said that it sends no more, and the socket was told.
    end_wanted: bool,
    write_ended: bool,
    guest_closed: bool,
    /// vsock by the host: the program there wants to hear that the guest has accepted.
    greeting: Option<Vec<u8>>,
}

impl ByteStream {
    fn new(socket: OwnedFd, phase: Phase) -> Self {
        Self {
            socket,
            phase,
            readable: false,
            writable: false,
            hung_up: false,
            read_ended: false,
            to_write: VecDeque::new(),
            written_bytes: 0,
            window_bytes: CONNECTION_WINDOW_BYTES,
            end_wanted: false,
            write_ended: false,
            guest_closed: false,
            greeting: None,
        }
    }

    /// A socket whose connect(2) is under way for the guest.
    pub(super) fn connecting(socket: OwnedFd) -> Self {
        Self::new(socket, Phase::Connecting)
    }

    /// A connection that is offered to the guest.
    pub(super) fn offered(socket: OwnedFd, greeting: Option<Vec<u8>>) -> Self {
        Self { greeting, ..Self::new(socket, Phase::Offered) }
    }

    pub(super) fn is_offered(&self) -> bool {
        self.phase == Phase::Offered
    }

    /// What epoll says.
    pub(super) fn ready(&mut self, flags: EventFlags) {
        self.hung_up |= flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        self.readable |= self.hung_up || flags.contains(EventFlags::IN);
        self.writable |= flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
    }

    /// Whether the far side has something for the guest: bytes, its end, or an answer to connect(2).
    pub(super) fn has_word(&self) -> bool {
        match self.phase {
            Phase::Connecting => self.writable,
            Phase::Offered => false,
            // What epoll has said may be outdated.
            Phase::Open => self.readable && !self.read_ended && !self.guest_closed && is_readable(&self.socket),
        }
    }

    /// Bytes that wait for the socket.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.to_write.len()
    }

    /// The guest has accepted.
    pub(super) fn opened(&mut self) {
        self.phase = Phase::Open;
        self.to_write.extend(self.greeting.take().unwrap_or_default());
    }

    /// Data of the guest. What the socket takes at once is written at once.
    pub(super) fn data(&mut self, payload: &[u8]) {
        let mut written = 0;
        if self.to_write.is_empty() && self.writable {
            match rustix::net::send(&self.socket, payload, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(len) => written = len,
                // Whatever it is shows again when the rest is written.
                Err(_) => self.writable = false,
            }
            self.hand_back(written);
        }
        self.to_write.extend(&payload[written..]);
    }

    fn hand_back(&mut self, bytes: usize) {
        self.written_bytes = self.written_bytes.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// The guest sends no more.
    pub(super) fn end(&mut self) {
        self.end_wanted = true;
    }

    /// The guest is through with the stream, in order: what it has sent is still to be written.
    pub(super) fn close(&mut self) {
        self.guest_closed = true;
        // What can't be set is not there to help; the stream then ends by the peer.
        let _ = sockopt::set_tcp_user_timeout(&self.socket, u32::try_from(LINGER.as_millis()).unwrap_or(u32::MAX));
    }

    /// Ends the connection with a reset, where the socket has such a thing.
    pub(super) fn reset(self) {
        // If it can't be set, the peer sees an end in place of a reset.
        let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
    }

    /// Does what can be done now.
    pub(super) fn serve(&mut self, number: u32, out: &mut Outbox, buffer: &mut Chunk, growth: &mut usize) -> Served {
        let close = |out: &mut Outbox, errno: u32| {
            out.push(Header { stream: number, kind: kind::CLOSE, len: 0, argument: errno }, &[]);
            Served::Over
        };
        if !out.message.fits(0) {
            return Served::More;
        }
        if self.phase == Phase::Connecting && self.writable {
            match sockopt::socket_error(&self.socket) {
                Ok(Ok(())) if rustix::net::getpeername(&self.socket).is_ok() => {
                    self.phase = Phase::Open;
                    out.push(Header { stream: number, kind: kind::OPENED, len: 0, argument: 0 }, &[]);
                }
                Ok(Ok(())) => self.writable = false,
                Ok(Err(error)) | Err(error) => return close(out, errno_of(error)),
            }
        }
        if self.phase != Phase::Open {
            return Served::Waiting;
        }
        if let Err(error) = self.write() {
            return close(out, errno_of(error));
        }
        if self.guest_closed {
            return if self.to_write.is_empty() { close(out, 0) } else { Served::Waiting };
        }
        if self.written_bytes >= self.window_bytes / 4 && !self.end_wanted {
            if !out.message.fits(0) {
                return Served::More;
            }
            let grow = self.window_bytes.min(MAX_WINDOW_BYTES - self.window_bytes);
            let grow = if *growth >= grow as usize { grow } else { 0 };
            *growth -= grow as usize;
            self.window_bytes += grow;
            let argument = std::mem::take(&mut self.written_bytes) + grow;
            out.push(Header { stream: number, kind: kind::CREDIT, len: 0, argument }, &[]);
        }
        self.read(number, out, buffer)
    }

    fn read(&mut self, number: u32, out: &mut Outbox, buffer: &mut Chunk) -> Served {
        while self.readable && !self.read_ended {
            let room = out.ledger.free_bytes(number).min(MAX_PAYLOAD_BYTES);
            if room == 0 {
                return Served::Waiting;
            }
            if !out.message.fits(room) {
                return Served::More;
            }
            match rustix::net::recv(&self.socket, &mut buffer[..room as usize], RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    self.read_ended = true;
                    out.push(Header { stream: number, kind: kind::SHUTDOWN, len: 0, argument: 0 }, &[]);
                }
                Ok((len, _)) => {
                    // A short read has emptied the socket; what comes later is a new edge.
                    self.readable = self.hung_up || len == room as usize;
                    let header =
                        Header { stream: number, kind: kind::DATA, len: u32::try_from(len).unwrap_or(0), argument: 0 };
                    out.push(header, &buffer[..len]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.readable = false,
                Err(error) => {
                    out.push(Header { stream: number, kind: kind::CLOSE, len: 0, argument: errno_of(error) }, &[]);
                    return Served::Over;
                }
            }
        }
        Served::Waiting
    }

    fn write(&mut self) -> Result<(), Errno> {
        while !self.to_write.is_empty() && self.writable {
            let (front, _) = self.to_write.as_slices();
            match rustix::net::send(&self.socket, front, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(len) => {
                    self.to_write.drain(..len);
                    self.hand_back(len);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(error) => return Err(error),
            }
        }
        if self.to_write.is_empty() {
            if self.to_write.capacity() > CONNECTION_WINDOW_BYTES as usize {
                self.to_write = VecDeque::new();
            }
            if self.end_wanted && !self.write_ended {
                self.write_ended = true;
                // It fails only where the connection is gone, which shows by itself.
                let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
            }
        }
        Ok(())
    }

    /// What the window has grown by, to be given to others.
    pub(super) fn growth_bytes(&self) -> usize {
        (self.window_bytes - CONNECTION_WINDOW_BYTES) as usize
    }

    /// Its socket.
    pub(super) fn socket(&self) -> impl AsFd + '_ {
        self.socket.as_fd()
    }
}

/// Whether recv(2) would give something: bytes, the end, an error.
pub(super) fn is_readable(socket: &OwnedFd) -> bool {
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
    !matches!(rustix::net::recv(socket, &mut [0], flags), Err(Errno::AGAIN | Errno::INTR))
}

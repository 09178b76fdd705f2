//! A connection to a port of the guest, as the proxy reads and writes it.

use super::{ECONNRESET, Inner, Link};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use torpor_abi::frame::{CONNECTION_WINDOW_BYTES, Header, MAX_PAYLOAD_BYTES, kind};

/// What the link keeps of a connection until its [`Stream`] is dropped.
pub(super) struct Half {
    received: VecDeque<u8>,
    opened: bool,
    /// To whoever waits for the guest to accept.
    opening: Option<oneshot::Sender<io::Result<()>>>,
    /// What goes over it is no traffic: it keeps nothing awake.
    pub(super) is_notice: bool,
    /// The guest sends no more bytes.
    ended: bool,
    /// The guest, or the link's end, has closed it; with an errno or 0.
    closed: Option<u32>,
    /// CLOSE was sent, or is about to be.
    pub(super) said_close: bool,
    said_shutdown: bool,
    /// Bytes of ours so far.
    sent_bytes: u64,
    /// Read, and not handed back.
    pub(super) consumed_bytes: u32,
    pub(super) window_bytes: u32,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Half {
    /// A connection that is just being opened. With `is_notice` no traffic goes over it.
    pub(super) fn new(is_notice: bool) -> (Self, Opening) {
        let (opening, opened) = oneshot::channel();
        let half = Self {
            received: VecDeque::new(),
            opened: false,
            opening: Some(opening),
            is_notice,
            ended: false,
            closed: None,
            said_close: false,
            said_shutdown: false,
            sent_bytes: 0,
            consumed_bytes: 0,
            window_bytes: CONNECTION_WINDOW_BYTES,
            reader: None,
            writer: None,
        };
        (half, Opening(opened))
    }

    /// A frame of the guest.
    pub(super) fn take(&mut self, header: &Header, payload: &[u8]) {
        match header.kind {
            kind::DATA => {
                self.received.extend(payload);
                if let Some(reader) = self.reader.take() {
                    reader.wake();
                }
                return;
            }
            kind::OPENED => {
                self.opened = true;
                self.answer(Ok(()));
            }
            kind::SHUTDOWN => self.ended = true,
            kind::CLOSE => return self.end(header.argument),
            _ => {}
        }
        self.wake();
    }

    fn answer(&mut self, answer: io::Result<()>) {
        if let Some(opening) = self.opening.take() {
            // Where nobody waits, nobody needs to know.
            let _ = opening.send(answer);
        }
    }

    /// Nothing more comes or goes.
    pub(super) fn end(&mut self, errno: u32) {
        self.closed = self.closed.or(Some(errno));
        self.answer(Err(closed_error(errno)));
        self.wake();
    }

    pub(super) fn is_over(&self) -> bool {
        self.closed.is_some() || self.said_close
    }

    pub(super) fn growth_bytes(&self) -> usize {
        (self.window_bytes - CONNECTION_WINDOW_BYTES) as usize
    }

    pub(super) fn wake(&mut self) {
        self.wake_writer();
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    pub(super) fn wake_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

fn keep(slot: &mut Option<Waker>, cx: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}

fn closed_error(errno: u32) -> io::Error {
    let errno = if errno == 0 { 32 } else { errno.min(4095) };
    io::Error::from_raw_os_error(errno as i32)
}

/// See the module's text. Dropping it closes the connection.
pub struct Stream {
    link: Rc<Link>,
    number: u32,
    is_notice: bool,
    is_reset: bool,
}

impl Stream {
    /// Dropping it resets the connection.
    pub fn reset(&mut self) {
        self.is_reset = true;
    }

    /// Whether the guest has closed it: it takes nothing more. Bytes of it may still be unread.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.link.inner.borrow().streams.get(&self.number).is_none_or(|half| half.closed.is_some())
    }

    pub(super) fn new(link: Rc<Link>, number: u32, is_notice: bool) -> Self {
        Self { link, number, is_notice, is_reset: false }
    }

    /// By which [`Link::close`] knows it.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }
}

/// Ends when the guest has accepted a connection, or with the errno that it refused with. If it fails, nothing that was
/// written to the connection has reached a program: whatever a program does is heard of behind the acceptance.
pub struct Opening(oneshot::Receiver<io::Result<()>>);

impl Future for Opening {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|answer| answer.unwrap_or_else(|_| Err(closed_error(0))))
    }
}

impl Inner {
    fn poll_write(&mut self, number: u32, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let held = self.hold();
        let Some(half) = self.streams.get_mut(&number) else { return Poll::Ready(Err(closed_error(0))) };
        if let Some(errno) = half.closed {
            return Poll::Ready(Err(closed_error(errno)));
        }
        let Some(wire) = self.wire.as_mut().filter(|_| !held) else {
            keep(&mut half.writer, cx);
            return Poll::Pending;
        };
        let len = wire.out.ledger.free_bytes(number).min(MAX_PAYLOAD_BYTES).min(bytes.len() as u32);
        if len == 0 && !bytes.is_empty() || !wire.out.message.fits(len) {
            keep(&mut half.writer, cx);
            return Poll::Pending;
        }
        half.sent_bytes += u64::from(len);
        wire.push(Header { stream: number, kind: kind::DATA, len, argument: 0 }, &bytes[..len as usize]);
        self.send();
        Poll::Ready(Ok(len as usize))
    }

    fn poll_shutdown(&mut self, number: u32, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let Some(half) = self.streams.get_mut(&number) else { return Poll::Ready(Ok(())) };
        if half.is_over() || half.said_shutdown {
            return Poll::Ready(Ok(()));
        }
        let held = self.hold();
        let Some(half) = self.streams.get_mut(&number) else { return Poll::Ready(Ok(())) };
        let Some(wire) = self.wire.as_mut().filter(|wire| !held && half.opened && wire.out.message.fits(0)) else {
            keep(&mut half.writer, cx);
            return Poll::Pending;
        };
        half.said_shutdown = true;
        wire.push(Header { stream: number, kind: kind::SHUTDOWN, len: 0, argument: 0 }, &[]);
        self.send();
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, number: u32, cx: &Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(half) = self.streams.get_mut(&number) else { return Poll::Ready(Ok(())) };
        if half.received.is_empty() {
            return match half.closed {
                Some(errno) if errno != 0 => Poll::Ready(Err(closed_error(errno))),
                Some(_) => Poll::Ready(Ok(())),
                None if half.ended => Poll::Ready(Ok(())),
                None => {
                    keep(&mut half.reader, cx);
                    Poll::Pending
                }
            };
        }
        let (front, back) = half.received.as_slices();
        let mut len = front.len().min(into.remaining());
        into.put_slice(&front[..len]);
        let more = back.len().min(into.remaining());
        into.put_slice(&back[..more]);
        len += more;
        half.received.drain(..len);
        if half.received.is_empty() && half.received.capacity() > CONNECTION_WINDOW_BYTES as usize {
            half.received = VecDeque::new();
        }
        half.consumed_bytes += len as u32;
        self.credit(number);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.link.inner.borrow_mut().poll_read(self.number, cx, into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.link.inner.borrow_mut().poll_write(self.number, cx, bytes);
        if result.is_ready() {
            if !self.is_notice {
                self.link.last_traffic.set(Instant::now());
            }
        } else {
            self.link.report_word();
        }
        result
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = self.link.inner.borrow_mut().poll_shutdown(self.number, cx);
        self.link.report_word();
        result
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut inner = self.link.inner.borrow_mut();
        let errno = inner.streams.get(&self.number).map_or(0, |half| {
            // Bytes that nobody has read: a close would lose them in silence.
            if !self.is_reset && half.received.is_empty() || half.closed.is_some() { 0 } else { ECONNRESET }
        });
        inner.farewell(self.number, errno);
        inner.streams.remove(&self.number);
        inner.send();
        drop(inner);
        self.link.report_word();
    }
}

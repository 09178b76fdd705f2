//! A client's connection: where it is between two requests, and how long it may stay there.

use crate::http::tunnel::Tunnel;
use crate::limits::{HALF_CLOSED_TIME, HEAD_TIME, KEEP_ALIVE, STALL_TIME};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing was read since the last answer.
    Idle,
    /// A head has begun.
    Head,
    /// Requests are in flight.
    Busy,
}

/// See the module's text. Shared by the transport, the watchdog and the requests.
pub struct Connection {
    phase: Cell<Phase>,
    since: Cell<Instant>,
    in_flight: Cell<usize>,
    /// The client ends its direction while its answer is due.
    half_closed: Cell<Option<Instant>>,
    /// The client takes nothing.
    blocked: Cell<Option<Instant>>,
    /// The guest waits for more of the body.
    pub body_wanted: Cell<Option<Instant>>,
    /// More of a body is to come.
    pub body_open: Cell<bool>,
    /// What the connection is to become after an answer that switches protocols.
    pub tunnel: RefCell<Option<Tunnel>>,
    /// HTTP/2: frames come whenever they like, so silence is judged by requests alone.
    multiplexed: bool,
    watchdog: RefCell<Option<Waker>>,
}

/// A request on a connection; the connection is busy while it exists.
pub struct InFlight(Rc<Connection>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let count = self.0.in_flight.get() - 1;
        self.0.in_flight.set(count);
        if count == 0 {
            self.0.enter(Phase::Idle);
            if self.0.half_closed.get().is_some() {
                self.0.changed();
            }
        }
    }
}

impl Connection {
    /// A new one.
    #[must_use]
    pub fn new(multiplexed: bool) -> Rc<Self> {
        Rc::new(Self {
            phase: Cell::new(Phase::Idle),
            since: Cell::new(Instant::now()),
            in_flight: Cell::new(0),
            half_closed: Cell::new(None),
            blocked: Cell::new(None),
            body_wanted: Cell::new(None),
            body_open: Cell::new(false),
            tunnel: RefCell::new(None),
            multiplexed,
            watchdog: RefCell::new(None),
        })
    }

    /// Whether several requests share it (HTTP/2).
    #[must_use]
    pub fn is_multiplexed(&self) -> bool {
        self.multiplexed
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(Instant::now());
    }

    /// A request has come.
    #[must_use]
    pub fn begin(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        self.enter(Phase::Busy);
        InFlight(self.clone())
    }

    /// Whether a head has begun, and no request is in flight.
    #[must_use]
    pub fn has_begun_head(&self) -> bool {
        self.phase.get() == Phase::Head
    }

    /// The connection's task is to look again: a deadline may have come nearer.
    pub fn changed(&self) {
        if let Some(watchdog) = &*self.watchdog.borrow() {
            watchdog.wake_by_ref();
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let phase = match self.phase.get() {
            Phase::Idle => Some(self.since.get() + KEEP_ALIVE),
            Phase::Head => Some(self.since.get() + HEAD_TIME),
            Phase::Busy => None,
        };
        let after = |since: Option<Instant>, time: Duration| since.map(|since| since + time);
        let stalls = [
            phase,
            after(self.half_closed.get(), HALF_CLOSED_TIME),
            after(self.blocked.get(), STALL_TIME),
            after(self.body_wanted.get(), STALL_TIME),
        ];
        stalls.into_iter().flatten().min()
    }

    /// Ends when the connection has stayed somewhere for too long.
    #[must_use]
    pub fn watchdog(self: &Rc<Self>) -> Watchdog {
        let sleep = tokio::time::sleep_until((Instant::now() + HEAD_TIME).into());
        Watchdog { connection: self.clone(), sleep: Box::pin(sleep) }
    }
}

/// See [`Connection::watchdog`].
pub struct Watchdog {
    connection: Rc<Connection>,
    sleep: Pin<Box<Sleep>>,
}

impl Future for Watchdog {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let connection = self.connection.clone();
        let mut slot = connection.watchdog.borrow_mut();
        if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *slot = Some(cx.waker().clone());
        }
        loop {
            // Most deadlines pass by unseen: the timer is moved only where it would be late.
            let deadline = connection.deadline();
            if let Some(at) = deadline
                && at < self.sleep.deadline().into_std()
            {
                self.sleep.as_mut().reset(at.into());
            }
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            match deadline {
                Some(at) if at <= Instant::now() => return Poll::Ready(()),
                Some(at) => self.sleep.as_mut().reset(at.into()),
                None => self.sleep.as_mut().reset((Instant::now() + STALL_TIME).into()),
            }
        }
    }
}

/// What a client's connection is read from and written to.
pub struct Transport<T> {
    inner: T,
    connection: Rc<Connection>,
    ended: bool,
}

impl<T> Transport<T> {
    /// Around a connected socket, or TLS over one.
    pub fn new(inner: T, connection: Rc<Connection>) -> Self {
        Self { inner, connection, ended: false }
    }

    /// Whether the client has ended its direction.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The socket again.
    pub fn into_inner(self) -> T {
        self.inner
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Transport<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let connection = self.connection.clone();
        if !self.ended {
            let before = into.filled().len();
            std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, into))?;
            if into.filled().len() > before {
                if connection.phase.get() == Phase::Idle && !connection.multiplexed {
                    connection.enter(Phase::Head);
                }
                return Poll::Ready(Ok(()));
            }
            if into.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            self.ended = true;
        }
        // A client that has ended its direction behind a whole request may still wait for the answer, or be gone: which
        // of both can't be told, so it is given some time.
        if connection.phase.get() == Phase::Busy && !connection.body_open.get() && !connection.multiplexed {
            if connection.half_closed.get().is_none() {
                connection.half_closed.set(Some(Instant::now()));
            }
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T> Transport<T> {
    fn wrote<R>(&self, result: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        let blocked = &self.connection.blocked;
        match &result {
            Poll::Pending if blocked.get().is_none() => blocked.set(Some(Instant::now())),
            Poll::Pending => {}
            Poll::Ready(_) => blocked.set(None),
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Transport<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, pieces);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.wrote(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

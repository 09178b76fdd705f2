//! Connections of HTTP to guests: opened over a link, used again while they are fresh, never beyond the incarnation.

use super::body::RequestBody;
use crate::instance::Instance;
use crate::limits::{CONNECT_TIME, POOLED_MAX, POOLED_TIME, STARTING_TIME};
use crate::link::{Link, Opening, Stream};
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Between two tries of a connection that the starting program refuses: the first pause, doubled, and the longest.
const REFUSED_PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// What is left of a connection after an answer that switches protocols.
pub struct Leftover {
    /// The stream.
    pub stream: Stream,
    /// Bytes that came behind the answer.
    pub read: Bytes,
}

/// A connection that a request may be sent on.
pub struct Upstream {
    sender: SendRequest<RequestBody>,
    number: u32,
    port: u16,
    idle_since: Instant,
    leftover: oneshot::Receiver<Leftover>,
    /// The guest has not accepted it yet.
    opening: Option<Opening>,
}

/// A connection whose answer is under way.
pub struct Lease {
    upstream: Upstream,
    instance: Rc<Instance>,
}

impl Lease {
    /// The answer is through.
    pub fn give_back(self) {
        let Self { mut upstream, instance } = self;
        if !upstream.sender.is_closed() {
            upstream.idle_since = Instant::now();
            instance.pool.put(upstream);
        }
    }

    /// After an answer that switches protocols.
    ///
    /// # Errors
    /// Where the connection has ended instead.
    pub async fn leftover(self) -> io::Result<Leftover> {
        self.upstream.leftover.await.map_err(|_| io::ErrorKind::ConnectionAborted.into())
    }
}

/// Why a request got no answer.
pub enum SendError {
    /// Not a byte of it was sent: here it is.
    Unsent(Box<Request<RequestBody>>),
    /// It was sent, and the guest has not accepted the connection: no program has seen it, nor will, unless this is a
    /// time-out.
    Unopened(io::Error),
    /// Some of it may have reached the program.
    Broken(hyper::Error),
}

/// Idle connections to one instance, by port.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<HashMap<u16, Vec<Upstream>>>,
}

impl Pool {
    fn put(&self, upstream: Upstream) {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(upstream.port).or_default();
        if connections.len() < POOLED_MAX {
            connections.push(upstream);
        }
    }

    fn take(&self, port: u16) -> Option<Upstream> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&port)?;
        while let Some(upstream) = connections.pop() {
            if upstream.idle_since.elapsed() > POOLED_TIME {
                // The others are older.
                connections.clear();
                return None;
            }
            if !upstream.sender.is_closed() {
                return Some(upstream);
            }
        }
        None
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.idle.take();
    }

    /// Closes all, on the spot and not when their tasks come to it.
    pub fn clear_on(&self, link: &Link) {
        for upstream in self.idle.take().into_values().flatten() {
            link.close(upstream.number);
        }
    }
}

/// A connection to a port of an instance: an idle one, or a new one. With `ahead` the guest need not have accepted that
/// yet: a request can follow its opening at once.
///
/// # Errors
/// What the guest refused with.
pub async fn connect(instance: &Rc<Instance>, port: u16, ahead: bool) -> io::Result<Upstream> {
    while let Some(upstream) = instance.pool.take(port) {
        // Not so where the guest has answered before the request's body was through: that may take as long as its client
        // likes.
        if upstream.sender.is_ready() {
            return Ok(upstream);
        }
    }
    let (stream, opening) = if ahead {
        let (stream, opening) = instance.link.connect(port, None)?;
        (stream, Some(opening))
    } else {
        (open(instance, port, None).await?, None)
    };
    let number = stream.number();
    let (sender, connection) =
        http1::Builder::new().max_headers(256).handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let (left, leftover) = oneshot::channel();
    tokio::task::spawn_local(async move {
        let mut connection = connection;
        if poll_fn(|cx| connection.poll_without_shutdown(cx)).await.is_ok() {
            let parts = connection.into_parts();
            // Whoever waits for it is there only after a switch of protocols; otherwise it is closed.
            let _ = left.send(Leftover { stream: parts.io.into_inner(), read: parts.read_buf });
        }
    });
    Ok(Upstream { sender, number, port, idle_since: Instant::now(), leftover, opening })
}

/// A stream to a port of an instance. While its program may be starting, a refusal is no answer.
///
/// # Errors
/// What the guest refused with.
pub async fn open(instance: &Rc<Instance>, port: u16, peer: Option<std::net::SocketAddr>) -> io::Result<Stream> {
    let mut pause = REFUSED_PAUSE.0;
    loop {
        let (stream, opening) = instance.link.connect(port, peer)?;
        match opened(opening).await {
            Ok(()) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                if instance.attached_at().elapsed() > STARTING_TIME {
                    return Err(error);
                }
                drop(stream);
                tokio::time::sleep(pause).await;
                pause = REFUSED_PAUSE.1.min(2 * pause);
            }
            Err(error) => return Err(error),
        }
    }
}

async fn opened(opening: Opening) -> io::Result<()> {
    tokio::time::timeout(CONNECT_TIME, opening).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

impl Upstream {
    /// Whether the guest has not accepted it yet: then sending may end in [`SendError::Unopened`].
    #[must_use]
    pub fn is_ahead(&self) -> bool {
        self.opening.is_some()
    }

    /// Sends a request, and waits for the head of its answer.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(
        mut self,
        instance: &Rc<Instance>,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        // It is on its way from here on, not from the first poll.
        let answer = self.sender.try_send_request(request);
        if let Some(opening) = self.opening.take() {
            opened(opening).await.map_err(SendError::Unopened)?;
        }
        match answer.await {
            Ok(response) => Ok((response, Lease { upstream: self, instance: instance.clone() })),
            Err(mut error) => Err(match error.take_message() {
                Some(request) => SendError::Unsent(Box::new(request)),
                None => SendError::Broken(error.into_error()),
            }),
        }
    }
}

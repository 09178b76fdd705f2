//! Bodies on their way through.

use super::client::{Connection, InFlight};
use super::upstream::Lease;
use crate::instance::Busy;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

/// Of an answer to a client.
pub enum Body {
    /// The proxy's own.
    Own(Full<Bytes>),
    /// The guest's. The instance is busy until it is through, or given up.
    Guest {
        /// From the guest.
        body: Incoming,
        /// The connection to the guest that can be used again afterwards.
        lease: Option<Lease>,
        /// Holds the instance awake.
        busy: Option<Busy>,
        /// Tells the client's connection that it is not idle.
        in_flight: Option<InFlight>,
    },
}

impl Body {
    /// A text.
    #[must_use]
    pub fn text(text: impl Into<Bytes>) -> Self {
        Self::Own(Full::new(text.into()))
    }

    /// The guest's.
    #[must_use]
    pub fn guest(body: Incoming, lease: Lease, busy: Busy) -> Self {
        let mut new = Self::Guest { body, lease: Some(lease), busy: Some(busy), in_flight: None };
        new.end_if_over();
        new
    }

    /// The client's connection is not idle before all of it has gone.
    pub fn hold(&mut self, request: InFlight) {
        if let Self::Guest { in_flight, .. } = self {
            *in_flight = Some(request);
        }
    }

    /// Once all of it has come the connection is free, and the instance no longer busy with it.
    fn end_if_over(&mut self) {
        if let Self::Guest { body, lease, busy, .. } = self
            && body.is_end_stream()
        {
            if let Some(lease) = lease.take() {
                lease.give_back();
            }
            busy.take();
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let body = match &mut *self {
            Self::Own(body) => return Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Guest { body, .. } => body,
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        match &frame {
            Some(Ok(_)) => self.end_if_over(),
            None => {
                if let Self::Guest { lease, busy, .. } = &mut *self {
                    if let Some(lease) = lease.take() {
                        lease.give_back();
                    }
                    busy.take();
                }
            }
            Some(Err(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Guest { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Guest { body, .. } => body.size_hint(),
        }
    }
}

/// Of a request to a guest: the client's, and word to its connection of how it gets on.
pub struct RequestBody {
    body: Incoming,
    client: Rc<Connection>,
}

impl RequestBody {
    /// The body of a request that came over `client`.
    #[must_use]
    pub fn new(body: Incoming, client: Rc<Connection>) -> Self {
        client.body_open.set(!body.is_end_stream());
        Self { body, client }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Pending => {
                if self.client.body_wanted.get().is_none() {
                    self.client.body_wanted.set(Some(Instant::now()));
                    self.client.changed();
                }
            }
            Poll::Ready(_) => self.client.body_wanted.set(None),
        }
        if self.body.is_end_stream() || matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.client.body_open.set(false);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.client.body_wanted.set(None);
        self.client.body_open.set(false);
    }
}

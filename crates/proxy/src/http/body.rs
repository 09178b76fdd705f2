//! Bodies on their way through.

use super::client::{Connection, InFlight};
use super::upstream::Lease;
use crate::instance::Busy;
use crate::telemetry::Record;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

/// Of an answer to a client.
pub struct Body {
    source: Source,
    /// Tells the client's connection that it is not idle.
    in_flight: Option<InFlight>,
    record: Option<Record>,
}

enum Source {
    /// The proxy's own.
    Own(Full<Bytes>),
    /// The guest's. The instance is busy until it is through, or given up.
    Guest {
        body: Incoming,
        /// The connection to the guest that can be used again afterwards.
        lease: Option<Lease>,
        busy: Option<Busy>,
    },
}

impl Body {
    /// A text.
    #[must_use]
    pub fn text(text: impl Into<Bytes>) -> Self {
        Self { source: Source::Own(Full::new(text.into())), in_flight: None, record: None }
    }

    /// The guest's.
    #[must_use]
    pub fn guest(body: Incoming, lease: Lease, busy: Busy) -> Self {
        let source = Source::Guest { body, lease: Some(lease), busy: Some(busy) };
        let mut new = Self { source, in_flight: None, record: None };
        if new.is_end_stream() {
            new.end();
        }
        new
    }

    /// Until all of it has gone, the client's connection is not idle and the request's record is open.
    pub fn hold(&mut self, in_flight: InFlight, record: Record) {
        self.in_flight = Some(in_flight);
        self.record = Some(record);
    }

    /// Once all of it has come the connection is free, and the instance no longer busy with it.
    fn end(&mut self) {
        if let Source::Guest { lease, busy, .. } = &mut self.source {
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
        let frame = ready!(match &mut self.source {
            Source::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Source::Guest { body, .. } => Pin::new(body).poll_frame(cx),
        });
        if let Some(Ok(frame)) = &frame
            && let (Some(data), Some(record)) = (frame.data_ref(), &mut self.record)
        {
            record.bytes += data.len() as u64;
        }
        if let Some(Err(error)) = &frame
            && let Some(record) = &mut self.record
        {
            record.reason = Some(error.to_string());
        }
        if frame.is_none() || frame.as_ref().is_some_and(Result::is_ok) && self.is_end_stream() {
            self.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(body) => body.is_end_stream(),
            Source::Guest { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(body) => body.size_hint(),
            Source::Guest { body, .. } => body.size_hint(),
        }
    }
}

/// Of a request to a guest: the client's, and word to its connection of how it gets on.
pub struct RequestBody {
    body: Option<Incoming>,
    client: Rc<Connection>,
}

impl RequestBody {
    /// The body of a request that came over `client`.
    #[must_use]
    pub fn new(body: Incoming, client: Rc<Connection>) -> Self {
        if !client.is_multiplexed() {
            client.body_open.set(!body.is_end_stream());
        }
        Self { body: Some(body), client }
    }

    /// That of a request without one.
    #[must_use]
    pub fn none(client: Rc<Connection>) -> Self {
        Self { body: None, client }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(cx);
        match &frame {
            Poll::Pending => {
                if self.client.body_wanted.get().is_none() && !self.client.is_multiplexed() {
                    self.client.body_wanted.set(Some(Instant::now()));
                    self.client.changed();
                }
            }
            Poll::Ready(_) => self.client.body_wanted.set(None),
        }
        if self.is_end_stream() || matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.client.body_open.set(false);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.client.body_wanted.set(None);
        self.client.body_open.set(false);
    }
}

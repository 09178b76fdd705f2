//! Bytes both ways between a client and a guest, after an upgrade or on a port that is not HTTP.

use super::upstream::Leftover;
use crate::instance::Busy;
use crate::link::Stream;
use bytes::Bytes;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::server::TlsStream;

/// Read at a time. What can't be passed on at once is all that a silent connection costs.
const CHUNK_BYTES: usize = 16 << 10;

thread_local! {
    static CHUNK: RefCell<Box<[u8; CHUNK_BYTES]>> = RefCell::new(Box::new([0; CHUNK_BYTES]));
}

/// What a client's connection becomes once it has been told of the switch.
pub struct Tunnel {
    /// The guest's end.
    pub guest: oneshot::Receiver<io::Result<Leftover>>,
    /// Holds the instance awake.
    pub busy: Busy,
}

/// One direction.
struct Way {
    /// Read, and not taken by the other side.
    held: Bytes,
    ended: bool,
    shut: bool,
}

impl Way {
    fn new(held: Bytes) -> Self {
        Self { held, ended: false, shut: false }
    }

    /// Ready at the end of the direction.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> Poll<io::Result<()>> {
        loop {
            while !self.held.is_empty() {
                let len = ready!(Pin::new(&mut to).poll_write(cx, &self.held))?;
                if len == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                let _ = self.held.split_to(len);
            }
            if self.ended {
                if !self.shut {
                    ready!(Pin::new(&mut to).poll_shutdown(cx))?;
                    self.shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            ready!(Pin::new(&mut to).poll_flush(cx))?;
            let progress = CHUNK.with_borrow_mut(|chunk| -> Poll<io::Result<()>> {
                let mut buffer = ReadBuf::new(&mut chunk[..]);
                ready!(Pin::new(&mut from).poll_read(cx, &mut buffer))?;
                let mut rest = buffer.filled();
                self.ended = rest.is_empty();
                while !rest.is_empty() {
                    match Pin::new(&mut to).poll_write(cx, rest) {
                        Poll::Ready(Ok(len)) if len > 0 => rest = &rest[len..],
                        Poll::Ready(Ok(_)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => {
                            self.held = Bytes::copy_from_slice(rest);
                            break;
                        }
                    }
                }
                Poll::Ready(Ok(()))
            });
            ready!(progress)?;
        }
    }
}

/// What a client's connection is read from and written to.
pub trait Reset {
    /// Dropping it tells the client that it was broken off, where an end would look like one in order.
    fn reset(&self);
}

impl Reset for TcpStream {
    fn reset(&self) {
        // If it can't be set, the client sees an end in place of a reset.
        let _ = self.set_zero_linger();
    }
}

impl<T> Reset for TlsStream<T> {
    /// TLS says itself when it ends in order.
    fn reset(&self) {}
}

/// Passes bytes both ways until both directions have ended, the guest has closed the connection, or one side is broken:
/// then the other is reset. `early`: what was read already, of the
/// client and of the guest.
///
/// # Errors
/// What broke it.
pub async fn join<T>(client: &mut T, guest: &mut Stream, early: (Bytes, Bytes)) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let (mut there, mut back) = (Way::new(early.0), Way::new(early.1));
    let result = poll_fn(|cx| {
        let back = back.poll(cx, &mut *guest, &mut *client)?;
        if guest.is_closed() {
            // What the client says now is for nobody, and how long it stays is no matter of the guest's.
            return back.map(Ok);
        }
        let there = there.poll(cx, &mut *client, &mut *guest)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await;
    if result.is_err() {
        guest.reset();
        client.reset();
    }
    result
}

//! Connections to ports other than that of plain HTTP: TLS by server name, ended here or passed through, and what lies
//! within.

use crate::control::messages::Handler;
use crate::host::Host;
use crate::http::server::{linger, serve_http1, serve_http2};
use crate::http::tunnel::{self, Reset};
use crate::http::upstream;
use crate::instance::Kind;
use crate::limits::HEAD_TIME;
use crate::proxy::{Admitted, HTTPS_PORT, Proxy};
use crate::say;
use bytes::Bytes;
use http::StatusCode;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::Acceptor;

/// What a ClientHello may take; those of today have two KiB at most.
const HELLO_MAX_BYTES: usize = 32 << 10;
/// The first byte of every handshake (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;
/// Alerts, fatal: unrecognized_name, internal_error.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 1, 0, 2, 2, 112];
const INTERNAL_ERROR: [u8; 7] = [21, 3, 1, 0, 2, 2, 80];

/// A socket of which some bytes were read already.
pub struct Prefixed<T> {
    prefix: Bytes,
    inner: T,
}

impl<T: Reset> Reset for Prefixed<T> {
    fn reset(&self) {
        self.inner.reset();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefixed<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, into);
        }
        let len = self.prefix.len().min(into.remaining());
        into.put_slice(&self.prefix.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Prefixed<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// How a connection begins.
#[derive(Debug, PartialEq, Eq)]
enum Opening {
    /// TLS, with a name or without.
    Tls(Option<Host>),
    /// Anything else.
    Plain,
}

/// Reads until it is clear what a connection is.
///
/// # Errors
/// An end before that, or no ClientHello behind a handshake's first byte.
async fn opening(socket: &mut TcpStream, read: &mut Vec<u8>) -> io::Result<Opening> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    loop {
        if let Some(&first) = read.first() {
            if first != HANDSHAKE {
                return Ok(Opening::Plain);
            }
            let mut acceptor = Acceptor::default();
            let mut rest = &read[..];
            while !rest.is_empty() {
                acceptor.read_tls(&mut rest)?;
            }
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(Host::parse);
                    let name = name.transpose().map_err(|_| invalid("a server name that is none"))?;
                    return Ok(Opening::Tls(name));
                }
                Ok(None) => {}
                Err((error, _)) => return Err(io::Error::other(error)),
            }
            if read.len() >= HELLO_MAX_BYTES {
                return Err(invalid("a ClientHello that is too long"));
            }
        }
        if socket.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Serves a client of a service port.
pub async fn serve(proxy: Rc<Proxy>, mut socket: TcpStream, peer: SocketAddr, port: u16) {
    if proxy.is_alone(port) {
        return serve_plain(proxy, socket, peer, port).await;
    }
    let mut read = Vec::new();
    let opening = tokio::time::timeout(HEAD_TIME, opening(&mut socket, &mut read)).await;
    let prefixed = Prefixed { prefix: read.into(), inner: socket };
    match opening {
        Ok(Ok(Opening::Plain)) => serve_http1(proxy, prefixed, peer, port, None).await,
        Ok(Ok(Opening::Tls(name))) if port == HTTPS_PORT => serve_https(proxy, prefixed, peer, port, name).await,
        Ok(Ok(Opening::Tls(Some(name)))) => serve_named(proxy, prefixed, peer, port, name).await,
        Ok(Ok(Opening::Tls(None))) => refuse(prefixed, UNRECOGNIZED_NAME).await,
        // Not a word that could be answered.
        Ok(Err(_)) | Err(_) => {}
    }
}

async fn refuse(mut socket: Prefixed<TcpStream>, alert: [u8; 7]) {
    // Whoever is refused may have gone already.
    let _ = socket.write_all(&alert).await;
    let _ = socket.shutdown().await;
}

async fn serve_https(proxy: Rc<Proxy>, socket: Prefixed<TcpStream>, peer: SocketAddr, port: u16, name: Option<Host>) {
    let acceptor = TlsAcceptor::from(proxy.tls_http.clone());
    let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIME, acceptor.accept(socket)).await else { return };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        serve_http2(proxy, stream, peer, port, name).await;
    } else {
        serve_http1(proxy, stream, peer, port, Some(name)).await;
    }
}

/// An instance for a connection; where there is none the log says why.
async fn admit(proxy: &Rc<Proxy>, name: &Host, port: u16, kind: Kind) -> Result<Admitted, StatusCode> {
    proxy.admit(name, port, kind).await.map_err(|refused| {
        // Of a name that is not served the reason repeats it, and the port.
        let reason = refused.reason.as_deref().filter(|_| refused.status != StatusCode::NOT_FOUND);
        say!("{name} on port {port}: {}", reason.unwrap_or(refused.text));
        refused.status
    })
}

/// A port that one group has alone: nothing is read before there is an instance that it is for, since it may be the
/// server who speaks first.
async fn serve_plain(proxy: Rc<Proxy>, socket: TcpStream, peer: SocketAddr, port: u16) {
    // Closed where nobody takes it: there is no word that every protocol has for that.
    let Ok(admitted) = admit(&proxy, &Host::of_port(port), port, Kind::Connection).await else { return };
    pass(admitted, socket, peer).await;
}

/// A service whose instance is known by the name alone.
async fn serve_named(proxy: Rc<Proxy>, socket: Prefixed<TcpStream>, peer: SocketAddr, port: u16, name: Host) {
    // Not counted yet: of HTTP its requests are.
    let mut admitted = match admit(&proxy, &name, port, Kind::Waiter).await {
        Ok(admitted) => admitted,
        Err(status) => {
            let found = status != StatusCode::NOT_FOUND;
            return refuse(socket, if found { INTERNAL_ERROR } else { UNRECOGNIZED_NAME }).await;
        }
    };
    let has = |handler| admitted.handlers.contains(&handler);
    match (has(Handler::Tls), has(Handler::Http)) {
        (true, true) => {
            drop(admitted);
            serve_https(proxy, socket, peer, port, Some(name)).await;
        }
        (true, false) => {
            admitted.busy = admitted.busy.instance().clone().busy(Kind::Connection);
            let acceptor = TlsAcceptor::from(proxy.tls.clone());
            let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIME, acceptor.accept(socket)).await else { return };
            pass(admitted, stream, peer).await;
        }
        (false, _) => {
            admitted.busy = admitted.busy.instance().clone().busy(Kind::Connection);
            pass(admitted, socket, peer).await;
        }
    }
}

/// Bytes both ways.
async fn pass<T: AsyncRead + AsyncWrite + Reset + Unpin>(admitted: Admitted, mut client: T, peer: SocketAddr) {
    let instance = admitted.busy.instance();
    let peer = torpor_streams::sockets::guests_name(peer);
    match upstream::open(instance, admitted.destination, Some(peer)).await {
        Ok(mut guest) => {
            // Whoever broke it knows; the other side is closed with it.
            let joined = tunnel::join(&mut client, &mut guest, (Bytes::new(), Bytes::new())).await;
            drop((guest, admitted));
            if joined.is_ok() {
                linger(&mut client).await;
            }
        }
        Err(error) => say!("instance {}: port {}: {error}", instance.id, admitted.destination),
    }
}

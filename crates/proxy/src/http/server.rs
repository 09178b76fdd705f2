//! Clients' connections of HTTP, from accept(2) to close(2).

use super::client::{Connection, Transport};
use super::forward::{Door, answer};
use super::headers::Entrance;
use super::tunnel::{self, Reset};
use crate::doors;
use crate::host::Host;
use crate::limits::{
    CLIENTS_MAX, HEAD_MAX_BYTES, HEADERS_MAX, LINGER_MAX_BYTES, LINGER_TIME, RESETS_MAX, STREAMS_MAX, WINDOW_BYTES,
};
use crate::proxy::{HTTP_PORT, Proxy};
use crate::say;
use bytes::Bytes;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// After accept(2) has failed (no descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const REQUEST_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Counts clients.
#[derive(Default)]
pub struct Clients(Cell<usize>);

impl Clients {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.get()
    }
}

struct Counted(Rc<Proxy>);

impl Drop for Counted {
    fn drop(&mut self) {
        let clients = &self.0.clients.0;
        clients.set(clients.get() - 1);
    }
}

/// A socket that clients are accepted from, until it is closed.
pub struct Listening(RefCell<Option<TcpListener>>);

impl Listening {
    /// Clients come to `listener`.
    pub fn new(listener: TcpListener) -> Rc<Self> {
        Rc::new(Self(RefCell::new(Some(listener))))
    }

    /// Nobody is accepted any more, and the address is free at once.
    pub fn close(&self) {
        drop(self.0.take());
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|context| match &*self.0.borrow() {
            Some(listener) => listener.poll_accept(context),
            None => Poll::Pending,
        })
        .await
    }
}

/// Accepts clients of one service port for ever.
pub async fn accept(proxy: Rc<Proxy>, listening: Rc<Listening>, port: u16) {
    loop {
        match listening.accept().await {
            Ok((socket, peer)) => {
                if proxy.clients.count() >= CLIENTS_MAX {
                    continue;
                }
                proxy.clients.0.set(proxy.clients.count() + 1);
                let counted = Counted(proxy.clone());
                tokio::task::spawn_local(async move {
                    // It fails only where the client has gone.
                    let _ = socket.set_nodelay(true);
                    if port == HTTP_PORT {
                        serve_http1(counted.0.clone(), socket, peer, port, None).await;
                    } else {
                        Box::pin(doors::serve(counted.0.clone(), socket, peer, port)).await;
                    }
                    drop(counted);
                });
            }
            // One that went away again is no reason to pause.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                say!("accepting connections: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn door(proxy: Rc<Proxy>, peer: SocketAddr, port: u16, tls: Option<Option<Host>>) -> Door {
    let entrance = Entrance { peer: peer.ip(), public_port: proxy.public_port(port), secure: tls.is_some() };
    Door { proxy, port, entrance, name: tls.flatten() }
}

/// Spawns what hyper has running beside a connection of HTTP/2.
#[derive(Clone, Copy)]
struct Local;

impl<F: Future<Output = ()> + 'static> Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

/// Serves one client of HTTP/2, over TLS that was begun with `name`.
pub async fn serve_http2<T>(proxy: Rc<Proxy>, socket: T, peer: SocketAddr, port: u16, name: Option<Host>)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let connection = Connection::new(true);
    let door = door(proxy, peer, port, Some(name));
    let client = connection.clone();
    let service = service_fn(move |request| answer(door.clone(), client.clone(), request));
    let http = http2::Builder::new(Local)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_MAX_BYTES as u32)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(4 * WINDOW_BYTES)
        .max_send_buf_size(WINDOW_BYTES as usize)
        .serve_connection(TokioIo::new(Transport::new(socket, connection.clone())), service);
    tokio::select! {
        // Errors are the client's: it was told, or has gone.
        _ = http => {}
        () = connection.watchdog() => {}
    }
}

/// Serves one client of HTTP/1. `tls`: over TLS, which was begun with this name.
pub async fn serve_http1<T>(proxy: Rc<Proxy>, socket: T, peer: SocketAddr, port: u16, tls: Option<Option<Host>>)
where
    T: AsyncRead + AsyncWrite + Reset + Unpin + 'static,
{
    let connection = Connection::new(false);
    let door = door(proxy, peer, port, tls);
    let client = connection.clone();
    let service = service_fn(move |request| Box::pin(answer(door.clone(), client.clone(), request)));
    let mut http = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(HEAD_MAX_BYTES)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(Transport::new(socket, connection.clone())), service);
    let timed_out = tokio::select! {
        // Errors are the client's: it was answered, or has gone.
        _ = poll_fn(|cx| http.poll_without_shutdown(cx)) => false,
        () = connection.watchdog() => true,
    };
    let parts = http.into_parts();
    drop(parts.service);
    let transport = parts.io.into_inner();
    // In a box: what comes after HTTP needs more room than an idle connection is to take.
    Box::pin(finish(connection, transport, parts.read_buf, timed_out)).await;
}

/// What a connection is after HTTP: a tunnel, or closed in order.
async fn finish<T: AsyncRead + AsyncWrite + Reset + Unpin>(
    connection: Rc<Connection>,
    mut transport: Transport<T>,
    read: Bytes,
    timed_out: bool,
) {
    if let Some(tunnel) = connection.tunnel.take() {
        if let Ok(Ok(mut guest)) = tunnel.guest.await {
            let mut socket = transport.into_inner();
            // Whoever broke it knows; the other side is closed with it.
            let joined = tunnel::join(&mut socket, &mut guest.stream, (read, guest.read)).await;
            drop((guest.stream, tunnel.busy));
            if joined.is_ok() {
                linger(&mut socket).await;
            }
        }
        return;
    }
    if timed_out && (!connection.has_begun_head() || transport.write_all(REQUEST_TIMEOUT).await.is_err()) {
        return;
    }
    if !transport.has_ended() {
        linger(&mut transport).await;
    }
}

/// Closes in order: bytes of the client's that nobody reads would turn the close into a reset, and the last answer may be
/// lost with that.
pub async fn linger<T: AsyncRead + AsyncWrite + Unpin>(transport: &mut T) {
    if transport.shutdown().await.is_err() {
        return;
    }
    let mut buffer = [0; 2048];
    let read = async {
        let mut total = 0;
        while total < LINGER_MAX_BYTES {
            match transport.read(&mut buffer).await {
                Ok(len) if len > 0 => total += len,
                _ => break,
            }
        }
    };
    // Too slow is as good as gone.
    let _ = tokio::time::timeout(LINGER_TIME, read).await;
}

/// Listens on an address.
///
/// # Errors
/// What bind(2) and listen(2) give.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { tokio::net::TcpSocket::new_v6() } else { tokio::net::TcpSocket::new_v4() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

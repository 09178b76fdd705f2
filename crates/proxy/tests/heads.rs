//! Heads of requests put together from pieces that clients send and should not: whatever is let through means one thing.

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use torpor_proxy::host::Host;
use torpor_proxy::http::headers::{Entrance, host_of, prepare_request, wants_upgrade};

const PIECES: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n",
    b"POST http://b.example/ HTTP/1.1\r\n",
    b"GET //a.example/x HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"GET / HTTP/1.0\r\n",
    b"Host: a.example\r\n",
    b"Host: B.example:80\r\n",
    b"Host:\r\n",
    b"host: a.example, b.example\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content-Length: 05\r\n",
    b"content-length:\t7\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: Chunked , identity\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Connection: Transfer-Encoding, Host, close\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    b"X-Forwarded-For: 6.6.6.6\r\n",
    b"X: a\r\n b\r\n",
    b"X: a\rb\r\n",
    b"X: a\nHost: c.example\n",
    b" Host: c.example\r\n",
    b"Expect: 100-continue\r\n",
    b"\r\n",
    b"\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"hello",
];

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        12 => proptest::sample::select(PIECES).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..6),
    ];
    proptest::collection::vec(piece, 1..14).prop_map(|pieces| pieces.concat())
}

/// Whose a request is, and what the guest would be sent; instead of the body its length as far as it is known.
type Sent = (Host, Request<u64>);

/// What guests would be sent for the requests in `bytes`.
fn let_through(bytes: Vec<u8>) -> Vec<Sent> {
    let found: Rc<RefCell<Vec<Sent>>> = Rc::default();
    let seen = found.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Ok(host) = host_of(&request) {
            let upgrade = wants_upgrade(request.headers());
            let entrance = Entrance { peer: [127, 0, 0, 1].into(), public_port: 80, secure: false };
            prepare_request(&mut request, &host, entrance, "1", upgrade);
            seen.borrow_mut().push((host, request.map(|body| body.size_hint().lower())));
        }
        async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::new()))) }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        client.write_all(&bytes).await.expect("room");
        client.shutdown().await.expect("open");
        // Errors are what most of these end in.
        let _ = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(server), service).await;
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).await.expect("memory");
    });
    found.take()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn what_is_let_through_means_one_thing(bytes in bytes()) {
        for (host, request) in let_through(bytes) {
            let headers = request.headers();
            prop_assert_eq!(headers.get_all(header::HOST).iter().count(), 1);
            let told = headers[header::HOST].to_str().expect("letters");
            prop_assert_eq!(Host::parse(told), Ok(host));
            prop_assert!(request.uri().authority().is_none(), "origin form");
            prop_assert!(!headers.contains_key(header::TRANSFER_ENCODING));
            let lengths: Vec<_> = headers.get_all(header::CONTENT_LENGTH).iter().collect();
            prop_assert!(lengths.len() <= 1);
            if let Some(length) = lengths.first() {
                let length: u64 = length.to_str().expect("digits").parse().expect("a number");
                prop_assert_eq!(length, *request.body());
            }
            prop_assert_eq!(headers.get("x-forwarded-for").expect("told"), "127.0.0.1");
            if let Some(connection) = headers.get(header::CONNECTION) {
                prop_assert_eq!(connection, "upgrade");
                prop_assert!(headers.contains_key(header::UPGRADE));
            }
            prop_assert!(!headers.contains_key(header::EXPECT));
        }
    }

    /// Names are the same however often they are parsed, and hold nothing that a log or a header could mistake.
    #[test]
    fn hosts_have_one_form(text in "\\PC{0,40}|[a-zA-Z0-9.:_\\-\\[\\]]{0,300}") {
        if let Ok(host) = Host::parse(&text) {
            prop_assert_eq!(Host::parse(host.as_str()), Ok(host.clone()));
            prop_assert!(host.as_str().bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
            prop_assert!(host.as_str().len() <= 253);
        }
    }
}

//! A VM process that says whatever it likes: the broker of sockets refuses it or goes on, keeps to the rules itself
//! ([`Outbox::push`] checks that), and holds a bounded number of things.

use proptest::prelude::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use torpor_abi::endpoint::{Endpoint, Transport, network};
use torpor_abi::frame::{Header, MAX_WINDOW_BYTES, kind};
use torpor_streams::link::split_frame;
use torpor_streams::outbox::Outbox;
use torpor_streams::policy::Policy;
use torpor_streams::sockets::{Publish, Sockets};

fn local_only() -> Policy {
    Policy { allow: vec!["127.0.0.1/32".parse().expect("a network")], ..Policy::default() }
}

fn endpoint(port: u16) -> [u8; 24] {
    Endpoint::Inet(SocketAddr::new(network::GATEWAY_V4.into(), port)).encode()
}

/// Both ends: what the guest says goes in, what the host says comes out.
struct Broker {
    sockets: Sockets,
    outbox: Outbox,
}

impl Broker {
    fn new(publish: &[Publish]) -> (Self, Vec<SocketAddr>) {
        let bound: Vec<_> = publish.iter().flat_map(|publish| publish.bind().expect("a free port")).collect();
        let addresses = bound.iter().map(|bound| bound.local).collect();
        let sockets = Sockets::new(local_only(), bound, None).expect("epoll");
        (Self { sockets, outbox: Outbox::new(false) }, addresses)
    }

    /// Returns whether the frame was taken.
    fn say(&mut self, header: Header, payload: &[u8]) -> bool {
        self.outbox.ledger.from_guest(&header).is_ok() && self.sockets.take(&header, payload).is_ok()
    }

    fn frame(&mut self, number: u32, what: u16, argument: u32, payload: &[u8]) {
        let header = Header { stream: number, kind: what, len: payload.len() as u32, argument };
        assert!(self.say(header, payload), "{header:?}");
    }

    /// What the host has to say now.
    fn hear(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.sockets.look();
        self.sockets.fill(&mut self.outbox);
        let bytes = std::mem::take(&mut self.outbox.message).into_bytes();
        let (mut rest, mut frames) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let (header, payload, tail) = split_frame(rest).expect("whole frames");
            frames.push((header, payload.to_vec()));
            rest = tail;
        }
        frames
    }

    fn hear_until(&mut self, done: impl Fn(&[(Header, Vec<u8>)]) -> bool) -> Vec<(Header, Vec<u8>)> {
        let (began, mut all) = (Instant::now(), Vec::new());
        while !done(&all) {
            assert!(began.elapsed() < Duration::from_secs(60), "still {all:?}");
            all.extend(self.hear());
            std::thread::sleep(Duration::from_millis(1));
        }
        all
    }
}

fn says(frames: &[(Header, Vec<u8>)], number: u32, what: u16) -> Option<Header> {
    frames.iter().map(|(header, _)| *header).find(|header| (header.stream, header.kind) == (number, what))
}

#[test]
fn a_connection_of_the_guest_carries_bytes_both_ways_and_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (mut broker, _) = Broker::new(&[]);
    let ends = [endpoint(listener.local_addr().expect("bound").port()), endpoint(1)].concat();
    broker.frame(17, kind::OPEN, Transport::Tcp as u32, &ends);
    let (mut peer, _) = listener.accept().expect("a connection");
    broker.hear_until(|frames| says(frames, 17, kind::OPENED).is_some());
    broker.frame(17, kind::DATA, 0, b"out");
    broker.frame(17, kind::SHUTDOWN, 0, &[]);
    broker.hear();
    let mut got = String::new();
    peer.read_to_string(&mut got).expect("the end comes");
    assert_eq!(got, "out");
    peer.write_all(b"back").expect("room");
    drop(peer);
    let frames = broker.hear_until(|frames| says(frames, 17, kind::SHUTDOWN).is_some());
    assert!(frames.iter().any(|(header, payload)| header.kind == kind::DATA && payload == b"back"));
    broker.frame(17, kind::CLOSE, 0, &[]);
    broker.hear_until(|frames| says(frames, 17, kind::CLOSE).is_some());
    assert_eq!(broker.outbox.ledger.connections().count(), 0);
}

#[test]
fn what_the_policy_refuses_is_closed_with_eacces() {
    let (mut broker, _) = Broker::new(&[]);
    for (number, ip) in [(17, "127.0.0.2"), (19, "169.254.169.254"), (21, "0.0.0.0"), (23, "::ffff:127.0.0.3")] {
        let to = Endpoint::Inet(SocketAddr::new(ip.parse().expect("an address"), 80)).encode();
        broker.frame(number, kind::OPEN, Transport::Tcp as u32, &[to, endpoint(1)].concat());
        let frames = broker.hear_until(|frames| says(frames, number, kind::CLOSE).is_some());
        assert_eq!(says(&frames, number, kind::CLOSE).map(|header| header.argument), Some(13), "{ip}");
    }
}

#[test]
fn a_stalled_peer_stalls_the_guest_within_a_window() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (mut broker, _) = Broker::new(&[]);
    let ends = [endpoint(listener.local_addr().expect("bound").port()), endpoint(1)].concat();
    broker.frame(17, kind::OPEN, Transport::Tcp as u32, &ends);
    let _peer = listener.accept().expect("a connection");
    broker.hear_until(|frames| says(frames, 17, kind::OPENED).is_some());
    let block = vec![1; 4096];
    let (mut sent, mut quiet) = (0_u64, 0);
    // The host's kernel takes some megabytes; then no credit comes any more.
    while quiet < 50 {
        let header = Header { stream: 17, kind: kind::DATA, len: 4096, argument: 0 };
        if broker.say(header, &block) {
            sent += 4096;
            quiet = 0;
        } else {
            quiet += 1;
            std::thread::sleep(Duration::from_millis(2));
        }
        broker.hear();
        assert!(sent < 256 << 20, "no back pressure");
    }
    assert!(sent > u64::from(MAX_WINDOW_BYTES));
}

#[test]
fn nobody_listening_in_the_guest_is_a_reset_for_the_client() {
    let (mut broker, addresses) = Broker::new(&["127.0.0.1:0:80".parse().expect("valid")]);
    let mut client = TcpStream::connect(addresses[0]).expect("the host accepts");
    let frames = broker.hear_until(|frames| frames.iter().any(|(header, _)| header.kind == kind::OPEN));
    let (open, payload) = &frames[0];
    let Ok(Endpoint::Inet(to)) = Endpoint::first_of(payload) else { panic!("{payload:?}") };
    assert_eq!((to.port(), open.argument), (80, Transport::Tcp as u32));
    broker.frame(open.stream, kind::CLOSE, 111, &[]);
    broker.hear();
    let error = client.read(&mut [0; 8]).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

fn any_frame() -> impl Strategy<Value = (Header, Vec<u8>)> {
    let open = (0_u16..70, prop_oneof![Just(1_u32), Just(2), Just(3), any::<u32>()])
        .prop_map(|(port, transport)| (kind::OPEN, transport, [endpoint(port), endpoint(port)].concat()));
    let other = (0_u16..13, prop_oneof![0_u32..3, any::<u32>()], proptest::collection::vec(any::<u8>(), 0..80));
    let datagram = (0_u16..70, proptest::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(port, bytes)| (kind::DATA, 0, [&endpoint(port)[..], &bytes].concat()));
    (prop_oneof![15_u32..22, any::<u32>()], prop_oneof![open, other, datagram]).prop_map(
        |(stream, (kind, argument, payload))| (Header { stream, kind, len: payload.len() as u32, argument }, payload),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn anything_said_is_refused_or_harmless(frames in proptest::collection::vec(any_frame(), 0..80)) {
        let (mut broker, _) = Broker::new(&["127.0.0.1:0:80".parse().expect("valid"), "127.0.0.1:0:53/udp".parse().expect("valid")]);
        for (header, payload) in frames {
            let _ = broker.say(header, &payload);
            let _ = broker.hear();
        }
        prop_assert!(broker.outbox.ledger.connections().count() <= 100);
        broker.sockets.finish();
        let _ = broker.hear();
    }
}

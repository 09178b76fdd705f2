//! A VM process that says whatever it likes to the proxy: its link is ended with the rule that it broke, and no other.

use proptest::prelude::*;
use rustix::net::{SendFlags, send};
use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::task::{LocalSet, spawn_local, yield_now};
use torpor_abi::frame::{Header, kind, stream};
use torpor_proxy::link::{Link, Owner};
use torpor_streams::ledger::Violation;
use torpor_streams::link::{MESSAGE_MAX_BYTES, Message, pair, receive, split_frame};
use torpor_streams::policy::{Policy, Scope};
use uuid::Uuid;

/// What the owner of a link is told.
#[derive(Default)]
struct Heard {
    ends: RefCell<Vec<Option<Violation>>>,
}

impl Owner for Heard {
    fn output(&self, _: &[u8]) {}
    fn has_word(&self) {}
    fn let_go(&self) {}
    fn ended(&self, violation: Option<Violation>) {
        self.ends.borrow_mut().push(violation);
    }
}

/// A link that is served, its owner, and the VM process's end.
fn link() -> (Rc<Link>, Rc<Heard>, OwnedFd) {
    let (ours, theirs) = pair().expect("socket pair");
    let nowhere = Policy { scope: Scope::Nothing, ..Policy::default() };
    let (link, heard) = (Link::new(Uuid::from_u128(1), 1, 0, ours, nowhere).expect("a link"), Rc::<Heard>::default());
    let owner: Rc<dyn Owner> = heard.clone();
    let owner: Weak<dyn Owner> = Rc::downgrade(&owner);
    link.set_owner(owner);
    spawn_local(link.clone().pump());
    (link, heard, theirs)
}

/// The frames that wait at the VM process's end.
fn hear(theirs: &OwnedFd) -> Vec<Header> {
    let (mut buffer, mut headers) = (vec![0; MESSAGE_MAX_BYTES], Vec::new());
    while let Ok(len @ 1..) = receive(theirs, &mut buffer) {
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            let (header, _, tail) = split_frame(rest).expect("the proxy keeps to the format");
            headers.push(header);
            rest = tail;
        }
    }
    headers
}

fn frame() -> impl Strategy<Value = Message> {
    let stream = prop_oneof![0_u32..6, 15_u32..24, any::<u32>()];
    let kind = prop_oneof![0_u16..14, 0x100_u16..0x107];
    let argument = prop_oneof![0_u32..4, any::<u32>()];
    (stream, kind, argument, proptest::collection::vec(any::<u8>(), 0..60)).prop_map(
        |(stream, kind, argument, payload)| {
            let mut message = Message::default();
            message.push(&Header { stream, kind, len: payload.len() as u32, argument }, &payload);
            message
        },
    )
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let frames = proptest::collection::vec(frame(), 1..4)
        .prop_map(|frames| frames.into_iter().flat_map(Message::into_bytes).collect());
    prop_oneof![8 => frames, 1 => proptest::collection::vec(any::<u8>(), 1..100)]
}

async fn say_it_all(messages: Vec<Vec<u8>>) {
    let (first, heard, theirs) = link();
    let (second, other_heard, other_theirs) = link();
    let streams: Vec<_> = (0..3).map(|_| first.connect(80, None).expect("a stream")).collect();
    // At last something that can't be taken for anything else.
    for message in messages.into_iter().chain([vec![0xff; 24]]) {
        // Where the link has ended by now, nobody is left to read it.
        let _ = send(&theirs, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        yield_now().await;
        hear(&theirs);
    }
    while heard.ends.borrow().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    first.reset();
    drop(streams);
    assert!(matches!(heard.ends.borrow()[..], [Some(_)]), "{:?}", heard.ends.borrow());
    let _stream = second.connect(80, None).expect("a stream");
    assert!(hear(&other_theirs).iter().any(|header| header.kind == kind::OPEN), "the other link is no more");
    assert!(other_heard.ends.borrow().is_empty());
    second.reset();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_hostile_vm_process_ends_its_own_link(messages in proptest::collection::vec(message(), 0..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let limited = async { tokio::time::timeout(Duration::from_secs(60), say_it_all(messages)).await };
        LocalSet::new().block_on(&runtime, limited).expect("the link ends");
    }
}

#[test]
fn the_rule_that_was_broken_is_told() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let (_link, heard, theirs) = link();
        let mut message = Message::default();
        message.push(&Header { stream: stream::STDOUT, kind: kind::SHUTDOWN, len: 0, argument: 0 }, &[]);
        message.push(&Header { stream: stream::STDOUT, kind: kind::DATA, len: 1, argument: 0 }, b"x");
        message.send(&theirs).expect("room");
        while heard.ends.borrow().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let ends = heard.ends.take();
        assert!(matches!(ends[..], [Some(Violation::AfterShutdown(stream::STDOUT))]), "{ends:?}");
    });
}

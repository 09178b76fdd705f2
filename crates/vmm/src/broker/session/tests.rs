use super::*;
use crate::cli::{self, Command};
use proptest::prelude::*;
use torpor_streams::link;
use torpor_streams::policy::{Policy, Scope};

#[test]
fn wait_statuses_become_exit_statuses() {
    assert_eq!(exit_status(0), 0);
    assert_eq!(exit_status(3 << 8), 3);
    assert_eq!(exit_status(9), 137);
    assert_eq!(exit_status(0x80 | 11), 139);
}

/// A session without outputs and a child, and the VM process's end of its link.
fn session() -> (Session, OwnedFd) {
    let arguments = ["run", "--image", "none", "--", "true"].map(Into::into);
    let Ok(Command::Run(options)) = cli::parse(arguments, |_| None) else { panic!("not a run") };
    let (ours, theirs) = link::pair().expect("socket pair");
    let nowhere = Policy { scope: Scope::Nothing, ..Policy::default() };
    let sockets = Sockets::new(nowhere, Vec::new(), None).expect("epoll");
    let signals = Signals::block().expect("signalfd");
    let mut session = Session::new(ours, rustix::process::getpid(), signals, &options, None, None, sockets);
    session.child = None;
    session.trace = None;
    session.outputs.iter_mut().for_each(|output| output.sink = None);
    (session, theirs)
}

fn frame() -> impl Strategy<Value = Message> {
    let stream = prop_oneof![0_u32..6, 15_u32..20, any::<u32>()];
    // All kinds and reports but DEBUG, which would be printed here.
    let kind = prop_oneof![0_u16..14, 0x100_u16..0x103, 0x104_u16..0x107];
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
    prop_oneof![4 => frames, 1 => proptest::collection::vec(any::<u8>(), 1..100)]
}

proptest! {
    /// Whatever a VM process says is taken, or ends the run with a reason that is fit for a terminal.
    #[test]
    fn a_hostile_vm_process_ends_its_own_run(messages in proptest::collection::vec(message(), 0..30)) {
        let (mut session, theirs) = session();
        let mut buffer = vec![0; MESSAGE_MAX_BYTES];
        // At last something that can't be taken for anything else.
        for message in messages.iter().map(Vec::as_slice).chain([&[0xff; 24][..]]) {
            rustix::net::send(&theirs, message, rustix::net::SendFlags::DONTWAIT).expect("room");
            session.receive(&mut buffer);
            session.send();
            while let Ok(1..) = link::receive(&theirs, &mut buffer) {}
            if session.outcome.is_some() {
                break;
            }
        }
        prop_assert!(session.outcome.is_some());
        if let Err(failure) = session.run() {
            let is_plain = |c: char| !c.is_control() || c == '\n' || c == '\t';
            prop_assert!(failure.status != 0 && failure.message.chars().all(is_plain), "{failure:?}");
        }
    }
}

#[test]
fn a_broken_rule_is_the_reason() {
    let mut buffer = vec![0; MESSAGE_MAX_BYTES];
    let data = Header { stream: stream::STDOUT, kind: kind::DATA, len: 8, argument: 0 };
    let cases: [(&str, Header, usize); 5] = [
        ("where 24 were published", Header { len: 9, ..data }, 24),
        ("frame header breaks the format", Header { len: u32::MAX, ..data }, 24),
        ("stream 9", Header { stream: 9, ..data }, 24),
        ("kind 263", Header { stream: stream::CONTROL, kind: 0x107, ..data }, 24),
        ("can't have the number 18", Header { stream: 18, kind: kind::OPEN, len: 48, argument: 1 }, 64),
    ];
    for (reason, header, bytes) in cases {
        let (mut session, theirs) = session();
        let mut message = header.encode().to_vec();
        message.resize(bytes, 0);
        rustix::net::send(&theirs, &message, rustix::net::SendFlags::DONTWAIT).expect("room");
        session.receive(&mut buffer);
        let failure = session.run().expect_err(reason);
        assert!(failure.message.contains("broke the protocol") && failure.message.contains(reason), "{failure}");
    }
}

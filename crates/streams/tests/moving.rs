//! Streams in mid-transfer are moved from VM process to VM process, ten thousand times: no byte is lost or doubled.

use proptest::prelude::*;
use std::collections::VecDeque;
use torpor_abi::frame::{ATTACH_BYTES, CONNECTION_WINDOW_BYTES, Header, MAX_WINDOW_BYTES, kind};
use torpor_streams::ledger::Ledger;
use torpor_streams::link::{Message, split_frame};
use torpor_streams::parked::{BadState, Parked, agrees, incarnation_argument};

const INSTANCE: [u8; 16] = [7; 16];
const STREAMS: [u32; 3] = [16, 18, 20];

/// A small generator with a seed of its own, so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// The byte at a position of a stream's direction.
fn pattern(number: u32, to_guest: bool, at: u64) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 8) ^ u64::from(number) ^ u64::from(to_guest) << 5) as u8
}

/// One end of one stream.
#[derive(Clone, Default)]
struct End {
    sent: u64,
    received: u64,
    may_send: u32,
    owed: u32,
    reset: bool,
    /// Since a move nothing is said before the stream was named.
    mute: bool,
    held: Vec<(Header, Vec<u8>)>,
}

/// What a guest has in its memory: its ends, and the frames in its two rings.
#[derive(Clone, Default)]
struct Guest {
    ends: [End; 3],
    tx: VecDeque<(Header, Vec<u8>)>,
    rx: VecDeque<(Header, Vec<u8>)>,
    resuming: bool,
    incarnation: u32,
}

/// The host's end: it stays while the guest moves.
struct Host {
    ends: [End; 3],
    ledger: Ledger,
    attached: [bool; 3],
}

/// One VM process, with the link as the messages in it.
struct Process {
    ledger: Ledger,
    to_guest: VecDeque<(Header, Vec<u8>)>,
    to_host: VecDeque<(Header, Vec<u8>)>,
}

fn header(number: u32, kind: u16, len: usize, argument: u32) -> Header {
    Header { stream: number, kind, len: len as u32, argument }
}

fn position(number: u32) -> usize {
    STREAMS.iter().position(|known| *known == number).expect("one of ours")
}

impl End {
    /// A piece to be sent now.
    fn piece(&mut self, number: u32, to_guest: bool, len: u64) -> Option<(Header, Vec<u8>)> {
        let len = len.min(u64::from(self.may_send));
        if len == 0 || self.reset || self.mute {
            return None;
        }
        let bytes: Vec<u8> = (self.sent..self.sent + len).map(|at| pattern(number, to_guest, at)).collect();
        self.sent += len;
        self.may_send -= len as u32;
        Some((header(number, kind::DATA, bytes.len(), 0), bytes))
    }

    fn data(&mut self, number: u32, to_guest: bool, bytes: &[u8]) {
        for (n, byte) in bytes.iter().enumerate() {
            assert_eq!(
                *byte,
                pattern(number, to_guest, self.received + n as u64),
                "stream {number} at {}",
                self.received
            );
        }
        self.received += bytes.len() as u64;
        self.owed += bytes.len() as u32;
    }
}

impl Guest {
    /// Handles one frame of its receive ring.
    fn step(&mut self) {
        let Some((frame, payload)) = self.rx.pop_front() else { return };
        if matches!(frame.kind, kind::ATTACH | kind::RESUMED) && frame.argument != self.incarnation {
            return;
        }
        if frame.stream < 16 {
            self.resuming = false;
            return;
        }
        let end = &mut self.ends[position(frame.stream)];
        match frame.kind {
            kind::OPEN => {
                end.may_send = CONNECTION_WINDOW_BYTES;
                end.mute = self.resuming;
                let answer = (header(frame.stream, kind::OPENED, 0, 0), Vec::new());
                if end.mute { end.held.push(answer) } else { self.tx.push_back(answer) }
            }
            kind::DATA => end.data(frame.stream, true, &payload),
            kind::CREDIT => end.may_send += frame.argument,
            kind::ATTACH => {
                let counts: Vec<u8> = [end.sent, end.received].iter().flat_map(|n| n.to_le_bytes()).collect();
                if agrees(&payload, (end.received, end.sent)) {
                    self.tx.push_back((header(frame.stream, kind::ATTACH, ATTACH_BYTES as usize, 0), counts));
                    self.tx.extend(end.held.drain(..));
                    end.mute = false;
                } else {
                    end.reset = true;
                    self.tx.push_back((header(frame.stream, kind::CLOSE, 0, 104), Vec::new()));
                }
            }
            _ => {}
        }
    }

    fn send(&mut self, at: usize, len: u64) {
        let number = STREAMS[at];
        if let Some(frame) = self.ends[at].piece(number, false, len) {
            self.tx.push_back(frame);
        }
        let end = &mut self.ends[at];
        if end.owed > 0 && !end.reset && !end.mute {
            let argument = std::mem::take(&mut end.owed);
            self.tx.push_back((header(number, kind::CREDIT, 0, argument), Vec::new()));
        }
    }
}

impl Host {
    fn send(&mut self, process: &mut Process, frame: Header, payload: Vec<u8>) {
        self.ledger.to_guest(&frame).expect("the host keeps to the rules");
        process.to_guest.push_back((frame, payload));
    }

    fn take(&mut self, frame: &Header, payload: &[u8]) {
        let expected = self.ledger.attach_counts(frame.stream);
        self.ledger.from_guest(frame).expect("the guest keeps to the rules");
        let at = position(frame.stream);
        let end = &mut self.ends[at];
        match frame.kind {
            kind::OPENED => {
                end.may_send = CONNECTION_WINDOW_BYTES;
                self.attached[at] = true;
            }
            kind::DATA => end.data(frame.stream, false, payload),
            kind::CREDIT => end.may_send += frame.argument,
            kind::ATTACH => {
                assert!(agrees(payload, expected.expect("was asked")));
                self.attached[at] = true;
            }
            kind::CLOSE => end.reset = true,
            _ => {}
        }
    }
}

impl Process {
    fn new() -> Self {
        Self { ledger: Ledger::new(false), to_guest: VecDeque::new(), to_host: VecDeque::new() }
    }

    /// From the link into the guest's ring.
    fn deliver(&mut self, guest: &mut Guest) {
        if let Some((frame, payload)) = self.to_guest.pop_front() {
            self.ledger.to_guest(&frame).expect("valid");
            guest.rx.push_back((frame, payload));
        }
    }

    /// From the guest's ring into the link.
    fn transmit(&mut self, guest: &mut Guest) -> bool {
        let Some((frame, payload)) = guest.tx.pop_front() else { return false };
        self.ledger.from_guest(&frame).expect("valid");
        self.to_host.push_back((frame, payload));
        true
    }
}

/// Stops the guest, and continues it in a new VM process from what was written down.
fn move_guest(guest: &mut Guest, host: &mut Host, mut process: Process, incarnation: u64) -> Process {
    // The stop: all that the guest has sent reaches the host.
    while process.transmit(guest) {}
    for (frame, payload) in process.to_host.drain(..) {
        host.take(&frame, &payload);
    }
    // What is in the link has not been judged by the VM process, so its ledger is that of the guest's ring.
    let mut bytes = Vec::new();
    for (frame, payload) in process.to_guest.drain(..) {
        process.ledger.to_guest(&frame).expect("valid");
        let mut message = Message::default();
        message.push(&frame, &payload);
        bytes.append(&mut message.into_bytes());
    }
    let parked = Parked::of(INSTANCE, incarnation, &process.ledger, &bytes).expect("whole frames");
    let written = parked.encode();
    let parked = Parked::decode(&written).expect("as it was written");
    assert_eq!(parked.attach(INSTANCE, incarnation + 1, &mut Ledger::new(false), |_, _| {}), Err(BadState::Other));
    let mut next = Process::new();
    for (number, connection) in &parked.streams {
        next.ledger.adopt(*number, *connection).expect("a free number");
    }
    guest.resuming = true;
    guest.incarnation = incarnation_argument(incarnation + 1);
    guest.ends.iter_mut().for_each(|end| end.mute = true);
    host.ledger = Ledger::new(false);
    host.attached = [false; 3];
    let to_guest = &mut next.to_guest;
    parked
        .attach(INSTANCE, incarnation, &mut host.ledger, |frame, payload| {
            to_guest.push_back((*frame, payload.to_vec()))
        })
        .expect("ours");
    next
}

fn open_all(host: &mut Host, process: &mut Process) {
    for number in STREAMS {
        host.send(process, header(number, kind::OPEN, 48, 1), vec![0; 48]);
    }
}

fn new_host() -> Host {
    Host { ends: Default::default(), ledger: Ledger::new(false), attached: [false; 3] }
}

/// Runs `moves` moves with a random number of steps between them; returns the bytes that arrived.
fn run(seed: u64, moves: u64) -> u64 {
    let mut random = Random(seed);
    let (mut guest, mut host, mut process) = (Guest::default(), new_host(), Process::new());
    open_all(&mut host, &mut process);
    for incarnation in 0..moves {
        for _ in 0..random.below(40) {
            let at = random.below(3) as usize;
            let number = STREAMS[at];
            match random.below(6) {
                0 => guest.send(at, random.below(3000)),
                1 if host.attached[at] => {
                    let len = random.below(3000);
                    if let Some((frame, payload)) = host.ends[at].piece(number, true, len) {
                        host.send(&mut process, frame, payload);
                    }
                    let owed = std::mem::take(&mut host.ends[at].owed);
                    if owed > 0 {
                        host.send(&mut process, header(number, kind::CREDIT, 0, owed), Vec::new());
                    }
                }
                2 => process.deliver(&mut guest),
                3 => guest.step(),
                4 => {
                    process.transmit(&mut guest);
                }
                _ => {
                    if let Some((frame, payload)) = process.to_host.pop_front() {
                        host.take(&frame, &payload);
                    }
                }
            }
        }
        process = move_guest(&mut guest, &mut host, process, incarnation);
    }
    // Let everything arrive.
    loop {
        while process.transmit(&mut guest) {}
        while let Some((frame, payload)) = process.to_host.pop_front() {
            host.take(&frame, &payload);
        }
        if process.to_guest.is_empty() && guest.rx.is_empty() {
            break;
        }
        process.deliver(&mut guest);
        guest.step();
    }
    let mut arrived = 0;
    for (ours, theirs) in guest.ends.iter().zip(&host.ends) {
        assert!(!ours.reset && !theirs.reset);
        assert_eq!((ours.sent, ours.received), (theirs.received, theirs.sent));
        assert!(ours.may_send <= MAX_WINDOW_BYTES);
        arrived += ours.received + theirs.received;
    }
    arrived
}

#[test]
fn ten_thousand_moves_lose_and_double_nothing() {
    let arrived = run(42, 10_000);
    assert!(arrived > 1_000_000, "only {arrived} bytes: nothing was in mid-transfer");
}

#[test]
fn where_the_ends_disagree_the_stream_is_reset_on_both_sides() {
    let (mut guest, mut host, mut process) = (Guest::default(), new_host(), Process::new());
    open_all(&mut host, &mut process);
    for _ in 0..STREAMS.len() {
        process.deliver(&mut guest);
        guest.step();
    }
    while process.transmit(&mut guest) {}
    while let Some((frame, payload)) = process.to_host.pop_front() {
        host.take(&frame, &payload);
    }
    let older = guest.clone();
    let (frame, payload) = host.ends[0].piece(STREAMS[0], true, 100).expect("allowed");
    host.send(&mut process, frame, payload);
    process.deliver(&mut guest);
    guest.step();
    // The guest's memory is that of an older generation; the host's picture is not.
    guest = older;
    let mut process = move_guest(&mut guest, &mut host, process, 0);
    while !(process.to_guest.is_empty() && guest.rx.is_empty() && guest.tx.is_empty()) {
        process.deliver(&mut guest);
        guest.step();
        process.transmit(&mut guest);
    }
    while let Some((frame, payload)) = process.to_host.pop_front() {
        host.take(&frame, &payload);
    }
    assert!(guest.ends[0].reset && host.ends[0].reset);
    assert!(!guest.ends[1].reset && host.attached[1] && host.attached[2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn moves_at_any_moment(seed: u64) {
        run(seed, 50);
    }

    #[test]
    fn damaged_state_is_refused_or_harmless(seed: u64, at in 0_usize..300, bit in 0_u8..8, cut in 0_usize..300) {
        let mut random = Random(seed);
        let mut ledger = Ledger::new(false);
        for number in STREAMS {
            ledger.to_guest(&header(number, kind::OPEN, 48, 1 + random.below(3) as u32)).expect("free");
        }
        let bytes = Parked::of(INSTANCE, 1, &ledger, &[]).expect("no frames").encode();
        let mut damaged = bytes.clone();
        let place = at % bytes.len();
        damaged[place] ^= 1 << bit;
        damaged.truncate(bytes.len().saturating_sub(cut / 2));
        if let Ok(parked) = Parked::decode(&damaged) {
            let mut rest = &parked.undelivered[..];
            while let Ok((_, _, tail)) = split_frame(rest) {
                rest = tail;
            }
            let _ = parked.attach(INSTANCE, 1, &mut Ledger::new(false), |_, _| {});
        }
    }
}

//! The two rings, from the host's side. The host's own counter of each is kept here, never read back from the guest.

use super::Fatal;
use super::control::Control;
use super::memory::{Gpa, GuestMemory};
use std::sync::atomic::Ordering;
use torpor_abi::frame::{HEADER_BYTES, Header, kind, stream};
use torpor_abi::layout::{RING_BYTES, RX_RING_GPA, TX_RING_GPA};
use torpor_abi::ring::Position;
use torpor_streams::ledger::{Ledger, Violation};
use torpor_streams::link::Message;

const CAPACITY: u32 = RING_BYTES as u32;

/// Frames from the guest.
#[derive(Debug, Default)]
pub(super) struct TransmitRing {
    tail: u32,
    /// So many bytes from the tail on were meant for a link that is no more.
    stale_bytes: u32,
}

/// Whether a frame for a link that is no more goes to the next one: what it says of connections or allows is void there.
pub(super) fn outlives_link(header: &Header) -> bool {
    header.stream < stream::FIRST_DYNAMIC && header.kind != kind::CREDIT
}

impl TransmitRing {
    /// The guest is another one, its ring empty.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// The link is a new one: what the guest, which is stopped, has published for the old one is passed on only as far as
    /// it [`outlives_link`]. Calls `f` for the header of each frame that is.
    ///
    /// # Errors
    /// [`Fatal`] where counters or frames break the protocol.
    pub(super) fn relink(&mut self, memory: &GuestMemory, mut f: impl FnMut(&Header)) -> Result<(), Fatal> {
        let head = Control(memory).tx_head().load(Ordering::Acquire);
        self.stale_bytes = Position::new(head, self.tail, CAPACITY)?.used();
        let mut at = self.tail;
        while at != head {
            let header = next_header(memory, Position::new(head, at, CAPACITY)?)?;
            if outlives_link(&header) {
                f(&header);
            }
            at = at.wrapping_add(header.frame_bytes());
        }
        Ok(())
    }

    /// Whether the guest has published more than was taken.
    #[must_use]
    pub(super) fn has_frames(&self, memory: &GuestMemory) -> bool {
        Control(memory).tx_head().load(Ordering::SeqCst) != self.tail
    }

    /// Moves whole frames into `message` while they fit, and returns whether any were moved. Nothing of a frame is
    /// looked at twice: what is checked is what is passed on.
    ///
    /// # Errors
    /// [`Fatal`] where counters or frames break the protocol.
    pub(super) fn take(
        &mut self,
        memory: &GuestMemory,
        ledger: &mut Ledger,
        message: &mut Message,
    ) -> Result<bool, Fatal> {
        let control = Control(memory);
        let mut position = Position::new(control.tx_head().load(Ordering::Acquire), self.tail, CAPACITY)?;
        let before = self.tail;
        while position.used() > 0 {
            let available = position.used();
            let header = next_header(memory, position)?;
            let frame_bytes = header.frame_bytes();
            if !message.fits(header.len) {
                break;
            }
            let is_stale = self.stale_bytes > 0;
            self.stale_bytes = self.stale_bytes.saturating_sub(frame_bytes);
            if !is_stale || outlives_link(&header) {
                ledger.from_guest(&header)?;
                let padded = frame_bytes - HEADER_BYTES;
                let payload = message.push_with(&header);
                copy_out(memory, position.readable(HEADER_BYTES, padded), payload)?;
            }
            self.tail = self.tail.wrapping_add(frame_bytes);
            let head = self.tail.wrapping_add(available - frame_bytes);
            position = Position::new(head, self.tail, CAPACITY)?;
        }
        if self.tail == before {
            return Ok(false);
        }
        control.tx_tail().store(self.tail, Ordering::SeqCst);
        Ok(true)
    }
}

/// The header at a position's tail, whose frame is all there.
fn next_header(memory: &GuestMemory, position: Position) -> Result<Header, Fatal> {
    let available = position.used();
    if available < HEADER_BYTES {
        return Err(Violation::Truncated { frame_bytes: HEADER_BYTES, available }.into());
    }
    let mut header = [0; HEADER_BYTES as usize];
    copy_out(memory, position.readable(0, HEADER_BYTES), &mut header)?;
    let header = Header::decode(&header).map_err(Violation::Header)?;
    let frame_bytes = header.frame_bytes();
    if frame_bytes > available {
        return Err(Violation::Truncated { frame_bytes, available }.into());
    }
    Ok(header)
}

/// Frames to the guest.
#[derive(Debug, Default)]
pub(super) struct ReceiveRing {
    head: u32,
}

impl ReceiveRing {
    /// The guest is another one, its ring empty.
    pub(super) fn reset(&mut self) {
        self.head = 0;
    }

    /// Puts one frame, as it stands in a message, into the ring; false where there is no room.
    ///
    /// # Errors
    /// [`Fatal`] where the guest's counter is nonsense.
    pub(super) fn put(&mut self, memory: &GuestMemory, frame: &[u8]) -> Result<bool, Fatal> {
        let control = Control(memory);
        let position = Position::new(self.head, control.rx_tail().load(Ordering::SeqCst), CAPACITY)?;
        let len = u32::try_from(frame.len()).expect("a frame is no longer than a message");
        if position.free() < len {
            return Ok(false);
        }
        let [(first, first_len), (second, second_len)] = position.writable(0, len);
        memory.write(Gpa(RX_RING_GPA + first as u64), &frame[..first_len])?;
        memory.write(Gpa(RX_RING_GPA + second as u64), &frame[first_len..first_len + second_len])?;
        self.head = self.head.wrapping_add(len);
        control.rx_head().store(self.head, Ordering::Release);
        Ok(true)
    }
}

fn copy_out(memory: &GuestMemory, pieces: [(usize, usize); 2], into: &mut [u8]) -> Result<(), Fatal> {
    let [(first, first_len), (second, second_len)] = pieces;
    let (head, tail) = into.split_at_mut(first_len);
    memory.read(Gpa(TX_RING_GPA + first as u64), head)?;
    memory.read(Gpa(TX_RING_GPA + second as u64), &mut tail[..second_len])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use torpor_streams::link::split_frame;

    /// What the guest kernel does to send a frame.
    fn guest_sends(memory: &GuestMemory, header: &Header, payload: &[u8]) {
        let head = Control(memory).tx_head().load(Ordering::Relaxed);
        let mut frame = header.encode().to_vec();
        frame.extend_from_slice(payload);
        frame.resize(header.frame_bytes() as usize, 0);
        for (at, byte) in frame.iter().enumerate() {
            let offset = head.wrapping_add(at as u32) % CAPACITY;
            memory.write(Gpa(TX_RING_GPA + u64::from(offset)), &[*byte]).expect("in range");
        }
        Control(memory).tx_head().store(head.wrapping_add(frame.len() as u32), Ordering::Release);
    }

    fn memory() -> GuestMemory {
        GuestMemory::new(2 << 20).expect("memory")
    }

    #[test]
    fn frames_come_out_whole_and_in_order_across_the_wrap() {
        let (memory, mut ring, mut ledger) = (memory(), TransmitRing::default(), Ledger::new(false));
        for round in 0..40_u32 {
            let payload = vec![round as u8; 30_000];
            let header = Header { stream: stream::STDOUT, kind: kind::DATA, len: 30_000, argument: 0 };
            guest_sends(&memory, &header, &payload);
            guest_sends(&memory, &Header { len: 1, ..header }, &[7]);
            let mut message = Message::default();
            assert!(ring.take(&memory, &mut ledger, &mut message).expect("valid"));
            assert!(!ring.has_frames(&memory));
            let (a, b) = torpor_streams::link::pair().expect("socket pair");
            message.send(a).expect("room");
            let mut buffer = vec![0; torpor_streams::link::MESSAGE_MAX_BYTES];
            let len = torpor_streams::link::receive(b, &mut buffer).expect("a message");
            let (first, bytes, rest) = split_frame(&buffer[..len]).expect("a frame");
            assert_eq!((first, bytes), (header, &payload[..]));
            assert_eq!(split_frame(rest).expect("a frame").1, [7]);
            let credit = Header { kind: kind::CREDIT, len: 0, argument: 30_001, ..header };
            ledger.to_guest(&credit).expect("was outstanding");
        }
    }

    #[test]
    fn what_was_sent_for_a_former_link_is_passed_on_as_far_as_it_outlives_it() {
        let (memory, mut ring) = (memory(), TransmitRing::default());
        let frame = |stream, kind, len| Header { stream, kind, len, argument: 0 };
        guest_sends(&memory, &frame(stream::STDOUT, kind::DATA, 5), b"first");
        guest_sends(&memory, &Header { argument: 9, ..frame(stream::STDIN, kind::CREDIT, 0) }, &[]);
        guest_sends(&memory, &frame(17, kind::DATA, 3), b"abc");
        guest_sends(&memory, &frame(stream::STDOUT, kind::SHUTDOWN, 0), &[]);
        let mut kept = Vec::new();
        ring.relink(&memory, |header| kept.push((header.stream, header.len))).expect("valid");
        assert_eq!(kept, [(stream::STDOUT, 5), (stream::STDOUT, 0)]);
        guest_sends(&memory, &frame(stream::STDERR, kind::DATA, 6), b"second");
        let mut message = Message::default();
        assert!(ring.take(&memory, &mut Ledger::new(false), &mut message).expect("valid"));
        let bytes = message.into_bytes();
        let (first, payload, rest) = split_frame(&bytes).expect("a frame");
        assert_eq!((first.stream, payload), (stream::STDOUT, &b"first"[..]));
        let (shutdown, _, rest) = split_frame(rest).expect("a frame");
        assert_eq!((shutdown.stream, shutdown.kind), (stream::STDOUT, kind::SHUTDOWN));
        let (last, payload, rest) = split_frame(rest).expect("a frame");
        assert_eq!((last.stream, payload, rest), (stream::STDERR, &b"second"[..], &b""[..]));
        assert!(!ring.has_frames(&memory));
        // From here on the guest knows of the new link: what it says of a connection counts.
        guest_sends(&memory, &frame(17, kind::DATA, 3), b"abc");
        let refused = ring.take(&memory, &mut Ledger::new(false), &mut Message::default());
        assert!(matches!(refused, Err(Fatal::Frame(Violation::Stream { stream: 17, .. }))));
    }

    #[test]
    fn a_full_receive_ring_takes_no_more() {
        let (memory, mut ring) = (memory(), ReceiveRing::default());
        let frame = vec![1; 1 << 15];
        let mut taken = 0;
        while ring.put(&memory, &frame).expect("valid") {
            taken += 1;
        }
        assert_eq!(taken, RING_BYTES >> 15);
        Control(&memory).rx_tail().store(1 << 15, Ordering::Relaxed);
        assert!(ring.put(&memory, &frame).expect("valid"));
        assert!(!ring.put(&memory, &[0]).expect("valid"));
        Control(&memory).rx_tail().store(u32::MAX, Ordering::Relaxed);
        assert!(ring.put(&memory, &[0]).is_err());
    }

    proptest! {
        /// Random counters and bytes are passed on whole or end in an error; nothing panics or runs for ever.
        #[test]
        fn hostile_rings_are_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            small in proptest::collection::vec((prop_oneof![0_u32..6, 16_u32..20], 0_u16..13, 0_u32..64, 0_u32..4), 0..20),
            head: u32, near in 0_u32..400, tail: u32, use_near: bool,
        ) {
            let memory = memory();
            let (mut ring, mut ledger) = (TransmitRing { tail, ..TransmitRing::default() }, Ledger::new(false));
            Control(&memory).tx_head().store(tail, Ordering::Relaxed);
            for (stream, kind, len, argument) in small {
                guest_sends(&memory, &Header { stream, kind, len, argument }, &vec![1; len as usize]);
            }
            memory.write(Gpa(TX_RING_GPA + u64::from(tail % (CAPACITY - 300))), &bytes).expect("in range");
            if use_near {
                Control(&memory).tx_head().store(tail.wrapping_add(near), Ordering::Relaxed);
            } else if head % 2 == 0 {
                Control(&memory).tx_head().store(head, Ordering::Relaxed);
            }
            let mut message = Message::default();
            while let Ok(true) = ring.take(&memory, &mut ledger, &mut message) {
                message = Message::default();
            }
        }
    }
}

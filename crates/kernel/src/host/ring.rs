//! The two rings of frames, from the guest's side.
//!
//! The VM process validates what the guest writes; the guest trusts its VM process with everything but its own
//! consistency, so a corrupt receive ring is a panic.

use super::{control, low_memory, notify};
use core::sync::atomic::Ordering;
use torpor_abi::frame::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, kind};
use torpor_abi::layout::{RING_BYTES, RX_RING_GPA, TX_RING_GPA};
use torpor_abi::ring::Position;

const CAPACITY: u32 = RING_BYTES as u32;

fn tx_position() -> Position {
    let control = control();
    // The host's tail may be nonsense only if the VM process is broken: an empty ring then stalls nobody.
    let (head, tail) = (control.tx_head.load(Ordering::Relaxed), control.tx_tail.load(Ordering::Acquire));
    Position::new(head, tail, CAPACITY).unwrap_or_else(|bad| panic!("transmit ring: {bad:?}"))
}

/// Bytes of payload that one frame can carry now; asks the host for an event when there is more, if that is less than `wanted`.
#[must_use]
pub fn room(wanted: usize) -> usize {
    let usable =
        |position: Position| (position.free() & !7).saturating_sub(HEADER_BYTES).min(MAX_PAYLOAD_BYTES) as usize;
    let now = usable(tx_position());
    if now >= wanted {
        return now;
    }
    control().tx_wants_room.store(1, Ordering::SeqCst);
    usable(tx_position())
}

/// Appends a frame whose payload is `pieces` one after the other; the caller knows from [`room`] that it fits.
/// The host hears of it with the next [`flush`].
pub fn send(stream: u32, kind: u16, argument: u32, pieces: &[&[u8]]) {
    let len: usize = pieces.iter().map(|p| p.len()).sum();
    let header = Header { stream, kind, len: len as u32, argument };
    let position = tx_position();
    assert!(header.frame_bytes() <= position.free(), "frame of {len} bytes without room");
    let mut at = 0;
    put(position, &mut at, &header.encode());
    for piece in pieces {
        put(position, &mut at, piece);
    }
    let head = control().tx_head.load(Ordering::Relaxed);
    control().tx_head.store(head.wrapping_add(header.frame_bytes()), Ordering::SeqCst);
}

/// Appends a DATA frame whose payload is `prefix` and up to `len` bytes of what `fill` puts into the ring's pieces; returns
/// what that was. The caller knows from [`room`] that the whole fits.
///
/// # Errors
/// What `fill` gives where nothing was put in yet; nothing is sent then.
pub fn send_filled<E>(
    stream: u32,
    prefix: &[u8],
    len: usize,
    mut fill: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<usize, E> {
    let position = tx_position();
    let whole = Header { stream, kind: kind::DATA, len: (prefix.len() + len) as u32, argument: 0 };
    assert!(whole.frame_bytes() <= position.free(), "frame of {len} bytes without room");
    let mut at = HEADER_BYTES;
    put(position, &mut at, prefix);
    let mut filled = 0;
    for (offset, piece) in position.writable(at, len as u32) {
        // SAFETY: Position's pieces lie within the ring, which is the kernel's to write between head and tail; the host
        // does not read there before `tx_head` moves, and no other reference to these bytes exists meanwhile.
        let target = unsafe { core::slice::from_raw_parts_mut(low_memory(TX_RING_GPA).add(offset), piece) };
        match fill(target) {
            Ok(n) => filled += n,
            Err(error) if filled == 0 => return Err(error),
            Err(_) => break,
        }
        if filled < piece {
            break;
        }
    }
    let header = Header { len: (prefix.len() + filled) as u32, ..whole };
    put(position, &mut 0, &header.encode());
    let head = control().tx_head.load(Ordering::Relaxed);
    control().tx_head.store(head.wrapping_add(header.frame_bytes()), Ordering::SeqCst);
    Ok(filled)
}

/// Lets the host see what was sent.
pub fn flush() {
    notify();
}

fn put(position: Position, at: &mut u32, mut bytes: &[u8]) {
    for (offset, len) in position.writable(*at, bytes.len() as u32) {
        let (now, rest) = bytes.split_at(len);
        // SAFETY: Position's pieces lie within the ring, which is the kernel's to write between head and tail.
        unsafe {
            let target = low_memory(TX_RING_GPA).add(offset);
            core::ptr::copy_nonoverlapping(now.as_ptr(), target, len);
        }
        bytes = rest;
        *at += len as u32;
    }
}

/// Hands received frames to their streams; those that are not `wanted` are dropped.
pub(super) fn receive(wanted: impl Fn(&Header) -> bool) {
    super::stream::room_available();
    loop {
        let control = control();
        let (head, tail) = (control.rx_head.load(Ordering::Acquire), control.rx_tail.load(Ordering::Relaxed));
        let position = Position::new(head, tail, CAPACITY).unwrap_or_else(|bad| panic!("receive ring: {bad:?}"));
        if position.used() < HEADER_BYTES {
            break;
        }
        let mut raw = [0; HEADER_BYTES as usize];
        let [(offset, first), (_, second)] = position.readable(0, HEADER_BYTES);
        raw[..first].copy_from_slice(rx_bytes(offset, first));
        raw[first..].copy_from_slice(rx_bytes(0, second));
        let header = Header::decode(&raw).unwrap_or_else(|bad| panic!("receive ring: {bad:?}"));
        assert!(header.frame_bytes() <= position.used(), "receive ring: truncated frame {header:?}");
        if wanted(&header) {
            let [(o1, l1), (o2, l2)] = position.readable(HEADER_BYTES, header.len);
            super::stream::dispatch(header, rx_bytes(o1, l1), rx_bytes(o2, l2));
        }
        control.rx_tail.store(tail.wrapping_add(header.frame_bytes()), Ordering::SeqCst);
        if control.rx_wants_room.load(Ordering::SeqCst) != 0 {
            notify();
        }
    }
}

fn rx_bytes(offset: usize, len: usize) -> &'static [u8] {
    // SAFETY: within the ring by Position; the host does not write between tail and head, which is where the piece lies
    // until `rx_tail` moves, and no piece is kept beyond that.
    unsafe { core::slice::from_raw_parts(low_memory(RX_RING_GPA).add(offset), len) }
}

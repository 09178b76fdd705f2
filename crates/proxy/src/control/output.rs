//! Output of guests on its way to torpord. What can't be told now is kept, the newest of each link.

use super::Control;
use crate::control::messages::Which;
use crate::limits::{OUTPUT_ALL_MAX_BYTES, OUTPUT_MAX_BYTES};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use uuid::Uuid;

/// Of one notice; base64 makes four bytes of three.
const PIECE_BYTES: usize = 48 << 10;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Output {
    waiting: HashMap<(Uuid, u64), VecDeque<u8>>,
    waiting_bytes: usize,
}

#[derive(Serialize)]
struct Notice {
    #[serde(flatten)]
    which: Which,
    data: String,
}

fn tell(control: &Control, which: Which, bytes: &[u8]) {
    control.tell("output", &Notice { which, data: STANDARD.encode(bytes) });
}

impl Output {
    /// Takes a link's output.
    pub fn take(&mut self, control: &Control, which: Which, bytes: &[u8]) {
        let key = (which.instance, which.generation);
        if control.has_room() && !self.waiting.contains_key(&key) {
            return bytes.chunks(PIECE_BYTES).for_each(|piece| tell(control, which, piece));
        }
        let bytes = &bytes[bytes.len().saturating_sub(OUTPUT_MAX_BYTES)..];
        let waiting = self.waiting.entry(key).or_default();
        let own = OUTPUT_MAX_BYTES.saturating_sub(bytes.len());
        let all = (waiting.len() + OUTPUT_ALL_MAX_BYTES).saturating_sub(self.waiting_bytes + bytes.len());
        let excess = waiting.len().saturating_sub(own.min(all));
        waiting.drain(..excess);
        self.waiting_bytes -= excess;
        if self.waiting_bytes + bytes.len() <= OUTPUT_ALL_MAX_BYTES {
            waiting.extend(bytes);
            self.waiting_bytes += bytes.len();
        }
        self.flush(control);
    }

    /// Tells what waits, as far as there is room.
    pub fn flush(&mut self, control: &Control) {
        while control.has_room() {
            let Some(key) = self.waiting.keys().next().copied() else { return };
            let which = Which { instance: key.0, generation: key.1 };
            let waiting = self.waiting.get_mut(&key).expect("just found");
            let piece: Vec<u8> = waiting.drain(..waiting.len().min(PIECE_BYTES)).collect();
            self.waiting_bytes -= piece.len();
            if waiting.is_empty() {
                self.waiting.remove(&key);
            }
            tell(control, which, &piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_output_is_kept_within_bounds() {
        let (mut output, control) = (Output::default(), Control::default());
        let which = |n| Which { instance: Uuid::from_u128(n), generation: 1 };
        output.take(&control, which(1), b"old");
        output.take(&control, which(1), &vec![b'x'; OUTPUT_MAX_BYTES - 1]);
        let kept = &output.waiting[&(Uuid::from_u128(1), 1)];
        assert_eq!((kept.len(), kept[0], kept[1]), (OUTPUT_MAX_BYTES, b'd', b'x'));
        for n in 0..1000 {
            output.take(&control, which(n), &vec![b'y'; 2 * OUTPUT_MAX_BYTES]);
        }
        assert!(output.waiting_bytes <= OUTPUT_ALL_MAX_BYTES);
        assert_eq!(output.waiting_bytes, output.waiting.values().map(VecDeque::len).sum::<usize>());
    }
}

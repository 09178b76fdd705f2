//! A guest kernel that does anything: what it writes for the VM process to read is drawn at random.

use super::{control, data, finish, load, now_ns, ring, send, store};
use core::sync::atomic::{AtomicU32, Ordering};
use torpor_abi::frame::{Header, stream};
use torpor_abi::layout::{PAGE_BYTES, RING_BYTES, RX_RING_GPA, TX_RING_GPA};
use torpor_abi::shared::{doorbell, exit};

const STEPS: u32 = 2000;
/// Where it draws operands from, apart from nonsense: none of it is its own code or stack.
const MEMORY: core::ops::Range<u64> = 32 << 20..48 << 20;

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    fn below(&mut self, end: u32) -> u32 {
        (self.draw() % u64::from(end)) as u32
    }

    /// A small number, the size of a ring or nearly, or any.
    fn odd(&mut self) -> u32 {
        match self.below(4) {
            0 | 1 => self.below(24),
            2 => (RING_BYTES as u32).wrapping_add(self.below(64)).wrapping_sub(32),
            _ => self.draw() as u32,
        }
    }
}

/// Ends when the VM process ends it, with 0 after [`STEPS`], or with a reason that is none.
pub fn run(seed: u32) -> ! {
    let mut chance = Chance(seed.into());
    // The more seldom it is hostile, the further a run gets.
    let seldom = 1 << chance.below(9);
    for _ in 0..STEPS {
        if chance.below(seldom) == 0 { attack(&mut chance) } else { behave(&mut chance) }
    }
    if chance.below(2) == 0 {
        control().panic_len.store(chance.odd(), Ordering::SeqCst);
        ring(doorbell::EXIT, exit::PANIC + chance.below(1 << 20));
    }
    finish(0)
}

/// What a guest kernel does.
fn behave(chance: &mut Chance) {
    match chance.below(5) {
        0 => send(&data(stream::TRACE, chance.below(200)), b'.'),
        1 => control().rx_tail.store(control().rx_head.load(Ordering::SeqCst), Ordering::SeqCst),
        2 => {
            control().wanted_deadline_ns.store(now_ns() + 20_000, Ordering::SeqCst);
            ring(doorbell::NOTIFY, 0);
            ring(doorbell::IDLE, 0);
            control().pending.store(0, Ordering::SeqCst);
        }
        3 => operand(chance, doorbell::POPULATE),
        _ => operand(chance, doorbell::DISCARD),
    }
}

fn operand(chance: &mut Chance, bell: u64) {
    let pages = (MEMORY.end - MEMORY.start) / PAGE_BYTES;
    let first = chance.draw() % pages;
    control().populate_gpa.store(MEMORY.start + first * PAGE_BYTES, Ordering::SeqCst);
    control().populate_bytes.store(chance.draw() % (pages - first) * PAGE_BYTES, Ordering::SeqCst);
    ring(bell, 0);
}

/// What none does.
fn attack(chance: &mut Chance) {
    let step = |word: &AtomicU32, by: u32| word.store(word.load(Ordering::SeqCst).wrapping_add(by), Ordering::SeqCst);
    match chance.below(10) {
        0..3 => {
            let header = Header {
                stream: chance.odd(),
                kind: if chance.below(8) == 0 { chance.draw() as u16 } else { chance.below(14) as u16 },
                len: chance.below(100),
                argument: chance.odd(),
            };
            send(&header, chance.draw() as u8);
        }
        3 => {
            // Bytes that were never a frame; or a frame that changes while it is read.
            let head = control().tx_head.load(Ordering::SeqCst);
            for at in 0..chance.below(64) {
                store(TX_RING_GPA + u64::from(head.wrapping_add(at) % RING_BYTES as u32), chance.draw() as u8);
            }
            step(&control().tx_head, chance.below(80));
            for at in 0..chance.below(64) {
                store(TX_RING_GPA + u64::from(head.wrapping_add(at) % RING_BYTES as u32), chance.draw() as u8);
            }
        }
        4 => step(&control().tx_head, chance.odd()),
        5 => {
            step(&control().rx_tail, chance.odd());
            let _ = load(RX_RING_GPA);
        }
        6 => {
            // What is the VM process's to write.
            let control = control();
            let words = [
                &control.tx_tail,
                &control.tx_polling,
                &control.rx_head,
                &control.rx_wants_room,
                &control.pending,
                &control.interrupt_busy,
                &control.quiesce,
                &control.tx_wants_room,
            ];
            words[chance.below(words.len() as u32) as usize].store(chance.odd(), Ordering::SeqCst);
            control.armed_deadline_ns.store(chance.draw(), Ordering::SeqCst);
        }
        7 => {
            control().wanted_deadline_ns.store(chance.draw() >> chance.below(64), Ordering::SeqCst);
            control().populate_gpa.store(!(MEMORY.end - 1) & chance.draw() << chance.below(48), Ordering::SeqCst);
            control().populate_bytes.store(chance.draw() << chance.below(64), Ordering::SeqCst);
            ring([doorbell::POPULATE, doorbell::DISCARD, doorbell::NOTIFY][chance.below(3) as usize], 0);
        }
        8 => ring([doorbell::QUIESCED, doorbell::PARKED][chance.below(2) as usize], chance.odd()),
        _ => {
            let bell = u64::from(chance.below(PAGE_BYTES as u32 / 4)) * 4;
            // Nobody would end that sleep.
            if bell != doorbell::IDLE {
                ring(bell, exit::START_FAILED + 1 + chance.below(9));
            }
        }
    }
    ring(doorbell::NOTIFY, 0);
}

//! The kernel's random number generator: ChaCha20 with fast key erasure, seeded by the VM process at boot and anew after
//! every restore. What was given out cannot be computed from a later snapshot of memory.
//! (D. J. Bernstein, "Fast-key-erasure random-number generators", 2017.)

use core::cell::RefCell;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

crate::global! {
    static KEY: RefCell<[u8; 32]> = RefCell::new([0; 32]);
}

/// Mixes fresh entropy into the key. Called before the first program runs, and before it goes on after a restore.
pub fn reseed(entropy: &[u8; 64]) {
    KEY.with(|key| {
        let mut old = ChaCha20Rng::from_seed(*key.borrow());
        let mut mixed = [0; 32];
        old.fill_bytes(&mut mixed);
        for (n, byte) in mixed.iter_mut().enumerate() {
            *byte ^= entropy[n];
        }
        // A second pass, keyed by the first half, so that both halves count in full.
        let mut stream = ChaCha20Rng::from_seed(mixed);
        stream.fill_bytes(&mut mixed);
        for (n, byte) in mixed.iter_mut().enumerate() {
            *byte ^= entropy[32 + n];
        }
        *key.borrow_mut() = mixed;
    });
}

/// Fills `out` with random bytes.
pub fn fill(out: &mut [u8]) {
    KEY.with(|key| {
        let mut stream = ChaCha20Rng::from_seed(*key.borrow());
        stream.fill_bytes(&mut *key.borrow_mut());
        stream.fill_bytes(out);
    });
}

/// A random number.
#[must_use]
pub fn u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_and_calls_differ() {
        super::reseed(&[1; 64]);
        let first = (super::u64(), super::u64());
        assert_ne!(first.0, first.1);
        super::KEY.with(|k| *k.borrow_mut() = [0; 32]);
        super::reseed(&[2; 64]);
        assert_ne!(super::u64(), first.0);
    }
}

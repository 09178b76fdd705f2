//! What is known of each frame: which 2 MiB block has free ones, which of them were ever written, who holds them.

use super::addr::{Gpa, PAGE_BYTES};
use super::phys;
use core::cell::Cell;
use torpor_abi::layout::LARGE_PAGE_BYTES;

/// Number of a frame: its guest-physical address / 4096.
pub(crate) type Pfn = u32;

/// Frames in a block.
pub(crate) const BLOCK_FRAMES: u32 = (LARGE_PAGE_BYTES / PAGE_BYTES) as u32;

/// Frames of the least that the host is asked for: 64 KiB.
pub(super) const LANE_FRAMES: u32 = BLOCK_FRAMES / u32::BITS;

const WORDS: usize = BLOCK_FRAMES as usize / 64;

/// Descriptor of a 2 MiB block; all zeros is a block that was never used.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Block {
    /// Frames that are given out.
    pub(super) used: [u64; WORDS],
    /// Frames that may hold something other than zeros.
    pub(super) dirty: [u64; WORDS],
    /// Number of bits in `used`.
    pub(super) count: u32,
    /// Pieces of 64 KiB that the host was asked for. It may also have been made to back others, by touches.
    backed: u32,
}

/// A bit for each of the frames `[first, first + n)` of one word of a block's bitmap.
fn mask(first: u32, n: u32) -> u64 {
    (if n == 64 { u64::MAX } else { (1 << n) - 1 }) << (first % 64)
}

impl Block {
    /// Calls `f` with word index and mask for the frames `[first, first + 2^order)`, aligned to their number.
    fn each_word(first: u32, order: u32, mut f: impl FnMut(usize, u64)) {
        let frames = 1 << order;
        if frames <= 64 {
            f(first as usize / 64, mask(first, frames));
        } else {
            for word in first as usize / 64..(first + frames) as usize / 64 {
                f(word, u64::MAX);
            }
        }
    }

    /// Marks frames as given out. Gives whether any may hold something other than zeros.
    pub(super) fn take(&mut self, first: u32, order: u32) -> bool {
        let mut dirty = false;
        Self::each_word(first, order, |word, mask| {
            debug_assert_eq!(self.used[word] & mask, 0);
            dirty |= self.dirty[word] & mask != 0;
            self.used[word] |= mask;
        });
        self.count += 1 << order;
        dirty
    }

    /// Marks frames as free.
    pub(super) fn give(&mut self, first: u32, order: u32) {
        Self::each_word(first, order, |word, mask| {
            debug_assert_eq!(self.used[word] & mask, mask);
            self.used[word] &= !mask;
        });
        self.count -= 1 << order;
    }

    /// Marks frames as possibly written.
    pub(super) fn soil(&mut self, first: u32, order: u32) {
        Self::each_word(first, order, |word, mask| self.dirty[word] |= mask);
    }

    /// Whether the frame may hold something other than zeros.
    pub(super) const fn is_dirty(&self, frame: u32) -> bool {
        self.dirty[frame as usize / 64] >> (frame % 64) & 1 == 1
    }

    /// Sees to it that the host has memory behind `[first, first + 2^order)`: gives what it has to be asked for, as first
    /// frame and number of frames, in pieces of `piece` frames (at least [`LANE_FRAMES`]), and notes that it was.
    pub(super) fn back(&mut self, first: u32, order: u32, piece: u32) -> impl Iterator<Item = (u32, u32)> {
        let lanes = |unit: u32| {
            let (start, end) = (first / unit * unit, (first + (1 << order)).next_multiple_of(unit));
            (1u64 << (end / LANE_FRAMES)) - (1u64 << (start / LANE_FRAMES))
        };
        let wanted = lanes(LANE_FRAMES) & !u64::from(self.backed) != 0;
        let mut missing = if wanted { lanes(piece) & !u64::from(self.backed) } else { 0 };
        self.backed |= missing as u32;
        core::iter::from_fn(move || {
            let start = missing.trailing_zeros();
            let count = (missing.checked_shr(start)?).trailing_ones();
            missing &= missing.wrapping_add(1 << start);
            Some((start * LANE_FRAMES, count * LANE_FRAMES))
        })
    }

    /// Whether the host was asked for any of it.
    pub(super) const fn is_backed(&self) -> bool {
        self.backed != 0
    }

    /// The host was given the whole block's memory back.
    pub(super) fn forget(&mut self) {
        self.dirty = [0; WORDS];
        self.backed = 0;
    }

    /// A free run of `2^order` frames, aligned to its size. Single frames come from started pieces of 64 KiB first.
    pub(super) fn find(&self, order: u32) -> Option<u32> {
        if order == 0
            && let Some(frame) = self.find_in_started()
        {
            return Some(frame);
        }
        if order <= 6 {
            for (word, used) in self.used.iter().enumerate() {
                let starts = runs(!used, order);
                if starts != 0 {
                    return Some(word as u32 * 64 + starts.trailing_zeros());
                }
            }
            return None;
        }
        let words = 1usize << (order - 6);
        self.used.chunks_exact(words).position(|chunk| chunk.iter().all(|w| *w == 0)).map(|i| (i * words * 64) as u32)
    }

    fn find_in_started(&self) -> Option<u32> {
        for (word, used) in self.used.iter().enumerate() {
            for lane in 0..4 {
                let bits = (used >> (lane * 16)) as u16;
                if bits != 0 && bits != u16::MAX {
                    return Some(word as u32 * 64 + lane * 16 + bits.trailing_ones());
                }
            }
        }
        None
    }
}

/// Starts of the free runs of `2^order` (up to 64) frames in a word of free bits, aligned to their size.
fn runs(free: u64, order: u32) -> u64 {
    const ALIGNED: [u64; 7] = [
        u64::MAX,
        0x5555_5555_5555_5555,
        0x1111_1111_1111_1111,
        0x0101_0101_0101_0101,
        0x0001_0001_0001_0001,
        0x0000_0001_0000_0001,
        1,
    ];
    let mut starts = free;
    for step in 0..order {
        starts &= starts >> (1 << step);
    }
    starts & ALIGNED[order as usize]
}

/// Which list a block is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Set {
    /// Some frames are given out, some are free.
    Partial = 0,
    /// As `Partial`, and a whole aligned run of 64 KiB is free.
    PartialWithRun = 1,
    /// All free, and some of it was written: the host has memory behind it.
    FreeDirty = 2,
    /// All free and given back to the host.
    FreeClean = 3,
}

const SETS: usize = 4;

/// The tables of all blocks. They lie in RAM; see [`super`].
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    blocks: *mut Block,
    references: *mut u32,
    sets: *mut u64,
    count: u32,
}

impl Blocks {
    /// Tables for `ram_bytes` of RAM at `at`, and how many bytes they take (whole pages).
    pub(super) fn layout(at: Gpa, ram_bytes: u64) -> (Self, u64) {
        let count = (ram_bytes / LARGE_PAGE_BYTES) as u32;
        let blocks_bytes = u64::from(count) * size_of::<Block>() as u64;
        let sets_bytes = u64::from(count.div_ceil(64)) * 8 * SETS as u64;
        let references_bytes = u64::from(count) * u64::from(BLOCK_FRAMES) * 4;
        let bytes = (blocks_bytes + sets_bytes + references_bytes + PAGE_BYTES - 1) & !(PAGE_BYTES - 1);
        let blocks = phys::pointer(at).cast::<Block>();
        let sets = phys::pointer(Gpa(at.0 + blocks_bytes)).cast::<u64>();
        let references = phys::pointer(Gpa(at.0 + blocks_bytes + sets_bytes)).cast::<u32>();
        (Self { blocks, references, sets, count }, bytes)
    }

    /// How many blocks there are, those before the first frame included.
    pub(super) const fn count(self) -> u32 {
        self.count
    }

    /// Runs `f` on a block's descriptor. `f` must not reach the same descriptor by another way.
    pub(super) fn with<R>(self, block: u32, f: impl FnOnce(&mut Block) -> R) -> R {
        assert!(block < self.count, "block {block} is beyond RAM");
        // SAFETY: the index was checked; the table lies in RAM that only this module knows, and callers of `with` are
        // the allocator's functions, which do not nest it.
        f(unsafe { &mut *self.blocks.add(block as usize) })
    }

    /// The reference count of a frame.
    pub(super) fn references(self, pfn: Pfn) -> &'static Cell<u32> {
        assert!(pfn / BLOCK_FRAMES < self.count, "frame {pfn:#x} is beyond RAM");
        // SAFETY: the index was checked; the table is only ever reached as Cells, by one thread, and stays for ever.
        unsafe { &*self.references.add(pfn as usize).cast::<Cell<u32>>() }
    }

    /// The reference counts of the frames of a block.
    pub(super) fn block_references(self, block: u32) -> &'static [Cell<u32>] {
        assert!(block < self.count, "block {block} is beyond RAM");
        // SAFETY: as for `references`; a block's counts lie side by side.
        unsafe {
            core::slice::from_raw_parts(
                self.references.add((block * BLOCK_FRAMES) as usize).cast::<Cell<u32>>(),
                BLOCK_FRAMES as usize,
            )
        }
    }

    fn words(self, set: Set) -> &'static [Cell<u64>] {
        let words = self.count.div_ceil(64) as usize;
        // SAFETY: the four bitmaps lie side by side in RAM; only reached as Cells, by one thread.
        unsafe { core::slice::from_raw_parts(self.sets.add(set as usize * words).cast::<Cell<u64>>(), words) }
    }

    /// Puts a block into a set or takes it out. Gives whether that changed anything.
    pub(super) fn put(self, set: Set, block: u32, member: bool) -> bool {
        let word = &self.words(set)[block as usize / 64];
        let bit = 1 << (block % 64);
        let old = word.get();
        let new = if member { old | bit } else { old & !bit };
        if new != old {
            word.set(new);
        }
        new != old
    }

    /// The lowest member of a set that is at least `from`.
    pub(super) fn first(self, set: Set, from: u32) -> Option<u32> {
        let words = self.words(set);
        let mut index = from as usize / 64;
        let mut bits = words.get(index)?.get() & (u64::MAX << (from % 64));
        loop {
            if bits != 0 {
                return Some(index as u32 * 64 + bits.trailing_zeros());
            }
            index += 1;
            bits = words.get(index)?.get();
        }
    }

    /// The highest member of a set.
    pub(super) fn last(self, set: Set) -> Option<u32> {
        let words = self.words(set);
        let index = words.iter().rposition(|w| w.get() != 0)?;
        Some(index as u32 * 64 + 63 - words[index].get().leading_zeros())
    }

    /// Puts a block into the sets where it belongs. Gives whether it has just become free and dirty, or stopped being so.
    pub(super) fn sort(self, block: u32) -> i32 {
        let (count, has_run, dirty) = self.with(block, |b| {
            let partial = b.count > 0 && b.count < BLOCK_FRAMES;
            (
                b.count,
                partial && b.used.iter().any(|w| runs(!w, 4) != 0),
                b.count == 0 && b.dirty.iter().any(|w| *w != 0),
            )
        });
        self.put(Set::Partial, block, count > 0 && count < BLOCK_FRAMES);
        self.put(Set::PartialWithRun, block, has_run);
        self.put(Set::FreeClean, block, count == 0 && !dirty);
        match (self.put(Set::FreeDirty, block, dirty), dirty) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => -1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn the_host_is_asked_once_for_each_piece() {
        let mut block = Block { used: [0; WORDS], dirty: [0; WORDS], count: 0, backed: 0 };
        let mut back = |first, order, piece| block.back(first, order, piece).collect::<Vec<_>>();
        assert_eq!(back(85, 0, 16), [(80, 16)]);
        assert_eq!(back(80, 4, 64), []);
        assert_eq!(back(64, 0, 64), [(64, 16), (96, 32)]);
        assert_eq!(back(511, 0, 64), [(448, 64)]);
        assert_eq!(back(0, 9, 64), [(0, 64), (128, 320)]);
        assert_eq!(back(0, 9, 64), []);
        block.forget();
        assert_eq!(block.back(0, 9, 16).collect::<Vec<_>>(), [(0, 512)]);
    }
}

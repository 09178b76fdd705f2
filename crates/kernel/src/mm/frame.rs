//! Frames of RAM with a reference count: anonymous memory, page cache of tmpfs, pipe buffers, the kernel's own heap.
//!
//! RAM is taken from the bottom up and freed memory is used again before memory that was never touched, so that what
//! the host has to back stays small. The host is asked to back it in pieces of 64 KiB to 1 MiB before the first frame of
//! one is given out: that exit costs as much as three first touches, and where the neighbours are there, a software KVM
//! maps eight pages at a time. A frame that was never given out is known to be zero; a freed one is zeroed when it is given out
//! again. Whole free blocks beyond [`KEEP_FREE_BLOCKS`] go back to the host.

use super::addr::{Gpa, PAGE_BYTES};
pub(crate) use super::metadata::{BLOCK_FRAMES, Pfn};
use super::metadata::{Block, Blocks, LANE_FRAMES, Set};
use super::{phys, tlb};
use core::cell::Cell;
use core::marker::PhantomData;
use core::num::NonZeroU32;

/// Frames in the run that sparse memory is mapped by: 64 KiB.
pub(crate) const RUN_FRAMES: u32 = 16;
const RUN_ORDER: u32 = 4;
const BLOCK_ORDER: u32 = 9;

/// Free 2 MiB blocks that stay backed by the host, for programs that map and unmap the same amount again and again.
/// When there are more, half of them are given back.
const KEEP_FREE_BLOCKS: u32 = 32;

/// How many frames the host is asked to back at a time where `used` are in use: what a VM is given ahead is not to be much
/// of what it has. A whole block is a large page of the host's, which costs as much as fifty small ones.
const fn piece_frames(used: u64, whole_block: bool) -> u32 {
    match used {
        0..384 => LANE_FRAMES,
        _ if whole_block => BLOCK_FRAMES,
        384..2048 => 4 * LANE_FRAMES,
        _ => 16 * LANE_FRAMES,
    }
}

/// There is no frame left, or the VM's limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

impl From<NoMemory> for crate::errno::Errno {
    fn from(_: NoMemory) -> Self {
        crate::errno::Errno::ENOMEM
    }
}

/// What a new frame holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Zeros.
    Zeroed,
    /// Anything, also what another program left: the caller overwrites all of it.
    Any,
}

struct Ram {
    blocks: Cell<Option<Blocks>>,
    /// The lowest block that was never used.
    next_virgin: Cell<u32>,
    free_dirty: Cell<u32>,
    used_frames: Cell<u64>,
    /// Those of them that are the kernel's heap.
    kernel_frames: Cell<u64>,
    /// Those that are content of files and shared memory.
    shared_frames: Cell<u64>,
    peak_frames: Cell<u64>,
    limit_frames: Cell<u64>,
    /// See [`beyond_limit`]: 0, or a higher limit than that.
    lent_limit_frames: Cell<u64>,
    /// See [`prefer_large_pages`].
    prefers_large_pages: Cell<bool>,
}

crate::global! {
    static RAM: Ram = Ram {
        blocks: Cell::new(None),
        next_virgin: Cell::new(0),
        free_dirty: Cell::new(0),
        used_frames: Cell::new(0),
        kernel_frames: Cell::new(0),
        shared_frames: Cell::new(0),
        peak_frames: Cell::new(0),
        limit_frames: Cell::new(0),
        lent_limit_frames: Cell::new(0),
        prefers_large_pages: Cell::new(false),
    };
}

/// Takes over RAM from `first` (2 MiB aligned) on.
pub(super) fn init(blocks: Blocks, first: Gpa, limit_bytes: u64) {
    RAM.with(|ram| {
        ram.blocks.set(Some(blocks));
        ram.next_virgin.set((first.0 / PAGE_BYTES) as u32 / BLOCK_FRAMES);
        ram.free_dirty.set(0);
        ram.used_frames.set(0);
        ram.kernel_frames.set(0);
        ram.shared_frames.set(0);
        ram.peak_frames.set(0);
        ram.limit_frames.set(limit_bytes / PAGE_BYTES);
    });
}

/// From now on a VM that is no longer small is given memory in large pages of the host's. For one that many others are to
/// be made from, each page that it does not need would cost each of them.
pub fn prefer_large_pages() {
    RAM.with(|ram| ram.prefers_large_pages.set(true));
}

/// Whether [`super::init`] has been called.
pub(super) fn is_ready() -> bool {
    RAM.with(|ram| ram.blocks.get().is_some())
}

/// Hosted, tests need no [`super::init`]: they get 1 GiB of address space with a limit of 256 MiB.
#[cfg(feature = "hosted")]
pub(super) fn ensure_ready() {
    if !is_ready() {
        super::layout::init_hosted(1 << 30, 256 << 20);
    }
}

/// In the guest, memory is there before anything asks for it.
#[cfg(not(feature = "hosted"))]
pub(super) fn ensure_ready() {}

fn with_ram<R>(f: impl FnOnce(&Ram, Blocks) -> R) -> R {
    ensure_ready();
    RAM.with(|ram| f(ram, ram.blocks.get().expect("mm::init comes first")))
}

impl Ram {
    fn charge(&self, frames: u64) -> Result<(), NoMemory> {
        if self.used_frames.get() + frames > self.limit_frames.get().max(self.lent_limit_frames.get()) {
            return Err(NoMemory);
        }
        self.charge_anyway(frames);
        Ok(())
    }

    fn charge_anyway(&self, frames: u64) {
        let used = self.used_frames.get() + frames;
        self.used_frames.set(used);
        self.peak_frames.set(self.peak_frames.get().max(used));
    }

    fn charge_kernel(&self, frames: u64) {
        self.charge_anyway(frames);
        self.kernel_frames.set(self.kernel_frames.get() + frames);
    }

    fn sort(&self, blocks: Blocks, block: u32) {
        let free_dirty = self.free_dirty.get().wrapping_add_signed(blocks.sort(block));
        self.free_dirty.set(free_dirty);
    }

    /// A block that is wholly free, backed ones first.
    fn free_block(&self, blocks: Blocks) -> Option<u32> {
        if let Some(block) = blocks.first(Set::FreeDirty, 0).or_else(|| blocks.first(Set::FreeClean, 0)) {
            return Some(block);
        }
        let block = self.next_virgin.get();
        (block < blocks.count()).then(|| {
            self.next_virgin.set(block + 1);
            block
        })
    }

    /// Takes a run of `2^order` frames, uncharged, each with one reference.
    fn take(&self, blocks: Blocks, order: u32, content: Content) -> Option<Pfn> {
        let (block, first) = self.find(blocks, order)?;
        blocks.with(block, |b| {
            let piece = piece_frames(self.used_frames.get(), self.prefers_large_pages.get() && !b.is_backed());
            for (start, frames) in b.back(first, order, piece) {
                tlb::populate(gpa(block * BLOCK_FRAMES + start), u64::from(frames) * PAGE_BYTES);
            }
            if b.take(first, order) && content == Content::Zeroed {
                zero_dirty(b, block * BLOCK_FRAMES, first, order);
            }
            b.soil(first, order);
        });
        let pfn = block * BLOCK_FRAMES + first;
        for reference in &blocks.block_references(block)[first as usize..(first + (1 << order)) as usize] {
            reference.set(1);
        }
        self.sort(blocks, block);
        Some(pfn)
    }

    fn find(&self, blocks: Blocks, order: u32) -> Option<(u32, u32)> {
        if order < BLOCK_ORDER {
            let set = if order == 0 { Set::Partial } else { Set::PartialWithRun };
            // Runs of more than 64 KiB may not be in every such block: some tries, then a whole block.
            let mut block = blocks.first(set, 0);
            for _ in 0..8 {
                let Some(at) = block else { break };
                if let Some(first) = blocks.with(at, |b| b.find(order)) {
                    return Some((at, first));
                }
                block = blocks.first(set, at + 1);
            }
        }
        self.free_block(blocks).map(|block| (block, 0))
    }

    fn give(&self, blocks: Blocks, pfn: Pfn, order: u32) {
        blocks.with(pfn / BLOCK_FRAMES, |b| b.give(pfn % BLOCK_FRAMES, order));
        self.sort(blocks, pfn / BLOCK_FRAMES);
        self.used_frames.set(self.used_frames.get() - (1 << order));
        if self.free_dirty.get() > KEEP_FREE_BLOCKS {
            self.trim(blocks, KEEP_FREE_BLOCKS / 2);
        }
    }

    /// Gives free blocks back to the host until `keep` are left, from the top down, neighbours together.
    fn trim(&self, blocks: Blocks, keep: u32) {
        while self.free_dirty.get() > keep {
            let Some(last) = blocks.last(Set::FreeDirty) else { break };
            let mut first = last;
            loop {
                blocks.with(first, Block::forget);
                self.sort(blocks, first);
                if self.free_dirty.get() <= keep || blocks.last(Set::FreeDirty) != first.checked_sub(1) {
                    break;
                }
                first -= 1;
            }
            let block_bytes = u64::from(BLOCK_FRAMES) * PAGE_BYTES;
            tlb::discard(gpa(first * BLOCK_FRAMES), u64::from(last - first + 1) * block_bytes);
        }
    }
}

/// Zeroes those frames of a run that may hold something, neighbours together.
fn zero_dirty(block: &Block, base: Pfn, first: u32, order: u32) {
    let end = first + (1 << order);
    let mut at = first;
    while at < end {
        let start = at;
        while at < end && block.is_dirty(at) {
            at += 1;
        }
        if at > start {
            // SAFETY: frames that were just taken from the free ones: nobody else knows them yet.
            unsafe { phys::zero(gpa(base + start), ((at - start) as usize) * PAGE_BYTES as usize) };
        }
        at += 1;
    }
}

/// Guest-physical address of a frame.
pub(crate) const fn gpa(pfn: Pfn) -> Gpa {
    Gpa(pfn as u64 * PAGE_BYTES)
}

/// A frame with one reference, charged to the limit.
pub(crate) fn allocate(content: Content) -> Result<Pfn, NoMemory> {
    allocate_order(0, content)
}

/// 16 frames side by side, aligned, each with one reference, charged to the limit.
pub(crate) fn allocate_run(content: Content) -> Result<Pfn, NoMemory> {
    allocate_order(RUN_ORDER, content)
}

/// 512 zeroed frames side by side, aligned, each with one reference, charged to the limit.
pub(crate) fn allocate_block() -> Result<Pfn, NoMemory> {
    allocate_order(BLOCK_ORDER, Content::Zeroed)
}

fn allocate_order(order: u32, content: Content) -> Result<Pfn, NoMemory> {
    with_ram(|ram, blocks| {
        ram.charge(1 << order)?;
        ram.take(blocks, order, content).ok_or_else(|| {
            ram.used_frames.set(ram.used_frames.get() - (1 << order));
            NoMemory
        })
    })
}

/// For the kernel itself: `2^order` frames (at most a block), counted but not stopped by the limit: RAM is larger, and the
/// kernel can't go on without memory. See [`kernel_exceeds`].
pub(super) fn allocate_kernel(order: u32) -> Option<Pfn> {
    with_ram(|ram, blocks| {
        let pfn = ram.take(blocks, order, Content::Any)?;
        ram.charge_kernel(1 << order);
        Some(pfn)
    })
}

/// For the kernel itself: `count` whole blocks side by side, from memory that was never used.
pub(super) fn allocate_kernel_blocks(count: u32) -> Option<Pfn> {
    with_ram(|ram, blocks| {
        let first = contiguous_free(ram, blocks, count)?;
        for block in first..first + count {
            blocks.with(block, |b| {
                for (start, frames) in b.back(0, BLOCK_ORDER, BLOCK_FRAMES) {
                    tlb::populate(gpa(block * BLOCK_FRAMES + start), u64::from(frames) * PAGE_BYTES);
                }
                b.take(0, BLOCK_ORDER);
                b.soil(0, BLOCK_ORDER);
            });
            ram.sort(blocks, block);
        }
        ram.charge_kernel(u64::from(count) * u64::from(BLOCK_FRAMES));
        Some(first * BLOCK_FRAMES)
    })
}

fn contiguous_free(ram: &Ram, blocks: Blocks, count: u32) -> Option<u32> {
    let (mut start, mut length) = (0, 0);
    let mut from = 0;
    loop {
        let next = [Set::FreeDirty, Set::FreeClean].iter().filter_map(|set| blocks.first(*set, from)).min();
        let Some(block) = next else { break };
        if length == 0 || block != start + length {
            (start, length) = (block, 0);
        }
        length += 1;
        if length == count {
            return Some(start);
        }
        from = block + 1;
    }
    let virgin = ram.next_virgin.get();
    let end = virgin.checked_add(count).filter(|end| *end <= blocks.count())?;
    ram.next_virgin.set(end);
    Some(virgin)
}

/// Gives back what [`allocate_kernel`] gave.
pub(super) fn free_kernel(pfn: Pfn, order: u32) {
    with_ram(|ram, blocks| {
        ram.give(blocks, pfn, order);
        ram.kernel_frames.set(ram.kernel_frames.get() - (1 << order));
    });
}

/// Tells that so many frames have become content of files and shared memory, or (below zero) are it no longer.
pub(crate) fn count_shared(change: i64) {
    with_ram(|ram, _| ram.shared_frames.set(ram.shared_frames.get().saturating_add_signed(change)));
}

/// Frames of the kernel's heap.
pub(crate) fn kernel_pages() -> u64 {
    with_ram(|ram, _| ram.kernel_frames.get())
}

/// Whether the kernel has taken so much that more than the limit and a reserve of a sixteenth is in use: what programs are
/// refused at the limit leaves the kernel that much to work with.
pub(crate) fn kernel_exceeds() -> bool {
    with_ram(|ram, _| {
        let limit = ram.limit_frames.get();
        ram.used_frames.get() > limit + limit / 16
    })
}

/// Whether more than the limit is in use.
pub(crate) fn limit_exceeded() -> bool {
    with_ram(|ram, _| ram.used_frames.get() > ram.limit_frames.get())
}

/// Lets `f` take so many frames although the limit is reached, of the reserve that [`kernel_exceeds`] leaves.
pub(crate) fn beyond_limit<R>(frames: u64, f: impl FnOnce() -> R) -> R {
    let lend = |limit| with_ram(|ram, _| ram.lent_limit_frames.set(limit));
    if !kernel_exceeds() {
        lend(with_ram(|ram, _| ram.used_frames.get()) + frames);
    }
    let result = f();
    lend(0);
    result
}

/// The word that the kernel heap may use for a frame of its own (which has no reference count).
pub(super) fn kernel_word(pfn: Pfn) -> &'static Cell<u32> {
    with_ram(|_, blocks| blocks.references(pfn))
}

/// One more reference to a frame.
pub(crate) fn retain(pfn: Pfn) {
    with_ram(|_, blocks| {
        let references = blocks.references(pfn);
        references.set(references.get() + 1);
    });
}

/// One reference less; frees the frame with the last.
pub(crate) fn release(pfn: Pfn) {
    with_ram(|ram, blocks| {
        let references = blocks.references(pfn);
        let left = references.get() - 1;
        references.set(left);
        if left == 0 {
            ram.give(blocks, pfn, 0);
        }
    });
}

/// One more reference to each frame of a block.
pub(crate) fn retain_block(pfn: Pfn) {
    with_ram(|_, blocks| {
        for references in blocks.block_references(pfn / BLOCK_FRAMES) {
            references.set(references.get() + 1);
        }
    });
}

/// One reference less to each frame of a block.
pub(crate) fn release_block(pfn: Pfn) {
    let all_ours = block_is_exclusive(pfn);
    if !all_ours {
        (pfn..pfn + BLOCK_FRAMES).for_each(release);
        return;
    }
    with_ram(|ram, blocks| {
        for references in blocks.block_references(pfn / BLOCK_FRAMES) {
            references.set(0);
        }
        ram.give(blocks, pfn, BLOCK_ORDER);
    });
}

/// How many references a frame has.
pub(crate) fn references(pfn: Pfn) -> u32 {
    with_ram(|_, blocks| blocks.references(pfn).get())
}

/// Whether each frame of a block has exactly one reference.
pub(crate) fn block_is_exclusive(pfn: Pfn) -> bool {
    with_ram(|_, blocks| blocks.block_references(pfn / BLOCK_FRAMES).iter().all(|r| r.get() == 1))
}

/// Charges one page table to the limit.
pub(super) fn charge_table() -> Result<(), NoMemory> {
    with_ram(|ram, _| ram.charge(1))
}

/// Takes the charge of a page table back.
pub(super) fn uncharge_table() {
    with_ram(|ram, _| ram.used_frames.set(ram.used_frames.get() - 1));
}

/// Gives all wholly free blocks back to the host: for a VM that goes idle.
pub fn trim() {
    with_ram(|ram, blocks| ram.trim(blocks, 0));
}

/// How much memory there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What the VM may use.
    pub limit_bytes: u64,
    /// What is given out: programs' memory, files in tmpfs, page tables, the kernel's heap and stacks.
    pub used_bytes: u64,
    /// The part of it that is the kernel's heap.
    pub kernel_bytes: u64,
    /// The part of it that is content of files and shared memory.
    pub shared_bytes: u64,
    /// The most that was ever given out at a time.
    pub peak_bytes: u64,
}

impl Usage {
    /// What may still be given out.
    #[must_use]
    pub const fn free_bytes(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes)
    }
}

/// How much memory there is.
#[must_use]
pub fn usage() -> Usage {
    with_ram(|ram, _| Usage {
        limit_bytes: ram.limit_frames.get() * PAGE_BYTES,
        used_bytes: ram.used_frames.get() * PAGE_BYTES,
        kernel_bytes: ram.kernel_frames.get() * PAGE_BYTES,
        shared_bytes: ram.shared_frames.get() * PAGE_BYTES,
        peak_bytes: ram.peak_frames.get() * PAGE_BYTES,
    })
}

/// Calls `f` with start and length in bytes of every piece of RAM that is free but may hold something: what a snapshot
/// leaves out.
pub fn each_free_dirty(mut f: impl FnMut(Gpa, u64)) {
    with_ram(|ram, blocks| {
        let mut start: Option<Pfn> = None;
        for block in 0..=ram.next_virgin.get() {
            // One block further than there are: ends the last piece.
            let free = if block < ram.next_virgin.get() {
                blocks.with(block, |b| core::array::from_fn(|i| !b.used[i] & b.dirty[i]))
            } else {
                [0; 8]
            };
            for frame in 0..BLOCK_FRAMES {
                let pfn = block * BLOCK_FRAMES + frame;
                match (free[frame as usize / 64] >> (frame % 64) & 1 == 1, start) {
                    (true, None) => start = Some(pfn),
                    (false, Some(first)) => {
                        f(gpa(first), u64::from(pfn - first) * PAGE_BYTES);
                        start = None;
                    }
                    _ => {}
                }
            }
        }
    });
}

/// A 4 KiB frame. Cloning shares it; the last drop frees it.
pub struct Frame(NonZeroU32, PhantomData<*mut u8>);

impl Clone for Frame {
    fn clone(&self) -> Self {
        retain(self.0.get());
        Self(self.0, PhantomData)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        release(self.0.get());
    }
}

impl Frame {
    /// A zeroed frame, charged to the VM's limit.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn zeroed() -> Result<Self, NoMemory> {
        allocate(Content::Zeroed).map(Self::from_reference)
    }

    /// Takes over one reference to a frame.
    pub(crate) fn from_reference(pfn: Pfn) -> Self {
        Self(NonZeroU32::new(pfn).expect("frame 0 is never given out"), PhantomData)
    }

    /// Gives the reference to the caller, who releases it.
    pub(crate) fn into_reference(self) -> Pfn {
        let pfn = self.0.get();
        core::mem::forget(self);
        pfn
    }

    /// Guest-physical address.
    #[must_use]
    pub const fn gpa(&self) -> Gpa {
        gpa(self.0.get())
    }

    /// Copies out of the frame; `offset + dst.len()` is at most 4096.
    pub fn read(&self, offset: usize, dst: &mut [u8]) {
        assert!(offset + dst.len() <= PAGE_BYTES as usize, "beyond the frame");
        // SAFETY: the range lies in the frame (checked), which we hold; `dst` is Rust memory that never overlaps frames
        // that are given out to others.
        unsafe { core::ptr::copy_nonoverlapping(phys::pointer(self.gpa()).add(offset), dst.as_mut_ptr(), dst.len()) };
    }

    /// Copies into the frame; `offset + src.len()` is at most 4096.
    pub fn write(&self, offset: usize, src: &[u8]) {
        assert!(offset + src.len() <= PAGE_BYTES as usize, "beyond the frame");
        // SAFETY: as for `read`.
        unsafe { core::ptr::copy_nonoverlapping(src.as_ptr(), phys::pointer(self.gpa()).add(offset), src.len()) };
    }

    /// How many hold the frame, mappings included.
    #[must_use]
    pub fn references(&self) -> usize {
        references(self.0.get()) as usize
    }

    /// Whether both are the same frame.
    #[must_use]
    pub fn same(&self, other: &Frame) -> bool {
        self.0 == other.0
    }
}

/// Hosted: gives the calling thread's tests a fresh RAM of `ram_bytes` with the given limit.
#[cfg(feature = "hosted")]
pub fn reset_hosted(ram_bytes: u64, limit_bytes: u64) {
    super::layout::init_hosted(ram_bytes, limit_bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn free_dirty_bytes() -> u64 {
        let mut sum = 0;
        each_free_dirty(|_, bytes| sum += bytes);
        sum
    }

    #[test]
    fn free_blocks_beyond_some_go_back_to_the_host_and_come_again_as_zeros() {
        const BLOCK_BYTES: u64 = BLOCK_FRAMES as u64 * PAGE_BYTES;
        reset_hosted(256 << 20, 128 << 20);
        let blocks: Vec<Pfn> = (0..50).map(|_| allocate_block().expect("enough memory")).collect();
        for pfn in &blocks {
            // SAFETY: our own frame.
            unsafe { phys::pointer(gpa(*pfn)).write(7) };
        }
        assert_eq!(free_dirty_bytes(), 0);
        blocks.iter().for_each(|pfn| release_block(*pfn));
        assert!(free_dirty_bytes() <= u64::from(KEEP_FREE_BLOCKS) * BLOCK_BYTES);
        assert!(free_dirty_bytes() >= u64::from(KEEP_FREE_BLOCKS / 2) * BLOCK_BYTES);
        let again: Vec<Pfn> = (0..50).map(|_| allocate_block().expect("enough memory")).collect();
        for pfn in &again {
            // SAFETY: our own frame.
            assert_eq!(unsafe { phys::pointer(gpa(*pfn)).read() }, 0);
        }
        assert!(again.iter().max() <= blocks.iter().max(), "used memory first");
        again.iter().for_each(|pfn| release_block(*pfn));
        trim();
        assert_eq!((free_dirty_bytes(), usage().used_bytes), (0, 0));
        assert_eq!(usage().peak_bytes, 50 * BLOCK_BYTES);
    }

    #[test]
    fn single_frames_fill_started_pieces_and_sharing_counts() {
        reset_hosted(64 << 20, 32 << 20);
        let run = allocate_run(Content::Zeroed).expect("enough memory");
        let frame = Frame::zeroed().expect("enough memory");
        let next = Frame::zeroed().expect("enough memory");
        assert_eq!(next.gpa().0, frame.gpa().0 + PAGE_BYTES);
        assert_eq!(run % RUN_FRAMES, 0);
        let other = frame.clone();
        other.write(4090, b"shared");
        let mut bytes = [0; 6];
        frame.read(4090, &mut bytes);
        assert_eq!((&bytes, frame.references(), frame.same(&other)), (b"shared", 2, true));
        let place = frame.gpa();
        drop(frame);
        drop(other);
        let again = Frame::zeroed().expect("enough memory");
        again.read(4090, &mut bytes);
        assert_eq!((again.gpa(), bytes), (place, [0; 6]), "used again, without what was in it");
        (run..run + RUN_FRAMES).for_each(release);
        drop((next, again));
        assert_eq!(usage().used_bytes, 0);
    }

    #[test]
    fn the_limit_stops_programs_but_not_the_kernel() {
        reset_hosted(64 << 20, 16 << 20);
        let frames: Vec<Frame> = core::iter::from_fn(|| Frame::zeroed().ok()).collect();
        assert_eq!(frames.len(), 4096);
        assert_eq!(allocate_block(), Err(NoMemory));
        let ours = allocate_kernel(3).expect("RAM is larger than the limit");
        assert_eq!((usage().free_bytes(), kernel_pages(), kernel_exceeds()), (0, 8, false));
        let more = allocate_kernel(8).expect("RAM is larger than the limit");
        assert!(kernel_exceeds());
        free_kernel(ours, 3);
        free_kernel(more, 8);
        assert_eq!((kernel_pages(), kernel_exceeds()), (0, false));
    }
}

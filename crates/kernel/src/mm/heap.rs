//! The kernel heap: size classes in 4 KiB pages, larger pieces as runs of frames.
//!
//! What is known of a page (its class, how many objects are in use, its free list) is kept in the word of the frame
//! metadata that holds a reference count for other frames, so a page is all objects and pointers need no header. Pages
//! that become empty go back to the frame allocator. Before [`super::init`] a small static area serves.

use super::addr::{Gpa, PAGE_BYTES};
use super::frame::{self, BLOCK_FRAMES, Pfn};
use super::phys;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::{Cell, UnsafeCell};
use core::ptr::null_mut;

const PAGE: usize = PAGE_BYTES as usize;

/// Sizes of objects; all multiples of 16.
const CLASSES: [usize; 21] =
    [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024, 1344, 2048];
/// No object.
const NONE: u32 = 0x1ff;
/// Serves the allocations before RAM is taken over; what is freed of it is not used again.
const EARLY_BYTES: usize = 64 << 10;

/// Objects in a page of a class.
const fn capacity(class: usize) -> u32 {
    (PAGE / CLASSES[class]) as u32
}

/// What is known of a page; packed into 32 bits.
#[derive(Clone, Copy)]
struct Slab {
    class: usize,
    /// Objects that are given out.
    in_use: u32,
    /// First free object.
    head: u32,
    /// In the page that objects are taken from: the first object that was never given out. In a page of the list of
    /// pages with free objects: the last object of its free list, which holds the list's links.
    mark: u32,
}

impl Slab {
    const fn pack(self) -> u32 {
        (self.class as u32) << 27 | self.in_use << 18 | self.head << 9 | self.mark
    }

    const fn unpack(word: u32) -> Self {
        Self { class: (word >> 27) as usize, in_use: word >> 18 & 0x1ff, head: word >> 9 & 0x1ff, mark: word & 0x1ff }
    }
}

/// What lies in a free object: the next free object of its page, and in the last one the page's neighbours in the list.
#[derive(Clone, Copy)]
#[repr(C)]
struct FreeObject {
    next: u32,
    previous_page: Pfn,
    next_page: Pfn,
}

#[repr(C, align(16))]
struct EarlyArea(UnsafeCell<[u8; EARLY_BYTES]>);

/// The kernel's global allocator.
pub struct KernelHeap {
    early: EarlyArea,
    early_used: Cell<usize>,
    /// Per class, the page that objects are taken from; 0 is none.
    current: [Cell<Pfn>; CLASSES.len()],
    /// Per class, the first page of the list of other pages with free objects.
    partial: [Cell<Pfn>; CLASSES.len()],
}

// SAFETY: one virtual CPU, and the kernel is not preempted; see `crate::sync::Global`.
unsafe impl Sync for KernelHeap {}

fn class_of(layout: &Layout) -> Option<usize> {
    let size = layout.size().max(layout.align());
    let first = CLASSES.iter().position(|class| *class >= size)?;
    (first..CLASSES.len()).find(|class| CLASSES[*class].is_multiple_of(layout.align()))
}

/// For what is larger than a class: the order of a run of frames, or the number of blocks.
enum Run {
    Order(u32),
    Blocks(u32),
}

fn run_of(layout: &Layout) -> Option<Run> {
    let frames = layout.size().max(layout.align()).div_ceil(PAGE);
    if frames <= BLOCK_FRAMES as usize {
        return Some(Run::Order(frames.next_power_of_two().trailing_zeros()));
    }
    let blocks = u32::try_from(frames.div_ceil(BLOCK_FRAMES as usize)).ok()?;
    (layout.align() <= PAGE * BLOCK_FRAMES as usize).then_some(Run::Blocks(blocks))
}

fn object(pfn: Pfn, class: usize, index: u32) -> *mut FreeObject {
    phys::pointer(Gpa(u64::from(pfn) * PAGE_BYTES + u64::from(index) * CLASSES[class] as u64)).cast()
}

impl KernelHeap {
    /// An empty heap.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "there is one, a static")]
    pub const fn new() -> Self {
        Self {
            early: EarlyArea(UnsafeCell::new([0; EARLY_BYTES])),
            early_used: Cell::new(0),
            current: [const { Cell::new(0) }; CLASSES.len()],
            partial: [const { Cell::new(0) }; CLASSES.len()],
        }
    }

    fn allocate_early(&self, layout: &Layout) -> *mut u8 {
        let base = self.early.0.get().cast::<u8>();
        let start = (base as usize + self.early_used.get()).next_multiple_of(layout.align()) - base as usize;
        match start.checked_add(layout.size()).filter(|end| *end <= EARLY_BYTES) {
            Some(end) => {
                self.early_used.set(end);
                base.wrapping_add(start)
            }
            None => null_mut(),
        }
    }

    fn is_early(&self, pointer: *mut u8) -> bool {
        (pointer as usize).wrapping_sub(self.early.0.get() as usize) < EARLY_BYTES
    }

    fn allocate_object(&self, class: usize) -> *mut u8 {
        let mut pfn = self.current[class].get();
        if pfn == 0 || Slab::unpack(frame::kernel_word(pfn).get()).in_use == capacity(class) {
            let Some(next) = self.take_partial(class).or_else(|| Self::new_page(class)) else { return null_mut() };
            self.current[class].set(next);
            pfn = next;
        }
        let word = frame::kernel_word(pfn);
        let mut slab = Slab::unpack(word.get());
        let index = if slab.head == NONE {
            slab.mark += 1;
            slab.mark - 1
        } else {
            let index = slab.head;
            // SAFETY: a free object of our page: its first bytes hold what `free_object` wrote.
            slab.head = unsafe { (*object(pfn, class, index)).next };
            index
        };
        slab.in_use += 1;
        word.set(slab.pack());
        object(pfn, class, index).cast()
    }

    fn new_page(class: usize) -> Option<Pfn> {
        let pfn = frame::allocate_kernel(0)?;
        frame::kernel_word(pfn).set(Slab { class, in_use: 0, head: NONE, mark: 0 }.pack());
        Some(pfn)
    }

    /// Takes the first page from the list of those with free objects. All its free objects are in its free list.
    fn take_partial(&self, class: usize) -> Option<Pfn> {
        let pfn = self.partial[class].get();
        if pfn == 0 {
            return None;
        }
        self.unlink(pfn, class);
        let word = frame::kernel_word(pfn);
        let mut slab = Slab::unpack(word.get());
        slab.mark = capacity(class);
        word.set(slab.pack());
        Some(pfn)
    }

    fn links(pfn: Pfn, class: usize) -> *mut FreeObject {
        object(pfn, class, Slab::unpack(frame::kernel_word(pfn).get()).mark)
    }

    fn link(&self, pfn: Pfn, class: usize) {
        let first = self.partial[class].replace(pfn);
        // SAFETY: both pages are in the list (this one from now on), so their marks name free objects of ours.
        unsafe {
            (*Self::links(pfn, class)).previous_page = 0;
            (*Self::links(pfn, class)).next_page = first;
            if first != 0 {
                (*Self::links(first, class)).previous_page = pfn;
            }
        }
    }

    fn unlink(&self, pfn: Pfn, class: usize) {
        // SAFETY: all three pages are in the list; see `link`.
        unsafe {
            let FreeObject { previous_page, next_page, .. } = *Self::links(pfn, class);
            if previous_page == 0 {
                self.partial[class].set(next_page);
            } else {
                (*Self::links(previous_page, class)).next_page = next_page;
            }
            if next_page != 0 {
                (*Self::links(next_page, class)).previous_page = previous_page;
            }
        }
    }

    fn free_object(&self, pointer: *mut u8, class: usize) {
        let gpa = phys::gpa_of(pointer);
        let pfn = (gpa.0 / PAGE_BYTES) as Pfn;
        let index = (gpa.0 % PAGE_BYTES) as u32 / CLASSES[class] as u32;
        let word = frame::kernel_word(pfn);
        let mut slab = Slab::unpack(word.get());
        debug_assert_eq!(slab.class, class, "freed with another layout");
        // SAFETY: the object is free from now on and lies in our page; at least 16 bytes, 16-byte aligned.
        unsafe { (*object(pfn, class, index)).next = slab.head };
        let was_full = slab.in_use == capacity(class);
        let is_current = self.current[class].get() == pfn;
        slab.head = index;
        slab.in_use -= 1;
        if was_full && !is_current {
            slab.mark = index;
        }
        word.set(slab.pack());
        if is_current {
            return;
        }
        if slab.in_use == 0 {
            if !was_full {
                self.unlink(pfn, class);
            }
            frame::free_kernel(pfn, 0);
        } else if was_full {
            self.link(pfn, class);
        }
    }
}

// SAFETY: every pointer given out is to memory of the layout's size and alignment that nothing else uses: objects of a
// page's free list, frames of the frame allocator, or a piece of the early area that was never given out.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !frame::is_ready() {
            return self.allocate_early(&layout);
        }
        if let Some(class) = class_of(&layout) {
            return self.allocate_object(class);
        }
        let pfn = match run_of(&layout) {
            Some(Run::Order(order)) => frame::allocate_kernel(order),
            Some(Run::Blocks(count)) => frame::allocate_kernel_blocks(count),
            None => None,
        };
        pfn.map_or(null_mut(), |pfn| phys::pointer(frame::gpa(pfn)))
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if self.is_early(pointer) {
            return;
        }
        if let Some(class) = class_of(&layout) {
            return self.free_object(pointer, class);
        }
        let pfn = (phys::gpa_of(pointer).0 / PAGE_BYTES) as Pfn;
        match run_of(&layout) {
            Some(Run::Order(order)) => frame::free_kernel(pfn, order),
            Some(Run::Blocks(count)) => {
                for block in 0..count {
                    frame::free_kernel(pfn + block * BLOCK_FRAMES, BLOCK_FRAMES.trailing_zeros());
                }
            }
            None => {}
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `new_size`, rounded up to the alignment, does not overflow.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        let same = match (class_of(&layout), class_of(&new)) {
            (Some(old), Some(new)) => old == new,
            (None, None) => matches!(
                (run_of(&layout), run_of(&new)),
                (Some(Run::Order(old)), Some(Run::Order(new))) if old == new
            ),
            _ => false,
        };
        if same && !self.is_early(pointer) {
            return pointer;
        }
        // SAFETY: as GlobalAlloc::realloc asks for: the old block is valid for its layout, the new one is apart from it.
        unsafe {
            let to = self.alloc(new);
            if !to.is_null() {
                to.copy_from_nonoverlapping(pointer, layout.size().min(new_size));
                self.dealloc(pointer, layout);
            }
            to
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn objects_never_overlap_and_all_memory_comes_back(
            steps in prop::collection::vec((any::<bool>(), 0usize..1000, 0u32..14, 0u32..6), 1..600),
        ) {
            frame::reset_hosted(256 << 20, 64 << 20);
            let heap = KernelHeap::new();
            let mut live: Vec<(*mut u8, Layout, u8)> = Vec::new();
            for (n, (allocate, pick, size, align)) in steps.into_iter().enumerate() {
                if allocate || live.is_empty() {
                    let size = (1usize << size) + pick % (1 << size);
                    let layout = Layout::from_size_align(size, 8 << align).expect("valid");
                    // SAFETY: the layout's size is not zero; the block is written within it.
                    let pointer = unsafe {
                        let pointer = heap.alloc(layout);
                        pointer.write_bytes(n as u8, size);
                        pointer
                    };
                    prop_assert_eq!(pointer as usize % layout.align(), 0);
                    live.push((pointer, layout, n as u8));
                } else {
                    let (pointer, layout, value) = live.swap_remove(pick % live.len());
                    // SAFETY: a live block of this heap.
                    unsafe {
                        for i in 0..layout.size() {
                            prop_assert_eq!(*pointer.add(i), value);
                        }
                        heap.dealloc(pointer, layout);
                    }
                }
            }
            for (pointer, layout, _) in live {
                // SAFETY: as above.
                unsafe { heap.dealloc(pointer, layout) };
            }
            let kept = heap.current.iter().filter(|pfn| pfn.get() != 0).count() as u64;
            prop_assert_eq!(frame::usage().used_bytes, kept * PAGE_BYTES);
        }
    }

    #[test]
    fn large_blocks_grow_and_come_back() {
        frame::reset_hosted(256 << 20, 64 << 20);
        let heap = KernelHeap::new();
        let layout = Layout::from_size_align(5 << 20, 16).expect("valid");
        // SAFETY: a block is used within its layout and freed once.
        unsafe {
            let pointer = heap.alloc(layout);
            pointer.write_bytes(7, layout.size());
            let grown = heap.realloc(pointer, layout, 9 << 20);
            assert_eq!(*grown.add((5 << 20) - 1), 7);
            heap.dealloc(grown, Layout::from_size_align(9 << 20, 16).expect("valid"));
        }
        assert_eq!(frame::usage().used_bytes, 0);
    }
}

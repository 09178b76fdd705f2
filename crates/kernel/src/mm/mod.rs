//! Memory: frames, page tables, address spaces, access to programs' memory.
//!
//! Guest-physical RAM behind the kernel image is laid out by [`init`]:
//! ```text
//! kernel_end   frame metadata: block descriptors, reference counts, sets of blocks, table counts
//!              page tables (a sixty-fourth of RAM, at least 4 MiB): the only place where page tables are, boot's aside
//! 2 MiB aligned: frames
//! ram_bytes
//! ```
//! Metadata starts as zeros and is touched only where frames are in use, so a large RAM costs nothing until used.

pub mod addr;
pub mod frame;
pub mod heap;
mod layout;
mod metadata;
pub mod pages;
pub mod paging;
pub mod phys;
pub mod pte;
pub mod space;
pub mod stack;
pub mod tlb;
pub mod user;

pub use layout::init;

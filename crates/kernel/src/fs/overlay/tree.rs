//! What the nodes of one file system share.

use super::node::Node;
use crate::errno::{Errno, Result};
use crate::fs::device;
use crate::fs::erofs::{self, Erofs, ErofsError};
use crate::fs::inode::{FsStatistics, NewInode};
use crate::mm::addr::{Gpa, PAGE_BYTES};
use crate::mm::frame;
use alloc::rc::{Rc, Weak};
use core::cell::{Cell, RefCell};
use hashbrown::HashMap;

const TMPFS_MAGIC: u64 = 0x0102_1994;
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
/// What a node costs in kernel memory, roughly, with its place in a directory.
pub(super) const NODE_BYTES: u64 = 512;

/// The read-only image under a tree.
#[derive(Clone, Copy)]
pub struct Lower {
    /// Its reader.
    pub erofs: Erofs,
    base: *const u8,
    gpa: Gpa,
}

impl Lower {
    /// The image at `base`, which mappings of its pages find at `gpa`.
    ///
    /// # Errors
    /// What is wrong with the image.
    ///
    /// # Safety
    /// `base..base + len_bytes` must stay mapped and readable until the program ends.
    pub unsafe fn open(base: *const u8, len_bytes: usize, gpa: Gpa) -> core::result::Result<Self, ErofsError> {
        // SAFETY: the caller's promise is the one asked for.
        let image = unsafe { erofs::Image::from_raw(base, len_bytes) };
        Ok(Self { erofs: Erofs::open(image)?, base, gpa })
    }

    /// Where byte `offset_bytes` of the image is in guest-physical memory.
    pub(super) fn gpa(&self, offset_bytes: u64) -> Gpa {
        Gpa(self.gpa.0 + offset_bytes)
    }

    /// Address of byte `offset_bytes`, which the reader has found to be inside the image.
    pub(super) fn address(&self, offset_bytes: u64) -> *const u8 {
        self.base.wrapping_add(offset_bytes as usize)
    }
}

crate::global! {
    /// What was first found wrong with the image.
    static FAULT: Cell<Option<ErofsError>> = Cell::new(None);
}

/// What was first found wrong with the image since the start: damage, or a part of the format that this kernel can't read.
/// Programs see an errno, which they may take for anything; whoever started the VM should hear of it.
#[must_use]
pub fn image_fault() -> Option<ErofsError> {
    FAULT.with(Cell::get)
}

/// The errno for an error of the image's reader. Faults of the image itself are remembered for [`image_fault`].
pub(super) fn image_error(error: ErofsError) -> Errno {
    let asked_wrongly =
        matches!(error, ErofsError::NotDirectory(_) | ErofsError::NotSymlink(_) | ErofsError::XattrListTooLong(_));
    if !asked_wrongly {
        FAULT.with(|fault| fault.set(fault.get().or(Some(error))));
    }
    error.errno()
}

enum Known {
    /// In use, unchanged.
    Used(Weak<Node>),
    /// Changed: kept while it has a name in the image's part of the tree.
    Changed(Rc<Node>),
}

/// Limits of a tree: a tmpfs's `size=` and what its names and attributes may take of kernel memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Data, in pages.
    pub pages: u64,
    /// Nodes, names, attribute values and link targets, in bytes.
    pub metadata_bytes: u64,
}

/// A file system in memory.
pub struct Tree {
    pub(super) dev: u64,
    pub(super) lower: Option<Lower>,
    /// Nodes of the image that exist in memory, by image number.
    known: RefCell<HashMap<u64, Known>>,
    next_ino: Cell<u64>,
    limits: Limits,
    used_pages: Cell<u64>,
    used_metadata_bytes: Cell<u64>,
}

impl Tree {
    /// An empty tmpfs; gives its root directory.
    ///
    /// # Errors
    /// None in practice: a fresh tree has room for its root.
    pub fn tmpfs(limits: Limits, root: &NewInode) -> Result<Rc<Node>> {
        Node::new(&Self::with(None, limits), root)
    }

    /// The tree over an image; gives its root directory.
    ///
    /// # Errors
    /// EUCLEAN if the image is damaged.
    pub fn over(lower: Lower, limits: Limits) -> Result<Rc<Node>> {
        Self::with(Some(lower), limits).image_node(lower.erofs.root_nid())
    }

    fn with(lower: Option<Lower>, limits: Limits) -> Rc<Self> {
        // Numbers of the image are offsets in units of 32 bytes; new ones start behind them.
        let first = lower.map_or(1, |lower| (lower.erofs.image().len_bytes() >> 5) + 1);
        Rc::new(Self {
            dev: device::anonymous(),
            lower,
            known: RefCell::default(),
            next_ino: Cell::new(first),
            limits,
            used_pages: Cell::new(0),
            used_metadata_bytes: Cell::new(0),
        })
    }

    pub(super) fn new_ino(&self) -> u64 {
        let ino = self.next_ino.get();
        self.next_ino.set(ino + 1);
        ino
    }

    /// Takes `bytes` of the room for names and attributes; given back by [`Tree::release_metadata`].
    pub(super) fn charge_metadata(&self, bytes: u64) -> Result<()> {
        let used = self.used_metadata_bytes.get() + bytes;
        if used > self.limits.metadata_bytes {
            return Err(Errno::ENOSPC);
        }
        self.used_metadata_bytes.set(used);
        Ok(())
    }

    /// ENOSPC unless `bytes` could be charged.
    pub(super) fn check_metadata_room(&self, bytes: u64) -> Result<()> {
        if self.used_metadata_bytes.get() + bytes > self.limits.metadata_bytes { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    pub(super) fn release_metadata(&self, bytes: u64) {
        self.used_metadata_bytes.set(self.used_metadata_bytes.get().saturating_sub(bytes));
    }

    pub(super) fn charge_page(&self) -> Result<()> {
        if self.used_pages.get() >= self.limits.pages {
            return Err(Errno::ENOSPC);
        }
        self.used_pages.set(self.used_pages.get() + 1);
        frame::count_shared(1);
        Ok(())
    }

    /// How many pages there is room for, here and in memory.
    pub(super) fn free_pages(&self) -> u64 {
        let room = self.limits.pages.saturating_sub(self.used_pages.get());
        room.min(frame::usage().free_bytes() / PAGE_BYTES)
    }

    pub(super) fn release_pages(&self, pages: u64) {
        self.used_pages.set(self.used_pages.get().saturating_sub(pages));
        frame::count_shared(-pages.cast_signed());
    }

    /// The node with number `nid` of the image.
    pub(super) fn image_node(self: &Rc<Self>, nid: u64) -> Result<Rc<Node>> {
        let known = match self.known.borrow().get(&nid) {
            Some(Known::Used(node)) => node.upgrade(),
            Some(Known::Changed(node)) => Some(Rc::clone(node)),
            None => None,
        };
        if let Some(node) = known {
            return Ok(node);
        }
        let lower = self.lower.as_ref().ok_or(Errno::ENOENT)?;
        let inode = lower.erofs.inode(nid).map_err(image_error)?;
        let node = Node::of_image(self, inode);
        self.known.borrow_mut().insert(nid, Known::Used(Rc::downgrade(&node)));
        Ok(node)
    }

    /// Keeps a node of the image although nobody may use it.
    pub(super) fn keep(&self, node: Rc<Node>) {
        self.known.borrow_mut().insert(node.ino, Known::Changed(node));
    }

    /// Lets a node of the image go with its last user: it has no name any more.
    pub(super) fn let_go(&self, node: &Rc<Node>) {
        let old = self.known.borrow_mut().insert(node.ino, Known::Used(Rc::downgrade(node)));
        drop(old);
    }

    /// A node of the image has ended.
    pub(super) fn ended(&self, ino: u64) {
        let mut known = self.known.borrow_mut();
        if let Some(Known::Used(node)) = known.get(&ino)
            && node.strong_count() == 0
        {
            known.remove(&ino);
        }
    }

    pub(super) fn statistics(&self) -> FsStatistics {
        let image_blocks = self.lower.map_or(0, |lower| lower.erofs.nr_blocks());
        let image_inodes = self.lower.map_or(0, |lower| lower.erofs.nr_inodes());
        let free = self.limits.pages.saturating_sub(self.used_pages.get());
        let metadata_free = self.limits.metadata_bytes.saturating_sub(self.used_metadata_bytes.get());
        FsStatistics {
            magic: if self.lower.is_some() { OVERLAYFS_SUPER_MAGIC } else { TMPFS_MAGIC },
            block_bytes: PAGE_BYTES,
            blocks: image_blocks + self.limits.pages,
            blocks_free: free,
            inodes: image_inodes + self.limits.metadata_bytes / NODE_BYTES,
            inodes_free: metadata_free / NODE_BYTES,
        }
    }
}

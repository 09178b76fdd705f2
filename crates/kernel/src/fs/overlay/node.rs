//! Nodes: the inodes of a tree.

use super::data::Data;
use super::dir::{Dir, ENTRY_BYTES};
use super::tree::{NODE_BYTES, Tree};
use super::xattr::Xattrs;
use crate::errno::{Errno, Result};
use crate::fs::clock;
use crate::fs::erofs;
use crate::fs::inode::{Attachment, FileType, Metadata, NewInode, Timestamp};
use crate::mm::addr::PAGE_BYTES;
use alloc::boxed::Box;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// What a node is beside its attributes.
pub(super) enum Kind {
    Regular(Data),
    Directory(Dir),
    /// The target; `None`: it is in the image.
    Symlink(Option<Box<[u8]>>),
    /// Device number, and the pipe or socket in use.
    Special(u64, Attachment),
}

#[derive(Clone, Copy)]
pub(super) struct Attributes {
    pub(super) file_type: FileType,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) nlink: u32,
    pub(super) atime: Timestamp,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
    pub(super) btime: Option<Timestamp>,
}

/// An inode of a [`Tree`].
pub struct Node {
    this: Weak<Node>,
    pub(super) tree: Rc<Tree>,
    pub(super) ino: u64,
    pub(super) kind: Kind,
    pub(super) attributes: Cell<Attributes>,
    pub(super) xattrs: RefCell<Option<Box<Xattrs>>>,
    /// What it is in the image; `None` for new nodes.
    pub(super) image: Option<Box<erofs::Inode>>,
    /// Differs from the image, and is kept.
    changed: Cell<bool>,
    /// Made by O_TMPFILE: may get its first name from linkat(2).
    pub(super) linkable: Cell<bool>,
}

impl Node {
    /// A new node with no name yet (a directory counts its own `.` and the name it will get).
    pub(super) fn new(tree: &Rc<Tree>, new: &NewInode) -> Result<Rc<Self>> {
        let kind = match new.file_type {
            FileType::Regular => Kind::Regular(Data::empty()),
            FileType::Directory => Kind::Directory(Dir::default()),
            FileType::Symlink => return Err(Errno::EINVAL),
            _ => Kind::Special(new.rdev, Attachment::default()),
        };
        Self::with_kind(tree, new, kind)
    }

    /// A new symbolic link.
    pub(super) fn new_symlink(tree: &Rc<Tree>, new: &NewInode, target: &[u8]) -> Result<Rc<Self>> {
        tree.charge_metadata(target.len() as u64)?;
        let kind = Kind::Symlink(Some(target.into()));
        Self::with_kind(tree, new, kind).inspect_err(|_| tree.release_metadata(target.len() as u64))
    }

    fn with_kind(tree: &Rc<Tree>, new: &NewInode, kind: Kind) -> Result<Rc<Self>> {
        tree.charge_metadata(NODE_BYTES)?;
        let now = clock::now();
        let attributes = Attributes {
            file_type: new.file_type,
            mode: new.mode & 0o7777,
            uid: new.uid,
            gid: new.gid,
            nlink: if new.file_type == FileType::Directory { 2 } else { 1 },
            atime: now,
            mtime: now,
            ctime: now,
            btime: Some(now),
        };
        let ino = tree.new_ino();
        Ok(Rc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            tree: Rc::clone(tree),
            ino,
            kind,
            attributes: Cell::new(attributes),
            xattrs: RefCell::new(None),
            image: None,
            changed: Cell::new(false),
            linkable: Cell::new(false),
        }))
    }

    /// A node of the image.
    pub(super) fn of_image(tree: &Rc<Tree>, inode: erofs::Inode) -> Rc<Self> {
        let file_type = inode.file_type;
        let time = Timestamp { sec: inode.mtime_s, nsec: inode.mtime_ns };
        let kind = match file_type {
            FileType::Regular => Kind::Regular(Data::of_image(inode.size_bytes)),
            FileType::Directory => Kind::Directory(Dir::default()),
            FileType::Symlink => Kind::Symlink(None),
            _ => Kind::Special(u64::from(inode.rdev), Attachment::default()),
        };
        let attributes = Attributes {
            file_type,
            mode: u32::from(inode.mode) & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            nlink: inode.nlink,
            atime: time,
            mtime: time,
            ctime: time,
            btime: None,
        };
        Rc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            tree: Rc::clone(tree),
            ino: inode.nid,
            kind,
            attributes: Cell::new(attributes),
            xattrs: RefCell::new(None),
            image: Some(Box::new(inode)),
            changed: Cell::new(false),
            linkable: Cell::new(false),
        })
    }

    /// This node, counted. `None` only while it is ending.
    pub(super) fn this(&self) -> Option<Rc<Node>> {
        self.this.upgrade()
    }

    /// The node differs from the image from now on, so it is kept while it has a name.
    pub(super) fn mark_changed(&self) {
        if self.image.is_some()
            && !self.changed.replace(true)
            && self.attributes.get().nlink > 0
            && let Some(this) = self.this()
        {
            self.tree.keep(this);
        }
    }

    /// Whether it is new, or differs from the image.
    pub(super) fn is_own(&self) -> bool {
        self.image.is_none() || self.changed.get()
    }

    /// Changes attributes and sets ctime.
    pub(super) fn change(&self, change: impl FnOnce(&mut Attributes, Timestamp)) {
        self.mark_changed();
        let mut attributes = self.attributes.get();
        let now = clock::now();
        attributes.ctime = now;
        change(&mut attributes, now);
        self.attributes.set(attributes);
    }

    /// The data changed: mtime and ctime.
    pub(super) fn modified(&self) {
        self.change(|attributes, now| attributes.mtime = now);
    }

    /// Another name refers to the node.
    pub(super) fn add_link(&self) {
        self.change(|attributes, _| attributes.nlink = attributes.nlink.saturating_add(1));
    }

    /// `names` fewer refer to it: with none left, it ends with its last user.
    pub(super) fn remove_links(&self, names: u32) {
        self.change(|attributes, _| attributes.nlink = attributes.nlink.saturating_sub(names));
        if self.image.is_some()
            && self.attributes.get().nlink == 0
            && let Some(this) = self.this()
        {
            self.tree.let_go(&this);
        }
    }

    pub(super) fn data(&self) -> Result<&Data> {
        match &self.kind {
            Kind::Regular(data) => Ok(data),
            Kind::Directory(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(super) fn dir(&self) -> Result<&Dir> {
        match &self.kind {
            Kind::Directory(dir) => Ok(dir),
            _ => Err(Errno::ENOTDIR),
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory(_))
    }

    pub(super) fn target(&self) -> Result<Vec<u8>> {
        match (&self.kind, &self.image, &self.tree.lower) {
            (Kind::Symlink(Some(target)), ..) => Ok(target.to_vec()),
            (Kind::Symlink(None), Some(image), Some(lower)) => {
                lower.erofs.readlink(image).map_err(super::tree::image_error)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    pub(super) fn stat(&self) -> Metadata {
        let attributes = self.attributes.get();
        let (size, blocks, rdev) = match &self.kind {
            Kind::Regular(data) => (data.size(), data.allocated_pages() * (PAGE_BYTES / 512), 0),
            Kind::Directory(dir) => {
                let own = self.image.as_ref().map_or(2 * ENTRY_BYTES, |image| image.size_bytes);
                (own + dir.added_bytes(), self.image.as_ref().map_or(0, |image| image.nr_sectors()), 0)
            }
            Kind::Symlink(Some(target)) => (target.len() as u64, 0, 0),
            Kind::Symlink(None) => (self.image.as_ref().map_or(0, |image| image.size_bytes), 0, 0),
            Kind::Special(rdev, _) => (0, 0, *rdev),
        };
        Metadata {
            dev: self.tree.dev,
            ino: self.ino,
            file_type: attributes.file_type,
            mode: attributes.mode,
            nlink: attributes.nlink,
            uid: attributes.uid,
            gid: attributes.gid,
            rdev,
            size,
            block_bytes: PAGE_BYTES as u32,
            blocks,
            atime: attributes.atime,
            mtime: attributes.mtime,
            ctime: attributes.ctime,
            btime: attributes.btime,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.image.is_some() {
            self.tree.ended(self.ino);
        } else {
            self.tree.release_metadata(NODE_BYTES);
        }
        match &self.kind {
            Kind::Regular(data) => self.tree.release_pages(data.frames()),
            Kind::Symlink(Some(target)) => self.tree.release_metadata(target.len() as u64),
            Kind::Directory(dir) => {
                // Directories that end with this one are emptied here one by one: a deep tree must not recurse on a
                // kernel stack.
                let mut ending = dir.take_children(&self.tree);
                while let Some(node) = ending.pop() {
                    if Rc::strong_count(&node) == 1
                        && let Kind::Directory(dir) = &node.kind
                    {
                        ending.extend(dir.take_children(&node.tree));
                    }
                }
            }
            _ => {}
        }
        if let Some(xattrs) = self.xattrs.get_mut() {
            self.tree.release_metadata(xattrs.charged_bytes());
        }
    }
}

//! Directories: the image's names, and what differs from them.
//!
//! Positions in a directory: 0 is `.`, 1 is `..`; from 2 on the image's entries by their offset there; from
//! [`ADDED`] on the entries made here, numbered in the order of their making. So a position stays good while names come
//! and go, and a scan sees every name that was there all the time exactly once.

use super::node::Node;
use super::tree::{NODE_BYTES, Tree, image_error};
use crate::errno::{Errno, Result};
use crate::fs::inode::{DirEntry, FileType};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use hashbrown::HashTable;

/// Position of the first entry that the image does not have.
const ADDED: u64 = 1 << 48;
/// What tmpfs says that an entry takes of its directory's size, `.` and `..` included.
pub(super) const ENTRY_BYTES: u64 = 20;

struct Child {
    name: Box<[u8]>,
    /// `None`: a whiteout, which hides the image's entry.
    node: Option<Rc<Node>>,
}

/// What differs from the image.
#[derive(Default)]
struct Difference {
    children: BTreeMap<u64, Child>,
    /// Keys of `children` by the hash of the name.
    by_name: HashTable<u64>,
    next: u64,
    /// Children that are no whiteouts.
    visible: u64,
}

#[derive(Default)]
pub(super) struct Dir {
    difference: RefCell<Option<Box<Difference>>>,
    /// Inode number of the directory above, where it was last seen.
    parent_ino: Cell<u64>,
}

/// What a directory says about a name.
enum Found {
    Node(Rc<Node>),
    /// In the image, with this number.
    Image(u64),
    Nothing,
}

fn hash(name: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    }
    hash ^ hash >> 32 ^ hash << 29
}

impl Difference {
    fn key(&self, name: &[u8]) -> Option<u64> {
        let same = |key: &u64| self.children.get(key).is_some_and(|child| *child.name == *name);
        self.by_name.find(hash(name), same).copied()
    }

    fn get(&self, name: &[u8]) -> Option<&Child> {
        self.children.get(&self.key(name)?)
    }

    fn insert(&mut self, name: &[u8], node: Option<Rc<Node>>) {
        let key = self.next;
        self.next += 1;
        self.visible += u64::from(node.is_some());
        self.children.insert(key, Child { name: name.into(), node });
        let children = &self.children;
        let rehash = |key: &u64| children.get(key).map_or(0, |child| hash(&child.name));
        self.by_name.insert_unique(hash(name), key, rehash);
    }

    fn remove(&mut self, name: &[u8]) -> Option<Child> {
        let key = self.key(name)?;
        if let Ok(entry) = self.by_name.find_entry(hash(name), |candidate| *candidate == key) {
            entry.remove();
        }
        let child = self.children.remove(&key)?;
        self.visible -= u64::from(child.node.is_some());
        Some(child)
    }
}

impl Dir {
    /// Size that the entries made here add to the directory's.
    pub(super) fn added_bytes(&self) -> u64 {
        self.difference.borrow().as_ref().map_or(0, |difference| difference.visible * ENTRY_BYTES)
    }

    /// Takes out the nodes below, when the file system ends.
    pub(super) fn take_children(&self, tree: &Tree) -> Vec<Rc<Node>> {
        let Some(difference) = self.difference.take() else { return Vec::new() };
        let bytes: u64 = difference.children.values().map(charged_bytes).sum();
        tree.release_metadata(bytes);
        difference.children.into_values().filter_map(|child| child.node).collect()
    }

    pub(super) fn set_parent(&self, ino: u64) {
        self.parent_ino.set(ino);
    }
}

/// What an entry takes of the tree's room for metadata: a node's charge covers the first of its names.
fn charged_bytes(child: &Child) -> u64 {
    child.name.len() as u64 + NODE_BYTES / 8
}

impl Node {
    fn find(&self, name: &[u8]) -> Result<Found> {
        let dir = self.dir()?;
        if let Some(child) = dir.difference.borrow().as_ref().and_then(|difference| difference.get(name)) {
            return Ok(child.node.as_ref().map_or(Found::Nothing, |node| Found::Node(Rc::clone(node))));
        }
        Ok(self.image_number(name)?.map_or(Found::Nothing, Found::Image))
    }

    /// The image's number for a name of this directory.
    fn image_number(&self, name: &[u8]) -> Result<Option<u64>> {
        let (Some(lower), Some(image)) = (&self.tree.lower, &self.image) else { return Ok(None) };
        let found = lower.erofs.lookup(image, name).map_err(image_error)?;
        Ok(found.map(|(nid, _)| nid))
    }

    /// The node called `name`.
    pub(super) fn child(&self, name: &[u8]) -> Result<Rc<Node>> {
        let node = match self.find(name)? {
            Found::Node(node) => node,
            Found::Image(nid) => self.tree.image_node(nid)?,
            Found::Nothing => return Err(Errno::ENOENT),
        };
        if let Ok(dir) = node.dir() {
            dir.set_parent(self.ino);
        }
        Ok(node)
    }

    /// Whether the directory has the name.
    pub(super) fn has(&self, name: &[u8]) -> Result<bool> {
        Ok(!matches!(self.find(name)?, Found::Nothing))
    }

    /// Lets `name` refer to `node` from now on; what it referred to before is the caller's affair, and so are link
    /// counts. Counts a directory's `..`.
    pub(super) fn put_child(&self, name: &[u8], node: &Rc<Node>) -> Result<()> {
        let dir = self.dir()?;
        self.tree.charge_metadata(name.len() as u64 + NODE_BYTES / 8)?;
        self.remove_difference(name)?;
        dir.difference.borrow_mut().get_or_insert_default().insert(name, Some(Rc::clone(node)));
        if let Ok(child) = node.dir() {
            child.set_parent(self.ino);
            self.change(|attributes, _| attributes.nlink = attributes.nlink.saturating_add(1));
        }
        self.modified();
        Ok(())
    }

    /// Takes out the name of `node`; link counts of the node are the caller's affair.
    pub(super) fn take_child(&self, name: &[u8], node: &Rc<Node>) -> Result<()> {
        let dir = self.dir()?;
        let hides = self.image_number(name)?.is_some();
        if hides {
            self.tree.charge_metadata(name.len() as u64 + NODE_BYTES / 8)?;
        }
        self.remove_difference(name)?;
        if hides {
            dir.difference.borrow_mut().get_or_insert_default().insert(name, None);
        }
        if node.is_directory() {
            self.change(|attributes, _| attributes.nlink = attributes.nlink.saturating_sub(1));
        }
        self.modified();
        Ok(())
    }

    fn remove_difference(&self, name: &[u8]) -> Result<()> {
        let dir = self.dir()?;
        let removed = {
            let mut difference = dir.difference.borrow_mut();
            let removed = difference.as_mut().and_then(|difference| difference.remove(name));
            if difference.as_ref().is_some_and(|difference| difference.children.is_empty()) && self.image.is_none() {
                // Gives the tables back. Positions start afresh, which no scan of an empty directory notices... unless
                // one is under way: so the next number is kept.
                let next = difference.as_ref().map_or(0, |difference| difference.next);
                *difference = Some(Box::new(Difference { next, ..Difference::default() }));
            }
            removed
        };
        if let Some(child) = &removed {
            self.tree.release_metadata(charged_bytes(child));
        }
        // Dropped where nothing is borrowed: it may have been the node's last reference.
        drop(removed);
        Ok(())
    }

    /// Whether the directory has no names.
    pub(super) fn is_empty(&self) -> Result<bool> {
        Ok(self.entries(2, 1)?.is_empty())
    }

    /// Up to `max` entries from position `from` on.
    pub(super) fn entries(&self, from: u64, max: usize) -> Result<Vec<DirEntry>> {
        let dir = self.dir()?;
        let mut out = Vec::new();
        let mut at = from;
        let dots: [(&[u8], u64); 2] = [(b".", self.ino), (b"..", dir.parent_ino.get())];
        while at < 2 && out.len() < max {
            let (name, ino) = dots[at as usize];
            // The root of a file system is its own parent.
            let ino = if ino == 0 { self.ino } else { ino };
            at += 1;
            out.push(DirEntry { ino, next: at, file_type: FileType::Directory, name: name.into() });
        }
        if (2..ADDED).contains(&at) {
            at = self.image_entries(at, max, &mut out)?;
        }
        if at >= ADDED {
            let difference = dir.difference.borrow();
            let children = difference.as_ref().map(|difference| difference.children.range(at - ADDED..));
            for (key, child) in children.into_iter().flatten() {
                if out.len() >= max {
                    break;
                }
                if let Some(node) = &child.node {
                    let file_type = node.attributes.get().file_type;
                    let name = child.name.clone();
                    out.push(DirEntry { ino: node.ino, next: ADDED + key + 1, file_type, name });
                }
            }
        }
        Ok(out)
    }

    /// The image's entries that are not hidden; gives the position to go on from.
    fn image_entries(&self, from: u64, max: usize, out: &mut Vec<DirEntry>) -> Result<u64> {
        let dir = self.dir()?;
        let (Some(lower), Some(image)) = (&self.tree.lower, &self.image) else { return Ok(ADDED) };
        let mut at = from;
        while out.len() < max {
            let Some(entry) = lower.erofs.readdir(image, at - 2).map_err(image_error)? else { return Ok(ADDED) };
            // A damaged image must not lead backwards, or into the other range.
            let next = entry.next_cookie + 2;
            if next <= at || next >= ADDED {
                return Err(Errno::EUCLEAN);
            }
            at = next;
            let name = entry.name.as_bytes();
            let hidden = dir.difference.borrow().as_ref().is_some_and(|difference| difference.get(name).is_some());
            if hidden || matches!(name, b"." | b"..") {
                continue;
            }
            let file_type = match entry.file_type {
                Some(known) => known,
                None => lower.erofs.inode(entry.nid).map_err(image_error)?.file_type,
            };
            out.push(DirEntry { ino: entry.nid, next: at, file_type, name: name.into() });
        }
        Ok(at)
    }
}

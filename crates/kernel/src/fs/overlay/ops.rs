//! Nodes as the name space sees them.

use super::node::{Kind, Node};
use super::tree::NODE_BYTES;
use crate::errno::{Errno, Result};
use crate::fs::access::S_ISGID;
use crate::fs::file::{FileOps, OpenFlags};
use crate::fs::inode::{
    Attachment, DirEntry, FileType, FsStatistics, Inode, Metadata, NewInode, SetMetadata, Timestamp,
};
use crate::fs::special;
use crate::mm::pages::PageSource;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::any::Any;
use linux_raw_sys::general::{
    F_SEAL_EXEC, F_SEAL_GROW, F_SEAL_SHRINK, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT,
};

/// LINK_MAX as Linux's larger file systems have it.
const MAX_LINKS: u32 = 65_000;

impl Node {
    /// The node behind an inode that has to be of this tree.
    fn of_this_tree(&self, inode: &Rc<dyn Inode>) -> Result<Rc<Node>> {
        let node = inode.as_any().downcast_ref::<Node>().and_then(Node::this).ok_or(Errno::EXDEV)?;
        if Rc::ptr_eq(&node.tree, &self.tree) { Ok(node) } else { Err(Errno::EXDEV) }
    }

    /// ENOENT in a directory that was removed, EEXIST if the name is taken.
    fn check_new_name(&self, name: &[u8]) -> Result<()> {
        self.dir()?;
        if self.attributes.get().nlink == 0 {
            return Err(Errno::ENOENT);
        }
        if self.has(name)? { Err(Errno::EEXIST) } else { Ok(()) }
    }

    /// Owner and mode of a new node in this directory: a set-group-ID directory hands its group down, and the bit to
    /// directories (inode(7)).
    fn inherited(&self, new: &NewInode) -> NewInode {
        let mut new = new.clone();
        let directory = self.attributes.get();
        if directory.mode & S_ISGID != 0 {
            new.gid = directory.gid;
            if new.file_type == FileType::Directory {
                new.mode |= S_ISGID;
            }
        }
        new
    }

    /// The links that a node loses with its name: a directory has its own `.` besides.
    fn name_gone(node: &Rc<Node>) {
        node.remove_links(if node.is_directory() { node.attributes.get().nlink } else { 1 });
    }

    /// ENOTEMPTY, EISDIR and ENOTDIR where `old` may not take the place of `victim`.
    fn check_replace(old: &Rc<Node>, victim: &Rc<Node>) -> Result<()> {
        match (old.is_directory(), victim.is_directory()) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            (true, true) if !victim.is_empty()? => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    fn exchange(&self, name: &[u8], old: &Rc<Node>, to: &Rc<Node>, new_name: &[u8], new: &Rc<Node>) -> Result<()> {
        self.take_child(name, old)?;
        to.take_child(new_name, new)?;
        self.put_child(name, new)?;
        to.put_child(new_name, old)?;
        old.change(|_, _| {});
        new.change(|_, _| {});
        Ok(())
    }
}

impl Inode for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Metadata {
        self.stat()
    }

    fn set_metadata(&self, change: &SetMetadata) -> Result<()> {
        let old_size = self.stat().size;
        if let Some(size) = change.size {
            let data = self.data()?;
            let seals = data.seals.get();
            let old = data.size();
            if (size > old && seals & F_SEAL_GROW != 0) || (size < old && seals & F_SEAL_SHRINK != 0) {
                return Err(Errno::EPERM);
            }
            self.set_size(size)?;
        }
        if let (Some(mode), Ok(data)) = (change.mode, self.data())
            && data.seals.get() & F_SEAL_EXEC != 0
            && (mode ^ self.attributes.get().mode) & 0o111 != 0
        {
            return Err(Errno::EPERM);
        }
        self.change(|attributes, now| {
            attributes.mode = change.mode.map_or(attributes.mode, |mode| mode & 0o7777);
            attributes.uid = change.uid.unwrap_or(attributes.uid);
            attributes.gid = change.gid.unwrap_or(attributes.gid);
            if change.size.is_some_and(|size| size != old_size) {
                attributes.mtime = now;
            }
            attributes.atime = change.atime.unwrap_or(attributes.atime);
            attributes.mtime = change.mtime.unwrap_or(attributes.mtime);
        });
        Ok(())
    }

    fn open(self: Rc<Self>, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
        match &self.kind {
            Kind::Regular(_) | Kind::Directory(_) => Ok(self),
            _ => special::open(&(self as Rc<dyn Inode>), flags),
        }
    }

    fn pages(self: Rc<Self>) -> Option<Rc<dyn PageSource>> {
        FileOps::pages(&*self)
    }

    fn keeps_names(&self) -> bool {
        true
    }

    fn attachment(&self) -> Option<&Attachment> {
        match &self.kind {
            Kind::Special(_, attachment) => Some(attachment),
            _ => None,
        }
    }

    fn statistics(&self) -> Result<FsStatistics> {
        Ok(self.tree.statistics())
    }

    fn accessed(&self, now: Timestamp) {
        // What was never changed stays in the image, which takes no access times.
        if self.is_own() {
            let mut attributes = self.attributes.get();
            attributes.atime = now;
            self.attributes.set(attributes);
        }
    }

    fn lookup(&self, name: &[u8]) -> Result<Rc<dyn Inode>> {
        Ok(self.child(name)?)
    }

    fn read_dir(&self, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        self.entries(cookie, max)
    }

    fn create(&self, name: &[u8], new: &NewInode) -> Result<Rc<dyn Inode>> {
        self.check_new_name(name)?;
        let node = Node::new(&self.tree, &self.inherited(new))?;
        self.put_child(name, &node)?;
        Ok(node)
    }

    fn symlink(&self, name: &[u8], target: &[u8], new: &NewInode) -> Result<Rc<dyn Inode>> {
        self.check_new_name(name)?;
        let node = Node::new_symlink(&self.tree, &self.inherited(new), target)?;
        self.put_child(name, &node)?;
        Ok(node)
    }

    fn tmpfile(&self, new: &NewInode, linkable: bool) -> Result<Rc<dyn Inode>> {
        self.dir()?;
        let node = Node::new(&self.tree, &self.inherited(new))?;
        node.change(|attributes, _| attributes.nlink = 0);
        node.linkable.set(linkable);
        Ok(node)
    }

    fn link(&self, name: &[u8], target: &Rc<dyn Inode>) -> Result<()> {
        let node = self.of_this_tree(target)?;
        if node.is_directory() {
            return Err(Errno::EPERM);
        }
        self.check_new_name(name)?;
        let nlink = node.attributes.get().nlink;
        if nlink == 0 && !node.linkable.get() {
            return Err(Errno::ENOENT);
        }
        if nlink >= MAX_LINKS {
            return Err(Errno::EMLINK);
        }
        self.put_child(name, &node)?;
        node.linkable.set(false);
        node.add_link();
        Ok(())
    }

    fn unlink(&self, name: &[u8], directory: bool) -> Result<()> {
        let node = self.child(name)?;
        match (directory, node.is_directory()) {
            (false, true) => return Err(Errno::EISDIR),
            (true, false) => return Err(Errno::ENOTDIR),
            (true, true) if !node.is_empty()? => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.take_child(name, &node)?;
        Node::name_gone(&node);
        Ok(())
    }

    fn rename(&self, name: &[u8], new_parent: &Rc<dyn Inode>, new_name: &[u8], flags: u32) -> Result<()> {
        let to = self.of_this_tree(new_parent)?;
        to.dir()?;
        let old = self.child(name)?;
        // So that nothing below can run out of room half-way.
        self.tree.check_metadata_room(4 * NODE_BYTES)?;
        if to.attributes.get().nlink == 0 {
            return Err(Errno::ENOENT);
        }
        let victim = match to.child(new_name) {
            Ok(victim) => Some(victim),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(error),
        };
        if flags & RENAME_EXCHANGE != 0 {
            let new = victim.ok_or(Errno::ENOENT)?;
            if Rc::ptr_eq(&old, &new) {
                return Ok(());
            }
            return self.exchange(name, &old, &to, new_name, &new);
        }
        if let Some(victim) = &victim {
            if flags & RENAME_NOREPLACE != 0 {
                return Err(Errno::EEXIST);
            }
            if Rc::ptr_eq(&old, victim) {
                // Two names of one file: both stay (rename(2)).
                return Ok(());
            }
            Node::check_replace(&old, victim)?;
        }
        let whiteout = if flags & RENAME_WHITEOUT != 0 {
            let attributes = self.attributes.get();
            let new = NewInode {
                file_type: FileType::CharDevice,
                mode: 0,
                uid: attributes.uid,
                gid: attributes.gid,
                rdev: 0,
            };
            Some(Node::new(&self.tree, &new)?)
        } else {
            None
        };
        if let Some(victim) = &victim {
            to.take_child(new_name, victim)?;
            Node::name_gone(victim);
        }
        to.put_child(new_name, &old)?;
        self.take_child(name, &old)?;
        if let Some(whiteout) = &whiteout {
            self.put_child(name, whiteout)?;
        }
        old.change(|_, _| {});
        Ok(())
    }

    fn read_link(&self) -> Result<Vec<u8>> {
        self.target()
    }

    fn xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.get_xattr(name)
    }

    fn set_xattr(&self, name: &[u8], value: Option<&[u8]>, flags: u32) -> Result<()> {
        self.put_xattr(name, value, flags)
    }

    fn list_xattrs(&self) -> Result<Vec<Box<[u8]>>> {
        self.xattr_names()
    }
}

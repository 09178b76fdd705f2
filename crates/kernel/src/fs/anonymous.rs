//! Inodes of open objects that are in no file system (pipes, sockets, epoll), so that /proc/PID/fd links to them can be
//! followed.

use super::context::Location;
use super::entry::Entry;
use super::file::{FileOps, OpenFile, OpenFlags};
use super::inode::{Inode, Metadata};
use super::mount::Mount;
use crate::errno::Result;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::any::Any;

struct Anonymous {
    file: Rc<OpenFile>,
}

impl Inode for Anonymous {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Metadata {
        self.file.ops.metadata()
    }

    fn open(self: Rc<Self>, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
        self.file.ops.reopen(flags)
    }
}

/// Where an open file is: where it was opened, or a place of its own outside of all directories.
#[must_use]
pub fn location(file: &Rc<OpenFile>) -> Location {
    file.location.clone().unwrap_or_else(|| {
        let entry = Entry::root(Rc::new(Anonymous { file: Rc::clone(file) }));
        let mount = Mount::detached(&entry);
        Location::new(entry, mount)
    })
}

/// The top of a file system that is in no name space: what is in it has no path (memfd_create(2)).
#[must_use]
pub fn unmounted(root: Rc<dyn Inode>) -> Location {
    let root = Entry::root(root);
    let mount = Mount::detached(&root);
    Location::new(root, mount)
}

/// What the link to such a place says: `pipe:[5]`.
pub(super) fn text(location: &Location) -> Option<Vec<u8>> {
    let anonymous = location.inode.as_any().downcast_ref::<Anonymous>()?;
    Some(anonymous.file.ops.describe().into_bytes())
}

//! A place in the name space, and what a process brings to path resolution.

use super::entry::Entry;
use super::inode::Inode;
use super::mount::Mount;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};

/// An inode together with how it was reached (the directory entry and the mount), so that `..` and
/// /proc/PID/fd links work.
#[derive(Clone)]
pub struct Location {
    /// What is there.
    pub inode: Rc<dyn Inode>,
    /// The directory entry; `entry.inode()` is `inode`.
    pub entry: Rc<Entry>,
    /// The mount through which it was reached.
    pub mount: Rc<Mount>,
}

impl Location {
    /// The place of `entry` seen through `mount`.
    #[must_use]
    pub fn new(entry: Rc<Entry>, mount: Rc<Mount>) -> Self {
        Self { inode: Rc::clone(entry.inode()), entry, mount }
    }

    /// Whether both are the same entry through the same mount.
    #[must_use]
    pub fn same(&self, other: &Location) -> bool {
        Rc::ptr_eq(&self.entry, &other.entry) && Rc::ptr_eq(&self.mount, &other.mount)
    }
}

/// Root directory, working directory and file mode mask; shared by threads (CLONE_FS).
pub struct FsContext {
    /// What `/` means.
    pub root: RefCell<Location>,
    /// What relative paths start from.
    pub cwd: RefCell<Location>,
    /// umask(2).
    pub umask: Cell<u32>,
}

impl FsContext {
    /// A context whose root and working directory are `root`, with umask 022.
    #[must_use]
    pub fn new(root: Location) -> Rc<Self> {
        Rc::new(Self { root: RefCell::new(root.clone()), cwd: RefCell::new(root), umask: Cell::new(0o022) })
    }

    /// A copy for fork(2).
    #[must_use]
    pub fn duplicate(&self) -> Rc<Self> {
        Rc::new(Self {
            root: RefCell::new(self.root.borrow().clone()),
            cwd: RefCell::new(self.cwd.borrow().clone()),
            umask: Cell::new(self.umask.get()),
        })
    }
}

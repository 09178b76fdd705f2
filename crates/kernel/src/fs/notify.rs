//! Where the name space and open files tell what happened, for inotify(7).
//!
//! With no listener an event costs one load. The listener sees the inode concerned and what it is in its directory: it
//! reports to watches of the inode itself and, with the name, to watches of the directory.

use super::context::Location;
use super::entry::Entry;
use super::inode::Inode;
use alloc::rc::Rc;
use core::cell::Cell;

/// Bits of an event, with the values of inotify(7).
pub mod mask {
    pub use linux_raw_sys::general::{
        IN_ACCESS, IN_ATTRIB, IN_CLOSE_NOWRITE, IN_CLOSE_WRITE, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_ISDIR,
        IN_MODIFY, IN_MOVE_SELF, IN_MOVED_FROM, IN_MOVED_TO, IN_OPEN, IN_UNMOUNT,
    };
}

/// What happened to an inode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Happening<'a> {
    /// One of [`mask`]'s bits, without IN_ISDIR.
    pub event: u32,
    /// Where the inode is a directory, and its entry of this name is concerned.
    pub name: Option<&'a [u8]>,
    /// Joins the two halves of a rename.
    pub cookie: u32,
    /// Whether the object concerned is a directory.
    pub directory: bool,
    /// The entry has been removed from the directory before.
    pub unlinked: bool,
}

/// Hears what happened to an inode.
pub type Listener = fn(inode: &Rc<dyn Inode>, what: &Happening<'_>);

crate::global! {
    static LISTENER: Cell<Option<Listener>> = Cell::new(None);
}

crate::global! {
    static NEXT_COOKIE: Cell<u32> = Cell::new(1);
}

/// Sets who is told of events; `None` while there is no watch.
pub fn listen(listener: Option<Listener>) {
    LISTENER.with(|l| l.set(listener));
}

fn listener() -> Option<Listener> {
    LISTENER.with(Cell::get)
}

fn is_directory(inode: &Rc<dyn Inode>) -> bool {
    inode.metadata().file_type == super::inode::FileType::Directory
}

/// Something was done with the object at `location`: its own watches and those of its directory hear of it.
pub fn event(location: &Location, event: u32) {
    entry_event(&location.entry, event);
}

/// As [`event()`], by directory entry.
pub fn entry_event(entry: &Rc<Entry>, event: u32) {
    let Some(listener) = listener() else { return };
    let inode = entry.inode();
    let directory = is_directory(inode);
    let what = Happening { event, directory, unlinked: entry.is_removed(), ..Happening::default() };
    if let Some(parent) = entry.parent() {
        let name = alloc::boxed::Box::<[u8]>::from(&*entry.name());
        listener(parent.inode(), &Happening { name: Some(&name), ..what });
    }
    listener(inode, &Happening { unlinked: false, ..what });
}

/// A name appeared in or vanished from `parent` (IN_CREATE, IN_DELETE).
pub fn name_event(parent: &Rc<dyn Inode>, name: &[u8], inode: &Rc<dyn Inode>, event: u32) {
    if let Some(listener) = listener() {
        let directory = is_directory(inode);
        listener(parent, &Happening { event, name: Some(name), directory, ..Happening::default() });
    }
}

/// Something happened to the inode that its directory does not hear of (IN_DELETE_SELF, IN_MOVE_SELF, IN_ATTRIB for a
/// changed number of links).
pub fn self_event(inode: &Rc<dyn Inode>, event: u32) {
    if let Some(listener) = listener() {
        listener(inode, &Happening { event, directory: is_directory(inode), ..Happening::default() });
    }
}

/// The file system of which `root` is an inode is mounted nowhere any more.
pub fn unmounted(root: &Rc<dyn Inode>) {
    if let Some(listener) = listener() {
        listener(root, &Happening { event: mask::IN_UNMOUNT, ..Happening::default() });
    }
}

/// A rename of `inode`.
pub fn rename_event(from: (&Rc<dyn Inode>, &[u8]), to: (&Rc<dyn Inode>, &[u8]), inode: &Rc<dyn Inode>) {
    let Some(listener) = listener() else { return };
    let cookie = NEXT_COOKIE.with(|next| next.replace(next.get().wrapping_add(1).max(1)));
    let directory = is_directory(inode);
    let half = |event, name| Happening { event, name: Some(name), cookie, directory, unlinked: false };
    listener(from.0, &half(mask::IN_MOVED_FROM, from.1));
    listener(to.0, &half(mask::IN_MOVED_TO, to.1));
    listener(inode, &Happening { event: mask::IN_MOVE_SELF, directory, ..Happening::default() });
}

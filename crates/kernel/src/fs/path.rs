//! Path resolution (path_resolution(7)), and its reverse.

use super::context::Location;
use super::entry::Entry;
use super::inode::{FileType, may_access};
use super::mount::{self, MountFlags};
use crate::errno::{Errno, Result};
use crate::task::creds::Credentials;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use bitflags::bitflags;

/// The longest path in bytes, without its NUL.
pub const MAX_PATH_BYTES: usize = 4095;
/// The longest name in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// How many symbolic links one resolution follows.
const MAX_LINKS: u32 = 40;

bitflags! {
    /// Restrictions of a resolution, with openat2(2)'s values.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Resolve: u64 {
        /// Never leave the mount.
        const NO_XDEV = linux_raw_sys::general::RESOLVE_NO_XDEV as u64;
        /// Never follow a link of /proc that is more than its text.
        const NO_MAGICLINKS = linux_raw_sys::general::RESOLVE_NO_MAGICLINKS as u64;
        /// Never follow a symbolic link.
        const NO_SYMLINKS = linux_raw_sys::general::RESOLVE_NO_SYMLINKS as u64;
        /// Never leave the tree below the start.
        const BENEATH = linux_raw_sys::general::RESOLVE_BENEATH as u64;
        /// Take the start as the root.
        const IN_ROOT = linux_raw_sys::general::RESOLVE_IN_ROOT as u64;
        /// Only what needs no waiting: no resolution waits here.
        const CACHED = linux_raw_sys::general::RESOLVE_CACHED as u64;
    }
}

/// The last component of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastName {
    /// A name to be looked up, created or removed in the directory that was reached.
    Name(Box<[u8]>),
    /// `.`: the directory itself.
    Dot,
    /// `..`
    DotDot,
    /// The path was only slashes: the root.
    Root,
}

/// What is left of a path when all but its last component have been followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    /// See [`LastName`].
    pub name: LastName,
    /// Whether a slash follows: it has to be a directory.
    pub slash: bool,
}

/// A resolution under way.
pub struct Walk<'a> {
    creds: &'a Credentials,
    root: Location,
    at: Location,
    resolve: Resolve,
    /// What is still to be followed starts at `position`.
    rest: Vec<u8>,
    position: usize,
    links: u32,
}

impl<'a> Walk<'a> {
    /// Starts at `start`, or at `root` if `path` is absolute.
    ///
    /// # Errors
    /// ENOENT for an empty path, ENAMETOOLONG, EXDEV for an absolute path with [`Resolve::BENEATH`].
    pub fn new(creds: &'a Credentials, root: Location, start: Location, path: &[u8], resolve: Resolve) -> Result<Self> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        if path.len() > MAX_PATH_BYTES {
            return Err(Errno::ENAMETOOLONG);
        }
        let root = if resolve.intersects(Resolve::BENEATH | Resolve::IN_ROOT) { start.clone() } else { root };
        let mut walk = Self { creds, root, at: start, resolve, rest: path.to_vec(), position: 0, links: 0 };
        if path[0] == b'/' {
            walk.go_to_root()?;
        }
        Ok(walk)
    }

    /// Where the resolution stands: after [`Walk::to_last`], the directory of the last component.
    #[must_use]
    pub fn at(&self) -> &Location {
        &self.at
    }

    fn go_to_root(&mut self) -> Result<()> {
        if self.resolve.contains(Resolve::BENEATH) {
            return Err(Errno::EXDEV);
        }
        self.check_mount(&self.root)?;
        self.at = self.root.clone();
        Ok(())
    }

    fn check_mount(&self, to: &Location) -> Result<()> {
        if self.resolve.contains(Resolve::NO_XDEV) && !Rc::ptr_eq(&self.at.mount, &to.mount) {
            return Err(Errno::EXDEV);
        }
        Ok(())
    }

    /// ENOTDIR or EACCES unless a name can be searched for here.
    fn check_search(&self) -> Result<()> {
        let meta = self.at.inode.metadata();
        if meta.file_type != FileType::Directory {
            return Err(Errno::ENOTDIR);
        }
        if may_access(&meta, self.creds, 1) { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Follows all but the last component.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, EACCES, ELOOP, ENAMETOOLONG, EXDEV.
    pub fn to_last(&mut self) -> Result<Last> {
        loop {
            let skip = self.rest[self.position..].iter().take_while(|b| **b == b'/').count();
            self.position += skip;
            let rest = &self.rest[self.position..];
            if rest.is_empty() {
                return Ok(Last { name: LastName::Root, slash: true });
            }
            let len = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
            let slash = rest.len() > len;
            let is_last = rest[len..].iter().all(|b| *b == b'/');
            let name = Box::<[u8]>::from(&rest[..len]);
            self.position += len;
            self.check_search()?;
            if is_last {
                let name = match &*name {
                    b"." => LastName::Dot,
                    b".." => LastName::DotDot,
                    _ => LastName::Name(name),
                };
                return Ok(Last { name, slash });
            }
            match &*name {
                b"." => {}
                b".." => self.up()?,
                name => {
                    let found = self.lookup(name)?;
                    if found.inode.metadata().file_type == FileType::Symlink {
                        self.follow(&found)?;
                    } else {
                        self.at = found;
                    }
                }
            }
        }
    }

    /// The object called `name` in the directory that was reached, mounts on it crossed.
    ///
    /// # Errors
    /// ENOENT, ENAMETOOLONG, EXDEV.
    pub fn lookup(&self, name: &[u8]) -> Result<Location> {
        self.check_name(name)?;
        let entry = Entry::lookup(&self.at.entry, name)?;
        self.crossed(Location::new(entry, Rc::clone(&self.at.mount)))
    }

    /// The entry called `name` in the directory that was reached, whatever is mounted on it: what a removal or a rename
    /// is about.
    ///
    /// # Errors
    /// ENOENT, ENAMETOOLONG.
    pub fn lookup_entry(&self, name: &[u8]) -> Result<Rc<Entry>> {
        self.check_name(name)?;
        Entry::lookup(&self.at.entry, name)
    }

    fn check_name(&self, name: &[u8]) -> Result<()> {
        if self.at.entry.is_removed() {
            return Err(Errno::ENOENT);
        }
        if name.len() > MAX_NAME_BYTES { Err(Errno::ENAMETOOLONG) } else { Ok(()) }
    }

    /// What is mounted on top of `location`, if anything is.
    fn crossed(&self, mut location: Location) -> Result<Location> {
        while let Some(mount) = mount::mounted_at(&location.mount, &location.entry) {
            location = mount.top();
        }
        self.check_mount(&location)?;
        Ok(location)
    }

    fn up(&mut self) -> Result<()> {
        let mut at = self.at.clone();
        loop {
            if at.same(&self.root) {
                if self.resolve.contains(Resolve::BENEATH) {
                    return Err(Errno::EXDEV);
                }
                return Ok(());
            }
            if !Rc::ptr_eq(&at.entry, &at.mount.root) {
                // An entry that is no root has a parent.
                let Some(parent) = at.entry.parent() else { return Ok(()) };
                self.at = self.crossed(Location::new(parent, Rc::clone(&at.mount)))?;
                return Ok(());
            }
            let Some((mount, entry)) = at.mount.place() else { return Ok(()) };
            at = Location::new(entry, mount);
            self.check_mount(&at)?;
        }
    }

    /// Goes on with the target of `link`, which was found in the directory that was reached.
    ///
    /// # Errors
    /// ELOOP after 40 links or where links are not to be followed, ENOENT for an empty target, as [`Walk::to_last`].
    pub fn follow(&mut self, link: &Location) -> Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS
            || self.resolve.contains(Resolve::NO_SYMLINKS)
            || link.mount.flags.get().contains(MountFlags::NOSYMFOLLOW)
        {
            return Err(Errno::ELOOP);
        }
        super::access::note_access(link);
        if let Some(target) = link.inode.magic_link() {
            if self.resolve.contains(Resolve::NO_MAGICLINKS) {
                return Err(Errno::ELOOP);
            }
            if self.resolve.intersects(Resolve::BENEATH | Resolve::IN_ROOT) {
                return Err(Errno::EXDEV);
            }
            self.check_mount(&target)?;
            self.at = target;
            // What remains are slashes and components behind the link; none means "the object itself".
            return Ok(());
        }
        let mut rest = link.inode.read_link()?;
        if rest.is_empty() {
            return Err(Errno::ENOENT);
        }
        let absolute = rest[0] == b'/';
        rest.extend_from_slice(&self.rest[self.position..]);
        self.rest = rest;
        self.position = 0;
        if absolute {
            self.go_to_root()?;
        }
        Ok(())
    }

    /// Follows the whole path; the last component is followed if it is a symbolic link and `follow_last` is set or a
    /// slash stands behind it.
    ///
    /// # Errors
    /// As [`Walk::to_last`].
    pub fn to_end(mut self, follow_last: bool) -> Result<Location> {
        loop {
            let last = self.to_last()?;
            match last.name {
                LastName::Root | LastName::Dot => return Ok(self.at),
                LastName::DotDot => {
                    self.up()?;
                    return Ok(self.at);
                }
                LastName::Name(name) => {
                    let found = self.lookup(&name)?;
                    match found.inode.metadata().file_type {
                        FileType::Symlink if follow_last || last.slash => {
                            if let Some(target) = self.follow_at_end(&found, last.slash)? {
                                return Ok(target);
                            }
                        }
                        FileType::Directory => return Ok(found),
                        _ if last.slash => return Err(Errno::ENOTDIR),
                        _ => return Ok(found),
                    }
                }
            }
        }
    }

    /// Follows a link that is the last component: what a magic link leads to, or `None` if the walk goes on.
    ///
    /// # Errors
    /// As [`Walk::follow`]; ENOTDIR if `slash` and a magic link leads to something else.
    pub fn follow_at_end(&mut self, link: &Location, slash: bool) -> Result<Option<Location>> {
        let magic = link.inode.magic_link().is_some();
        self.follow(link)?;
        if !magic {
            return Ok(None);
        }
        if slash && self.at.inode.metadata().file_type != FileType::Directory {
            return Err(Errno::ENOTDIR);
        }
        Ok(Some(self.at.clone()))
    }

    /// Goes to where `..` leads (the last component was `..`).
    ///
    /// # Errors
    /// EXDEV.
    pub fn to_parent(&mut self) -> Result<()> {
        self.up()
    }
}

/// Path of an entry within its file system.
#[must_use]
pub fn path_in_fs(entry: &Rc<Entry>) -> Vec<u8> {
    let mut names = Vec::new();
    let mut at = Rc::clone(entry);
    while let Some(parent) = at.parent() {
        names.push(Box::<[u8]>::from(&*at.name()));
        at = parent;
    }
    joined(&names)
}

fn joined(names: &[Box<[u8]>]) -> Vec<u8> {
    if names.is_empty() {
        return b"/".to_vec();
    }
    let mut path = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

/// Path of `location` as seen from `root`, without the mark of removed entries; `None` if it is outside of `root`.
#[must_use]
pub fn path_within(location: &Location, root: &Location) -> Option<Vec<u8>> {
    let (path, reached) = climb(location, root);
    reached.then_some(path)
}

/// Path from `root` or, where that is not above, from the top of the mounts; and which of both.
fn climb(location: &Location, root: &Location) -> (Vec<u8>, bool) {
    let mut names = Vec::new();
    let mut at = location.clone();
    loop {
        if at.same(root) {
            return (joined(&names), true);
        }
        if Rc::ptr_eq(&at.entry, &at.mount.root) {
            match at.mount.place() {
                Some((mount, entry)) => at = Location::new(entry, mount),
                None => return (joined(&names), false),
            }
            continue;
        }
        let Some(parent) = at.entry.parent() else { return (joined(&names), false) };
        names.push(Box::<[u8]>::from(&*at.entry.name()));
        at = Location::new(parent, Rc::clone(&at.mount));
    }
}

/// The text of a link to `location` in /proc: its path as seen from `root`, with ` (deleted)` if the name is gone. Outside
/// of `root` it is the path from the top.
#[must_use]
pub fn link_text(location: &Location, root: &Location) -> Vec<u8> {
    if let Some(text) = super::anonymous::text(location) {
        return text;
    }
    let (mut path, _) = climb(location, root);
    if location.entry.is_removed() {
        path.extend_from_slice(b" (deleted)");
    }
    path
}

/// What getcwd(2) answers.
///
/// # Errors
/// ENOENT if the directory has been removed.
pub fn working_directory(cwd: &Location, root: &Location) -> Result<Vec<u8>> {
    if cwd.entry.is_removed() {
        return Err(Errno::ENOENT);
    }
    let (path, reached) = climb(cwd, root);
    if reached {
        return Ok(path);
    }
    let mut unreachable = b"(unreachable)".to_vec();
    unreachable.extend_from_slice(&path);
    Ok(unreachable)
}

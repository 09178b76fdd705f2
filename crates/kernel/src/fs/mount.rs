//! The mount table: which file system appears where. There is one name space for all processes.

use super::context::{FsContext, Location};
use super::entry::Entry;
use super::inode::Inode;
use super::notify;
use crate::errno::{Errno, Result};
use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use bitflags::bitflags;
use core::cell::{Cell, RefCell};
use core::fmt::Write as _;

/// Bound on the number of mounts (fs.mount-max is 100,000 on Linux; each costs kernel memory here).
const MAX_MOUNTS: usize = 1000;

bitflags! {
    /// Flags of a mount, with the values of mount(2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MountFlags: u32 {
        /// Nothing can be changed through this mount.
        const RDONLY = linux_raw_sys::general::MS_RDONLY;
        /// Set-user-ID and set-group-ID bits and file capabilities do not count.
        const NOSUID = linux_raw_sys::general::MS_NOSUID;
        /// Devices cannot be opened.
        const NODEV = linux_raw_sys::general::MS_NODEV;
        /// Programs cannot be executed.
        const NOEXEC = linux_raw_sys::general::MS_NOEXEC;
        /// Symbolic links are not followed.
        const NOSYMFOLLOW = linux_raw_sys::general::MS_NOSYMFOLLOW;
        /// Accesses are not noted.
        const NOATIME = linux_raw_sys::general::MS_NOATIME;
        /// Accesses of directories are not noted.
        const NODIRATIME = linux_raw_sys::general::MS_NODIRATIME;
        /// Accesses are noted once a day or when the file has changed since (the default).
        const RELATIME = linux_raw_sys::general::MS_RELATIME;
    }
}

/// What is mounted, as /proc/self/mounts shows it.
#[derive(Clone, Debug)]
pub struct Description {
    /// Type of the file system: `tmpfs`, `proc`.
    pub fs_type: &'static str,
    /// Source: a device or any name; bytes of the program's.
    pub source: Box<[u8]>,
    /// Options of the file system, such as `size=65536k`; empty or without a leading comma.
    pub options: String,
}

/// A mounted file system, or a part of one (bind mount).
pub struct Mount {
    /// Number as in mountinfo and statx(2).
    pub id: u32,
    /// The entry that appears at the mount point.
    pub root: Rc<Entry>,
    /// See [`Description`].
    pub description: Description,
    /// See [`MountFlags`].
    pub flags: Cell<MountFlags>,
    /// Mount point: the entry, and the mount that it is reached through. `None` for the first mount and for ended ones.
    place: RefCell<Option<(Rc<Mount>, Rc<Entry>)>>,
}

struct Table {
    mounts: Vec<Rc<Mount>>,
    next_id: u32,
}

crate::global! {
    static MOUNTS: RefCell<Table> = RefCell::new(Table { mounts: Vec::new(), next_id: 1 });
}

impl Mount {
    /// Mount point: the mount that holds it, and the entry there. `None` for the first mount.
    #[must_use]
    pub fn place(&self) -> Option<(Rc<Mount>, Rc<Entry>)> {
        self.place.borrow().clone()
    }

    /// The place where this mount's content begins.
    #[must_use]
    pub fn top(self: &Rc<Self>) -> Location {
        Location::new(Rc::clone(&self.root), Rc::clone(self))
    }

    /// A mount that is in no name space, for objects outside of all file systems.
    pub(super) fn detached(root: &Rc<Entry>) -> Rc<Self> {
        let description = Description { fs_type: "anon_inodefs", source: Box::default(), options: String::new() };
        let flags = Cell::new(MountFlags::RELATIME);
        Rc::new(Self { id: 0, root: Rc::clone(root), description, flags, place: RefCell::new(None) })
    }

    /// EROFS if nothing may be changed through this mount.
    ///
    /// # Errors
    /// EROFS.
    pub fn check_writable(&self) -> Result<()> {
        if self.flags.get().contains(MountFlags::RDONLY) { Err(Errno::EROFS) } else { Ok(()) }
    }
}

fn add(root: Rc<Entry>, description: Description, flags: MountFlags, place: Option<Location>) -> Result<Rc<Mount>> {
    MOUNTS.with(|table| {
        let mut table = table.borrow_mut();
        if table.mounts.len() >= MAX_MOUNTS {
            return Err(Errno::ENOSPC);
        }
        let id = table.next_id;
        table.next_id += 1;
        if let Some(place) = &place {
            place.entry.count_mount(1);
        }
        let place = RefCell::new(place.map(|place| (place.mount, place.entry)));
        let mount = Rc::new(Mount { id, root, description, flags: Cell::new(flags), place });
        table.mounts.push(Rc::clone(&mount));
        Ok(mount)
    })
}

/// Makes `root` the root of the name space. Ends whatever name space there was (tests make several).
///
/// # Errors
/// None in practice: the table is empty.
pub fn mount_root(root: Rc<dyn Inode>, description: Description) -> Result<Location> {
    let old = MOUNTS.with(|table| core::mem::take(&mut table.borrow_mut().mounts));
    for mount in &old {
        mount.place.take();
    }
    drop(old);
    Ok(add(Entry::root(root), description, MountFlags::RELATIME, None)?.top())
}

/// Mounts the file system with the root directory `root` at `place`. Permission is the caller's affair.
///
/// # Errors
/// ENOTDIR if only one of both is a directory, ENOSPC if there are too many mounts, ENOENT if the place is removed.
pub fn mount(place: &Location, root: Rc<dyn Inode>, description: Description, flags: MountFlags) -> Result<Rc<Mount>> {
    attach(place, Entry::root(root), description, flags)
}

/// Lets `what` appear at `place` as well; with `recursive`, also the mounts below it.
///
/// # Errors
/// As [`mount`].
pub fn bind(what: &Location, place: &Location, recursive: bool) -> Result<Rc<Mount>> {
    let source = &what.mount;
    let new = attach(place, Rc::clone(&what.entry), source.description.clone(), source.flags.get())?;
    if recursive {
        // Parents come before children in the table; each copy is found by its original. The new mounts themselves
        // are not copied again.
        let mut copies = alloc::vec![(Rc::clone(source), Rc::clone(&new))];
        let all: Vec<_> = all().into_iter().filter(|mount| mount.id < new.id).collect();
        for mount in all {
            let Some((parent, entry)) = mount.place() else { continue };
            let Some((original, copy)) = copies.iter().find(|(original, _)| Rc::ptr_eq(original, &parent)) else {
                continue;
            };
            if Rc::ptr_eq(original, source) && !what.entry.is_ancestor_of(&entry) {
                continue;
            }
            let place = Location::new(entry, Rc::clone(copy));
            let child = add(Rc::clone(&mount.root), mount.description.clone(), mount.flags.get(), Some(place))?;
            copies.push((mount, child));
        }
    }
    Ok(new)
}

fn attach(place: &Location, root: Rc<Entry>, description: Description, flags: MountFlags) -> Result<Rc<Mount>> {
    use super::inode::FileType::Directory;
    if (place.inode.metadata().file_type == Directory) != (root.inode().metadata().file_type == Directory) {
        return Err(Errno::ENOTDIR);
    }
    if place.entry.is_removed() {
        return Err(Errno::ENOENT);
    }
    add(root, description, flags, Some(place.clone()))
}

/// What is mounted on `entry` of `mount`: the latest.
#[must_use]
pub fn mounted_at(mount: &Rc<Mount>, entry: &Rc<Entry>) -> Option<Rc<Mount>> {
    if !entry.is_mount_point() {
        return None;
    }
    MOUNTS.with(|table| {
        let table = table.borrow();
        let here = |candidate: &&Rc<Mount>| {
            candidate.place.borrow().as_ref().is_some_and(|(m, e)| Rc::ptr_eq(m, mount) && Rc::ptr_eq(e, entry))
        };
        table.mounts.iter().rev().find(here).cloned()
    })
}

/// Ends the mount whose top `location` is. With `detach` (MNT_DETACH) it may be in use: it is out of the name space at
/// once, mounts below it too, and ends with its last user.
///
/// # Errors
/// EINVAL if it is no mount's top or the first mount, EBUSY if it is in use.
pub fn unmount(location: Location, detach: bool) -> Result<()> {
    let mount = Rc::clone(&location.mount);
    if !Rc::ptr_eq(&mount.root, &location.entry) || mount.place.borrow().is_none() {
        return Err(Errno::EINVAL);
    }
    drop(location);
    let below = |parent: &Rc<Mount>| -> Vec<Rc<Mount>> {
        all().into_iter().filter(|m| m.place.borrow().as_ref().is_some_and(|(p, _)| Rc::ptr_eq(p, parent))).collect()
    };
    let mut ending = alloc::vec![Rc::clone(&mount)];
    if detach {
        let mut next = 0;
        while let Some(parent) = ending.get(next) {
            let children = below(parent);
            ending.extend(children);
            next += 1;
        }
    } else {
        // The table, `mount` and `ending` hold it; whoever else does is using it.
        if !below(&mount).is_empty() || Rc::strong_count(&mount) > 3 {
            return Err(Errno::EBUSY);
        }
    }
    for mount in &ending {
        MOUNTS.with(|table| table.borrow_mut().mounts.retain(|m| !Rc::ptr_eq(m, mount)));
        let place = mount.place.take();
        if let Some((_, entry)) = &place {
            entry.count_mount(-1);
        }
    }
    // A file system that is mounted nowhere else shall end: the cache must not keep it.
    let root = Rc::clone(&mount.root);
    Entry::forget(|entry| root.is_ancestor_of(entry));
    let device = |mount: &Rc<Mount>| mount.root.inode().metadata().dev;
    let mounted: Vec<u64> = all().iter().map(device).collect();
    for mount in ending.iter().filter(|mount| !mounted.contains(&device(mount))) {
        notify::unmounted(mount.root.inode());
    }
    Ok(())
}

/// All mounts in the order in which they were made.
#[must_use]
pub fn all() -> Vec<Rc<Mount>> {
    MOUNTS.with(|table| table.borrow().mounts.clone())
}

/// Spaces, tabs, line ends and backslashes in octal, as in /proc/self/mounts (fstab(5)).
fn escaped(bytes: &[u8]) -> Cow<'_, [u8]> {
    if !bytes.iter().any(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\\')) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len() + 12);
    for byte in bytes {
        match byte {
            b' ' => out.extend_from_slice(b"\\040"),
            b'\t' => out.extend_from_slice(b"\\011"),
            b'\n' => out.extend_from_slice(b"\\012"),
            b'\\' => out.extend_from_slice(b"\\134"),
            byte => out.push(*byte),
        }
    }
    Cow::Owned(out)
}

fn options(flags: MountFlags) -> String {
    let mut text = String::from(if flags.contains(MountFlags::RDONLY) { "ro" } else { "rw" });
    for (flag, name) in [
        (MountFlags::NOSUID, ",nosuid"),
        (MountFlags::NODEV, ",nodev"),
        (MountFlags::NOEXEC, ",noexec"),
        (MountFlags::NOATIME, ",noatime"),
        (MountFlags::NODIRATIME, ",nodiratime"),
        (MountFlags::RELATIME, ",relatime"),
        (MountFlags::NOSYMFOLLOW, ",nosymfollow"),
    ] {
        if flags.contains(flag) {
            text.push_str(name);
        }
    }
    text
}

/// Lines of /proc/PID/mounts for a process whose root is `context`'s: what is outside of it is not shown.
#[must_use]
pub fn mounts_text(context: &FsContext) -> Vec<u8> {
    let root = context.root.borrow().clone();
    let mut out = Vec::new();
    for mount in all() {
        let Some(path) = super::path::path_within(&mount.top(), &root) else { continue };
        let description = &mount.description;
        out.extend_from_slice(&escaped(&description.source));
        out.push(b' ');
        out.extend_from_slice(&escaped(&path));
        let mut rest = String::new();
        let _ = write!(rest, " {} {}", description.fs_type, options(mount.flags.get()));
        if !description.options.is_empty() {
            let _ = write!(rest, ",{}", description.options);
        }
        out.extend_from_slice(rest.as_bytes());
        out.extend_from_slice(b" 0 0\n");
    }
    out
}

/// Lines of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
#[must_use]
pub fn mountinfo_text(context: &FsContext) -> Vec<u8> {
    let root = context.root.borrow().clone();
    let mut out = Vec::new();
    for mount in all() {
        let Some(path) = super::path::path_within(&mount.top(), &root) else { continue };
        let description = &mount.description;
        let dev = mount.root.inode().metadata().dev;
        let (major, minor) = (super::device::major(dev), super::device::minor(dev));
        let parent = mount.place().map_or(0, |(parent, _)| parent.id);
        let mut text = String::new();
        let _ = write!(text, "{} {parent} {major}:{minor} ", mount.id);
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(&escaped(&super::path::path_in_fs(&mount.root)));
        out.push(b' ');
        out.extend_from_slice(&escaped(&path));
        let mut text = String::new();
        let _ = write!(text, " {} - {} ", options(mount.flags.get()), description.fs_type);
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(&escaped(&description.source));
        out.extend_from_slice(if mount.flags.get().contains(MountFlags::RDONLY) { b" ro" } else { b" rw" });
        if !description.options.is_empty() {
            out.push(b',');
            out.extend_from_slice(description.options.as_bytes());
        }
        out.push(b'\n');
    }
    out
}

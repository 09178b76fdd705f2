//! Making, linking, removing and renaming names.

use super::access::{self, S_ISGID, WRITE};
use super::caller::{Caller, Target, is_directory};
use super::context::Location;
use super::entry::Entry;
use super::inode::{FileType, Inode, NewInode, may_access};
use super::notify::{self, mask};
use super::path::{Last, LastName, Walk};
use crate::errno::{Errno, Result};
use alloc::boxed::Box;
use alloc::rc::Rc;
use linux_raw_sys::general::{CAP_FSETID, CAP_MKNOD, RENAME_EXCHANGE, RENAME_NOREPLACE};

/// Takes the set-group-ID bit from a group-executable file made in a set-group-ID directory whose group is not the
/// caller's (inode(7)); the directory hands down its group itself.
#[must_use]
pub fn inherited(caller: &Caller, directory: &Location, mut new: NewInode) -> NewInode {
    let meta = directory.inode.metadata();
    let both = S_ISGID | 0o010;
    if meta.mode & S_ISGID != 0
        && new.file_type != FileType::Directory
        && new.mode & both == both
        && !caller.creds.in_group(meta.gid)
        && !caller.creds.has(CAP_FSETID)
    {
        new.mode &= !S_ISGID;
    }
    new
}

/// Directory and name of something that is to be made.
struct NewName {
    directory: Location,
    name: Box<[u8]>,
}

/// Follows a walk to where a new name shall be; `directory`: it is to be one, so a slash may stand behind it.
fn new_name(caller: &Caller, walk: Walk<'_>, directory: bool) -> Result<NewName> {
    let place = free_name(walk, directory)?;
    access::check_add(&place.directory, &caller.creds)?;
    Ok(place)
}

/// As [`new_name`], for a caller that checks the permission itself.
fn free_name(mut walk: Walk<'_>, directory: bool) -> Result<NewName> {
    let last = walk.to_last()?;
    let LastName::Name(name) = last.name else { return Err(Errno::EEXIST) };
    match walk.lookup_entry(&name) {
        Ok(_) => return Err(Errno::EEXIST),
        Err(Errno::ENOENT) if last.slash && !directory => return Err(Errno::ENOENT),
        Err(Errno::ENOENT) => {}
        Err(error) => return Err(error),
    }
    Ok(NewName { directory: walk.at().clone(), name })
}

impl NewName {
    fn made(&self, inode: Rc<dyn Inode>) -> Location {
        notify::name_event(&self.directory.inode, &self.name, &inode, mask::IN_CREATE);
        let entry = Entry::insert(&self.directory.entry, &self.name, inode);
        Location::new(entry, Rc::clone(&self.directory.mount))
    }
}

/// Makes a directory, device, FIFO, socket or regular file.
///
/// # Errors
/// As mkdir(2) and mknod(2).
pub fn make(caller: &Caller, walk: Walk<'_>, new: NewInode) -> Result<Location> {
    let place = new_name(caller, walk, new.file_type == FileType::Directory)?;
    // Anybody may make the device 0:0, a whiteout.
    let device = match new.file_type {
        FileType::CharDevice => new.rdev != 0,
        FileType::BlockDevice => true,
        _ => false,
    };
    if device && !caller.creds.has(CAP_MKNOD) {
        return Err(Errno::EPERM);
    }
    let new = inherited(caller, &place.directory, new);
    let inode = place.directory.inode.create(&place.name, &new)?;
    Ok(place.made(inode))
}

/// Makes a symbolic link.
///
/// # Errors
/// As symlink(2).
pub fn symlink(caller: &Caller, walk: Walk<'_>, target: &[u8]) -> Result<()> {
    let place = new_name(caller, walk, false)?;
    let mut new = caller.new_inode(FileType::Symlink, 0, 0);
    new.mode = 0o777;
    let inode = place.directory.inode.symlink(&place.name, target, &new)?;
    place.made(inode);
    Ok(())
}

/// Gives `target` another name.
///
/// # Errors
/// As link(2).
pub fn link(caller: &Caller, target: Target, walk: Walk<'_>) -> Result<()> {
    let place = free_name(walk, false)?;
    let target = target.location(Errno::EXDEV)?;
    if !Rc::ptr_eq(&target.mount, &place.directory.mount) {
        return Err(Errno::EXDEV);
    }
    access::check_link(&target.inode.metadata(), &caller.creds)?;
    access::check_add(&place.directory, &caller.creds)?;
    if is_directory(&target.inode) {
        return Err(Errno::EPERM);
    }
    place.directory.inode.link(&place.name, &target.inode)?;
    notify::self_event(&target.inode, mask::IN_ATTRIB);
    place.made(Rc::clone(&target.inode));
    Ok(())
}

/// Removes a name that is no directory.
///
/// # Errors
/// As unlink(2).
pub fn unlink(caller: &Caller, mut walk: Walk<'_>) -> Result<()> {
    let last = walk.to_last()?;
    let LastName::Name(name) = last.name else { return Err(Errno::EISDIR) };
    let entry = walk.lookup_entry(&name)?;
    if last.slash {
        return Err(if is_directory(entry.inode()) { Errno::EISDIR } else { Errno::ENOTDIR });
    }
    let directory = walk.at();
    access::check_remove(directory, entry.inode(), &caller.creds)?;
    if is_directory(entry.inode()) {
        return Err(Errno::EISDIR);
    }
    remove(directory, &name, &entry, false)
}

/// Removes an empty directory.
///
/// # Errors
/// As rmdir(2).
pub fn rmdir(caller: &Caller, mut walk: Walk<'_>) -> Result<()> {
    let name = match walk.to_last()?.name {
        LastName::Name(name) => name,
        LastName::Dot => return Err(Errno::EINVAL),
        LastName::DotDot => return Err(Errno::ENOTEMPTY),
        LastName::Root => return Err(Errno::EBUSY),
    };
    let entry = walk.lookup_entry(&name)?;
    let directory = walk.at();
    access::check_remove(directory, entry.inode(), &caller.creds)?;
    if !is_directory(entry.inode()) {
        return Err(Errno::ENOTDIR);
    }
    remove(directory, &name, &entry, true)
}

fn remove(directory: &Location, name: &[u8], entry: &Rc<Entry>, is_directory: bool) -> Result<()> {
    if entry.is_mount_point() {
        return Err(Errno::EBUSY);
    }
    directory.inode.unlink(name, is_directory)?;
    gone(entry);
    notify::name_event(&directory.inode, name, entry.inode(), mask::IN_DELETE);
    Ok(())
}

/// An entry's name is gone: the last one of the inode, or one of several.
fn gone(entry: &Rc<Entry>) {
    entry.remove();
    let meta = entry.inode().metadata();
    // The number of links changed; a directory is not said to have any.
    if meta.file_type != FileType::Directory {
        notify::self_event(entry.inode(), mask::IN_ATTRIB);
    }
    if meta.nlink == 0 {
        notify::self_event(entry.inode(), mask::IN_DELETE_SELF);
    }
}

/// Moves a name, with the flags of renameat2(2). `to` begins the resolution of the new name when that of the old one has
/// gone well.
///
/// # Errors
/// As rename(2).
pub fn rename<'a>(
    caller: &Caller,
    mut from: Walk<'_>,
    to: impl FnOnce() -> Result<Walk<'a>>,
    flags: u32,
) -> Result<()> {
    let old_last = from.to_last()?;
    let mut to = to()?;
    let new_last = to.to_last()?;
    let (old_dir, new_dir) = (from.at().clone(), to.at().clone());
    if !Rc::ptr_eq(&old_dir.mount, &new_dir.mount) {
        return Err(Errno::EXDEV);
    }
    let LastName::Name(old_name) = &old_last.name else { return Err(Errno::EBUSY) };
    let LastName::Name(new_name) = &new_last.name else {
        return Err(if flags & RENAME_NOREPLACE != 0 { Errno::EEXIST } else { Errno::EBUSY });
    };
    old_dir.mount.check_writable()?;
    let old = from.lookup_entry(old_name)?;
    let new = match to.lookup_entry(new_name) {
        Ok(entry) => Some(entry),
        Err(Errno::ENOENT) => None,
        Err(error) => return Err(error),
    };
    check_rename(caller, (&old_dir, &old, &old_last), (&new_dir, new.as_ref(), &new_last), flags)?;
    if let Some(new) = &new
        && Rc::ptr_eq(old.inode(), new.inode())
    {
        // Two names of one file: nothing happens.
        return Ok(());
    }
    old_dir.inode.rename(old_name, &new_dir.inode, new_name, flags)?;
    if let Some(new) = new {
        if flags & RENAME_EXCHANGE != 0 {
            new.moved(&old_dir.entry, old_name);
            old.moved(&new_dir.entry, new_name);
            notify::rename_event((&new_dir.inode, new_name), (&old_dir.inode, old_name), new.inode());
            notify::rename_event((&old_dir.inode, old_name), (&new_dir.inode, new_name), old.inode());
            return Ok(());
        }
        gone(&new);
    }
    old.moved(&new_dir.entry, new_name);
    notify::rename_event((&old_dir.inode, old_name), (&new_dir.inode, new_name), old.inode());
    Ok(())
}

fn check_rename(
    caller: &Caller,
    (old_dir, old, old_last): (&Location, &Rc<Entry>, &Last),
    (new_dir, new, new_last): (&Location, Option<&Rc<Entry>>, &Last),
    flags: u32,
) -> Result<()> {
    let exchange = flags & RENAME_EXCHANGE != 0;
    match new {
        Some(_) if flags & RENAME_NOREPLACE != 0 => return Err(Errno::EEXIST),
        Some(new) if exchange && new_last.slash && !is_directory(new.inode()) => return Err(Errno::ENOTDIR),
        None if exchange => return Err(Errno::ENOENT),
        _ => {}
    }
    let directory = is_directory(old.inode());
    if !directory && (old_last.slash || (!exchange && new_last.slash)) {
        return Err(Errno::ENOTDIR);
    }
    if old.is_ancestor_of(&new_dir.entry) {
        return Err(Errno::EINVAL);
    }
    if let Some(new) = new
        && new.is_ancestor_of(&old_dir.entry)
    {
        return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
    }
    if new.is_some_and(|new| Rc::ptr_eq(new.inode(), old.inode())) {
        return Ok(());
    }
    let creds = &caller.creds;
    access::check_remove(old_dir, old.inode(), creds)?;
    match new {
        None => access::check_add(new_dir, creds)?,
        Some(new) => {
            access::check_remove(new_dir, new.inode(), creds)?;
            match (directory, is_directory(new.inode())) {
                (true, false) if !exchange => return Err(Errno::ENOTDIR),
                (false, true) if !exchange => return Err(Errno::EISDIR),
                _ => {}
            }
        }
    }
    if !Rc::ptr_eq(&old_dir.entry, &new_dir.entry) {
        // The `..` of a directory that moves is written.
        let may_move =
            |entry: &Rc<Entry>| !is_directory(entry.inode()) || may_access(&entry.inode().metadata(), creds, WRITE);
        if !may_move(old) || (exchange && new.is_some_and(|new| !may_move(new))) {
            return Err(Errno::EACCES);
        }
    }
    if old.is_mount_point() || new.is_some_and(|new| new.is_mount_point()) {
        return Err(Errno::EBUSY);
    }
    Ok(())
}

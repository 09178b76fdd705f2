//! open(2) and openat2(2).

use super::access::{self, EXECUTE, READ, WRITE};
use super::caller::Caller;
use super::clock;
use super::context::Location;
use super::entry::Entry;
use super::file::{FileOps, OpenFile, OpenFlags};
use super::inode::{FileType, Inode, Metadata, SetMetadata};
use super::mount::MountFlags;
use super::notify::{self, mask};
use super::path::{LastName, MAX_NAME_BYTES, Resolve, Walk};
use crate::errno::{Errno, Result};
use alloc::format;
use alloc::rc::Rc;
use core::any::Any;

/// How to open.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Flags of open(2).
    pub flags: OpenFlags,
    /// Permission bits of a new file, before the umask.
    pub mode: u32,
    /// Restrictions of the resolution.
    pub resolve: Resolve,
}

/// The flags that count with O_PATH.
const WITH_PATH: OpenFlags =
    OpenFlags::PATH.union(OpenFlags::DIRECTORY).union(OpenFlags::NOFOLLOW).union(OpenFlags::CLOEXEC);
const CREATES: OpenFlags = OpenFlags::CREAT.union(OpenFlags::TMPFILE_BIT);

impl How {
    /// From the arguments of open(2), which ignores what it does not know.
    ///
    /// # Errors
    /// EINVAL for flags that do not go together.
    pub fn of_open(flags: u32, mode: u32) -> Result<Self> {
        let mut flags = OpenFlags::from_bits_truncate(flags);
        if flags.contains(OpenFlags::PATH) {
            flags &= WITH_PATH;
        }
        Self { flags, mode: mode & 0o7777, resolve: Resolve::empty() }.checked()
    }

    /// From the arguments of openat2(2), which wants to know everything.
    ///
    /// # Errors
    /// EINVAL for unknown bits and for flags that do not go together, EAGAIN for creation with RESOLVE_CACHED.
    pub fn of_openat2(flags: u64, mode: u64, resolve: u64) -> Result<Self> {
        let flags = u32::try_from(flags).ok().and_then(OpenFlags::from_bits).ok_or(Errno::EINVAL)?;
        let resolve = Resolve::from_bits(resolve).ok_or(Errno::EINVAL)?;
        let path_and_more = flags.contains(OpenFlags::PATH) && !WITH_PATH.contains(flags);
        let needless_mode = mode != 0 && !flags.intersects(CREATES);
        if path_and_more || needless_mode || mode & !0o7777 != 0 {
            return Err(Errno::EINVAL);
        }
        if resolve.contains(Resolve::CACHED) && flags.intersects(CREATES | OpenFlags::TRUNC) {
            return Err(Errno::EAGAIN);
        }
        Self { flags, mode: mode as u32, resolve }.checked()
    }

    fn checked(mut self) -> Result<Self> {
        let flags = self.flags;
        let create_directory = flags.contains(OpenFlags::DIRECTORY | OpenFlags::CREAT);
        let tmpfile_only = flags.contains(OpenFlags::TMPFILE_BIT)
            && (!flags.contains(OpenFlags::DIRECTORY) || wanted(flags) & WRITE == 0);
        if create_directory || tmpfile_only || self.resolve.contains(Resolve::BENEATH | Resolve::IN_ROOT) {
            return Err(Errno::EINVAL);
        }
        if flags.contains(OpenFlags::SYNC_BIT) {
            self.flags |= OpenFlags::DSYNC;
        }
        Ok(self)
    }
}

/// What can be done with a descriptor of O_PATH: nothing with the data.
struct PathOnly(Rc<dyn Inode>);

impl FileOps for PathOnly {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Metadata {
        self.0.metadata()
    }

    fn describe(&self) -> alloc::string::String {
        alloc::string::String::new()
    }
}

/// Opens `path` from `start`.
///
/// # Errors
/// As open(2).
pub fn open(caller: &Caller, start: Location, path: &[u8], how: How) -> Result<Rc<OpenFile>> {
    let flags = how.flags;
    let walk = caller.walk(start, path, how.resolve)?;
    if flags.contains(OpenFlags::PATH) {
        let location = walk.to_end(!flags.contains(OpenFlags::NOFOLLOW))?;
        check_directory(&location, flags)?;
        let ops = Rc::new(PathOnly(Rc::clone(&location.inode)));
        let kept = OpenFlags::PATH | OpenFlags::DIRECTORY | OpenFlags::NOFOLLOW;
        return Ok(OpenFile::new(ops, flags & kept, Some(location)));
    }
    if flags.contains(OpenFlags::TMPFILE_BIT) {
        return open_tmpfile(caller, walk, how);
    }
    open_named(caller, walk, how)
}

/// Opens an object that has been resolved already (an executable, a link of /proc).
///
/// # Errors
/// As open(2).
pub fn open_location(caller: &Caller, location: Location, flags: OpenFlags) -> Result<Rc<OpenFile>> {
    finish(caller, location, flags, false)
}

fn check_directory(location: &Location, flags: OpenFlags) -> Result<()> {
    if flags.contains(OpenFlags::DIRECTORY) && location.inode.metadata().file_type != FileType::Directory {
        return Err(Errno::ENOTDIR);
    }
    Ok(())
}

fn open_named(caller: &Caller, mut walk: Walk<'_>, how: How) -> Result<Rc<OpenFile>> {
    let flags = how.flags;
    let create = flags.contains(OpenFlags::CREAT);
    let exclusive = create && flags.contains(OpenFlags::EXCL);
    loop {
        let last = walk.to_last()?;
        let name = match last.name {
            LastName::Name(name) => name,
            LastName::DotDot => {
                walk.to_parent()?;
                return finish_existing(caller, walk.at().clone(), flags);
            }
            LastName::Dot | LastName::Root => return finish_existing(caller, walk.at().clone(), flags),
        };
        if create && last.slash {
            return Err(Errno::EISDIR);
        }
        let found = match walk.lookup(&name) {
            Ok(found) => found,
            Err(Errno::ENOENT) if create => return create_and_open(caller, walk.at(), &name, how),
            Err(error) => return Err(error),
        };
        if exclusive {
            return Err(Errno::EEXIST);
        }
        if found.inode.metadata().file_type != FileType::Symlink {
            if last.slash && found.inode.metadata().file_type != FileType::Directory {
                return Err(Errno::ENOTDIR);
            }
            return finish_existing(caller, found, flags);
        }
        if flags.contains(OpenFlags::NOFOLLOW) && !last.slash {
            // A link is no directory: O_DIRECTORY tells so first.
            check_directory(&found, flags)?;
            return Err(Errno::ELOOP);
        }
        if let Some(target) = walk.follow_at_end(&found, last.slash)? {
            return finish_existing(caller, target, flags);
        }
    }
}

fn create_and_open(caller: &Caller, directory: &Location, name: &[u8], how: How) -> Result<Rc<OpenFile>> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Errno::ENAMETOOLONG);
    }
    access::check_add(directory, &caller.creds)?;
    let new = super::names::inherited(caller, directory, caller.new_inode(FileType::Regular, how.mode, 0));
    let inode = directory.inode.create(name, &new)?;
    notify::name_event(&directory.inode, name, &inode, mask::IN_CREATE);
    let entry = Entry::insert(&directory.entry, name, inode);
    finish(caller, Location::new(entry, Rc::clone(&directory.mount)), how.flags, true)
}

fn open_tmpfile(caller: &Caller, walk: Walk<'_>, how: How) -> Result<Rc<OpenFile>> {
    let flags = how.flags;
    let directory = walk.to_end(true)?;
    check_directory(&directory, OpenFlags::DIRECTORY)?;
    // Which may have been removed: nothing is added to it.
    access::check(&directory, &caller.creds, access::WRITE | access::EXECUTE)?;
    let new = super::names::inherited(caller, &directory, caller.new_inode(FileType::Regular, how.mode, 0));
    let inode = directory.inode.tmpfile(&new, !flags.contains(OpenFlags::EXCL))?;
    let name = format!("#{}", inode.metadata().ino);
    let entry = Entry::nameless(&directory.entry, name.as_bytes(), inode);
    let location = Location::new(entry, directory.mount);
    // The flag is part of O_TMPFILE, and stays, though the file is no directory.
    let file = finish(caller, location, flags - OpenFlags::DIRECTORY, true)?;
    file.flags.set(file.flags.get() | OpenFlags::DIRECTORY);
    Ok(file)
}

fn finish_existing(caller: &Caller, location: Location, flags: OpenFlags) -> Result<Rc<OpenFile>> {
    if flags.contains(OpenFlags::CREAT) {
        if flags.contains(OpenFlags::EXCL) {
            return Err(Errno::EEXIST);
        }
        if location.inode.metadata().file_type == FileType::Directory {
            return Err(Errno::EISDIR);
        }
    }
    finish(caller, location, flags, false)
}

/// The ways of access that `flags` ask for.
fn wanted(flags: OpenFlags) -> u32 {
    let mode = match flags.bits() & 3 {
        0 => READ,
        1 => WRITE,
        // 3 asks for both permissions, and for neither reading nor writing (ioctl only).
        _ => READ | WRITE,
    };
    if flags.contains(OpenFlags::TRUNC) { mode | WRITE } else { mode }
}

fn finish(caller: &Caller, location: Location, flags: OpenFlags, created: bool) -> Result<Rc<OpenFile>> {
    let meta = location.inode.metadata();
    check_directory(&location, flags)?;
    match meta.file_type {
        FileType::Symlink => return Err(Errno::ELOOP),
        FileType::Directory if wanted(flags) & WRITE != 0 => return Err(Errno::EISDIR),
        FileType::CharDevice | FileType::BlockDevice if location.mount.flags.get().contains(MountFlags::NODEV) => {
            return Err(Errno::EACCES);
        }
        _ => {}
    }
    if !created {
        access::check(&location, &caller.creds, wanted(flags) & !EXECUTE)?;
    }
    if flags.contains(OpenFlags::NOATIME) && !access::is_owner(&meta, &caller.creds) {
        return Err(Errno::EPERM);
    }
    let ops = Rc::clone(&location.inode).open(flags)?;
    if flags.contains(OpenFlags::TRUNC) && !created && meta.file_type == FileType::Regular {
        let mode = access::mode_after_write(&meta, &caller.creds);
        let change = SetMetadata { size: Some(0), mtime: Some(clock::now()), mode, ..SetMetadata::default() };
        location.inode.set_metadata(&change)?;
        notify::event(&location, mask::IN_MODIFY);
    }
    let file = OpenFile::new(ops, flags, Some(location.clone()));
    notify::event(&location, mask::IN_OPEN);
    Ok(file)
}

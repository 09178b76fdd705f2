//! Inodes whose content is made when it is looked at: the material of /proc, /sys and /dev/pts.

use super::file::{FileOps, OpenFile, OpenFlags};
use super::inode::{DirEntry, FileType, FsStatistics, Inode, Metadata, SetMetadata, Timestamp};
use crate::errno::{Errno, Result};
use crate::mm::user::{Dest, Source};
use crate::task::process::Process;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::RefCell;

/// The most that one write to a generated file may hold (as for sysctls on Linux: a page).
const MAX_WRITE_BYTES: usize = 4096;

/// Which file system a generated inode is in.
#[derive(Clone, Copy, Debug)]
pub struct Home {
    /// Device number.
    pub dev: u64,
    /// Magic number for statfs(2).
    pub magic: u64,
}

/// What all generated inodes have.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// The file system.
    pub home: Home,
    /// Inode number: stable for a name.
    pub ino: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
}

impl Attributes {
    /// What stat(2) tells of an inode with these.
    #[must_use]
    pub fn metadata(&self, file_type: FileType, nlink: u32) -> Metadata {
        let now = now();
        Metadata {
            dev: self.home.dev,
            ino: self.ino,
            file_type,
            mode: self.mode,
            nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            size: 0,
            block_bytes: 1024,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: None,
        }
    }

    /// What a file allows of itself: O_TRUNC of `echo x >/proc/...`, which changes nothing.
    ///
    /// # Errors
    /// EPERM.
    pub const fn set_metadata(&self, change: &SetMetadata) -> Result<()> {
        let only_size = change.size.is_some() && change.mode.is_none() && change.uid.is_none() && change.gid.is_none();
        if only_size { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// What statfs(2) tells.
    #[must_use]
    pub const fn statistics(&self) -> FsStatistics {
        FsStatistics { magic: self.home.magic, block_bytes: 4096, blocks: 0, blocks_free: 0, inodes: 0, inodes_free: 0 }
    }
}

fn now() -> Timestamp {
    let ns = crate::time::realtime_ns();
    Timestamp { sec: (ns / 1_000_000_000).cast_signed(), nsec: (ns % 1_000_000_000) as u32 }
}

/// A number for `name` in the directory `parent`: FNV-1a, which is enough for numbers that need only differ.
#[must_use]
pub fn ino_of(parent: u64, name: &[u8]) -> u64 {
    let start = parent ^ 0xcbf2_9ce4_8422_2325;
    name.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)) >> 16 | 1 << 47
}

/// Makes a file's content. May not block.
pub type Read = Rc<dyn Fn() -> Result<Vec<u8>>>;
/// Takes what one write(2) wrote.
pub type Write = Rc<dyn Fn(&[u8]) -> Result<()>>;

/// A text file.
pub struct TextFile {
    /// What stat(2) tells.
    pub attributes: Attributes,
    /// Its content, made anew when it is read from the start.
    pub read: Read,
    /// EACCES by mode where there is none.
    pub write: Option<Write>,
}

impl Inode for TextFile {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Metadata {
        self.attributes.metadata(FileType::Regular, 1)
    }

    fn statistics(&self) -> Result<FsStatistics> {
        Ok(self.attributes.statistics())
    }

    fn set_metadata(&self, change: &SetMetadata) -> Result<()> {
        self.attributes.set_metadata(change)
    }

    fn open(self: Rc<Self>, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
        if flags.writable() && self.write.is_none() {
            return Err(Errno::EACCES);
        }
        Ok(Rc::new(OpenText { inode: self, content: RefCell::new(None) }))
    }
}

struct OpenText {
    inode: Rc<TextFile>,
    content: RefCell<Option<Vec<u8>>>,
}

impl FileOps for OpenText {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, _file: &OpenFile, dst: &mut Dest<'_>, offset: u64) -> Result<usize> {
        if offset == 0 || self.content.borrow().is_none() {
            let made = (self.inode.read)()?;
            *self.content.borrow_mut() = Some(made);
        }
        let content = self.content.borrow();
        let rest = content.as_deref().and_then(|c| c.get(usize::try_from(offset).ok()?..)).unwrap_or(&[]);
        dst.put(rest)
    }

    fn write(&self, _file: &OpenFile, src: &mut Source<'_>, offset: u64) -> Result<(usize, u64)> {
        let write = self.inode.write.as_ref().ok_or(Errno::EACCES)?;
        let mut bytes = vec![0; src.remaining().min(MAX_WRITE_BYTES)];
        let n = src.take(&mut bytes)?;
        write(&bytes[..n])?;
        Ok((n, offset + n as u64))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, _file: &OpenFile, _offset: i64, _whence: u32) -> Result<u64> {
        Err(Errno::EINVAL)
    }

    fn metadata(&self) -> Metadata {
        Inode::metadata(&*self.inode)
    }

    fn describe(&self) -> String {
        String::from("generated")
    }
}

/// A symbolic link.
pub struct Link {
    /// What stat(2) tells; the mode is 0777.
    pub attributes: Attributes,
    /// Its text.
    pub target: Rc<dyn Fn() -> Result<Vec<u8>>>,
    /// Where following it leads, if that is more than its text.
    pub magic: Option<Rc<dyn Fn() -> Option<super::context::Location>>>,
}

impl Inode for Link {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Metadata {
        self.attributes.metadata(FileType::Symlink, 1)
    }

    fn statistics(&self) -> Result<FsStatistics> {
        Ok(self.attributes.statistics())
    }

    fn open(self: Rc<Self>, _flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
        Err(Errno::ELOOP)
    }

    fn read_link(&self) -> Result<Vec<u8>> {
        (self.target)()
    }

    fn magic_link(&self) -> Option<super::context::Location> {
        self.magic.as_ref().and_then(|magic| magic())
    }
}

/// What a generated directory holds.
pub trait Listing {
    /// All names with their types, without `.` and `..`.
    fn names(&self) -> Vec<(Vec<u8>, FileType)>;

    /// The inode of a name; its number should be [`ino_of`] the directory's.
    fn find(&self, name: &[u8]) -> Option<Rc<dyn Inode>>;

    /// The process that the directory is of, in /proc; ESRCH once it is gone.
    fn process(&self) -> Option<Result<Rc<Process>>> {
        None
    }
}

/// A directory.
pub struct Directory {
    /// What stat(2) tells.
    pub attributes: Attributes,
    /// Its content.
    pub listing: Box<dyn Listing>,
}

impl Inode for Directory {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Metadata {
        let subdirectories = self.listing.names().iter().filter(|(_, t)| *t == FileType::Directory).count();
        self.attributes.metadata(FileType::Directory, 2 + subdirectories as u32)
    }

    fn statistics(&self) -> Result<FsStatistics> {
        Ok(self.attributes.statistics())
    }

    fn open(self: Rc<Self>, _flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
        Ok(Rc::new(OpenDirectory(self)))
    }

    fn lookup(&self, name: &[u8]) -> Result<Rc<dyn Inode>> {
        self.listing.find(name).ok_or(Errno::ENOENT)
    }

    fn read_dir(&self, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        let dots = [&b"."[..], b".."].map(|name| (name.to_vec(), FileType::Directory));
        let all = dots.into_iter().chain(self.listing.names());
        let ino =
            |name: &[u8]| if name.starts_with(b".") { self.attributes.ino } else { ino_of(self.attributes.ino, name) };
        let numbered = all.enumerate().skip(usize::try_from(cookie).unwrap_or(usize::MAX)).take(max);
        Ok(numbered
            .map(|(n, (name, file_type))| DirEntry {
                ino: ino(&name),
                next: n as u64 + 1,
                file_type,
                name: name.into(),
            })
            .collect())
    }
}

/// An open directory: getdents64(2) asks its inode.
struct OpenDirectory(Rc<Directory>);

impl FileOps for OpenDirectory {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, _file: &OpenFile, _dst: &mut Dest<'_>, _offset: u64) -> Result<usize> {
        Err(Errno::EISDIR)
    }

    fn metadata(&self) -> Metadata {
        Inode::metadata(&*self.0)
    }

    fn describe(&self) -> String {
        String::from("generated")
    }
}

/// A directory whose entries are known when it is made.
pub struct Fixed(pub Vec<(&'static str, FileType, Rc<dyn Inode>)>);

impl Listing for Fixed {
    fn names(&self) -> Vec<(Vec<u8>, FileType)> {
        self.0.iter().map(|(name, file_type, _)| (name.as_bytes().to_vec(), *file_type)).collect()
    }

    fn find(&self, name: &[u8]) -> Option<Rc<dyn Inode>> {
        self.0.iter().find(|(n, _, _)| n.as_bytes() == name).map(|(_, _, inode)| Rc::clone(inode))
    }
}

/// Builds fixed trees: `tree.directory("kernel", |t| t.text("hostname", read))`.
pub struct Tree {
    home: Home,
    ino: u64,
    entries: Vec<(&'static str, FileType, Rc<dyn Inode>)>,
}

impl Tree {
    /// An empty root.
    #[must_use]
    pub const fn new(home: Home, ino: u64) -> Self {
        Self { home, ino, entries: Vec::new() }
    }

    fn attributes(&self, name: &str, mode: u32) -> Attributes {
        Attributes { home: self.home, ino: ino_of(self.ino, name.as_bytes()), mode, owner: (0, 0) }
    }

    /// Adds any inode.
    pub fn add(&mut self, name: &'static str, file_type: FileType, inode: Rc<dyn Inode>) {
        self.entries.push((name, file_type, inode));
    }

    /// Adds a read-only text file.
    pub fn text(&mut self, name: &'static str, read: impl Fn() -> String + 'static) {
        let attributes = self.attributes(name, 0o444);
        let read: Read = Rc::new(move || Ok(read().into_bytes()));
        self.add(name, FileType::Regular, Rc::new(TextFile { attributes, read, write: None }));
    }

    /// Adds a text file that root may write.
    pub fn setting(&mut self, name: &'static str, read: impl Fn() -> String + 'static, write: Write) {
        let attributes = self.attributes(name, 0o644);
        let read: Read = Rc::new(move || Ok(read().into_bytes()));
        self.add(name, FileType::Regular, Rc::new(TextFile { attributes, read, write: Some(write) }));
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &'static str, target: impl Fn() -> String + 'static) {
        let attributes = self.attributes(name, 0o777);
        let target = Rc::new(move || Ok(target().into_bytes()));
        self.add(name, FileType::Symlink, Rc::new(Link { attributes, target, magic: None }));
    }

    /// Adds a directory.
    pub fn directory(&mut self, name: &'static str, fill: impl FnOnce(&mut Tree)) {
        let attributes = self.attributes(name, 0o555);
        let mut tree = Tree::new(self.home, attributes.ino);
        fill(&mut tree);
        self.add(name, FileType::Directory, tree.finish(attributes));
    }

    fn finish(self, attributes: Attributes) -> Rc<Directory> {
        Rc::new(Directory { attributes, listing: Box::new(Fixed(self.entries)) })
    }

    /// The tree's root as a directory.
    #[must_use]
    pub fn root(self) -> Rc<Directory> {
        let attributes = Attributes { home: self.home, ino: self.ino, mode: 0o555, owner: (0, 0) };
        self.finish(attributes)
    }

    /// The entries, for a directory that has others besides.
    #[must_use]
    pub fn entries(self) -> Fixed {
        Fixed(self.entries)
    }
}

//! Images in memory, made by mkfs.erofs and fenced by inaccessible pages.

use std::fs;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::process::Command;
use std::ptr;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use tempfile::TempDir;
use torpor_kernel::fs::erofs::{Erofs, ErofsError, Image};

/// A directory for one test, removed with the value. In the build tree, whose file system keeps
/// extended attributes; /tmp's may not.
pub(crate) fn scratch_dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Runs mkfs.erofs and returns the image.
pub(crate) fn mkfs(source: &Path, options: &[&str]) -> Vec<u8> {
    let dir = scratch_dir();
    let path = dir.path().join("image.erofs");
    let output = Command::new("mkfs.erofs")
        .args(options)
        .args([&path, source])
        .output()
        .expect("mkfs.erofs runs (it is in the package erofs-utils)");
    assert!(output.status.success(), "mkfs.erofs {options:?}: {output:?}");
    fs::read(path).unwrap()
}

/// The bytes of an image, for changing what mkfs.erofs never writes.
pub(crate) struct Patch(pub(crate) Vec<u8>);

impl Patch {
    pub(crate) const SUPERBLOCK: usize = 1024;

    /// The image of `source`, its checksum switched off, so that changes to the superblock pass it.
    pub(crate) fn of_directory(source: &Path, options: &[&str]) -> Self {
        let mut image = mkfs(source, options);
        image[Self::SUPERBLOCK + 8] &= !1;
        Self(image)
    }

    pub(crate) fn set_u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn set_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    /// The number of `name` in the root directory.
    pub(crate) fn nid(&self, name: &str) -> u64 {
        let image = self.image();
        let erofs = image.erofs();
        let root = erofs.inode(erofs.root_nid()).unwrap();
        erofs.lookup(&root, name.as_bytes()).unwrap().unwrap().0
    }

    /// Where the inode of `name` in the root directory is.
    pub(crate) fn inode_at(&self, name: &str) -> usize {
        self.u32(Self::SUPERBLOCK + 40) as usize * 4096 + self.nid(name) as usize * 32
    }

    pub(crate) fn image(&self) -> TestImage {
        TestImage::of_bytes(&self.0)
    }
}

/// Bytes that end at an inaccessible page, so that a read beyond them is a crash and not luck; the
/// one page in front of them is inaccessible too.
pub(crate) struct Fenced {
    map: *mut u8,
    map_bytes: usize,
    start: *mut u8,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for Fenced {}
// SAFETY: shared use only reads plain bytes or writes them volatilely, see `write`.
unsafe impl Sync for Fenced {}

impl Fenced {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        const PAGE: usize = 4096;
        let inner = bytes.len().next_multiple_of(PAGE);
        let map_bytes = inner + 2 * PAGE;
        // SAFETY: a new mapping at an address of the kernel's choice; the two ranges that are made
        // inaccessible lie inside it, and nothing refers to them.
        let map = unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            let map = mmap_anonymous(ptr::null_mut(), map_bytes, access, MapFlags::PRIVATE).unwrap();
            mprotect(map, PAGE, MprotectFlags::empty()).unwrap();
            mprotect(map.byte_add(PAGE + inner), PAGE, MprotectFlags::empty()).unwrap();
            map.cast::<u8>()
        };
        // SAFETY: start..start + len is inside the accessible part, `inner >= len`.
        let start = unsafe {
            let start = map.add(PAGE + inner - bytes.len());
            ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len());
            start
        };
        Self { map, map_bytes, start, len: bytes.len() }
    }

    /// The bytes as an image.
    ///
    /// # Safety
    /// The image is not used after this value is dropped.
    pub(crate) unsafe fn image(&self) -> Image {
        // SAFETY: mapped and readable until `self` is dropped, to which the caller keeps.
        unsafe { Image::from_raw(self.start, self.len) }
    }

    /// Changes a byte, also while somebody reads the image.
    pub(crate) fn write(&self, offset: usize, byte: u8) {
        assert!(offset < self.len);
        // SAFETY: inside the mapping (checked). No Rust reference to the bytes exists; readers copy
        // them by an instruction that tolerates the change.
        unsafe { self.start.add(offset).write_volatile(byte) }
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, unmapped once.
        unsafe { munmap(self.map.cast(), self.map_bytes).unwrap() }
    }
}

/// An image for reading. It stays mapped until the tests end, as the handles made of it may.
pub(crate) struct TestImage(ManuallyDrop<Fenced>);

impl TestImage {
    pub(crate) fn of_directory(source: &Path, options: &[&str]) -> Self {
        Self::of_bytes(&mkfs(source, options))
    }

    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self(ManuallyDrop::new(Fenced::new(bytes)))
    }

    pub(crate) fn open(&self) -> Result<Erofs, ErofsError> {
        // SAFETY: the bytes are never dropped.
        Erofs::open(unsafe { self.0.image() })
    }

    pub(crate) fn erofs(&self) -> Erofs {
        self.open().unwrap()
    }
}

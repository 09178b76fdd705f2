//! Reader of EROFS images: what `mkfs.erofs` makes without compression and on one device.
//!
//! The image is one piece of memory and is not trusted: its bytes may be hostile and may change while
//! they are read. Every field is copied out once and then validated; every access is checked against
//! the image's length; every loop is bounded by the request or by a search that halves; nothing
//! recurses. Damage is an error that names the inode, never a panic.
//!
//! Format: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux. Read here are both
//! inode forms, the layouts flat plain, flat inline and chunk based, sorted directories, and inline
//! and shared extended attributes. Refused by name are compression, further devices, fragments and
//! long attribute prefixes.

mod crc32c;
mod data;
mod dir;
mod error;
mod image;
mod inode;
mod superblock;
mod xattr;

pub use data::{Extent, FilePage};
pub use dir::{DirEntry, Name};
pub use error::{ErofsError, Result};
pub use image::Image;
pub use inode::Inode;

use super::inode::FileType;
use superblock::Superblock;

const BLOCK_BITS: u32 = 12;
/// Size of a block and of a page.
const BLOCK_BYTES: u64 = 1 << BLOCK_BITS;

/// An open image. Cheap to copy and without mutable state.
#[derive(Clone, Copy, Debug)]
pub struct Erofs {
    image: Image,
    superblock: Superblock,
}

impl Erofs {
    /// Checks the superblock (magic, block size, length, checksum where there is one, features) and
    /// that the root is a directory.
    ///
    /// # Errors
    /// One for each of these, saying what to do about it.
    pub fn open(image: Image) -> Result<Self> {
        let erofs = Self { image, superblock: Superblock::read(&image)? };
        match erofs.inode(erofs.root_nid())?.file_type {
            FileType::Directory => Ok(erofs),
            _ => Err(ErofsError::CorruptSuperblock("the root inode is not a directory")),
        }
    }

    /// The image that this was opened on.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The inode number of the root directory.
    #[must_use]
    pub fn root_nid(&self) -> u64 {
        self.superblock.root_nid
    }

    /// Number of inodes as the image states it, for statfs(2).
    #[must_use]
    pub fn nr_inodes(&self) -> u64 {
        self.superblock.nr_inodes
    }

    /// Number of 4096-byte blocks as the image states it, for statfs(2).
    #[must_use]
    pub fn nr_blocks(&self) -> u64 {
        u64::from(self.superblock.nr_blocks)
    }

    /// The identity given to the image by its maker.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.superblock.uuid
    }
}

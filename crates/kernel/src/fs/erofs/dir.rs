//! Directories: blocks of sorted entries.
//!
//! ```text
//! block:  entry 0 | entry 1 | ... | entry n-1 | name 0 | name 1 | ... | name n-1 | zeros
//! entry:  0 nid u64 | 8 nameoff u16 | 10 file_type u8 | 11 reserved
//! ```
//! The first name starts where the entries end, which gives their number; a name ends where the next
//! one starts, the last at a NUL or with the block. Names ascend bytewise within and across blocks,
//! `.` and `..` among them, so a lookup is two binary searches. A directory that is not sorted hides
//! names from lookup and does nothing worse.

use super::error::{ErofsError, Result};
use super::image::Fields;
use super::inode::Inode;
use super::{BLOCK_BYTES, Erofs, Extent};
use crate::fs::inode::FileType;

const DIRENT_BYTES: usize = 12;
/// NAME_MAX of Linux and of the format.
const NAME_MAX_BYTES: usize = 255;

/// A file name: 1 to 255 bytes, neither `/` nor NUL among them.
#[derive(Clone, Copy)]
pub struct Name {
    len: u8,
    bytes: [u8; NAME_MAX_BYTES],
}

impl Name {
    /// The bytes of the name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl core::fmt::Debug for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry {
    /// The entry's name; `.` and `..` are entries like any other.
    pub name: Name,
    /// The inode that it names.
    pub nid: u64,
    /// A hint at the inode's type; `None` is DT_UNKNOWN.
    pub file_type: Option<FileType>,
    /// Where the entry after this one is found.
    pub next_cookie: u64,
}

/// A block of a directory, in the image.
struct Block {
    nid: u64,
    offset_bytes: u64,
    len_bytes: usize,
    nr_entries: usize,
}

impl Erofs {
    /// The inode number and type hint of `name` in the directory `dir`; `None` where it has no such
    /// entry. Names longer than 255 bytes are never found.
    ///
    /// # Errors
    /// `NotDirectory`, or `Corrupt` for a damaged block on the way.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<(u64, Option<FileType>)>> {
        check_directory(dir)?;
        // The last block whose first name is not after `name`.
        let (mut low, mut high) = (0, dir.size_bytes.div_ceil(BLOCK_BYTES));
        let mut candidate = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let block = self.dir_block(dir, middle)?;
            if self.entry(&block, 0)?.name.as_bytes() <= name {
                candidate = Some(block);
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let Some(block) = candidate else {
            return Ok(None);
        };
        let (mut low, mut high) = (0, block.nr_entries);
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.entry(&block, middle)?;
            match entry.name.as_bytes().cmp(name) {
                core::cmp::Ordering::Equal => return Ok(Some((entry.nid, entry.file_type))),
                core::cmp::Ordering::Less => low = middle + 1,
                core::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// The entry of `dir` at or after `cookie`; `None` at the end. 0 is the first entry, and each
    /// entry names its successor. A cookie is the entry's offset in the directory, so it stays valid
    /// for ever; any other value finds the next entry after it.
    ///
    /// # Errors
    /// `NotDirectory`, or `Corrupt` for a damaged entry or block.
    pub fn readdir(&self, dir: &Inode, cookie: u64) -> Result<Option<DirEntry>> {
        check_directory(dir)?;
        let mut block_index = cookie / BLOCK_BYTES;
        let mut index = ((cookie % BLOCK_BYTES) as usize).div_ceil(DIRENT_BYTES);
        // Twice at most: every block has an entry.
        while block_index < dir.size_bytes.div_ceil(BLOCK_BYTES) {
            let block = self.dir_block(dir, block_index)?;
            if index < block.nr_entries {
                let mut entry = self.entry(&block, index)?;
                entry.next_cookie = if index + 1 < block.nr_entries {
                    block_index * BLOCK_BYTES + ((index + 1) * DIRENT_BYTES) as u64
                } else {
                    (block_index + 1) * BLOCK_BYTES
                };
                return Ok(Some(entry));
            }
            block_index += 1;
            index = 0;
        }
        Ok(None)
    }

    /// Block `index` of `dir`, which has that many blocks.
    fn dir_block(&self, dir: &Inode, index: u64) -> Result<Block> {
        let corrupt = |rule| ErofsError::Corrupt { nid: dir.nid, rule };
        // No overflow: the product is below the directory's size.
        let start_bytes = index * BLOCK_BYTES;
        let len_bytes = (dir.size_bytes - start_bytes).min(BLOCK_BYTES);
        let offset_bytes = match self.extent(dir, start_bytes)? {
            Some(Extent::Data { offset_bytes, len_bytes: inside }) if inside >= len_bytes => offset_bytes,
            _ => return Err(corrupt("a block of the directory is not in the image")),
        };
        let mut block = Block { nid: dir.nid, offset_bytes, len_bytes: len_bytes as usize, nr_entries: 1 };
        let names_start = usize::from(self.dirent(&block, 0)?.1);
        if names_start < DIRENT_BYTES || !names_start.is_multiple_of(DIRENT_BYTES) || names_start >= block.len_bytes {
            return Err(corrupt("a block of the directory has no number of entries"));
        }
        block.nr_entries = names_start / DIRENT_BYTES;
        Ok(block)
    }

    /// The three fields of an entry: inode, start of the name in the block, type. `index` is below
    /// the number of entries.
    fn dirent(&self, block: &Block, index: usize) -> Result<(u64, u16, u8)> {
        let at = index * DIRENT_BYTES;
        let bytes: [u8; DIRENT_BYTES] = (at + DIRENT_BYTES <= block.len_bytes)
            .then(|| self.image.read(block.offset_bytes + at as u64))
            .flatten()
            .ok_or(ErofsError::Corrupt { nid: block.nid, rule: "a directory entry is cut off" })?;
        let fields = Fields(&bytes);
        Ok((fields.u64(0), fields.u16(8), fields.u8(10)))
    }

    /// Entry `index` of the block, without its successor's cookie.
    fn entry(&self, block: &Block, index: usize) -> Result<DirEntry> {
        let corrupt = |rule| ErofsError::Corrupt { nid: block.nid, rule };
        let (nid, name_start, file_type) = self.dirent(block, index)?;
        let start = usize::from(name_start);
        let is_last = index + 1 == block.nr_entries;
        let end = if is_last {
            block.len_bytes.min(start + NAME_MAX_BYTES + 1)
        } else {
            usize::from(self.dirent(block, index + 1)?.1)
        };
        let mut bytes = [0; NAME_MAX_BYTES + 1];
        let read = (start < end && end <= block.len_bytes)
            .then(|| bytes.get_mut(..end - start))
            .flatten()
            .ok_or(corrupt("the name of a directory entry has no valid place"))?;
        self.image
            .copy_to(block.offset_bytes + start as u64, read)
            .ok_or(corrupt("the name of a directory entry is outside the image"))?;
        let len = match read.iter().position(|&byte| byte == 0) {
            Some(nul) if is_last => nul,
            Some(_) => return Err(corrupt("the name of a directory entry contains a NUL")),
            None => read.len(),
        };
        let name = &bytes[..len];
        if name.is_empty() || name.contains(&b'/') {
            return Err(corrupt("the name of a directory entry is empty or contains a slash"));
        }
        let short = u8::try_from(len).map_err(|_| corrupt("a name is longer than 255 bytes"))?;
        let mut name = Name { len: short, bytes: [0; NAME_MAX_BYTES] };
        name.bytes.copy_from_slice(&bytes[..NAME_MAX_BYTES]);
        Ok(DirEntry { name, nid, file_type: type_of_dirent(file_type), next_cookie: 0 })
    }
}

/// The type byte of an entry, which is a hint; `None` is "unknown" and anything outside the format.
fn type_of_dirent(byte: u8) -> Option<FileType> {
    Some(match byte {
        1 => FileType::Regular,
        2 => FileType::Directory,
        3 => FileType::CharDevice,
        4 => FileType::BlockDevice,
        5 => FileType::Fifo,
        6 => FileType::Socket,
        7 => FileType::Symlink,
        _ => return None,
    })
}

fn check_directory(inode: &Inode) -> Result<()> {
    match inode.file_type {
        FileType::Directory => Ok(()),
        _ => Err(ErofsError::NotDirectory(inode.nid)),
    }
}

//! File data: where it is in the image, and copies of it.

use alloc::vec;
use alloc::vec::Vec;

use super::error::{ErofsError, Result};
use super::inode::{ChunkEntries, Inode, Layout};
use super::{BLOCK_BYTES, Erofs};
use crate::fs::inode::FileType;

/// A chunk that is not there: the file has a hole.
const NULL_BLOCK: u32 = u32::MAX;
/// symlink(7): a target is shorter than PATH_MAX, which counts a terminating NUL.
const SYMLINK_MAX_BYTES: u64 = 4095;

/// A piece of a file that is contiguous in the image. Never empty, and never beyond the file's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// `len_bytes` at `offset_bytes` of the image, all of them inside it.
    Data {
        /// First byte of the piece, from the start of the image.
        offset_bytes: u64,
        /// Length of the piece.
        len_bytes: u64,
    },
    /// `len_bytes` zeros that are not stored.
    Hole {
        /// Length of the piece.
        len_bytes: u64,
    },
}

/// How one page of a file gets into an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilePage {
    /// The page is a page of the image, as are the `nr_pages - 1` pages that follow it in the file.
    Mapped {
        /// First byte of the page, from the start of the image; a multiple of 4096.
        offset_bytes: u64,
        /// Number of consecutive pages, at least 1. All of them lie inside the image.
        nr_pages: u64,
    },
    /// The page has to be filled by [`Erofs::read_at`], and with zeros after the end of the file: its
    /// data is packed among metadata, or something else follows it in its block.
    Copied,
    /// The page is all zeros and not stored.
    Hole,
    /// The page lies beyond the end of the file, where an access is answered by SIGBUS.
    BeyondEnd,
}

impl Erofs {
    /// The piece of the file that starts at `offset_bytes`; `None` at or after the end.
    ///
    /// # Errors
    /// `Corrupt` where the data lies outside the image, `Unsupported` for compressed files.
    pub fn extent(&self, inode: &Inode, offset_bytes: u64) -> Result<Option<Extent>> {
        let corrupt = |rule| ErofsError::Corrupt { nid: inode.nid, rule };
        let Some(left_bytes) = inode.size_bytes.checked_sub(offset_bytes).filter(|&left| left != 0) else {
            return Ok(None);
        };
        let (start, len_bytes) = match inode.layout {
            Layout::NoData => return Ok(None),
            Layout::Compressed => {
                let what = "compression: make the image without it";
                return Err(ErofsError::Unsupported { nid: inode.nid, what });
            }
            Layout::FlatPlain { offset_bytes: start } => (start.checked_add(offset_bytes), left_bytes),
            Layout::FlatInline { offset_bytes: start, tail_offset_bytes } => {
                // The file is not empty, so there is a last block.
                let tail_start = (inode.size_bytes - 1) / BLOCK_BYTES * BLOCK_BYTES;
                if let Some(before_tail @ 1..) = tail_start.checked_sub(offset_bytes) {
                    (start.checked_add(offset_bytes), before_tail)
                } else {
                    let tail_bytes = inode.size_bytes - tail_start;
                    if tail_offset_bytes % BLOCK_BYTES + tail_bytes > BLOCK_BYTES {
                        return Err(corrupt("its inline data crosses the end of a block"));
                    }
                    (tail_offset_bytes.checked_add(offset_bytes - tail_start), left_bytes)
                }
            }
            Layout::Chunked { table_offset_bytes, chunk_bits, entries } => {
                let within_bytes = offset_bytes & ((1 << chunk_bits) - 1);
                let len_bytes = left_bytes.min((1 << chunk_bits) - within_bytes);
                let block = (offset_bytes >> chunk_bits)
                    .checked_mul(entries.size_bytes())
                    .and_then(|at| at.checked_add(table_offset_bytes))
                    .and_then(|at| self.chunk_block(at, entries))
                    .ok_or(corrupt("its table of chunks lies outside the image"))?;
                if block == NULL_BLOCK {
                    return Ok(Some(Extent::Hole { len_bytes }));
                }
                ((u64::from(block) * BLOCK_BYTES).checked_add(within_bytes), len_bytes)
            }
        };
        // What of it is inside the image; the first byte after that is an error when it is asked for.
        start
            .and_then(|start| Some((start, self.image.len_bytes().checked_sub(start)?)))
            .map(|(offset_bytes, inside)| (offset_bytes, len_bytes.min(inside)))
            .filter(|&(_, len_bytes)| len_bytes != 0)
            .map(|(offset_bytes, len_bytes)| Some(Extent::Data { offset_bytes, len_bytes }))
            .ok_or(corrupt("its data lies outside the image"))
    }

    /// The block address in the chunk table's entry at `at` of the image. An index's device number
    /// has as many valid bits as there are extra devices, which is none.
    fn chunk_block(&self, at: u64, entries: ChunkEntries) -> Option<u32> {
        let address_at = match entries {
            ChunkEntries::BlockMap => at,
            ChunkEntries::Indexes => at.checked_add(4)?,
        };
        self.image.read(address_at).map(u32::from_le_bytes)
    }

    /// How page `page_index` (of 4096 bytes) of the file can be mapped. Pages and blocks have the same
    /// size, so all but inline tails are pages of the image.
    ///
    /// # Errors
    /// As for [`Erofs::extent`].
    pub fn page(&self, inode: &Inode, page_index: u64) -> Result<FilePage> {
        let Some(start_bytes) = page_index.checked_mul(BLOCK_BYTES).filter(|&start| start < inode.size_bytes) else {
            return Ok(FilePage::BeyondEnd);
        };
        let (offset_bytes, len_bytes) = match self.extent(inode, start_bytes)? {
            None => return Ok(FilePage::BeyondEnd),
            // Chunks are whole pages.
            Some(Extent::Hole { .. }) => return Ok(FilePage::Hole),
            Some(Extent::Data { offset_bytes, len_bytes }) => (offset_bytes, len_bytes),
        };
        let in_page_bytes = BLOCK_BYTES.min(inode.size_bytes - start_bytes);
        if len_bytes < in_page_bytes {
            let rule = "its data lies outside the image";
            return Err(ErofsError::Corrupt { nid: inode.nid, rule });
        }
        Ok(if !offset_bytes.is_multiple_of(BLOCK_BYTES) {
            FilePage::Copied
        } else if len_bytes >= BLOCK_BYTES {
            FilePage::Mapped { offset_bytes, nr_pages: len_bytes / BLOCK_BYTES }
        } else if self.is_zero(offset_bytes + len_bytes, BLOCK_BYTES - len_bytes) {
            FilePage::Mapped { offset_bytes, nr_pages: 1 }
        } else {
            FilePage::Copied
        })
    }

    /// Whether `len_bytes` (below a block) from `offset_bytes` of the image on are inside it and zero.
    fn is_zero(&self, mut offset_bytes: u64, len_bytes: u64) -> bool {
        let mut buf = [0; 256];
        let mut left = len_bytes as usize;
        while left != 0 {
            let piece = &mut buf[..left.min(256)];
            if self.image.copy_to(offset_bytes, piece).is_none() || piece.iter().any(|&b| b != 0) {
                return false;
            }
            offset_bytes += piece.len() as u64;
            left -= piece.len();
        }
        true
    }

    /// Fills `buf` from `offset_bytes` of the file on, as pread(2) does: the number of bytes is less
    /// than asked for only at the end of the file, and zero at or after it.
    ///
    /// # Errors
    /// As for [`Erofs::extent`]; what was read before the damage is not reported.
    pub fn read_at(&self, inode: &Inode, offset_bytes: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            // An extent exists only below the file's end, so the sum stays below it as well.
            let Some(extent) = self.extent(inode, offset_bytes.saturating_add(done as u64))? else {
                break;
            };
            let (Extent::Data { len_bytes, .. } | Extent::Hole { len_bytes }) = extent;
            let left = buf.len() - done;
            let len = usize::try_from(len_bytes).map_or(left, |len| len.min(left));
            let piece = &mut buf[done..done + len];
            match extent {
                Extent::Hole { .. } => piece.fill(0),
                Extent::Data { offset_bytes, .. } => {
                    let rule = "its data lies outside the image";
                    self.image.copy_to(offset_bytes, piece).ok_or(ErofsError::Corrupt { nid: inode.nid, rule })?;
                }
            }
            done += len;
        }
        Ok(done)
    }

    /// The target of a symbolic link: 1 to 4095 bytes, none of them NUL.
    ///
    /// # Errors
    /// `NotSymlink` for other inodes, else as for [`Erofs::extent`].
    pub fn readlink(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.file_type != FileType::Symlink {
            return Err(ErofsError::NotSymlink(inode.nid));
        }
        let corrupt = |rule| ErofsError::Corrupt { nid: inode.nid, rule };
        if !(1..=SYMLINK_MAX_BYTES).contains(&inode.size_bytes) {
            return Err(corrupt("its target is not 1 to 4095 bytes long"));
        }
        let mut target = vec![0; inode.size_bytes as usize];
        self.read_at(inode, 0, &mut target)?;
        if target.contains(&0) {
            return Err(corrupt("its target contains a NUL"));
        }
        Ok(target)
    }
}

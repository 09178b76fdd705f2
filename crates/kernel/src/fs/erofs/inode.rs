//! Inodes: 32 bytes (compact) or 64 (extended) at `meta area + 32 * nid`, little-endian.
//!
//! ```text
//! compact                                    extended
//!  0 format u16     16 union u32              0 format u16     16 union u32        40 mtime_nsec u32
//!  2 xattrs u16     20 ino u32                2 xattrs u16     20 ino u32          44 nlink u32
//!  4 mode u16       24 uid u16                4 mode u16       24 uid u32          48 reserved
//!  6 nlink u16      26 gid u16                6 reserved       28 gid u32
//!  8 size u32       28 reserved               8 size u64       32 mtime u64
//! ```
//! Extended attributes follow the inode, then the inline tail of the data or the table of chunks. The
//! union is the first data block, the device number or the chunk format.

use super::error::{ErofsError, Result};
use super::image::Fields;
use super::{BLOCK_BITS, Erofs};
use crate::fs::inode::FileType;

const COMPACT_BYTES: usize = 32;
const EXTENDED_BYTES: usize = 64;
/// Unit of inode numbers: `nid` counts slots of the metadata area.
const SLOT_BYTES: u64 = 32;

const FORMAT_EXTENDED: u16 = 1;
const FORMAT_LAYOUT_SHIFT: u32 = 1;
const FORMAT_LAYOUT_MASK: u16 = 7;
const FORMAT_KNOWN: u16 = 0xf;

const CHUNK_BITS_MASK: u16 = 0x1f;
const CHUNK_INDEXES: u16 = 0x20;

const S_IFMT: u16 = 0o170_000;

fn type_of_mode(mode: u16) -> Option<FileType> {
    Some(match mode & S_IFMT {
        0o010_000 => FileType::Fifo,
        0o020_000 => FileType::CharDevice,
        0o040_000 => FileType::Directory,
        0o060_000 => FileType::BlockDevice,
        0o100_000 => FileType::Regular,
        0o120_000 => FileType::Symlink,
        0o140_000 => FileType::Socket,
        _ => return None,
    })
}

/// Where the data of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Devices, pipes and sockets have none.
    NoData,
    /// In consecutive blocks from `offset_bytes` on.
    FlatPlain { offset_bytes: u64 },
    /// As `FlatPlain` but for the last block, which is at `tail_offset_bytes` among the metadata.
    FlatInline { offset_bytes: u64, tail_offset_bytes: u64 },
    /// In chunks of `1 << chunk_bits` bytes, named by the table at `table_offset_bytes`.
    Chunked { table_offset_bytes: u64, chunk_bits: u32, entries: ChunkEntries },
    /// Compressed, which this reader does not undo.
    Compressed,
}

/// The two forms of a chunk table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkEntries {
    /// Block addresses, 4 bytes each.
    BlockMap,
    /// Chunk indexes, 8 bytes each: advice, device and block address.
    Indexes,
}

impl ChunkEntries {
    pub(super) const fn size_bytes(self) -> u64 {
        match self {
            Self::BlockMap => 4,
            Self::Indexes => 8,
        }
    }
}

/// An inode, read and validated once. Inodes of one image with equal `nid` are the same file; hard
/// links share it.
#[derive(Clone, Copy, Debug)]
pub struct Inode {
    /// Number of the inode, unique in the image.
    pub nid: u64,
    /// Type and permission bits as in `st_mode`.
    pub mode: u16,
    /// The type in `mode`.
    pub file_type: FileType,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes; at most `i64::MAX`, and not bounded by the image (files may have holes).
    pub size_bytes: u64,
    /// Modification time, the only one there is: whole seconds since 1970.
    pub mtime_s: i64,
    /// Nanoseconds of the modification time, below 10^9.
    pub mtime_ns: u32,
    /// Device number in the encoding of `st_rdev` (minor bits 0-7, major, minor bits 8-19); 0 for
    /// what is no device.
    pub rdev: u32,
    pub(super) layout: Layout,
    pub(super) xattr_offset_bytes: u64,
    pub(super) xattr_bytes: u64,
}

impl Inode {
    /// Number of 512-byte units as in `st_blocks`: the size rounded up to whole blocks, as Linux
    /// reports it for EROFS.
    #[must_use]
    pub fn nr_sectors(&self) -> u64 {
        self.size_bytes.div_ceil(1 << BLOCK_BITS) << (BLOCK_BITS - 9)
    }
}

impl Erofs {
    /// Reads inode `nid`.
    ///
    /// # Errors
    /// `Corrupt` where there is no inode or it breaks the format, `Unsupported` for a later format.
    /// Compressed files can be looked at; only their data answers `Unsupported`.
    pub fn inode(&self, nid: u64) -> Result<Inode> {
        let corrupt = |rule| ErofsError::Corrupt { nid, rule };
        let outside = || corrupt("it lies outside the image");
        let offset_bytes = nid
            .checked_mul(SLOT_BYTES)
            .and_then(|offset| offset.checked_add(self.superblock.meta_offset_bytes))
            .ok_or_else(outside)?;
        let mut bytes = [0; EXTENDED_BYTES];
        let (compact, rest) = bytes.split_at_mut(COMPACT_BYTES);
        self.image.copy_to(offset_bytes, compact).ok_or_else(outside)?;
        let format = Fields(compact).u16(0);
        if format & !FORMAT_KNOWN != 0 {
            return Err(ErofsError::Unsupported { nid, what: "an unknown inode format" });
        }
        let extended = format & FORMAT_EXTENDED != 0;
        let inode_bytes = if extended {
            let rest_offset = offset_bytes + COMPACT_BYTES as u64;
            self.image.copy_to(rest_offset, rest).ok_or_else(outside)?;
            EXTENDED_BYTES
        } else {
            COMPACT_BYTES
        };
        let fields = Fields(&bytes);
        let mode = fields.u16(4);
        let file_type = type_of_mode(mode).ok_or(corrupt("its mode has no file type"))?;
        let union = fields.u32(16);
        // A header of 12 bytes counts as the first unit, each further one is 4 bytes.
        let xattr_bytes = match u64::from(fields.u16(2)) {
            0 => 0,
            count => 12 + 4 * (count - 1),
        };
        // No overflow below: the inode is inside the image, and the area is at most 256 KiB long.
        let xattr_offset_bytes = offset_bytes + inode_bytes as u64;
        let body_offset_bytes = xattr_offset_bytes + xattr_bytes;
        let layout = match file_type {
            FileType::Regular | FileType::Directory | FileType::Symlink => {
                let layout = format >> FORMAT_LAYOUT_SHIFT & FORMAT_LAYOUT_MASK;
                Layout::new(nid, layout, union, body_offset_bytes)?
            }
            _ => Layout::NoData,
        };
        let rdev = match file_type {
            FileType::CharDevice | FileType::BlockDevice => union,
            _ => 0,
        };
        let inode = if extended {
            Inode {
                nid,
                mode,
                file_type,
                nlink: fields.u32(44),
                uid: fields.u32(24),
                gid: fields.u32(28),
                size_bytes: fields.u64(8),
                mtime_s: fields.u64(32).cast_signed(),
                mtime_ns: fields.u32(40),
                rdev,
                layout,
                xattr_offset_bytes,
                xattr_bytes,
            }
        } else {
            Inode {
                nid,
                mode,
                file_type,
                nlink: u32::from(fields.u16(6)),
                uid: u32::from(fields.u16(24)),
                gid: u32::from(fields.u16(26)),
                size_bytes: u64::from(fields.u32(8)),
                mtime_s: self.superblock.build_time_s,
                mtime_ns: self.superblock.build_time_ns,
                rdev,
                layout,
                xattr_offset_bytes,
                xattr_bytes,
            }
        };
        if inode.size_bytes > i64::MAX.cast_unsigned() {
            return Err(corrupt("its size is beyond the largest file offset"));
        }
        if inode.mtime_ns >= 1_000_000_000 {
            return Err(corrupt("its time has more than 10^9 - 1 nanoseconds"));
        }
        Ok(inode)
    }
}

impl Layout {
    /// `number` and `union` as the inode has them; `body_offset_bytes` is where its attributes end.
    fn new(nid: u64, number: u16, union: u32, body_offset_bytes: u64) -> Result<Self> {
        let offset_bytes = u64::from(union) << BLOCK_BITS;
        Ok(match number {
            0 => Self::FlatPlain { offset_bytes },
            1 | 3 => Self::Compressed,
            2 => Self::FlatInline { offset_bytes, tail_offset_bytes: body_offset_bytes },
            4 => {
                // The upper half of the union is reserved.
                let format = union as u16;
                if format & !(CHUNK_BITS_MASK | CHUNK_INDEXES) != 0 {
                    return Err(ErofsError::Unsupported { nid, what: "an unknown chunk format" });
                }
                let entries = match format & CHUNK_INDEXES {
                    0 => ChunkEntries::BlockMap,
                    _ => ChunkEntries::Indexes,
                };
                Self::Chunked {
                    table_offset_bytes: body_offset_bytes.next_multiple_of(entries.size_bytes()),
                    chunk_bits: BLOCK_BITS + u32::from(format & CHUNK_BITS_MASK),
                    entries,
                }
            }
            _ => return Err(ErofsError::Unsupported { nid, what: "an unknown data layout" }),
        })
    }
}

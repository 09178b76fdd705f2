//! The superblock: 128 bytes at byte 1024 of the image, little-endian.
//!
//! ```text
//!  0 magic u32             14 root_nid u16           40 meta_blkaddr u32      84 (compression)
//!  4 checksum u32          16 inos u64               44 xattr_blkaddr u32     86 extra_devices u16
//!  8 feature_compat u32    24 build_time u64         48 uuid [u8; 16]         88 devt_slotoff u16
//! 12 blkszbits u8          32 build_time_nsec u32    64 volume_name [u8; 16]  90 dirblkbits u8
//! 13 sb_extslots u8        36 blocks u32             80 feature_incompat u32  91.. later features
//! ```
//!
//! Of the compatible features only the checksum matters to a reader: the others say what a compact
//! inode's time means and that attribute names have a Bloom filter.

use super::error::{ErofsError, Result};
use super::image::{Fields, Image};
use super::{BLOCK_BITS, BLOCK_BYTES, crc32c};

const OFFSET_BYTES: u64 = 1024;
const SIZE_BYTES: usize = 128;
const CHECKSUM_AT: usize = 4;
const MAGIC: u32 = 0xe0f5_e1e2;

const COMPAT_CHECKSUM: u32 = 1;
/// How compressed data is padded. Says nothing about the files that are not compressed.
const INCOMPAT_ZERO_PADDING: u32 = 1 << 0;
const INCOMPAT_CHUNKED_FILE: u32 = 1 << 2;
const INCOMPAT_KNOWN: u32 = INCOMPAT_ZERO_PADDING | INCOMPAT_CHUNKED_FILE;

/// What the reader needs of the superblock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Superblock {
    pub(super) root_nid: u64,
    pub(super) nr_inodes: u64,
    pub(super) nr_blocks: u32,
    pub(super) build_time_s: i64,
    pub(super) build_time_ns: u32,
    pub(super) meta_offset_bytes: u64,
    pub(super) xattr_offset_bytes: u64,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    pub(super) fn read(image: &Image) -> Result<Self> {
        let bytes: [u8; SIZE_BYTES] = image.read(OFFSET_BYTES).ok_or(ErofsError::NotErofs)?;
        let fields = Fields(&bytes);
        if fields.u32(0) != MAGIC {
            return Err(ErofsError::NotErofs);
        }
        // The block size comes first: it decides how much the checksum covers.
        let block_bits = fields.u8(12);
        if u32::from(block_bits) != BLOCK_BITS {
            return Err(ErofsError::BlockSize(block_bits));
        }
        // Length before checksum, so that a truncated image is called truncated.
        let nr_blocks = fields.u32(36);
        let expected_bytes = u64::from(nr_blocks.max(1)) * BLOCK_BYTES;
        if expected_bytes > image.len_bytes() {
            let image_bytes = image.len_bytes();
            return Err(ErofsError::Truncated { image_bytes, expected_bytes });
        }
        if fields.u32(8) & COMPAT_CHECKSUM != 0 {
            verify_checksum(image, &bytes)?;
        }
        let unknown = fields.u32(80) & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(ErofsError::UnsupportedFeatures(unknown));
        }
        if fields.u8(90) != 0 {
            return Err(ErofsError::CorruptSuperblock("directory blocks are not of the block size"));
        }
        let build_time_ns = fields.u32(32);
        if build_time_ns >= 1_000_000_000 {
            return Err(ErofsError::CorruptSuperblock("build time has more than 10^9 - 1 nanoseconds"));
        }
        Ok(Self {
            root_nid: u64::from(fields.u16(14)),
            nr_inodes: fields.u64(16),
            nr_blocks,
            build_time_s: fields.u64(24).cast_signed(),
            build_time_ns,
            meta_offset_bytes: u64::from(fields.u32(40)) * BLOCK_BYTES,
            xattr_offset_bytes: u64::from(fields.u32(44)) * BLOCK_BYTES,
            uuid: core::array::from_fn(|i| bytes[48 + i]),
        })
    }
}

/// The checksum covers the rest of the first block, its own four bytes taken as zero. The superblock
/// proper is the copy that was validated; only what follows it is read here.
fn verify_checksum(image: &Image, superblock: &[u8; SIZE_BYTES]) -> Result<()> {
    const REST_BYTES: usize = (BLOCK_BYTES - OFFSET_BYTES) as usize - SIZE_BYTES;
    let rest: [u8; REST_BYTES] =
        image.read(OFFSET_BYTES + SIZE_BYTES as u64).ok_or(ErofsError::CorruptSuperblock("its block is not whole"))?;
    let stored = Fields(superblock).u32(CHECKSUM_AT);
    let mut zeroed = *superblock;
    zeroed[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
    let computed = crc32c::update(crc32c::update(!0, &zeroed), &rest);
    if stored == computed { Ok(()) } else { Err(ErofsError::Checksum { stored, computed }) }
}

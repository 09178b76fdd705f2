//! Snapshot files: templates, warm bases and deltas.
//!
//! ```text
//! offset 0   8  magic "TORPORSN"
//!        8  u32 version (VERSION)
//!       12  u32 kind: 1 template, 2 warm base, 3 delta
//!       16  u64 length of the file in bytes
//!       24  u64 length of its head in bytes: all but the late chunks
//!       32  u32 number of chunks that are not late
//!       36  u32 number of late chunks; both together are at most MAX_CHUNKS
//!       40  u32 length M of the metadata in bytes, at most MAX_METADATA_BYTES
//!       44  u32 length D of the dictionary in bytes, at most MAX_DICTIONARY_BYTES; 0 but in a warm base
//!       48  u32 crc32c of bytes 0 to 47, the metadata, both indexes and the dictionary
//!       52   M  metadata: JSON (Metadata), nothing behind it
//!     52+M      index: 20 bytes a chunk
//!                u32 first page's number    u32 number of pages
//!                u32 length in the file     u32 length uncompressed
//!                u32 crc32c in the file
//!               index of late chunks: 52 bytes a chunk
//!                the same four numbers
//!                u32 1 more than the last page's number
//!                32  SHA-256 in the file
//!        D     dictionary (module `dictionary`)
//!       ...    chunks, one behind the other to the end of the head, then late ones to the end of the file; each a zstd
//!              frame, of (module `pages`):
//!                a page:  u32 number, u8 coding, u8 0, u16 number of runs
//!                then all runs: u16 offset in the page, u16 length
//!                then the bytes of all runs
//! ```
//! All numbers are little endian. Page numbers rise through the file; a page that is not in it is as in the base. Late chunks,
//! which a warm base does not have, are behind all others. Page numbers rise through them anew, and none is in both: they need
//! not be there before the VM runs. The coding of a page says what it is beyond its runs: zeros, the template's page, or the warm base's. Runs hold the page's own
//! bytes: XORed with those of the base, pointers and dead objects that are in them more than once would not be found again.
//! Chunks of a delta that names a warm base are compressed with that one's dictionary, if it has one.
//!
//! The digest of a file, by which it is named and which is sealed, is the SHA-256 of its head: as that has the digest of each
//! late chunk, it stands for the whole file, and neither is read before it is needed.
//!
//! The reader trusts no length: each is compared with what is left and with its cap before it is used, and checksums are
//! compared before anything is decompressed. A CRC guards against damage, not against malice: whose digest a file should have
//! is for a MAC outside of the VM process to say.

pub mod dictionary;
pub mod inspect;
pub mod metadata;
pub mod pages;
mod reader;
mod unpacker;
mod writer;

pub use dictionary::Dictionary;
pub use metadata::{CpuFeatures, Metadata};
pub use reader::{Chunk, Entry, Reader, read_head};
use thiserror::Error;
pub use unpacker::Unpacker;
pub use writer::{Arrives, Writer};

/// First bytes of a file.
pub const MAGIC: [u8; 8] = *b"TORPORSN";
/// Version of the format.
pub const VERSION: u32 = 3;
/// Size of the fixed part.
pub const HEADER_BYTES: usize = 52;
/// Size of a chunk's entry in the index.
const ENTRY_BYTES: usize = 20;
/// The same of a late one.
const LATE_ENTRY_BYTES: usize = 52;
/// Cap of the metadata.
pub const MAX_METADATA_BYTES: usize = 1 << 20;
/// Cap of the number of chunks: 64 GiB in pieces of 1 MiB.
pub const MAX_CHUNKS: usize = 1 << 16;
/// Cap of a dictionary.
pub const MAX_DICTIONARY_BYTES: usize = 64 << 10;
/// So many siblings have to agree on what is learnt from them.
pub const AGREE: usize = 3;
/// Cap of a chunk's length uncompressed.
pub const MAX_CHUNK_BYTES: usize = 4 << 20;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All of a VM's memory.
    Template = 1,
    /// What siblings have in common, against their template.
    WarmBase = 2,
    /// What one instance differs by.
    Delta = 3,
}

/// Why a file is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadSnapshot {
    /// No such file.
    #[error("this is no snapshot: it does not begin with TORPORSN")]
    Magic,
    /// Another version.
    #[error("the snapshot has version {0} of the format; this program knows version {VERSION}")]
    Version(u32),
    /// Not the kind that is wanted.
    #[error("the snapshot is a {0}, which is not what is wanted here")]
    Kind(String),
    /// Too short or too long.
    #[error("the snapshot is damaged: it should have {expected} bytes and has {actual}")]
    Length {
        /// By its header.
        expected: u64,
        /// In fact.
        actual: u64,
    },
    /// A checksum differs.
    #[error("the snapshot is damaged: the checksum of {0} differs")]
    Checksum(String),
    /// It is not the file that it should be.
    #[error("the snapshot is damaged: its SHA-256 is not {0}, under which it was stored: restore a backup")]
    Digest(metadata::Digest),
    /// A length or number breaks a cap.
    #[error("the snapshot breaks the format: {0}")]
    Format(String),
    /// It does not belong here.
    #[error("the snapshot does not fit: {0}")]
    Mismatch(String),
}

impl BadSnapshot {
    /// For rules of the format.
    fn format(what: impl Into<String>) -> Self {
        Self::Format(what.into())
    }
}

#[cfg(test)]
mod tests;

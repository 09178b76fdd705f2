//! Reads a snapshot; see [`super`] for the format and its rules.

use super::pages::{self, CodedPage, MAX_PAGES};
use super::{
    BadSnapshot, Dictionary, HEADER_BYTES, INDEX_ENTRY_BYTES, Kind, MAGIC, MAX_CHUNK_BYTES, MAX_CHUNKS,
    MAX_DICTIONARY_BYTES, MAX_METADATA_BYTES, Metadata, VERSION,
};
use crc32c::{crc32c, crc32c_append};
use torpor_abi::layout::PAGE_BYTES;

/// A file whose header, metadata and index are whole. The chunks are checked as they are read.
#[derive(Debug)]
pub struct Reader<'a> {
    kind: Kind,
    metadata: Metadata,
    dictionary: &'a [u8],
    chunks: Vec<Chunk<'a>>,
}

/// A chunk as it stands in the file.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    index: usize,
    first: u32,
    pages: u32,
    raw_len: usize,
    checksum: u32,
    packed: &'a [u8],
    limit: u64,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl<'a> Reader<'a> {
    /// Checks everything but the chunks.
    ///
    /// # Errors
    /// [`BadSnapshot`].
    pub fn new(file: &'a [u8]) -> Result<Self, BadSnapshot> {
        let actual = file.len() as u64;
        if !file.starts_with(&MAGIC[..file.len().min(MAGIC.len())]) {
            return Err(BadSnapshot::Magic);
        }
        let Some((header, rest)) = file.split_at_checked(HEADER_BYTES) else {
            return Err(BadSnapshot::Length { expected: HEADER_BYTES as u64, actual });
        };
        let version = word(header, 8);
        if version != VERSION {
            return Err(BadSnapshot::Version(version));
        }
        let expected = u64::from(word(header, 16)) | u64::from(word(header, 20)) << 32;
        if expected != actual {
            return Err(BadSnapshot::Length { expected, actual });
        }
        let (count, metadata_len) = (word(header, 24) as usize, word(header, 28) as usize);
        if count > MAX_CHUNKS || metadata_len > MAX_METADATA_BYTES {
            return Err(BadSnapshot::format(format!("{count} chunks, {metadata_len} bytes of metadata")));
        }
        let (metadata, rest) =
            rest.split_at_checked(metadata_len).ok_or_else(|| BadSnapshot::format("metadata beyond the end"))?;
        let (index, rest) = rest
            .split_at_checked(count * INDEX_ENTRY_BYTES)
            .ok_or_else(|| BadSnapshot::format("index beyond the end"))?;
        let dictionary_len = word(header, 36) as usize;
        if dictionary_len > MAX_DICTIONARY_BYTES {
            return Err(BadSnapshot::format(format!("a dictionary of {dictionary_len} bytes")));
        }
        let (dictionary, chunks) =
            rest.split_at_checked(dictionary_len).ok_or_else(|| BadSnapshot::format("dictionary beyond the end"))?;
        let checked = [&header[36..], metadata, index, dictionary];
        if checked.iter().fold(crc32c(&header[..32]), |sum, part| crc32c_append(sum, part)) != word(header, 32) {
            return Err(BadSnapshot::Checksum("header, metadata and index".into()));
        }
        let kind = match word(header, 12) {
            1 => Kind::Template,
            2 => Kind::WarmBase,
            3 => Kind::Delta,
            other => return Err(BadSnapshot::format(format!("kind {other}"))),
        };
        if kind != Kind::WarmBase && !dictionary.is_empty() {
            return Err(BadSnapshot::format("a dictionary that belongs into a warm base"));
        }
        let metadata = Metadata::decode(metadata)?;
        let limit = metadata.machine.ram_bytes / PAGE_BYTES;
        let chunks = split(index, chunks, limit)?;
        Ok(Self { kind, metadata, dictionary, chunks })
    }

    /// What the file holds.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Refuses another kind.
    ///
    /// # Errors
    /// [`BadSnapshot::Kind`].
    pub fn expect(self, kind: Kind) -> Result<Self, BadSnapshot> {
        if self.kind == kind { Ok(self) } else { Err(BadSnapshot::Kind(format!("{:?}", self.kind))) }
    }

    /// What it says of itself.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Of a warm base: what the chunks of deltas against it are compressed with, for [`Dictionary::new`].
    #[must_use]
    pub fn dictionary(&self) -> &'a [u8] {
        self.dictionary
    }

    /// Its chunks in order.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk<'a>] {
        &self.chunks
    }

    /// Number of pages in all chunks, as the index says.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.pages)).sum()
    }
}

/// For the chunks of a file whose warm base has the dictionary, if there is one.
///
/// # Errors
/// [`BadSnapshot::Format`] where there is no memory for it.
pub fn decompressor(dictionary: Option<&Dictionary>) -> Result<zstd::bulk::Decompressor<'_>, BadSnapshot> {
    let made = match dictionary {
        Some(dictionary) => zstd::bulk::Decompressor::with_prepared_dictionary(dictionary.decoder()),
        None => zstd::bulk::Decompressor::new(),
    };
    made.map_err(|_| BadSnapshot::format("no memory for zstd"))
}

fn split<'a>(index: &[u8], mut rest: &'a [u8], limit: u64) -> Result<Vec<Chunk<'a>>, BadSnapshot> {
    let mut chunks = Vec::new();
    let mut least = 0_u64;
    for (number, entry) in index.as_chunks::<INDEX_ENTRY_BYTES>().0.iter().enumerate() {
        let bad = |what: &str| BadSnapshot::format(format!("chunk {number}: {what}"));
        let (first, pages, len, raw_len) = (word(entry, 0), word(entry, 4), word(entry, 8), word(entry, 12) as usize);
        if u64::from(first) < least || u64::from(first) >= limit {
            return Err(bad("its first page"));
        }
        if pages == 0 || pages as usize > MAX_PAGES || raw_len > MAX_CHUNK_BYTES || word(entry, 20) != 0 {
            return Err(bad("its size"));
        }
        let packed;
        (packed, rest) = rest.split_at_checked(len as usize).ok_or_else(|| bad("beyond the end"))?;
        least = u64::from(first) + u64::from(pages);
        chunks.push(Chunk { index: number, first, pages, raw_len, checksum: word(entry, 16), packed, limit });
    }
    if !rest.is_empty() {
        return Err(BadSnapshot::format("bytes behind the last chunk"));
    }
    Ok(chunks)
}

impl Chunk<'_> {
    /// First page and number of pages.
    #[must_use]
    pub fn range(&self) -> (u32, u32) {
        (self.first, self.pages)
    }

    /// Decompresses into `raw` and returns the pages in it.
    ///
    /// # Errors
    /// [`BadSnapshot`].
    pub fn pages<'r>(
        &self,
        decompressor: &mut zstd::bulk::Decompressor<'_>,
        raw: &'r mut Vec<u8>,
    ) -> Result<Vec<CodedPage<'r>>, BadSnapshot> {
        if crc32c(self.packed) != self.checksum {
            return Err(BadSnapshot::Checksum(format!("chunk {}", self.index)));
        }
        raw.clear();
        raw.reserve_exact(self.raw_len);
        let unpacked = decompressor.decompress_to_buffer(self.packed, raw);
        match unpacked {
            Ok(len) if len == self.raw_len => pages::decode(raw, self.first, self.pages, self.limit),
            Ok(_) => Err(BadSnapshot::format(format!("chunk {}: length uncompressed", self.index))),
            Err(error) => Err(BadSnapshot::format(format!("chunk {}: {error}", self.index))),
        }
    }
}

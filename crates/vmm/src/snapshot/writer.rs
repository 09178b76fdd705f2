//! Writes a snapshot.

use super::pages::{Coding, Encoder, Page, Run};
use super::{Dictionary, HEADER_BYTES, Kind, MAGIC, MAX_CHUNKS, MAX_METADATA_BYTES, Metadata, VERSION};
use crc32c::{crc32c, crc32c_append};
use std::io;
use zstd::zstd_safe::CParameter;

/// Level 3 is zstd's default: higher ones cost several times the time for a few per cent.
const LEVEL: i32 = 3;
/// Chunks of a usual delta are no longer. Tables of 2^12 entries find as much in them as those of level 3, which take ten
/// times as long to clear as the chunk to compress.
const SMALL_CHUNK_BYTES: usize = 64 << 10;
const SMALL_TABLE_LOG: u32 = 12;
/// As the level has it.
const DEFAULT_LOG: u32 = 0;

/// Collects pages in rising order.
pub struct Writer<'d> {
    encoder: Encoder,
    compressor: zstd::bulk::Compressor<'d>,
    has_dictionary: bool,
    index: Vec<u8>,
    chunks: Vec<u8>,
    /// The least number that the next page may have.
    least: u32,
    /// Pages by coding.
    pub counts: [u32; Coding::COUNT],
}

impl<'d> Writer<'d> {
    /// An empty one, of a file whose chunks are compressed with a dictionary if one is given.
    ///
    /// # Errors
    /// What zstd gives: no memory.
    pub fn new(dictionary: Option<&'d Dictionary>) -> io::Result<Self> {
        let compressor = match dictionary {
            Some(dictionary) => zstd::bulk::Compressor::with_prepared_dictionary(dictionary.encoder())?,
            None => zstd::bulk::Compressor::new(LEVEL)?,
        };
        Ok(Self {
            encoder: Encoder::default(),
            compressor,
            has_dictionary: dictionary.is_some(),
            index: Vec::new(),
            chunks: Vec::new(),
            least: 0,
            counts: [0; Coding::COUNT],
        })
    }

    /// Adds a page behind all others, coded against the bases that are given. Returns how, and where it differs from that base.
    ///
    /// # Errors
    /// What zstd gives; a page that is not behind all others, which no reader would take.
    pub fn push(
        &mut self,
        number: u32,
        page: &Page,
        template: Option<&Page>,
        warm_base: Option<&Page>,
    ) -> io::Result<(Coding, &[Run])> {
        if number < self.least {
            return Err(io::Error::other(format!("page {number} comes behind page {}", self.least - 1)));
        }
        self.least = number + 1;
        if !self.encoder.has_room() {
            self.end_chunk()?;
        }
        let (coding, runs) = self.encoder.push(number, page, template, warm_base);
        self.counts[coding as usize] += 1;
        Ok((coding, runs))
    }

    fn end_chunk(&mut self) -> io::Result<()> {
        let Some((first, pages, raw)) = self.encoder.take() else { return Ok(()) };
        // A dictionary brings its own tables.
        let log = if !self.has_dictionary && raw.len() <= SMALL_CHUNK_BYTES { SMALL_TABLE_LOG } else { DEFAULT_LOG };
        self.compressor.set_parameter(CParameter::HashLog(log))?;
        self.compressor.set_parameter(CParameter::ChainLog(log))?;
        let packed = self.compressor.compress(&raw)?;
        let word = |len: usize| u32::try_from(len).map_err(|_| io::Error::other("a chunk of more than 4 GiB"));
        for value in [first, pages, word(packed.len())?, word(raw.len())?, crc32c(&packed), 0] {
            self.index.extend_from_slice(&value.to_le_bytes());
        }
        self.chunks.extend_from_slice(&packed);
        Ok(())
    }

    /// The whole file.
    ///
    /// # Errors
    /// What zstd gives, or that a cap of the format is exceeded.
    pub fn finish(self, kind: Kind, metadata: &Metadata) -> io::Result<Vec<u8>> {
        self.finish_with(kind, metadata, &[])
    }

    /// The same with the dictionary of a warm base, for the deltas against it.
    ///
    /// # Errors
    /// As [`Writer::finish`].
    pub fn finish_with(mut self, kind: Kind, metadata: &Metadata, dictionary: &[u8]) -> io::Result<Vec<u8>> {
        self.end_chunk()?;
        let metadata = metadata.encode();
        let chunks = self.index.len() / super::INDEX_ENTRY_BYTES;
        if chunks > MAX_CHUNKS || metadata.len() > MAX_METADATA_BYTES {
            return Err(io::Error::other(format!("{chunks} chunks, {} bytes of metadata", metadata.len())));
        }
        let total = HEADER_BYTES + metadata.len() + self.index.len() + dictionary.len() + self.chunks.len();
        let mut out = Vec::with_capacity(total);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(kind as u32).to_le_bytes());
        out.extend_from_slice(&(total as u64).to_le_bytes());
        out.extend_from_slice(&(chunks as u32).to_le_bytes());
        out.extend_from_slice(&(metadata.len() as u32).to_le_bytes());
        let dictionary_len = (dictionary.len() as u32).to_le_bytes();
        let checked = [&dictionary_len, &metadata[..], &self.index, dictionary];
        let checksum = checked.iter().fold(crc32c(&out), |sum, part| crc32c_append(sum, part));
        out.extend_from_slice(&checksum.to_le_bytes());
        checked.iter().for_each(|part| out.extend_from_slice(part));
        out.append(&mut self.chunks);
        Ok(out)
    }
}

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("counts", &self.counts).finish_non_exhaustive()
    }
}

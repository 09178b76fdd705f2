//! Writes a snapshot.

use super::pages::{Coded, Coding, Encoder, MAX_PAGES, Page, Run};
use super::reader::Chunk;
use super::{Dictionary, HEADER_BYTES, Kind, MAGIC, MAX_CHUNKS, MAX_METADATA_BYTES, Metadata, VERSION};
use crc32c::{crc32c, crc32c_append};
use std::io;
use std::ops::Range;
use zstd::zstd_safe::CParameter;

/// Level 3 is zstd's default: higher ones cost several times the time for a few per cent.
const LEVEL: i32 = 3;
/// Chunks of a usual delta are no longer. Tables of 2^12 entries find as much in them as those of level 3, which take ten
/// times as long to clear as the chunk to compress.
const SMALL_CHUNK_BYTES: usize = 64 << 10;
const SMALL_TABLE_LOG: u32 = 12;
/// As the level has it.
const DEFAULT_LOG: u32 = 0;

/// Late chunks arrive whole when one of their pages is touched: so they are short, unless there would be too many.
const LATE_PAGES: Range<usize> = 32..MAX_PAGES + 1;
const LATE_CHUNKS: usize = 2048;
/// No more pages in a row that are not in a late chunk lie between two that are: a touch of them is a touch of it.
const LATE_GAP: u32 = 16;

/// Collects pages in rising order, and late ones in rising order.
pub struct Writer<'d> {
    compressor: zstd::bulk::Compressor<'d>,
    has_dictionary: bool,
    now: Chunks,
    late: Chunks,
    late_pages: usize,
    /// Pages by coding, but for those in chunks that were taken over.
    pub counts: [u32; Coding::COUNT],
}

/// Chunks of either kind.
#[derive(Default)]
struct Chunks {
    encoder: Encoder,
    index: Vec<u8>,
    bytes: Vec<u8>,
    /// The least number that the next page may have.
    least: u32,
}

impl Chunks {
    fn expect(&mut self, number: u32) -> io::Result<()> {
        if number < self.least {
            return Err(io::Error::other(format!("page {number} comes behind page {}", self.least - 1)));
        }
        self.least = number + 1;
        Ok(())
    }

    fn add(&mut self, words: [u32; 5], late_end: u32, packed: &[u8]) {
        for value in words.into_iter().chain([late_end]) {
            self.index.extend_from_slice(&value.to_le_bytes());
        }
        self.bytes.extend_from_slice(packed);
    }
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
            compressor,
            has_dictionary: dictionary.is_some(),
            now: Chunks::default(),
            late: Chunks::default(),
            late_pages: LATE_PAGES.start,
            counts: [0; Coding::COUNT],
        })
    }

    /// About so many pages will be late.
    pub fn expect_late(&mut self, pages: usize) {
        self.late_pages = (pages / LATE_CHUNKS).clamp(LATE_PAGES.start, LATE_PAGES.end - 1);
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
        self.now.expect(number)?;
        if !self.now.encoder.has_room() {
            self.end_chunk()?;
        }
        let (coding, runs) = self.now.encoder.push(number, page, template, warm_base);
        self.counts[coding as usize] += 1;
        Ok((coding, runs))
    }

    /// The same for a page that need not be there before the VM runs, behind all others of those.
    ///
    /// # Errors
    /// As [`Writer::push`].
    pub fn push_late(
        &mut self,
        number: u32,
        page: &Page,
        template: Option<&Page>,
        warm_base: Option<&Page>,
    ) -> io::Result<(Coding, &[Run])> {
        self.late.expect(number)?;
        if let Some((last, pages)) = self.late.encoder.last()
            && (pages >= self.late_pages || !self.late.encoder.has_room() || number - last > LATE_GAP)
        {
            self.end_late_chunk()?;
        }
        let (coding, runs) = self.late.encoder.push(number, page, template, warm_base);
        self.counts[coding as usize] += 1;
        Ok((coding, runs))
    }

    /// Adds a late chunk of another file with the same bases and dictionary, as it is.
    ///
    /// # Errors
    /// A damaged chunk, or one that does not lie behind all other late pages.
    pub fn take_over(&mut self, chunk: &Chunk<'_>) -> io::Result<()> {
        self.end_late_chunk()?;
        let (entry, packed) = chunk.checked().map_err(io::Error::other)?;
        self.late.expect(entry.range.start)?;
        self.late.least = entry.range.end;
        self.late.add(entry.words(), entry.range.end, packed);
        Ok(())
    }

    /// What is pushed from now on is in no chunk with late pages from before.
    ///
    /// # Errors
    /// What zstd gives.
    pub fn end_late_chunk(&mut self) -> io::Result<()> {
        let Some(coded) = self.late.encoder.take() else { return Ok(()) };
        let (words, packed) = self.packed(&coded)?;
        self.late.add(words, coded.last + 1, &packed);
        Ok(())
    }

    fn end_chunk(&mut self) -> io::Result<()> {
        let Some(coded) = self.now.encoder.take() else { return Ok(()) };
        let (words, packed) = self.packed(&coded)?;
        self.now.add(words, 0, &packed);
        Ok(())
    }

    fn packed(&mut self, coded: &Coded) -> io::Result<([u32; 5], Vec<u8>)> {
        let raw = &coded.bytes;
        // A dictionary brings its own tables.
        let log = if !self.has_dictionary && raw.len() <= SMALL_CHUNK_BYTES { SMALL_TABLE_LOG } else { DEFAULT_LOG };
        self.compressor.set_parameter(CParameter::HashLog(log))?;
        self.compressor.set_parameter(CParameter::ChainLog(log))?;
        let packed = self.compressor.compress(raw)?;
        let word = |len: usize| u32::try_from(len).map_err(|_| io::Error::other("a chunk of more than 4 GiB"));
        let words = [coded.first, coded.pages, word(packed.len())?, word(raw.len())?, crc32c(&packed)];
        Ok((words, packed))
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
        self.end_late_chunk()?;
        let metadata = metadata.encode();
        let index = [self.now.index, self.late.index].concat();
        let chunks = index.len() / super::INDEX_ENTRY_BYTES;
        if chunks > MAX_CHUNKS || metadata.len() > MAX_METADATA_BYTES {
            return Err(io::Error::other(format!("{chunks} chunks, {} bytes of metadata", metadata.len())));
        }
        let bytes = self.now.bytes.len() + self.late.bytes.len();
        let total = HEADER_BYTES + metadata.len() + index.len() + dictionary.len() + bytes;
        let mut out = Vec::with_capacity(total);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(kind as u32).to_le_bytes());
        out.extend_from_slice(&(total as u64).to_le_bytes());
        out.extend_from_slice(&(chunks as u32).to_le_bytes());
        out.extend_from_slice(&(metadata.len() as u32).to_le_bytes());
        let dictionary_len = (dictionary.len() as u32).to_le_bytes();
        let checked = [&dictionary_len, &metadata[..], &index, dictionary];
        let checksum = checked.iter().fold(crc32c(&out), |sum, part| crc32c_append(sum, part));
        out.extend_from_slice(&checksum.to_le_bytes());
        checked.iter().for_each(|part| out.extend_from_slice(part));
        out.append(&mut self.now.bytes);
        out.append(&mut self.late.bytes);
        Ok(out)
    }
}

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("counts", &self.counts).finish_non_exhaustive()
    }
}

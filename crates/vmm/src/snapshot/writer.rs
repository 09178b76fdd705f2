//! Writes a snapshot.

use super::pages::{Coding, Encoder, MAX_PAGES, Page, Run};
use super::reader::Entry;
use super::{
    Dictionary, ENTRY_BYTES, HEADER_BYTES, Kind, LATE_ENTRY_BYTES, MAGIC, MAX_CHUNKS, MAX_METADATA_BYTES, Metadata,
    VERSION,
};
use crc32c::{crc32c, crc32c_append};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
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

/// So much of a file that is taken over is copied at once.
const COPIED_BYTES: usize = 1 << 20;

/// When a page has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrives {
    /// Before the VM runs.
    AtOnce,
    /// When it is touched.
    Late,
}

/// Collects pages in rising order, and late ones in rising order.
pub struct Writer<'d> {
    compressor: zstd::bulk::Compressor<'d>,
    has_dictionary: bool,
    /// By [`Arrives`].
    chunks: [Chunks; 2],
    late_pages: usize,
    /// Pages by coding, but for those in chunks that were taken over.
    pub counts: [u32; Coding::COUNT],
}

/// Chunks of either kind.
#[derive(Default)]
struct Chunks {
    encoder: Encoder,
    index: Vec<u8>,
    pieces: Vec<Piece>,
    /// The least number that the next page may have.
    least: u32,
}

/// The bytes of chunks.
enum Piece {
    /// Of one that was packed here.
    Packed(Vec<u8>),
    /// Part of another file.
    Of(Rc<File>, Range<u64>),
}

impl Chunks {
    fn expect(&mut self, number: u32) -> io::Result<()> {
        if number < self.least {
            return Err(io::Error::other(format!("page {number} comes behind page {}", self.least - 1)));
        }
        self.least = number + 1;
        Ok(())
    }

    fn enter(&mut self, words: &[u32]) {
        words.iter().for_each(|word| self.index.extend_from_slice(&word.to_le_bytes()));
    }

    fn len(&self) -> usize {
        let len = |piece: &Piece| match piece {
            Piece::Packed(bytes) => bytes.len(),
            Piece::Of(_, range) => (range.end - range.start) as usize,
        };
        self.pieces.iter().map(len).sum()
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
            chunks: Default::default(),
            late_pages: LATE_PAGES.start,
            counts: [0; Coding::COUNT],
        })
    }

    /// About so many pages will be late.
    pub fn expect_late(&mut self, pages: usize) {
        self.late_pages = (pages / LATE_CHUNKS).clamp(LATE_PAGES.start, LATE_PAGES.end - 1);
    }

    /// Adds a page behind all others that arrive so, coded against the bases that are given. Returns how, and where it
    /// differs from that base.
    ///
    /// # Errors
    /// What zstd gives; a page that is not behind those others, which no reader would take.
    pub fn push(
        &mut self,
        arrives: Arrives,
        number: u32,
        page: &Page,
        template: Option<&Page>,
        warm_base: Option<&Page>,
    ) -> io::Result<(Coding, &[Run])> {
        let most = if arrives == Arrives::Late { self.late_pages } else { MAX_PAGES };
        let chunks = &mut self.chunks[arrives as usize];
        chunks.expect(number)?;
        let is_far = |last: u32| arrives == Arrives::Late && number - last > LATE_GAP;
        if let Some((last, pages)) = chunks.encoder.last()
            && (pages >= most || !chunks.encoder.has_room() || is_far(last))
        {
            self.end_chunk(arrives)?;
        }
        let encoder = &mut self.chunks[arrives as usize].encoder;
        let (coding, runs) = encoder.push(number, page, template, warm_base);
        self.counts[coding as usize] += 1;
        Ok((coding, runs))
    }

    /// Adds a late chunk of another file with the same bases and dictionary, as it is; it is read from there in the end.
    ///
    /// # Errors
    /// A chunk that is not late, or does not lie behind all other late pages.
    pub fn take_over(&mut self, entry: &Entry, file: &Rc<File>) -> io::Result<()> {
        self.end_chunk(Arrives::Late)?;
        let digest = entry.late_digest().ok_or_else(|| io::Error::other("a chunk that is not late"))?;
        let [_, late] = &mut self.chunks;
        late.expect(entry.range.start)?;
        late.least = entry.range.end;
        late.enter(&[entry.range.start, entry.pages, entry.len as u32, entry.raw_len as u32, entry.range.end]);
        late.index.extend_from_slice(&digest.0);
        let end = entry.at + entry.len as u64;
        match late.pieces.last_mut() {
            Some(Piece::Of(_, range)) if range.end == entry.at => range.end = end,
            _ => late.pieces.push(Piece::Of(Rc::clone(file), entry.at..end)),
        }
        Ok(())
    }

    /// What is pushed from now on is in no chunk with pages from before that arrive so.
    ///
    /// # Errors
    /// What zstd gives.
    pub fn end_chunk(&mut self, arrives: Arrives) -> io::Result<()> {
        let Some(coded) = self.chunks[arrives as usize].encoder.take() else { return Ok(()) };
        let packed = self.packed(&coded.bytes)?;
        let word = |len: usize| u32::try_from(len).map_err(|_| io::Error::other("a chunk of more than 4 GiB"));
        let words = [coded.first, coded.pages, word(packed.len())?, word(coded.bytes.len())?];
        let chunks = &mut self.chunks[arrives as usize];
        chunks.enter(&words);
        match arrives {
            Arrives::AtOnce => chunks.enter(&[crc32c(&packed)]),
            Arrives::Late => {
                chunks.enter(&[coded.last + 1]);
                chunks.index.extend_from_slice(&Sha256::digest(&packed));
            }
        }
        chunks.pieces.push(Piece::Packed(packed));
        Ok(())
    }

    fn packed(&mut self, raw: &[u8]) -> io::Result<Vec<u8>> {
        // A dictionary brings its own tables.
        let log = if !self.has_dictionary && raw.len() <= SMALL_CHUNK_BYTES { SMALL_TABLE_LOG } else { DEFAULT_LOG };
        self.compressor.set_parameter(CParameter::HashLog(log))?;
        self.compressor.set_parameter(CParameter::ChainLog(log))?;
        self.compressor.compress(raw)
    }

    /// Writes the whole file, with the dictionary of a warm base for the deltas against it; returns its length.
    ///
    /// # Errors
    /// What zstd, reading or writing gives, or that a cap of the format is exceeded.
    pub fn finish(
        mut self,
        kind: Kind,
        metadata: &Metadata,
        dictionary: &[u8],
        into: &mut impl Write,
    ) -> io::Result<u64> {
        self.end_chunk(Arrives::AtOnce)?;
        self.end_chunk(Arrives::Late)?;
        let metadata = metadata.encode();
        let [now, late] = self.chunks;
        let [chunks, late_chunks] = [now.index.len() / ENTRY_BYTES, late.index.len() / LATE_ENTRY_BYTES];
        if chunks + late_chunks > MAX_CHUNKS || metadata.len() > MAX_METADATA_BYTES {
            let text = format!("{chunks} and {late_chunks} chunks, {} bytes of metadata", metadata.len());
            return Err(io::Error::other(text));
        }
        let checked = [&metadata[..], &now.index, &late.index, dictionary];
        let head = HEADER_BYTES + checked.iter().map(|part| part.len()).sum::<usize>() + now.len();
        let total = (head + late.len()) as u64;
        let mut start = Vec::with_capacity(head - now.len());
        start.extend_from_slice(&MAGIC);
        for word in [VERSION, kind as u32] {
            start.extend_from_slice(&word.to_le_bytes());
        }
        for len in [total, head as u64] {
            start.extend_from_slice(&len.to_le_bytes());
        }
        for count in [chunks, late_chunks, metadata.len(), dictionary.len()] {
            start.extend_from_slice(&(count as u32).to_le_bytes());
        }
        let checksum = checked.iter().fold(crc32c(&start), |sum, part| crc32c_append(sum, part));
        start.extend_from_slice(&checksum.to_le_bytes());
        checked.iter().for_each(|part| start.extend_from_slice(part));
        into.write_all(&start)?;
        for piece in now.pieces.iter().chain(&late.pieces) {
            match piece {
                Piece::Packed(bytes) => into.write_all(bytes)?,
                Piece::Of(file, range) => copy(file, range.clone(), into)?,
            }
        }
        Ok(total)
    }
}

/// Copies part of a file.
fn copy(file: &File, mut range: Range<u64>, into: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; COPIED_BYTES];
    while !range.is_empty() {
        let part = &mut buffer[..COPIED_BYTES.min((range.end - range.start) as usize)];
        file.read_exact_at(part, range.start)?;
        into.write_all(part)?;
        range.start += part.len() as u64;
    }
    Ok(())
}

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("counts", &self.counts).finish_non_exhaustive()
    }
}

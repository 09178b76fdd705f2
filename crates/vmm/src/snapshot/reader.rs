//! Reads a snapshot; see [`super`] for the format and its rules.

use super::pages::{self, CodedPage, MAX_PAGES};
use super::{
    BadSnapshot, Dictionary, HEADER_BYTES, INDEX_ENTRY_BYTES, Kind, MAGIC, MAX_CHUNK_BYTES, MAX_CHUNKS,
    MAX_DICTIONARY_BYTES, MAX_METADATA_BYTES, Metadata, VERSION,
};
use crc32c::{crc32c, crc32c_append};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use torpor_abi::layout::PAGE_BYTES;

/// A file whose header, metadata and index are whole. The chunks are checked as they are read.
#[derive(Debug)]
pub struct Reader<'a> {
    kind: Kind,
    metadata: Metadata,
    dictionary: &'a [u8],
    chunks: Vec<Chunk<'a>>,
    late: Vec<Entry>,
    file: &'a [u8],
}

/// What the index says of a chunk.
#[derive(Clone, Debug)]
pub struct Entry {
    index: usize,
    /// Numbers of the pages in it lie in here; it begins with the first.
    pub range: Range<u32>,
    pages: u32,
    raw_len: usize,
    checksum: u32,
    at: u64,
    len: usize,
}

/// A chunk as it stands in the file.
#[derive(Clone, Debug)]
pub struct Chunk<'a> {
    entry: Entry,
    packed: &'a [u8],
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
        Self::of_part(file, file.len() as u64)
    }

    /// The same where only a part was read of a file of `actual` bytes: see [`read_part`].
    ///
    /// # Errors
    /// [`BadSnapshot`].
    pub fn of_part(file: &'a [u8], actual: u64) -> Result<Self, BadSnapshot> {
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
        let limit =
            u32::try_from(metadata.machine.ram_bytes / PAGE_BYTES).map_err(|_| BadSnapshot::format("its RAM"))?;
        let at = (file.len() - chunks.len()) as u64;
        let [now, late] = entries(index, at..actual, limit)?;
        if kind == Kind::WarmBase && !late.is_empty() {
            return Err(BadSnapshot::format("late chunks in a warm base"));
        }
        let chunks = now.into_iter().map(|entry| entry.in_file(file)).collect::<Result<_, _>>()?;
        Ok(Self { kind, metadata, dictionary, chunks, late, file })
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

    /// Its chunks in order, but for the late ones.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk<'a>] {
        &self.chunks
    }

    /// The chunks that need not be there before the VM runs, in order.
    #[must_use]
    pub fn late(&self) -> &[Entry] {
        &self.late
    }

    /// All chunks of a file that was read whole: page numbers rise in those of [`Reader::chunks`], and again in the late ones.
    ///
    /// # Errors
    /// [`BadSnapshot::Format`] if it was not.
    pub fn whole(&self) -> Result<Vec<Chunk<'a>>, BadSnapshot> {
        let late = self.late.iter().map(|entry| entry.clone().in_file(self.file));
        self.chunks.iter().cloned().map(Ok).chain(late).collect()
    }

    /// Number of pages in all chunks, as the index says.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.chunks.iter().map(|chunk| &chunk.entry).chain(&self.late).map(|entry| u64::from(entry.pages)).sum()
    }
}

/// Files that are no longer are read whole.
const WHOLE_BYTES: u64 = 1 << 20;

/// What has to be read of a file before anything of it is used, for [`Reader::of_part`]: all but late chunks. Also its length.
///
/// # Errors
/// What pread(2) gives, or that it would be more than `most` bytes.
pub fn read_part(file: &File, most: u64) -> io::Result<(Vec<u8>, u64)> {
    let total = file.metadata()?.len();
    let mut part = Vec::new();
    read_up_to(file, &mut part, if total <= WHOLE_BYTES { total } else { HEADER_BYTES as u64 })?;
    if (part.len() as u64) < total {
        let word = |at| u64::from(word(&part, at));
        let [count, metadata, dictionary] = [word(24), word(28), word(36)];
        // Whoever names more is refused by the reader for it.
        let index = HEADER_BYTES as u64 + metadata.min(MAX_METADATA_BYTES as u64);
        let chunks = index + count.min(MAX_CHUNKS as u64) * INDEX_ENTRY_BYTES as u64;
        read_up_to(file, &mut part, chunks.min(total))?;
        let entries = part.get(index as usize..).unwrap_or(&[]).as_chunks::<INDEX_ENTRY_BYTES>().0;
        let now: u64 =
            entries.iter().filter(|entry| !is_late(&entry[..])).map(|entry| u64::from(self::word(&entry[..], 8))).sum();
        let needed = (chunks + dictionary + now).min(total);
        if needed > most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        read_up_to(file, &mut part, needed)?;
    }
    Ok((part, total))
}

/// Reads on behind what is there, until there are `len` bytes.
fn read_up_to(file: &File, part: &mut Vec<u8>, len: u64) -> io::Result<()> {
    let there = part.len();
    part.resize(len as usize, 0);
    file.read_exact_at(&mut part[there..], there as u64)
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

/// Behind the last page's number, in a late chunk's entry of the index; 0 in another's.
const LATE_END: usize = 20;

fn is_late(entry: &[u8]) -> bool {
    word(entry, LATE_END) != 0
}

/// What the index says of chunks that fill `place` of the file: those that are needed first, and the late ones.
fn entries(index: &[u8], place: Range<u64>, limit: u32) -> Result<[Vec<Entry>; 2], BadSnapshot> {
    let mut lists = [Vec::new(), Vec::new()];
    let mut least = [0, 0];
    let mut at = place.start;
    for (number, entry) in index.as_chunks::<INDEX_ENTRY_BYTES>().0.iter().enumerate() {
        let bad = |what: &str| BadSnapshot::format(format!("chunk {number}: {what}"));
        let (first, pages, len, raw_len) = (word(entry, 0), word(entry, 4), word(entry, 8), word(entry, 12) as usize);
        let late = usize::from(is_late(entry));
        if late == 0 && !lists[1].is_empty() {
            return Err(bad("behind a late one"));
        }
        let end = if late == 1 { word(entry, LATE_END) } else { limit };
        if first < least[late] || first >= end || end > limit {
            return Err(bad("its first page"));
        }
        if pages == 0 || pages as usize > MAX_PAGES || pages > end - first || raw_len > MAX_CHUNK_BYTES {
            return Err(bad("its size"));
        }
        let len = len as usize;
        if len as u64 > place.end.saturating_sub(at) {
            return Err(bad("beyond the end"));
        }
        least[late] = if late == 1 { end } else { first + pages };
        lists[late].push(Entry {
            index: number,
            range: first..end,
            pages,
            raw_len,
            checksum: word(entry, 16),
            at,
            len,
        });
        at += len as u64;
    }
    if at != place.end {
        return Err(BadSnapshot::format("bytes behind the last chunk"));
    }
    Ok(lists)
}

impl Entry {
    fn in_file(self, file: &[u8]) -> Result<Chunk<'_>, BadSnapshot> {
        let at = usize::try_from(self.at).ok();
        let packed = at.and_then(|at| file.get(at..)?.get(..self.len));
        let packed = packed.ok_or_else(|| BadSnapshot::format(format!("chunk {}: it was not read", self.index)))?;
        Ok(Chunk { entry: self, packed })
    }

    /// Reads the chunk from its file.
    ///
    /// # Errors
    /// What pread(2) gives.
    pub fn read<'b>(&self, file: &File, buffer: &'b mut Vec<u8>) -> io::Result<Chunk<'b>> {
        buffer.clear();
        buffer.resize(self.len, 0);
        file.read_exact_at(buffer, self.at)?;
        Ok(Chunk { entry: self.clone(), packed: buffer })
    }

    /// The words of its entry in an index but the last.
    pub(super) fn words(&self) -> [u32; 5] {
        [self.range.start, self.pages, self.len as u32, self.raw_len as u32, self.checksum]
    }
}

impl<'a> Chunk<'a> {
    /// What the index says of it, and its bytes, if these have the checksum that is said there.
    ///
    /// # Errors
    /// [`BadSnapshot::Checksum`].
    pub(super) fn checked(&self) -> Result<(&Entry, &'a [u8]), BadSnapshot> {
        if crc32c(self.packed) != self.entry.checksum {
            return Err(BadSnapshot::Checksum(format!("chunk {}", self.entry.index)));
        }
        Ok((&self.entry, self.packed))
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
        let (Entry { index, range, pages, raw_len, .. }, packed) = self.checked()?;
        raw.clear();
        raw.reserve_exact(*raw_len);
        match decompressor.decompress_to_buffer(packed, raw) {
            Ok(len) if len == *raw_len => pages::decode(raw, range.start, *pages, range.end.into()),
            Ok(_) => Err(BadSnapshot::format(format!("chunk {index}: length uncompressed"))),
            Err(error) => Err(BadSnapshot::format(format!("chunk {index}: {error}"))),
        }
    }
}

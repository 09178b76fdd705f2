//! Reads a snapshot; see [`super`] for the format and its rules.

use super::metadata::Digest;
use super::pages::MAX_PAGES;
use super::{
    BadSnapshot, ENTRY_BYTES, HEADER_BYTES, Kind, LATE_ENTRY_BYTES, MAGIC, MAX_CHUNK_BYTES, MAX_CHUNKS,
    MAX_DICTIONARY_BYTES, MAX_METADATA_BYTES, Metadata, VERSION,
};
use crc32c::{crc32c, crc32c_append};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use torpor_abi::layout::PAGE_BYTES;

/// A file whose header, metadata and indexes are whole. The chunks are checked as they are unpacked.
#[derive(Debug)]
pub struct Reader<'a> {
    kind: Kind,
    metadata: Metadata,
    dictionary: &'a [u8],
    chunks: Vec<Chunk<'a>>,
    late: Vec<Entry>,
    file: &'a [u8],
    head: &'a [u8],
}

/// What the index says of a chunk.
#[derive(Clone, Debug)]
pub struct Entry {
    pub(super) index: usize,
    /// Numbers of the pages in it lie in here; it begins with the first.
    pub range: Range<u32>,
    pub(super) pages: u32,
    pub(super) raw_len: usize,
    pub(super) at: u64,
    pub(super) len: usize,
    check: Check,
}

/// How damage to a chunk shows.
#[derive(Clone, Debug)]
enum Check {
    Crc32c(u32),
    /// Of a late chunk, which may be changed on purpose after its file was checked.
    Sha256(Digest),
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

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

/// Where a header says how long the head is.
const HEAD_LENGTH: usize = 24;

impl<'a> Reader<'a> {
    /// Checks everything but the chunks.
    ///
    /// # Errors
    /// [`BadSnapshot`].
    pub fn new(file: &'a [u8]) -> Result<Self, BadSnapshot> {
        Self::of_head(file, file.len() as u64)
    }

    /// The same where of a file of `actual` bytes its head was read, or some more: see [`read_head`].
    ///
    /// # Errors
    /// [`BadSnapshot`].
    pub fn of_head(file: &'a [u8], actual: u64) -> Result<Self, BadSnapshot> {
        if !file.starts_with(&MAGIC[..file.len().min(MAGIC.len())]) {
            return Err(BadSnapshot::Magic);
        }
        let Some((header, _)) = file.split_at_checked(HEADER_BYTES) else {
            return Err(BadSnapshot::Length { expected: HEADER_BYTES as u64, actual });
        };
        let version = word(header, 8);
        if version != VERSION {
            return Err(BadSnapshot::Version(version));
        }
        let expected = long(header, 16);
        if expected != actual {
            return Err(BadSnapshot::Length { expected, actual });
        }
        let head = usize::try_from(long(header, HEAD_LENGTH)).ok().and_then(|len| file.get(..len));
        let rest = head.and_then(|head| head.get(HEADER_BYTES..));
        let (head, rest) = head.zip(rest).ok_or_else(|| BadSnapshot::format("the length of its head"))?;
        let [now_count, late_count, metadata_len, dictionary_len] =
            [32, 36, 40, 44].map(|at| word(header, at) as usize);
        if now_count.saturating_add(late_count) > MAX_CHUNKS || metadata_len > MAX_METADATA_BYTES {
            let text = format!("{now_count} and {late_count} chunks, {metadata_len} bytes of metadata");
            return Err(BadSnapshot::format(text));
        }
        if dictionary_len > MAX_DICTIONARY_BYTES {
            return Err(BadSnapshot::format(format!("a dictionary of {dictionary_len} bytes")));
        }
        let part = |rest: &'a [u8], len: usize, what: &str| {
            rest.split_at_checked(len).ok_or_else(|| BadSnapshot::format(format!("{what} beyond the end")))
        };
        let (metadata, rest) = part(rest, metadata_len, "metadata")?;
        let (now_index, rest) = part(rest, now_count * ENTRY_BYTES, "index")?;
        let (late_index, rest) = part(rest, late_count * LATE_ENTRY_BYTES, "index of late chunks")?;
        let (dictionary, chunks) = part(rest, dictionary_len, "dictionary")?;
        let checked = [metadata, now_index, late_index, dictionary];
        let checksum = checked.iter().fold(crc32c(&header[..48]), |sum, part| crc32c_append(sum, part));
        if checksum != word(header, 48) {
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
        let begin = (head.len() - chunks.len()) as u64;
        let now = now_index.as_chunks::<ENTRY_BYTES>().0;
        let now = now.iter().map(|entry| (&entry[..16], limit, Check::Crc32c(word(entry, 16))));
        let now = entries(now, 0, begin..head.len() as u64, limit)?;
        let late = late_index.as_chunks::<LATE_ENTRY_BYTES>().0.iter().map(|entry| {
            let digest = entry[20..].try_into().expect("the rest of an entry");
            (&entry[..16], word(entry, 16), Check::Sha256(Digest(digest)))
        });
        let late = entries(late, now_count, head.len() as u64..actual, limit)?;
        if kind == Kind::WarmBase && !late.is_empty() {
            return Err(BadSnapshot::format("late chunks in a warm base"));
        }
        let chunks = now.into_iter().map(|entry| entry.in_file(file)).collect::<Result<_, _>>()?;
        Ok(Self { kind, metadata, dictionary, chunks, late, file, head })
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

    /// Refuses a file with another digest.
    ///
    /// # Errors
    /// [`BadSnapshot::Digest`].
    pub fn named(self, digest: Digest) -> Result<Self, BadSnapshot> {
        if self.digest() == digest { Ok(self) } else { Err(BadSnapshot::Digest(digest)) }
    }

    /// Its digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest(Sha256::digest(self.head).into())
    }

    /// What it says of itself.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Of a warm base: what the chunks of deltas against it are compressed with, for [`super::Dictionary::new`].
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
}

/// So much of a file is read at once: all of most heads.
const AT_ONCE_BYTES: u64 = 64 << 10;

/// What has to be read of a file before anything of it is used, for [`Reader::of_head`]: all but late chunks. Also its length.
///
/// # Errors
/// What pread(2) gives, or that it would be more than `most` bytes.
pub fn read_head(file: &File, most: u64) -> io::Result<(Vec<u8>, u64)> {
    let total = file.metadata()?.len();
    let mut head = Vec::new();
    read_up_to(file, &mut head, total.min(AT_ONCE_BYTES))?;
    if head.len() >= HEADER_BYTES {
        // Who names more than there is is refused by the reader for it.
        let needed = long(&head, HEAD_LENGTH).min(total);
        if needed > most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        read_up_to(file, &mut head, needed)?;
    }
    Ok((head, total))
}

/// Reads on behind what is there, until there are `len` bytes.
fn read_up_to(file: &File, part: &mut Vec<u8>, len: u64) -> io::Result<()> {
    let there = part.len();
    part.resize(there.max(len as usize), 0);
    file.read_exact_at(&mut part[there..], there as u64)
}

/// What the index says of chunks that fill `place` of the file: of each its first four numbers, behind which page it ends,
/// and how it is checked. `number` is that of the first.
fn entries<'i>(
    index: impl Iterator<Item = (&'i [u8], u32, Check)>,
    number: usize,
    place: Range<u64>,
    limit: u32,
) -> Result<Vec<Entry>, BadSnapshot> {
    let mut list = Vec::new();
    let (mut least, mut at) = (0, place.start);
    for (index, (entry, end, check)) in (number..).zip(index) {
        let bad = |what: &str| BadSnapshot::format(format!("chunk {index}: {what}"));
        let (first, pages, len, raw_len) = (word(entry, 0), word(entry, 4), word(entry, 8), word(entry, 12) as usize);
        if first < least || first >= end || end > limit {
            return Err(bad("its first page"));
        }
        if pages == 0 || pages as usize > MAX_PAGES || pages > end - first || raw_len > MAX_CHUNK_BYTES {
            return Err(bad("its size"));
        }
        let len = len as usize;
        if len as u64 > place.end.saturating_sub(at) {
            return Err(bad("beyond the end"));
        }
        least = if matches!(check, Check::Sha256(_)) { end } else { first + pages };
        list.push(Entry { index, range: first..end, pages, raw_len, at, len, check });
        at += len as u64;
    }
    if at != place.end {
        return Err(BadSnapshot::format("bytes behind the last chunk"));
    }
    Ok(list)
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

    /// Of a late chunk: the digest that its bytes should have.
    pub(super) fn late_digest(&self) -> Option<Digest> {
        match self.check {
            Check::Crc32c(_) => None,
            Check::Sha256(digest) => Some(digest),
        }
    }
}

impl<'a> Chunk<'a> {
    /// What the index says of it, and its bytes, if these are the ones that are meant there.
    ///
    /// # Errors
    /// [`BadSnapshot::Checksum`].
    pub(super) fn checked(&self) -> Result<(&Entry, &'a [u8]), BadSnapshot> {
        let is_good = match &self.entry.check {
            Check::Crc32c(sum) => crc32c(self.packed) == *sum,
            Check::Sha256(digest) => Sha256::digest(self.packed)[..] == digest.0,
        };
        if is_good {
            Ok((&self.entry, self.packed))
        } else {
            Err(BadSnapshot::Checksum(format!("chunk {}", self.entry.index)))
        }
    }
}

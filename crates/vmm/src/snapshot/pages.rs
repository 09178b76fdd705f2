//! How the pages of a chunk are coded; see [`super`].

use super::{BadSnapshot, MAX_CHUNK_BYTES};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// A page's content.
pub type Page = [u8; PAGE];
/// A page of zeros.
pub static ZEROS: Page = [0; PAGE];

/// Pages in a chunk at most: what they take uncoded is at most [`MAX_CHUNK_BYTES`].
pub const MAX_PAGES: usize = 512;
const PAGE_ENTRY_BYTES: usize = 8;
const RUN_BYTES: usize = 4;
/// Runs are of whole words of this size. A run of one word between others would cost more than the word itself.
const WORD: usize = 8;
const MAX_RUNS: usize = PAGE / WORD / 2;

/// What a page is beyond its runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coding {
    /// All zero; there are no runs.
    Zero = 0,
    /// Zeros.
    Raw = 1,
    /// The template's page.
    Template = 2,
    /// The warm base's page.
    WarmBase = 3,
}

impl Coding {
    /// How many there are.
    pub const COUNT: usize = 4;

    fn decode(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Zero,
            1 => Self::Raw,
            2 => Self::Template,
            3 => Self::WarmBase,
            _ => return None,
        })
    }
}

/// Part of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    offset: u16,
    len: u16,
}

impl Run {
    /// Its bytes' places in the page.
    #[must_use]
    pub fn range(self) -> std::ops::Range<usize> {
        usize::from(self.offset)..usize::from(self.offset + self.len)
    }
}

/// All of `page` that differs from `base`, and single equal words between.
#[must_use]
pub fn differing(page: &Page, base: &Page) -> Vec<Run> {
    let mut runs = Vec::new();
    let _ = differences(page, base, &mut runs, usize::MAX);
    runs
}

/// Where `page` differs from `base`: runs of whole words, with single equal words between them included. `None` as soon as
/// they cost more than `most`; else what they cost.
fn differences(page: &Page, base: &Page, runs: &mut Vec<Run>, most: usize) -> Option<usize> {
    /// Compared at once: most of a page is as in its base.
    const BLOCK: usize = 128;
    runs.clear();
    let mut cost = 0;
    let blocks = page.as_chunks::<BLOCK>().0.iter().zip(base.as_chunks::<BLOCK>().0);
    for (block, (a, b)) in blocks.enumerate().filter(|(_, (a, b))| a != b) {
        let words = a.as_chunks::<WORD>().0.iter().zip(b.as_chunks::<WORD>().0);
        for (index, _) in words.enumerate().filter(|(_, (a, b))| a != b) {
            let offset = (block * BLOCK + index * WORD) as u16;
            let end = offset + WORD as u16;
            match runs.last_mut() {
                Some(run) if offset <= run.offset + run.len + WORD as u16 => {
                    cost += usize::from(end - run.offset - run.len);
                    run.len = end - run.offset;
                }
                _ => {
                    cost += RUN_BYTES + WORD;
                    runs.push(Run { offset, len: WORD as u16 });
                }
            }
        }
        if cost > most {
            return None;
        }
    }
    Some(cost)
}

/// Differences that cost no more are taken at once: to look at other bases, which are not at hand, costs more than it gains.
const SMALL: usize = 128;

/// Collects the pages of one chunk.
#[derive(Debug, Default)]
pub struct Encoder {
    entries: Vec<u8>,
    runs: Vec<u8>,
    bytes: Vec<u8>,
    first: Option<u32>,
    last: u32,
    pages: u32,
    scratch: [Vec<Run>; 2],
}

impl Encoder {
    /// Whether another page fits.
    #[must_use]
    pub fn has_room(&self) -> bool {
        (self.pages as usize) < MAX_PAGES
            && self.len() + PAGE_ENTRY_BYTES + PAGE + MAX_RUNS * RUN_BYTES <= MAX_CHUNK_BYTES
    }

    fn len(&self) -> usize {
        self.entries.len() + self.runs.len() + self.bytes.len()
    }

    /// Adds a page in the cheapest coding of those whose base is given, or in one that is cheap enough. Returns that, and
    /// where the page differs from its base.
    pub fn push(
        &mut self,
        number: u32,
        page: &Page,
        template: Option<&Page>,
        warm_base: Option<&Page>,
    ) -> (Coding, &[Run]) {
        let [best, other] = &mut self.scratch;
        // The likeliest first: it bounds what the others may cost.
        let candidates = [(Coding::WarmBase, warm_base), (Coding::Template, template), (Coding::Raw, Some(&ZEROS))];
        let (mut coding, mut least) = (Coding::Raw, usize::MAX);
        for (candidate, page_of) in candidates.into_iter().filter_map(|(c, page)| Some((c, page?))) {
            if least > SMALL
                && let Some(cost) = differences(page, page_of, other, least - 1)
            {
                (coding, least) = (candidate, cost);
                std::mem::swap(best, other);
            }
        }
        if coding == Coding::Raw && least == 0 {
            coding = Coding::Zero;
        } else if template.is_none() && warm_base.is_none() {
            // Zeros between runs cost next to nothing once they are compressed, and putting runs together takes longer than
            // copying a page.
            best.clear();
            best.push(Run { offset: 0, len: PAGE as u16 });
        }
        self.first.get_or_insert(number);
        self.last = number;
        self.pages += 1;
        self.entries.extend_from_slice(&number.to_le_bytes());
        self.entries.extend_from_slice(&[coding as u8, 0]);
        self.entries.extend_from_slice(&(best.len() as u16).to_le_bytes());
        for run in &*best {
            self.runs.extend_from_slice(&run.offset.to_le_bytes());
            self.runs.extend_from_slice(&run.len.to_le_bytes());
            let range = run.range();
            self.bytes.extend_from_slice(&page[range]);
        }
        (coding, best)
    }

    /// Number of the last page, and how many there are; none where there are none.
    #[must_use]
    pub fn last(&self) -> Option<(u32, usize)> {
        self.first.map(|_| (self.last, self.pages as usize))
    }

    /// Empties the encoder; `None` if there are no pages.
    pub fn take(&mut self) -> Option<Coded> {
        let first = self.first.take()?;
        let mut bytes = std::mem::take(&mut self.entries);
        bytes.append(&mut self.runs);
        bytes.append(&mut self.bytes);
        Some(Coded { first, last: self.last, pages: std::mem::take(&mut self.pages), bytes })
    }
}

/// A chunk before compression.
#[derive(Debug)]
pub struct Coded {
    /// Number of its first page.
    pub first: u32,
    /// And of its last.
    pub last: u32,
    /// How many there are.
    pub pages: u32,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// A page of a chunk.
#[derive(Clone, Copy, Debug)]
pub struct CodedPage<'a> {
    /// Its number.
    pub number: u32,
    /// What it is beyond its runs.
    pub coding: Coding,
    runs: &'a [u8],
    bytes: &'a [u8],
}

impl<'a> CodedPage<'a> {
    /// Its runs: offset in the page, and bytes. They lie within the page, in rising order.
    pub fn runs(&self) -> impl Iterator<Item = (usize, &'a [u8])> {
        let mut bytes = self.bytes;
        self.runs.as_chunks::<RUN_BYTES>().0.iter().map(move |run| {
            let (offset, len) = run_of(run);
            let (piece, rest) = bytes.split_at(len);
            bytes = rest;
            (offset, piece)
        })
    }

    /// Puts the page together over `base`, which holds what [`CodedPage::coding`] says.
    pub fn apply(&self, base: &mut Page) {
        for (offset, piece) in self.runs() {
            base[offset..offset + piece.len()].copy_from_slice(piece);
        }
    }
}

fn run_of(run: &[u8; RUN_BYTES]) -> (usize, usize) {
    (usize::from(u16::from_le_bytes([run[0], run[1]])), usize::from(u16::from_le_bytes([run[2], run[3]])))
}

/// Checks a chunk's coded bytes and returns its pages. The first is `first`, there are `pages`, and none is `limit` or more.
///
/// # Errors
/// [`BadSnapshot::Format`].
pub fn decode(raw: &[u8], first: u32, pages: u32, limit: u64) -> Result<Vec<CodedPage<'_>>, BadSnapshot> {
    let bad = |what: String| BadSnapshot::Format(what);
    let count = pages as usize;
    if count == 0 || count > MAX_PAGES || raw.len() < count * PAGE_ENTRY_BYTES {
        return Err(bad("a chunk's number of pages".into()));
    }
    let (entries, rest) = raw.split_at(count * PAGE_ENTRY_BYTES);
    let entries = entries.as_chunks::<PAGE_ENTRY_BYTES>().0;
    let all_runs: usize = entries.iter().map(|e| usize::from(u16::from_le_bytes([e[6], e[7]]))).sum();
    let (mut runs, mut bytes) =
        rest.split_at_checked(all_runs * RUN_BYTES).ok_or_else(|| bad("a chunk's runs".into()))?;
    let mut out = Vec::with_capacity(count);
    let mut least = u64::from(first);
    for (index, entry) in entries.iter().enumerate() {
        let number = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
        let number_fits = u64::from(number) >= least && u64::from(number) < limit && (index > 0 || number == first);
        if !number_fits || entry[5] != 0 {
            return Err(bad(format!("page {number:#x}: its number")));
        }
        least = u64::from(number) + 1;
        let coding = Coding::decode(entry[4]).ok_or_else(|| bad(format!("page {number:#x}: coding {}", entry[4])))?;
        let run_count = usize::from(u16::from_le_bytes([entry[6], entry[7]]));
        let own;
        (own, runs) = runs.split_at(run_count * RUN_BYTES);
        let mut end = 0;
        let mut total = 0;
        for run in own.as_chunks::<RUN_BYTES>().0 {
            let (offset, len) = run_of(run);
            if offset < end || len == 0 || offset + len > PAGE {
                return Err(bad(format!("page {number:#x}: run at {offset} of {len} bytes")));
            }
            end = offset + len;
            total += len;
        }
        let piece;
        (piece, bytes) = bytes.split_at_checked(total).ok_or_else(|| bad(format!("page {number:#x}: its bytes")))?;
        if coding == Coding::Zero && run_count != 0 {
            return Err(bad(format!("page {number:#x}: zero with runs")));
        }
        out.push(CodedPage { number, coding, runs: own, bytes: piece });
    }
    if !bytes.is_empty() {
        return Err(bad("bytes behind the last page of a chunk".into()));
    }
    Ok(out)
}

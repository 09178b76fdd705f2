//! What a VM rests at, and what its deltas are against: its template, with the warm base's pages over it.

use super::super::Fatal;
use super::Refusal;
use crate::snapshot::pages::{CodedPage, Coding, PAGE, Page, Run, ZEROS, differing};
use crate::snapshot::{BadSnapshot, Chunk, Dictionary, Kind, Reader, Unpacker, metadata::Digest};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use torpor_abi::layout::{
    BOOT_INFO_GPA, BOOT_INFO_MAX_BYTES, CONTROL_GPA, HANDOVER_END_GPA, PAGE_BYTES, TRAP_GPA, TX_RING_GPA,
};
use torpor_abi::trap::{STACK_BYTES, STACKS_OFFSET};

/// Memory that is not part of the state: dead trap frames, boot information, the control page, rings and handover.
const SCRATCH: [(u64, u64); 4] = [
    (TRAP_GPA + STACKS_OFFSET, TRAP_GPA + STACKS_OFFSET + 6 * STACK_BYTES),
    (BOOT_INFO_GPA, BOOT_INFO_GPA + BOOT_INFO_MAX_BYTES),
    (CONTROL_GPA, CONTROL_GPA + PAGE_BYTES),
    (TX_RING_GPA, HANDOVER_END_GPA),
];

/// Guest-physical ranges of which no page is in a snapshot.
pub(super) fn scratch() -> impl Iterator<Item = Range<u64>> {
    SCRATCH.iter().map(|(start, end)| *start..*end)
}

/// Whether a page is in no snapshot.
pub(super) fn is_scratch(number: u32) -> bool {
    let gpa = u64::from(number) * PAGE_BYTES;
    scratch().any(|range| range.contains(&gpa))
}

/// A template's memory, mapped shared and read-only.
#[derive(Debug)]
struct TemplateView {
    pages: &'static [Page],
}

impl TemplateView {
    /// # Safety
    /// Nobody makes the file shorter, or changes a page of it that somebody has seen, as long as the process lives.
    unsafe fn new(memory: impl AsFd, bytes: u64) -> std::io::Result<Self> {
        if bytes == 0 {
            return Ok(Self { pages: &[] });
        }
        let len = bytes as usize;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, memory, 0) }?;
        // SAFETY: mapped for ever, and by the caller's promise constant; whole pages.
        let pages = unsafe { std::slice::from_raw_parts(at.cast::<Page>(), len / PAGE_BYTES as usize) };
        Ok(Self { pages })
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Base {
    /// Digest of the template's file, as the process's owner says; none for a VM that was booted.
    pub(super) digest: Option<Digest>,
    /// Of the warm base's.
    pub(super) warm_digest: Option<Digest>,
    template: TemplateView,
    /// Numbers of the warm base's pages, rising, and the pages.
    warm_numbers: Vec<u32>,
    warm: Vec<Warm>,
    /// The warm base's, for deltas against it.
    pub(super) dictionary: Option<Dictionary>,
}

/// A page of the warm base.
#[derive(Debug)]
struct Warm {
    page: Box<Page>,
    /// Where it differs from the template's.
    differs: Vec<Run>,
}

impl Base {
    /// Of a VM that was booted: zeros.
    pub(super) fn zeros() -> Self {
        Self::over(None, TemplateView { pages: &[] })
    }

    /// Of a VM of a template, whose pages are, or will be, in a file of this process alone.
    ///
    /// # Errors
    /// What mmap(2) gives.
    ///
    /// # Safety
    /// Nobody makes the file shorter, or changes a page of it that somebody has seen, as long as the process lives.
    pub(super) unsafe fn over_own(digest: Digest, memory: &File, bytes: u64) -> std::io::Result<Self> {
        // SAFETY: the caller's promise.
        Ok(Self::over(Some(digest), unsafe { TemplateView::new(memory, bytes) }?))
    }

    /// Where the template's mapping begins.
    pub(super) fn template_address(&self) -> u64 {
        self.template.pages.as_ptr().addr() as u64
    }

    fn over(digest: Option<Digest>, template: TemplateView) -> Self {
        Self { digest, warm_digest: None, template, warm_numbers: Vec::new(), warm: Vec::new(), dictionary: None }
    }

    /// Of a VM of a template; `memory` holds the template's pages and is sealed.
    ///
    /// # Errors
    /// [`Fatal::System`] if `memory` is not sealed against changes or can't be mapped.
    pub(super) fn of_template(digest: Digest, memory: &File, bytes: u64) -> Result<Self, Fatal> {
        use rustix::fs::SealFlags;
        let seals = rustix::fs::fcntl_get_seals(memory).map_err(Fatal::system("seals of the template's memory"))?;
        let writes = SealFlags::WRITE | SealFlags::FUTURE_WRITE;
        if !seals.contains(SealFlags::SHRINK | SealFlags::SEAL) || !seals.intersects(writes) {
            return Err(Fatal::Unsupported("the template's memory must be sealed"));
        }
        // SAFETY: the seals that were just looked at can't be taken off.
        let template = unsafe { TemplateView::new(memory, bytes) }.map_err(Fatal::system("mapping the template"))?;
        Ok(Self::over(Some(digest), template))
    }

    /// The template's page; none where there is no template.
    pub(super) fn template(&self, number: u32) -> Option<&Page> {
        self.digest.map(|_| self.template.pages.get(number as usize).unwrap_or(&ZEROS))
    }

    /// The warm base's page, if it has this one.
    pub(super) fn warm(&self, number: u32) -> Option<&Page> {
        self.warm_numbers.binary_search(&number).ok().map(|at| &*self.warm[at].page)
    }

    /// Which base the page is as while the VM rests.
    pub(super) fn rests_at(&self, number: u32) -> Coding {
        if self.warm_numbers.binary_search(&number).is_ok() { Coding::WarmBase } else { Coding::Template }
    }

    /// What the page is while the VM rests.
    pub(super) fn page(&self, number: u32) -> &Page {
        self.warm(number).or_else(|| self.template(number)).unwrap_or(&ZEROS)
    }

    /// The pages of the warm base.
    pub(super) fn warm_pages(&self) -> impl Iterator<Item = (u32, &Page)> {
        self.warm_numbers.iter().copied().zip(self.warm.iter().map(|warm| &*warm.page))
    }

    /// The same of a range of pages.
    pub(super) fn warm_pages_in(&self, range: &Range<u32>) -> impl Iterator<Item = (u32, &Page)> {
        let at = |number| self.warm_numbers.partition_point(|other| *other < number);
        let found = at(range.start)..at(range.end);
        self.warm_numbers[found.clone()].iter().copied().zip(self.warm[found].iter().map(|warm| &*warm.page))
    }

    /// The pages of the warm base: number, the template's page, and where the two differ.
    pub(super) fn warm_differences(&self) -> impl Iterator<Item = (u32, &Page, &[Run])> {
        let pages = self.warm_numbers.iter().copied().zip(&self.warm);
        pages.map(|(number, warm)| (number, self.template(number).unwrap_or(&ZEROS), &warm.differs[..]))
    }

    /// A page put together from its coding.
    pub(super) fn decode(&self, coded: &CodedPage<'_>) -> Page {
        let mut page = ZEROS;
        self.decode_into(coded, &mut page);
        page
    }

    /// The same, to `page`.
    pub(super) fn decode_into(&self, coded: &CodedPage<'_>, page: &mut Page) {
        page.copy_from_slice(match coded.coding {
            Coding::Zero | Coding::Raw => &ZEROS,
            Coding::Template => self.template(coded.number).unwrap_or(&ZEROS),
            Coding::WarmBase => self.warm(coded.number).unwrap_or(&ZEROS),
        });
        coded.apply(page);
    }

    /// Takes over a warm base, whose family was checked.
    ///
    /// # Errors
    /// [`BadSnapshot`].
    pub(super) fn add_warm(&mut self, digest: Digest, file: &Reader<'_>) -> Result<(), BadSnapshot> {
        let (mut numbers, mut pages) = (Vec::new(), Vec::new());
        let dictionary = Dictionary::new(file.dictionary())?;
        each_page(file, None, |coded| {
            if coded.coding == Coding::WarmBase {
                return Err(BadSnapshot::Format("a warm base that needs a warm base".into()));
            }
            let page = Box::new(self.decode(coded));
            let differs = differing(&page, self.template(coded.number).unwrap_or(&ZEROS));
            numbers.push(coded.number);
            pages.push(Warm { page, differs });
            Ok(())
        })?;
        (self.warm_numbers, self.warm, self.dictionary) = (numbers, pages, dictionary);
        self.warm_digest = Some(digest);
        Ok(())
    }
}

/// Calls `f` for all pages of a file that was read whole, late ones included; `dictionary` is that of the warm base which the
/// file names.
pub(super) fn each_page(
    file: &Reader<'_>,
    dictionary: Option<&Dictionary>,
    f: impl FnMut(&CodedPage<'_>) -> Result<(), BadSnapshot>,
) -> Result<(), BadSnapshot> {
    each_page_of(&file.whole()?, dictionary, f)
}

/// The same for some chunks of a file.
pub(super) fn each_page_of(
    chunks: &[Chunk<'_>],
    dictionary: Option<&Dictionary>,
    mut f: impl FnMut(&CodedPage<'_>) -> Result<(), BadSnapshot>,
) -> Result<(), BadSnapshot> {
    let mut unpacker = Unpacker::new()?;
    for chunk in chunks {
        for page in unpacker.pages(chunk, dictionary)? {
            if is_scratch(page.number) {
                return Err(BadSnapshot::Format(format!("page {:#x} is no part of a state", page.number)));
            }
            f(&page)?;
        }
    }
    Ok(())
}

/// Fills an empty memory file with a template's pages and seals it; returns its size in bytes.
///
/// # Errors
/// [`BadSnapshot`], or what writing gives.
pub fn unpack_template(digest: Digest, file: &[u8], into: &File) -> Result<u64, Unpack> {
    use rustix::fs::{SealFlags, fcntl_add_seals};
    let reader = Reader::new(file)?.expect(Kind::Template)?.named(digest)?;
    let last = unpack_chunks(&reader.whole()?, into)?.into_iter().max();
    let bytes = last.map_or(0, |last| (u64::from(last) + 1) * PAGE_BYTES);
    into.set_len(bytes)?;
    fcntl_add_seals(into, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(std::io::Error::from)?;
    Ok(bytes)
}

/// Writes the pages of chunks of a template to its memory file; returns their numbers.
///
/// # Errors
/// As [`unpack_template`].
pub(super) fn unpack_chunks(chunks: &[Chunk<'_>], into: &File) -> Result<Vec<u32>, Unpack> {
    use std::os::unix::fs::FileExt;
    let mut unpacker = Unpacker::new()?;
    let (mut pages, mut numbers) = (Vec::new(), Vec::new());
    for chunk in chunks {
        let coded = unpacker.pages(chunk, None)?;
        numbers.extend(coded.iter().map(|coded| coded.number));
        each_stretch(&coded, &mut pages, |first, stretch| into.write_all_at(stretch, u64::from(first) * PAGE_BYTES))?;
    }
    Ok(numbers)
}

/// Calls `f` with the number of the first page and the content of pages of a template that follow one another, which are put
/// together in `pages`.
///
/// # Errors
/// What `f` gives; [`BadSnapshot::Format`] for pages that no template has.
pub(super) fn each_stretch(
    coded: &[CodedPage<'_>],
    pages: &mut Vec<u8>,
    mut f: impl FnMut(u32, &[u8]) -> std::io::Result<()>,
) -> Result<(), Unpack> {
    pages.clear();
    pages.resize(coded.len() * PAGE, 0);
    for (coded, page) in coded.iter().zip(pages.as_chunks_mut::<PAGE>().0) {
        let number = coded.number;
        if !matches!(coded.coding, Coding::Raw | Coding::Zero) {
            return Err(BadSnapshot::Format(format!("page {number:#x} of a template needs a base")).into());
        }
        if is_scratch(number) {
            return Err(BadSnapshot::Format(format!("page {number:#x} is no part of a state")).into());
        }
        coded.apply(page);
    }
    let mut rest = &pages[..];
    for stretch in coded.chunk_by(|one, next| one.number + 1 == next.number) {
        let (content, behind) = rest.split_at(stretch.len() * PAGE);
        f(stretch[0].number, content)?;
        rest = behind;
    }
    Ok(())
}

impl From<Unpack> for Refusal {
    fn from(unpack: Unpack) -> Self {
        match unpack {
            Unpack::Bad(bad) => bad.into(),
            Unpack::Io(_) => Self::Host(unpack.to_string()),
        }
    }
}

/// Why a template could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Unpack {
    /// The file.
    #[error(transparent)]
    Bad(#[from] BadSnapshot),
    /// The memory.
    #[error("the template's memory: {0}")]
    Io(#[from] std::io::Error),
}

//! A template's memory that is not unpacked: its pages arrive from the template's file when they are touched, a chunk at a
//! time.
//!
//! They arrive in a memory file of this process alone, which is mapped twice: the base reads the one mapping, and the other,
//! a private one, is the guest's memory. Whoever touches a page in either that has not arrived waits for its chunk. From then
//! on all is as with a memory file that was unpacked before: what the guest has written is this process's own, and all other
//! pages, those that never arrive too, are the template's.

use super::base::{Base, Unpack, each_stretch, unpack_chunks};
use super::pager::{Lost, Pager};
use super::pending::Pending;
use super::userfault::{AddressRange, Of, Userfault};
use super::{Fatal, Refusal};
use crate::snapshot::metadata::{Digest, Machine as Family};
use crate::snapshot::pages::ZEROS;
use crate::snapshot::{BadSnapshot, Entry, Reader, Unpacker};
use crate::vm::memory::GuestMemory;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::ops::Range;
use torpor_abi::layout::PAGE_BYTES;

/// Chunks that arrive while nobody waits for one, behind each that was touched: programs that touch much do so faster on two
/// processors, and what one that touches little has in vain is bounded.
const AHEAD: u32 = 8;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Arriving {
    /// The template's.
    file: File,
    pending: Pending,
    /// Those of all its late chunks.
    ranges: Vec<Range<u32>>,
    /// Where the base's mapping lies, and where the guest's begins.
    view: AddressRange,
    guest: u64,
    arrived_pages: u64,
    /// The page that was touched last, and how many chunks behind it may arrive unasked.
    touched: u32,
    ahead: u32,
    unpacker: Unpacker,
    packed: Vec<u8>,
    pages: Vec<u8>,
}

/// The base and the guest's memory of a template, read as `reader`, whose late chunks arrive from `file` with the help of
/// `pager`; without one they are all there when this returns.
///
/// # Errors
/// [`Refusal::Snapshot`], [`Refusal::Host`].
pub(super) fn begin(
    digest: Digest,
    reader: &Reader<'_>,
    file: File,
    family: &Family,
    pager: Option<&Pager>,
) -> Result<(Base, GuestMemory), Refusal> {
    let pending = Pending::new(reader.late(), family)?;
    let memory = File::from(memfd_create("template", MemfdFlags::CLOEXEC).map_err(Fatal::system("memfd_create"))?);
    let numbers = unpack_chunks(reader.chunks(), &memory)?;
    if let Some(number) = numbers.iter().find(|number| !pending.overlapping(&(**number..**number + 1)).is_empty()) {
        return Err(BadSnapshot::Format(format!("page {number:#x} is late, and is not")).into());
    }
    let ends = numbers.last().map(|last| last + 1).into_iter().chain(reader.late().last().map(|entry| entry.range.end));
    let bytes = u64::from(ends.max().unwrap_or(0)) * PAGE_BYTES;
    memory.set_len(bytes).map_err(Fatal::system("ftruncate of the template's memory"))?;
    // SAFETY: nobody else has the file, and no page of it changes after it was there.
    let base = unsafe { Base::over_own(digest, &memory, bytes) }.map_err(Fatal::system("mapping the template"))?;
    let guest = GuestMemory::over_template(family.ram_bytes, &memory, bytes);
    let guest = guest.map_err(Fatal::system("mapping the template"))?;
    match pager.filter(|_| are_holes(&memory, &pending)) {
        Some(pager) => {
            let arriving = Arriving {
                file,
                ranges: pending.ranges(),
                pending,
                view: AddressRange { start: base.template_address(), len: bytes },
                guest: guest.base().0,
                arrived_pages: numbers.len() as u64,
                touched: 0,
                ahead: 0,
                unpacker: Unpacker::new()?,
                packed: Vec::new(),
                pages: Vec::new(),
            };
            pager.begin_template(arriving).map_err(Fatal::system("userfaultfd"))?;
        }
        None => {
            let mut packed = Vec::new();
            for entry in reader.late() {
                let chunk = entry.read(&file, &mut packed).map_err(Fatal::system("reading the template"))?;
                unpack_chunks(&[chunk], &memory)?;
            }
        }
    }
    Ok((base, guest))
}

/// Whether nothing is where pages are to arrive: where the host has large pages in memory files (`shmem_enabled` is `always`), a
/// page brings its neighbours with it, as zeros.
fn are_holes(memory: &File, pending: &Pending) -> bool {
    use rustix::fs::{SeekFrom, seek};
    pending.ranges().iter().all(|range| {
        let data = seek(memory, SeekFrom::Data(u64::from(range.start) * PAGE_BYTES));
        // There is none behind it: ENXIO.
        data.map_or(true, |at| at >= u64::from(range.end) * PAGE_BYTES)
    })
}

impl Arriving {
    /// What has not arrived is waited for, in both mappings.
    ///
    /// # Errors
    /// What the host says.
    pub(super) fn register(&self, userfault: &Userfault) -> io::Result<()> {
        for pages in self.pending.ranges() {
            userfault.register(AddressRange::of_pages(self.view.start, &pages), Of::ArrivingFile)?;
            userfault.register(AddressRange::of_pages(self.guest, &pages), Of::ArrivingFile)?;
        }
        Ok(())
    }

    /// The page at an address of either mapping.
    pub(super) fn page_at(&self, address: u64) -> u32 {
        let of_view = address.wrapping_sub(self.view.start);
        let offset = if of_view < self.view.len { of_view } else { address.wrapping_sub(self.guest) };
        (offset / PAGE_BYTES) as u32
    }

    /// Pages that have arrived, which no other process shares.
    pub(super) fn arrived_pages(&self) -> u64 {
        self.arrived_pages
    }

    /// Makes pages arrive that have not yet; whoever waits for one of them goes on.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn bring(&mut self, userfault: &Userfault, pages: &Range<u32>) -> Result<(), Lost> {
        self.pending.overlapping(pages).iter().try_for_each(|entry| self.arrive(userfault, entry))
    }

    /// Whether there is something that [`Arriving::bring_ahead`] would bring.
    pub(super) fn has_ahead(&self) -> bool {
        self.ahead > 0 && self.pending.behind(self.touched).is_some()
    }

    /// Makes the next chunk behind the page that was touched last arrive, though nobody waits for it.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn bring_ahead(&mut self, userfault: &Userfault) -> Result<(), Lost> {
        let Some(entry) = self.pending.behind(self.touched).filter(|_| self.ahead > 0).cloned() else { return Ok(()) };
        self.ahead -= 1;
        self.arrive(userfault, &entry)
    }

    /// Makes a page arrive that somebody has touched.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn touched(&mut self, userfault: &Userfault, page: u32) -> Result<(), Lost> {
        (self.touched, self.ahead) = (page, AHEAD);
        self.make_readable(userfault, page)?;
        // It may have arrived between the touch and the wait.
        Ok(userfault.wake(AddressRange::of_pages(self.guest, &(page..page + 1)))?)
    }

    /// Makes a page of the base one that can be read without waiting, be it in a chunk or not.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn make_readable(&mut self, userfault: &Userfault, page: u32) -> Result<(), Lost> {
        self.bring(userfault, &(page..page + 1))?;
        if self.ranges.iter().any(|range| range.contains(&page)) {
            // One that is in no chunk. Others are there by now, and stay.
            put(userfault, self.view, page, &ZEROS)?;
        }
        Ok(())
    }

    fn arrive(&mut self, userfault: &Userfault, entry: &Entry) -> Result<(), Lost> {
        let chunk = entry.read(&self.file, &mut self.packed)?;
        let coded = self.unpacker.pages(&chunk, None)?;
        let view = self.view;
        each_stretch(&coded, &mut self.pages, |first, pages| put(userfault, view, first, pages))?;
        self.arrived_pages += coded.len() as u64;
        self.pending.remove(entry);
        Ok(userfault.wake(AddressRange::of_pages(self.guest, &entry.range))?)
    }
}

impl From<Unpack> for Lost {
    fn from(unpack: Unpack) -> Self {
        match unpack {
            Unpack::Bad(bad) => Self::Bad(bad),
            Unpack::Io(error) => Self::Io(error),
        }
    }
}

/// Puts pages into the base's mapping.
fn put(userfault: &Userfault, view: AddressRange, first: u32, pages: &[u8]) -> io::Result<()> {
    let address = AddressRange::of_pages(view.start, &(first..first)).start;
    // SAFETY: nobody has seen anything of those pages that are not there yet: whoever looks waits for this. Others stay.
    unsafe { userfault.copy(address, pages) }
}

#[cfg(test)]
mod tests {
    use super::super::pager::Late;
    use super::super::testing::{family, finished, memory_file, page, served};
    use super::*;
    use crate::snapshot::pages::{Coding, PAGE};
    use crate::snapshot::{Arrives, Kind, Writer, read_head};
    use crate::vm::memory::Gpa;
    use crate::vm::served::unpack_template;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    const FIRST_LATE: u32 = 0x1000;
    const TABLES: (u64, u64) = (0x30_0000, 0x1000);

    fn template(pages: &BTreeMap<u32, u8>) -> Vec<u8> {
        let mut writer = Writer::new(None).expect("memory");
        for (number, byte) in pages {
            let arrives = if *number < FIRST_LATE { Arrives::AtOnce } else { Arrives::Late };
            writer.push(arrives, *number, &[*byte; PAGE], None, None).expect("compressed");
        }
        finished(writer, Kind::Template, family(TABLES))
    }

    fn begun(content: &[u8], pager: Option<&Pager>) -> Result<(Base, GuestMemory), Refusal> {
        let file = memory_file(content);
        let (head, bytes) = read_head(&file, u64::MAX).expect("read");
        let reader = Reader::of_head(&head, bytes)?.expect(Kind::Template)?;
        begin(Digest([0; 32]), &reader, file, &family(TABLES), pager)
    }

    fn any_template() -> impl Strategy<Value = BTreeMap<u32, u8>> {
        let pages = prop_oneof![0x300_u32..0x340, 0x301_u32..0x1100, FIRST_LATE..0x1040, FIRST_LATE..0x4000];
        // A page table is no late one, and one that is zero is in no file.
        proptest::collection::btree_map(pages, 1_u8.., 0..300)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

        /// Whichever way it comes into memory, and in whatever order it is touched, through which mapping, by reads or writes.
        #[test]
        fn all_ways_give_the_same(
            pages in any_template(),
            touches in proptest::collection::vec((0_u32..0x4000, 0_u8..4), 0..60),
        ) {
            let content = template(&pages);
            let unpacked = memory_file(&[]);
            let digest = Reader::new(&content).expect("good").digest();
            let bytes = unpack_template(digest, &content, &unpacked).expect("good");
            let wanted = GuestMemory::over_template(64 << 20, &unpacked, bytes).expect("mapped");
            let pager = Pager::open().expect("/dev/userfaultfd");
            let ways = [begun(&content, None).expect("good"), begun(&content, Some(&pager)).expect("good")];
            let mut written = BTreeMap::new();
            served(&pager, || {
                for (number, how) in touches {
                    // The nearest that is in the template, for the most part.
                    let number = pages.range(number..).next().map_or(number, |(found, _)| *found);
                    for (base, memory) in &ways {
                        match how {
                            0 => assert_eq!(base.page(number), &[pages.get(&number).copied().unwrap_or(0); PAGE]),
                            1 => _ = page(memory, number),
                            2 => memory.write(Gpa(u64::from(number) * PAGE_BYTES + 7), &[99]).expect("in range"),
                            _ => pager.provide(u64::from(number) * PAGE_BYTES, 40 * PAGE_BYTES).expect("arrives"),
                        }
                    }
                    if how == 2 {
                        written.insert(number, 99);
                    }
                }
                for (base, memory) in &ways {
                    for number in 0..(64 << 20 >> 12) {
                        let mut wanted = page(&wanted, number);
                        assert!(*base.page(number) == wanted, "page {number:#x} of the base");
                        if let Some(byte) = written.get(&number) {
                            wanted[7] = *byte;
                        }
                        assert!(page(memory, number) == wanted, "page {number:#x} of the guest");
                    }
                }
            })
            .expect("whole");
        }
    }

    #[test]
    fn what_is_not_touched_does_not_arrive() {
        let pages = (0x400..0x2000).map(|number| (number, 3)).collect();
        let pager = Pager::open().expect("/dev/userfaultfd");
        let (base, memory) = begun(&template(&pages), Some(&pager)).expect("good");
        let now = (0x1000 - 0x400) * PAGE_BYTES;
        assert_eq!(pager.own_template_bytes(), now);
        served(&pager, || {
            assert_eq!(page(&memory, 0x500), [3; PAGE]);
            assert_eq!(pager.own_template_bytes(), now);
            assert_eq!(page(&memory, 0x1101), [3; PAGE]);
            assert_eq!(base.page(0x1102), &[3; PAGE]);
        })
        .expect("whole");
        assert_eq!(pager.own_template_bytes(), now + 32 * PAGE_BYTES);
    }

    /// Whoever provides pages would wait for itself if it touched one that is not there.
    #[test]
    fn a_state_coded_against_a_page_between_those_of_a_chunk_arrives() {
        let pager = Pager::open().expect("/dev/userfaultfd");
        let pages = BTreeMap::from([(FIRST_LATE, 3), (FIRST_LATE + 8, 3)]);
        let (base, memory) = begun(&template(&pages), Some(&pager)).expect("good");
        let between = FIRST_LATE + 4;
        let mut wanted = ZEROS;
        wanted[100] = 7;
        let mut writer = Writer::new(None).expect("memory");
        let (coding, _) = writer.push(Arrives::Late, between, &wanted, Some(&ZEROS), None).expect("compressed");
        assert_eq!(coding, Coding::Template);
        let delta = finished(writer, Kind::Delta, family(TABLES));
        let memory: &'static GuestMemory = Box::leak(Box::new(memory));
        let late = Late {
            file: memory_file(&delta),
            memory,
            base: Arc::new(base),
            now: Vec::new(),
            pending: Pending::new(Reader::new(&delta).expect("good").late(), &family(TABLES)).expect("no tables"),
            unpacker: Unpacker::new().expect("memory"),
        };
        pager.begin(late).expect("registered");
        served(&pager, || {
            assert!(page(memory, between) == wanted);
            assert_eq!(page(memory, between + 1), ZEROS);
            assert_eq!(page(memory, FIRST_LATE + 8), [3; PAGE]);
        })
        .expect("whole");
    }

    #[test]
    fn where_something_is_nothing_arrives() {
        let pages = BTreeMap::from([(FIRST_LATE, 3), (FIRST_LATE + 8, 3)]);
        let content = template(&pages);
        let pending = Pending::new(Reader::new(&content).expect("good").late(), &family(TABLES)).expect("no tables");
        let memory = memory_file(&[]);
        memory.set_len(u64::from(FIRST_LATE + 600) * PAGE_BYTES).expect("holes");
        assert!(are_holes(&memory, &pending));
        let write = |number: u32| memory.write_all_at(&[0; PAGE], u64::from(number) * PAGE_BYTES).expect("written");
        write(FIRST_LATE - 1);
        write(FIRST_LATE + 9);
        assert!(are_holes(&memory, &pending));
        write(FIRST_LATE + 7);
        assert!(!are_holes(&memory, &pending));
    }

    #[test]
    fn late_pages_that_are_none_are_refused() {
        let refused = |now: u32, late: [u32; 2]| {
            let mut writer = Writer::new(None).expect("memory");
            writer.push(Arrives::AtOnce, now, &[1; PAGE], None, None).expect("compressed");
            for number in late {
                writer.push(Arrives::Late, number, &[1; PAGE], None, None).expect("compressed");
            }
            begun(&finished(writer, Kind::Template, family(TABLES)), None).expect_err("refused").to_string()
        };
        assert!(refused(0x1004, [0x1000, 0x1008]).contains("is late, and is not"));
        assert!(refused(0x1004, [0x2f8, 0x306]).contains("that are none"));
    }
}

//! Pages that are not there when a VM goes on: they arrive when they are touched, a chunk at a time. Those of its template
//! ([`super::arriving`]), and over them those of its state.
//!
//! The delta's file stays open, and its late chunks are read from there: by the thread that hears commands, which is told of
//! touches by userfaultfd(2), and by the vCPU's thread where it needs a range to be ordinary memory. Neither touches guest
//! memory or the template meanwhile, but what has arrived of it: it would wait for itself.
//!
//! What is registered are the ranges of the chunks that have not arrived; no range has a page table in it. A page in between
//! that is in no chunk is as in the base.

use super::arriving::Arriving;
use super::base::{Base, is_scratch};
use super::pending::Pending;
use super::userfault::{AddressRange, Of, Userfault};
use crate::snapshot::pages::{Coding, PAGE};
use crate::snapshot::{BadSnapshot, Entry, Unpacker};
use crate::vm::memory::GuestMemory;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use torpor_abi::layout::PAGE_BYTES;

/// Why a page can't be provided.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// What the file holds is not what was stored.
    #[error("a page of the state can't be restored: {0}")]
    Bad(#[from] BadSnapshot),
    /// The file can't be read, or the host refuses.
    #[error("a page of the state can't be restored: {0}")]
    Io(#[from] io::Error),
}

/// See the module's text.
#[derive(Debug)]
pub struct Pager {
    userfault: Userfault,
    coming: Mutex<Coming>,
}

/// What has chunks that have not arrived.
#[derive(Debug, Default)]
struct Coming {
    /// A template that was not unpacked.
    template: Option<Arriving>,
    late: Option<Late>,
}

/// A state with chunks that have not arrived.
#[derive(Debug)]
pub(super) struct Late {
    /// Of the delta.
    pub(super) file: File,
    pub(super) memory: &'static GuestMemory,
    pub(super) base: Arc<Base>,
    /// Numbers of pages that are in the delta and not late, rising.
    pub(super) now: Vec<u32>,
    pub(super) pending: Pending,
    pub(super) unpacker: Unpacker,
}

impl Pager {
    /// # Errors
    /// As [`Userfault::open`].
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { userfault: Userfault::open()?, coming: Mutex::default() })
    }

    /// For poll(2): readable where [`Pager::serve`] has something to do.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.userfault.descriptor()
    }

    fn lock(&self) -> MutexGuard<'_, Coming> {
        self.coming.lock().expect("no holder panics")
    }

    /// Provides what is waited for.
    ///
    /// # Errors
    /// [`Lost`]: whoever waits can't go on.
    pub fn serve(&self) -> Result<(), Lost> {
        let mut coming = self.lock();
        for address in self.userfault.touched()? {
            coming.touched(&self.userfault, address)?;
        }
        Ok(())
    }

    /// Whether [`Pager::bring_ahead`] has something to do.
    pub fn has_ahead(&self) -> bool {
        self.lock().template.as_ref().is_some_and(Arriving::has_ahead)
    }

    /// Provides some of the template that nobody waits for yet.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn bring_ahead(&self) -> Result<(), Lost> {
        self.lock().template.as_mut().map_or(Ok(()), |template| template.bring_ahead(&self.userfault))
    }

    /// From now on the pages of the template arrive when they are touched.
    ///
    /// # Errors
    /// What the host says.
    pub(super) fn begin_template(&self, template: Arriving) -> io::Result<()> {
        template.register(&self.userfault)?;
        self.lock().template = Some(template);
        Ok(())
    }

    /// From now on the pages of `late` arrive when they are touched. Those of its chunks' ranges that are there stay.
    ///
    /// # Errors
    /// What the host says; nothing of it is registered then.
    pub(super) fn begin(&self, late: Late) -> io::Result<()> {
        let registered = late.ranges().try_for_each(|(range, of)| self.userfault.register(range, of));
        self.lock().late = Some(late);
        if registered.is_err() {
            // Where not even that was registered nothing is to be undone.
            let _ = self.end();
        }
        registered
    }

    /// All memory is as in the base again, as far as it has not arrived; that never will.
    ///
    /// # Errors
    /// What the host says.
    pub(super) fn end(&self) -> io::Result<()> {
        let mut coming = self.lock();
        let late = coming.late.take();
        late.iter().flat_map(Late::ranges).try_for_each(|(range, _)| self.userfault.unregister(range))?;
        coming.template.as_ref().map_or(Ok(()), |template| template.register(&self.userfault))
    }

    /// Makes whole pages ordinary memory, once what is late of them has arrived.
    ///
    /// # Errors
    /// [`Lost`].
    pub(in crate::vm) fn provide(&self, start: u64, len: u64) -> Result<(), Lost> {
        let page = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let pages = page(start / PAGE_BYTES)..page(start.saturating_add(len).div_ceil(PAGE_BYTES));
        self.lock().provide(&self.userfault, &pages)
    }

    /// The chunks of the state that have not arrived, in order; none where all of it was there at once.
    pub(super) fn pending(&self) -> Option<Vec<Entry>> {
        self.at_once(|| ()).1
    }

    /// What `f` finds, and what [`Pager::pending`] says, at one moment: no chunk arrives meanwhile, and none is there in part.
    /// `f` touches no memory of the guest or the template.
    pub(super) fn at_once<T>(&self, f: impl FnOnce() -> T) -> (T, Option<Vec<Entry>>) {
        let coming = self.lock();
        (f(), coming.late.as_ref().map(|late| late.pending.entries().cloned().collect()))
    }

    /// Their file.
    pub(super) fn file(&self) -> Option<io::Result<File>> {
        self.lock().late.as_ref().map(|late| late.file.try_clone())
    }

    /// Memory of a template that this process shares with no other.
    pub(super) fn own_template_bytes(&self) -> u64 {
        self.lock().template.as_ref().map_or(0, |template| template.arrived_pages() * PAGE_BYTES)
    }
}

impl Coming {
    fn touched(&mut self, userfault: &Userfault, address: u64) -> Result<(), Lost> {
        let page = match (&self.template, &self.late) {
            (Some(template), _) => template.page_at(address),
            (None, Some(late)) => late.page_at(address),
            // Where nothing is registered any more nobody waits.
            (None, None) => return Ok(()),
        };
        self.provide(userfault, &(page..page + 1))?;
        self.template.as_mut().map_or(Ok(()), |template| template.touched(userfault, page))
    }

    fn provide(&mut self, userfault: &Userfault, pages: &Range<u32>) -> Result<(), Lost> {
        if let Some(late) = &mut self.late {
            for entry in late.pending.overlapping(pages) {
                // It is put over these.
                if let Some(template) = &mut self.template {
                    template.bring(userfault, &entry.range)?;
                }
                late.arrive(userfault, &entry, self.template.as_mut())?;
            }
        }
        self.template.as_mut().map_or(Ok(()), |template| template.bring(userfault, pages))
    }
}

impl Late {
    /// Ranges of the chunks' pages as addresses, and what they are mappings of.
    fn ranges(&self) -> impl Iterator<Item = (AddressRange, Of)> {
        let template_end = (self.memory.template_bytes() / PAGE_BYTES) as u32;
        let parts = self.pending.ranges().into_iter().flat_map(move |Range { start, end }| {
            let middle = template_end.clamp(start, end);
            [(start..middle, Of::MemoryFile), (middle..end, Of::Nothing)]
        });
        parts.filter(|(pages, _)| !pages.is_empty()).map(|(pages, of)| (self.at(&pages), of))
    }

    fn page_at(&self, address: u64) -> u32 {
        (address.wrapping_sub(self.memory.base().0) / PAGE_BYTES) as u32
    }

    fn at(&self, pages: &Range<u32>) -> AddressRange {
        AddressRange::of_pages(self.memory.base().0, pages)
    }

    /// Puts a chunk where it belongs; from then on its range is ordinary memory.
    fn arrive(
        &mut self,
        userfault: &Userfault,
        entry: &Entry,
        mut template: Option<&mut Arriving>,
    ) -> Result<(), Lost> {
        let Self { file, memory, base, now, unpacker, .. } = self;
        let mut packed = Vec::new();
        let chunk = entry.read(file, &mut packed)?;
        let coded = unpacker.pages(&chunk, base.dictionary.as_ref())?;
        let warm = base.warm_pages_in(&entry.range).map(|(number, page)| (number, &page[..]));
        let mut pages: BTreeMap<u32, &[u8]> = warm.collect();
        let mut decoded = vec![0; coded.len() * PAGE];
        for (coded, page) in coded.iter().zip(decoded.as_chunks_mut::<PAGE>().0) {
            let number = coded.number;
            if now.binary_search(&number).is_ok() || is_scratch(number) {
                return Err(BadSnapshot::Format(format!("page {number:#x} is late, and is not")).into());
            }
            if let Some(template) = template.as_mut().filter(|_| coded.coding == Coding::Template) {
                // Its chunk has arrived, but not every page between those of a chunk is in it.
                template.make_readable(userfault, number)?;
            }
            base.decode_into(coded, page);
            pages.insert(number, page);
        }
        let mut run: Vec<u8> = Vec::new();
        let mut start = 0;
        for (number, page) in pages {
            if start + (run.len() / PAGE) as u32 != number {
                put(userfault, memory, start, &run)?;
                run.clear();
                start = number;
            }
            run.extend_from_slice(page);
        }
        put(userfault, memory, start, &run)?;
        self.pending.remove(entry);
        Ok(userfault.unregister(self.at(&entry.range))?)
    }
}

fn put(userfault: &Userfault, memory: &GuestMemory, first: u32, pages: &[u8]) -> io::Result<()> {
    // SAFETY: guest memory, of which there are no references (`GuestMemory`), and no words that both sides share are in a late
    // chunk (`Pending::new`).
    unsafe { userfault.copy(memory.base().0 + u64::from(first) * PAGE_BYTES, pages) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{family, finished, memory_file, page, served};
    use super::*;
    use crate::snapshot::metadata::Digest;
    use crate::snapshot::pages::{Page, ZEROS};
    use crate::snapshot::{Arrives, Kind, Reader, Writer};
    use crate::vm::memory::Gpa;
    use rustix::fs::{SealFlags, fcntl_add_seals};

    const TEMPLATE_PAGES: u32 = 700;
    const TABLES: (u64, u64) = (0x2000, 0x1000);

    fn filled(byte: u8) -> Page {
        [byte; PAGE]
    }

    /// Page 660 is there at once; every other one around it and beyond the template's end is late.
    fn delta() -> Vec<u8> {
        let mut writer = Writer::new(None).expect("memory");
        writer.push(Arrives::AtOnce, 660, &filled(3), None, None).expect("compressed");
        for number in (600..900).step_by(2).filter(|number| *number != 660) {
            let page = filled((number % 200) as u8 + 1);
            writer.push(Arrives::Late, number, &page, None, None).expect("compressed");
        }
        finished(writer, Kind::Delta, family(TABLES))
    }

    fn late(delta: &[u8]) -> Late {
        let template = memory_file(&[7; TEMPLATE_PAGES as usize * PAGE]);
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&template, seals).expect("sealed");
        let bytes = u64::from(TEMPLATE_PAGES) * PAGE_BYTES;
        let memory = GuestMemory::over_template(64 << 20, &template, bytes).expect("mapped");
        memory.write(Gpa(660 * PAGE_BYTES), &filled(3)).expect("in range");
        let reader = Reader::new(delta).expect("good");
        Late {
            file: memory_file(delta),
            memory: Box::leak(Box::new(memory)),
            base: Arc::new(Base::of_template(Digest([0; 32]), &template, bytes).expect("sealed")),
            now: vec![660],
            pending: Pending::new(reader.late(), &family(TABLES)).expect("no tables"),
            unpacker: Unpacker::new().expect("memory"),
        }
    }

    #[test]
    fn pages_arrive_when_they_are_touched_and_no_sooner() {
        let late = late(&delta());
        let (memory, chunks) = (late.memory, late.pending.entries().count());
        let pager = Pager::open().expect("/dev/userfaultfd");
        pager.begin(late).expect("registered");
        let arrived = || chunks - pager.pending().expect("begun").len();
        served(&pager, || {
            assert_eq!(page(memory, 599), filled(7));
            assert_eq!(page(memory, 660), filled(3));
            assert_eq!(arrived(), 0);
            assert_eq!(page(memory, 700), filled(101));
            assert_eq!(arrived(), 1);
            // A write to a page that is not there is one to what is stored.
            memory.write(Gpa(800 * PAGE_BYTES + 5), &[99]).expect("in range");
            assert_eq!(page(memory, 800)[4..7], [1, 99, 1]);
            pager.provide(880 * PAGE_BYTES, 100 * PAGE_BYTES).expect("arrives");
            for number in 590..910 {
                let wanted = match number {
                    660 => filled(3),
                    800 => continue,
                    n if (600..900).contains(&n) && n % 2 == 0 => filled((n % 200) as u8 + 1),
                    n if n < TEMPLATE_PAGES => filled(7),
                    _ => ZEROS,
                };
                assert!(page(memory, number) == wanted, "page {number}: {}", page(memory, number)[0]);
            }
            assert_eq!(arrived(), chunks);
        })
        .expect("served");
    }

    #[test]
    fn what_has_not_arrived_never_does_after_the_end() {
        let late = late(&delta());
        let memory = late.memory;
        let pager = Pager::open().expect("/dev/userfaultfd");
        pager.begin(late).expect("registered");
        pager.end().expect("unregistered");
        assert!(pager.pending().is_none());
        assert!(page(memory, 600) == filled(7) && page(memory, 800) == ZEROS);
    }

    #[test]
    fn a_damaged_chunk_is_found_when_it_is_touched() {
        let mut delta = delta();
        *delta.last_mut().expect("not empty") ^= 1;
        let late = late(&delta);
        let memory = late.memory;
        let pager = Pager::open().expect("/dev/userfaultfd");
        pager.begin(late).expect("registered");
        served(&pager, || _ = page(memory, 600)).expect("this one is whole");
        let lost = served(&pager, || _ = page(memory, 898)).expect_err("damaged");
        assert!(lost.to_string().contains("checksum"), "{lost}");
    }

    /// What `Vm::capture_delta` asks, in its order: which pages are this process's own, then which chunks have not arrived.
    #[test]
    fn what_arrives_while_a_vm_is_stored_is_stored() {
        use super::super::private::PageMap;
        let delta = delta();
        let map = PageMap::open().expect("proc");
        let mut lost = 0;
        for _ in 0..200 {
            let late = late(&delta);
            let memory = late.memory;
            let numbers: Vec<u32> = (600..900).step_by(2).filter(|number| *number != 660).collect();
            let pager = Pager::open().expect("/dev/userfaultfd");
            pager.begin(late).expect("registered");
            served(&pager, || {
                assert_eq!(page(memory, 700), filled(101));
                let (private, pending) = pager.at_once(|| map.private_pages(memory));
                let (private, pending) = (private.expect("scanned"), pending.expect("begun"));
                let is_stored = |number: &u32| {
                    private.binary_search(number).is_ok() || pending.iter().any(|entry| entry.range.contains(number))
                };
                lost += u32::from(!numbers.iter().all(is_stored));
            })
            .expect("served");
        }
        assert_eq!(lost, 0, "of 200 captures lack pages");
    }

    #[test]
    fn late_chunks_over_page_tables_are_refused() {
        let delta = delta();
        let reader = Reader::new(&delta).expect("good");
        let mut family = family(TABLES);
        family.tables.push((610 * PAGE_BYTES, PAGE_BYTES));
        Pending::new(reader.late(), &family).expect_err("page 610 is a table");
    }
}

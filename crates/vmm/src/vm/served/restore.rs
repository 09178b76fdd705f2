//! Putting a state into a VM that rests.
//!
//! Ordinary pages are written by the host, in place: only what differs from the base is touched. Page tables are the
//! guest's to write once its vCPU has run; the host lists the entries that differ, and the guest's resume entry stores
//! them. Nothing runs before all of it is there; what is refused leaves the VM at rest.

use super::super::memory::Gpa;
use super::super::{Fatal, Ledger};
use super::base::each_page_of;
use super::pager::Late;
use super::pending::Pending;
use super::{Instance, Pager, Refusal, Vm, handover, working_set};
use crate::snapshot::metadata::{Uuid, unhex_all};
use crate::snapshot::pages::{CodedPage, Page, Run, ZEROS};
use crate::snapshot::{BadSnapshot, Chunk, Metadata, Reader, Unpacker};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use torpor_abi::layout::{CONTROL_GPA, HANDOVER_LIST_MAX, PAGE_BYTES};
use torpor_streams::ledger::Connection;
use torpor_streams::parked::Parked;

/// The streams that a delta carries, checked.
fn parked_streams(metadata: &Metadata) -> Result<Streams, BadSnapshot> {
    if metadata.streams.is_empty() {
        return Ok(Vec::new());
    }
    let bytes = unhex_all(&metadata.streams).ok_or_else(|| BadSnapshot::Format("parked streams: no digits".into()))?;
    let parked = Parked::decode(&bytes).map_err(|bad| BadSnapshot::Format(bad.to_string()))?;
    if parked.instance != metadata.uuid.0 || parked.incarnation != metadata.generation.wrapping_sub(1) {
        return Err(BadSnapshot::Format("parked streams of another instance or incarnation".into()));
    }
    // Into a ledger of their own first: what they break is known before anything is changed for good.
    let mut ledger = Ledger::new(false);
    for (number, connection) in &parked.streams {
        ledger.adopt(*number, *connection).map_err(|violation| BadSnapshot::Format(violation.to_string()))?;
    }
    Ok(parked.streams)
}

/// Streams by number.
type Streams = Vec<(u32, Connection)>;

/// What a template's file says besides its memory.
#[derive(Debug, Default)]
pub struct Whole {
    stopped_at_ns: u64,
    uuid: Uuid,
    generation: u64,
    streams: Streams,
}

impl Whole {
    /// What metadata say.
    ///
    /// # Errors
    /// [`BadSnapshot`] where they make no sense.
    pub fn of(metadata: &Metadata) -> Result<Self, BadSnapshot> {
        let streams = parked_streams(metadata)?;
        let Metadata { stopped_at_ns, uuid, generation, .. } = *metadata;
        Ok(Self { stopped_at_ns, uuid, generation, streams })
    }

    /// The streams that go on in an instance that begins with the template alone: its own, if it is its own state.
    fn streams_of(&self, instance: &Instance) -> Streams {
        if (self.uuid, self.generation) == (instance.uuid, instance.generation) {
            self.streams.clone()
        } else {
            Vec::new()
        }
    }
}

/// Entries of page tables that the guest has to store.
pub(super) type Entries = Vec<(u64, u64)>;

impl Vm {
    /// Puts a delta, read as one, into the resting VM (or, without one, its template) and makes it `instance`. The VM goes on with the
    /// next [`Vm::run`]. `link` is for console frames. The delta's late chunks are read from its file, when they are touched.
    ///
    /// # Errors
    /// [`Refusal`]; the VM rests as before.
    pub fn restore(
        &mut self,
        delta: Option<(&Reader<'_>, File)>,
        instance: &Instance,
        link: Option<&OwnedFd>,
        whole: &Whole,
    ) -> Result<(), Refusal> {
        self.untouched = None;
        // Who goes on needs other things, and memory has one userfaultfd: late pages need theirs.
        let begins = instance.generation == 0 && delta.as_ref().is_none_or(|(reader, _)| reader.late().is_empty());
        let recorder = self.recorder.take().filter(|_| begins);
        self.recorder = recorder.and_then(|recorder| working_set::record(self.machine, recorder));
        let mut entries = Vec::new();
        let put = self.put(delta, &mut entries);
        let (stopped_at_ns, parked) = match put {
            Ok(Some(put)) => put,
            Ok(None) => (whole.stopped_at_ns, whole.streams_of(instance)),
            Err(refusal) => {
                self.write_base_back()?;
                return Err(refusal);
            }
        };
        self.start_over(link)?;
        self.adopt(&parked)?;
        handover::write_list(&self.machine.memory, &entries).map_err(Fatal::from)?;
        let count = entries.len() as u32;
        handover::write_resume(&self.machine.memory, instance, stopped_at_ns, self.tsc_hz, count)?;
        self.machine.open_gate();
        Ok(())
    }

    fn put(
        &mut self,
        delta: Option<(&Reader<'_>, File)>,
        entries: &mut Entries,
    ) -> Result<Option<(u64, Streams)>, Refusal> {
        let mut covered = BTreeSet::new();
        let mut on_warm_base = false;
        let mut put = None;
        if let Some((reader, file)) = delta {
            let template = self.base.digest.ok_or_else(|| Refusal::Host("this VM was booted".into()))?;
            reader.metadata().check_family(&self.family, template)?;
            if let Some(digest) = reader.metadata().warm_base {
                if self.base.warm_digest != Some(digest) {
                    let text = format!("it is coded against warm base {digest}, which this VM does not rest at");
                    return Err(BadSnapshot::Mismatch(text).into());
                }
                on_warm_base = true;
            }
            put = Some((reader.metadata().stopped_at_ns, parked_streams(reader.metadata())?));
            // What a delta that does not know the warm base has not in it is undone below: it has to be known now.
            let pager = self.pager().filter(|_| self.base.warm_digest == reader.metadata().warm_base);
            match pager {
                Some(pager) if !reader.late().is_empty() => self.put_late(reader, file, pager, entries)?,
                _ => {
                    self.put_chunks(reader.chunks(), on_warm_base, &mut covered, entries)?;
                    let mut packed = Vec::new();
                    for entry in reader.late() {
                        let chunk = entry.read(&file, &mut packed).map_err(Fatal::system("reading the delta"))?;
                        self.put_chunks(&[chunk], on_warm_base, &mut covered, entries)?;
                    }
                }
            }
        }
        if !on_warm_base {
            // The state is one of the template alone: what the warm base has besides is not part of it.
            for (number, template, differs) in self.base.warm_differences() {
                if covered.contains(&number) {
                    continue;
                }
                if self.is_table(number) {
                    self.put_content(number, template, entries)?;
                } else {
                    self.put_differences(number, template, differs)?;
                }
            }
        }
        if entries.len() > HANDOVER_LIST_MAX as usize {
            let text = format!("{} page-table entries differ: take a VM that has never run", entries.len());
            return Err(Refusal::Busy(text));
        }
        Ok(put)
    }

    /// Puts the pages of chunks in place and adds their numbers to `covered`.
    fn put_chunks(
        &self,
        chunks: &[Chunk<'_>],
        on_warm_base: bool,
        covered: &mut BTreeSet<u32>,
        entries: &mut Entries,
    ) -> Result<(), Refusal> {
        let mut failed = None;
        each_page_of(chunks, self.base.dictionary.as_ref().filter(|_| on_warm_base), |coded| {
            if !on_warm_base {
                covered.insert(coded.number);
            }
            if failed.is_none()
                && let Err(fatal) = self.put_page(coded, entries)
            {
                failed = Some(fatal);
            }
            Ok(())
        })?;
        failed.map_or(Ok(()), |fatal| Err(fatal.into()))
    }

    /// Puts the pages of a delta in place but for its late ones, which `pager` will put there. The delta is against all that
    /// the VM rests at.
    fn put_late(&self, reader: &Reader<'_>, file: File, pager: &Pager, entries: &mut Entries) -> Result<(), Refusal> {
        let mut late = Late {
            file,
            memory: &self.machine.memory,
            base: Arc::clone(&self.base),
            now: Vec::new(),
            pending: Pending::new(reader.late(), &self.family)?,
            unpacker: Unpacker::new()?,
        };
        for range in late.pending.ranges() {
            let (start, len) = (u64::from(range.start) * PAGE_BYTES, range.len() as u64 * PAGE_BYTES);
            let forgotten = self.machine.memory.forget(Gpa(start), len).map_err(Fatal::from)?;
            forgotten.map_err(Fatal::system("taking back memory"))?;
        }
        let mut failed = None;
        let mut tables: Vec<(u32, Page)> = Vec::new();
        each_page_of(reader.chunks(), self.base.dictionary.as_ref(), |coded| {
            late.now.push(coded.number);
            // Whole: what was dropped just now is not as in the warm base.
            let page = self.base.decode(coded);
            if self.is_table(coded.number) {
                tables.push((coded.number, page));
            } else if failed.is_none()
                && let Err(fatal) = self.put_content(coded.number, &page, entries)
            {
                failed = Some(fatal);
            }
            Ok(())
        })?;
        if let Some(fatal) = failed {
            return Err(fatal.into());
        }
        pager.begin(late).map_err(Fatal::system("userfaultfd"))?;
        // Not before: whoever reads a page may have others mapped beside it, which would be there without having arrived.
        for (number, page) in tables {
            self.put_content(number, &page, entries)?;
        }
        Ok(())
    }

    /// Enters the state's streams in the ledger of the new link; its other end says which of them go on.
    fn adopt(&self, streams: &[(u32, Connection)]) -> Result<(), Refusal> {
        let mut ledger = self.machine.ledger.lock().expect("no holder panics");
        for (number, connection) in streams {
            ledger.adopt(*number, *connection).map_err(|violation| Refusal::Host(violation.to_string()))?;
        }
        Ok(())
    }

    fn put_page(&self, coded: &CodedPage<'_>, entries: &mut Entries) -> Result<(), Fatal> {
        let number = coded.number;
        if coded.coding != self.base.rests_at(number) || self.is_table(number) {
            return self.put_content(number, &self.base.decode(coded), entries);
        }
        // Memory holds the page that it is beyond its runs: only the words that differ are touched.
        for (offset, bytes) in coded.runs() {
            self.machine.memory.write(Gpa(u64::from(number) * PAGE_BYTES + offset as u64), bytes)?;
        }
        Ok(())
    }

    /// Writes `page` where it `differs` from what is there.
    pub(super) fn put_differences(&self, number: u32, page: &Page, differs: &[Run]) -> Result<(), Fatal> {
        for range in differs.iter().map(|run| run.range()) {
            let gpa = Gpa(u64::from(number) * PAGE_BYTES + range.start as u64);
            self.machine.memory.write(gpa, &page[range])?;
        }
        Ok(())
    }

    fn put_content(&self, number: u32, page: &Page, entries: &mut Entries) -> Result<(), Fatal> {
        if self.entered && self.is_table(number) {
            self.list_entries(number, page, entries)
        } else {
            Ok(self.machine.memory.write(Gpa(u64::from(number) * PAGE_BYTES), page)?)
        }
    }

    /// Lists the entries of a page table that are to be changed to make it `page`.
    pub(super) fn list_entries(&self, number: u32, page: &Page, entries: &mut Entries) -> Result<(), Fatal> {
        let mut now = ZEROS;
        let gpa = u64::from(number) * PAGE_BYTES;
        self.machine.memory.read(Gpa(gpa), &mut now)?;
        for (index, (old, new)) in now.as_chunks::<8>().0.iter().zip(page.as_chunks::<8>().0).enumerate() {
            if old != new {
                entries.push((gpa + index as u64 * 8, u64::from_le_bytes(*new)));
            }
        }
        Ok(())
    }

    /// After a refusal: every ordinary page as in the base. Page tables were not touched, unless the vCPU has never run.
    fn write_base_back(&self) -> Result<(), Refusal> {
        if let Some(pager) = self.pager() {
            pager.end().map_err(Fatal::system("userfaultfd"))?;
        }
        // What was dropped to make room for late pages.
        for (number, page) in self.base.warm_pages().filter(|(number, _)| !self.is_table(*number)) {
            self.machine.memory.write(Gpa(u64::from(number) * PAGE_BYTES), page).map_err(Fatal::from)?;
        }
        for number in self.pagemap.private_pages(&self.machine.memory)? {
            if super::base::is_scratch(number) || (self.entered && self.is_table(number)) {
                continue;
            }
            let gpa = Gpa(u64::from(number) * PAGE_BYTES);
            self.machine.memory.write(gpa, self.base.page(number)).map_err(Fatal::from)?;
        }
        Ok(())
    }

    /// Rings, windows, timer and pending events as at the beginning; the link a new one.
    pub(super) fn start_over(&mut self, link: Option<&OwnedFd>) -> Result<(), Refusal> {
        let machine = self.machine;
        machine.attach(link)?;
        self.relinked = None;
        machine.memory.write(Gpa(CONTROL_GPA), &ZEROS).map_err(Fatal::from)?;
        {
            let mut transmit = machine.transmit.lock().expect("no holder panics");
            transmit.ring.reset();
            transmit.message = torpor_streams::link::Message::default();
        }
        *machine.ledger.lock().expect("no holder panics") = Ledger::new(self.tty);
        machine.inbox.lock().expect("no holder panics").reset();
        machine.signals.store(0, Ordering::SeqCst);
        machine.timer.reset(&machine.memory).map_err(Fatal::system("timerfd_settime"))?;
        self.progress.forget_events();
        // The first thing that the guest does is to look at everything.
        machine.control().pending().store(1, Ordering::SeqCst);
        Ok(())
    }
}

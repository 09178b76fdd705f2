//! Storing a quiesced VM: the pages that differ from its base, but for free memory and what is no part of the state.

use super::super::io::receive_frames;
use super::super::memory::Gpa;
use super::super::timer::now_ns;
use super::super::{Fatal, wait_writable};
use super::base::{Base, is_scratch, scratch};
use super::{Changed, LARGE_PAGES, Pager, Refusal, Survey, Vm, handover, working_set};
use crate::snapshot::metadata::{Digest, Machine as Family, Uuid, hex};
use crate::snapshot::pages::{Coding, ZEROS};
use crate::snapshot::{Arrives, BadSnapshot, Entry, Kind, Metadata, Reader, Writer};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::time::{ClockId, Timespec};
use std::fs::File;
use std::iter::Peekable;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use torpor_abi::layout::{KERNEL_GPA, KERNEL_MAX_BYTES, PAGE_BYTES};
use torpor_streams::parked::Parked;

/// The file of a snapshot: a memory file that can't be changed any more.
#[derive(Debug)]
pub struct Stored {
    /// All of it.
    pub file: File,
    /// Its length.
    pub bytes: u64,
}

impl Stored {
    /// Writes the file with the pages of `writer`.
    ///
    /// # Errors
    /// As [`Writer::finish`].
    pub(super) fn new(writer: Writer<'_>, kind: Kind, metadata: &Metadata, dictionary: &[u8]) -> std::io::Result<Self> {
        let mut file = File::from(memfd_create("snapshot", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        let bytes = writer.finish(kind, metadata, dictionary, &mut file)?;
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { file, bytes })
    }
}

/// A snapshot that was just made.
#[derive(Debug)]
pub struct Captured {
    /// See [`Stored`].
    pub stored: Stored,
    /// Pages in it by [`Coding`].
    pub pages: [u32; Coding::COUNT],
    /// From the stop to the next timer on CLOCK_MONOTONIC.
    pub next_deadline_ns: Option<u64>,
    /// Whether a program has drawn random numbers from a generator like BoringSSL's, which may lie in memory for later use.
    pub drew_random: bool,
}

impl Vm {
    /// Closes the VM's streams towards the outside for a capture: everything that the guest has sent is passed on, and
    /// nothing that was received is on its way to it.
    ///
    /// # Errors
    /// [`Refusal::Busy`]; the VM may go on or be tried again.
    pub fn settle(&mut self) -> Result<(), Refusal> {
        let control = self.machine.control();
        let mut tries = 0;
        while !self.machine.transmit()? {
            tries += 1;
            if self.machine.is_unlinked() {
                return Err(Refusal::Busy("the guest has sent something, and its link is lost".into()));
            }
            if tries > 3 {
                return Err(Refusal::Busy("the reader of the guest's output is behind".into()));
            }
            wait_writable(&self.machine.link, Some(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 }));
        }
        self.machine.gate.close();
        // What the I/O thread did not get to see is taken here: it may not get to it between one stop and the next.
        let mut inbox = self.machine.inbox.lock().expect("no holder panics");
        receive_frames(self.machine, &mut inbox)?;
        let inbox_is_empty = inbox.is_empty();
        drop(inbox);
        let ring_is_empty = control.rx_head().load(Ordering::SeqCst) == control.rx_tail().load(Ordering::SeqCst);
        if inbox_is_empty && ring_is_empty {
            return Ok(());
        }
        self.machine.open_gate();
        Err(Refusal::Busy("input is on its way to the guest".into()))
    }

    /// For a capture after which the VM goes on over its link: what is on its way stays on its way. No stream goes on from
    /// what is captured, since its other end goes on with this VM.
    pub fn pause(&mut self) {
        self.machine.gate.close();
    }

    /// All of a VM that was booted, as a template; with a generation as the state of an instance, streams included. After
    /// [`Vm::settle`].
    ///
    /// # Errors
    /// [`Refusal::Host`].
    pub fn capture_template(&mut self, uuid: Uuid, generation: u64) -> Result<Captured, Refusal> {
        let streams = if generation > 0 { self.parked(uuid, generation)? } else { String::new() };
        let private = self.pagemap.private_pages(&self.machine.memory)?;
        let (start, len) = handover::read_stopped(&self.machine.memory).map_err(Fatal::from)?.tables;
        let mut division = Division::new(&self.family);
        division.protected.push(start..start.saturating_add(len));
        // In VM processes for which it is not unpacked they arrive by and by.
        division.late = Some(0..u32::MAX);
        self.capture(Kind::Template, &private, uuid, generation, streams, Some(division))
    }

    /// What a VM that was booted differs by from the template of another such VM: `file` is that one's, and `memory` what
    /// [`super::unpack_template`] made of it. The VM itself stays what it is.
    ///
    /// # Errors
    /// [`Refusal::Snapshot`] if that template is of another machine, [`Refusal::Host`].
    pub fn capture_sibling(
        &mut self,
        (digest, file, memory): (Digest, &[u8], &File),
        uuid: Uuid,
        generation: u64,
    ) -> Result<Captured, Refusal> {
        let reader = Reader::new(file)?.expect(Kind::Template)?.named(digest)?;
        let bytes = memory.metadata().map_err(Fatal::system("fstat of the template's memory"))?.len();
        let mut family = self.family.clone();
        family.tables.push(handover::read_stopped(&self.machine.memory).map_err(Fatal::from)?.tables);
        super::check_family(&family)?;
        if family != reader.metadata().machine {
            let text = "image, kernel, size or memory layout differ from those of the sibling's template";
            return Err(BadSnapshot::Mismatch(text.into()).into());
        }
        // What this VM never touched is zero here, and may be something there.
        let theirs = u32::try_from(bytes / PAGE_BYTES).map_err(|_| BadSnapshot::Mismatch("its size".into()))?;
        let private = self.pagemap.private_pages(&self.machine.memory)?;
        let pages: Vec<u32> = (0..theirs).chain(private.into_iter().filter(|number| *number >= theirs)).collect();
        let own_base = std::mem::replace(&mut self.base, Arc::new(Base::of_template(digest, memory, bytes)?));
        let own_family = std::mem::replace(&mut self.family, family);
        let captured = self.capture(Kind::Delta, &pages, uuid, generation, String::new(), None);
        (self.base, self.family) = (own_base, own_family);
        captured
    }

    /// What a VM of a template differs by; `with_streams` after [`Vm::settle`].
    ///
    /// # Errors
    /// [`Refusal::Host`].
    pub fn capture_delta(&mut self, uuid: Uuid, generation: u64, with_streams: bool) -> Result<Captured, Refusal> {
        let streams = if with_streams { self.parked(uuid, generation)? } else { String::new() };
        let scan = || self.pagemap.private_pages(&self.machine.memory);
        // A chunk of which the guest has been given one page may still be arriving.
        let (private, pending) = self.pager().map_or_else(|| (scan(), None), |pager| pager.at_once(scan));
        let private = private?;
        let division = self.divide(private.len(), generation, pending)?;
        self.capture(Kind::Delta, &private, uuid, generation, streams, Some(division))
    }

    /// Stores those of `numbers`, which rise, that differ from the base; late those that `division` says.
    fn capture(
        &mut self,
        kind: Kind,
        numbers: &[u32],
        uuid: Uuid,
        generation: u64,
        streams: String,
        mut division: Option<Division>,
    ) -> Result<Captured, Refusal> {
        let memory = &self.machine.memory;
        let stopped_at_ns = now_ns(ClockId::Realtime);
        let stopped = handover::read_stopped(memory).map_err(Fatal::from)?;
        let mut family = self.family.clone();
        if kind == Kind::Template {
            family.tables.push(stopped.tables);
            super::check_family(&family)?;
        }
        // Who has gone on as somebody needs more than a new instance, and who has no siblings teaches nobody.
        let teaches = kind == Kind::Delta && generation <= 1;
        let working_set = if teaches && self.recorder.is_some() {
            let root = self.vcpu.get_sregs().map_err(Fatal::kvm("KVM_GET_SREGS"))?.cr3;
            Some(working_set::of(self.machine, &self.pagemap, root, numbers)?)
        } else {
            None
        };
        let mut free = FreePages::new(stopped.free);
        let mut survey = Survey { private: numbers.len(), changed: Vec::new(), runs: Vec::new() };
        let host = |error: std::io::Error| Refusal::Host(format!("the snapshot: {error}"));
        let mut writer = Writer::new(self.base.dictionary.as_ref()).map_err(host)?;
        writer.expect_late(numbers.len());
        let mut page = Box::new(ZEROS);
        for &number in numbers {
            if is_scratch(number) || free.contains(number) {
                survey.changed.push(Changed { number, runs: None });
                continue;
            }
            let gpa = Gpa(u64::from(number) * PAGE_BYTES);
            if !memory.equals(gpa, self.base.page(number)).map_err(Fatal::from)? {
                memory.read(gpa, &mut *page).map_err(Fatal::from)?;
                let (template, warm) = (self.base.template(number), self.base.warm(number));
                let arrives = division.as_mut().map(|division| division.arrives(number, &mut writer)).transpose();
                let arrives = arrives.map_err(host)?.unwrap_or(Arrives::AtOnce);
                let (coding, runs) = writer.push(arrives, number, &page, template, warm).map_err(host)?;
                let start = survey.runs.len();
                let known = coding == self.base.rests_at(number);
                survey.runs.extend_from_slice(if known { runs } else { &[] });
                survey.changed.push(Changed { number, runs: known.then_some(start..survey.runs.len()) });
            }
        }
        if let Some(division) = division {
            division.finish(&mut writer).map_err(host)?;
        }
        let pages = writer.counts;
        let metadata = Metadata {
            machine: family,
            template: self.base.digest,
            warm_base: self.base.warm_digest,
            uuid,
            generation,
            stopped_at_ns,
            next_deadline_ns: stopped.next_deadline_ns,
            working_set,
            streams,
        };
        let stored = Stored::new(writer, kind, &metadata, &[]).map_err(host)?;
        page.fill(0);
        self.survey = Some(survey);
        let (next_deadline_ns, drew_random) = (stopped.next_deadline_ns, stopped.drew_random);
        Ok(Captured { stored, pages, next_deadline_ns, drew_random })
    }

    /// Which pages of what is stored now need not be there before it goes on. A chunk that has not arrived since the last
    /// restore was not needed then; one that has will be there at once the next time. Where that is not known, or has been so
    /// for long, all pages of a large state are late: the next restore shows which of them are needed.
    fn divide(&self, private: usize, generation: u64, pending: Option<Vec<Entry>>) -> Result<Division, Refusal> {
        let pager = self.pager();
        let file = pager.and_then(Pager::file).transpose().map_err(Fatal::system("dup"))?;
        let learns = pending.is_none() || generation.is_multiple_of(LEARNT_ANEW_EVERY);
        Ok(Division {
            file: file.map(Rc::new),
            pending: pending.unwrap_or_default().into_iter().peekable(),
            late: (learns && private >= LARGE_PAGES).then_some(FIRST_LATE..u32::MAX),
            ..Division::new(&self.family)
        })
    }

    /// The streams as they are at the stop. Nothing is on its way to the guest: see [`Vm::settle`]. None of them goes on
    /// where the link is lost.
    fn parked(&self, uuid: Uuid, generation: u64) -> Result<String, Refusal> {
        if self.machine.is_unlinked() {
            return Ok(String::new());
        }
        let ledger = self.machine.ledger.lock().expect("no holder panics");
        // The incarnation that ends is the one before the generation that is stored.
        let parked = Parked::of(uuid.0, generation.wrapping_sub(1), &ledger, &[])
            .map_err(|violation| Refusal::Host(violation.to_string()))?;
        if parked.streams.is_empty() { Ok(String::new()) } else { Ok(hex(&parked.encode())) }
    }

    /// Digests of template and warm base, as far as there are any.
    #[must_use]
    pub fn bases(&self) -> [Option<Digest>; 2] {
        [self.base.digest, self.base.warm_digest]
    }

    /// Digest of the template; none for a VM that was booted.
    #[must_use]
    pub fn template(&self) -> Option<Digest> {
        self.base.digest
    }
}

/// The guest kernel's own memory is always needed.
const FIRST_LATE: u32 = ((KERNEL_GPA + KERNEL_MAX_BYTES) / PAGE_BYTES) as u32;
/// In generations.
const LEARNT_ANEW_EVERY: u64 = 16;

/// Says for rising page numbers whether they are late, and takes late chunks over that have not arrived.
struct Division {
    /// Of what is pending.
    file: Option<Rc<File>>,
    pending: Peekable<std::vec::IntoIter<Entry>>,
    /// Of the pages that are there, those that are late.
    late: Option<Range<u32>>,
    /// In bytes: no late chunk may reach over one of these.
    protected: Vec<Range<u64>>,
    /// Behind the last late page or chunk.
    end: u32,
}

impl Division {
    /// Nothing is late.
    fn new(family: &Family) -> Self {
        let protected = family.tables.iter().map(|(start, len)| *start..start + len).chain(scratch());
        Self {
            file: None,
            pending: Vec::new().into_iter().peekable(),
            late: None,
            protected: protected.collect(),
            end: 0,
        }
    }

    fn arrives(&mut self, number: u32, writer: &mut Writer<'_>) -> std::io::Result<Arrives> {
        while let Some(entry) = self.pending.next_if(|entry| entry.range.start <= number) {
            self.take_over(&entry, writer)?;
        }
        let is_late = self.late.as_ref().is_some_and(|late| late.contains(&number))
            && number >= self.end
            && !self.protected.iter().any(|range| range.contains(&(u64::from(number) * PAGE_BYTES)));
        if is_late {
            let between = u64::from(self.end) * PAGE_BYTES..u64::from(number) * PAGE_BYTES;
            if self.protected.iter().any(|other| between.start < other.end && other.start < between.end) {
                writer.end_chunk(Arrives::Late)?;
            }
            self.end = number + 1;
        }
        Ok(if is_late { Arrives::Late } else { Arrives::AtOnce })
    }

    fn take_over(&mut self, entry: &Entry, writer: &mut Writer<'_>) -> std::io::Result<()> {
        let file = self.file.as_ref().expect("what is pending has a file");
        self.end = entry.range.end;
        writer.take_over(entry, file)
    }

    fn finish(mut self, writer: &mut Writer<'_>) -> std::io::Result<()> {
        while let Some(entry) = self.pending.next() {
            self.take_over(&entry, writer)?;
        }
        Ok(())
    }
}

/// Answers for rising page numbers whether they are free.
struct FreePages {
    ranges: std::iter::Peekable<std::vec::IntoIter<(u32, u32)>>,
}

impl FreePages {
    fn new(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        Self { ranges: ranges.into_iter().peekable() }
    }

    fn contains(&mut self, number: u32) -> bool {
        while self.ranges.next_if(|(first, count)| u64::from(*first) + u64::from(*count) <= u64::from(number)).is_some()
        {
        }
        self.ranges.peek().is_some_and(|(first, _)| *first <= number)
    }
}

#[cfg(test)]
mod tests {
    use super::FreePages;

    #[test]
    fn free_pages_are_found_in_order() {
        let mut free = FreePages::new(vec![(10, 2), (3, 1), (20, 0), (u32::MAX, u32::MAX)]);
        let found: Vec<u32> = (0..30).filter(|number| free.contains(*number)).collect();
        assert_eq!(found, [3, 10, 11]);
    }
}

//! What instances of a template need soon after they go on, and how a process that rests gets ready for it.
//!
//! A page that KVM has never mapped costs some microseconds when it is touched first. The pages that a process has by the time
//! its first instance sleeps are noted in that one's delta, and a warm base has those on which siblings agree
//! ([`WorkingSet::agreed`]). A new process at that warm base has its guest kernel touch them, by the addresses at which
//! programs do, and no program runs.

use super::super::memory::Gpa;
use super::super::tables::{self, Mapped};
use super::super::{Fatal, Machine};
use super::private::PageMap;
use super::userfault::{AddressRange, Of, Userfault};
use super::{Refusal, Vm, handover};
use crate::snapshot::metadata::WorkingSet;
use std::collections::{BTreeMap, BTreeSet};
use torpor_abi::handover::command;
use torpor_abi::layout::{DIRECT_MAP_BASE, HANDOVER_LIST_MAX, IMAGE_GPA, KERNEL_BASE, KERNEL_GPA, PAGE_BYTES};

/// The image's first page, counted as those of memory are.
const IMAGE_PAGE: u32 = (IMAGE_GPA / PAGE_BYTES) as u32;

/// From now on the host maps single pages, so that those which are there are those that were touched.
pub(super) fn record(machine: &Machine, recorder: Userfault) -> Option<Userfault> {
    let (memory, image) = (&machine.memory, &machine.image_mapping);
    image.keep_small().ok()?;
    for (start, len) in [(memory.base().0, memory.len_bytes()), (image.base().0, image.len_bytes())] {
        recorder.register(AddressRange { start, len }, Of::SinglePages).ok()?;
    }
    Some(recorder)
}

/// What a stopped VM has in this process: `private` are the pages that it has written.
pub(super) fn of(machine: &Machine, pagemap: &PageMap, root: u64, private: &[u32]) -> Result<WorkingSet, Fatal> {
    let memory = &machine.memory;
    let mut touched = pagemap.present_pages(memory.base().0, memory.len_bytes())?;
    let image = pagemap.present_pages(machine.image_mapping.base().0, machine.image_mapping.len_bytes())?;
    touched.extend(image.into_iter().map(|page| IMAGE_PAGE + page));
    Ok(WorkingSet { root, touched: ranges(&touched), written: ranges(private) })
}

fn ranges(pages: &[u32]) -> Vec<(u32, u32)> {
    pages.chunk_by(|one, next| one + 1 == *next).map(|run| (run[0], run.len() as u32)).collect()
}

fn pages(ranges: &[(u32, u32)]) -> impl Iterator<Item = u32> {
    ranges.iter().flat_map(|(first, count)| *first..first.saturating_add(*count))
}

impl WorkingSet {
    /// Pages on which at least `least` of the sets agree; none where their roots differ.
    pub(super) fn agreed(sets: &[&Self], least: usize) -> Option<Self> {
        let root = sets.first()?.root;
        if sets.len() < least || sets.iter().any(|set| set.root != root) {
            return None;
        }
        let common = |part: fn(&Self) -> &[(u32, u32)]| {
            let mut votes = BTreeMap::<u32, usize>::new();
            sets.iter().flat_map(|set| pages(part(set))).for_each(|page| *votes.entry(page).or_default() += 1);
            let agreed: Vec<u32> =
                votes.into_iter().filter(|(_, votes)| *votes >= least).map(|(page, _)| page).collect();
            ranges(&agreed)
        };
        Some(Self { root, touched: common(|set| &set.touched), written: common(|set| &set.written) })
    }
}

impl Vm {
    /// Has the guest kernel of a VM at rest touch a working set.
    ///
    /// # Errors
    /// [`Refusal::Host`].
    pub(super) fn touch(&mut self, set: &WorkingSet) -> Result<(), Refusal> {
        let memory = &self.machine.memory;
        let image = IMAGE_PAGE..IMAGE_PAGE + (self.machine.image_mapping.len_bytes() / PAGE_BYTES) as u32;
        let mapped = tables::mapped(memory, set.root, self.family.tables.iter().map(|(_, len)| len / PAGE_BYTES).sum());
        let written: BTreeSet<u32> = pages(&set.written).collect();
        let mut list: Vec<(u64, u64)> = Vec::new();
        for page in pages(&set.touched) {
            let is_there = u64::from(page) * PAGE_BYTES < memory.len_bytes() || image.contains(&page);
            if !is_there || list.len() == HANDOVER_LIST_MAX as usize {
                continue;
            }
            let Some(Mapped { address, writable }) =
                mapped.get(&page).copied().or_else(|| self.in_kernel(set.root, page))
            else {
                continue;
            };
            let writes = writable && written.contains(&page) && !self.is_table(page) && !super::base::is_scratch(page);
            list.push((set.root, address | u64::from(writes)));
        }
        handover::write_list(memory, &list).map_err(Fatal::from)?;
        self.park(command::TOUCH, list.len() as u32)
    }

    /// Where the kernel has a page, by the tables that the guest has made.
    fn in_kernel(&self, root: u64, page: u32) -> Option<Mapped> {
        let gpa = u64::from(page) * PAGE_BYTES;
        let linked = gpa.checked_sub(KERNEL_GPA).map(|offset| KERNEL_BASE.saturating_add(offset));
        let addresses = linked.into_iter().chain([DIRECT_MAP_BASE + gpa]);
        let is_it = |address: &u64| tables::translate(&self.machine.memory, root, *address) == Some(Gpa(gpa));
        addresses.into_iter().find(is_it).map(|address| Mapped { address, writable: page < IMAGE_PAGE })
    }
}

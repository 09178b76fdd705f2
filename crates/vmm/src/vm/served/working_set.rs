//! What instances of a template need soon after they go on, and how a process that rests gets ready for it.
//!
//! A page that KVM has never mapped costs some microseconds when it is touched first. Where new instances run without a warm
//! base the host maps single pages ([`record`]), so those that are mapped by the time an instance sleeps are those that were touched.
//! They are noted in the delta of its first generation, and a warm base has those on which siblings agree ([`WorkingSet::agreed`]). A new process at
//! that warm base has its guest kernel touch them, by the addresses at which programs do; no program runs.

use super::super::memory::Gpa;
use super::super::tables::{self, Mapped};
use super::super::{Fatal, Machine};
use super::base::is_scratch;
use super::private::PageMap;
use super::userfault::{AddressRange, Of, Userfault};
use super::{Refusal, Vm, handover};
use crate::snapshot::metadata::WorkingSet;
use std::collections::{BTreeMap, BTreeSet};
use torpor_abi::handover::command;
use torpor_abi::layout::{DIRECT_MAP_BASE, HANDOVER_LIST_MAX, IMAGE_GPA, KERNEL_BASE, KERNEL_GPA, PAGE_BYTES};

/// The image's first page, counted as those of memory are.
const IMAGE_PAGE: u32 = (IMAGE_GPA / PAGE_BYTES) as u32;

/// From now on the host maps single pages, as long as what is returned lives; none where it can't (before Linux 6.7).
pub(super) fn record(machine: &Machine, recorder: Userfault) -> Option<Userfault> {
    let (memory, image) = (&machine.memory, &machine.image_mapping);
    image.keep_small().ok()?;
    for (start, len) in [(memory.base().0, memory.len_bytes()), (image.base().0, image.len_bytes())] {
        recorder.register(AddressRange { start, len }, Of::SinglePages).ok()?;
    }
    Some(recorder)
}

/// What a stopped VM has touched in this process, by the page tables at `root`; `written` are the pages that it has written.
pub(super) fn of(machine: &Machine, pagemap: &PageMap, root: u64, written: &[u32]) -> Result<WorkingSet, Fatal> {
    let (memory, image) = (&machine.memory, &machine.image_mapping);
    let mut touched = pagemap.present_pages(memory.base().0, memory.len_bytes())?;
    let of_image = pagemap.present_pages(image.base().0, image.len_bytes())?;
    touched.extend(of_image.into_iter().map(|page| IMAGE_PAGE + page));
    Ok(WorkingSet { root, touched: ranges(&touched), written: ranges(written) })
}

fn ranges(pages: &[u32]) -> Vec<(u32, u32)> {
    pages.chunk_by(|one, next| one + 1 == *next).map(|run| (run[0], run.len() as u32)).collect()
}

/// No more than can be touched, whatever a file says.
fn pages(ranges: &[(u32, u32)]) -> impl Iterator<Item = u32> {
    let all = ranges.iter().flat_map(|(first, count)| *first..first.saturating_add(*count));
    all.take(HANDOVER_LIST_MAX as usize)
}

impl WorkingSet {
    /// Pages that at least `least` of the sets have; none where their page tables have different roots.
    pub(super) fn agreed(sets: &[Self], least: usize) -> Option<Self> {
        let root = sets.first()?.root;
        if sets.len() < least || sets.iter().any(|set| set.root != root) {
            return None;
        }
        let common = |part: fn(&Self) -> &[(u32, u32)]| {
            let mut votes = BTreeMap::<u32, usize>::new();
            for set in sets {
                let of_one: BTreeSet<u32> = pages(part(set)).collect();
                of_one.into_iter().for_each(|page| *votes.entry(page).or_default() += 1);
            }
            let agreed: Vec<u32> =
                votes.into_iter().filter(|(_, votes)| *votes >= least).map(|(page, _)| page).collect();
            ranges(&agreed)
        };
        Some(Self { root, touched: common(|set| &set.touched), written: common(|set| &set.written) })
    }
}

impl Vm {
    /// Has the guest kernel of a VM at rest touch what instances need soon, as far as the warm base says what that is. It does
    /// so once, and not where an instance has been, or the vCPU has yet to run. What of it this VM has not got is left out.
    ///
    /// # Errors
    /// [`Refusal::Host`].
    pub fn touch(&mut self) -> Result<(), Refusal> {
        let Some(set) = self.untouched.take() else { return Ok(()) };
        let memory = &self.machine.memory;
        let tables = self.family.tables.iter().map(|(_, len)| len / PAGE_BYTES).sum();
        let [ram, image] =
            [memory.len_bytes(), self.machine.image_mapping.len_bytes()].map(|len| (len / PAGE_BYTES) as u32);
        let is_memory = |page: &u32| *page < ram || (IMAGE_PAGE..IMAGE_PAGE + image).contains(page);
        let touched: BTreeSet<u32> = pages(&set.touched).filter(is_memory).collect();
        let mapped = tables::mapped(memory, set.root, &touched, tables);
        let written: BTreeSet<u32> =
            pages(&set.written).filter(|page| !self.is_table(*page) && !is_scratch(*page)).collect();
        let found = touched.into_iter().filter_map(|page| {
            let Mapped { address, writable } = mapped.get(&page).copied().or_else(|| self.in_kernel(set.root, page))?;
            Some((set.root, address | u64::from(writable && written.contains(&page))))
        });
        let list: Vec<(u64, u64)> = found.collect();
        handover::write_list(memory, &list).map_err(Fatal::from)?;
        self.park(command::TOUCH, list.len() as u32)
    }

    /// Where the kernel has a page, by the tables that the guest has made.
    fn in_kernel(&self, root: u64, page: u32) -> Option<Mapped> {
        let gpa = u64::from(page) * PAGE_BYTES;
        let linked = gpa.checked_sub(KERNEL_GPA).map(|offset| KERNEL_BASE + offset);
        let is_it = |address: &u64| tables::translate(&self.machine.memory, root, *address) == Some(Gpa(gpa));
        let address = linked.into_iter().chain([DIRECT_MAP_BASE + gpa]).find(is_it)?;
        Some(Mapped { address, writable: page < IMAGE_PAGE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(root: u64, touched: &[(u32, u32)]) -> WorkingSet {
        WorkingSet { root, touched: touched.to_vec(), written: vec![touched[0]] }
    }

    #[test]
    fn what_fewer_have_is_left_out() {
        let sets = [set(1, &[(5, 3), (90, 1)]), set(1, &[(6, 3)]), set(1, &[(6, 1), (7, 1), (7, 1), (90, 1)])];
        let agreed = WorkingSet::agreed(&sets, 3).expect("of three");
        assert_eq!((agreed.touched, agreed.written), (vec![(6, 2)], vec![(6, 1)]));
        assert_eq!(WorkingSet::agreed(&sets[..2], 3), None);
        assert_eq!(WorkingSet::agreed(&[sets[0].clone(), sets[1].clone(), set(2, &[(6, 3)])], 3), None);
    }

    #[test]
    fn hostile_ranges_end() {
        let all = set(1, &[(0, u32::MAX), (7, u32::MAX), (u32::MAX, u32::MAX)]);
        assert_eq!(pages(&all.touched).count(), HANDOVER_LIST_MAX as usize);
        let agreed = WorkingSet::agreed(&[all.clone(), all.clone(), all], 3).expect("of three");
        assert_eq!(agreed.touched, [(0, HANDOVER_LIST_MAX)]);
    }
}

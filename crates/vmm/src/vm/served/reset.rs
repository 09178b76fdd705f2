//! Back to rest, so that nothing of the instance stays.
//!
//! 1. The host writes the base's content over every ordinary page that this process has of its own (kernel text, GDT, IDT
//!    and TSS are ordinary pages) and zeros over what is no part of a state.
//! 2. Where page-table entries differ from the base, registers are set as in a new VM, with the boot page tables as root,
//!    and the guest's resume entry stores those entries.
//! 3. The host reads every page table of its own and CR3, and compares them with the base. The code that ran in step 2 ran
//!    on tables that the former instance may have made: it is not trusted. Any difference ends the process, and so does
//!    that it takes too long.
//! 4. All registers are as in a new VM, at the resume entry. KVM has seen another root in between, so that it looks at every
//!    table anew before the next instruction.

use super::super::memory::Gpa;
use super::super::{Fatal, cpu};
use super::base::is_scratch;
use super::restore::Entries;
use super::{Changed, LARGE_PAGES, Refusal, Survey, Vm, handover};
use crate::snapshot::pages::{Page, ZEROS};
use torpor_abi::layout::{BOOT_TABLES_GPA, HANDOVER_LIST_MAX, PAGE_BYTES};

/// Whether the process can be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The VM rests.
    Resting,
    /// It should be ended: its state was a large one, or too many page-table entries differ.
    Retired,
}

/// Accessed and dirty: the processor may set them.
const ACCESSED_DIRTY: u64 = 0x60;
/// For storing page-table entries, which takes a millisecond.
const PARKS_WITHIN_S: u32 = 10;

impl Vm {
    /// Resets a stopped VM.
    ///
    /// # Errors
    /// [`Refusal`] where the VM can't be trusted any more: the process has to end.
    pub fn reset(&mut self) -> Result<Outcome, Refusal> {
        self.machine.gate.close();
        self.machine.gate.lend();
        let memory = &self.machine.memory;
        let survey = match self.survey.take() {
            Some(survey) => survey,
            None => Survey::all_changed(&self.pagemap.private_pages(memory)?),
        };
        let was_large = self.pager().is_some_and(|pager| pager.pending().is_some());
        if self.base.digest.is_none() || survey.private >= LARGE_PAGES || was_large {
            return Ok(Outcome::Retired);
        }
        for Changed { number, runs } in survey.changed.iter().filter(|page| !self.is_table(page.number)) {
            let base = if is_scratch(*number) { &ZEROS } else { self.base.page(*number) };
            if let Some(runs) = runs {
                self.put_differences(*number, base, &survey.runs[runs.clone()])?;
                continue;
            }
            let gpa = Gpa(u64::from(*number) * PAGE_BYTES);
            if !memory.equals(gpa, base).map_err(Fatal::from)? {
                memory.write(gpa, base).map_err(Fatal::from)?;
            }
        }
        self.start_over(None)?;
        let mut entries: Entries = Vec::new();
        for Changed { number, .. } in survey.changed.iter().filter(|page| self.is_table(page.number)) {
            self.list_entries(*number, self.base.page(*number), &mut entries)?;
        }
        if entries.len() > HANDOVER_LIST_MAX as usize {
            return Ok(Outcome::Retired);
        }
        // Without any, every page table of its own was just compared with the base, and nothing has run since.
        if !entries.is_empty() {
            self.store_entries(&entries)?;
            self.audit()?;
        }
        self.reset_registers()?;
        self.enter_at_resume();
        Ok(Outcome::Resting)
    }

    fn reset_registers(&self) -> Result<(), Fatal> {
        cpu::reset(&self.vcpu, &self.cpuid, self.family.syscall_stub, Gpa(BOOT_TABLES_GPA))
    }

    /// Step 2.
    fn store_entries(&mut self, entries: &Entries) -> Result<(), Refusal> {
        self.reset_registers()?;
        handover::write_list(&self.machine.memory, entries).map_err(Fatal::from)?;
        // By the signal's default action, which nothing in this process changes: whoever waits sees the process end.
        // SAFETY: alarm(2) touches no memory.
        unsafe { libc::alarm(PARKS_WITHIN_S) };
        let parked = self.rest(entries.len() as u32);
        // SAFETY: as above.
        unsafe { libc::alarm(0) };
        parked?;
        // The root is read from KVM, not from the shared page, which may be older.
        let sregs = self.vcpu.get_sregs().map_err(Fatal::kvm("KVM_GET_SREGS"))?;
        if sregs.cr3 != BOOT_TABLES_GPA {
            return Err(Refusal::Host(format!("after a reset CR3 is {:#x}", sregs.cr3)));
        }
        Ok(())
    }

    /// Step 3.
    fn audit(&self) -> Result<(), Refusal> {
        let memory = &self.machine.memory;
        for (start, len) in &self.family.tables {
            for number in self.pagemap.private_pages_in(memory, *start..start + len)? {
                let (gpa, base) = (Gpa(u64::from(number) * PAGE_BYTES), self.base.page(number));
                if memory.equals(gpa, base).map_err(Fatal::from)? {
                    continue;
                }
                let mut now = ZEROS;
                memory.read(gpa, &mut now).map_err(Fatal::from)?;
                if !same_tables(&now, base) {
                    let text = format!("after a reset the page table {number:#x} differs from the base");
                    return Err(Refusal::Host(text));
                }
            }
        }
        Ok(())
    }
}

/// Equal, but for accessed and dirty bits of entries that are present: all other bits of an entry that is not present could
/// hide something.
fn same_tables(now: &Page, base: &Page) -> bool {
    let words = |page: &Page| page.as_chunks::<8>().0.to_vec().into_iter().map(u64::from_le_bytes);
    words(now).zip(words(base)).all(|(now, base)| {
        let ignored = if now & 1 == 1 { ACCESSED_DIRTY } else { 0 };
        now & !ignored == base & !ignored
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_with_anything_hidden_in_them_differ() {
        let table = |entry: u64| {
            let mut page = ZEROS;
            page[80..88].copy_from_slice(&entry.to_le_bytes());
            page
        };
        assert!(same_tables(&table(0x1067), &table(0x1007)));
        assert!(!same_tables(&table(0x2067), &table(0x1067)));
        assert!(!same_tables(&table(0x60), &table(0)));
        assert!(!same_tables(&table(0x1000), &table(0)));
    }
}

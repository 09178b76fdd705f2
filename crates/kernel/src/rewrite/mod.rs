//! The fast path of system calls: sites that are called often are rewritten to jumps, which cost a tenth of a microsecond
//! where `syscall` costs several (on a software KVM).
//!
//! A site is rewritten when it has trapped a number of times, which together cost about what rewriting does. Nobody sees
//! that it is: an entry into the kernel that comes from inside an island is moved to the site ([`leave_island`]), files and
//! the kernel's own reads of text show the image's bytes, and maps show no islands. Only loads by the program itself see
//! rewritten bytes.

pub(crate) mod shape;
pub(crate) mod text;

pub use shape::Refusal;

use crate::arch::regs::UserRegs;
use crate::mm::space::AddressSpace;
use crate::task::pid;
use alloc::collections::BTreeMap;
use alloc::string::String;
use core::cell::{Cell, RefCell};
use core::fmt::Write;
use shape::SYSCALL_BYTES;

/// Traps after which a site is rewritten: that costs about 30 us, and each trap 3.
const TRAPS: u32 = 8;
/// The same in a VM that has been restored, where each page that is copied is in every snapshot from then on.
const TRAPS_RESTORED: u32 = 256;
/// Sites whose traps are counted at a time, in sets by their addresses.
const SETS: usize = 64;
const SET_SITES: usize = 4;

struct Counter {
    /// Of the `syscall`, mixed with the address space.
    site: Cell<u64>,
    traps: Cell<u32>,
    /// When it trapped last, in traps of all sites: a rewritten one never again.
    last: Cell<u64>,
}

impl Counter {
    const fn new() -> Self {
        Self { site: Cell::new(0), traps: Cell::new(0), last: Cell::new(0) }
    }
}

struct State {
    /// Traps after which a site is rewritten; 0 is never.
    threshold: Cell<u32>,
    counters: [[Counter; SET_SITES]; SETS],
    fast: Cell<u64>,
    trapped: Cell<u64>,
    /// How often a site was not rewritten.
    refused: RefCell<BTreeMap<Refusal, u64>>,
}

crate::global! {
    static STATE: State = State {
        threshold: Cell::new(0),
        counters: [const { [const { Counter::new() }; SET_SITES] }; SETS],
        fast: Cell::new(0),
        trapped: Cell::new(0),
        refused: RefCell::new(BTreeMap::new()),
    };
}

/// Turns rewriting on.
pub fn enable() {
    STATE.with(|state| state.threshold.set(TRAPS));
}

/// The VM has been restored.
pub fn restored() {
    STATE.with(|state| {
        if state.threshold.get() != 0 {
            state.threshold.set(TRAPS_RESTORED);
        }
    });
}

/// Counts a call that came by an island.
pub fn count_fast() {
    STATE.with(|state| state.fast.set(state.fast.get() + 1));
}

/// Counts a call that trapped; whether its site, whose `syscall` ends at `rip` in a space (by its root), is due to be
/// rewritten.
#[must_use]
pub fn count_trap(rip: u64, space: u64) -> bool {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    STATE.with(|state| {
        let now = state.trapped.get() + 1;
        state.trapped.set(now);
        // Addresses of programs have 47 bits, and roots are whole pages.
        let site = rip ^ space << 36;
        let set = &state.counters[(site.wrapping_mul(GOLDEN) >> 58) as usize % SETS];
        let known = set.iter().find(|counter| counter.site.get() == site);
        let counter = known.or_else(|| set.iter().min_by_key(|counter| counter.last.get()));
        let counter = counter.expect("sets are not empty");
        let traps = if counter.site.replace(site) == site { counter.traps.get().saturating_add(1) } else { 1 };
        counter.traps.set(traps);
        counter.last.set(now);
        // Again after as many more, and so on: what was in the way may have gone.
        let times = traps.checked_div(state.threshold.get()).unwrap_or(0);
        times.is_power_of_two() && traps == times * state.threshold.get()
    })
}

/// Rewrites the site of the call that `regs` are in; `entry` is where islands jump to.
pub fn rewrite(space: &AddressSpace, regs: &UserRegs, entry: u64) {
    let result = space.rewrite(regs.rip.wrapping_sub(SYSCALL_BYTES), regs, entry, is_free);
    if let Err(refusal) = result {
        STATE.with(|state| *state.refused.borrow_mut().entry(refusal).or_insert(0) += 1);
    }
}

/// Whether no thread of any process is inside the bytes to be replaced.
fn is_free(text: text::Id, site: u64, shape: shape::Shape) -> bool {
    pid::processes().iter().all(|process| {
        let Some(space) = process.try_space() else { return true };
        process.threads().iter().all(|thread| match space.text_at(thread.state.regs().rip) {
            Some((at, offset)) => at != text || !text.is_inside(site, shape, offset),
            None => true,
        })
    })
}

/// If an interrupt or exception came inside an island, makes the registers as if the `syscall` of its site came next.
pub fn leave_island(space: &AddressSpace, regs: &mut UserRegs) {
    let Some((site, pending)) = space.site_of(regs.rip) else { return };
    regs.rip = match pending {
        Some(shape) if shape.perform(regs, |address| space.word(address)) => site - shape.between_len() as u64,
        // The load faults, or is to be tried again.
        Some(shape) => site - shape.len() as u64,
        None => site,
    };
}

/// How system calls came, for the end of a trace.
#[must_use]
pub fn summary() -> String {
    STATE.with(|state| {
        let (fast, trapped) = (state.fast.get(), state.trapped.get());
        let (sites, pages) = text::totals();
        let mut text = String::new();
        let _ =
            writeln!(text, "System calls: {fast} fast, {trapped} trapped; {sites} sites rewritten in {pages} pages");
        for (refusal, count) in state.refused.borrow().iter() {
            let _ = writeln!(text, "{count:>8} not rewritten: {}", refusal.text());
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places are random, so any sites may share a set.
    #[test]
    fn sites_are_counted_wherever_they_are() {
        enable();
        for distance in 1..2000 {
            let sites = [0, 1, 2, 3].map(|n| 0x7f00_1234_5000 + n * distance);
            let trap_each = || sites.map(|site| count_trap(site, distance << 12));
            (1..TRAPS).for_each(|_| assert_eq!(trap_each(), [false; 4], "{distance}"));
            assert_eq!(trap_each(), [true; 4], "{distance}");
            assert!(!count_trap(sites[0], distance << 12), "not at once again");
        }
    }
}

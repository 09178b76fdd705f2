//! The late chunks of a file that have not arrived.

use super::base::scratch;
use crate::snapshot::metadata::Machine as Family;
use crate::snapshot::{BadSnapshot, Entry};
use std::collections::BTreeMap;
use std::ops::Range;
use torpor_abi::layout::PAGE_BYTES;

/// By their first page.
#[derive(Debug)]
pub(super) struct Pending(BTreeMap<u32, Entry>);

impl Pending {
    /// Of a file's late chunks.
    ///
    /// # Errors
    /// [`BadSnapshot::Format`] if one's range has something in it that has to be there from the beginning.
    pub(super) fn new(late: &[Entry], family: &Family) -> Result<Self, BadSnapshot> {
        let tables = family.tables.iter().map(|(start, len)| *start..start + len);
        let forbidden: Vec<_> = tables.chain(scratch()).collect();
        for entry in late {
            let range = u64::from(entry.range.start) * PAGE_BYTES..u64::from(entry.range.end) * PAGE_BYTES;
            if forbidden.iter().any(|other| range.start < other.end && other.start < range.end) {
                return Err(BadSnapshot::Format(format!("late pages {:#x?} that are none", entry.range)));
            }
        }
        Ok(Self(late.iter().map(|entry| (entry.range.start, entry.clone())).collect()))
    }

    /// In order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.values()
    }

    /// Their pages' ranges, joined where one follows the other.
    pub(super) fn ranges(&self) -> Vec<Range<u32>> {
        let mut joined: Vec<Range<u32>> = Vec::new();
        for Range { start, end } in self.entries().map(|entry| entry.range.clone()) {
            match joined.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => joined.push(start..end),
            }
        }
        joined
    }

    /// Those that some of the pages are in.
    pub(super) fn overlapping(&self, pages: &Range<u32>) -> Vec<Entry> {
        let before = self.0.range(..pages.end).rev();
        before.take_while(|(_, entry)| entry.range.end > pages.start).map(|(_, entry)| entry.clone()).collect()
    }

    /// The first that begins with this page or a later one.
    pub(super) fn behind(&self, page: u32) -> Option<&Entry> {
        self.0.range(page..).next().map(|(_, entry)| entry)
    }

    /// This one has arrived.
    pub(super) fn remove(&mut self, entry: &Entry) {
        self.0.remove(&entry.range.start);
    }
}

//! The locks on one file: who holds which bytes, and how (fcntl(2), "Advisory record locking").

use alloc::vec::Vec;

/// The last byte that a lock can cover: a lock that ends here goes on to the end of the file, however far it grows.
pub const LAST_OFFSET: u64 = i64::MAX as u64;

/// How bytes are locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Together with other readers: F_RDLCK, LOCK_SH.
    Shared,
    /// Alone: F_WRLCK, LOCK_EX.
    Exclusive,
}

/// Who holds a lock. The numbers are addresses, which are nobody else's as long as the owner has the file open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A process, by its table of descriptors, which threads share: F_SETLK.
    Table(usize),
    /// An open file description: F_OFD_SETLK, flock(2).
    Description(usize),
}

/// Bytes of a file, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub first: u64,
    /// The last byte: at least `first`, at most [`LAST_OFFSET`].
    pub last: u64,
}

impl Range {
    /// All bytes that a file can have.
    pub const ALL: Self = Self { first: 0, last: LAST_OFFSET };

    /// Whether there is a byte that both have.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether both together are one range.
    const fn touches(self, other: Self) -> bool {
        self.first <= other.last.saturating_add(1) && other.first <= self.last.saturating_add(1)
    }
}

/// A lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who holds it.
    pub owner: Owner,
    /// The process that took it.
    pub pid: u32,
    /// How.
    pub kind: Kind,
    /// Which bytes.
    pub range: Range,
}

impl Record {
    /// Whether both cannot be there at the same time.
    fn conflicts(&self, other: &Self) -> bool {
        self.owner != other.owner
            && self.range.overlaps(other.range)
            && (self.kind == Kind::Exclusive || other.kind == Kind::Exclusive)
    }
}

/// The locks on one file. Those of an owner stand together, in the order of their bytes, and neither overlap nor touch
/// another of the same kind.
#[derive(Default)]
pub(super) struct Records(Vec<Record>);

impl Records {
    /// Whether there are none.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of locks.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// All locks.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.0.iter()
    }

    /// The locks that `wanted` would have to wait for.
    pub(super) fn conflicts<'a>(&'a self, wanted: &'a Record) -> impl Iterator<Item = &'a Record> {
        self.0.iter().filter(|held| held.conflicts(wanted))
    }

    /// Adds a lock, for which there are no conflicts; its bytes take its kind if the owner had locked them before.
    pub(super) fn add(&mut self, record: &Record) {
        self.replace(record.owner, record.range, Some(record));
    }

    /// Takes away the owner's locks on `range`; whether there were any.
    pub(super) fn remove(&mut self, owner: Owner, range: Range) -> bool {
        let had = self.0.iter().any(|held| held.owner == owner && held.range.overlaps(range));
        if had {
            self.replace(owner, range, None);
        }
        had
    }

    /// Takes the owner's locks out of `range` and puts `new` there, joined with what it touches.
    fn replace(&mut self, owner: Owner, range: Range, new: Option<&Record>) {
        let start = self.0.iter().position(|held| held.owner == owner).unwrap_or(self.0.len());
        let count = self.0[start..].iter().take_while(|held| held.owner == owner).count();
        let mut new = new.copied();
        let mut kept = Vec::with_capacity(count + 2);
        for held in &self.0[start..start + count] {
            if let Some(new) = new.as_mut().filter(|new| new.kind == held.kind && held.range.touches(range)) {
                new.range.first = new.range.first.min(held.range.first);
                new.range.last = new.range.last.max(held.range.last);
                continue;
            }
            if !held.range.overlaps(range) {
                kept.push(*held);
                continue;
            }
            if held.range.first < range.first {
                kept.push(Record { range: Range { last: range.first - 1, ..held.range }, ..*held });
            }
            if held.range.last > range.last {
                kept.push(Record { range: Range { first: range.last + 1, ..held.range }, ..*held });
            }
        }
        if let Some(new) = new {
            let at = kept.iter().position(|held| held.range.first > new.range.first).unwrap_or(kept.len());
            kept.insert(at, new);
        }
        self.0.splice(start..start + count, kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    const BYTES: u64 = 12;
    const OWNERS: usize = 3;

    /// What each owner has locked, byte by byte; the last byte stands for all behind it.
    type Model = [[Option<Kind>; BYTES as usize]; OWNERS];

    fn owner(index: usize) -> Owner {
        if index == 0 { Owner::Description(1) } else { Owner::Table(index) }
    }

    fn range(first: u64, last: u64) -> Range {
        Range { first, last: if last == BYTES - 1 { LAST_OFFSET } else { last } }
    }

    /// The kinds of an owner's locks by byte; checks what [`Records`] promises of their order.
    fn bytes_of(records: &Records, index: usize) -> [Option<Kind>; BYTES as usize] {
        let mut bytes = [None; BYTES as usize];
        let mut before: Option<Record> = None;
        for held in records.iter().filter(|held| held.owner == owner(index)) {
            if let Some(before) = before {
                assert!(before.range.last < held.range.first);
                assert!(before.kind != held.kind || !before.range.touches(held.range));
            }
            for at in held.range.first..=held.range.last.min(BYTES - 1) {
                bytes[at as usize] = Some(held.kind);
            }
            before = Some(*held);
        }
        bytes
    }

    fn kind() -> impl Strategy<Value = Option<Kind>> {
        prop::sample::select(vec![None, Some(Kind::Shared), Some(Kind::Exclusive)])
    }

    proptest! {
        #[test]
        fn as_byte_by_byte(steps in prop::collection::vec((0..OWNERS, kind(), 0..BYTES, 0..BYTES), 1..60)) {
            let mut model: Model = [[None; BYTES as usize]; OWNERS];
            let mut records = Records::default();
            for (index, kind, a, b) in steps {
                let (first, last) = (a.min(b), a.max(b));
                let range = range(first, last);
                let bytes = first as usize..=last as usize;
                if let Some(kind) = kind {
                    let wanted = Record { owner: owner(index), pid: 1, kind, range };
                    let blocked: vec::Vec<_> = (0..OWNERS).filter(|other| {
                        *other != index && model[*other][bytes.clone()].iter().flatten()
                            .any(|held| *held == Kind::Exclusive || kind == Kind::Exclusive)
                    }).map(owner).collect();
                    let mut found: vec::Vec<_> = records.conflicts(&wanted).map(|held| held.owner).collect();
                    found.dedup();
                    prop_assert!(found.iter().all(|held| blocked.contains(held)) && found.len() == blocked.len());
                    if !blocked.is_empty() {
                        continue;
                    }
                    records.add(&wanted);
                } else {
                    let had = model[index][bytes.clone()].iter().any(Option::is_some);
                    prop_assert_eq!(records.remove(owner(index), range), had);
                }
                model[index][bytes].fill(kind);
                for (index, expected) in model.iter().enumerate() {
                    prop_assert_eq!(bytes_of(&records, index), *expected);
                }
            }
        }
    }
}

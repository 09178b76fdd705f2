//! Random sequences of operations against a model that knows every byte, with the page tables checked after each step, and
//! a processor that forgets a translation only when it is told to.

use super::super::*;
use super::{PAGES, TestFile, address, check, fresh, object, request};
use crate::mm::addr::UserAddr;
use crate::mm::frame;
use crate::mm::pte::Pte;
use crate::mm::tlb;
use alloc::collections::BTreeMap;
use proptest::prelude::*;

/// One process of the model: protection and a byte value per mapped page.
#[derive(Clone, Default)]
struct Model {
    pages: BTreeMap<u64, (Prot, Content)>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Content {
    /// The program's own.
    Own(u8),
    /// Page of the file, shared.
    Shared(u64),
    /// Page of the file, not yet copied.
    Private(u64),
}

#[derive(Clone, Debug)]
enum Op {
    Map { at: u64, pages: u64, prot: u32, populate: bool },
    MapFile { at: u64, pages: u64, first: u64, prot: u32, shared: bool },
    Unmap { at: u64, pages: u64 },
    Protect { at: u64, pages: u64, prot: u32 },
    Write { at: u64, value: u8, run: u64 },
    Read { at: u64 },
    DontNeed { at: u64, pages: u64 },
    Remap { from: u64, old: u64, new: u64, to: u64 },
    Advise { at: u64, pages: u64, advice: u32 },
    Lock { at: u64, pages: u64 },
    Fork,
    Exit,
    Switch,
}

fn any_op() -> impl Strategy<Value = Op> {
    let place = || prop_oneof![3 => 0..PAGES, 1 => (0..3u64).prop_map(|r| r * 512)];
    let length = || prop_oneof![4 => 1..40u64, 1 => 1..700u64, 1 => Just(512u64), 1 => Just(1024u64)];
    let prot = || prop_oneof![6 => Just(3u32), 2 => Just(1u32), 1 => Just(0u32), 1 => Just(5u32)];
    prop_oneof![
        4 => (place(), length(), prot(), any::<bool>()).prop_map(|(at, pages, prot, p)| Op::Map { at, pages, prot, populate: p && pages > 100 }),
        2 => (place(), 1..20u64, 0..20u64, prot(), any::<bool>())
            .prop_map(|(at, pages, first, prot, shared)| Op::MapFile { at, pages, first, prot, shared }),
        2 => (place(), length()).prop_map(|(at, pages)| Op::Unmap { at, pages }),
        3 => (place(), length(), prot()).prop_map(|(at, pages, prot)| Op::Protect { at, pages, prot }),
        10 => (place(), any::<u8>(), prop_oneof![4 => Just(1u64), 1 => 1..600u64]).prop_map(|(at, value, run)| Op::Write { at, value, run }),
        4 => place().prop_map(|at| Op::Read { at }),
        2 => (place(), length()).prop_map(|(at, pages)| Op::DontNeed { at, pages }),
        2 => (place(), length(), length(), place()).prop_map(|(from, old, new, to)| Op::Remap { from, old, new, to }),
        2 => (place(), length(), prop_oneof![Just(linux_raw_sys::general::MADV_DONTDUMP), Just(linux_raw_sys::general::MADV_HUGEPAGE)])
            .prop_map(|(at, pages, advice)| Op::Advise { at, pages, advice }),
        1 => (place(), length()).prop_map(|(at, pages)| Op::Lock { at, pages }),
        1 => Just(Op::Fork),
        1 => Just(Op::Exit),
        1 => Just(Op::Switch),
    ]
}

const FILE_PAGES: u64 = 24;

/// The worst processor: it remembers every translation that ever was, until it is told to forget it.
#[derive(Default)]
struct Processor {
    pages: BTreeMap<u64, Pte>,
    tables: BTreeMap<u64, Gpa>,
}

impl Processor {
    /// Loads another root.
    fn switch(&mut self, space: &AddressSpace) {
        *self = Self::default();
        tlb::testing::set_active(space.root());
        tlb::testing::take_log();
    }

    /// Does what it was told, checks that nothing wrong is left, and remembers what is there now.
    fn step(&mut self, space: &AddressSpace) {
        for flushed in tlb::testing::take_log() {
            match flushed {
                None => *self = Self::default(),
                Some(address) => {
                    let bytes = self.pages.get(&address).map_or(PAGE_BYTES, |pte| pte.pages() * PAGE_BYTES);
                    let base = address & !(bytes - 1);
                    self.pages.retain(|page, _| !(base..base + bytes).contains(page));
                    self.tables.clear();
                }
            }
        }
        let table = space.table.borrow();
        let place = |pte: Pte, address: u64| pte.gpa().0 + address % (pte.pages() * PAGE_BYTES);
        for (address, old) in &self.pages {
            let new = table.lookup(*address).unwrap_or_else(|| panic!("{address:#x} is still remembered"));
            assert!(new.is_present() && place(new, *address) == place(*old, *address), "{address:#x} moved");
            // Less is dangerous, and with more the kernel would fault.
            assert_eq!(new.is_writable(), old.is_writable(), "{address:#x}");
        }
        for (base, old) in &self.tables {
            assert_eq!(table.region(*base).map(|region| region.table()), Some(*old), "table of {base:#x}");
        }
        table.visit(0, USER_END, |address, pte| {
            for page in 0..pte.pages() {
                if pte.is_present() {
                    self.pages.insert(address + page * PAGE_BYTES, pte);
                }
            }
        });
        let mut at = 0;
        while let Some(region) = table.next_region(at, USER_END) {
            if region.large().is_none() {
                self.tables.insert(region.base, region.table());
            }
            at = region.base + (2 << 20);
        }
    }
}

struct World {
    processor: Processor,
    processes: Vec<(Rc<AddressSpace>, Model)>,
    current: usize,
    file: Rc<TestFile>,
    /// First byte of each page of the file.
    file_model: Vec<u8>,
}

impl World {
    fn value(&self, content: Content) -> Option<u8> {
        match content {
            Content::Own(value) => Some(value),
            Content::Shared(index) | Content::Private(index) => self.file_model.get(index as usize).copied(),
        }
    }

    fn apply(&mut self, op: &Op) {
        let (space, mut model) = self.processes[self.current].clone();
        let clip = |at: u64, pages: u64| (at, (at + pages).min(PAGES));
        match *op {
            Op::Map { at, pages, prot, populate } => {
                let (first, last) = clip(at, pages);
                let prot = Prot::from_bits_truncate(prot);
                let mut request = request(
                    Placement::Fixed(address(first)),
                    (last - first) * PAGE_BYTES,
                    prot,
                    AreaFlags::empty(),
                    Backing::Anonymous,
                );
                request.populate = populate;
                space.map(request, &MemoryLimits::DEFAULT).expect("mapped");
                model.pages.extend((first..last).map(|page| (page, (prot, Content::Own(0)))));
            }
            Op::MapFile { at, pages, first: file_first, prot, shared } => {
                let (first, last) = clip(at, pages);
                let prot = Prot::from_bits_truncate(prot);
                let flags = if shared { AreaFlags::SHARED } else { AreaFlags::empty() };
                let place = Placement::Fixed(address(first));
                let backing = object(&self.file, file_first);
                space
                    .map(request(place, (last - first) * PAGE_BYTES, prot, flags, backing), &MemoryLimits::DEFAULT)
                    .expect("mapped");
                model.pages.extend((first..last).map(|page| {
                    let index = file_first + page - first;
                    (page, (prot, if shared { Content::Shared(index) } else { Content::Private(index) }))
                }));
            }
            Op::Unmap { at, pages } => {
                let (first, last) = clip(at, pages);
                space.unmap(address(first), (last - first) * PAGE_BYTES).expect("unmapped");
                model.pages.retain(|page, _| !(first..last).contains(page));
            }
            Op::Protect { at, pages, prot } => {
                let (first, last) = clip(at, pages);
                let prot = Prot::from_bits_truncate(prot);
                let got = space.protect(address(first), (last - first) * PAGE_BYTES, prot, &MemoryLimits::DEFAULT);
                let mut wanted = Ok(());
                for page in first..last {
                    match model.pages.get_mut(&page) {
                        Some(entry) => entry.0 = prot,
                        None => {
                            wanted = Err(Errno::ENOMEM);
                            break;
                        }
                    }
                }
                assert_eq!(got, wanted);
            }
            Op::Write { at, value, run } => {
                for page in at..(at + run).min(PAGES) {
                    let got = space.write(UserAddr(address(page)), &[value]);
                    let entry = model.pages.get(&page).copied();
                    match entry {
                        Some((prot, content)) if prot.contains(Prot::WRITE) && self.value(content).is_some() => {
                            assert_eq!(got, Ok(()), "page {page} {content:?}");
                            if let Content::Shared(index) = content {
                                self.file_model[index as usize] = value;
                            } else {
                                model.pages.insert(page, (prot, Content::Own(value)));
                            }
                        }
                        _ => assert_eq!(got, Err(Errno::EFAULT)),
                    }
                }
            }
            Op::Read { at } => self.check_page(&space, &model, at),
            Op::DontNeed { at, pages } => {
                let (first, last) = clip(at, pages);
                let got =
                    space.advise(address(first), (last - first) * PAGE_BYTES, linux_raw_sys::general::MADV_DONTNEED);
                assert_eq!(got.is_ok(), (first..last).all(|page| model.pages.contains_key(&page)));
                for (page, entry) in model.pages.range_mut(first..last) {
                    // Private copies of file pages go back to the file; the model forgets which page that was.
                    entry.1 = match (entry.1, space.area_at(address(*page))) {
                        (Content::Own(_), Some(area)) => match area.object_page(address(*page)) {
                            Some((_, index)) => Content::Private(index),
                            None => Content::Own(0),
                        },
                        (other, _) => other,
                    };
                }
            }
            Op::Remap { from, old, new, to } => {
                let (from_end, to_end) = ((from + old).min(PAGES), (to + new).min(PAGES));
                let (old, new) = (from_end - from, to_end - to);
                let one_area =
                    space.area_at(address(from)).is_some_and(|area| address(from + old.min(new)) <= area.end);
                let apart = from_end <= to || to_end <= from;
                let whole = space.area_at(address(from)).is_some_and(|area| address(from_end) <= area.end);
                if !(one_area && whole && apart) {
                    return;
                }
                let got = space.remap(
                    address(from),
                    old * PAGE_BYTES,
                    new * PAGE_BYTES,
                    Move::To(address(to)),
                    false,
                    &MemoryLimits::DEFAULT,
                );
                assert_eq!(got, Ok(address(to)));
                let area = space.area_at(address(to)).expect("moved");
                let moved: Vec<_> = (from..from_end).filter_map(|page| model.pages.remove(&page)).collect();
                let prot = moved[0].0;
                model.pages.retain(|page, _| !(to..to_end).contains(page));
                for page in to..to_end {
                    let entry = moved.get((page - to) as usize).copied().unwrap_or_else(|| {
                        let content = match area.object_page(address(page)) {
                            Some((_, index)) if area.is_shared() => Content::Shared(index),
                            Some((_, index)) => Content::Private(index),
                            None => Content::Own(0),
                        };
                        (prot, content)
                    });
                    model.pages.insert(page, entry);
                }
            }
            Op::Advise { at, pages, advice } => {
                let (first, last) = clip(at, pages);
                let got = space.advise(address(first), (last - first) * PAGE_BYTES, advice);
                assert_eq!(got.is_ok(), (first..last).all(|page| model.pages.contains_key(&page)));
            }
            Op::Lock { at, pages } => {
                let (first, last) = clip(at, pages);
                // Fails for holes and for what can't be brought in; unlocked again so that MADV_DONTNEED goes on.
                let (start, bytes) = (address(first), (last - first) * PAGE_BYTES);
                let limits = MemoryLimits { locked: u64::MAX, ..MemoryLimits::DEFAULT };
                let _ = space.lock(start, bytes, AreaFlags::LOCKED, &limits);
                check(&space);
                for page in (first..last).step_by(11) {
                    self.check_page(&space, &model, page);
                }
                let _ = space.lock(start, bytes, AreaFlags::empty(), &limits);
            }
            Op::Fork => {
                if self.processes.len() < 4 {
                    self.processes.push((space.fork().expect("enough memory"), model.clone()));
                }
            }
            Op::Exit => {
                if self.processes.len() > 1 {
                    self.processes.remove(self.current);
                    self.current = 0;
                    return;
                }
            }
            Op::Switch => {
                self.current = (self.current + 1) % self.processes.len();
                return;
            }
        }
        self.processes[self.current].1 = model;
    }

    fn check_page(&self, space: &AddressSpace, model: &Model, page: u64) {
        let mut byte = [0];
        let got = space.read(UserAddr(address(page)), &mut byte);
        let wanted = model.pages.get(&page).filter(|(prot, _)| !prot.is_empty()).and_then(|(_, c)| self.value(*c));
        assert_eq!(got.ok().map(|()| byte[0]), wanted, "page {page}: {:?}", model.pages.get(&page));
    }
}

/// Runs the operations, checks everything after each, and that nothing is left over at the end.
fn run(ops: &[Op]) {
    let space = fresh();
    let file = TestFile::new(FILE_PAGES);
    let before = frame::usage().used_bytes;
    let mut world = World {
        processor: Processor::default(),
        processes: alloc::vec![(space, Model::default())],
        current: 0,
        file,
        file_model: (0..FILE_PAGES).map(|index| index as u8 + 1).collect(),
    };
    world.processor.switch(&Rc::clone(&world.processes[0].0));
    for op in ops {
        world.apply(op);
        let current = Rc::clone(&world.processes[world.current].0);
        if matches!(op, Op::Exit | Op::Switch) {
            world.processor.switch(&current);
        } else {
            world.processor.step(&current);
        }
        for (space, _) in &world.processes {
            check(space);
        }
    }
    for (space, model) in &world.processes {
        for page in (0..PAGES).step_by(7) {
            world.check_page(space, model, page);
        }
        check(space);
    }
    let survivor = Rc::clone(&world.processes[0].0);
    world.processes.clear();
    survivor.clear();
    assert_eq!(survivor.resident_pages().pages(), 0);
    assert_eq!(frame::usage().used_bytes, before);
    drop(survivor);
    assert_eq!(crate::mm::paging::tables_in_use(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_a_model(ops in prop::collection::vec(any_op(), 1..60)) {
        run(&ops);
    }
}

#[test]
fn an_unused_table_that_a_large_page_replaces_is_forgotten() {
    run(&[
        Op::Map { at: 512, pages: 1024, prot: 3, populate: true },
        Op::DontNeed { at: 512, pages: 512 },
        Op::Write { at: 512, value: 0, run: 1 },
    ]);
}

#[test]
fn advice_on_a_part_of_a_large_page_splits_it() {
    run(&[
        Op::Map { at: 0, pages: 1024, prot: 3, populate: true },
        Op::Advise { at: 600, pages: 20, advice: linux_raw_sys::general::MADV_DONTDUMP },
        Op::Lock { at: 700, pages: 20 },
        Op::Fork,
        Op::Write { at: 605, value: 1, run: 30 },
        Op::Unmap { at: 610, pages: 5 },
    ]);
}

use super::metadata::{Digest, Machine, Uuid};
use super::pages::{Coding, PAGE, Page, ZEROS};
use super::*;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

fn metadata() -> Metadata {
    Metadata {
        machine: Machine {
            owner: Digest([1; 32]),
            image: Digest([2; 32]),
            image_bytes: 4096,
            memory_limit_bytes: 64 << 20,
            ram_bytes: 256 << 20,
            kernel_abi: 2,
            resume_entry: 1,
            syscall_stub: 2,
            tables: vec![(0x2_2000, 0x1_e000), (0x100_0000, 0x40_0000)],
            cpu: CpuFeatures { xcr0: 7, words: [1; 7] },
        },
        template: Some(Digest([3; 32])),
        warm_base: None,
        uuid: Uuid([4; 16]),
        generation: 7,
        stopped_at_ns: u64::MAX,
        next_deadline_ns: None,
        working_set: None,
        streams: String::new(),
    }
}

fn base(number: u32, salt: u8) -> Page {
    let mut page = ZEROS;
    if !number.is_multiple_of(3) {
        page.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at as u8).wrapping_mul(number as u8) ^ salt);
    }
    page
}

fn write(pages: &BTreeMap<u32, Page>) -> Vec<u8> {
    write_with(pages, None)
}

fn write_with(pages: &BTreeMap<u32, Page>, dictionary: Option<&Dictionary>) -> Vec<u8> {
    let mut writer = Writer::new(dictionary).expect("memory");
    for (number, page) in pages {
        writer
            .push(Arrives::AtOnce, *number, page, Some(&base(*number, 0)), Some(&base(*number, 9)))
            .expect("compressed");
    }
    finished(writer, Kind::Delta, &[])
}

fn finished(writer: Writer<'_>, kind: Kind, dictionary: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let bytes = writer.finish(kind, &metadata(), dictionary, &mut file).expect("within caps");
    assert_eq!(bytes, file.len() as u64);
    file
}

/// Every other page late.
fn write_late(pages: &BTreeMap<u32, Page>, dictionary: Option<&Dictionary>) -> Vec<u8> {
    let mut writer = Writer::new(dictionary).expect("memory");
    for (at, (number, page)) in pages.iter().enumerate() {
        let arrives = if at % 2 == 0 { Arrives::AtOnce } else { Arrives::Late };
        writer.push(arrives, *number, page, Some(&base(*number, 0)), Some(&base(*number, 9))).expect("compressed");
    }
    finished(writer, Kind::Delta, &[])
}

/// Reads all of a file, as a restore does.
fn read(file: &[u8]) -> Result<BTreeMap<u32, Page>, BadSnapshot> {
    read_with(file, None)
}

fn read_with(file: &[u8], dictionary: Option<&Dictionary>) -> Result<BTreeMap<u32, Page>, BadSnapshot> {
    let reader = Reader::new(file)?.expect(Kind::Delta)?;
    reader.metadata().check_family(&metadata().machine, Digest([3; 32]))?;
    let (mut unpacker, mut out) = (Unpacker::new()?, BTreeMap::new());
    for chunk in reader.whole()? {
        for page in unpacker.pages(&chunk, dictionary)? {
            let mut content = match page.coding {
                Coding::Zero | Coding::Raw => ZEROS,
                Coding::Template => base(page.number, 0),
                Coding::WarmBase => base(page.number, 9),
            };
            page.apply(&mut content);
            assert!(out.insert(page.number, content).is_none());
        }
    }
    Ok(out)
}

/// A page that resembles one of its bases, or nothing.
fn page(number: u32, like: u8, changes: &[(u16, u8)]) -> Page {
    let mut page = match like % 3 {
        0 => ZEROS,
        1 => base(number, 0),
        _ => base(number, 9),
    };
    for (at, byte) in changes {
        page[usize::from(*at) % PAGE] = *byte;
    }
    page
}

fn any_pages() -> impl Strategy<Value = BTreeMap<u32, Page>> {
    let one = (0_u32..65_536, any::<u8>(), proptest::collection::vec((any::<u16>(), any::<u8>()), 0..40));
    proptest::collection::vec(one, 0..30)
        .prop_map(|list| list.iter().map(|(number, like, changes)| (*number, page(*number, *like, changes))).collect())
}

fn small() -> BTreeMap<u32, Page> {
    (0..6).map(|n| (n * 7, page(n * 7, n as u8, &[(n as u16 * 100, 200), (4095, 3)]))).collect()
}

#[test]
fn the_cheapest_coding_is_taken() {
    let mut writer = Writer::new(None).expect("memory");
    let (template, warm) = (base(1, 0), base(1, 9));
    for (number, page) in
        [ZEROS, page(1, 0, &[(9, 1)]), page(1, 1, &[(9, 1)]), page(1, 2, &[(9, 1)])].iter().enumerate()
    {
        writer.push(Arrives::AtOnce, number as u32, page, Some(&template), Some(&warm)).expect("compressed");
    }
    assert_eq!(writer.counts, [1, 1, 1, 1]);
}

fn noise(n: u32) -> Page {
    let mut state = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut page = ZEROS;
    for byte in &mut page {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    page
}

#[test]
fn many_pages_make_several_chunks() {
    let pages: BTreeMap<u32, Page> = (0..2_000).map(|n| (n, noise(n))).collect();
    let file = write(&pages);
    assert!(Reader::new(&file).expect("whole").chunks().len() > 3);
    assert_eq!(read(&file).expect("whole"), pages);
}

#[test]
fn a_file_that_is_cut_or_longer_is_refused() {
    let file = write(&small());
    for len in 0..file.len() {
        read(&file[..len]).expect_err("cut");
    }
    read(&[&file[..], &[0]].concat()).expect_err("longer");
}

#[test]
fn any_changed_byte_is_refused() {
    let file = write(&small());
    for at in 0..file.len() {
        for change in [1, 0x80, 0xff] {
            let mut bad = file.clone();
            bad[at] ^= change;
            assert!(read(&bad).is_err(), "byte {at} changed by {change:#x} went unnoticed");
        }
    }
}

#[test]
fn any_changed_byte_of_a_file_with_late_chunks_is_refused() {
    let file = write_late(&small(), None);
    assert!(!Reader::new(&file).expect("whole").late().is_empty());
    for at in 0..file.len() {
        read(&file[..at]).expect_err("cut");
        let mut bad = file.clone();
        bad[at] ^= 0x81;
        assert!(read(&bad).is_err(), "byte {at} changed went unnoticed");
    }
}

#[test]
fn late_chunks_are_not_read_until_they_are_wanted() {
    // Large enough not to be read whole.
    let pages: BTreeMap<u32, Page> = (0..2_000).map(|n| (n, noise(n))).collect();
    let file = File::from(memfd_create("delta", MemfdFlags::CLOEXEC).expect("memfd"));
    let content = write_late(&pages, None);
    file.write_all_at(&content, 0).expect("written");
    let (head, total) = read_head(&file, u64::MAX).expect("read");
    assert!(total == content.len() as u64 && head.len() < content.len() * 2 / 3, "{} of {total}", head.len());
    let reader = Reader::of_head(&head, total).expect("good");
    reader.whole().expect_err("only a part");
    let (mut packed, mut unpacker) = (Vec::new(), Unpacker::new().expect("memory"));
    let mut found = Vec::new();
    for entry in reader.late() {
        let chunk = entry.read(&file, &mut packed).expect("read");
        found.extend(unpacker.pages(&chunk, None).expect("good").iter().map(|page| page.number));
    }
    assert!(found.into_iter().eq((0..2_000).filter(|n| n % 2 == 1)));
    assert!(read_head(&file, 1 << 20).is_err(), "more than is allowed");
}

#[test]
fn late_chunks_are_taken_over_as_they_are() {
    let pages: BTreeMap<u32, Page> = (0..200).map(|n| (n * 3, noise(n))).collect();
    let content = write_late(&pages, None);
    let reader = Reader::new(&content).expect("whole");
    let again = |content: &[u8]| {
        let file = File::from(memfd_create("delta", MemfdFlags::CLOEXEC).expect("memfd"));
        file.write_all_at(content, 0).expect("written");
        let file = Rc::new(file);
        let mut writer = Writer::new(None).expect("memory");
        for entry in reader.late() {
            writer.take_over(entry, &file).expect("in order");
        }
        for (number, page) in pages.iter().step_by(2) {
            writer.push(Arrives::AtOnce, *number, page, None, None).expect("compressed");
        }
        finished(writer, Kind::Delta, &[])
    };
    assert_eq!(read(&again(&content)).expect("whole"), pages);
    let mut damaged = content.clone();
    *damaged.last_mut().expect("not empty") ^= 1;
    assert!(matches!(read(&again(&damaged)), Err(BadSnapshot::Checksum(_))), "damage goes along, and shows");
}

#[test]
fn a_digest_stands_for_the_whole_file() {
    let content = write_late(&small(), None);
    let digest = Reader::new(&content).expect("whole").digest();
    let named = |content: &[u8]| -> Result<(), BadSnapshot> {
        let reader = Reader::new(content)?.named(digest)?;
        let mut unpacker = Unpacker::new()?;
        reader.whole()?.iter().try_for_each(|chunk| unpacker.pages(chunk, None).map(drop))
    };
    named(&content).expect("its own");
    for at in 0..content.len() {
        let mut other = content.clone();
        other[at] ^= 4;
        named(&other).expect_err("another file");
    }
    let other = write_late(&small().into_iter().skip(1).collect(), None);
    assert_eq!(named(&other), Err(BadSnapshot::Digest(digest)));
}

fn dictionary() -> Vec<u8> {
    let sibling =
        |own: u32| [own].into_iter().chain((0..500).flat_map(|n| [n, n * n])).flat_map(u32::to_le_bytes).collect();
    let content = dictionary::learn(&[7, 8, 9].map(sibling));
    assert!(content.len() > 1000, "{} bytes", content.len());
    content
}

/// A warm base with the dictionary.
fn warm_base() -> Vec<u8> {
    let mut writer = Writer::new(None).expect("memory");
    writer.push(Arrives::AtOnce, 1, &base(1, 9), Some(&base(1, 0)), None).expect("compressed");
    finished(writer, Kind::WarmBase, &dictionary())
}

#[test]
fn a_delta_needs_its_dictionary() {
    let file = warm_base();
    let ready = Dictionary::new(Reader::new(&file).expect("whole").dictionary()).expect("learnt").expect("there");
    let mut pages = small();
    pages.insert(1, {
        let mut page = ZEROS;
        page[..1024].copy_from_slice(&dictionary()[1..1025]);
        page
    });
    let (with, without) = (write_with(&pages, Some(&ready)), write(&pages));
    assert!(with.len() < without.len(), "{} {}", with.len(), without.len());
    assert_eq!(read_with(&with, Some(&ready)).expect("whole"), pages);
    assert_ne!(read(&with).ok(), Some(pages));
}

#[test]
fn any_changed_byte_of_a_warm_base_is_refused() {
    let file = warm_base();
    let read = |file: &[u8]| {
        let reader = Reader::new(file)?.expect(Kind::WarmBase)?;
        Dictionary::new(reader.dictionary())?;
        let mut unpacker = Unpacker::new()?;
        reader.chunks().iter().try_for_each(|chunk| unpacker.pages(chunk, None).map(drop))
    };
    read(&file).expect("whole");
    for at in 0..file.len() {
        read(&file[..at]).expect_err("cut");
        let mut bad = file.clone();
        bad[at] ^= 0x81;
        assert!(read(&bad).is_err(), "byte {at} changed went unnoticed");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let own = metadata();
    let error = |change: &dyn Fn(&mut Machine), template: u8| {
        let mut machine = own.machine.clone();
        change(&mut machine);
        own.check_family(&machine, Digest([template; 32])).expect_err("differs").to_string()
    };
    assert!(error(&|m| m.owner = Digest([9; 32]), 3).contains("another owner"));
    assert!(error(&|_| (), 5).contains("0505"));
    assert!(error(&|m| m.memory_limit_bytes = 1 << 30, 3).contains("64 MiB of memory, and this one has 1024"));
    assert!(error(&|m| m.cpu.words[2] = 0, 3).contains("processor features"));
    assert!(error(&|m| m.image = Digest([9; 32]), 3).contains("image"));
    let mut other = write(&small());
    other[8] = 1;
    assert_eq!(read(&other), Err(BadSnapshot::Version(1)));
    assert_eq!(read(b"PK"), Err(BadSnapshot::Magic));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_written_is_read(pages in any_pages()) {
        prop_assert_eq!(read(&write(&pages)), Ok(pages.clone()));
        prop_assert_eq!(read(&write_late(&pages, None)), Ok(pages.clone()));
        let ready = Dictionary::new(&dictionary()).expect("learnt").expect("there");
        prop_assert_eq!(read_with(&write_with(&pages, Some(&ready)), Some(&ready)), Ok(pages));
    }

    /// A chunk that passes its checksum may still say anything.
    #[test]
    fn hostile_chunks_are_refused_or_stay_within_pages(
        raw in proptest::collection::vec(prop_oneof![3 => 0_u8..4, 1 => any::<u8>()], 0..400),
        first in 0_u32..4, pages in 0_u32..20,
    ) {
        if let Ok(list) = pages::decode(&raw, first, pages, 1 << 16) {
            for page in list {
                let mut content = ZEROS;
                page.apply(&mut content);
            }
        }
    }
}

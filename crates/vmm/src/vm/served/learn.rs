//! Learning a warm base: what siblings have in common soon after they left their template.
//!
//! Only bytes on which at least [`AGREE`] siblings agree are taken, the template's elsewhere: nothing of a single instance,
//! or of two, is in it. Of page tables whole entries are taken, under the same rule. What they map together is no one's
//! address space, but a VM that rests uses the boot page tables alone, and none of their entries that it uses ever changes.
//! What the siblings still differ by is in part the same in some of them: that makes the dictionary.

use super::Stored;
use super::base::{Base, each_page, is_scratch};
use crate::snapshot::metadata::Machine as Family;
use crate::snapshot::pages::{Encoder, Page, ZEROS};
use crate::snapshot::{
    AGREE, Arrives, BadSnapshot, Kind, Metadata, Reader, Writer, dictionary, metadata::Digest, metadata::Uuid,
    metadata::WorkingSet,
};
use std::collections::BTreeMap;
use std::fs::File;
use torpor_abi::layout::PAGE_BYTES;

/// Of an entry of a page table.
const ENTRY_BYTES: usize = 8;

/// Makes a warm base from sibling deltas that are coded against the template alone.
///
/// # Errors
/// [`super::Refusal`]: a bad or foreign delta, fewer than [`AGREE`] of them, or two of one instance.
pub fn learn_warm_base(template: (Digest, &[u8], &File), deltas: &[Vec<u8>]) -> Result<(Stored, u32), super::Refusal> {
    let (digest, file, memory) = template;
    let reader = Reader::new(file)?.expect(Kind::Template)?.named(digest)?;
    let family = reader.metadata().machine.clone();
    super::check_family(&family)?;
    let bytes = memory.metadata().map_err(super::Fatal::system("fstat of the template's memory"))?.len();
    let base = Base::of_template(digest, memory, bytes)?;
    let mut instances = Vec::<Uuid>::new();
    let mut sets = Vec::<WorkingSet>::new();
    // By page, what each delta that has it makes of it, and the delta's place among all.
    let mut contents = BTreeMap::<u32, Vec<(usize, Box<Page>)>>::new();
    for delta in deltas {
        let delta = Reader::new(delta)?.expect(Kind::Delta)?;
        let metadata = delta.metadata();
        metadata.check_family(&family, digest)?;
        if metadata.warm_base.is_some() {
            return Err(BadSnapshot::Mismatch("it is coded against a warm base already".into()).into());
        }
        if instances.contains(&metadata.uuid) {
            return Err(BadSnapshot::Mismatch("two deltas are of one instance".into()).into());
        }
        sets.extend(metadata.working_set.clone());
        let sibling = instances.len();
        instances.push(metadata.uuid);
        each_page(&delta, None, |coded| {
            if !is_scratch(coded.number) {
                contents.entry(coded.number).or_default().push((sibling, Box::new(base.decode(coded))));
            }
            Ok(())
        })?;
    }
    if instances.len() < AGREE {
        let text = format!("{} siblings; at least {AGREE} have to agree", instances.len());
        return Err(BadSnapshot::Mismatch(text).into());
    }
    let host = |error: std::io::Error| super::Refusal::Host(format!("the warm base: {error}"));
    let mut writer = Writer::new(None).map_err(host)?;
    let mut rests = instances.iter().map(|_| Rest::default()).collect::<Vec<_>>();
    for (number, pages) in &contents {
        let template_page = base.template(*number).unwrap_or(&ZEROS);
        let agreed = if is_table(&family, *number) {
            agreed_parts::<ENTRY_BYTES>(pages, template_page)
        } else {
            agreed_parts::<1>(pages, template_page)
        };
        if agreed != *template_page {
            writer.push(Arrives::AtOnce, *number, &agreed, Some(template_page), None).map_err(host)?;
        }
        for (sibling, rest) in rests.iter_mut().enumerate() {
            let own = pages.iter().find(|(of, _)| *of == sibling).map_or(template_page, |(_, page)| page);
            rest.push(*number, own, template_page, &agreed);
        }
    }
    let pages = writer.counts.iter().sum();
    let metadata = Metadata {
        template: Some(digest),
        warm_base: None,
        uuid: Uuid::default(),
        generation: 0,
        next_deadline_ns: None,
        working_set: WorkingSet::agreed(&sets, AGREE),
        streams: String::new(),
        ..reader.metadata().clone()
    };
    let rests: Vec<_> = rests.into_iter().map(Rest::finish).collect();
    let stored = Stored::new(writer, Kind::WarmBase, &metadata, &dictionary::learn(&rests)).map_err(host)?;
    Ok((stored, pages))
}

/// What a sibling differs by from the new warm base: the bytes of its chunks before compression.
#[derive(Default)]
struct Rest {
    encoder: Encoder,
    bytes: Vec<u8>,
}

impl Rest {
    fn push(&mut self, number: u32, page: &Page, template: &Page, warm_base: &Page) {
        if page == warm_base {
            return;
        }
        if !self.encoder.has_room() {
            self.end_chunk();
        }
        self.encoder.push(number, page, Some(template), (warm_base != template).then_some(warm_base));
    }

    fn end_chunk(&mut self) {
        if let Some(mut coded) = self.encoder.take() {
            self.bytes.append(&mut coded.bytes);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.end_chunk();
        self.bytes
    }
}

fn is_table(family: &Family, number: u32) -> bool {
    let gpa = u64::from(number) * PAGE_BYTES;
    family.tables.iter().any(|(start, len)| (*start..start + len).contains(&gpa))
}

/// Each part of `N` bytes that at least [`AGREE`] of the pages have, the template's elsewhere. Siblings that do not have the
/// page in their deltas agree with the template, and so with nobody else.
fn agreed_parts<const N: usize>(pages: &[(usize, Box<Page>)], template: &Page) -> Page {
    let mut out = *template;
    for (at, part) in out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        let mut best = 0;
        for candidate in pages.iter().map(|(_, page)| &page.as_chunks::<N>().0[at]) {
            let votes = pages.iter().filter(|(_, page)| page.as_chunks::<N>().0[at] == *candidate).count();
            if votes >= AGREE && votes > best {
                best = votes;
                *part = *candidate;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fewer_than_three_have_is_not_taken() {
        let page = |secret: u8, common: u8| {
            let mut page = Box::new(ZEROS);
            page[0] = secret;
            page[1] = common;
            (0, page)
        };
        let template = ZEROS;
        let all = [page(7, 1), page(7, 1), page(9, 1), page(8, 2)];
        let learnt = agreed_parts::<1>(&all, &template);
        assert_eq!(learnt[..3], [0, 1, 0]);
        // As a page table: no two have the same first entry but the first two.
        assert_eq!(agreed_parts::<ENTRY_BYTES>(&all, &template), template);
        let agreeing = [page(7, 1), page(7, 1), page(7, 1), page(8, 2)];
        assert_eq!(agreed_parts::<ENTRY_BYTES>(&agreeing, &template)[..3], [7, 1, 0]);
    }
}

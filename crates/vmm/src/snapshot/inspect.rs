//! `torpor-vmm inspect`: what a snapshot file holds, as JSON.

use super::pages::{Coding, PAGE};
use super::{Dictionary, Kind, Reader, Unpacker};
use crate::error::Failure;
use serde_json::{Value, json};
use std::path::Path;

/// Reads a file whole, all of its chunks included. A delta that names a warm base needs the file of that.
///
/// # Errors
/// A [`Failure`] that names the file and what is wrong with it.
pub fn inspect(path: &Path, warm_base: Option<&Path>) -> Result<Value, Failure> {
    let fail = |what: String| Failure::new(format!("{}: {what}", path.display()));
    let file = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    let reader = Reader::new(&file).map_err(|bad| fail(bad.to_string()))?;
    let dictionary = match (reader.metadata().warm_base, warm_base) {
        (None, _) => None,
        (Some(digest), None) => {
            return Err(fail(format!("it is coded against warm base {digest}: name its file as well")));
        }
        (Some(_), Some(path)) => dictionary_of(path)?,
    };
    let mut unpacker = Unpacker::new().map_err(|bad| fail(bad.to_string()))?;
    let (mut pages, mut changed) = ([0_u64; Coding::COUNT], [0_u64; Coding::COUNT]);
    for chunk in reader.whole().map_err(|bad| fail(bad.to_string()))? {
        for page in unpacker.pages(&chunk, dictionary.as_ref()).map_err(|bad| fail(bad.to_string()))? {
            pages[page.coding as usize] += 1;
            changed[page.coding as usize] += page.runs().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        }
    }
    let by_coding = |counts: [u64; Coding::COUNT]| {
        let [zero, raw, template, warm_base] = counts;
        json!({ "zero": zero, "raw": raw, "template": template, "warm_base": warm_base })
    };
    let total: u64 = pages.iter().sum();
    Ok(json!({
        "kind": match reader.kind() {
            Kind::Template => "template",
            Kind::WarmBase => "warm base",
            Kind::Delta => "delta",
        },
        "bytes": file.len(),
        "dictionary_bytes": reader.dictionary().len(),
        "chunks": reader.chunks().len(),
        "late_chunks": reader.late().len(),
        "pages": by_coding(pages),
        "changed_bytes": by_coding(changed),
        "memory_bytes": total * PAGE as u64,
        "checksums": "good",
        "metadata": reader.metadata(),
    }))
}

fn dictionary_of(warm_base: &Path) -> Result<Option<Dictionary>, Failure> {
    let fail = |what: String| Failure::new(format!("{}: {what}", warm_base.display()));
    let file = std::fs::read(warm_base).map_err(|error| fail(error.to_string()))?;
    let reader = Reader::new(&file).and_then(|reader| reader.expect(Kind::WarmBase));
    reader.and_then(|reader| Dictionary::new(reader.dictionary())).map_err(|bad| fail(bad.to_string()))
}

//! `torpor-vmm inspect`: what a snapshot file holds, as JSON.

use super::pages::{Coding, PAGE};
use super::{Kind, Reader};
use crate::error::Failure;
use serde_json::{Value, json};
use std::path::Path;

/// Reads a file whole, all of its chunks included.
///
/// # Errors
/// A [`Failure`] that names the file and what is wrong with it.
pub fn inspect(path: &Path) -> Result<Value, Failure> {
    let fail = |what: String| Failure::new(format!("{}: {what}", path.display()));
    let file = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    let reader = Reader::new(&file).map_err(|bad| fail(bad.to_string()))?;
    let mut decompressor = zstd::bulk::Decompressor::new().map_err(|error| fail(error.to_string()))?;
    let mut raw = Vec::new();
    let (mut pages, mut changed) = ([0_u64; Coding::COUNT], [0_u64; Coding::COUNT]);
    for chunk in reader.chunks() {
        for page in chunk.pages(&mut decompressor, &mut raw).map_err(|bad| fail(bad.to_string()))? {
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
        "chunks": reader.chunks().len(),
        "pages": by_coding(pages),
        "changed_bytes": by_coding(changed),
        "memory_bytes": total * PAGE as u64,
        "checksums": "good",
        "metadata": reader.metadata(),
    }))
}

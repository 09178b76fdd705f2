//! What chunks are compressed with besides themselves: what siblings' deltas have in common and a warm base has not.
//!
//! A dictionary is part of a warm base's file, and so named, kept and dropped with it: the chunks of a delta that is coded
//! against a warm base are compressed with its dictionary, if it has one. It is learnt from the coded bytes of siblings'
//! deltas, under the rule of the warm base: it consists of stretches all of whose windows of [`WINDOW_BYTES`] are in the
//! deltas of at least [`AGREE`] siblings, so that nothing of a single instance is in it.

use super::{AGREE, BadSnapshot, MAX_DICTIONARY_BYTES};
use std::collections::HashMap;
use std::fmt;
use zstd::dict::{DecoderDictionary, EncoderDictionary};

/// Chunks with a dictionary: its tables are in every VM process, and those of higher levels take several times the memory.
const LEVEL: i32 = 2;
/// Shorter agreement teaches nothing: zstd would find little, and chance more.
const WINDOW_BYTES: usize = 16;
/// So much of each sibling's coded bytes is looked at.
const LOOKED_AT_BYTES: usize = 128 << 10;
/// First byte of each dictionary that is learnt: zstd would take one with its magic number for more than content.
const CONTENT: u8 = 0;

/// A dictionary that is ready for use.
pub struct Dictionary {
    encoder: EncoderDictionary<'static>,
    decoder: DecoderDictionary<'static>,
}

impl Dictionary {
    /// Takes over the dictionary of a warm base's file; `None` where it has none.
    ///
    /// # Errors
    /// [`BadSnapshot::Format`] for one that [`learn`] does not make.
    pub fn new(content: &[u8]) -> Result<Option<Self>, BadSnapshot> {
        match content.first() {
            None => Ok(None),
            Some(&CONTENT) if content.len() <= MAX_DICTIONARY_BYTES => Ok(Some(Self {
                encoder: EncoderDictionary::copy(content, LEVEL),
                decoder: DecoderDictionary::copy(content),
            })),
            Some(_) => Err(BadSnapshot::format("the dictionary's first byte or length")),
        }
    }

    pub(super) fn encoder(&self) -> &EncoderDictionary<'static> {
        &self.encoder
    }

    pub(super) fn decoder(&self) -> &DecoderDictionary<'static> {
        &self.decoder
    }
}

impl fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dictionary").finish_non_exhaustive()
    }
}

/// How many siblings have a window, and the last one that was seen to.
struct Seen {
    siblings: usize,
    last: usize,
    taken: bool,
}

/// Makes a dictionary from what siblings' deltas are before compression, one item for each sibling; empty where they have
/// nothing in common.
#[must_use]
pub fn learn(siblings: &[Vec<u8>]) -> Vec<u8> {
    let looked_at = |bytes: &[u8]| bytes[..bytes.len().min(LOOKED_AT_BYTES)].to_vec();
    let siblings: Vec<_> = siblings.iter().map(|bytes| looked_at(bytes)).collect();
    let mut seen = HashMap::<&[u8], Seen>::new();
    for (sibling, bytes) in siblings.iter().enumerate() {
        for window in bytes.windows(WINDOW_BYTES) {
            let seen = seen.entry(window).or_insert(Seen { siblings: 0, last: usize::MAX, taken: false });
            if seen.last != sibling {
                (seen.siblings, seen.last) = (seen.siblings + 1, sibling);
            }
        }
    }
    let mut dictionary = vec![CONTENT];
    for bytes in &siblings {
        let mut stretch_goes_on = false;
        for window in bytes.windows(WINDOW_BYTES) {
            let seen = seen.get_mut(window).expect("counted before");
            if seen.siblings < AGREE || seen.taken {
                stretch_goes_on = false;
                continue;
            }
            let more = if stretch_goes_on { &window[WINDOW_BYTES - 1..] } else { window };
            if dictionary.len() + more.len() > MAX_DICTIONARY_BYTES {
                return dictionary;
            }
            dictionary.extend_from_slice(more);
            (seen.taken, stretch_goes_on) = (true, true);
        }
    }
    if dictionary.len() == 1 { Vec::new() } else { dictionary }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_three_siblings_have_is_learnt() {
        let common = b"what all of them have in common";
        let secret = b"a secret that two of them share";
        let sibling = |number: u8, middle: &[u8]| [&[number; 20], middle, &[number + 100; 20], &common[..]].concat();
        let siblings = [sibling(1, secret), sibling(2, secret), sibling(3, b"nothing"), sibling(4, b"")];
        let dictionary = learn(&siblings);
        assert_eq!(dictionary, [&[CONTENT], &common[..]].concat());
        assert!(learn(&siblings[..2]).is_empty());
    }

    #[test]
    fn it_has_a_cap_and_takes_nothing_twice() {
        let long: Vec<u8> = (0..MAX_DICTIONARY_BYTES as u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(learn(&[long.clone(), long.clone(), long]).len(), MAX_DICTIONARY_BYTES);
        let same = vec![7; 1000];
        assert_eq!(learn(&[same.clone(), same.clone(), same]).len(), 1 + WINDOW_BYTES);
    }

    #[test]
    fn zstd_is_given_content_alone() {
        assert!(Dictionary::new(&[]).expect("none").is_none());
        Dictionary::new(&[0x37, 0xa4, 0x30, 0xec, 0, 0, 0, 0]).expect_err("zstd's magic number");
        Dictionary::new(&vec![CONTENT; MAX_DICTIONARY_BYTES + 1]).expect_err("too long");
    }
}

//! How much of the held-out text the training split has too.
//!
//! Copies of a whole document are kept together by the split; near-duplicates, licences, tables and
//! quoted passages are not. A loss on text that was trained on says little about other text, so the
//! share of each held-out document that lies in passages of [`PASSAGE_LEN`] or more units which the
//! training split holds word for word is measured, exactly: every window of that length is looked up
//! by its hash, as the n-gram overlap of arXiv:2005.14165 (appendix C) is.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::DatasetError;
use crate::manifest::Overlap;
use crate::progress::Stage;
use crate::source::{Content, Document};
use crate::split::{Part, Split};

/// Bytes of text, or ids, that must agree to count: long enough that phrases of the language do not.
pub(crate) const PASSAGE_LEN: usize = 50;
/// Share of a document from which it counts as a near-duplicate.
const NEAR_DUPLICATE: f64 = 0.5;
/// Held-out units that are measured unless documents are to be left out: some hundred megabytes of
/// hashes. Beyond it a sample of the documents stands for all.
pub(crate) const MAX_MEASURED_LEN: u64 = 8 << 20;

/// A held-out document that is measured.
struct HeldOut {
    /// Its number in the corpus.
    ordinal: u64,
    split: Split,
    content: Content,
}

/// Held-out documents, and which of their windows have been met in the training split.
pub(crate) struct OverlapMeter {
    /// Share of the held-out documents that is measured.
    share: f64,
    held_out: Vec<HeldOut>,
    wanted: WindowSet,
    met: WindowSet,
}

/// Hashes of windows, which are mixed already.
type WindowSet = HashSet<u64, BuildHasherDefault<AlreadyMixed>>;

#[derive(Default)]
struct AlreadyMixed(u64);

impl Hasher for AlreadyMixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| mix(hash << 8 ^ u64::from(*byte)));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// What was found.
#[derive(Serialize, Deserialize)]
pub(crate) struct Overlaps {
    pub(crate) validation: Overlap,
    pub(crate) test: Overlap,
    /// Numbers, in the corpus, of the documents that are to be left out.
    pub(crate) left_out: HashSet<u64>,
}

impl OverlapMeter {
    /// A meter of held-out text of `held_out_len` units, of which `measures_all` wants every
    /// document looked at.
    pub(crate) fn new(held_out_len: u64, measures_all: bool) -> Self {
        let is_all = measures_all || held_out_len <= MAX_MEASURED_LEN;
        let share = if is_all { 1.0 } else { MAX_MEASURED_LEN as f64 / held_out_len as f64 };
        Self { share, held_out: Vec::new(), wanted: WindowSet::default(), met: WindowSet::default() }
    }

    /// Takes the held-out part of the document with this number in the corpus.
    pub(crate) fn hold_out(&mut self, ordinal: u64, part: Part) {
        if part.split == Split::Train || self.share < 1.0 && sample_share(&part.document) >= self.share {
            return;
        }
        self.wanted.extend(window_hashes(&part.document.content));
        self.held_out.push(HeldOut { ordinal, split: part.split, content: part.document.content });
    }

    /// Looks through training documents.
    pub(crate) fn look_through(&mut self, parts: &[Part], stage: &Stage) -> Result<(), DatasetError> {
        let train: Vec<&Part> = parts.iter().filter(|part| part.split == Split::Train).collect();
        let met: Vec<u64> = train
            .par_iter()
            .flat_map_iter(|part| window_hashes(&part.document.content))
            .filter(|hash| self.wanted.contains(hash))
            .collect();
        self.met.extend(met);
        stage.advance(parts.iter().map(|part| part.document.len()).sum())
    }

    /// The overlap of each split, and the documents with more than `max_overlap` of it.
    pub(crate) fn finish(self, max_overlap: Option<f64>) -> Overlaps {
        let empty = || Overlap { passage_len: PASSAGE_LEN as u64, ..Overlap::default() };
        let mut overlaps = Overlaps { validation: empty(), test: empty(), left_out: HashSet::new() };
        for HeldOut { ordinal, split, content } in &self.held_out {
            let len = len(content) as u64;
            let shared_len = shared_len(content, &self.met);
            let share = shared_len as f64 / len.max(1) as f64;
            let of_split = if *split == Split::Test { &mut overlaps.test } else { &mut overlaps.validation };
            of_split.documents += 1;
            of_split.len += len;
            of_split.shared_len += shared_len;
            of_split.near_duplicates += u64::from(share > NEAR_DUPLICATE);
            if max_overlap.is_some_and(|most| share > most) {
                of_split.documents_left_out += 1;
                overlaps.left_out.insert(*ordinal);
            }
        }
        overlaps
    }
}

/// A number in [0, 1) that chooses the sample: of other bits of the hash than choose the split.
fn sample_share(document: &Document) -> f64 {
    let hash = document.hash();
    let bits = hash[8..16].iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

fn len(content: &Content) -> usize {
    match content {
        Content::Text(text) => text.len(),
        Content::Ids(ids) => ids.len(),
    }
}

/// Units of `content` that lie in windows whose hash has been met.
fn shared_len(content: &Content, met: &WindowSet) -> u64 {
    let (mut shared, mut covered_to) = (0, 0);
    for (start, hash) in window_hashes(content).enumerate() {
        if met.contains(&hash) {
            let end = start + PASSAGE_LEN;
            shared += end - start.max(covered_to);
            covered_to = end;
        }
    }
    shared as u64
}

/// Hash of each window of [`PASSAGE_LEN`] units, in order; none of content that is shorter.
fn window_hashes(content: &Content) -> WindowHashes<'_> {
    WindowHashes { content, next: 0, hash: 0 }
}

/// A polynomial in an odd base modulo 2^64 over the mixed units, rolled on by one unit at a time.
struct WindowHashes<'a> {
    content: &'a Content,
    next: usize,
    hash: u64,
}

const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
/// Weight of the unit that leaves the window.
const LEAVING: u64 = BASE.wrapping_pow(PASSAGE_LEN as u32);

impl WindowHashes<'_> {
    fn unit(&self, index: usize) -> u64 {
        match self.content {
            Content::Text(text) => mix(u64::from(text.as_bytes()[index])),
            Content::Ids(ids) => mix(u64::from(ids[index])),
        }
    }
}

impl Iterator for WindowHashes<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let end = if self.next == 0 { PASSAGE_LEN } else { self.next + 1 };
        if end > len(self.content) {
            return None;
        }
        for index in self.next..end {
            self.hash = self.hash.wrapping_mul(BASE).wrapping_add(self.unit(index));
            if index >= PASSAGE_LEN {
                self.hash = self.hash.wrapping_sub(LEAVING.wrapping_mul(self.unit(index - PASSAGE_LEN)));
            }
        }
        self.next = end;
        Some(mix(self.hash))
    }
}

/// The finaliser of SplitMix64, a bijection that spreads every bit (Steele et al., OOPSLA 2014).
fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{Progress, Stage};

    fn part(split: Split, text: &str) -> Part {
        let document = Document { content: Content::Text(text.to_owned()), domain: 0, name: String::new() };
        Part { split, document, is_begin: true, is_end: true, is_whole: true }
    }

    /// Text without a repeated passage.
    fn letters(seed: u64, len: usize) -> String {
        (0..len as u64).map(|index| char::from(b'a' + (mix(seed << 32 | index) % 26) as u8)).collect()
    }

    fn stage() -> Stage {
        Progress::silent().stage("looking", None)
    }

    fn measured(held_out: &[&str], train: &[&str], max_overlap: Option<f64>) -> Overlaps {
        let mut meter = OverlapMeter::new(0, true);
        for (ordinal, text) in held_out.iter().enumerate() {
            meter.hold_out(ordinal as u64, part(Split::Validation, text));
        }
        let train: Vec<Part> = train.iter().map(|text| part(Split::Train, text)).collect();
        meter.look_through(&train, &stage()).unwrap();
        meter.finish(max_overlap)
    }

    /// Against a search for every passage by comparing text.
    #[test]
    fn the_shared_length_is_that_of_a_plain_search() {
        let train = [letters(1, 400), letters(2, 300)];
        let held_out = [
            format!("{}{}", &train[0][100..180], letters(3, 200)),
            format!("{}{}{}", letters(4, 70), &train[1][0..50], &train[1][200..249]),
            format!("{}é{}", &train[0][0..60], &train[0][60..120]),
            letters(5, 49),
        ];
        let plain = |text: &str| {
            let bytes = text.as_bytes();
            let mut covered = vec![false; bytes.len()];
            for start in 0..(bytes.len() + 1).saturating_sub(PASSAGE_LEN) {
                let passage = &bytes[start..start + PASSAGE_LEN];
                if train.iter().any(|other| other.as_bytes().windows(PASSAGE_LEN).any(|w| w == passage)) {
                    covered[start..start + PASSAGE_LEN].fill(true);
                }
            }
            covered.iter().filter(|covered| **covered).count() as u64
        };
        let train: Vec<&str> = train.iter().map(String::as_str).collect();
        let expected = [80, 50, 120, 0];
        for (text, expected) in held_out.iter().zip(expected) {
            let found = measured(&[text], &train, None).validation;
            assert_eq!((found.shared_len, found.len), (expected, text.len() as u64));
            assert_eq!(plain(text), expected, "the search agrees");
        }
    }

    #[test]
    fn near_duplicates_are_counted_and_left_out_on_request() {
        let train = letters(1, 400);
        let (near, far) = (format!("{}{}", &train[..200], letters(2, 100)), letters(3, 300));
        let all = measured(&[&near, &far], &[&train], None);
        assert_eq!((all.validation.near_duplicates, all.validation.documents_left_out), (1, 0));
        assert!(all.left_out.is_empty());
        let without = measured(&[&near, &far], &[&train], Some(0.5));
        assert_eq!(without.left_out, HashSet::from([0]));
        assert_eq!(measured(&[&near, &far], &[&train], Some(0.7)).left_out, HashSet::new());
    }

    #[test]
    fn of_much_held_out_text_a_sample_is_measured() {
        let mut meter = OverlapMeter::new(4 * MAX_MEASURED_LEN, false);
        for n in 0..4000 {
            meter.hold_out(n, part(Split::Test, &letters(n, 60)));
        }
        let measured = meter.finish(None).test.documents;
        // A quarter of 4,000, within four deviations.
        assert!((890..=1110).contains(&measured), "{measured}");
    }
}

//! Whole documents packed into sequences, so that few are cut: best-fit packing
//! (arXiv:2404.10830), within windows of documents.
//!
//! # The law
//! A document of `n` tokens is `n - 1` pairs of an input and its target, the token after it. Of a
//! document with more than `seq_len` pairs each `seq_len` of them fill a sequence, and a rest is left.
//! The rests and the shorter documents of a window are packed by best-fit decreasing: from the longest
//! on, each goes to the sequence with the least room that still takes it, or begins a new one. So each
//! pair of each document is in exactly one sequence, no document shorter than a sequence is cut, and
//! what is left of a sequence is padding.
//!
//! Windows are consecutive documents of a split. That bounds the work for one sequence, which is found
//! by packing its window again, and makes it a function of its number alone.

use std::collections::BTreeSet;
use std::ops::Range;

use rayon::prelude::*;

use crate::error::DatasetError;
use crate::span::Span;
use crate::store::TokenStore;

/// Documents that are packed together.
const WINDOW_DOCUMENTS: usize = 1024;

/// What packing makes of a training split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PackingFacts {
    /// Sequences of one pass over the split.
    pub num_sequences: u64,
    /// Targets in them that count: every token of a document but its first.
    pub num_targets: u64,
    /// Share of the sequences' places that is padding.
    pub padding_share: f64,
}

/// The packed sequences of a store, by number.
#[derive(Debug, Clone)]
pub(crate) struct PackedSequences {
    seq_len: usize,
    /// Sequences before each window, and of all.
    window_starts: Vec<u64>,
    num_targets: u64,
}

impl PackedSequences {
    /// The sequences of `seq_len` inputs that the documents of `store` pack into.
    ///
    /// # Errors
    /// If no document has two tokens, or `seq_len` is 0.
    pub(crate) fn new(store: &TokenStore, seq_len: usize) -> Result<Self, DatasetError> {
        store.require_sequence(seq_len)?;
        let num_windows = store.num_documents().div_ceil(WINDOW_DOCUMENTS);
        let count = |window: usize| {
            let documents = documents_of(store, window);
            let num_targets: usize = documents.iter().map(|document| document.len).sum();
            let num_full: usize = documents.iter().map(|document| document.len / seq_len).sum();
            (num_full + pack(&rests(&documents, seq_len), seq_len).len(), num_targets)
        };
        let counts: Vec<(usize, usize)> = (0..num_windows).into_par_iter().map(count).collect();
        let (mut window_starts, mut num_targets) = (vec![0], 0);
        let mut num_sequences = 0;
        for (sequences, targets) in counts {
            num_sequences += sequences as u64;
            num_targets += targets as u64;
            window_starts.push(num_sequences);
        }
        if num_sequences == 0 {
            return Err(DatasetError::NothingToPack { num_documents: store.num_documents() });
        }
        Ok(Self { seq_len, window_starts, num_targets })
    }

    /// Sequences of one pass over the store.
    pub(crate) fn num_sequences(&self) -> u64 {
        self.window_starts.last().copied().unwrap_or(0)
    }

    pub(crate) fn facts(&self) -> PackingFacts {
        let num_sequences = self.num_sequences();
        let places = num_sequences as f64 * self.seq_len as f64;
        let padding_share = 1.0 - self.num_targets as f64 / places;
        PackingFacts { num_sequences, num_targets: self.num_targets, padding_share }
    }

    /// What the sequence with this number holds, in the order of the store.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub(crate) fn spans(&self, store: &TokenStore, number: u64) -> Vec<Span> {
        assert!(number < self.num_sequences(), "sequence {number} of {}", self.num_sequences());
        let window = self.window_starts.partition_point(|start| *start <= number) - 1;
        let documents = documents_of(store, window);
        let mut within = (number - self.window_starts[window]) as usize;
        // Full sequences come first; a long document has too many to list them.
        for document in &documents {
            let num_full = document.len / self.seq_len;
            if within < num_full {
                return vec![Span { start: document.start + within * self.seq_len, len: self.seq_len }];
            }
            within -= num_full;
        }
        let mut packed = pack(&rests(&documents, self.seq_len), self.seq_len);
        packed.swap_remove(within)
    }
}

/// The pairs of each document in a window.
fn documents_of(store: &TokenStore, window: usize) -> Vec<Span> {
    let first = window * WINDOW_DOCUMENTS;
    let last = (first + WINDOW_DOCUMENTS).min(store.num_documents());
    let span = |Range { start, end }: Range<usize>| Span { start, len: (end - start).saturating_sub(1) };
    (first..last).map(|document| span(store.document_span(document))).collect()
}

/// What is left of each document after its full sequences, where something is.
fn rests(documents: &[Span], seq_len: usize) -> Vec<Span> {
    let rest = |document: &Span| {
        let len = document.len % seq_len;
        Span { start: document.start + document.len - len, len }
    };
    documents.iter().map(rest).filter(|rest| rest.len > 0).collect()
}

/// Best-fit decreasing: `spans`, each shorter than `seq_len`, in sequences.
fn pack(spans: &[Span], seq_len: usize) -> Vec<Vec<Span>> {
    let mut order = spans.to_vec();
    // Of equal lengths the first in the store comes first.
    order.sort_by_key(|span| (std::cmp::Reverse(span.len), span.start));
    let mut sequences: Vec<Vec<Span>> = Vec::new();
    // The room in each sequence that has some, and its number.
    let mut rooms: BTreeSet<(usize, usize)> = BTreeSet::new();
    for span in order {
        let (room, number) = match rooms.range((span.len, 0)..).next().copied() {
            Some(best) => {
                rooms.remove(&best);
                best
            }
            None => {
                sequences.push(Vec::new());
                (seq_len, sequences.len() - 1)
            }
        };
        sequences[number].push(span);
        if room > span.len {
            rooms.insert((room - span.len, number));
        }
    }
    sequences.iter_mut().for_each(|sequence| sequence.sort_unstable());
    sequences
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::TokenBatch;
    use crate::store::tests::counting_store;

    proptest! {
        #[test]
        fn every_pair_is_in_one_sequence_and_nothing_short_is_cut(
            documents in proptest::collection::vec(1_usize..40, 1..60), seq_len in 1_usize..25,
        ) {
            prop_assume!(documents.iter().sum::<usize>() > seq_len);
            prop_assume!(documents.iter().any(|len| *len > 1));
            let (front, back) = documents.split_at(documents.len() / 2);
            let store = counting_store(&[front, back]);
            let packed = PackedSequences::new(&store, seq_len).unwrap();
            let mut times_target = vec![0; store.len()];
            for number in 0..packed.num_sequences() {
                let spans = packed.spans(&store, number);
                prop_assert!(spans.iter().map(|span| span.len).sum::<usize>() <= seq_len);
                for Span { start, len } in spans {
                    let document = store.document_span(store.document_index(start).unwrap());
                    prop_assert!(start + len < document.end, "targets are of the same document");
                    let is_whole = start == document.start && len == document.len() - 1;
                    prop_assert!(is_whole || document.len() - 1 > seq_len, "only long documents are cut");
                    (start + 1..=start + len).for_each(|target| times_target[target] += 1);
                }
            }
            let is_first = |at: usize| store.document_span(store.document_index(at).unwrap()).start == at;
            for (at, times) in times_target.iter().enumerate() {
                prop_assert_eq!(*times, usize::from(!is_first(at)));
            }
            let facts = packed.facts();
            prop_assert_eq!(facts.num_targets as usize, times_target.iter().sum::<usize>());
        }

        /// Two sequences that were not both more than half full would have gone into one.
        #[test]
        fn all_sequences_but_one_are_more_than_half_full(lens in proptest::collection::vec(1_usize..32, 1..200)) {
            let mut start = 0;
            let mut next = |len: usize| { start += len + 1; Span { start: start - len - 1, len } };
            let spans: Vec<Span> = lens.iter().map(|len| next(*len)).collect();
            let filled: Vec<usize> =
                pack(&spans, 32).iter().map(|sequence| sequence.iter().map(|span| span.len).sum()).collect();
            prop_assert!(filled.iter().filter(|len| 2 * **len <= 32).count() <= 1);
        }
    }

    #[test]
    fn the_longest_goes_first_to_where_it_fits_best() {
        let spans = [(0, 3), (10, 6), (20, 5), (30, 4)].map(|(start, len)| Span { start, len });
        let lens = |sequence: &Vec<Span>| sequence.iter().map(|span| span.len).collect::<Vec<_>>();
        // 6 and 5 begin sequences of 10; 4 fills the first, 3 goes to the second.
        assert_eq!(pack(&spans, 10).iter().map(lens).collect::<Vec<_>>(), [vec![6, 4], vec![3, 5]]);
    }

    #[test]
    fn a_row_has_targets_within_its_documents_and_padding_that_does_not_count() {
        let store = counting_store(&[&[4, 3]]);
        let spans = [Span { start: 0, len: 3 }, Span { start: 4, len: 2 }];
        let batch = TokenBatch::packed(&store, &spans, 7).unwrap();
        assert_eq!(batch.input_ids, [0, 1, 2, 4, 5, 0, 0]);
        assert_eq!(batch.target_ids, [1, 2, 3, 5, 6, 0, 0]);
        assert_eq!(batch.segment_ids.unwrap(), [0, 0, 0, 1, 1, 2, 2]);
        assert_eq!(batch.target_mask.unwrap(), [true, true, true, true, true, false, false]);
    }

    #[test]
    fn documents_of_one_token_are_nothing_to_pack() {
        let message = PackedSequences::new(&counting_store(&[&[1, 1, 1]]), 2).unwrap_err().to_string();
        assert!(
            message.starts_with("none of the 3 documents of the train split has two tokens"),
            "{message}"
        );
    }
}

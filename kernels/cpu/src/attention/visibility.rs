//! What a query sees, and what is added to its scores by position.

use std::ops::Range;

use super::heads::{Alibi, Heads, alibi_slopes};

/// Which document each position belongs to; `None` for a sequence that is a single document.
struct Documents {
    of_sequence: Vec<Option<Vec<i64>>>,
}

impl Documents {
    /// From the ids of `[batch or 1, seq]`.
    fn new(ids: &[i64], seq_len: usize) -> Self {
        let several = |ids: &[i64]| ids.iter().any(|id| *id != ids[0]);
        let of_sequence = ids.chunks(seq_len).map(|ids| several(ids).then(|| ids.to_vec())).collect();
        Self { of_sequence }
    }

    fn of(&self, batch: usize) -> Option<&[i64]> {
        self.of_sequence[batch % self.of_sequence.len()].as_deref()
    }
}

/// The rules of one call.
pub(super) struct Visibility {
    documents: Documents,
    alibi: Option<(Alibi, Vec<f32>)>,
    window: Option<usize>,
    d_head: usize,
}

impl Visibility {
    /// From the ids of `[batch or 1, seq]`.
    pub(super) fn new(heads: Heads, segment_ids: &[i64], seq_len: usize, d_head: usize) -> Self {
        Self {
            documents: Documents::new(segment_ids, seq_len),
            alibi: heads.alibi.map(|alibi| (alibi, alibi_slopes(heads.num_heads))),
            window: heads.window,
            d_head,
        }
    }

    /// The first key that the query sees.
    pub(super) fn first_key(&self, query: usize) -> usize {
        self.window.map_or(0, |window| (query + 1).saturating_sub(window))
    }

    /// Adds to the scores of queries from `first_query` on against `keys` what positions add, and
    /// sets those of keys that are not seen to minus infinity. Scores of later keys mean nothing.
    pub(super) fn apply(
        &self,
        [batch, head]: [usize; 2],
        first_query: usize,
        keys: Range<usize>,
        scores: &mut [f32],
    ) {
        let documents = self.documents.of(batch);
        if documents.is_none() && self.alibi.is_none() && self.window.is_none() {
            return;
        }
        for (i, row) in scores.chunks_exact_mut(keys.len()).enumerate() {
            let query = first_query + i;
            let seen = &mut row[..query + 1 - keys.start];
            if let Some((alibi, slopes)) = &self.alibi {
                for (key, score) in (keys.start..).zip(seen.iter_mut()) {
                    *score += alibi.bias(slopes[head], query, key, self.d_head);
                }
            }
            if let Some(ids) = documents {
                for (score, id) in seen.iter_mut().zip(&ids[keys.start..]) {
                    *score = if *id == ids[query] { *score } else { f32::NEG_INFINITY };
                }
            }
            seen[..self.first_key(query).saturating_sub(keys.start)].fill(f32::NEG_INFINITY);
        }
    }
}

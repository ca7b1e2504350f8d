//! The largest logit of each attention head: no weights, no values, no `[seq, seq]` matrix.
//!
//! Shape letters: b batch, s sequence, t = b * s tokens, h query heads, g key/value heads, d width of
//! a head of queries and keys.

use rayon::prelude::*;

use crate::attention::Heads;
use crate::bf16::Compute;
use crate::matrix::Matrix;
use crate::panel_product::{Triangle, write_triangular_product};
use crate::rotary::{Rotation, write_rotated};
use crate::simd::{max_of_row, vectorised};
use crate::unwritten::Unwritten;

/// Queries of one block: its scores stay in the second-level cache up to some thousand keys.
const BLOCK_QUERIES: usize = 64;

/// What logits are computed from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries, `[t, h * d]`.
    pub q: &'a [f32],
    /// Keys, `[t, g * d]`.
    pub k: &'a [f32],
    /// Angles that queries and keys are turned by.
    pub rotation: Option<Rotation<'a>>,
    /// Number of each token's document, `[b or 1, s]`: a token sees those before it with its own
    /// number.
    pub segment_ids: &'a [i64],
    /// s.
    pub seq_len: usize,
    /// d.
    pub d_head: usize,
    /// How rows are cut, who is seen and the factor of the scores.
    pub heads: Heads,
}

/// The largest product of a query with a key that it sees, times the factor of the scores, of each
/// head over all sequences, `[h]`. What positions add to scores is left out.
///
/// # Panics
/// If there are no tokens, or the lengths of `inputs` do not fit each other.
pub fn max_logits(inputs: Inputs<'_>) -> Vec<f32> {
    let Inputs { q, k, segment_ids, seq_len: s, d_head: d, heads, .. } = inputs;
    let (h, g) = (heads.num_heads, heads.num_kv_heads);
    let b = q.len() / (s * h * d);
    assert!(
        b > 0
            && q.len() == b * s * h * d
            && k.len() == b * s * g * d
            && (segment_ids.len() == s || segment_ids.len() == b * s),
        "{} elements of queries, {} of keys and {} documents in sequences of {s} and {heads:?} of width {d}",
        q.len(),
        k.len(),
        segment_ids.len(),
    );
    let of_heads: Vec<f32> =
        (0..b * h).into_par_iter().map(|index| inputs.largest_of([index / h, index % h])).collect();
    (0..h).map(|head| of_heads[head..].iter().step_by(h).copied().fold(f32::NEG_INFINITY, f32::max)).collect()
}

impl Inputs<'_> {
    /// That of one head of one sequence.
    fn largest_of(&self, [batch, head]: [usize; 2]) -> f32 {
        let Heads { num_heads: h, num_kv_heads: g, .. } = self.heads;
        let queries = self.turned(self.q, h, [batch, head], self.heads.scale_of(self.d_head));
        let keys = self.turned(self.k, g, [batch, head / (h / g)], 1.0);
        let (queries, keys) =
            (Matrix::row_major(&queries, self.d_head), Matrix::row_major(&keys, self.d_head));
        let sequence = batch % (self.segment_ids.len() / self.seq_len);
        let documents = &self.segment_ids[sequence * self.seq_len..][..self.seq_len];
        let is_one = documents.iter().all(|id| *id == documents[0]);
        let mut scores = vec![0.0; BLOCK_QUERIES.min(self.seq_len) * self.seq_len];
        let mut largest = f32::NEG_INFINITY;
        for start in (0..self.seq_len).step_by(BLOCK_QUERIES) {
            let end = self.seq_len.min(start + BLOCK_QUERIES);
            let first_key = self.first_key(start);
            let num_keys = end - first_key;
            let scores = &mut scores[..(end - start) * num_keys];
            let triangle = Triangle::Product { first: start - first_key };
            write_triangular_product(
                scores,
                queries.rows(start..end),
                keys.rows(first_key..end).transposed(),
                triangle,
                Compute::F32,
            );
            for (query, row) in (start..end).zip(scores.chunks_exact(num_keys)) {
                let seen = self.first_key(query)..query + 1;
                let row = &row[seen.start - first_key..seen.end - first_key];
                let of_row = if is_one { largest_in(row) } else { largest_within(row, &documents[seen]) };
                largest = largest.max(of_row);
            }
        }
        largest
    }

    /// The first key that the query sees, whatever its document.
    fn first_key(&self, query: usize) -> usize {
        self.heads.window.map_or(0, |window| (query + 1).saturating_sub(window))
    }

    /// A copy of one head of one sequence, `[s, d]`, turned and times `factor`.
    fn turned(&self, rows: &[f32], num_heads: usize, [batch, head]: [usize; 2], factor: f32) -> Vec<f32> {
        let (s, d, width) = (self.seq_len, self.d_head, num_heads * self.d_head);
        let head = Matrix::strided(&rows[batch * s * width + head * d..], [s, d], [width, 1]);
        let mut copy = Unwritten::new(s * d);
        write_rotated(copy.whole().into_matrix(d), head, self.rotation, 1.0, factor);
        copy.into_values()
    }
}

vectorised! {
    fn largest_in(row: &[f32]) -> f32 = max_of_row;
}

/// The largest score of a key in the document of the last one, which is the query's own.
fn largest_within(row: &[f32], documents: &[i64]) -> f32 {
    let own = documents[documents.len() - 1];
    let seen = row.iter().zip(documents).filter(|(_, id)| **id == own);
    seen.map(|(score, _)| *score).fold(f32::NEG_INFINITY, f32::max)
}

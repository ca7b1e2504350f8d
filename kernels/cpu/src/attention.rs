//! Causal self-attention: blocks of queries against the keys that they see, without a `[seq, seq]`
//! matrix.
//!
//! Shape letters: b batch, s sequence, t = b * s tokens, h query heads, g key/value heads, d head
//! width, q = h * d.

mod softmax;

use rayon::prelude::*;

use crate::matrix::Matrix;
use crate::panel_product::{Triangle, add_triangular_product, write_triangular_product};
use crate::rotary::{Rotation, write_rotated};
use crate::unwritten::{Unwritten, UnwrittenMatrix};
use softmax::{dot, exponentials_of_seen, gradients_of_scores, write_divided};

/// How the rows of tokens are cut into heads, and what attention knows of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads: query head i reads head `i / (num_heads / num_kv_heads)`
    /// (arXiv:2305.13245).
    pub num_kv_heads: usize,
    /// Subtract from each score the key's distance times the head's slope (ALiBi, arXiv:2108.12409,
    /// section 3).
    pub alibi: bool,
}

/// The slope of each head: the powers of `2^(-8/n)` from the first for n heads, n a power of two;
/// for other numbers, those of the next lower power of two, then every other one of the next higher
/// (arXiv:2108.12409, section 3 and the authors' code).
pub fn alibi_slopes(num_heads: usize) -> Vec<f32> {
    let powers = |n: usize| (1..=n).map(move |i| 2f64.powf(-8.0 * i as f64 / n as f64) as f32);
    let lower = if num_heads.is_power_of_two() { num_heads } else { num_heads.next_power_of_two() / 2 };
    powers(lower).chain(powers(2 * lower).step_by(2)).take(num_heads).collect()
}

/// What attention is computed from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries, `[t, h * d]`.
    pub q: &'a [f32],
    /// Keys, `[t, g * d]`.
    pub k: &'a [f32],
    /// Values, `[t, g * d]`.
    pub v: &'a [f32],
    /// Angles that queries and keys are turned by.
    pub rotation: Option<Rotation<'a>>,
    /// Number of each token's document, `[b or 1, s]`: a token sees those before it with its own
    /// number.
    pub segment_ids: &'a [i64],
    /// s.
    pub seq_len: usize,
    /// d.
    pub d_head: usize,
    /// How rows are cut.
    pub heads: Heads,
}

/// Results of the forward pass that its gradients are computed from, and the gradient of the
/// output.
#[derive(Debug, Clone, Copy)]
pub struct Results<'a> {
    /// The output, `[t, h * d]`.
    pub y: &'a [f32],
    /// The gradient of the output, `[t, h * d]`.
    pub dy: &'a [f32],
    /// Logarithm of each softmax's denominator, `[b, h, s]`.
    pub log_partition: &'a [f32],
}

/// Most queries of one block: more are no faster (measured at 256 tokens: 64, 128 and 256 alike).
const MAX_BLOCK_QUERIES: usize = 128;
/// Fewest queries of one block: each block brings keys and values into order anew.
const MIN_BLOCK_QUERIES: usize = 64;
/// About the scores of one block in between: they stay in the second-level cache.
const BLOCK_SCORES: usize = 1 << 18;

/// The output, `[t, q]`, and each query's logarithm of the softmax's denominator, `[b, h, s]`.
///
/// # Panics
/// If there are no tokens, or the lengths of `inputs` do not fit each other.
pub fn forward(inputs: Inputs<'_>) -> (Vec<f32>, Vec<f32>) {
    let reader = Reader::new(inputs);
    let Reader { b, s, d, .. } = reader;
    let (h, width) = (inputs.heads.num_heads, inputs.heads.num_heads * d);
    let mut y = Unwritten::new(b * s * width);
    let mut log_partition = vec![0.0; b * h * s];
    let heads_of_y = y.whole().into_matrix(width).into_blocks(s, d);
    heads_of_y.into_par_iter().zip(log_partition.par_chunks_mut(s)).enumerate().for_each_init(
        || BlockBuffers::new(s, d),
        |buffers, (index, (y, log_partition))| {
            reader.attend([index / h, index % h], buffers, y, log_partition);
        },
    );
    (y.into_values(), log_partition)
}

/// Gradients of queries, `[t, q]`, keys and values, `[t, g * d]`. One task does all query heads
/// that share a key/value head, in order.
///
/// # Panics
/// As [`forward`].
pub fn gradients(inputs: Inputs<'_>, results: Results<'_>) -> [Vec<f32>; 3] {
    let reader = Reader::new(inputs);
    let Reader { b, s, d, heads, .. } = reader;
    let (g, sharing) = (heads.num_kv_heads, heads.num_heads / heads.num_kv_heads);
    let [width, kv_width] = [heads.num_heads * d, g * d];
    let mut buffers = [width, kv_width, kv_width].map(|width| Unwritten::new(b * s * width));
    let [dq, dk, dv] = buffers.each_mut().map(Unwritten::whole);
    let dq = dq.into_matrix(width).into_blocks(s, sharing * d);
    let dk = dk.into_matrix(kv_width).into_blocks(s, d);
    let dv = dv.into_matrix(kv_width).into_blocks(s, d);
    dq.into_par_iter().zip(dk).zip(dv).enumerate().for_each_init(
        || GroupGradient::new(s, d),
        |group, (index, ((dq, dk), dv))| {
            reader.differentiate([index / g, index % g], &results, group, [dq, dk, dv]);
        },
    );
    buffers.map(Unwritten::into_values)
}

/// Elements of one task of the backward pass: a gradient of the group, and the head's keys and
/// queries.
pub fn elements_per_thread(s: usize, d: usize) -> usize {
    let block = QueryBlock::max_len(s).saturating_mul(s);
    s.saturating_mul(d).saturating_mul(5).saturating_add(block.saturating_mul(2))
}

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

/// What the tasks read of the inputs.
struct Reader<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    rotation: Option<Rotation<'a>>,
    documents: Documents,
    slopes: Option<Vec<f32>>,
    heads: Heads,
    b: usize,
    s: usize,
    d: usize,
}

/// The block of queries from `start`, and the keys up to its last query.
#[derive(Clone, Copy)]
struct QueryBlock {
    start: usize,
    end: usize,
}

impl QueryBlock {
    fn all(s: usize) -> impl Iterator<Item = Self> {
        let len = Self::max_len(s);
        (0..s).step_by(len).map(move |start| Self { start, end: s.min(start + len) })
    }

    fn max_len(s: usize) -> usize {
        (BLOCK_SCORES / s).clamp(MIN_BLOCK_QUERIES, MAX_BLOCK_QUERIES).min(s)
    }

    fn len(self) -> usize {
        self.end - self.start
    }

    /// The triangle of a product that is scores, or gradients of weights: no query sees later keys.
    fn of_product(self) -> Triangle {
        Triangle::Product { first: self.start }
    }

    /// That of a product of weights, or of gradients of scores.
    fn of_left(self) -> Triangle {
        Triangle::Left { first: self.start }
    }

    /// That of a product of the same, transposed.
    fn of_left_transposed(self) -> Triangle {
        Triangle::LeftTransposed { first: self.start }
    }
}

impl<'a> Reader<'a> {
    fn new(inputs: Inputs<'a>) -> Self {
        let Inputs { q, k, v, rotation, segment_ids, seq_len: s, d_head: d, heads } = inputs;
        let (h, g) = (heads.num_heads, heads.num_kv_heads);
        let b = q.len() / (s * h * d);
        assert!(
            q.len() == b * s * h * d && k.len() == b * s * g * d && v.len() == b * s * g * d,
            "{} elements of queries, {} of keys and {} of values in sequences of {s} and {heads:?} of width {d}",
            q.len(),
            k.len(),
            v.len(),
        );
        Self {
            q,
            k,
            v,
            rotation,
            documents: Documents::new(segment_ids, s),
            slopes: heads.alibi.then(|| alibi_slopes(h)),
            heads,
            b,
            s,
            d,
        }
    }

    /// The factor of the scores.
    fn scale(&self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    /// One head of one sequence, `[s, d]`, where it lies among `num_heads` in `rows`.
    fn head<'r>(&self, rows: &'r [f32], num_heads: usize, batch: usize, head: usize) -> Matrix<'r> {
        let width = num_heads * self.d;
        let first = batch * self.s * width + head * self.d;
        Matrix::strided(&rows[first..], [self.s, self.d], [width, 1])
    }

    /// A copy of one head, `[s, d]`, turned and times `factor`.
    fn load(&self, rows: &[f32], num_heads: usize, batch: usize, head: usize, factor: f32) -> Vec<f32> {
        let mut copy = Unwritten::new(self.s * self.d);
        let head = self.head(rows, num_heads, batch, head);
        write_rotated(copy.whole().into_matrix(self.d), head, self.rotation, 1.0, factor);
        copy.into_values()
    }

    /// Fills `target` with `factor` times the gradient of one head, `[s, d]`, turned back.
    fn store(&self, target: UnwrittenMatrix<'_>, gradient: &[f32], factor: f32) {
        write_rotated(target, Matrix::row_major(gradient, self.d), self.rotation, -1.0, factor);
    }

    /// The block's scores, `[block, block.end]`, minus infinity for keys of other documents. Scores
    /// of later keys mean nothing.
    fn scores(
        &self,
        [batch, head]: [usize; 2],
        block: QueryBlock,
        queries: &[f32],
        keys: &[f32],
        scores: &mut [f32],
    ) {
        let queries = Matrix::row_major(queries, self.d).rows(block.start..block.end);
        let keys = Matrix::row_major(keys, self.d).rows(0..block.end);
        write_triangular_product(scores, queries, keys.transposed(), block.of_product());
        let documents = self.documents.of(batch);
        let slope = self.slopes.as_ref().map(|slopes| slopes[head]);
        if documents.is_none() && slope.is_none() {
            return;
        }
        for (i, row) in scores.chunks_exact_mut(block.end).enumerate() {
            let query = block.start + i;
            if let Some(slope) = slope {
                for (key, score) in row[..=query].iter_mut().enumerate() {
                    *score += slope * (key as f32 - query as f32);
                }
            }
            if let Some(ids) = documents {
                for (score, id) in row[..=query].iter_mut().zip(ids) {
                    *score = if *id == ids[query] { *score } else { f32::NEG_INFINITY };
                }
            }
        }
    }

    /// One head of one sequence, forward.
    fn attend(
        &self,
        [batch, head]: [usize; 2],
        buffers: &mut BlockBuffers,
        y: UnwrittenMatrix<'_>,
        log_partition: &mut [f32],
    ) {
        let (h, g) = (self.heads.num_heads, self.heads.num_kv_heads);
        let kv_head = head / (h / g);
        let queries = self.load(self.q, h, batch, head, self.scale());
        let keys = self.load(self.k, g, batch, kv_head, 1.0);
        let values = self.head(self.v, g, batch, kv_head);
        let mut rest_of_y = y;
        for block in QueryBlock::all(self.s) {
            let scores = &mut buffers.scores[..block.len() * block.end];
            self.scores([batch, head], block, &queries, &keys, scores);
            let (mut max, mut sums) = ([0.0; MAX_BLOCK_QUERIES], [0.0; MAX_BLOCK_QUERIES]);
            for (i, row) in scores.chunks_exact_mut(block.end).enumerate() {
                (max[i], sums[i]) = exponentials_of_seen(row, block.start + i + 1);
            }
            let mixed = &mut buffers.mixed[..block.len() * self.d];
            let weights = Matrix::row_major(scores, block.end);
            write_triangular_product(mixed, weights, values.rows(0..block.end), block.of_left());
            let (y, behind) = rest_of_y.split_rows_at(block.len());
            rest_of_y = behind;
            write_divided(y, Matrix::row_major(mixed, self.d), &sums);
            for (i, target) in log_partition[block.start..block.end].iter_mut().enumerate() {
                *target = max[i] + sums[i].ln();
            }
        }
    }

    /// All query heads that share one key/value head of one sequence, backward.
    fn differentiate(
        &self,
        [batch, kv_head]: [usize; 2],
        results: &Results<'_>,
        group: &mut GroupGradient,
        [dq, dk, dv]: [UnwrittenMatrix<'_>; 3],
    ) {
        let (s, d, g) = (self.s, self.d, self.heads.num_kv_heads);
        let sharing = self.heads.num_heads / g;
        let keys = self.load(self.k, g, batch, kv_head, 1.0);
        group.dkeys.fill(0.0);
        group.dvalues.fill(0.0);
        for (offset, dq) in dq.into_blocks(s, d).into_iter().enumerate() {
            let head = kv_head * sharing + offset;
            group.add_head(self, [batch, head, kv_head], &keys, results);
            self.store(dq, &group.dqueries, self.scale());
        }
        self.store(dk, &group.dkeys, 1.0);
        dv.copy_from(Matrix::row_major(&group.dvalues, d));
    }
}

/// What one block of queries computes on its way to the output.
struct BlockBuffers {
    /// `[block, block.end]`.
    scores: Vec<f32>,
    /// Values mixed by weights that are not yet divided by their sum, `[block, d]`.
    mixed: Vec<f32>,
}

impl BlockBuffers {
    fn new(s: usize, d: usize) -> Self {
        let queries = QueryBlock::max_len(s);
        Self { scores: vec![0.0; queries * s], mixed: vec![0.0; queries * d] }
    }
}

/// Gradients of one key/value head of one sequence, and of the query head at hand, each `[s, d]`,
/// before they are turned back.
struct GroupGradient {
    dqueries: Vec<f32>,
    dkeys: Vec<f32>,
    dvalues: Vec<f32>,
    /// Scores and gradients of weights of one block.
    scores: Vec<f32>,
    dweights: Vec<f32>,
}

impl GroupGradient {
    fn new(s: usize, d: usize) -> Self {
        let [dqueries, dkeys, dvalues] = [(); 3].map(|()| vec![0.0; s * d]);
        let [scores, dweights] = [(); 2].map(|()| vec![0.0; QueryBlock::max_len(s) * s]);
        Self { dqueries, dkeys, dvalues, scores, dweights }
    }

    /// Adds one query head's share to the gradients of keys and values, and replaces that of the
    /// queries.
    fn add_head(
        &mut self,
        reader: &Reader<'_>,
        [batch, head, kv_head]: [usize; 3],
        keys: &[f32],
        results: &Results<'_>,
    ) {
        let (s, d, Heads { num_heads: h, num_kv_heads: g, .. }) = (reader.s, reader.d, reader.heads);
        let queries = reader.load(reader.q, h, batch, head, reader.scale());
        let values = reader.head(reader.v, g, batch, kv_head);
        let (y, dy) = (reader.head(results.y, h, batch, head), reader.head(results.dy, h, batch, head));
        let log_partition = &results.log_partition[(batch * h + head) * s..][..s];
        for block in QueryBlock::all(s) {
            let scores = &mut self.scores[..block.len() * block.end];
            let dweights = &mut self.dweights[..block.len() * block.end];
            reader.scores([batch, head], block, &queries, keys, scores);
            let (dy_block, seen) = (dy.rows(block.start..block.end), 0..block.end);
            let values = values.rows(seen.clone());
            write_triangular_product(dweights, dy_block, values.transposed(), block.of_product());
            for (i, (scores, dweights)) in
                scores.chunks_exact_mut(block.end).zip(dweights.chunks_exact_mut(block.end)).enumerate()
            {
                let query = block.start + i;
                let dy_times_y = dot(dy.row(query), y.row(query));
                gradients_of_scores(scores, dweights, query + 1, log_partition[query], dy_times_y);
            }
            let (weights, dscores) =
                (Matrix::row_major(scores, block.end), Matrix::row_major(dweights, block.end));
            let queries = Matrix::row_major(&queries, d).rows(block.start..block.end);
            let [dvalues, dkeys] = [&mut self.dvalues, &mut self.dkeys].map(|all| &mut all[..block.end * d]);
            add_triangular_product(dvalues, weights.transposed(), dy_block, block.of_left_transposed());
            add_triangular_product(dkeys, dscores.transposed(), queries, block.of_left_transposed());
            let dqueries = &mut self.dqueries[block.start * d..block.end * d];
            let keys = Matrix::row_major(keys, d).rows(seen);
            write_triangular_product(dqueries, dscores, keys, block.of_left());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alibi_slopes_are_those_of_the_paper() {
        assert_eq!(alibi_slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        let twelve = alibi_slopes(12);
        assert_eq!(twelve[..8], alibi_slopes(8));
        let expected = [1, 3, 5, 7].map(|i| 2f64.powf(-0.5 * f64::from(i)) as f32);
        assert_eq!(twelve[8..], expected);
    }
}

//! Causal self-attention: blocks of queries against the keys that they see, without a `[seq, seq]`
//! matrix.
//!
//! Shape letters: b batch, s sequence, t = b * s tokens, h query heads, g key/value heads, d width of
//! a head of queries and keys, v of one of values.

pub mod cached;
mod heads;
mod softmax;
mod visibility;

use std::ops::Range;

use rayon::prelude::*;

use crate::bf16::Compute;
use crate::matrix::Matrix;
use crate::panel_product::{Triangle, add_triangular_product, write_triangular_product};
use crate::rotary::{Rotation, write_rotated};
use crate::row_tiles::sum_rows;
use crate::simd::dot;
use crate::unwritten::{Unwritten, UnwrittenMatrix};
use softmax::{exponentials_of_seen, gradients_of_scores, write_divided};
use visibility::Visibility;

pub use heads::{Alibi, Heads, alibi_slopes};

/// What attention is computed from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries, `[t, h * d]`.
    pub q: &'a [f32],
    /// Keys, `[t, g * d]`.
    pub k: &'a [f32],
    /// Values, `[t, g * v]`.
    pub v: &'a [f32],
    /// A score of each head without a key, `[h]`, which takes part in the softmax.
    pub sinks: Option<&'a [f32]>,
    /// Angles that queries and keys are turned by.
    pub rotation: Option<Rotation<'a>>,
    /// Number of each token's document, `[b or 1, s]`: a token sees those before it with its own
    /// number.
    pub segment_ids: &'a [i64],
    /// s.
    pub seq_len: usize,
    /// d.
    pub d_head: usize,
    /// v.
    pub d_value: usize,
    /// How rows are cut.
    pub heads: Heads,
    /// What the factors of products are rounded to.
    pub compute: Compute,
}

/// Results of the forward pass that its gradients are computed from, and the gradient of the
/// output.
#[derive(Debug, Clone, Copy)]
pub struct Results<'a> {
    /// The output, `[t, h * v]`.
    pub y: &'a [f32],
    /// The gradient of the output, `[t, h * v]`.
    pub dy: &'a [f32],
    /// Logarithm of each softmax's denominator, `[b, h, s]`.
    pub log_partition: &'a [f32],
}

/// Gradients of what attention is computed from, each in its shape.
#[derive(Debug)]
pub struct Gradients {
    /// Of the queries.
    pub q: Vec<f32>,
    /// Of the keys.
    pub k: Vec<f32>,
    /// Of the values.
    pub v: Vec<f32>,
    /// Of the sinks; `None` without them.
    pub sinks: Option<Vec<f32>>,
}

/// Most queries of one block: more are no faster (measured at 256 tokens: 64, 128 and 256 alike).
const MAX_BLOCK_QUERIES: usize = 128;
/// Fewest queries of one block: each block brings keys and values into order anew.
const MIN_BLOCK_QUERIES: usize = 64;
/// About the scores of one block in between: they stay in the second-level cache.
const BLOCK_SCORES: usize = 1 << 18;

/// The output, `[t, h * v]`, and each query's logarithm of the softmax's denominator, `[b, h, s]`.
///
/// # Panics
/// If there are no tokens, or the lengths of `inputs` do not fit each other.
pub fn forward(inputs: Inputs<'_>) -> (Vec<f32>, Vec<f32>) {
    let reader = Reader::new(inputs);
    let Reader { b, s, d_value: v, .. } = reader;
    let (h, width) = (inputs.heads.num_heads, inputs.heads.num_heads * v);
    let mut y = Unwritten::new(b * s * width);
    let mut log_partition = vec![0.0; b * h * s];
    let heads_of_y = y.whole().into_matrix(width).into_blocks(s, v);
    heads_of_y.into_par_iter().zip(log_partition.par_chunks_mut(s)).enumerate().for_each_init(
        || BlockBuffers::new(s, v),
        |buffers, (index, (y, log_partition))| {
            reader.attend([index / h, index % h], buffers, y, log_partition);
        },
    );
    (y.into_values(), log_partition)
}

/// Gradients of the inputs. One task does all query heads that share a key/value head, in order.
///
/// # Panics
/// As [`forward`].
pub fn gradients(inputs: Inputs<'_>, results: Results<'_>) -> Gradients {
    let reader = Reader::new(inputs);
    let Reader { b, s, d, d_value: v, heads, .. } = reader;
    let (h, g, sharing) = (heads.num_heads, heads.num_kv_heads, heads.num_heads / heads.num_kv_heads);
    let [width, k_width, v_width] = [h * d, g * d, g * v];
    let mut buffers = [width, k_width, v_width].map(|width| Unwritten::new(b * s * width));
    let mut dsinks_bh = vec![0.0; b * h];
    let [dq, dk, dv] = buffers.each_mut().map(Unwritten::whole);
    let dq = dq.into_matrix(width).into_blocks(s, sharing * d);
    let dk = dk.into_matrix(k_width).into_blocks(s, d);
    let dv = dv.into_matrix(v_width).into_blocks(s, v);
    let parts = dq.into_par_iter().zip(dk).zip(dv).zip(dsinks_bh.par_chunks_mut(sharing));
    parts.enumerate().for_each_init(
        || GroupGradient::new(s, d, v),
        |group, (index, (((dq, dk), dv), dsinks))| {
            reader.differentiate([index / g, index % g], &results, group, [dq, dk, dv], dsinks);
        },
    );
    let [q, k, v] = buffers.map(Unwritten::into_values);
    let sinks = inputs.sinks.map(|_| sum_rows(Matrix::row_major(&dsinks_bh, h)));
    Gradients { q, k, v, sinks }
}

/// Elements of one task of the backward pass: a gradient of the group, and the head's keys and
/// queries.
pub fn elements_per_thread(s: usize, d: usize, v: usize) -> usize {
    let block = QueryBlock::max_len(s).saturating_mul(s);
    s.saturating_mul(d.saturating_mul(4).saturating_add(v)).saturating_add(block.saturating_mul(2))
}

/// What the tasks read of the inputs.
struct Reader<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    sinks: Option<&'a [f32]>,
    rotation: Option<Rotation<'a>>,
    visibility: Visibility,
    heads: Heads,
    b: usize,
    s: usize,
    d: usize,
    d_value: usize,
    compute: Compute,
}

/// The block of queries from `start`, and the keys from the first that one of them sees up to its
/// last query.
#[derive(Clone, Copy)]
struct QueryBlock {
    start: usize,
    end: usize,
    first_key: usize,
}

impl QueryBlock {
    /// Most queries of a block in a sequence of `s` tokens.
    fn max_len(s: usize) -> usize {
        (BLOCK_SCORES / s).clamp(MIN_BLOCK_QUERIES, MAX_BLOCK_QUERIES).min(s)
    }

    /// Queries of all blocks but the last. Where blocks begin decides in a window from which key on
    /// sums are made: there, no block depends on how long the sequence is.
    fn len(s: usize, window: Option<usize>) -> usize {
        if window.is_some() { MIN_BLOCK_QUERIES } else { Self::max_len(s) }
    }

    fn num_queries(self) -> usize {
        self.end - self.start
    }

    fn num_keys(self) -> usize {
        self.end - self.first_key
    }

    fn num_scores(self) -> usize {
        self.num_queries() * self.num_keys()
    }

    fn queries(self) -> Range<usize> {
        self.start..self.end
    }

    fn keys(self) -> Range<usize> {
        self.first_key..self.end
    }

    /// Keys of the block up to a query's own.
    fn num_seen(self, query: usize) -> usize {
        query + 1 - self.first_key
    }

    /// The last key of the first query.
    fn first(self) -> usize {
        self.start - self.first_key
    }

    /// The triangle of a product that is scores, or gradients of weights: no query sees later keys.
    fn of_product(self) -> Triangle {
        Triangle::Product { first: self.first() }
    }

    /// That of a product of weights, or of gradients of scores.
    fn of_left(self) -> Triangle {
        Triangle::Left { first: self.first() }
    }

    /// That of a product of the same, transposed.
    fn of_left_transposed(self) -> Triangle {
        Triangle::LeftTransposed { first: self.first() }
    }
}

impl<'a> Reader<'a> {
    fn new(inputs: Inputs<'a>) -> Self {
        let Inputs { q, k, v, sinks, rotation, segment_ids, seq_len: s, d_head: d, d_value, heads, compute } =
            inputs;
        let (h, g) = (heads.num_heads, heads.num_kv_heads);
        let b = q.len() / (s * h * d);
        assert!(
            q.len() == b * s * h * d
                && k.len() == b * s * g * d
                && v.len() == b * s * g * d_value
                && sinks.is_none_or(|sinks| sinks.len() == h),
            "{} elements of queries, {} of keys and {} of values in sequences of {s} and {heads:?} of widths {d} and \
             {d_value}",
            q.len(),
            k.len(),
            v.len(),
        );
        let visibility = Visibility::new(heads, segment_ids, s, d);
        Self { q, k, v, sinks, rotation, visibility, heads, b, s, d, d_value, compute }
    }

    fn blocks(&self) -> impl Iterator<Item = QueryBlock> {
        let len = QueryBlock::len(self.s, self.heads.window);
        (0..self.s).step_by(len).map(move |start| {
            let first_key = self.visibility.first_key(start);
            QueryBlock { start, end: self.s.min(start + len), first_key }
        })
    }

    /// The factor of the scores.
    fn scale(&self) -> f32 {
        self.heads.scale_of(self.d)
    }

    /// One head of one sequence, `[s, d]`, where it lies among `num_heads` in `rows`.
    fn head<'r>(&self, rows: &'r [f32], [num_heads, d]: [usize; 2], [batch, head]: [usize; 2]) -> Matrix<'r> {
        let width = num_heads * d;
        let first = batch * self.s * width + head * d;
        Matrix::strided(&rows[first..], [self.s, d], [width, 1])
    }

    /// The values of one head of one sequence, `[s, v]`.
    fn values(&self, batch: usize, kv_head: usize) -> Matrix<'a> {
        self.head(self.v, [self.heads.num_kv_heads, self.d_value], [batch, kv_head])
    }

    /// A copy of one head of queries or keys, `[s, d]`, turned and times `factor`.
    fn load(&self, rows: &[f32], num_heads: usize, of: [usize; 2], factor: f32) -> Vec<f32> {
        let mut copy = Unwritten::new(self.s * self.d);
        let head = self.head(rows, [num_heads, self.d], of);
        write_rotated(copy.whole().into_matrix(self.d), head, self.rotation, 1.0, factor);
        copy.into_values()
    }

    /// Fills `target` with `factor` times the gradient of one head, `[s, d]`, turned back.
    fn store(&self, target: UnwrittenMatrix<'_>, gradient: &[f32], factor: f32) {
        write_rotated(target, Matrix::row_major(gradient, self.d), self.rotation, -1.0, factor);
    }

    /// The block's scores, `[queries, keys]`, minus infinity for keys that are not seen. Scores of
    /// later keys mean nothing.
    fn scores(&self, of: [usize; 2], block: QueryBlock, queries: &[f32], keys: &[f32], scores: &mut [f32]) {
        let queries = Matrix::row_major(queries, self.d).rows(block.queries());
        let keys = Matrix::row_major(keys, self.d).rows(block.keys());
        write_triangular_product(scores, queries, keys.transposed(), block.of_product(), self.compute);
        self.visibility.apply(of, block.start, block.keys(), scores);
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
        let queries = self.load(self.q, h, [batch, head], self.scale());
        let keys = self.load(self.k, g, [batch, kv_head], 1.0);
        let values = self.values(batch, kv_head);
        let sink = self.sinks.map(|sinks| sinks[head]);
        let mut rest_of_y = y;
        for block in self.blocks() {
            let scores = &mut buffers.scores[..block.num_scores()];
            self.scores([batch, head], block, &queries, &keys, scores);
            let mut sums = [0.0; MAX_BLOCK_QUERIES];
            for (i, row) in scores.chunks_exact_mut(block.num_keys()).enumerate() {
                let query = block.start + i;
                let (max, sum) = exponentials_of_seen(row, block.num_seen(query), sink);
                sums[i] = sum;
                log_partition[query] = max + sum.ln();
            }
            let mixed = &mut buffers.mixed[..block.num_queries() * self.d_value];
            let weights = Matrix::row_major(scores, block.num_keys());
            write_triangular_product(
                mixed,
                weights,
                values.rows(block.keys()),
                block.of_left(),
                self.compute,
            );
            let (y, behind) = rest_of_y.split_rows_at(block.num_queries());
            rest_of_y = behind;
            write_divided(y, Matrix::row_major(mixed, self.d_value), &sums);
        }
    }

    /// All query heads that share one key/value head of one sequence, backward.
    fn differentiate(
        &self,
        [batch, kv_head]: [usize; 2],
        results: &Results<'_>,
        group: &mut GroupGradient,
        [dq, dk, dv]: [UnwrittenMatrix<'_>; 3],
        dsinks: &mut [f32],
    ) {
        let (s, d, g) = (self.s, self.d, self.heads.num_kv_heads);
        let sharing = self.heads.num_heads / g;
        let keys = self.load(self.k, g, [batch, kv_head], 1.0);
        group.dkeys.fill(0.0);
        group.dvalues.fill(0.0);
        for (offset, (dq, dsink)) in dq.into_blocks(s, d).into_iter().zip(dsinks).enumerate() {
            let head = kv_head * sharing + offset;
            *dsink = group.add_head(self, [batch, head, kv_head], &keys, results);
            self.store(dq, &group.dqueries, self.scale());
        }
        self.store(dk, &group.dkeys, 1.0);
        dv.copy_from(Matrix::row_major(&group.dvalues, self.d_value));
    }
}

/// What one block of queries computes on its way to the output.
struct BlockBuffers {
    /// `[queries, keys]`.
    scores: Vec<f32>,
    /// Values mixed by weights that are not yet divided by their sum, `[queries, v]`.
    mixed: Vec<f32>,
}

impl BlockBuffers {
    fn new(s: usize, v: usize) -> Self {
        let queries = QueryBlock::max_len(s);
        Self { scores: vec![0.0; queries * s], mixed: vec![0.0; queries * v] }
    }
}

/// Gradients of one key/value head of one sequence, and of the query head at hand, each `[s, d]`
/// or `[s, v]`, before they are turned back.
struct GroupGradient {
    dqueries: Vec<f32>,
    dkeys: Vec<f32>,
    dvalues: Vec<f32>,
    /// Scores and gradients of weights of one block.
    scores: Vec<f32>,
    dweights: Vec<f32>,
}

impl GroupGradient {
    fn new(s: usize, d: usize, v: usize) -> Self {
        let [dqueries, dkeys, dvalues] = [d, d, v].map(|width| vec![0.0; s * width]);
        let [scores, dweights] = [(); 2].map(|()| vec![0.0; QueryBlock::max_len(s) * s]);
        Self { dqueries, dkeys, dvalues, scores, dweights }
    }

    /// Adds one query head's share to the gradients of keys and values, and replaces that of the
    /// queries. Returns the gradient of the head's sink: its weight times what the other weights'
    /// gradients lack without a value of its own.
    fn add_head(
        &mut self,
        reader: &Reader<'_>,
        [batch, head, kv_head]: [usize; 3],
        keys: &[f32],
        results: &Results<'_>,
    ) -> f32 {
        let (s, d, v, compute) = (reader.s, reader.d, reader.d_value, reader.compute);
        let h = reader.heads.num_heads;
        let queries = reader.load(reader.q, h, [batch, head], reader.scale());
        let values = reader.values(batch, kv_head);
        let [y, dy] = [results.y, results.dy].map(|rows| reader.head(rows, [h, v], [batch, head]));
        let log_partition = &results.log_partition[(batch * h + head) * s..][..s];
        let sink = reader.sinks.map(|sinks| sinks[head]);
        let mut dsink = 0.0;
        for block in reader.blocks() {
            let scores = &mut self.scores[..block.num_scores()];
            let dweights = &mut self.dweights[..block.num_scores()];
            reader.scores([batch, head], block, &queries, keys, scores);
            let dy_block = dy.rows(block.queries());
            let seen_values = values.rows(block.keys());
            write_triangular_product(
                dweights,
                dy_block,
                seen_values.transposed(),
                block.of_product(),
                compute,
            );
            let rows = scores.chunks_exact_mut(block.num_keys());
            for (i, (scores, dweights)) in rows.zip(dweights.chunks_exact_mut(block.num_keys())).enumerate() {
                let query = block.start + i;
                let dy_times_y = dot(dy.row(query), y.row(query));
                let num_seen = block.num_seen(query);
                gradients_of_scores(scores, dweights, num_seen, log_partition[query], dy_times_y);
                dsink -= sink.map_or(0.0, |sink| (sink - log_partition[query]).exp() * dy_times_y);
            }
            let [weights, dscores] = [&*scores, dweights].map(|it| Matrix::row_major(it, block.num_keys()));
            let queries = Matrix::row_major(&queries, d).rows(block.queries());
            let dvalues = &mut self.dvalues[block.first_key * v..block.end * v];
            add_triangular_product(
                dvalues,
                weights.transposed(),
                dy_block,
                block.of_left_transposed(),
                compute,
            );
            let dkeys = &mut self.dkeys[block.first_key * d..block.end * d];
            add_triangular_product(dkeys, dscores.transposed(), queries, block.of_left_transposed(), compute);
            let dqueries = &mut self.dqueries[block.start * d..block.end * d];
            let keys = Matrix::row_major(keys, d).rows(block.keys());
            write_triangular_product(dqueries, dscores, keys, block.of_left(), compute);
        }
        dsink
    }
}

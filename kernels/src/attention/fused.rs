//! Attention on the CPU: blocks of queries against the keys that they see, without a `[seq, seq]` tensor.

mod softmax;

use burn::backend::flex::FlexTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Shape;
use rayon::prelude::*;

use super::{Heads, SavedForAttention, alibi_slopes};
use crate::matrix::{Matrix, MatrixMut, Unwritten};
use crate::panel_product::{Triangle, add_triangular_product, write_triangular_product};
use crate::rotary::{Rotation, write_rotated};
use crate::slices::{contiguous, elements, from_elements, host_integers};
use softmax::{dot, exponentials_of_seen, gradients_of_scores, write_divided};

/// Most queries of one block: more are no faster (measured at 256 tokens: 64, 128 and 256 alike).
const MAX_BLOCK_QUERIES: usize = 128;
/// Fewest queries of one block: each block brings keys and values into order anew.
const MIN_BLOCK_QUERIES: usize = 64;
/// About the scores of one block in between: they stay in the second-level cache.
const BLOCK_SCORES: usize = 1 << 18;

/// The output, `[t, q]`, and each query's logarithm of the softmax's denominator, `[b, h, s]`.
pub(super) fn forward(
    inputs: Vec<FlexTensor>,
    segment_ids_bs: FlexTensor,
    heads: Heads,
) -> (FlexTensor, FlexTensor) {
    let inputs: Vec<_> = inputs.into_iter().map(contiguous).collect();
    let reader = Reader::new(&inputs, segment_ids_bs, heads);
    let Reader { b, s, d, .. } = reader;
    let (h, width) = (heads.num_heads, heads.num_heads * d);
    let mut y = Unwritten::new(b * s * width);
    let mut log_partition = vec![0.0; b * h * s];
    let heads_of_y = MatrixMut::uninit(y.as_mut_slice(), width).into_blocks(s, d);
    heads_of_y.into_par_iter().zip(log_partition.par_chunks_mut(s)).enumerate().for_each_init(
        || BlockBuffers::new(s, d),
        |buffers, (index, (y, log_partition))| {
            reader.attend([index / h, index % h], buffers, y, log_partition);
        },
    );
    // SAFETY: the heads' blocks cover the output, and each task writes all rows of its own.
    let y = unsafe { y.written() };
    (from_elements(y, Shape::new([b * s, width])), from_elements(log_partition, Shape::new([b, h, s])))
}

/// Gradients of queries, `[t, q]`, keys and values, `[t, g * d]`. One task does all query heads that share a key/value
/// head, in order.
pub(super) fn gradients(
    saved: SavedForAttention<Flex>,
    dy_tq: FlexTensor,
    heads: Heads,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let SavedForAttention { y_tq, log_partition_bhs, segment_ids_bs, inputs } = saved;
    let inputs: Vec<_> = inputs.into_vec().into_iter().map(contiguous).collect();
    let [y_tq, dy_tq, log_partition_bhs] = [y_tq, dy_tq, log_partition_bhs].map(contiguous);
    let reader = Reader::new(&inputs, segment_ids_bs, heads);
    let results =
        Results { y: elements(&y_tq), dy: elements(&dy_tq), log_partition: elements(&log_partition_bhs) };
    let Reader { b, s, d, .. } = reader;
    let (g, sharing) = (heads.num_kv_heads, heads.num_heads / heads.num_kv_heads);
    let [width, kv_width] = [heads.num_heads * d, g * d];
    let mut buffers = [width, kv_width, kv_width].map(|width| Unwritten::new(b * s * width));
    let [dq, dk, dv] = buffers.each_mut().map(Unwritten::as_mut_slice);
    let dq = MatrixMut::uninit(dq, width).into_blocks(s, sharing * d);
    let dk = MatrixMut::uninit(dk, kv_width).into_blocks(s, d);
    let dv = MatrixMut::uninit(dv, kv_width).into_blocks(s, d);
    dq.into_par_iter().zip(dk).zip(dv).enumerate().for_each_init(
        || GroupGradient::new(s, d),
        |group, (index, ((dq, dk), dv))| {
            reader.differentiate([index / g, index % g], &results, group, [dq, dk, dv]);
        },
    );
    // SAFETY: the blocks cover the gradients, and each task writes all rows of its own.
    let [dq, dk, dv] = buffers.map(|buffer| unsafe { buffer.written() });
    let rows = |elements, width| from_elements(elements, Shape::new([b * s, width]));
    (rows(dq, width), rows(dk, kv_width), rows(dv, kv_width))
}

/// Elements of one task of the backward pass: a [`GroupGradient`] and the head's keys and queries.
pub(super) fn elements_per_thread(s: usize, d: usize) -> usize {
    let block = QueryBlock::max_len(s).saturating_mul(s);
    s.saturating_mul(d).saturating_mul(5).saturating_add(block.saturating_mul(2))
}

/// Which document each position belongs to; `None` for a sequence that is a single document.
struct Documents {
    of_sequence: Vec<Option<Vec<i64>>>,
}

impl Documents {
    /// From `segment_ids_bs`, `[batch or 1, seq]`.
    fn new(segment_ids_bs: FlexTensor, seq_len: usize) -> Self {
        let ids = host_integers(segment_ids_bs);
        let several = |ids: &[i64]| ids.iter().any(|id| *id != ids[0]);
        let of_sequence = ids.chunks(seq_len).map(|ids| several(ids).then(|| ids.to_vec())).collect();
        Self { of_sequence }
    }

    fn of(&self, batch: usize) -> Option<&[i64]> {
        self.of_sequence[batch % self.of_sequence.len()].as_deref()
    }
}

/// What the tasks read of the forward pass's results.
struct Results<'a> {
    y: &'a [f32],
    dy: &'a [f32],
    log_partition: &'a [f32],
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
    fn new(inputs: &'a [FlexTensor], segment_ids_bs: FlexTensor, heads: Heads) -> Self {
        let ([t, width], s) = (inputs[0].shape().dims(), segment_ids_bs.shape()[1]);
        Self {
            q: elements(&inputs[0]),
            k: elements(&inputs[1]),
            v: elements(&inputs[2]),
            rotation: (inputs.len() > 3)
                .then(|| Rotation { cos: elements(&inputs[3]), sin: elements(&inputs[4]) }),
            documents: Documents::new(segment_ids_bs, s),
            slopes: heads.alibi.then(|| alibi_slopes(heads.num_heads)),
            heads,
            b: t / s,
            s,
            d: width / heads.num_heads,
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
        write_rotated(MatrixMut::uninit(copy.as_mut_slice(), self.d), head, self.rotation, 1.0, factor);
        // SAFETY: each row has just been written.
        unsafe { copy.written() }
    }

    /// Fills `target` with `factor` times the gradient of one head, `[s, d]`, turned back.
    fn store(&self, target: MatrixMut<'_>, gradient: &[f32], factor: f32) {
        write_rotated(target, Matrix::row_major(gradient, self.d), self.rotation, -1.0, factor);
    }

    /// The block's scores, `[block, block.end]`, minus infinity for keys of other documents. Scores of later keys mean
    /// nothing.
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
        mut y: MatrixMut<'_>,
        log_partition: &mut [f32],
    ) {
        let (h, g) = (self.heads.num_heads, self.heads.num_kv_heads);
        let kv_head = head / (h / g);
        let queries = self.load(self.q, h, batch, head, self.scale());
        let keys = self.load(self.k, g, batch, kv_head, 1.0);
        let values = self.head(self.v, g, batch, kv_head);
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
            write_divided(y.rows(block.start..block.end), Matrix::row_major(mixed, self.d), &sums);
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
        [dq, dk, mut dv]: [MatrixMut<'_>; 3],
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
        for (position, value) in group.dvalues.chunks_exact(d).enumerate() {
            dv.row_mut(position).write_copy_of_slice(value);
        }
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

/// Gradients of one key/value head of one sequence, and of the query head at hand, each `[s, d]`, before they are
/// turned back.
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

    /// Adds one query head's share to the gradients of keys and values, and replaces that of the queries.
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

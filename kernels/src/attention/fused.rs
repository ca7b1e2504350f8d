//! Attention on the CPU: blocks of queries against the keys that they see, without a `[seq, seq]` tensor.

mod softmax;

use burn::backend::flex::FlexTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Shape;
use rayon::prelude::*;

use super::{Heads, SavedForAttention, alibi_slopes};
use crate::matrix::{Matrix, MatrixMut, Unwritten, add_multiplied, columns_in_order, multiply};
use crate::rotary::rotate_rows;
use crate::slices::{contiguous, elements, from_elements, host_integers};
use softmax::{dot, exponentials_of_seen, gradients_of_scores};

/// Queries of one block: few enough that a block's scores stay in the second-level cache for sequences of many
/// thousand tokens, and that little is computed for keys behind a query (measured: 16 % faster than 64 at 256 tokens).
const BLOCK_QUERIES: usize = 32;

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
    heads_of_y
        .into_par_iter()
        .zip(log_partition.par_chunks_mut(s))
        .enumerate()
        .for_each(|(index, (y, log_partition))| reader.attend(index / h, index % h, y, log_partition));
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
    dq.into_par_iter().zip(dk).zip(dv).enumerate().for_each(|(index, ((dq, dk), dv))| {
        reader.differentiate(index / g, index % g, &results, [dq, dk, dv]);
    });
    // SAFETY: the blocks cover the gradients, and each task writes all rows of its own.
    let [dq, dk, dv] = buffers.map(|buffer| unsafe { buffer.written() });
    let rows = |elements, width| from_elements(elements, Shape::new([b * s, width]));
    (rows(dq, width), rows(dk, kv_width), rows(dv, kv_width))
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
    /// Cosines and sines, `[positions, d / 2]`.
    rotation: Option<[&'a [f32]; 2]>,
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
        (0..s).step_by(BLOCK_QUERIES).map(move |start| Self { start, end: s.min(start + BLOCK_QUERIES) })
    }

    fn len(self) -> usize {
        self.end - self.start
    }
}

impl<'a> Reader<'a> {
    fn new(inputs: &'a [FlexTensor], segment_ids_bs: FlexTensor, heads: Heads) -> Self {
        let ([t, width], s) = (inputs[0].shape().dims(), segment_ids_bs.shape()[1]);
        Self {
            q: elements(&inputs[0]),
            k: elements(&inputs[1]),
            v: elements(&inputs[2]),
            rotation: (inputs.len() > 3).then(|| [elements(&inputs[3]), elements(&inputs[4])]),
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
        let width = num_heads * self.d;
        let rows = rows[batch * self.s * width..].chunks_exact(width).take(self.s);
        let mut copy: Vec<f32> = Vec::with_capacity(self.s * self.d);
        rows.for_each(|row| copy.extend_from_slice(&row[head * self.d..][..self.d]));
        self.turn(&mut copy, 1.0);
        if factor != 1.0 {
            copy.iter_mut().for_each(|value| *value *= factor);
        }
        copy
    }

    /// Turns one head, `[s, d]`, by `sign` times the angles of its positions, if positions turn.
    fn turn(&self, rows: &mut [f32], sign: f32) {
        if let Some([cos, sin]) = self.rotation {
            rotate_rows(rows, cos, sin, self.d / 2, sign);
        }
    }

    /// The block's scores, `[block, block.end]`, minus infinity for keys of other documents. Scores of later keys mean
    /// nothing.
    fn scores(
        &self,
        [batch, head]: [usize; 2],
        block: QueryBlock,
        queries: &[f32],
        keys_transposed: Matrix<'_>,
        scores: &mut [f32],
    ) {
        let queries = Matrix::row_major(queries, self.d).rows(block.start..block.end);
        multiply(MatrixMut::row_major(scores, block.end), queries, keys_transposed.columns(0..block.end));
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
    fn attend(&self, batch: usize, head: usize, mut y: MatrixMut<'_>, log_partition: &mut [f32]) {
        let (h, g) = (self.heads.num_heads, self.heads.num_kv_heads);
        let kv_head = head / (h / g);
        let queries = self.load(self.q, h, batch, head, self.scale());
        let keys = self.load(self.k, g, batch, kv_head, 1.0);
        let keys_transposed = columns_in_order(Matrix::row_major(&keys, self.d));
        let keys_transposed = Matrix::row_major(&keys_transposed, self.s);
        let values = self.head(self.v, g, batch, kv_head);
        let mut score_buffer = vec![0.0; BLOCK_QUERIES.min(self.s) * self.s];
        let mut mixed_buffer = vec![0.0; BLOCK_QUERIES.min(self.s) * self.d];
        for block in QueryBlock::all(self.s) {
            let scores = &mut score_buffer[..block.len() * block.end];
            self.scores([batch, head], block, &queries, keys_transposed, scores);
            let (mut max, mut sums) = ([0.0; BLOCK_QUERIES], [0.0; BLOCK_QUERIES]);
            for (i, row) in scores.chunks_exact_mut(block.end).enumerate() {
                (max[i], sums[i]) = exponentials_of_seen(row, block.start + i + 1);
            }
            let mixed = &mut mixed_buffer[..block.len() * self.d];
            let weights = Matrix::row_major(scores, block.end);
            multiply(MatrixMut::row_major(mixed, self.d), weights, values.rows(0..block.end));
            for (i, mixed) in mixed.chunks_exact(self.d).enumerate() {
                let query = block.start + i;
                for (target, mixed) in y.row_mut(query).iter_mut().zip(mixed) {
                    target.write(mixed / sums[i]);
                }
                log_partition[query] = max[i] + sums[i].ln();
            }
        }
    }

    /// All query heads that share one key/value head of one sequence, backward.
    fn differentiate(
        &self,
        batch: usize,
        kv_head: usize,
        results: &Results<'_>,
        [mut dq, mut dk, mut dv]: [MatrixMut<'_>; 3],
    ) {
        let (s, d, g) = (self.s, self.d, self.heads.num_kv_heads);
        let sharing = self.heads.num_heads / g;
        let keys = self.load(self.k, g, batch, kv_head, 1.0);
        let mut group = GroupGradient::new(s, d);
        for offset in 0..sharing {
            let head = kv_head * sharing + offset;
            group.add_head(self, [batch, head, kv_head], &keys, results);
            self.turn(&mut group.dqueries, -1.0);
            for (position, row) in group.dqueries.chunks_exact(d).enumerate() {
                for (target, value) in dq.row_mut(position)[offset * d..].iter_mut().zip(row) {
                    target.write(self.scale() * value);
                }
            }
        }
        self.turn(&mut group.dkeys, -1.0);
        for (position, (key, value)) in
            group.dkeys.chunks_exact(d).zip(group.dvalues.chunks_exact(d)).enumerate()
        {
            dk.row_mut(position).write_copy_of_slice(key);
            dv.row_mut(position).write_copy_of_slice(value);
        }
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
        let [scores, dweights] = [(); 2].map(|()| vec![0.0; BLOCK_QUERIES.min(s) * s]);
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
        let keys_transposed = columns_in_order(Matrix::row_major(keys, d));
        let keys_transposed = Matrix::row_major(&keys_transposed, s);
        let values_transposed = columns_in_order(reader.head(reader.v, g, batch, kv_head));
        let values_transposed = Matrix::row_major(&values_transposed, s);
        let (y, dy) = (reader.head(results.y, h, batch, head), reader.head(results.dy, h, batch, head));
        let log_partition = &results.log_partition[(batch * h + head) * s..][..s];
        for block in QueryBlock::all(s) {
            let scores = &mut self.scores[..block.len() * block.end];
            let dweights = &mut self.dweights[..block.len() * block.end];
            reader.scores([batch, head], block, &queries, keys_transposed, scores);
            let (dy_block, seen) = (dy.rows(block.start..block.end), 0..block.end);
            multiply(
                MatrixMut::row_major(dweights, block.end),
                dy_block,
                values_transposed.columns(seen.clone()),
            );
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
            let part = |gradient, rows: std::ops::Range<usize>| -> MatrixMut<'_> {
                let gradient: &mut Vec<f32> = gradient;
                MatrixMut::row_major(&mut gradient[rows.start * d..rows.end * d], d)
            };
            add_multiplied(part(&mut self.dvalues, seen.clone()), weights.transposed(), dy_block);
            add_multiplied(part(&mut self.dkeys, seen.clone()), dscores.transposed(), queries);
            let keys = Matrix::row_major(keys, d).rows(seen);
            multiply(part(&mut self.dqueries, block.start..block.end), dscores, keys);
        }
    }
}

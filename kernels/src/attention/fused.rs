//! Attention on the CPU: blocks of queries against the keys that they see, without a `[seq, seq]` tensor.
//!
//! A block's queries are the lanes of a vector: scores are stored transposed, one row of lanes per key, so that the
//! softmax over the keys needs no sum across lanes. Keys behind the block's last query are never touched.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::SavedForAttention;
use crate::exp::exp;
use crate::heads::Heads;
use crate::simd::{LANES, vectorised};
use crate::slices::{contiguous, elements, host_integers};
use crate::tiles::{Lanes, Tiles, add_product, add_transposed_product};

/// Which document each position belongs to; `None` for a sequence that is a single document.
pub(super) struct Documents {
    of_sequence: Vec<Option<Vec<i64>>>,
}

impl Documents {
    /// From `segment_ids_bs`, `[batch or 1, seq]`.
    pub(super) fn new(segment_ids_bs: FlexTensor, seq_len: usize) -> Self {
        let ids = host_integers(segment_ids_bs);
        let several = |ids: &[i64]| ids.iter().any(|id| *id != ids[0]);
        let of_sequence = ids.chunks(seq_len).map(|ids| several(ids).then(|| ids.to_vec())).collect();
        Self { of_sequence }
    }

    fn of(&self, batch: usize) -> Option<&[i64]> {
        self.of_sequence[batch % self.of_sequence.len()].as_deref()
    }
}

/// The output, `[b, h, s, d]`, and each query's logarithm of the softmax's denominator, `[b, h, s, 1]`.
pub(super) fn forward(q: &Heads, k: &Heads, v: &Heads, documents: &Documents) -> (Vec<f32>, Vec<f32>) {
    let ([b, h, s, d], [_, g, ..]) = (q.dims(), k.dims());
    let mut output = vec![0.0; b * h * s * d];
    let mut log_partition = vec![0.0; b * h * s];
    let heads = output.par_chunks_mut(s * d).zip(log_partition.par_chunks_mut(s)).enumerate();
    heads.for_each(|(index, (output, log_partition))| {
        let (batch, head) = (index / h, index % h);
        let kv_head = head / (h / g);
        let (keys, values) = (load(k, batch, kv_head, 1.0), load(v, batch, kv_head, 1.0));
        let mut weights = Tiles::zeros(s, LANES);
        let mut mixed = Tiles::zeros(LANES, d);
        let blocks = output.chunks_mut(LANES * d).zip(log_partition.chunks_mut(LANES)).enumerate();
        for (block, (output, log_partition)) in blocks {
            let rows = QueryBlock { batch, head, start: block * LANES };
            let (_, queries_transposed) = rows.load(q, scale(d));
            rows.scores(&mut weights, &keys, &queries_transposed, documents.of(batch));
            let num_keys = rows.num_keys();
            let (max, sum) = softmax(&mut weights.lanes_mut()[..num_keys]);
            mixed.clear();
            add_transposed_product(&mut mixed, &weights, &values, num_keys);
            for (lane, (output, log_partition)) in output.chunks_mut(d).zip(log_partition).enumerate() {
                for (output, mixed) in output.iter_mut().zip(mixed.row(lane)) {
                    *output = mixed / sum[lane];
                }
                *log_partition = max[lane] + sum[lane].ln();
            }
        }
    });
    (output, log_partition)
}

/// Gradients of queries, `[b, h, s, d]`, keys and values, `[b, g, s, d]`. One task does all query heads that share a
/// key/value head, in order.
pub(super) fn backward(saved: SavedForAttention<burn::backend::Flex>, dy: FlexTensor) -> [Vec<f32>; 3] {
    let [q, k, v, y, dy] = [saved.q_bhsd, saved.k_bgsd, saved.v_bgsd, saved.y_bhsd, dy].map(Heads::new);
    let ([b, h, s, d], [_, g, ..]) = (q.dims(), k.dims());
    let documents = Documents::new(saved.segment_ids_bs, s);
    let log_partition = contiguous(saved.log_partition_bhs1);
    let log_partition = elements(&log_partition);
    let mut dq = vec![0.0; b * h * s * d];
    let mut dk = vec![0.0; b * g * s * d];
    let mut dv = vec![0.0; b * g * s * d];
    let sharing = h / g;
    dq.par_chunks_mut(sharing * s * d)
        .zip(dk.par_chunks_mut(s * d))
        .zip(dv.par_chunks_mut(s * d))
        .enumerate()
        .for_each(|(index, ((dq, dk), dv))| {
            let (batch, kv_head) = (index / g, index % g);
            let mut group = GroupGradient::new(&k, &v, batch, kv_head);
            for (offset, dq) in dq.chunks_mut(s * d).enumerate() {
                let head = kv_head * sharing + offset;
                let log_partition = &log_partition[(batch * h + head) * s..][..s];
                let blocks = dq.chunks_mut(LANES * d).zip(log_partition.chunks(LANES)).enumerate();
                for (block, (dq, log_partition)) in blocks {
                    let rows = QueryBlock { batch, head, start: block * LANES };
                    group.add_block(rows, [&q, &y, &dy], log_partition, documents.of(batch), dq);
                }
            }
            store(&group.dkeys, dk, d);
            store(&group.dvalues, dv, d);
        });
    [dq, dk, dv]
}

/// The factor of the scores.
fn scale(d: usize) -> f32 {
    1.0 / (d as f32).sqrt()
}

/// One head as a matrix `[seq, d]`, times `factor`.
fn load(x: &Heads, batch: usize, head: usize, factor: f32) -> Tiles {
    let [_, _, s, d] = x.dims();
    let mut tiles = Tiles::zeros(s, d);
    for position in 0..s {
        for (target, x) in tiles.row_mut(position).iter_mut().zip(x.row(batch, head, position)) {
            *target = factor * x;
        }
    }
    tiles
}

/// The matrix without its padding.
fn store(tiles: &Tiles, target: &mut [f32], d: usize) {
    for (position, target) in target.chunks_mut(d).enumerate() {
        target.copy_from_slice(&tiles.row(position)[..d]);
    }
}

/// The queries of one head at [`LANES`] positions from `start`.
#[derive(Clone, Copy)]
struct QueryBlock {
    batch: usize,
    head: usize,
    start: usize,
}

impl QueryBlock {
    /// Keys up to the block's last query: a multiple of [`LANES`].
    fn num_keys(self) -> usize {
        self.start + LANES
    }

    /// The block's rows of `x` times `factor`, `[LANES, d]`, and their transpose; zeros behind the sequence's end.
    fn load(self, x: &Heads, factor: f32) -> (Tiles, Tiles) {
        let [_, _, s, d] = x.dims();
        let (mut rows, mut transposed) = (Tiles::zeros(LANES, d), Tiles::zeros(d, LANES));
        for (lane, position) in (self.start..s.min(self.start + LANES)).enumerate() {
            let x = x.row(self.batch, self.head, position);
            let targets = rows.row_mut(lane).iter_mut().zip(transposed.lanes_mut());
            for ((row, transposed), x) in targets.zip(x) {
                *row = factor * x;
                transposed[lane] = factor * x;
            }
        }
        (rows, transposed)
    }

    /// Scores of all keys that the block sees, `[num_keys, LANES]`, minus infinity where a query does not see a key.
    fn scores(self, scores: &mut Tiles, keys: &Tiles, queries_transposed: &Tiles, documents: Option<&[i64]>) {
        let num_keys = self.num_keys();
        scores.lanes_mut()[..num_keys].fill([0.0; LANES]);
        add_product(scores, keys, queries_transposed, num_keys, queries_transposed.lanes().len());
        let scores = &mut scores.lanes_mut()[..num_keys];
        for (later, scores) in scores[self.start..].iter_mut().enumerate() {
            scores[..later].fill(f32::NEG_INFINITY);
        }
        if let Some(documents) = documents {
            // Each query sees at least itself, so that the softmax has a finite maximum; lanes behind the
            // sequence's end are not masked.
            let own = &documents[self.start..documents.len().min(num_keys)];
            for (scores, document) in scores.iter_mut().zip(documents) {
                for (score, own) in scores.iter_mut().zip(own) {
                    *score = if own == document { *score } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

/// What one key/value head's gradients are summed in.
struct GroupGradient {
    keys: Tiles,
    values: Tiles,
    dkeys: Tiles,
    dvalues: Tiles,
    weights: Tiles,
    dweights: Tiles,
    dqueries: Tiles,
}

impl GroupGradient {
    fn new(k: &Heads, v: &Heads, batch: usize, kv_head: usize) -> Self {
        let [_, _, s, d] = k.dims();
        Self {
            keys: load(k, batch, kv_head, 1.0),
            values: load(v, batch, kv_head, 1.0),
            dkeys: Tiles::zeros(s, d),
            dvalues: Tiles::zeros(s, d),
            weights: Tiles::zeros(s, LANES),
            dweights: Tiles::zeros(s, LANES),
            dqueries: Tiles::zeros(LANES, d),
        }
    }

    /// Adds one block's share to the gradients of keys and values, and writes the gradient of its queries.
    fn add_block(
        &mut self,
        rows: QueryBlock,
        [q, y, dy]: [&Heads; 3],
        log_partition: &[f32],
        documents: Option<&[i64]>,
        dq: &mut [f32],
    ) {
        let (num_keys, d) = (rows.num_keys(), q.dims()[3]);
        let (queries, queries_transposed) = rows.load(q, scale(d));
        let (dy_rows, dy_transposed) = rows.load(dy, 1.0);
        let mut log_partition_lanes = [0.0; LANES];
        let mut dy_times_y = [0.0; LANES];
        for (lane, log) in log_partition.iter().enumerate() {
            log_partition_lanes[lane] = *log;
            let y = y.row(rows.batch, rows.head, rows.start + lane);
            dy_times_y[lane] = y.iter().zip(dy_rows.row(lane)).map(|(y, dy)| y * dy).sum();
        }
        rows.scores(&mut self.weights, &self.keys, &queries_transposed, documents);
        self.dweights.lanes_mut()[..num_keys].fill([0.0; LANES]);
        add_product(&mut self.dweights, &self.values, &dy_transposed, num_keys, d);
        softmax_gradient(
            &mut self.weights.lanes_mut()[..num_keys],
            &mut self.dweights.lanes_mut()[..num_keys],
            &log_partition_lanes,
            &dy_times_y,
        );
        add_product(&mut self.dvalues, &self.weights, &dy_rows, num_keys, LANES);
        add_product(&mut self.dkeys, &self.dweights, &queries, num_keys, LANES);
        self.dqueries.clear();
        add_transposed_product(&mut self.dqueries, &self.dweights, &self.keys, num_keys);
        for (lane, dq) in dq.chunks_mut(d).enumerate() {
            for (dq, gradient) in dq.iter_mut().zip(self.dqueries.row(lane)) {
                *dq = scale(d) * gradient;
            }
        }
    }
}

vectorised! {
    /// Replaces each lane's scores by their exponentials relative to the lane's maximum; returns maxima and sums.
    fn softmax(scores: &mut [Lanes]) -> (Lanes, Lanes) = softmax_lanes;
}

#[inline(always)]
fn softmax_lanes<const FUSED: bool>(scores: &mut [Lanes]) -> (Lanes, Lanes) {
    let mut max_lanes = [f32::NEG_INFINITY; LANES];
    for scores in &*scores {
        for (max, &score) in max_lanes.iter_mut().zip(scores) {
            // Loses NaN, which the sum finds again.
            *max = if score > *max { score } else { *max };
        }
    }
    let mut sum_lanes = [0.0; LANES];
    for scores in scores {
        for ((score, max), sum) in scores.iter_mut().zip(&max_lanes).zip(&mut sum_lanes) {
            *score = exp::<FUSED>(*score - max);
            *sum += *score;
        }
    }
    (max_lanes, sum_lanes)
}

vectorised! {
    /// Replaces `scores` by the softmax's weights and the gradients of the weights by those of the scores.
    fn softmax_gradient(
        scores: &mut [Lanes],
        dweights: &mut [Lanes],
        log_partition: &Lanes,
        dy_times_y: &Lanes,
    ) = softmax_gradient_lanes;
}

#[inline(always)]
fn softmax_gradient_lanes<const FUSED: bool>(
    scores: &mut [Lanes],
    dweights: &mut [Lanes],
    log_partition: &Lanes,
    dy_times_y: &Lanes,
) {
    for (scores, dweights) in scores.iter_mut().zip(dweights) {
        let constants = log_partition.iter().zip(dy_times_y);
        for ((score, dweight), (log_partition, dy_times_y)) in scores.iter_mut().zip(dweights).zip(constants)
        {
            let weight = exp::<FUSED>(*score - log_partition);
            *score = weight;
            *dweight = weight * (*dweight - dy_times_y);
        }
    }
}

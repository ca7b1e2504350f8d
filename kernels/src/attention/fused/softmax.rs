//! The loops over one query's scores.

use crate::exp::{exp, exponentials_of_row};
use crate::simd::{LANES, max_of_row, multiply_add, vectorised};

/// Replaces the first `num_seen` scores by their exponentials relative to the largest, and the others by zero. Returns
/// the largest and the sum.
pub(super) fn exponentials_of_seen(row: &mut [f32], num_seen: usize) -> (f32, f32) {
    let max = max(&row[..num_seen]);
    let (near, far) = row.split_at_mut(whole_vectors(num_seen, row.len()));
    near[num_seen..].fill(f32::NEG_INFINITY);
    far.fill(0.0);
    (max, exponentials(near, max))
}

/// `num_seen` rounded up to whole vectors, which cost less than single elements at the end, in a row of `len`.
fn whole_vectors(num_seen: usize, len: usize) -> usize {
    num_seen.next_multiple_of(LANES).min(len)
}

vectorised! {
    fn max(row: &[f32]) -> f32 = max_of_row;
}

vectorised! {
    /// Replaces scores by their exponentials relative to `max`; returns the sum.
    fn exponentials(row: &mut [f32], max: f32) -> f32 = exponentials_of_row;
}

/// Replaces the first `num_seen` scores by the softmax's weights, and the gradients of the weights by those of the
/// scores; the others become zero.
pub(super) fn gradients_of_scores(
    scores: &mut [f32],
    dweights: &mut [f32],
    num_seen: usize,
    log_partition: f32,
    dy_times_y: f32,
) {
    let near = whole_vectors(num_seen, scores.len());
    scores[num_seen..near].fill(f32::NEG_INFINITY);
    scores[near..].fill(0.0);
    dweights[num_seen..].fill(0.0);
    gradients(&mut scores[..near], &mut dweights[..near], log_partition, dy_times_y);
}

vectorised! {
    fn gradients(scores: &mut [f32], dweights: &mut [f32], log_partition: f32, dy_times_y: f32) = gradients_of_row;
}

#[inline(always)]
fn gradients_of_row<const FUSED: bool>(
    scores: &mut [f32],
    dweights: &mut [f32],
    log_partition: f32,
    dy_times_y: f32,
) {
    for (score, dweight) in scores.iter_mut().zip(dweights) {
        let weight = exp::<FUSED>(*score - log_partition);
        *score = weight;
        *dweight = weight * (*dweight - dy_times_y);
    }
}

vectorised! {
    /// The sum of the products of two rows.
    pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 = dot_of_rows;
}

#[inline(always)]
fn dot_of_rows<const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum = multiply_add::<FUSED>(a, b, *sum);
        }
    }
    let mut sum = sums.iter().sum();
    for (a, b) in a_rest.iter().zip(b_rest) {
        sum += a * b;
    }
    sum
}

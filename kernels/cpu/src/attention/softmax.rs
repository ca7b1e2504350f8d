//! The loops over one query's scores.

use crate::exp::{exp, exponentials_in_lanes};
use crate::matrix::Matrix;
use crate::panel_product::READ_BEYOND_DIAGONAL;
use crate::simd::{LANES, max_of_row, vectorised, write_scaled};
use crate::unwritten::UnwrittenMatrix;

/// Replaces the first `num_seen` scores by their exponentials relative to the largest, and those of
/// the others that products read by zero. Returns the largest, the sink among them, and the sum
/// with that of the sink.
pub(super) fn exponentials_of_seen(row: &mut [f32], num_seen: usize, sink: Option<f32>) -> (f32, f32) {
    let max = max(&row[..num_seen]).max(sink.unwrap_or(f32::NEG_INFINITY));
    let near = read_by_products(row, num_seen);
    near[num_seen..].fill(f32::NEG_INFINITY);
    let sum = exponentials(near, max);
    (max, sink.map_or(sum, |sink| sum + (sink - max).exp()))
}

/// The part of a row that products read, and more to the end of a vector, which costs less than
/// single elements.
fn read_by_products(row: &mut [f32], num_seen: usize) -> &mut [f32] {
    let len = (num_seen + READ_BEYOND_DIAGONAL).next_multiple_of(LANES).min(row.len());
    &mut row[..len]
}

vectorised! {
    fn max(row: &[f32]) -> f32 = max_of_row;
}

vectorised! {
    /// Replaces scores by their exponentials relative to `max`; returns the sum, the same bits
    /// wherever the row ends behind what is seen.
    fn exponentials(row: &mut [f32], max: f32) -> f32 = exponentials_in_lanes;
}

/// Replaces the first `num_seen` scores by the softmax's weights, and the gradients of the weights
/// by those of the scores; the others that products read become zero.
pub(super) fn gradients_of_scores(
    scores: &mut [f32],
    dweights: &mut [f32],
    num_seen: usize,
    log_partition: f32,
    dy_times_y: f32,
) {
    let [scores, dweights] = [scores, dweights].map(|row| read_by_products(row, num_seen));
    scores[num_seen..].fill(f32::NEG_INFINITY);
    dweights[num_seen..].fill(0.0);
    gradients(scores, dweights, log_partition, dy_times_y);
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
    /// Fills each row of `to` with that of `from`, divided by its sum.
    ///
    /// # Panics
    /// If the shapes differ, or there are fewer sums.
    pub(super) fn write_divided(to: UnwrittenMatrix<'_>, from: Matrix<'_>, sums: &[f32]) = write_divided_rows;
}

#[inline(always)]
fn write_divided_rows<const FUSED: bool>(mut to: UnwrittenMatrix<'_>, from: Matrix<'_>, sums: &[f32]) {
    let sums = &sums[..from.num_rows()];
    assert!(to.shape() == from.shape(), "{from:?} into {:?}", to.shape());
    for (row, sum) in sums.iter().enumerate() {
        write_scaled::<FUSED>(to.row_mut(row), from.row(row), 1.0 / sum);
    }
    // SAFETY: the loop has written each row, as long as that of `from`.
    unsafe { to.assume_written() };
}

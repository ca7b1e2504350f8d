//! The loops behind the norms: rows of equal width, one after another.
//!
//! Each sum runs in [`LANES`] partial sums that are added up in order, so it does not depend on the
//! vector unit.

use crate::simd::{LANES, multiply_add, vectorised};

/// What a row is measured by.
#[derive(Debug, Clone, Copy)]
pub struct Measure {
    /// Whether deviations are from the row's mean instead of from zero.
    pub centred: bool,
    /// Added to the mean square deviation.
    pub epsilon: f32,
}

vectorised! {
    /// `y = (x - mean) / deviation * scale + bias`, row by row.
    pub(super) fn normalize(
        y: &mut [f32],
        x: &[f32],
        scale: &[f32],
        bias: Option<&[f32]>,
        measure: Measure,
    ) = normalize_each;
}

#[inline(always)]
fn normalize_each<const FUSED: bool>(
    y: &mut [f32],
    x: &[f32],
    scale: &[f32],
    bias: Option<&[f32]>,
    measure: Measure,
) {
    for (y, x) in y.chunks_exact_mut(scale.len()).zip(x.chunks_exact(scale.len())) {
        let (mean, inverse) = moments::<FUSED>(x, measure);
        for ((y, &x), &scale) in y.iter_mut().zip(x).zip(scale) {
            *y = (x - mean) * inverse * scale;
        }
        for (y, &bias) in y.iter_mut().zip(bias.unwrap_or_default()) {
            *y += bias;
        }
    }
}

vectorised! {
    /// The gradient of `x`, and the gradient of the scale added to `dscale`. The moments are
    /// recomputed.
    pub(super) fn gradients(
        dx: &mut [f32],
        dscale: &mut [f32],
        x: &[f32],
        scale: &[f32],
        dy: &[f32],
        measure: Measure,
    ) = gradients_each;
}

#[inline(always)]
fn gradients_each<const FUSED: bool>(
    dx: &mut [f32],
    dscale: &mut [f32],
    x: &[f32],
    scale: &[f32],
    dy: &[f32],
    measure: Measure,
) {
    let width = scale.len();
    let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(dy.chunks_exact(width));
    for ((dx, x), dy) in rows {
        let (mean, inverse) = moments::<FUSED>(x, measure);
        let (sum, sum_by_x) = gradient_sums::<FUSED>(x, scale, dy, mean);
        let mean_gradient = if measure.centred { sum / width as f32 } else { 0.0 };
        // The part along the normalised row would change its length, which is fixed.
        let along = sum_by_x * inverse / width as f32;
        let row = dx.iter_mut().zip(dscale.iter_mut()).zip(x.iter().zip(scale)).zip(dy);
        for (((dx, dscale), (&x, &scale)), &dy) in row {
            let normalized = (x - mean) * inverse;
            *dx = inverse * multiply_add::<FUSED>(-along, normalized, dy * scale - mean_gradient);
            *dscale = multiply_add::<FUSED>(dy, normalized, *dscale);
        }
    }
}

vectorised! {
    /// Adds each row of `rows` to `sum`.
    pub(super) fn add_rows(sum: &mut [f32], rows: &[f32]) = add_rows_each;
}

#[inline(always)]
fn add_rows_each<const FUSED: bool>(sum: &mut [f32], rows: &[f32]) {
    for row in rows.chunks_exact(sum.len()) {
        for (sum, &value) in sum.iter_mut().zip(row) {
            *sum += value;
        }
    }
}

/// The mean (zero unless centred) and one over the root of the mean square deviation.
#[inline(always)]
fn moments<const FUSED: bool>(x: &[f32], measure: Measure) -> (f32, f32) {
    let width = x.len() as f32;
    let mean = if measure.centred { sum(x) / width } else { 0.0 };
    let mean_square = sum_of_squares::<FUSED>(x, mean) / width;
    (mean, 1.0 / (mean_square + measure.epsilon).sqrt())
}

#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += value;
    }
    lanes.iter().sum()
}

/// Sum of `(value - mean)^2`.
#[inline(always)]
fn sum_of_squares<const FUSED: bool>(values: &[f32], mean: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = multiply_add::<FUSED>(value - mean, value - mean, *lane);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = multiply_add::<FUSED>(value - mean, value - mean, *lane);
    }
    lanes.iter().sum()
}

/// Sums of `dy * scale` and of `dy * scale * (x - mean)`.
#[inline(always)]
fn gradient_sums<const FUSED: bool>(x: &[f32], scale: &[f32], dy: &[f32], mean: f32) -> (f32, f32) {
    let (mut sums, mut sums_by_x) = ([0.0f32; LANES], [0.0f32; LANES]);
    let rows = x.chunks(LANES).zip(scale.chunks(LANES)).zip(dy.chunks(LANES));
    for ((x, scale), dy) in rows {
        let lanes = sums.iter_mut().zip(&mut sums_by_x);
        for ((sum, sum_by_x), ((&x, &scale), &dy)) in lanes.zip(x.iter().zip(scale).zip(dy)) {
            let gradient = dy * scale;
            *sum += gradient;
            *sum_by_x = multiply_add::<FUSED>(gradient, x - mean, *sum_by_x);
        }
    }
    (sums.iter().sum(), sums_by_x.iter().sum())
}

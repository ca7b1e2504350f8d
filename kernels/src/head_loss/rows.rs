//! The loops behind the loss, over one token's logits.

use crate::exp::exp;
use crate::simd::{LANES, max_of_row, vectorised};

vectorised! {
    /// Replaces the logits by `exp(logit - max)`, and returns their maximum and the sum of the new values.
    pub(super) fn exponentials(row: &mut [f32]) -> (f32, f32) = exponentials_of_row;
}

#[inline(always)]
fn exponentials_of_row<const FUSED: bool>(row: &mut [f32]) -> (f32, f32) {
    let max = max_of_row(row);
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let mut sum_lanes = [0.0; LANES];
    for chunk in chunks {
        for (sum, value) in sum_lanes.iter_mut().zip(chunk) {
            *value = exp::<FUSED>(*value - max);
            *sum += *value;
        }
    }
    let mut sum_of_rest = 0.0;
    for value in rest {
        *value = exp::<FUSED>(*value - max);
        sum_of_rest += *value;
    }
    (max, sum_lanes.iter().sum::<f32>() + sum_of_rest)
}

vectorised! {
    /// `row = factor * row`.
    pub(super) fn scale(row: &mut [f32], factor: f32) = scale_each;
}

#[inline(always)]
fn scale_each<const FUSED: bool>(row: &mut [f32], factor: f32) {
    for value in row {
        *value *= factor;
    }
}

//! The loops behind the loss, over one token's logits.

use crate::exp::exponentials_of_row;
use crate::simd::{max_of_row, vectorised};

vectorised! {
    /// Replaces the logits by `exp(logit - max)`, and returns their maximum and the sum of the new
    /// values.
    pub(super) fn exponentials(row: &mut [f32]) -> (f32, f32) = max_and_exponentials_of_row;
}

#[inline(always)]
fn max_and_exponentials_of_row<const FUSED: bool>(row: &mut [f32]) -> (f32, f32) {
    let max = max_of_row::<FUSED>(row);
    (max, exponentials_of_row::<FUSED>(row, max))
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

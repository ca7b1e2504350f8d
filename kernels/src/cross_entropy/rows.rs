//! The loops behind the cross-entropy, over one token's logits.

use crate::exp::exp;
use crate::simd::{LANES, vectorised};

vectorised! {
    /// `log(sum(exp(logits)))`.
    pub(super) fn log_partition(logits: &[f32]) -> f32 = log_partition_of_row;
}

#[inline(always)]
fn log_partition_of_row<const FUSED: bool>(logits: &[f32]) -> f32 {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut max_lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (max, &logit) in max_lanes.iter_mut().zip(chunk) {
            // Loses NaN, which the sum finds again; `f32::max` would compile to more instructions.
            *max = if logit > *max { logit } else { *max };
        }
    }
    let max = max_lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum_lanes = [0.0; LANES];
    for chunk in chunks {
        for (sum, &logit) in sum_lanes.iter_mut().zip(chunk) {
            *sum += exp::<FUSED>(logit - max);
        }
    }
    let rest = rest.iter().map(|&logit| exp::<FUSED>(logit - max));
    sum_lanes.into_iter().chain(rest).sum::<f32>().ln() + max
}

vectorised! {
    /// `gradient = scale * exp(logits - log_partition)`.
    pub(super) fn gradient(gradient: &mut [f32], logits: &[f32], log_partition: f32, scale: f32) = gradient_of_row;
}

#[inline(always)]
fn gradient_of_row<const FUSED: bool>(gradient: &mut [f32], logits: &[f32], log_partition: f32, scale: f32) {
    for (gradient, &logit) in gradient.iter_mut().zip(logits) {
        *gradient = scale * exp::<FUSED>(logit - log_partition);
    }
}

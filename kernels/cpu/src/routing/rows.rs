//! The loops over one token's logits.

use super::{GateSoftmax, RouterLoss};
use crate::exp::exp;
use crate::simd::{LANES, max_of_row, vectorised};

/// Writes the gate of each chosen expert.
pub(super) fn gates(gates: &mut [f32], logits: &[f32], ids: &[u32], softmax: GateSoftmax) {
    for (gate, &id) in gates.iter_mut().zip(ids) {
        *gate = logits[id as usize];
    }
    let (max, sum) = match softmax {
        GateSoftmax::OverChosen => max_and_sum(gates),
        GateSoftmax::OverAll => max_and_sum(logits),
    };
    for gate in gates {
        *gate = exp::<false>(*gate - max) / sum;
    }
}

/// Writes the gradient of the logits: for a softmax, gate times the excess of its gradient over the
/// gates' mean.
pub(super) fn gates_gradient(
    dlogits: &mut [f32],
    logits: &[f32],
    ids: &[u32],
    gates: &[f32],
    dgates: &[f32],
    softmax: GateSoftmax,
) {
    let mean: f32 = gates.iter().zip(dgates).map(|(gate, dgate)| gate * dgate).sum();
    let own = match softmax {
        GateSoftmax::OverChosen => mean,
        GateSoftmax::OverAll => {
            let (max, sum) = max_and_sum(logits);
            scaled_softmax(dlogits, logits, max, -mean / sum);
            0.0
        }
    };
    for ((&id, gate), dgate) in ids.iter().zip(gates).zip(dgates) {
        dlogits[id as usize] += gate * (dgate - own);
    }
}

/// One token's term of a loss.
pub(super) fn loss_term(logits: &[f32], loss: &RouterLoss) -> f64 {
    let (max, sum) = max_and_sum(logits);
    match loss {
        RouterLoss::Load(load) => {
            let weighted = |(&logit, load): (&f32, &f64)| load * f64::from(exp::<false>(logit - max));
            logits.iter().zip(load.iter()).map(weighted).sum::<f64>() / f64::from(sum)
        }
        RouterLoss::SquareLogPartition => f64::from(sum.ln() + max).powi(2),
    }
}

/// Writes `factor` times the gradient of one token's term.
pub(super) fn loss_gradient(dlogits: &mut [f32], logits: &[f32], loss: &RouterLoss, factor: f32) {
    let (max, sum) = max_and_sum(logits);
    match loss {
        RouterLoss::Load(load) => {
            scaled_softmax(dlogits, logits, max, 1.0 / sum);
            let mean: f64 = dlogits.iter().zip(load.iter()).map(|(&p, load)| f64::from(p) * load).sum();
            for (dlogit, load) in dlogits.iter_mut().zip(load.iter()) {
                *dlogit *= factor * (load - mean) as f32;
            }
        }
        RouterLoss::SquareLogPartition => {
            scaled_softmax(dlogits, logits, max, 2.0 * factor * (sum.ln() + max) / sum);
        }
    }
}

vectorised! {
    /// The largest logit, and the sum of the exponentials relative to it.
    fn max_and_sum(logits: &[f32]) -> (f32, f32) = max_and_sum_of_row;
}

#[inline(always)]
fn max_and_sum_of_row<const FUSED: bool>(logits: &[f32]) -> (f32, f32) {
    let max = max_of_row::<FUSED>(logits);
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, &logit) in sums.iter_mut().zip(chunk) {
            *sum += exp::<FUSED>(logit - max);
        }
    }
    let mut sum = sums.iter().sum();
    for &logit in rest {
        sum += exp::<FUSED>(logit - max);
    }
    (max, sum)
}

vectorised! {
    /// `y = factor * exp(logits - max)`.
    fn scaled_softmax(y: &mut [f32], logits: &[f32], max: f32, factor: f32) = scaled_softmax_of_row;
}

#[inline(always)]
fn scaled_softmax_of_row<const FUSED: bool>(y: &mut [f32], logits: &[f32], max: f32, factor: f32) {
    for (y, &logit) in y.iter_mut().zip(logits) {
        *y = factor * exp::<FUSED>(logit - max);
    }
}

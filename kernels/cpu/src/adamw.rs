//! One AdamW update.

use rayon::prelude::*;

use crate::blocks::{BLOCK_LEN, InPlace};
use crate::simd::{multiply_add, vectorised};

/// Constants of one update, the bias corrections included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay; 0 for parameters that do not decay.
    pub weight_decay: f64,
    /// Updates so far, this one included: at least 1.
    pub step: u64,
    /// Multiplies the gradient first: clipping without a pass of its own.
    pub gradient_scale: f64,
}

/// Factors of one update, the same for every element.
#[derive(Debug, Clone, Copy)]
pub struct Factors<T> {
    /// Share of the first moment that is kept.
    pub keep1: T,
    /// Share of the gradient that is added to it.
    pub add1: T,
    /// Share of the second moment that is kept.
    pub keep2: T,
    /// Share of the squared gradient that is added to it.
    pub add2: T,
    /// One over the root of the second moment's bias correction.
    pub root_correction: T,
    /// Added to the root of the second moment.
    pub epsilon: T,
    /// Learning rate over the first moment's bias correction.
    pub rate: T,
    /// Share of the value that is kept.
    pub decay: T,
    /// Multiplies the gradient first.
    pub gradient_scale: T,
}

impl Factors<f64> {
    /// The factors of `step`.
    pub fn new(step: &AdamWStep) -> Self {
        Self {
            keep1: step.beta1,
            add1: 1.0 - step.beta1,
            keep2: step.beta2,
            add2: 1.0 - step.beta2,
            root_correction: 1.0 / (1.0 - step.beta2.powf(step.step as f64)).sqrt(),
            epsilon: step.epsilon,
            rate: step.learning_rate / (1.0 - step.beta1.powf(step.step as f64)),
            decay: 1.0 - step.learning_rate * step.weight_decay,
            gradient_scale: step.gradient_scale,
        }
    }

    fn as_f32(self) -> Factors<f32> {
        Factors {
            keep1: self.keep1 as f32,
            add1: self.add1 as f32,
            keep2: self.keep2 as f32,
            add2: self.add2 as f32,
            root_correction: self.root_correction as f32,
            epsilon: self.epsilon as f32,
            rate: self.rate as f32,
            decay: self.decay as f32,
            gradient_scale: self.gradient_scale as f32,
        }
    }
}

/// A flattened parameter with its two moments, each of `n` elements.
#[derive(Debug)]
pub struct State<'a> {
    /// The parameter's values.
    pub value: InPlace<'a>,
    /// Running mean of the gradient.
    pub moment1: InPlace<'a>,
    /// Running mean of the squared gradient.
    pub moment2: InPlace<'a>,
}

/// Updates a parameter and its moments with its gradient, of `n` elements (arXiv:1711.05101,
/// algorithm 2; the decay is multiplied by the learning rate, as in PyTorch).
///
/// # Panics
/// If the lengths differ.
pub fn update(state: State<'_>, gradient: &[f32], step: &AdamWStep) {
    let State { value, moment1, moment2 } = state;
    let lengths = [value.target.len(), moment1.target.len(), moment2.target.len(), gradient.len()];
    assert!(
        lengths.iter().all(|length| *length == lengths[0]),
        "value, moments and gradient have the lengths {lengths:?}",
    );
    let factors = Factors::new(step).as_f32();
    value
        .par_blocks()
        .zip(moment1.par_blocks())
        .zip(moment2.par_blocks())
        .zip(gradient.par_chunks(BLOCK_LEN))
        .for_each(|(((value, moment1), moment2), gradient)| {
            update_block(value, moment1, moment2, gradient, factors);
        });
}

vectorised! {
    /// Updates some elements.
    fn update_block(
        value: &mut [f32],
        moment1: &mut [f32],
        moment2: &mut [f32],
        gradient: &[f32],
        factors: Factors<f32>,
    ) = update_each;
}

#[inline(always)]
fn update_each<const FUSED: bool>(
    value: &mut [f32],
    moment1: &mut [f32],
    moment2: &mut [f32],
    gradient: &[f32],
    factors: Factors<f32>,
) {
    let state = value.iter_mut().zip(moment1).zip(moment2);
    for (((value, moment1), moment2), &gradient) in state.zip(gradient) {
        let gradient = gradient * factors.gradient_scale;
        *moment1 = multiply_add::<FUSED>(*moment1, factors.keep1, gradient * factors.add1);
        *moment2 = multiply_add::<FUSED>(*moment2, factors.keep2, gradient * gradient * factors.add2);
        let denominator = multiply_add::<FUSED>(moment2.sqrt(), factors.root_correction, factors.epsilon);
        *value = multiply_add::<FUSED>(*value, factors.decay, -(*moment1 * factors.rate / denominator));
    }
}

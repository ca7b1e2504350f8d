//! One AdamW update.

use rayon::prelude::*;

use crate::bf16::{Bf16, Element};
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
    /// Key of the random bits by which bf16 moments are rounded: another one for each parameter and
    /// each step. f32 moments are not rounded.
    pub rounding_key: u64,
    /// Number of the first element among those of the whole parameter, by which they are rounded too:
    /// above 0 where a part of a parameter is updated by itself.
    pub first_element: usize,
}

/// What a moment is between two updates.
///
/// Rounding to the nearest bf16 would lose what an update adds to the second moment: `1 - beta2` is
/// 0.001 to 0.05, and a bf16 keeps a sum that grows by less than 2^-9 of itself as it was. So a bf16
/// moment is rounded at random, which is right in the mean.
pub trait Moment: Element {
    /// The element for `value`, rounded by the lower half of `random`.
    fn rounded(value: f32, random: u32) -> Self;
}

impl Moment for f32 {
    #[inline(always)]
    fn rounded(value: f32, _: u32) -> Self {
        value
    }
}

impl Moment for Bf16 {
    #[inline(always)]
    fn rounded(value: f32, random: u32) -> Self {
        Self::from_f32_at_random(value, random)
    }
}

/// Random bits as a function of a key and an element's index alone, so that neither the number of
/// threads nor a resumed run changes them.
#[derive(Debug, Clone, Copy)]
struct RandomBits {
    key: [u32; 2],
}

impl RandomBits {
    fn new(key: u64) -> Self {
        Self { key: [key as u32, (key >> 32) as u32] }
    }

    /// 32 bits for the element: C. Wellons' `lowbias32` of its index with both halves of the key, one
    /// added, one mixed in. 32-bit arithmetic, which vectors have.
    #[inline(always)]
    fn of_element(self, index: u32) -> u32 {
        let x = index.wrapping_mul(0x9e37_79b9).wrapping_add(self.key[0]);
        let x = (x ^ (x >> 16) ^ self.key[1]).wrapping_mul(0x7feb_352d);
        let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
        x ^ (x >> 16)
    }
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
pub struct State<'a, M = f32> {
    /// The parameter's values.
    pub value: InPlace<'a>,
    /// Running mean of the gradient.
    pub moment1: InPlace<'a, M>,
    /// Running mean of the squared gradient.
    pub moment2: InPlace<'a, M>,
}

/// Updates a parameter and its moments with its gradient, of `n` elements (arXiv:1711.05101,
/// algorithm 2; the decay is multiplied by the learning rate, as in PyTorch). The arithmetic is f32;
/// moments are rounded last, and the value moves by what they are before that.
///
/// # Panics
/// If the lengths differ.
pub fn update<M: Moment>(state: State<'_, M>, gradient: &[f32], step: &AdamWStep) {
    let State { value, moment1, moment2 } = state;
    let lengths = [value.target.len(), moment1.target.len(), moment2.target.len(), gradient.len()];
    assert!(
        lengths.iter().all(|length| *length == lengths[0]),
        "value, moments and gradient have the lengths {lengths:?}",
    );
    let factors = Factors::new(step).as_f32();
    let random = RandomBits::new(step.rounding_key);
    value
        .par_blocks()
        .zip(moment1.par_blocks())
        .zip(moment2.par_blocks())
        .zip(gradient.par_chunks(BLOCK_LEN))
        .enumerate()
        .for_each(|(block, (((value, moment1), moment2), gradient))| {
            // Behind 2^32 elements the bits come again: far enough.
            let first = (step.first_element + block * BLOCK_LEN) as u32;
            update_block(value, [moment1, moment2], gradient, factors, (random, first));
        });
}

vectorised! {
    /// Updates some elements, of which the first has the index that stands beside the random bits.
    fn update_block<M: Moment>(
        value: &mut [f32],
        moments: [&mut [M]; 2],
        gradient: &[f32],
        factors: Factors<f32>,
        random: (RandomBits, u32),
    ) = update_each;
}

#[inline(always)]
fn update_each<M: Moment, const FUSED: bool>(
    value: &mut [f32],
    [moment1, moment2]: [&mut [M]; 2],
    gradient: &[f32],
    factors: Factors<f32>,
    (random, first): (RandomBits, u32),
) {
    let state = value.iter_mut().zip(moment1).zip(moment2);
    for (i, (((value, moment1), moment2), &gradient)) in state.zip(gradient).enumerate() {
        let gradient = gradient * factors.gradient_scale;
        let mean = multiply_add::<FUSED>(moment1.to_f32(), factors.keep1, gradient * factors.add1);
        let square =
            multiply_add::<FUSED>(moment2.to_f32(), factors.keep2, gradient * gradient * factors.add2);
        let denominator = multiply_add::<FUSED>(square.sqrt(), factors.root_correction, factors.epsilon);
        *value = multiply_add::<FUSED>(*value, factors.decay, -(mean * factors.rate / denominator));
        let bits = random.of_element(first.wrapping_add(i as u32));
        *moment1 = M::rounded(mean, bits);
        *moment2 = M::rounded(square, bits >> 16);
    }
}

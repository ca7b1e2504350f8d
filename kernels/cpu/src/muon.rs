//! One Muon update.

use rayon::prelude::*;

use crate::blocks::{BLOCK_LEN, InPlace};
use crate::newton_schulz::orthogonalise;
use crate::simd::{multiply_add, vectorised};

/// Root mean square of the elements of AdamW's updates, at which Muon's are held (arXiv:2502.16982,
/// section 2.2).
const ADAMW_UPDATE_RMS: f64 = 0.2;

/// Constants of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MuonStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Share of the momentum that is kept.
    pub momentum: f64,
    /// Look one step of the momentum ahead.
    pub nesterov: bool,
    /// Iterations that make the update orthogonal.
    pub newton_schulz_steps: usize,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Multiplies the gradient first: clipping without a pass of its own.
    pub gradient_scale: f64,
}

/// Factors of one update, the same for every element.
#[derive(Debug, Clone, Copy)]
pub struct Factors<T> {
    /// Multiplies the gradient first.
    pub gradient_scale: T,
    /// Share of the momentum that is kept.
    pub keep: T,
    /// Share of the new momentum in the direction.
    pub ahead: T,
    /// Share of the gradient that is added to it.
    pub direct: T,
    /// Share of the value that is kept.
    pub decay: T,
    /// Multiplies the orthogonal direction: an orthogonal matrix of r rows and c columns has a root
    /// mean square of `1 / sqrt(max(r, c))` (arXiv:2502.16982, lemma 1 and eq. 4).
    pub rate: T,
}

impl Factors<f64> {
    /// The factors of `step` for matrices of so many rows and columns.
    pub fn new(step: &MuonStep, [rows, columns]: [usize; 2]) -> Self {
        let (ahead, direct) = if step.nesterov { (step.momentum, 1.0) } else { (1.0, 0.0) };
        Self {
            gradient_scale: step.gradient_scale,
            keep: step.momentum,
            ahead,
            direct,
            decay: 1.0 - step.learning_rate * step.weight_decay,
            rate: step.learning_rate * ADAMW_UPDATE_RMS * (rows.max(columns) as f64).sqrt(),
        }
    }

    fn as_f32(self) -> Factors<f32> {
        Factors {
            gradient_scale: self.gradient_scale as f32,
            keep: self.keep as f32,
            ahead: self.ahead as f32,
            direct: self.direct as f32,
            decay: self.decay as f32,
            rate: self.rate as f32,
        }
    }
}

/// A flattened stack of matrices with its momentum, each of `n` elements.
#[derive(Debug)]
pub struct State<'a> {
    /// The parameter's values.
    pub value: InPlace<'a>,
    /// Decaying sum of the gradients.
    pub momentum: InPlace<'a>,
}

/// Updates a stack of matrices `[matrices, rows, columns]` and its momentum with its gradient, of `n`
/// elements, each matrix on its own (arXiv:2502.16982, eq. 1 and 4; the decay is multiplied by the
/// learning rate).
///
/// # Panics
/// If the lengths differ, or are not those of the stack.
pub fn update(state: State<'_>, gradient: &[f32], shape: [usize; 3], step: &MuonStep) {
    let State { value, momentum } = state;
    let lengths = [value.target.len(), momentum.target.len(), gradient.len()];
    let len = shape.iter().product::<usize>();
    assert!(
        lengths.iter().all(|length| *length == len),
        "value, momentum and gradient of {shape:?} have the lengths {lengths:?}",
    );
    let [_, rows, columns] = shape;
    let factors = Factors::new(step, [rows, columns]).as_f32();
    let mut direction = vec![0.0; len];
    direction
        .par_chunks_mut(BLOCK_LEN)
        .zip(momentum.par_blocks())
        .zip(gradient.par_chunks(BLOCK_LEN))
        .for_each(|((direction, momentum), gradient)| accumulate(direction, momentum, gradient, factors));
    direction
        .par_chunks_mut((rows * columns).max(1))
        .for_each(|matrix| orthogonalise(matrix, [rows, columns], step.newton_schulz_steps));
    value
        .par_blocks()
        .zip(direction.par_chunks(BLOCK_LEN))
        .for_each(|(value, direction)| move_values(value, direction, factors));
}

vectorised! {
    /// Adds some elements of the gradient to the momentum, and fills the direction.
    fn accumulate(
        direction: &mut [f32],
        momentum: &mut [f32],
        gradient: &[f32],
        factors: Factors<f32>,
    ) = accumulate_each;
}

#[inline(always)]
fn accumulate_each<const FUSED: bool>(
    direction: &mut [f32],
    momentum: &mut [f32],
    gradient: &[f32],
    factors: Factors<f32>,
) {
    for ((direction, momentum), &gradient) in direction.iter_mut().zip(momentum).zip(gradient) {
        let gradient = gradient * factors.gradient_scale;
        *momentum = multiply_add::<FUSED>(*momentum, factors.keep, gradient);
        *direction = multiply_add::<FUSED>(*momentum, factors.ahead, gradient * factors.direct);
    }
}

vectorised! {
    /// Lets some values decay, and moves them against the direction.
    fn move_values(value: &mut [f32], direction: &[f32], factors: Factors<f32>) = move_each;
}

#[inline(always)]
fn move_each<const FUSED: bool>(value: &mut [f32], direction: &[f32], factors: Factors<f32>) {
    for (value, &direction) in value.iter_mut().zip(direction) {
        *value = multiply_add::<FUSED>(*value, factors.decay, -(direction * factors.rate));
    }
}

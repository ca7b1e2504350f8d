//! One AdamW update.

use burn::tensor::Tensor;

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
}

/// A flattened parameter with its two moments.
#[derive(Debug, Clone)]
pub struct AdamWState {
    /// The parameter's values.
    pub value_n: Tensor<1>,
    /// Running mean of the gradient.
    pub moment1_n: Tensor<1>,
    /// Running mean of the squared gradient.
    pub moment2_n: Tensor<1>,
}

/// The parameter and its moments after one update with `gradient_n` (arXiv:1711.05101, algorithm 2; the decay is
/// multiplied by the learning rate, as in PyTorch).
pub fn adamw_update(state: AdamWState, gradient_n: Tensor<1>, step: &AdamWStep) -> AdamWState {
    let AdamWState { value_n, moment1_n, moment2_n } = state;
    let moment1_n = moment1_n.mul_scalar(step.beta1) + gradient_n.clone().mul_scalar(1.0 - step.beta1);
    let moment2_n = moment2_n.mul_scalar(step.beta2) + gradient_n.square().mul_scalar(1.0 - step.beta2);
    let correction1 = 1.0 - step.beta1.powf(step.step as f64);
    let correction2 = 1.0 - step.beta2.powf(step.step as f64);
    let denominator_n =
        moment2_n.clone().sqrt().mul_scalar(1.0 / correction2.sqrt()).add_scalar(step.epsilon);
    let update_n = moment1_n.clone().mul_scalar(step.learning_rate / correction1) / denominator_n;
    let value_n = value_n.mul_scalar(1.0 - step.learning_rate * step.weight_decay) - update_n;
    AdamWState { value_n, moment1_n, moment2_n }
}

//! The dense feed-forward block; with one width per expert, also the shared expert.
//!
//! Shape letters: t tokens, d model width, f hidden width.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use switchyard_kernels::{Activation, DenseBiases, DenseMatrices, FfnOptions, dense_ffn};

/// Initial values of a [`DenseFfn`].
#[derive(Debug, Clone)]
pub struct DenseFfnWeights {
    /// Gate projection `[d, f]`, exactly for gated activations.
    pub w_gate_df: Option<Tensor<2>>,
    /// Up projection `[d, f]`.
    pub w_up_df: Tensor<2>,
    /// Down projection `[f, d]`.
    pub w_down_fd: Tensor<2>,
    /// Bias of the gate projection `[f]`.
    pub b_gate_f: Option<Tensor<1>>,
    /// Bias of the up projection `[f]`.
    pub b_up_f: Option<Tensor<1>>,
    /// Bias of the down projection `[d]`.
    pub b_down_d: Option<Tensor<1>>,
}

/// `activation(x W_gate + b_gate, x W_up + b_up) W_down + b_down`.
#[derive(Module, Debug)]
pub struct DenseFfn {
    /// Gate projection `[d, f]`; `None` unless the activation is gated.
    pub w_gate_df: Option<Param<Tensor<2>>>,
    /// Up projection `[d, f]`.
    pub w_up_df: Param<Tensor<2>>,
    /// Down projection `[f, d]`.
    pub w_down_fd: Param<Tensor<2>>,
    /// Bias of the gate projection `[f]`.
    pub b_gate_f: Option<Param<Tensor<1>>>,
    /// Bias of the up projection `[f]`.
    pub b_up_f: Option<Param<Tensor<1>>>,
    /// Bias of the down projection `[d]`.
    pub b_down_d: Option<Param<Tensor<1>>>,
    #[module(skip)]
    activation: Activation,
}

impl DenseFfn {
    /// A block with these values.
    ///
    /// # Panics
    /// If a gate projection is missing or superfluous for `activation`.
    pub fn new(weights: DenseFfnWeights, activation: Activation) -> Self {
        assert!(
            weights.w_gate_df.is_some() == activation.is_gated(),
            "{activation:?} with gate projection = {}",
            weights.w_gate_df.is_some()
        );
        Self {
            w_gate_df: weights.w_gate_df.map(Param::from_tensor),
            w_up_df: Param::from_tensor(weights.w_up_df),
            w_down_fd: Param::from_tensor(weights.w_down_fd),
            b_gate_f: weights.b_gate_f.map(Param::from_tensor),
            b_up_f: weights.b_up_f.map(Param::from_tensor),
            b_down_d: weights.b_down_d.map(Param::from_tensor),
            activation,
        }
    }

    /// The block applied to every token, computed as `options` say.
    ///
    /// # Shapes
    /// - `x_td`: `[num_tokens, d]`; returns `[num_tokens, d]`
    pub fn forward(&self, x_td: Tensor<2>, options: FfnOptions) -> Tensor<2> {
        let biases = match (&self.b_up_f, &self.b_down_d) {
            (Some(b_up_f), Some(b_down_d)) => Some(DenseBiases {
                b_gate_f: self.b_gate_f.as_ref().map(Param::val),
                b_up_f: b_up_f.val(),
                b_down_d: b_down_d.val(),
            }),
            _ => None,
        };
        let matrices = DenseMatrices {
            w_gate_df: self.w_gate_df.as_ref().map(Param::val),
            w_up_df: self.w_up_df.val(),
            w_down_fd: self.w_down_fd.val(),
            biases,
        };
        dense_ffn(x_td, matrices, self.activation, options)
    }
}

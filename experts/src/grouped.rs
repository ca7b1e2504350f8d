//! The routed experts of one layer, their matrices stacked.
//!
//! Shape letters: t tokens, k slots per token, d model width, e experts, f hidden width of one
//! expert.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use switchyard_kernels::{Activation, DispatchPlan, ExpertMatrices, expert_ffn};

/// Initial values of [`Experts`].
#[derive(Debug, Clone)]
pub struct ExpertsWeights {
    /// Gate projections `[e, d, f]`, exactly for gated activations.
    pub w_gate_edf: Option<Tensor<3>>,
    /// Up projections `[e, d, f]`.
    pub w_up_edf: Tensor<3>,
    /// Down projections `[e, f, d]`.
    pub w_down_efd: Tensor<3>,
}

/// E feed-forward blocks without biases, each applied to its own tokens.
#[derive(Module, Debug)]
pub struct Experts {
    /// Gate projections `[e, d, f]`; `None` unless the activation is gated.
    pub w_gate_edf: Option<Param<Tensor<3>>>,
    /// Up projections `[e, d, f]`.
    pub w_up_edf: Param<Tensor<3>>,
    /// Down projections `[e, f, d]`.
    pub w_down_efd: Param<Tensor<3>>,
    #[module(skip)]
    activation: Activation,
}

impl Experts {
    /// Experts with these values.
    ///
    /// # Panics
    /// If the gate projections are missing or superfluous for `activation`.
    pub fn new(weights: ExpertsWeights, activation: Activation) -> Self {
        assert!(
            weights.w_gate_edf.is_some() == activation.is_gated(),
            "{activation:?} with gate projections = {}",
            weights.w_gate_edf.is_some()
        );
        Self {
            w_gate_edf: weights.w_gate_edf.map(Param::from_tensor),
            w_up_edf: Param::from_tensor(weights.w_up_edf),
            w_down_efd: Param::from_tensor(weights.w_down_efd),
            activation,
        }
    }

    /// The experts' non-linearity.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// Each token's sum of gate times expert over its slots in `plan`; zero for a token without
    /// any.
    ///
    /// # Shapes
    /// - `x_td`: `[num_tokens, d]`; `gates_tk`: `[num_tokens, top_k]`; returns `[num_tokens, d]`
    ///
    /// # Panics
    /// If `plan` does not fit the tokens, the gates or the number of experts.
    pub fn forward(&self, x_td: Tensor<2>, gates_tk: Tensor<2>, plan: &DispatchPlan) -> Tensor<2> {
        let matrices = ExpertMatrices {
            w_gate_edf: self.w_gate_edf.as_ref().map(Param::val),
            w_up_edf: self.w_up_edf.val(),
            w_down_efd: self.w_down_efd.val(),
        };
        expert_ffn(x_td, gates_tk, matrices, self.activation, plan)
    }
}

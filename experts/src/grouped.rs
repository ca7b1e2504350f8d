//! The routed experts of one layer, their matrices stacked.
//!
//! Shape letters: t tokens, k slots per token, d model width, e experts, f hidden width of one
//! expert.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use switchyard_kernels::{Activation, DispatchPlan, ExpertBiases, ExpertMatrices, FfnOptions, expert_ffn};

/// Initial values of [`Experts`].
#[derive(Debug, Clone)]
pub struct ExpertsWeights {
    /// Gate projections `[e, d, f]`, exactly for gated activations.
    pub w_gate_edf: Option<Tensor<3>>,
    /// Up projections `[e, d, f]`.
    pub w_up_edf: Tensor<3>,
    /// Down projections `[e, f, d]`.
    pub w_down_efd: Tensor<3>,
    /// Biases; all or none.
    pub biases: Option<ExpertBiases>,
}

/// E feed-forward blocks, each applied to its own tokens.
#[derive(Module, Debug)]
pub struct Experts {
    /// Gate projections `[e, d, f]`; `None` unless the activation is gated.
    pub w_gate_edf: Option<Param<Tensor<3>>>,
    /// Up projections `[e, d, f]`.
    pub w_up_edf: Param<Tensor<3>>,
    /// Down projections `[e, f, d]`.
    pub w_down_efd: Param<Tensor<3>>,
    /// Biases of the gate projections `[e, f]`.
    pub b_gate_ef: Option<Param<Tensor<2>>>,
    /// Biases of the up projections `[e, f]`.
    pub b_up_ef: Option<Param<Tensor<2>>>,
    /// Biases of the down projections `[e, d]`.
    pub b_down_ed: Option<Param<Tensor<2>>>,
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
        let (b_up_ef, b_down_ed, b_gate_ef) = match weights.biases {
            Some(biases) => (Some(biases.b_up_ef), Some(biases.b_down_ed), biases.b_gate_ef),
            None => (None, None, None),
        };
        Self {
            w_gate_edf: weights.w_gate_edf.map(Param::from_tensor),
            w_up_edf: Param::from_tensor(weights.w_up_edf),
            w_down_efd: Param::from_tensor(weights.w_down_efd),
            b_gate_ef: b_gate_ef.map(Param::from_tensor),
            b_up_ef: b_up_ef.map(Param::from_tensor),
            b_down_ed: b_down_ed.map(Param::from_tensor),
            activation,
        }
    }

    /// The experts' non-linearity.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// Each token's sum of gate times expert over its slots in `plan`; zero for a token without
    /// any. Computed as `options` say.
    ///
    /// # Shapes
    /// - `x_td`: `[num_tokens, d]`; `gates_tk`: `[num_tokens, top_k]`; returns `[num_tokens, d]`
    ///
    /// # Panics
    /// If `plan` does not fit the tokens, the gates or the number of experts.
    pub fn forward(
        &self,
        x_td: Tensor<2>,
        gates_tk: Tensor<2>,
        plan: &DispatchPlan,
        options: FfnOptions,
    ) -> Tensor<2> {
        let biases = match (&self.b_up_ef, &self.b_down_ed) {
            (Some(b_up_ef), Some(b_down_ed)) => Some(ExpertBiases {
                b_gate_ef: self.b_gate_ef.as_ref().map(Param::val),
                b_up_ef: b_up_ef.val(),
                b_down_ed: b_down_ed.val(),
            }),
            _ => None,
        };
        let matrices = ExpertMatrices {
            w_gate_edf: self.w_gate_edf.as_ref().map(Param::val),
            w_up_edf: self.w_up_edf.val(),
            w_down_efd: self.w_down_efd.val(),
            biases,
        };
        expert_ffn(x_td, gates_tk, matrices, self.activation, plan, options)
    }
}

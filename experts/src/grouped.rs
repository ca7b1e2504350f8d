//! The routed experts of one layer, their matrices stacked.
//!
//! Shape letters: n packed rows, d model width, e experts, f hidden width of one expert.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use switchyard_kernels::{Groups, grouped_matmul};

use crate::{Activation, activate};

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

/// E feed-forward blocks without biases, each applied to its own rows.
#[derive(Module, Debug)]
pub struct Experts {
    /// Gate projections `[e, d, f]`; none unless the activation is gated.
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

    /// Each group of rows through its expert.
    ///
    /// # Shapes
    /// - `rows_nd`: `[num_rows, d]`, sorted by expert; returns `[num_rows, d]`
    ///
    /// # Panics
    /// If `groups` does not fit the rows or the number of experts.
    pub fn forward(&self, rows_nd: Tensor<2>, groups: &Groups) -> Tensor<2> {
        let gate_nf =
            self.w_gate_edf.as_ref().map(|w_edf| grouped_matmul(rows_nd.clone(), w_edf.val(), groups));
        let up_nf = grouped_matmul(rows_nd, self.w_up_edf.val(), groups);
        grouped_matmul(activate(self.activation, up_nf, gate_nf), self.w_down_efd.val(), groups)
    }
}

//! Feed-forward blocks: one dense block for every token, or a mixture of experts.
//!
//! Both are one operation. A mixture gathers each expert's tokens, multiplies, and adds the
//! results, weighted by their gates, in the order of the token's slots; a dense block is the same
//! with one group that holds every token. So one expert that gets every token with gate 1 is the
//! dense block bit for bit.
//!
//! Shape letters: t tokens, k slots per token, n packed rows, e experts, d model width, f hidden
//! width of one block.

mod autodiff;
mod cpu;
mod stock;
#[cfg(test)]
mod tests;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::{DispatchTensor, Tensor};
use switchyard_kernels_cpu::dispatch::DispatchPlan;
use switchyard_kernels_cpu::feed_forward::{Block, Operands, Parts};

pub use switchyard_kernels_cpu::feed_forward::FfnOptions;

pub use switchyard_kernels_cpu::activation::Activation;

use crate::tensor_list::TensorList;

/// Matrices of a dense block.
#[derive(Debug, Clone)]
pub struct DenseMatrices {
    /// Gate projection `[d, f]`, exactly for gated activations.
    pub w_gate_df: Option<Tensor<2>>,
    /// Up projection `[d, f]`.
    pub w_up_df: Tensor<2>,
    /// Down projection `[f, d]`.
    pub w_down_fd: Tensor<2>,
    /// Biases; all or none.
    pub biases: Option<DenseBiases>,
}

/// Biases of a dense block.
#[derive(Debug, Clone)]
pub struct DenseBiases {
    /// Bias of the gate projection `[f]`, exactly for gated activations.
    pub b_gate_f: Option<Tensor<1>>,
    /// Bias of the up projection `[f]`.
    pub b_up_f: Tensor<1>,
    /// Bias of the down projection `[d]`.
    pub b_down_d: Tensor<1>,
}

/// Stacked matrices of the experts.
#[derive(Debug, Clone)]
pub struct ExpertMatrices {
    /// Gate projections `[e, d, f]`, exactly for gated activations.
    pub w_gate_edf: Option<Tensor<3>>,
    /// Up projections `[e, d, f]`.
    pub w_up_edf: Tensor<3>,
    /// Down projections `[e, f, d]`.
    pub w_down_efd: Tensor<3>,
    /// Biases; all or none.
    pub biases: Option<ExpertBiases>,
}

/// Stacked biases of the experts.
#[derive(Debug, Clone)]
pub struct ExpertBiases {
    /// Biases of the gate projections `[e, f]`, exactly for gated activations.
    pub b_gate_ef: Option<Tensor<2>>,
    /// Biases of the up projections `[e, f]`.
    pub b_up_ef: Tensor<2>,
    /// Biases of the down projections `[e, d]`; a slot's gate weighs them too.
    pub b_down_ed: Tensor<2>,
}

/// `activation(x W_gate + b_gate, x W_up + b_up) W_down + b_down` of every token. The projections
/// are kept for the backward pass unless `options` say otherwise.
///
/// # Shapes
/// - `x_td`: `[num_tokens, d]`; returns `[num_tokens, d]`
///
/// # Panics
/// If the shapes do not fit each other, or a gate projection is missing or superfluous for
/// `activation`.
pub fn dense_ffn(
    x_td: Tensor<2>,
    matrices: DenseMatrices,
    activation: Activation,
    options: FfnOptions,
) -> Tensor<2> {
    let DenseMatrices { w_gate_df, w_up_df, w_down_fd, biases } = matrices;
    let ([_, d], [_, f]) = (x_td.dims(), w_up_df.dims());
    assert!(
        w_up_df.dims() == [d, f]
            && w_down_fd.dims() == [f, d]
            && w_gate_df.as_ref().is_none_or(|w_df| w_df.dims() == [d, f]),
        "tokens {:?} do not fit matrices {:?} and {:?}",
        x_td.dims(),
        w_up_df.dims(),
        w_down_fd.dims(),
    );
    let biased = biases.is_some();
    let (b_up, b_down, b_gate) =
        biases.map_or((None, None, None), |b| (Some(b.b_up_f), Some(b.b_down_d), b.b_gate_f));
    let parts = Parts { gated: w_gate_df.is_some(), routed: false, biased };
    assert_gated(activation, parts.gated && (!biased || b_gate.is_some()));
    let operands = Operands {
        x: x_td.into_dispatch(),
        up: w_up_df.into_dispatch(),
        down: w_down_fd.into_dispatch(),
        gate: w_gate_df.map(Tensor::into_dispatch),
        gates: None,
        up_bias: b_up.map(Tensor::into_dispatch),
        down_bias: b_down.map(Tensor::into_dispatch),
        gate_bias: b_gate.map(Tensor::into_dispatch),
    };
    let block = Block { activation, parts, plan: None, options };
    Tensor::from_dispatch(Dispatch::feed_forward(TensorList::from_vec(operands.into_vec()), block))
}

/// Sum over each token's slots of gate times the slot's expert, in slot order; a slot without a row
/// adds nothing and its gate gets no gradient. Work and memory are proportional to the rows; an
/// expert without rows costs nothing but the zeros of its gradient.
///
/// # Shapes
/// - `x_td`: `[num_tokens, d]`; `gates_tk`: `[num_tokens, top_k]` of the same float type; returns
///   `[num_tokens, d]`
///
/// # Panics
/// If the shapes do not fit each other or `plan`, or gate projections are missing or superfluous
/// for `activation`.
pub fn expert_ffn(
    x_td: Tensor<2>,
    gates_tk: Tensor<2>,
    matrices: ExpertMatrices,
    activation: Activation,
    plan: &DispatchPlan,
    options: FfnOptions,
) -> Tensor<2> {
    assert_plan_fits(plan, matrices.num_experts(), x_td.dims()[0], gates_tk.dims());
    let (operands, parts) = mixture_operands(x_td, gates_tk, matrices, activation);
    let block = Block { activation, parts, plan: Some(plan.clone()), options };
    Tensor::from_dispatch(Dispatch::feed_forward(TensorList::from_vec(operands.into_vec()), block))
}

impl ExpertMatrices {
    /// How many experts there are.
    pub fn num_experts(&self) -> usize {
        self.w_up_edf.dims()[0]
    }
}

/// The operands of a mixture that fit each other.
///
/// # Panics
/// If the shapes do not fit each other, or gate projections are missing or superfluous for
/// `activation`.
pub(crate) fn mixture_operands(
    x_td: Tensor<2>,
    gates_tk: Tensor<2>,
    matrices: ExpertMatrices,
    activation: Activation,
) -> (Operands<DispatchTensor>, Parts) {
    let ExpertMatrices { w_gate_edf, w_up_edf, w_down_efd, biases } = matrices;
    let ([_, d], [e, _, f]) = (x_td.dims(), w_up_edf.dims());
    assert!(
        w_up_edf.dims() == [e, d, f]
            && w_down_efd.dims() == [e, f, d]
            && w_gate_edf.as_ref().is_none_or(|w_edf| w_edf.dims() == [e, d, f]),
        "tokens {:?} do not fit matrices {:?} and {:?}",
        x_td.dims(),
        w_up_edf.dims(),
        w_down_efd.dims(),
    );
    let biased = biases.is_some();
    let (b_up, b_down, b_gate) =
        biases.map_or((None, None, None), |b| (Some(b.b_up_ef), Some(b.b_down_ed), b.b_gate_ef));
    for (bias, width) in [(&b_up, f), (&b_down, d), (&b_gate, f)] {
        let dims = bias.as_ref().map_or([e, width], Tensor::dims);
        assert!(dims == [e, width], "biases {dims:?} of {e} experts and width {width}");
    }
    let parts = Parts { gated: w_gate_edf.is_some(), routed: true, biased };
    assert_gated(activation, parts.gated && (!biased || b_gate.is_some()));
    let operands = Operands {
        x: x_td.into_dispatch(),
        up: w_up_edf.into_dispatch(),
        down: w_down_efd.into_dispatch(),
        gate: w_gate_edf.map(Tensor::into_dispatch),
        gates: Some(gates_tk.into_dispatch()),
        up_bias: b_up.map(Tensor::into_dispatch),
        down_bias: b_down.map(Tensor::into_dispatch),
        gate_bias: b_gate.map(Tensor::into_dispatch),
    };
    (operands, parts)
}

/// # Panics
/// If `plan` is not one of `num_experts` experts and so many tokens and gates.
pub(crate) fn assert_plan_fits(plan: &DispatchPlan, num_experts: usize, t: usize, gates_tk: [usize; 2]) {
    let DispatchPlan { groups, slots } = plan;
    assert!(
        groups.num_groups() == num_experts
            && groups.num_rows() == slots.num_rows()
            && slots.num_tokens() == t
            && gates_tk == [t, slots.top_k()],
        "{t} tokens with gates {gates_tk:?} and {num_experts} experts do not fit {} rows in {} groups and {} rows \
         of {} tokens with {} slots each",
        groups.num_rows(),
        groups.num_groups(),
        slots.num_rows(),
        slots.num_tokens(),
        slots.top_k(),
    );
}

/// Elements that one thread holds of its own in [`dense_ffn`] and [`expert_ffn`] on the CPU: the
/// hidden values of a tile of rows.
pub fn ffn_elements_per_thread(d_hidden: usize) -> usize {
    switchyard_kernels_cpu::feed_forward::MAX_TILE_ROWS.saturating_mul(d_hidden)
}

fn assert_gated(activation: Activation, gated: bool) {
    assert!(gated == activation.is_gated(), "{activation:?} with a gate projection = {gated}");
}

/// The operation and its gradients on one backend. Tensors in the order of [`Operands::into_vec`].
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait FeedForward: Backend {
    /// The block's output, `[t, d]`.
    fn feed_forward(#[extension_type] operands: TensorList<Self>, block: Block) -> FloatTensor<Self> {
        Self::feed_forward_keeping_projections(operands, block).0
    }

    /// The block's output, `[t, d]`, and the up and gate projections of all rows, each `[n, f]`,
    /// which nobody but [`FeedForward::feed_forward_gradients`] reads: they may be of any type.
    fn feed_forward_keeping_projections(
        #[extension_type] operands: TensorList<Self>,
        block: Block,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        stock::forward::<Self>(operands.into_vec(), &block)
    }

    /// Gradients of all operands, from that of the output, `[t, d]`.
    fn feed_forward_gradients(
        #[extension_type] operands: TensorList<Self>,
        #[extension_type] projections: TensorList<Self>,
        dy_td: FloatTensor<Self>,
        block: Block,
    ) -> Vec<FloatTensor<Self>> {
        stock::gradients::<Self>(operands.into_vec(), projections.into_vec(), dy_td, &block)
    }
}

#[cfg(feature = "cube")]
impl FeedForward for burn_cubecl::CubeBackend {}

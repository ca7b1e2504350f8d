//! Feed-forward blocks: one dense block for every token, or a mixture of experts.
//!
//! Both are one operation. A mixture gathers each expert's tokens, multiplies, and adds the results, weighted by their
//! gates, in the order of the token's slots; a dense block is the same with one group that holds every token. So one
//! expert that gets every token with gate 1 is the dense block bit for bit.
//!
//! Shape letters: t tokens, k slots per token, n packed rows, e experts, d model width, f hidden width of one block.

mod fused;
mod operands;
mod stock;

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    flex::FlexTensor,
    tensor::FloatTensor,
};
use burn::tensor::Tensor;

use crate::activation::Activation;
use crate::dispatch::{DispatchPlan, Groups};
use crate::row_tiles::MAX_TILE_ROWS;
use crate::slices::all_f32;
use crate::tensor_list::TensorList;
use operands::{Operands, Parts};

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
}

/// `activation(x W_gate + b_gate, x W_up + b_up) W_down + b_down` of every token.
///
/// # Shapes
/// - `x_td`: `[num_tokens, d]`; returns `[num_tokens, d]`
///
/// # Panics
/// If the shapes do not fit each other, or a gate projection is missing or superfluous for `activation`.
pub fn dense_ffn(x_td: Tensor<2>, matrices: DenseMatrices, activation: Activation) -> Tensor<2> {
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
    let block = Block { activation, parts, plan: None };
    Tensor::from_dispatch(Dispatch::feed_forward(TensorList::from_vec(operands.into_vec()), block))
}

/// Sum over each token's slots of gate times the slot's expert, in slot order; a slot without a row adds nothing and
/// its gate gets no gradient. Work and memory are proportional to the rows; an expert without rows costs nothing but the
/// zeros of its gradient.
///
/// # Shapes
/// - `x_td`: `[num_tokens, d]`; `gates_tk`: `[num_tokens, top_k]` of the same float type; returns `[num_tokens, d]`
///
/// # Panics
/// If the shapes do not fit each other or `plan`, or gate projections are missing or superfluous for
/// `activation`.
pub fn expert_ffn(
    x_td: Tensor<2>,
    gates_tk: Tensor<2>,
    matrices: ExpertMatrices,
    activation: Activation,
    plan: &DispatchPlan,
) -> Tensor<2> {
    let ExpertMatrices { w_gate_edf, w_up_edf, w_down_efd } = matrices;
    let ([t, d], [e, _, f]) = (x_td.dims(), w_up_edf.dims());
    let DispatchPlan { groups, slots } = plan;
    assert!(
        w_up_edf.dims() == [e, d, f]
            && w_down_efd.dims() == [e, f, d]
            && w_gate_edf.as_ref().is_none_or(|w_edf| w_edf.dims() == [e, d, f]),
        "tokens {:?} do not fit matrices {:?} and {:?}",
        x_td.dims(),
        w_up_edf.dims(),
        w_down_efd.dims(),
    );
    assert!(
        groups.num_groups() == e
            && groups.num_rows() == slots.num_rows()
            && slots.num_tokens() == t
            && gates_tk.dims() == [t, slots.top_k()],
        "{t} tokens with gates {:?} and {e} experts do not fit {} rows in {} groups and {} rows of {} tokens with {} \
         slots each",
        gates_tk.dims(),
        groups.num_rows(),
        groups.num_groups(),
        slots.num_rows(),
        slots.num_tokens(),
        slots.top_k(),
    );
    let parts = Parts { gated: w_gate_edf.is_some(), routed: true, biased: false };
    assert_gated(activation, parts.gated);
    let operands = Operands {
        x: x_td.into_dispatch(),
        up: w_up_edf.into_dispatch(),
        down: w_down_efd.into_dispatch(),
        gate: w_gate_edf.map(Tensor::into_dispatch),
        gates: Some(gates_tk.into_dispatch()),
        up_bias: None,
        down_bias: None,
        gate_bias: None,
    };
    let block = Block { activation, parts, plan: Some(plan.clone()) };
    Tensor::from_dispatch(Dispatch::feed_forward(TensorList::from_vec(operands.into_vec()), block))
}

/// Elements that one thread holds of its own in [`dense_ffn`] and [`expert_ffn`] on the CPU: the hidden values of a tile of
/// rows.
pub fn ffn_elements_per_thread(d_hidden: usize) -> usize {
    MAX_TILE_ROWS.saturating_mul(d_hidden)
}

fn assert_gated(activation: Activation, gated: bool) {
    assert!(gated == activation.is_gated(), "{activation:?} with a gate projection = {gated}");
}

/// What the operation does, besides its tensors.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    activation: Activation,
    parts: Parts,
    /// None for a dense block.
    plan: Option<DispatchPlan>,
}

impl Block {
    /// The rows of each group: those of `num_tokens` tokens for a dense block.
    fn groups(&self, num_tokens: usize) -> Groups {
        match &self.plan {
            Some(plan) => plan.groups.clone(),
            None => Groups::new([0, num_tokens]),
        }
    }
}

/// The operation and its gradients on one backend. Tensors in the order of [`Operands::into_vec`].
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait FeedForward: Backend {
    /// The block's output, `[t, d]`.
    fn feed_forward(#[extension_type] operands: TensorList<Self>, block: Block) -> FloatTensor<Self> {
        Self::feed_forward_keeping_projections(operands, block).0
    }

    /// The block's output, `[t, d]`, and the up and gate projections of all rows, each `[n, f]`.
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

impl FeedForward for Flex {
    fn feed_forward_keeping_projections(
        operands: TensorList<Flex>,
        block: Block,
    ) -> (FlexTensor, Vec<FlexTensor>) {
        let operands = operands.into_vec();
        if !all_f32(&operands.iter().collect::<Vec<_>>()) {
            return stock::forward::<Flex>(operands, &block);
        }
        fused::forward(Operands::from_vec(operands, block.parts), &block)
    }

    fn feed_forward_gradients(
        operands: TensorList<Flex>,
        projections: TensorList<Flex>,
        dy_td: FlexTensor,
        block: Block,
    ) -> Vec<FlexTensor> {
        let (operands, projections) = (operands.into_vec(), projections.into_vec());
        if !all_f32(&operands.iter().chain([&dy_td]).collect::<Vec<_>>()) {
            return stock::gradients::<Flex>(operands, projections, dy_td, &block);
        }
        fused::gradients(Operands::from_vec(operands, block.parts), projections, dy_td, &block).into_vec()
    }
}

#[cfg(feature = "cube")]
impl FeedForward for burn_cubecl::CubeBackend {}

impl<B: FeedForward, C: CheckpointStrategy> FeedForward for Autodiff<B, C> {
    fn feed_forward(operands: TensorList<Self>, block: Block) -> FloatTensor<Self> {
        // A node has a fixed number of parents: three tensors, and gate projections, gates and biases as they come.
        let operands = operands.into_vec();
        match operands.len() {
            3 => tracked::<B, C, 3>(operands, block),
            4 => tracked::<B, C, 4>(operands, block),
            5 => tracked::<B, C, 5>(operands, block),
            7 => tracked::<B, C, 7>(operands, block),
            num_operands => unreachable!("{num_operands} operands with {:?}", block.parts),
        }
    }
}

fn tracked<B: FeedForward, C: CheckpointStrategy, const N: usize>(
    operands: Vec<FloatTensor<Autodiff<B, C>>>,
    block: Block,
) -> FloatTensor<Autodiff<B, C>> {
    let inner = |operands: Vec<FloatTensor<Autodiff<B, C>>>| {
        TensorList::from_vec(operands.into_iter().map(|operand| operand.into_primitive()).collect())
    };
    let nodes = std::array::from_fn::<_, N, _>(|i| operands[i].node());
    match FeedForwardBackward.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prepared) => {
            let ids = operands.iter().map(|operand| prepared.checkpoint(operand)).collect();
            let (y_td, projections) = B::feed_forward_keeping_projections(inner(operands), block.clone());
            prepared.finish(SavedForBlock { operands: ids, projections, block }, y_td)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(B::feed_forward(inner(operands), block)),
    }
}

#[derive(Debug)]
struct FeedForwardBackward;

/// What the backward pass reads again. The hidden values are not kept but made again.
#[derive(Debug, Clone)]
struct SavedForBlock<B: Backend> {
    operands: Vec<NodeId>,
    projections: Vec<FloatTensor<B>>,
    block: Block,
}

impl<B: FeedForward, const N: usize> Backward<B, N> for FeedForwardBackward {
    type State = SavedForBlock<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_td = grads.consume::<B>(&ops.node);
        let SavedForBlock { operands, projections, block } = ops.state;
        let operands =
            operands.into_iter().map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id)).collect();
        let gradients = B::feed_forward_gradients(
            TensorList::from_vec(operands),
            TensorList::from_vec(projections),
            dy_td,
            block,
        );
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

//! Feed-forward blocks under autodiff.

use burn::backend::{
    Autodiff, Backend,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};
use switchyard_kernels_cpu::feed_forward::Block;

use super::FeedForward;
use crate::tensor_list::TensorList;

impl<B: FeedForward, C: CheckpointStrategy> FeedForward for Autodiff<B, C> {
    fn feed_forward(operands: TensorList<Self>, block: Block) -> FloatTensor<Self> {
        // A node has a fixed number of parents: three tensors, and gate projections, gates and
        // biases as they come.
        let operands = operands.into_vec();
        match operands.len() {
            3 => tracked::<B, C, 3>(operands, block),
            4 => tracked::<B, C, 4>(operands, block),
            5 => tracked::<B, C, 5>(operands, block),
            6 => tracked::<B, C, 6>(operands, block),
            8 => tracked::<B, C, 8>(operands, block),
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
            let (y_td, projections) = match block.options.recompute {
                true => (B::feed_forward(inner(operands), block.clone()), Vec::new()),
                false => B::feed_forward_keeping_projections(inner(operands), block.clone()),
            };
            prepared.finish(SavedForBlock { operands: ids, projections, block }, y_td)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(B::feed_forward(inner(operands), block)),
    }
}

#[derive(Debug)]
struct FeedForwardBackward;

/// What the backward pass reads again. The hidden values are not kept but made again, and the
/// projections too if the block says so.
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
        let operands: Vec<_> =
            operands.into_iter().map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id)).collect();
        let projections = match block.options.recompute {
            true => {
                let operands = TensorList::from_vec(operands.clone());
                B::feed_forward_keeping_projections(operands, block.clone()).1
            }
            false => projections,
        };
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

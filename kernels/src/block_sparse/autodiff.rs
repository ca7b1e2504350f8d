//! Products with blocks under autodiff.

use burn::backend::{
    Autodiff,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::{BlockTopology, ProjectByBlocks};

impl<B: ProjectByBlocks, C: CheckpointStrategy> ProjectByBlocks for Autodiff<B, C> {
    fn project_by_blocks(
        x_td: FloatTensor<Self>,
        blocks_nbb: FloatTensor<Self>,
        topology: BlockTopology,
    ) -> FloatTensor<Self> {
        let nodes = [x_td.node(), blocks_nbb.node()];
        match BlockSparseBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = SavedInputs {
                    x_td: blocks_nbb.is_tracked().then(|| prepared.checkpoint(&x_td)),
                    blocks_nbb: x_td.is_tracked().then(|| prepared.checkpoint(&blocks_nbb)),
                    topology: topology.clone(),
                };
                let [x_td, blocks_nbb] = [x_td, blocks_nbb].map(|tensor| tensor.into_primitive());
                prepared.finish(state, B::project_by_blocks(x_td, blocks_nbb, topology))
            }
            OpsKind::UnTracked(prepared) => {
                let [x_td, blocks_nbb] = [x_td, blocks_nbb].map(|tensor| tensor.into_primitive());
                prepared.finish(B::project_by_blocks(x_td, blocks_nbb, topology))
            }
        }
    }
}

#[derive(Debug)]
struct BlockSparseBackward;

/// What the backward pass reads again: each input only if the other one has a gradient.
#[derive(Debug, Clone)]
struct SavedInputs {
    x_td: Option<NodeId>,
    blocks_nbb: Option<NodeId>,
    topology: BlockTopology,
}

impl<B: ProjectByBlocks> Backward<B, 2> for BlockSparseBackward {
    type State = SavedInputs;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_tf = grads.consume::<B>(&ops.node);
        let SavedInputs { x_td, blocks_nbb, topology } = ops.state;
        let x_td = x_td.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let blocks_nbb = blocks_nbb.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let [x_node, blocks_node] = ops.parents;
        if let (Some(node), Some(blocks_nbb)) = (x_node, blocks_nbb) {
            let dx_td = B::project_by_blocks_input_gradient(dy_tf.clone(), blocks_nbb, topology.clone());
            grads.register::<B>(node.id, dx_td);
        }
        if let (Some(node), Some(x_td)) = (blocks_node, x_td) {
            grads.register::<B>(node.id, B::project_by_blocks_weight_gradient(x_td, dy_tf, topology));
        }
    }
}

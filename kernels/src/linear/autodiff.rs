//! Projections under autodiff.

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

use switchyard_kernels_cpu::bf16::Compute;

use super::Project;

impl<B: Project, C: CheckpointStrategy> Project for Autodiff<B, C> {
    fn project(x_td: FloatTensor<Self>, w_df: FloatTensor<Self>, compute: Compute) -> FloatTensor<Self> {
        match LinearBackward.prepare::<C>([x_td.node(), w_df.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = SavedInputs {
                    x_td: w_df.is_tracked().then(|| prepared.checkpoint(&x_td)),
                    w_df: x_td.is_tracked().then(|| prepared.checkpoint(&w_df)),
                    compute,
                };
                prepared.finish(state, B::project(x_td.into_primitive(), w_df.into_primitive(), compute))
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::project(x_td.into_primitive(), w_df.into_primitive(), compute))
            }
        }
    }

    fn project_with_bias(
        x_td: FloatTensor<Self>,
        w_df: FloatTensor<Self>,
        b_f: FloatTensor<Self>,
        compute: Compute,
    ) -> FloatTensor<Self> {
        let nodes = [x_td.node(), w_df.node(), b_f.node()];
        match LinearBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = SavedInputs {
                    x_td: w_df.is_tracked().then(|| prepared.checkpoint(&x_td)),
                    w_df: x_td.is_tracked().then(|| prepared.checkpoint(&w_df)),
                    compute,
                };
                let [x_td, w_df, b_f] = [x_td, w_df, b_f].map(|tensor| tensor.into_primitive());
                prepared.finish(state, B::project_with_bias(x_td, w_df, b_f, compute))
            }
            OpsKind::UnTracked(prepared) => {
                let [x_td, w_df, b_f] = [x_td, w_df, b_f].map(|tensor| tensor.into_primitive());
                prepared.finish(B::project_with_bias(x_td, w_df, b_f, compute))
            }
        }
    }
}

#[derive(Debug)]
struct LinearBackward;

/// What the backward pass reads again, each input only if the other one has a gradient.
#[derive(Debug, Clone)]
struct SavedInputs {
    x_td: Option<NodeId>,
    w_df: Option<NodeId>,
    compute: Compute,
}

/// With two parents, or three with a bias.
impl<B: Project, const N: usize> Backward<B, N> for LinearBackward {
    type State = SavedInputs;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_tf = grads.consume::<B>(&ops.node);
        let SavedInputs { x_td, w_df, compute } = ops.state;
        let x_td = x_td.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let w_df = w_df.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let mut nodes = ops.parents.into_iter();
        let [x_node, w_node, b_node] = [(); 3].map(|()| nodes.next().flatten());
        if let (Some(node), Some(w_df)) = (x_node, w_df) {
            grads.register::<B>(node.id, B::project_input_gradient(dy_tf.clone(), w_df, compute));
        }
        if let (Some(node), Some(x_td)) = (w_node, x_td) {
            grads.register::<B>(node.id, B::project_weight_gradient(x_td, dy_tf.clone(), compute));
        }
        if let Some(node) = b_node {
            grads.register::<B>(node.id, B::project_bias_gradient(dy_tf));
        }
    }
}

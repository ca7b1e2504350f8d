//! Norms under autodiff.

use burn::backend::{
    Autodiff,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, NodeGuard, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::{Norm, NormalizeRows};

impl<B: NormalizeRows, C: CheckpointStrategy> NormalizeRows for Autodiff<B, C> {
    fn normalize_rows(x_nd: FloatTensor<Self>, scale_d: FloatTensor<Self>, norm: Norm) -> FloatTensor<Self> {
        track_rows::<B, C, 2>([x_nd.node(), scale_d.node()], x_nd, scale_d, norm, |x_nd, scale_d| {
            B::normalize_rows(x_nd, scale_d, norm)
        })
    }

    fn normalize_rows_with_bias(
        x_nd: FloatTensor<Self>,
        scale_d: FloatTensor<Self>,
        bias_d: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let nodes = [x_nd.node(), scale_d.node(), bias_d.node()];
        track_rows::<B, C, 3>(nodes, x_nd, scale_d, norm, |x_nd, scale_d| {
            B::normalize_rows_with_bias(x_nd, scale_d, bias_d.into_primitive(), norm)
        })
    }
}

/// The operation `forward` with `N` parents: two, and the bias if there is one.
fn track_rows<B: NormalizeRows, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    x_nd: FloatTensor<Autodiff<B, C>>,
    scale_d: FloatTensor<Autodiff<B, C>>,
    norm: Norm,
    forward: impl FnOnce(FloatTensor<B>, FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match Backward::<B, N>::prepare::<C>(NormalizeRowsBackward, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prepared) => {
            let state =
                SavedRows { x_nd: prepared.checkpoint(&x_nd), scale_d: prepared.checkpoint(&scale_d), norm };
            prepared.finish(state, forward(x_nd.into_primitive(), scale_d.into_primitive()))
        }
        OpsKind::UnTracked(prepared) => {
            prepared.finish(forward(x_nd.into_primitive(), scale_d.into_primitive()))
        }
    }
}

#[derive(Debug)]
struct NormalizeRowsBackward;

/// What the backward pass reads again; it recomputes each row's mean and deviation.
#[derive(Debug, Clone)]
struct SavedRows {
    x_nd: NodeId,
    scale_d: NodeId,
    norm: Norm,
}

impl<B: NormalizeRows, const N: usize> Backward<B, N> for NormalizeRowsBackward {
    type State = SavedRows;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_nd = grads.consume::<B>(&ops.node);
        let mut parents = ops.parents.into_iter();
        let [x_node, scale_node, bias_node] = std::array::from_fn(|_| parents.next().flatten());
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, B::sum_rows(dy_nd.clone()));
        }
        let SavedRows { x_nd, scale_d, norm } = ops.state;
        let x_nd = checkpointer.retrieve_node_output::<FloatTensor<B>>(x_nd);
        let scale_d = checkpointer.retrieve_node_output::<FloatTensor<B>>(scale_d);
        let (dx_nd, dscale_d) = B::normalize_rows_gradients(x_nd, scale_d, dy_nd, norm);
        if let Some(node) = x_node {
            grads.register::<B>(node.id, dx_nd);
        }
        if let Some(node) = scale_node {
            grads.register::<B>(node.id, dscale_d);
        }
    }
}

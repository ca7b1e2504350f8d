//! Gates and losses under autodiff.

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
use switchyard_kernels_cpu::routing::RouterLoss;

use super::{Choice, Route};

impl<B: Route, C: CheckpointStrategy> Route for Autodiff<B, C> {
    fn top_k_gates(logits_te: FloatTensor<Self>, choice: Choice) -> FloatTensor<Self> {
        match GatesBackward.prepare::<C>([logits_te.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let id = prepared.checkpoint(&logits_te);
                let gates_tk = B::top_k_gates(logits_te.into_primitive(), choice.clone());
                prepared.finish((id, gates_tk.clone(), choice), gates_tk)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::top_k_gates(logits_te.into_primitive(), choice))
            }
        }
    }

    fn router_loss(logits_te: FloatTensor<Self>, loss: RouterLoss) -> FloatTensor<Self> {
        match RouterLossBackward.prepare::<C>([logits_te.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = (prepared.checkpoint(&logits_te), loss.clone());
                prepared.finish(state, B::router_loss(logits_te.into_primitive(), loss))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::router_loss(logits_te.into_primitive(), loss)),
        }
    }
}

#[derive(Debug)]
struct GatesBackward;

impl<B: Route> Backward<B, 1> for GatesBackward {
    /// Logits, gates, choice.
    type State = (NodeId, FloatTensor<B>, Choice);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dgates_tk = grads.consume::<B>(&ops.node);
        let (id, gates_tk, choice) = ops.state;
        let logits_te = checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let [node] = ops.parents;
        if let Some(node) = node {
            let dlogits_te = B::top_k_gates_gradient(logits_te, gates_tk, dgates_tk, choice);
            grads.register::<B>(node.id, dlogits_te);
        }
    }
}

#[derive(Debug)]
struct RouterLossBackward;

impl<B: Route> Backward<B, 1> for RouterLossBackward {
    type State = (NodeId, RouterLoss);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dloss_1 = grads.consume::<B>(&ops.node);
        let (id, loss) = ops.state;
        let logits_te = checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let [node] = ops.parents;
        if let Some(node) = node {
            grads.register::<B>(node.id, B::router_loss_gradient(logits_te, dloss_1, loss));
        }
    }
}

//! The loss under autodiff: the forward pass computes the gradients, which the backward pass
//! scales.

use burn::backend::{
    Autodiff, Backend,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::{FloatTensor, IntTensor},
};

use super::{HeadLossOp, HeadLossOptions, Losses};

impl<B: HeadLossOp, C: CheckpointStrategy> HeadLossOp for Autodiff<B, C> {
    fn head_loss(
        x_td: FloatTensor<Self>,
        w_dv: FloatTensor<Self>,
        target_ids_t: IntTensor<Self>,
        options: HeadLossOptions,
    ) -> Losses<Self> {
        let prepared = HeadLossBackward.prepare::<C>([x_td.node(), w_dv.node()]).compute_bound().stateful();
        let (x_td, w_dv) = (x_td.into_primitive(), w_dv.into_primitive());
        let (losses, total_1) = match prepared {
            OpsKind::Tracked(prepared) => {
                let (losses, dx_td, dw_dv) = B::head_loss_and_gradients(x_td, w_dv, target_ids_t, options);
                let total_1 = prepared.finish(UnitGradients { dx_td, dw_dv }, losses.total_1.clone());
                (losses, total_1)
            }
            OpsKind::UnTracked(prepared) => {
                let losses = B::head_loss(x_td, w_dv, target_ids_t, options);
                let total_1 = prepared.finish(losses.total_1.clone());
                (losses, total_1)
            }
        };
        let untracked = FloatTensor::<Self>::new;
        Losses {
            total_1,
            cross_entropy_1: untracked(losses.cross_entropy_1),
            square_1: untracked(losses.square_1),
        }
    }
}

#[derive(Debug)]
struct HeadLossBackward;

/// Gradients of the inputs where that of the loss is one.
#[derive(Debug, Clone)]
struct UnitGradients<B: Backend> {
    dx_td: FloatTensor<B>,
    dw_dv: FloatTensor<B>,
}

impl<B: HeadLossOp> Backward<B, 2> for HeadLossBackward {
    type State = UnitGradients<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dloss_1 = grads.consume::<B>(&ops.node);
        let UnitGradients { dx_td, dw_dv } = ops.state;
        let [x_node, w_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::scaled_gradient(dx_td, dloss_1.clone()));
        }
        if let Some(node) = w_node {
            grads.register::<B>(node.id, B::scaled_gradient(dw_dv, dloss_1));
        }
    }
}

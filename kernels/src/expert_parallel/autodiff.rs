//! Mixtures over ranks under autodiff.

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

use super::{Call, ExpertParallelFfn};
use crate::tensor_list::TensorList;

impl<B: ExpertParallelFfn, C: CheckpointStrategy> ExpertParallelFfn for Autodiff<B, C> {
    fn expert_parallel_ffn(
        x_td: FloatTensor<Self>,
        gates_tk: FloatTensor<Self>,
        matrices: TensorList<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        let nodes = [x_td.node(), gates_tk.node()];
        let matrices: Vec<_> =
            matrices.into_vec().into_iter().map(|matrix| matrix.into_primitive()).collect();
        match ExpertParallelBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let gates_id = prepared.checkpoint(&gates_tk);
                let (y_td, kept) = B::expert_parallel_ffn_keeping_rows(
                    x_td.into_primitive(),
                    gates_tk.into_primitive(),
                    TensorList::from_vec(matrices.clone()),
                    call.clone(),
                );
                prepared.finish(SavedForRows { gates_id, matrices, kept, call }, y_td)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::expert_parallel_ffn(
                x_td.into_primitive(),
                gates_tk.into_primitive(),
                TensorList::from_vec(matrices),
                call,
            )),
        }
    }
}

#[derive(Debug)]
struct ExpertParallelBackward;

/// What the backward pass reads again. The matrices are no parents: their gradients go another way.
#[derive(Debug, Clone)]
struct SavedForRows<B: Backend> {
    gates_id: NodeId,
    matrices: Vec<FloatTensor<B>>,
    kept: Vec<FloatTensor<B>>,
    call: Call,
}

impl<B: ExpertParallelFfn> Backward<B, 2> for ExpertParallelBackward {
    type State = SavedForRows<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_td = grads.consume::<B>(&ops.node);
        let SavedForRows { gates_id, matrices, kept, call } = ops.state;
        let (dx_td, dgates_tk) = B::expert_parallel_ffn_gradients(
            checkpointer.retrieve_node_output::<FloatTensor<B>>(gates_id),
            TensorList::from_vec(matrices),
            TensorList::from_vec(kept),
            dy_td,
            call,
        );
        for (node, gradient) in ops.parents.into_iter().zip([dx_td, dgates_tk]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

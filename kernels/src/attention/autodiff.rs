//! Attention under autodiff: the backward pass recomputes the weights from inputs and results.

use burn::backend::{
    Autodiff, Backend,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::{FloatTensor, IntTensor},
};

use super::{CausalAttention, Heads, SavedForAttention};
use crate::tensor_list::TensorList;

impl<B: CausalAttention, C: CheckpointStrategy> CausalAttention for Autodiff<B, C> {
    fn causal_attention(
        inputs: TensorList<Self>,
        segment_ids_bs: IntTensor<Self>,
        heads: Heads,
    ) -> FloatTensor<Self> {
        let mut inputs = inputs.into_vec();
        // The tables are constants.
        let tables: Vec<_> = inputs.split_off(3).into_iter().map(|table| table.into_primitive()).collect();
        let nodes = [inputs[0].node(), inputs[1].node(), inputs[2].node()];
        let inner = |inputs: Vec<FloatTensor<Self>>| {
            let inputs = inputs.into_iter().map(|input| input.into_primitive());
            TensorList::from_vec(inputs.chain(tables.clone()).collect())
        };
        match AttentionBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let ids = inputs.iter().map(|input| prepared.checkpoint(input)).collect();
                let (y_tq, log_partition_bhs) =
                    B::causal_attention_and_partition(inner(inputs), segment_ids_bs.clone(), heads);
                let state = SavedIds {
                    inputs: ids,
                    tables,
                    segment_ids_bs,
                    y_tq: y_tq.clone(),
                    log_partition_bhs,
                    heads,
                };
                prepared.finish(state, y_tq)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::causal_attention(inner(inputs), segment_ids_bs, heads))
            }
        }
    }
}

#[derive(Debug)]
struct AttentionBackward;

/// [`SavedForAttention`], the inputs as nodes.
#[derive(Debug, Clone)]
struct SavedIds<B: Backend> {
    inputs: Vec<NodeId>,
    tables: Vec<FloatTensor<B>>,
    segment_ids_bs: IntTensor<B>,
    y_tq: FloatTensor<B>,
    log_partition_bhs: FloatTensor<B>,
    heads: Heads,
}

impl<B: CausalAttention> Backward<B, 3> for AttentionBackward {
    type State = SavedIds<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_tq = grads.consume::<B>(&ops.node);
        let SavedIds { inputs, tables, segment_ids_bs, y_tq, log_partition_bhs, heads } = ops.state;
        let inputs = inputs.into_iter().map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let inputs = TensorList::from_vec(inputs.chain(tables).collect());
        let saved = SavedForAttention { y_tq, log_partition_bhs, segment_ids_bs, inputs };
        let (dq_tq, dk_tg, dv_tg) = B::causal_attention_gradients(saved, dy_tq, heads);
        for (node, gradient) in ops.parents.into_iter().zip([dq_tq, dk_tg, dv_tg]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

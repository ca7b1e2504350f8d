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

use super::{Call, CausalAttention, SavedForAttention};
use crate::tensor_list::TensorList;

impl<B: CausalAttention, C: CheckpointStrategy> CausalAttention for Autodiff<B, C> {
    fn causal_attention(
        inputs: TensorList<Self>,
        segment_ids_bs: IntTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        // A node has a fixed number of parents.
        match call.parts.sinks {
            false => tracked::<B, C, 3>(inputs.into_vec(), segment_ids_bs, call),
            true => tracked::<B, C, 4>(inputs.into_vec(), segment_ids_bs, call),
        }
    }
}

/// The operation on `inputs`, of which the first N have gradients: the tables are constants.
fn tracked<B: CausalAttention, C: CheckpointStrategy, const N: usize>(
    mut inputs: Vec<FloatTensor<Autodiff<B, C>>>,
    segment_ids_bs: IntTensor<B>,
    call: Call,
) -> FloatTensor<Autodiff<B, C>> {
    let tables: Vec<_> = inputs.split_off(N).into_iter().map(|table| table.into_primitive()).collect();
    let nodes = std::array::from_fn::<_, N, _>(|i| inputs[i].node());
    let inner = |inputs: Vec<FloatTensor<Autodiff<B, C>>>| {
        let inputs = inputs.into_iter().map(|input| input.into_primitive());
        TensorList::from_vec(inputs.chain(tables.clone()).collect())
    };
    match AttentionBackward.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prepared) => {
            let ids = inputs.iter().map(|input| prepared.checkpoint(input)).collect();
            let (y_tq, log_partition_bhs) =
                B::causal_attention_and_partition(inner(inputs), segment_ids_bs.clone(), call);
            let state =
                SavedIds { inputs: ids, tables, segment_ids_bs, y_tq: y_tq.clone(), log_partition_bhs, call };
            prepared.finish(state, y_tq)
        }
        OpsKind::UnTracked(prepared) => {
            prepared.finish(B::causal_attention(inner(inputs), segment_ids_bs, call))
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
    call: Call,
}

impl<B: CausalAttention, const N: usize> Backward<B, N> for AttentionBackward {
    type State = SavedIds<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_tq = grads.consume::<B>(&ops.node);
        let SavedIds { inputs, tables, segment_ids_bs, y_tq, log_partition_bhs, call } = ops.state;
        let inputs = inputs.into_iter().map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let inputs = TensorList::from_vec(inputs.chain(tables).collect());
        let saved = SavedForAttention { y_tq, log_partition_bhs, segment_ids_bs, inputs };
        let gradients = B::causal_attention_gradients(saved, dy_tq, call);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

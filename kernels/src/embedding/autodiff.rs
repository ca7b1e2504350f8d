//! Rows of a table under autodiff.

use burn::backend::{
    Autodiff, Backend, TensorMetadata,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::{FloatTensor, IntTensor},
};

use super::Embed;

impl<B: Embed, C: CheckpointStrategy> Embed for Autodiff<B, C> {
    fn embed(table_vd: FloatTensor<Self>, ids_t: IntTensor<Self>) -> FloatTensor<Self> {
        match EmbeddingBackward.prepare::<C>([table_vd.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let table_vd = table_vd.into_primitive();
                let state = SavedIds { ids_t: ids_t.clone(), vocab_size: table_vd.shape()[0] };
                prepared.finish(state, B::embed(table_vd, ids_t))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::embed(table_vd.into_primitive(), ids_t)),
        }
    }
}

#[derive(Debug)]
struct EmbeddingBackward;

/// What the backward pass reads again.
#[derive(Debug, Clone)]
struct SavedIds<B: Backend> {
    ids_t: IntTensor<B>,
    vocab_size: usize,
}

impl<B: Embed> Backward<B, 1> for EmbeddingBackward {
    type State = SavedIds<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy_td = grads.consume::<B>(&ops.node);
        let SavedIds { ids_t, vocab_size } = ops.state;
        let [table_node] = ops.parents;
        if let Some(node) = table_node {
            grads.register::<B>(node.id, B::embed_gradient(ids_t, dy_td, vocab_size));
        }
    }
}

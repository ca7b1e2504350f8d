//! The largest logits under autodiff.

use burn::backend::{
    Autodiff,
    autodiff::checkpoint::strategy::CheckpointStrategy,
    tensor::{FloatTensor, IntTensor},
};

use super::{Heads, MaxLogits};
use crate::tensor_list::TensorList;

/// They are no part of any graph: they are computed from the inner tensors.
impl<B: MaxLogits, C: CheckpointStrategy> MaxLogits for Autodiff<B, C> {
    fn max_logits(
        inputs: TensorList<Self>,
        segment_ids_bs: IntTensor<Self>,
        heads: Heads,
    ) -> FloatTensor<Self> {
        let inner = inputs.into_vec().into_iter().map(FloatTensor::<Self>::into_primitive).collect();
        FloatTensor::<Self>::new(B::max_logits(TensorList::from_vec(inner), segment_ids_bs, heads))
    }
}

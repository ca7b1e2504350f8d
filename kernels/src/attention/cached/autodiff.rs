//! Kept keys and values under autodiff.

use burn::backend::{Autodiff, autodiff::checkpoint::strategy::CheckpointStrategy, tensor::FloatTensor};

use super::{AppendCall, CachedAttention, CachedCall};
use crate::tensor_list::TensorList;

/// Part of no graph: what is kept has no gradient.
impl<B: CachedAttention, C: CheckpointStrategy> CachedAttention for Autodiff<B, C> {
    fn append_to_cache(
        keys_gdc: FloatTensor<Self>,
        values_gcv: FloatTensor<Self>,
        rows: TensorList<Self>,
        call: AppendCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [keys, values] = [keys_gdc, values_gcv].map(|tensor| tensor.into_primitive());
        let (keys, values) = B::append_to_cache(keys, values, inner(rows), call);
        (FloatTensor::<Self>::new(keys), FloatTensor::<Self>::new(values))
    }

    fn cached_attention(inputs: TensorList<Self>, call: CachedCall) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::cached_attention(inner(inputs), call))
    }
}

fn inner<B: CachedAttention, C: CheckpointStrategy>(tensors: TensorList<Autodiff<B, C>>) -> TensorList<B> {
    TensorList::from_vec(tensors.into_vec().into_iter().map(|tensor| tensor.into_primitive()).collect())
}

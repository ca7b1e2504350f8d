//! The update under autodiff.

use burn::backend::{Autodiff, autodiff::checkpoint::strategy::CheckpointStrategy, tensor::FloatTensor};

use super::{AdamW, AdamWStep};

/// The update is no part of any graph: it is made on the inner tensors.
impl<B: AdamW, C: CheckpointStrategy> AdamW for Autodiff<B, C> {
    fn adamw(
        value_n: FloatTensor<Self>,
        moment1_n: FloatTensor<Self>,
        moment2_n: FloatTensor<Self>,
        gradient_n: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (value_n, moment1_n, moment2_n) = B::adamw(
            value_n.into_primitive(),
            moment1_n.into_primitive(),
            moment2_n.into_primitive(),
            gradient_n.into_primitive(),
            step,
        );
        let untracked = FloatTensor::<Self>::new;
        (untracked(value_n), untracked(moment1_n), untracked(moment2_n))
    }
}

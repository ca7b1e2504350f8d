//! The update under autodiff.

use burn::backend::{Autodiff, autodiff::checkpoint::strategy::CheckpointStrategy, tensor::FloatTensor};

use super::{Muon, MuonStep};

/// The update is no part of any graph: it is made on the inner tensors.
impl<B: Muon, C: CheckpointStrategy> Muon for Autodiff<B, C> {
    fn muon(
        value_n: FloatTensor<Self>,
        momentum_n: FloatTensor<Self>,
        gradient_n: FloatTensor<Self>,
        shape: [usize; 3],
        step: MuonStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (value_n, momentum_n) = B::muon(
            value_n.into_primitive(),
            momentum_n.into_primitive(),
            gradient_n.into_primitive(),
            shape,
            step,
        );
        (FloatTensor::<Self>::new(value_n), FloatTensor::<Self>::new(momentum_n))
    }
}

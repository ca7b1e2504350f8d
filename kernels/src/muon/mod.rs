//! One Muon update.

mod autodiff;
mod cpu;
mod stock;
#[cfg(test)]
mod tests;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

pub use switchyard_kernels_cpu::muon::MuonStep;

/// A flattened stack of matrices with its momentum.
#[derive(Debug, Clone)]
pub struct MuonState {
    /// The parameter's values.
    pub value_n: Tensor<1>,
    /// Decaying sum of the gradients.
    pub momentum_n: Tensor<1>,
}

/// The stack of matrices `[matrices, rows, columns]` and its momentum after one update with
/// `gradient_n`, each matrix on its own: the momentum, made orthogonal by Newton-Schulz iterations
/// and as large as an update of AdamW (arXiv:2502.16982, eq. 1 and 4; the decay is multiplied by the
/// learning rate, as AdamW's). Nothing is differentiated: the results do not remember how they were
/// made.
///
/// # Panics
/// If the lengths differ, or are not those of the stack.
pub fn muon_update(state: MuonState, gradient_n: Tensor<1>, shape: [usize; 3], step: &MuonStep) -> MuonState {
    let MuonState { value_n, momentum_n } = state;
    let lengths = [&value_n, &momentum_n, &gradient_n].map(|tensor| tensor.dims()[0]);
    assert!(
        lengths.iter().all(|length| *length == shape.iter().product::<usize>()),
        "value, momentum and gradient of {shape:?} have the lengths {lengths:?}",
    );
    let (value_n, momentum_n) = Dispatch::muon(
        value_n.into_dispatch(),
        momentum_n.into_dispatch(),
        gradient_n.into_dispatch(),
        shape,
        *step,
    );
    MuonState { value_n: Tensor::from_dispatch(value_n), momentum_n: Tensor::from_dispatch(momentum_n) }
}

/// The operation on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait Muon: Backend {
    /// The value and its momentum after the update, each `[n]`.
    fn muon(
        value_n: FloatTensor<Self>,
        momentum_n: FloatTensor<Self>,
        gradient_n: FloatTensor<Self>,
        shape: [usize; 3],
        step: MuonStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        stock::update::<Self>(value_n, momentum_n, gradient_n, shape, step)
    }
}

#[cfg(feature = "cube")]
impl Muon for burn_cubecl::CubeBackend {}

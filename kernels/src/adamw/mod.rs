//! One AdamW update.

mod autodiff;
mod cpu;
mod stock;
#[cfg(test)]
mod tests;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

pub use switchyard_kernels_cpu::adamw::AdamWStep;

/// A flattened parameter with its two moments. Both moments are f32, or both are bf16, which only the
/// CPU's device can update.
#[derive(Debug, Clone)]
pub struct AdamWState {
    /// The parameter's values.
    pub value_n: Tensor<1>,
    /// Running mean of the gradient.
    pub moment1_n: Tensor<1>,
    /// Running mean of the squared gradient.
    pub moment2_n: Tensor<1>,
}

/// The parameter and its moments after one update with `gradient_n` (arXiv:1711.05101, algorithm 2;
/// the decay is multiplied by the learning rate, as in PyTorch). Nothing is differentiated: the
/// results do not remember how they were made.
///
/// The CPU's bf16 moments are rounded at random by [`AdamWStep::rounding_key`]; the arithmetic is f32.
///
/// # Panics
/// If the lengths differ, or on another device than the CPU with moments of another type than the
/// value's.
pub fn adamw_update(state: AdamWState, gradient_n: Tensor<1>, step: &AdamWStep) -> AdamWState {
    let AdamWState { value_n, moment1_n, moment2_n } = state;
    let lengths = [&value_n, &moment1_n, &moment2_n, &gradient_n].map(|tensor| tensor.dims()[0]);
    assert!(
        lengths.iter().all(|length| *length == lengths[0]),
        "value, moments and gradient have the lengths {lengths:?}",
    );
    let (value_n, moment1_n, moment2_n) = Dispatch::adamw(
        value_n.into_dispatch(),
        moment1_n.into_dispatch(),
        moment2_n.into_dispatch(),
        gradient_n.into_dispatch(),
        *step,
    );
    AdamWState {
        value_n: Tensor::from_dispatch(value_n),
        moment1_n: Tensor::from_dispatch(moment1_n),
        moment2_n: Tensor::from_dispatch(moment2_n),
    }
}

/// The operation on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait AdamW: Backend {
    /// The value and its first and second moment after the update, each `[n]`.
    fn adamw(
        value_n: FloatTensor<Self>,
        moment1_n: FloatTensor<Self>,
        moment2_n: FloatTensor<Self>,
        gradient_n: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        stock::update::<Self>(value_n, moment1_n, moment2_n, gradient_n, step)
    }
}

#[cfg(feature = "cube")]
impl AdamW for burn_cubecl::CubeBackend {}

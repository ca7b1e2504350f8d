//! The one activation function of dense blocks and experts.

use burn::tensor::{Tensor, activation::relu};
use switchyard_kernels::{gelu, gelu_tanh, swiglu};

use crate::Activation;

/// Hidden activations of a feed-forward block from its up projection and, if gated, its gate projection.
///
/// # Shapes
/// - `up_nf`, `gate_nf`: `[rows, f]`; returns `[rows, f]`
///
/// # Panics
/// If a gate projection is missing or superfluous for `activation`.
pub fn activate(activation: Activation, up_nf: Tensor<2>, gate_nf: Option<Tensor<2>>) -> Tensor<2> {
    match (activation, gate_nf) {
        (Activation::Swiglu, Some(gate_nf)) => swiglu(up_nf, gate_nf),
        (Activation::Gelu, None) => gelu(up_nf),
        (Activation::GeluTanh, None) => gelu_tanh(up_nf),
        (Activation::Relu, None) => relu(up_nf),
        (_, gate_nf) => panic!("{activation:?} cannot be computed with gate = {}", gate_nf.is_some()),
    }
}

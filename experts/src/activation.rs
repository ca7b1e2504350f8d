//! The one activation function of dense blocks and experts.

use burn::tensor::{
    Tensor,
    activation::{gelu, relu, silu},
};

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
        (Activation::Swiglu, Some(gate_nf)) => silu(gate_nf) * up_nf,
        (Activation::Gelu, None) => gelu(up_nf),
        (Activation::GeluTanh, None) => gelu_tanh(up_nf),
        (Activation::Relu, None) => relu(up_nf),
        (_, gate_nf) => panic!("{activation:?} cannot be computed with gate = {}", gate_nf.is_some()),
    }
}

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` (arXiv:1606.08415, section 2).
fn gelu_tanh(x_nf: Tensor<2>) -> Tensor<2> {
    let sqrt_2_over_pi = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
    // Products, not `powf`: a power of a negative base is undefined in some shading languages.
    let inner_nf = x_nf.clone() * (x_nf.clone().square() * 0.044715 + 1.0) * sqrt_2_over_pi;
    x_nf * (inner_nf.tanh() + 1.0) * 0.5
}

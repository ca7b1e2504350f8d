//! The update as stock tensor operations, for every backend.

use burn::backend::{Backend, tensor::FloatTensor};
use switchyard_kernels_cpu::adamw::{AdamWStep, Factors};

/// The default body of [`super::AdamW::adamw`].
pub(super) fn update<B: Backend>(
    value_n: FloatTensor<B>,
    moment1_n: FloatTensor<B>,
    moment2_n: FloatTensor<B>,
    gradient_n: FloatTensor<B>,
    step: AdamWStep,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let factors = Factors::new(&step);
    let scaled = |tensor: FloatTensor<B>, factor: f64| B::float_mul_scalar(tensor, factor.into());
    let gradient_n = scaled(gradient_n, factors.gradient_scale);
    let square_n = B::float_mul(gradient_n.clone(), gradient_n.clone());
    let moment1_n = B::float_add(scaled(moment1_n, factors.keep1), scaled(gradient_n, factors.add1));
    let moment2_n = B::float_add(scaled(moment2_n, factors.keep2), scaled(square_n, factors.add2));
    let root_n = scaled(B::float_sqrt(moment2_n.clone()), factors.root_correction);
    let denominator_n = B::float_add_scalar(root_n, factors.epsilon.into());
    let update_n = B::float_div(scaled(moment1_n.clone(), factors.rate), denominator_n);
    (B::float_sub(scaled(value_n, factors.decay), update_n), moment1_n, moment2_n)
}

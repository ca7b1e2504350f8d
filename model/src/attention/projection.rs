//! A linear map of attention, and the norm of what it gives.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use switchyard_kernels::{Compute, linear, rms_norm};

use crate::ParameterSource;

/// A projection `x W + b`.
#[derive(Module, Debug)]
pub(super) struct Projection {
    weight_io: Param<Tensor<2>>,
    bias_o: Option<Param<Tensor<1>>>,
}

impl Projection {
    pub(super) fn new(key: &str, shape: [usize; 2], std: f64, bias: bool, source: &ParameterSource) -> Self {
        Self {
            weight_io: Param::from_tensor(source.normal(key, shape, std)),
            bias_o: bias.then(|| Param::from_tensor(source.zeros(shape[1]))),
        }
    }

    pub(super) fn forward(&self, x_ti: Tensor<2>, compute: Compute) -> Tensor<2> {
        linear(x_ti, self.weight_io.val(), self.bias_o.as_ref().map(Param::val), compute)
    }
}

/// Each row, in pieces as wide as the scale, RMS-normalised.
pub(super) fn normalise(x_to: Tensor<2>, scale_k: Tensor<1>, epsilon: f64) -> Tensor<2> {
    let ([t, width], [piece]) = (x_to.dims(), scale_k.dims());
    let pieces = x_to.reshape([t * width / piece, piece]);
    rms_norm(pieces, scale_k, epsilon).reshape([t, width])
}

//! Normalisation over the last dimension, in one pass forward and one backward.
//!
//! Shape letters: n rows, d width.

mod autodiff;
mod cpu;
mod stock;
#[cfg(test)]
mod tests;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

/// `x / sqrt(mean(x^2) + epsilon) * scale`, row by row (arXiv:1910.07467, eq. 4).
///
/// # Shapes
/// - `x_nd`: `[rows, width]`; `scale_d`: `[width]`; returns `[rows, width]`
///
/// # Panics
/// If the widths differ.
pub fn rms_norm(x_nd: Tensor<2>, scale_d: Tensor<1>, epsilon: f64) -> Tensor<2> {
    normalize(x_nd, scale_d, None, Norm { centre: Centre::Zero, epsilon })
}

/// `(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias`, row by row (arXiv:1607.06450, eq. 3);
/// the variance is the biased one.
///
/// # Shapes
/// - `x_nd`: `[rows, width]`; `scale_d`, `bias_d`: `[width]`; returns `[rows, width]`
///
/// # Panics
/// If the widths differ.
pub fn layer_norm(x_nd: Tensor<2>, scale_d: Tensor<1>, bias_d: Option<Tensor<1>>, epsilon: f64) -> Tensor<2> {
    normalize(x_nd, scale_d, bias_d, Norm { centre: Centre::Mean, epsilon })
}

fn normalize(x_nd: Tensor<2>, scale_d: Tensor<1>, bias_d: Option<Tensor<1>>, norm: Norm) -> Tensor<2> {
    let ([_, width], [scale_width]) = (x_nd.dims(), scale_d.dims());
    let bias_width = bias_d.as_ref().map_or(width, |bias_d| bias_d.dims()[0]);
    assert!(
        width == scale_width && width == bias_width,
        "rows of width {width} do not fit a scale of width {scale_width} and a bias of width {bias_width}",
    );
    let (x_nd, scale_d) = (x_nd.into_dispatch(), scale_d.into_dispatch());
    Tensor::from_dispatch(match bias_d {
        Some(bias_d) => Dispatch::normalize_rows_with_bias(x_nd, scale_d, bias_d.into_dispatch(), norm),
        None => Dispatch::normalize_rows(x_nd, scale_d, norm),
    })
}

/// How a row is normalised.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm {
    centre: Centre,
    epsilon: f64,
}

/// From where a row's deviation is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Centre {
    Zero,
    Mean,
}

/// The operation and its gradients on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait NormalizeRows: Backend {
    /// The rows of `x_nd` normalised and scaled: `[n, d]`.
    fn normalize_rows(x_nd: FloatTensor<Self>, scale_d: FloatTensor<Self>, norm: Norm) -> FloatTensor<Self> {
        stock::normalize::<Self>(x_nd, scale_d, None, norm)
    }

    /// The rows of `x_nd` normalised, scaled and shifted: `[n, d]`.
    fn normalize_rows_with_bias(
        x_nd: FloatTensor<Self>,
        scale_d: FloatTensor<Self>,
        bias_d: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        stock::normalize::<Self>(x_nd, scale_d, Some(bias_d), norm)
    }

    /// Gradients of `x_nd`, `[n, d]`, and of `scale_d`, `[d]`.
    fn normalize_rows_gradients(
        x_nd: FloatTensor<Self>,
        scale_d: FloatTensor<Self>,
        dy_nd: FloatTensor<Self>,
        norm: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        stock::gradients::<Self>(x_nd, scale_d, dy_nd, norm)
    }

    /// Gradient of the bias, the sum of the rows of `dy_nd`: `[d]`.
    fn sum_rows(dy_nd: FloatTensor<Self>) -> FloatTensor<Self> {
        stock::sum_rows::<Self>(dy_nd)
    }
}

#[cfg(feature = "cube")]
impl NormalizeRows for burn_cubecl::CubeBackend {}

//! Normalisation over the last dimension.

use burn::tensor::Tensor;

/// `x / sqrt(mean(x^2) + epsilon) * scale`, row by row (arXiv:1910.07467, eq. 4).
///
/// # Shapes
/// - `x_nd`: `[rows, width]`; `scale_d`: `[width]`; returns `[rows, width]`
pub fn rms_norm(x_nd: Tensor<2>, scale_d: Tensor<1>, epsilon: f64) -> Tensor<2> {
    let mean_square_n1 = x_nd.clone().square().mean_dim(1);
    x_nd * mean_square_n1.add_scalar(epsilon).sqrt().recip() * scale_d.unsqueeze()
}

/// `(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias`, row by row (arXiv:1607.06450, eq. 3); the variance is
/// the biased one.
///
/// # Shapes
/// - `x_nd`: `[rows, width]`; `scale_d`, `bias_d`: `[width]`; returns `[rows, width]`
pub fn layer_norm(x_nd: Tensor<2>, scale_d: Tensor<1>, bias_d: Option<Tensor<1>>, epsilon: f64) -> Tensor<2> {
    let centred_nd = x_nd.clone() - x_nd.mean_dim(1);
    let variance_n1 = centred_nd.clone().square().mean_dim(1);
    let scaled_nd = centred_nd * variance_n1.add_scalar(epsilon).sqrt().recip() * scale_d.unsqueeze();
    match bias_d {
        Some(bias_d) => scaled_nd + bias_d.unsqueeze(),
        None => scaled_nd,
    }
}

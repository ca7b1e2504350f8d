//! Norms as stock tensor operations, for every backend.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use burn::tensor::Shape;

use super::{Centre, Norm};

/// The default body of [`super::NormalizeRows::normalize_rows`].
pub(super) fn normalize<B: Backend>(
    x_nd: FloatTensor<B>,
    scale_d: FloatTensor<B>,
    bias_d: Option<FloatTensor<B>>,
    norm: Norm,
) -> FloatTensor<B> {
    let (normalized_nd, _) = normalized::<B>(x_nd, norm);
    let scaled_nd = B::float_mul(normalized_nd, as_row::<B>(scale_d));
    match bias_d {
        Some(bias_d) => B::float_add(scaled_nd, as_row::<B>(bias_d)),
        None => scaled_nd,
    }
}

/// The default body of [`super::NormalizeRows::normalize_rows_gradients`].
pub(super) fn gradients<B: Backend>(
    x_nd: FloatTensor<B>,
    scale_d: FloatTensor<B>,
    dy_nd: FloatTensor<B>,
    norm: Norm,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (normalized_nd, inverse_n1) = normalized::<B>(x_nd, norm);
    let dscale_d = sum_rows::<B>(B::float_mul(dy_nd.clone(), normalized_nd.clone()));
    let gradient_nd = B::float_mul(dy_nd, as_row::<B>(scale_d));
    let along_n1 = B::float_mean_dim(B::float_mul(gradient_nd.clone(), normalized_nd.clone()), 1);
    let across_nd = B::float_sub(gradient_nd.clone(), B::float_mul(normalized_nd, along_n1));
    let across_nd = match norm.centre {
        Centre::Zero => across_nd,
        Centre::Mean => B::float_sub(across_nd, B::float_mean_dim(gradient_nd, 1)),
    };
    (B::float_mul(across_nd, inverse_n1), dscale_d)
}

/// The rows before scaling, `[n, d]`, and one over each row's deviation, `[n, 1]`.
fn normalized<B: Backend>(x_nd: FloatTensor<B>, norm: Norm) -> (FloatTensor<B>, FloatTensor<B>) {
    let centred_nd = match norm.centre {
        Centre::Zero => x_nd,
        Centre::Mean => B::float_sub(x_nd.clone(), B::float_mean_dim(x_nd, 1)),
    };
    let mean_square_n1 = B::float_mean_dim(B::float_mul(centred_nd.clone(), centred_nd.clone()), 1);
    let deviation_n1 = B::float_sqrt(B::float_add_scalar(mean_square_n1, norm.epsilon.into()));
    let inverse_n1 = B::float_recip(deviation_n1);
    (B::float_mul(centred_nd, inverse_n1.clone()), inverse_n1)
}

/// The default body of [`super::NormalizeRows::sum_rows`].
pub(super) fn sum_rows<B: Backend>(x_nd: FloatTensor<B>) -> FloatTensor<B> {
    let width = x_nd.shape()[1];
    B::float_reshape(B::float_sum_dim(x_nd, 0), Shape::new([width]))
}

fn as_row<B: Backend>(x_d: FloatTensor<B>) -> FloatTensor<B> {
    let width = x_d.shape()[0];
    B::float_reshape(x_d, Shape::new([1, width]))
}

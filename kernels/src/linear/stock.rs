//! Projections with a bias as stock tensor operations, for every backend.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use burn::tensor::Shape;

/// The default body of [`super::Project::project_with_bias`].
pub(super) fn project_with_bias<B: Backend>(
    x_td: FloatTensor<B>,
    w_df: FloatTensor<B>,
    b_f: FloatTensor<B>,
) -> FloatTensor<B> {
    let b_1f = B::float_reshape(b_f, Shape::new([1, w_df.shape()[1]]));
    B::float_add(B::float_matmul(x_td, w_df), b_1f)
}

/// The default body of [`super::Project::project_bias_gradient`].
pub(super) fn bias_gradient<B: Backend>(dy_tf: FloatTensor<B>) -> FloatTensor<B> {
    let width = dy_tf.shape()[1];
    B::float_reshape(B::float_sum_dim(dy_tf, 0), Shape::new([width]))
}

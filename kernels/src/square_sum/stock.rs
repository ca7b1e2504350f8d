//! Sums of squares as stock tensor operations, for every backend.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use burn::tensor::Shape;

/// The default body of [`super::SquareSums::square_sums`]: one part per row.
pub(super) fn square_sums<B: Backend>(x_n: FloatTensor<B>, num_rows: usize) -> FloatTensor<B> {
    let row_len = x_n.shape().num_elements() / num_rows;
    let x_rn = B::float_reshape(x_n, Shape::new([num_rows, row_len]));
    let sums_r1 = B::float_sum_dim(B::float_mul(x_rn.clone(), x_rn), 1);
    B::float_reshape(sums_r1, Shape::new([num_rows]))
}

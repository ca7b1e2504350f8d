//! Sums of squares under autodiff.

use burn::backend::{Autodiff, autodiff::checkpoint::strategy::CheckpointStrategy, tensor::FloatTensor};

use super::SquareSums;

/// The sum is no part of any graph: it is made on the inner tensor.
impl<B: SquareSums, C: CheckpointStrategy> SquareSums for Autodiff<B, C> {
    fn square_sums(x_n: FloatTensor<Self>, num_rows: usize) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::square_sums(x_n.into_primitive(), num_rows))
    }
}

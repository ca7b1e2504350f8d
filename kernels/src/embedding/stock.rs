//! The gradient as stock tensor operations, for every backend.

use burn::backend::{
    Backend, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{IndexingUpdateOp, Shape};

/// The default body of [`super::Embed::embed_gradient`].
pub(super) fn gradient<B: Backend>(
    ids_t: IntTensor<B>,
    dy_td: FloatTensor<B>,
    vocab_size: usize,
) -> FloatTensor<B> {
    let shape_vd = Shape::new([vocab_size, dy_td.shape()[1]]);
    let zeros_vd = B::float_zeros(shape_vd, &dy_td.device(), dy_td.dtype().into());
    B::float_select_assign(zeros_vd, 0, ids_t, dy_td, IndexingUpdateOp::Add)
}

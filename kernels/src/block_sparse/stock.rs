//! The default bodies, of stock operations: a product per block.

use std::ops::Range;

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use burn::tensor::{Shape, Slice};

use switchyard_kernels_cpu::block_sparse::{BlockTopology, Direction};

/// `x W`, or `x W^T`.
pub(super) fn product<B: Backend>(
    x_td: FloatTensor<B>,
    blocks_nbb: FloatTensor<B>,
    topology: &BlockTopology,
    direction: Direction,
) -> FloatTensor<B> {
    let (t, b) = (x_td.shape()[0], topology.block());
    let block_of = |index: usize| {
        let w_1bb = B::float_slice(blocks_nbb.clone(), &[Slice::from(index..index + 1)]);
        let w_bb = B::float_reshape(w_1bb, Shape::new([b, b]));
        match direction {
            Direction::Forward => w_bb,
            Direction::Backward => B::float_transpose(w_bb),
        }
    };
    let [input, output] = direction.axes();
    let sum_of = |line: usize| {
        let products = direction.line(topology, line).into_iter().map(|index| {
            B::float_matmul(take_columns::<B>(&x_td, topology.span(index, input)), block_of(index))
        });
        products
            .reduce(B::float_add)
            .unwrap_or_else(|| B::float_zeros(Shape::new([t, b]), &x_td.device(), x_td.dtype().into()))
    };
    B::float_cat((0..topology.shape()[output]).map(sum_of).collect(), 1)
}

/// Per block, its part of `x^T dy`.
pub(super) fn weight_gradient<B: Backend>(
    x_td: FloatTensor<B>,
    dy_tf: FloatTensor<B>,
    topology: &BlockTopology,
) -> FloatTensor<B> {
    let b = topology.block();
    let gradient_of = |index: usize| {
        let x_tb = take_columns::<B>(&x_td, topology.span(index, 0));
        let dy_tb = take_columns::<B>(&dy_tf, topology.span(index, 1));
        if x_td.shape()[0] == 0 {
            return B::float_zeros(Shape::new([1, b, b]), &x_td.device(), x_td.dtype().into());
        }
        B::float_reshape(B::float_matmul(B::float_transpose(x_tb), dy_tb), Shape::new([1, b, b]))
    };
    B::float_cat((0..topology.num_blocks()).map(gradient_of).collect(), 0)
}

fn take_columns<B: Backend>(x_td: &FloatTensor<B>, columns: Range<usize>) -> FloatTensor<B> {
    let rows = 0..x_td.shape()[0];
    B::float_slice(x_td.clone(), &[Slice::from(rows), Slice::from(columns)])
}

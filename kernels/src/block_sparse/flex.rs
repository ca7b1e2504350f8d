//! The bodies on the CPU: one task per tile of rows and output block, and one per block's gradient.

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use super::{BlockTopology, Direction};
use crate::dispatch::Groups;
use crate::matrix::{Matrix, MatrixMut, Unwritten, add_multiplied, multiply};
use crate::row_tiles::RowTile;
use crate::slices::{contiguous, elements, from_elements};

/// `x W`, or `x W^T`. Each output block of a tile is summed by one task in the topology's order.
pub(super) fn product(
    x: FlexTensor,
    blocks_nbb: FlexTensor,
    topology: &BlockTopology,
    direction: Direction,
) -> FlexTensor {
    let (x, blocks_nbb, b) = (contiguous(x), contiguous(blocks_nbb), topology.block());
    let [input, output] = direction.axes();
    let (t, width) = (x.shape()[0], topology.shape()[output] * b);
    let transposed;
    let blocks = match direction {
        Direction::Forward => elements(&blocks_nbb),
        Direction::Backward => {
            transposed = transposed_blocks(elements(&blocks_nbb), b);
            &transposed[..]
        }
    };
    let x = matrix(&x);
    let tiles = RowTile::of(&Groups::new([0, t]));
    let mut y = vec![0.0; t * width];
    let parts = RowTile::cut(&tiles, &mut y, width);
    let tasks: Vec<_> = tiles
        .iter()
        .zip(parts)
        .flat_map(|(tile, part)| {
            let columns = MatrixMut::row_major(part, width).into_blocks(tile.rows.len(), b);
            columns.into_iter().enumerate().map(|(line, y)| (x.rows(tile.rows.clone()), line, y))
        })
        .collect();
    tasks.into_par_iter().for_each(|(x, line, mut y)| {
        for index in direction.line(topology, line) {
            let block = Matrix::row_major(&blocks[index * b * b..][..b * b], b);
            add_multiplied(y.reborrow(), x.columns(topology.span(index, input)), block);
        }
    });
    from_elements(y, Shape::new([t, width]))
}

/// Per block, its part of `x^T dy`.
pub(super) fn weight_gradient(x_td: FlexTensor, dy_tf: FlexTensor, topology: &BlockTopology) -> FlexTensor {
    let (x_td, dy_tf, b) = (contiguous(x_td), contiguous(dy_tf), topology.block());
    let shape = Shape::new([topology.num_blocks(), b, b]);
    if x_td.shape()[0] == 0 {
        return from_elements(vec![0.0; shape.num_elements()], shape);
    }
    let (x, dy) = (matrix(&x_td), matrix(&dy_tf));
    let mut gradient = Unwritten::new(shape.num_elements());
    gradient.as_mut_slice().par_chunks_mut(b * b).enumerate().for_each(|(index, target)| {
        let (x, dy) = (x.columns(topology.span(index, 0)), dy.columns(topology.span(index, 1)));
        multiply(MatrixMut::uninit(target, b), x.transposed(), dy);
    });
    // SAFETY: each block is one chunk, and its product writes all of it.
    from_elements(unsafe { gradient.written() }, shape)
}

/// A contiguous matrix.
fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let shape = tensor.shape();
    Matrix::strided(elements(tensor), [shape[0], shape[1]], [shape[1], 1])
}

/// Each block of side `b` transposed: a product that reads its factor the other way would do it once per tile.
fn transposed_blocks(blocks: &[f32], b: usize) -> Vec<f32> {
    let mut transposed = vec![0.0; blocks.len()];
    transposed.par_chunks_mut(b * b).zip(blocks.par_chunks(b * b)).for_each(|(target, source)| {
        for (place, value) in target.iter_mut().enumerate() {
            *value = source[place % b * b + place / b];
        }
    });
    transposed
}

//! Products with a matrix that has only some blocks: one task per tile of rows and output block,
//! and one per block's gradient.
//!
//! Shape letters: t rows, d input width, f output width, n blocks, b side of a block.

mod topology;

use rayon::prelude::*;

use crate::dispatch::Groups;
use crate::matrix::{Matrix, MatrixMut, add_multiplied, fill_with_multiplied};
use crate::row_tiles::RowTile;
use crate::unwritten::Unwritten;

pub use topology::BlockTopology;

/// Which way the blocks are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// `x W`.
    Forward,
    /// `dy W^T`.
    Backward,
}

impl Direction {
    /// Axes of a place along which the input and the output run.
    pub fn axes(self) -> [usize; 2] {
        match self {
            Self::Forward => [0, 1],
            Self::Backward => [1, 0],
        }
    }

    /// The blocks that add up to output block `line`.
    pub fn line(self, topology: &BlockTopology, line: usize) -> Vec<usize> {
        match self {
            Self::Forward => topology.in_column(line).to_vec(),
            Self::Backward => topology.in_row(line).collect(),
        }
    }
}

/// `x W`, or `x W^T`. Each output block of a tile is summed by one task in the topology's order.
///
/// # Panics
/// If the shapes of `x`, `[t, d]` (or `[t, f]` backward), and `blocks`, `[n, b, b]`, do not fit the
/// topology.
pub fn product(x: Matrix<'_>, blocks: &[f32], topology: &BlockTopology, direction: Direction) -> Vec<f32> {
    if x.num_rows() == 1 {
        // The products that this one is made of sum a single row in another order.
        let mut y =
            product(Matrix::row_major(&x.row(0).repeat(2), x.num_columns()), blocks, topology, direction);
        y.truncate(y.len() / 2);
        return y;
    }
    let b = topology.block();
    let [input, output] = direction.axes();
    let (t, width) = (x.num_rows(), topology.shape()[output] * b);
    let transposed;
    let blocks = match direction {
        Direction::Forward => blocks,
        Direction::Backward => {
            transposed = transposed_blocks(blocks, b);
            &transposed[..]
        }
    };
    let tiles = RowTile::of(&Groups::new([0, t]));
    let mut y = vec![0.0; t * width];
    let parts = RowTile::cut(&tiles, &mut y[..], width);
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
    y
}

/// Per block, its part of `x^T dy`: `[n, b, b]`.
///
/// # Panics
/// If the shapes of `x`, `[t, d]`, and `dy`, `[t, f]`, do not fit the topology.
pub fn weight_gradient(x: Matrix<'_>, dy: Matrix<'_>, topology: &BlockTopology) -> Vec<f32> {
    let b = topology.block();
    let len = topology.num_blocks() * b * b;
    if x.num_rows() == 0 {
        return vec![0.0; len];
    }
    let mut gradient = Unwritten::new(len);
    gradient.whole().fill_chunks(b * b, 1, |index, target| {
        let (x, dy) = (x.columns(topology.span(index, 0)), dy.columns(topology.span(index, 1)));
        fill_with_multiplied(target, x.transposed(), dy)
    });
    gradient.into_values()
}

/// Each block of side `b` transposed: a product that reads its factor the other way would do it
/// once per tile.
fn transposed_blocks(blocks: &[f32], b: usize) -> Vec<f32> {
    let mut transposed = vec![0.0; blocks.len()];
    transposed.par_chunks_mut(b * b).zip(blocks.par_chunks(b * b)).for_each(|(target, source)| {
        for (place, value) in target.iter_mut().enumerate() {
            *value = source[place % b * b + place / b];
        }
    });
    transposed
}

//! Linear projections, their factors rounded to `compute`.
//!
//! Shape letters: t rows, d input width, f output width.

use rayon::prelude::*;

use crate::bf16::Compute;
use crate::dispatch::Groups;
use crate::matrix::Matrix;
use crate::panel_product::fill_with_product;
use crate::row_tiles::{RowTile, WeightGradient, add_bias, weight_gradients};
use crate::unwritten::Unwritten;

pub use crate::row_tiles::sum_rows;

/// `x w + bias`, `[t, f]`, tile by tile.
///
/// # Panics
/// If the shapes of `x`, `[t, d]`, `w`, `[d, f]`, and `bias`, `[f]`, do not fit.
pub fn project(x: Matrix<'_>, w: Matrix<'_>, bias: Option<&[f32]>, compute: Compute) -> Vec<f32> {
    let (t, f) = (x.num_rows(), w.num_columns());
    let tiles = RowTile::of(&Groups::new([0, t]));
    let mut y = Unwritten::new(t * f);
    let parts = RowTile::cut(&tiles, y.whole(), f);
    tiles.par_iter().zip(parts).for_each(|(tile, y)| {
        let y = y.fill(|y| fill_with_product(y, x.rows(tile.rows.clone()), w, compute));
        if let Some(bias) = bias {
            add_bias(y, bias);
        }
    });
    y.into_values()
}

/// `x^T dy`, the gradient of the matrix, `[d, f]`.
///
/// # Panics
/// If `x`, `[t, d]`, and `dy`, `[t, f]`, differ in their rows.
pub fn weight_gradient(x: Matrix<'_>, dy: Matrix<'_>, compute: Compute) -> Vec<f32> {
    let groups = Groups::new([0, x.num_rows()]);
    weight_gradients(&[WeightGradient { groups: &groups, x: x.into(), dy: dy.into() }], compute).remove(0)
}

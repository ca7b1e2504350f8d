//! Normalisation over the last dimension, in one pass forward and one backward.
//!
//! Shape letters: n rows, d width.

mod rows;

use rayon::prelude::*;

use crate::blocks::BLOCK_LEN;
use crate::unwritten::{Unwritten, write_zeros};

pub use rows::Measure;

/// The rows of `x`, `[n, d]`, normalised, scaled and shifted: `[n, d]`.
///
/// # Panics
/// If `scale`, `[d]`, is empty.
pub fn normalize(x: &[f32], scale: &[f32], bias: Option<&[f32]>, measure: Measure) -> Vec<f32> {
    let mut y = Unwritten::new(x.len());
    let block_len = whole_rows(scale.len());
    y.whole().fill_chunks(block_len, 1, |block, y| {
        let y = write_zeros(y);
        rows::normalize(y, &x[block * block_len..][..y.len()], scale, bias, measure);
        y
    });
    y.into_values()
}

/// Gradients of `x`, `[n, d]`, and of `scale`, `[d]`, from that of the result, `dy`, `[n, d]`.
///
/// # Panics
/// If `scale` is empty.
pub fn gradients(x: &[f32], scale: &[f32], dy: &[f32], measure: Measure) -> (Vec<f32>, Vec<f32>) {
    let mut dx = Unwritten::new(x.len());
    let block_len = whole_rows(scale.len());
    let mut dscale_of_block = vec![0.0; x.len().div_ceil(block_len) * scale.len()];
    let parts: Vec<_> = dx.whole().chunks(block_len).collect();
    parts
        .into_par_iter()
        .zip(dscale_of_block.par_chunks_mut(scale.len()))
        .zip(x.par_chunks(block_len))
        .zip(dy.par_chunks(block_len))
        .for_each(|(((dx, dscale), x), dy)| {
            let dx = dx.fill(write_zeros);
            rows::gradients(dx, dscale, x, scale, dy, measure);
        });
    let mut dscale = vec![0.0; scale.len()];
    rows::add_rows(&mut dscale, &dscale_of_block);
    (dx.into_values(), dscale)
}

/// The gradient of the bias, `[d]`: the sum of the rows of `dy`, `[n, d]`.
///
/// # Panics
/// If `d` is 0.
pub fn sum_rows(dy: &[f32], d: usize) -> Vec<f32> {
    let block_len = whole_rows(d);
    let mut sum_of_block = vec![0.0; dy.len().div_ceil(block_len) * d];
    sum_of_block
        .par_chunks_mut(d)
        .zip(dy.par_chunks(block_len))
        .for_each(|(sum, dy)| rows::add_rows(sum, dy));
    let mut sum = vec![0.0; d];
    rows::add_rows(&mut sum, &sum_of_block);
    sum
}

/// Elements of one parallel task: about [`BLOCK_LEN`], in whole rows.
fn whole_rows(width: usize) -> usize {
    BLOCK_LEN.div_ceil(width) * width
}

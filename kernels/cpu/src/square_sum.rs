//! Sums of squares, for norms over many parameters.

use rayon::prelude::*;

use crate::blocks::BLOCK_LEN;
use crate::simd::{LANES, vectorised};

/// The sums of the squares of `num_rows` equally long rows that lie one after another in `x`, each
/// in as many parts, to be added in order: the parts of the first row, then those of the next. In
/// f64, so that neither the number of parts nor that of the elements costs precision.
///
/// # Panics
/// If `num_rows` is 0.
pub fn square_sums(x: &[f32], num_rows: usize) -> Vec<f64> {
    let row_len = x.len() / num_rows;
    let parts_per_row = row_len.div_ceil(BLOCK_LEN);
    let sum_of_part = |part: usize| {
        let row = &x[part / parts_per_row * row_len..][..row_len];
        let start = part % parts_per_row * BLOCK_LEN;
        sum_of_squares(&row[start..row_len.min(start + BLOCK_LEN)])
    };
    (0..num_rows * parts_per_row).into_par_iter().map(sum_of_part).collect()
}

vectorised! {
    fn sum_of_squares(x: &[f32]) -> f64 = sum_of_squares_in_lanes;
}

#[inline(always)]
fn sum_of_squares_in_lanes<const FUSED: bool>(x: &[f32]) -> f64 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            // The square of an f32 is exact in f64.
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.into_iter().chain(rest.iter().map(|&x| f64::from(x) * f64::from(x))).sum()
}

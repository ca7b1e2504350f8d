//! The orthogonal factor of a matrix, by Newton-Schulz iterations.
//!
//! Shape letters: s the smaller of rows and columns.

use rayon::prelude::*;

use crate::bf16::Compute;
use crate::matrix::Matrix;
use crate::panel_product::{Triangle, fill_with_product, write_triangular_product};
use crate::simd::{multiply_add, vectorised};
use crate::square_sum::square_sums;
use crate::unwritten::Unwritten;

/// Coefficients of an iteration's quintic `a x + b x^3 + c x^5` (K. Jordan et al., "Muon: an
/// optimizer for hidden layers in neural networks", 2024). The slope at zero is large, so that small
/// singular values grow fast; the price is that they end between 0.7 and 1.2 and not at 1.
pub const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// Added to the norm that the matrix is divided by: one of zeros stays one, and one that is hardly
/// anything else, as the momentum of an expert that no token goes to any more, fades out.
pub const NORM_EPSILON: f64 = 1e-7;

/// Rows of one task of a product: with fewer, bringing its operands into order takes too large a
/// share. A small matrix is one task or two, but stacks have many matrices.
const TASK_ROWS: usize = 128;
/// Side of the blocks in which a matrix is mirrored: those of both sides fit into the cache.
const MIRROR_SIDE: usize = 32;

/// Replaces the matrix `x` of so many rows and columns by `U V^T` of its singular value
/// decomposition `U S V^T`, as near as `num_steps` iterations bring it: `x` over its Frobenius norm,
/// then each time `x = (a + b x x^T + c (x x^T)^2) x`. Where there are more rows than columns, it is
/// the transpose's, transposed.
///
/// # Panics
/// If there are as many elements in no such matrix.
pub(crate) fn orthogonalise(x: &mut [f32], [rows, columns]: [usize; 2], num_steps: usize) {
    assert!(x.len() == rows * columns, "{} elements in {rows} x {columns}", x.len());
    let norm = square_sums(x, 1).into_iter().sum::<f64>().sqrt();
    scale(x, (1.0 / (norm + NORM_EPSILON)) as f32);
    for _ in 0..num_steps {
        let matrix = Matrix::row_major(x, columns);
        let next = if rows <= columns {
            let polynomial_ss = quintic_factor(matrix);
            product(Matrix::row_major(&polynomial_ss, rows), matrix)
        } else {
            let polynomial_ss = quintic_factor(matrix.transposed());
            product(matrix, Matrix::row_major(&polynomial_ss, columns))
        };
        x.copy_from_slice(&next);
    }
}

/// `a + b y + c y^2` of `y = x x^T`: the symmetric matrix `[s, s]` by which an iteration multiplies.
fn quintic_factor(x: Matrix<'_>) -> Vec<f32> {
    let s = x.num_rows();
    let square_ss = symmetric_product(x, x.transposed());
    let square = Matrix::row_major(&square_ss, s);
    let mut factor_ss = symmetric_product(square, square);
    let [a, b, c] = QUINTIC.map(|coefficient| coefficient as f32);
    factor_ss.par_chunks_mut(s).zip(square_ss.par_chunks(s)).enumerate().for_each(
        |(row, (factor, square))| {
            combine(factor, square, [b, c]);
            factor[row] += a;
        },
    );
    factor_ss
}

/// The rows of `a w`.
fn product(a: Matrix<'_>, w: Matrix<'_>) -> Vec<f32> {
    let mut target = Unwritten::new(a.num_rows() * w.num_columns());
    target.whole().fill_chunks(TASK_ROWS * w.num_columns(), 1, |task, target| {
        let first = task * TASK_ROWS;
        fill_with_product(target, a.rows(first..a.num_rows().min(first + TASK_ROWS)), w, Compute::F32)
    });
    target.into_values()
}

/// The rows of `a w`, which is symmetric: what lies right of the diagonal is copied from the other
/// side.
fn symmetric_product(a: Matrix<'_>, w: Matrix<'_>) -> Vec<f32> {
    let s = a.num_rows();
    let mut target = vec![0.0; s * s];
    target.par_chunks_mut(TASK_ROWS * s).enumerate().for_each(|(task, target)| {
        let first = task * TASK_ROWS;
        let rows = a.rows(first..s.min(first + TASK_ROWS));
        write_triangular_product(target, rows, w, Triangle::Product { first }, Compute::F32);
    });
    mirror(&mut target, s);
    target
}

/// Copies what lies left of the diagonal to the other side, block by block.
fn mirror(matrix_ss: &mut [f32], s: usize) {
    let blocks = |end: usize| (0..end).step_by(MIRROR_SIDE);
    for (top, left) in blocks(s).flat_map(|top| blocks(top + 1).map(move |left| (top, left))) {
        for row in top..s.min(top + MIRROR_SIDE) {
            for column in left..row.min(left + MIRROR_SIDE) {
                matrix_ss[column * s + row] = matrix_ss[row * s + column];
            }
        }
    }
}

vectorised! {
    /// `x = factor x`.
    fn scale(x: &mut [f32], factor: f32) = scale_each;
}

#[inline(always)]
fn scale_each<const FUSED: bool>(x: &mut [f32], factor: f32) {
    x.iter_mut().for_each(|x| *x *= factor);
}

vectorised! {
    /// `y = b x + c y`.
    fn combine(y: &mut [f32], x: &[f32], coefficients: [f32; 2]) = combine_each;
}

#[inline(always)]
fn combine_each<const FUSED: bool>(y: &mut [f32], x: &[f32], [b, c]: [f32; 2]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = multiply_add::<FUSED>(c, *y, b * x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers whose products do round.
    fn irregular(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.7).sin()).collect()
    }

    #[test]
    fn a_symmetric_product_is_the_whole_product() {
        for [s, k] in [[1, 3], [31, 70], [TASK_ROWS, 64], [2 * TASK_ROWS + 45, 300]] {
            let elements = irregular(s * k);
            let by_rows = Matrix::row_major(&elements, k);
            assert_eq!(
                symmetric_product(by_rows, by_rows.transposed()),
                product(by_rows, by_rows.transposed()),
                "{s} x {k}"
            );
            let by_columns = Matrix::row_major(&elements, s).transposed();
            assert_eq!(
                symmetric_product(by_columns, by_columns.transposed()),
                product(by_columns, by_columns.transposed()),
                "{s} x {k}, by columns"
            );
        }
    }

    #[test]
    fn a_tall_matrix_becomes_the_transpose_of_what_its_transpose_becomes() {
        let (rows, columns) = (300, 140);
        let mut tall = irregular(rows * columns);
        let mut wide: Vec<f32> =
            (0..rows * columns).map(|at| tall[at % rows * columns + at / rows]).collect();
        orthogonalise(&mut tall, [rows, columns], 5);
        orthogonalise(&mut wide, [columns, rows], 5);
        for (at, wide) in wide.iter().enumerate() {
            let tall = tall[at % rows * columns + at / rows];
            // Both round in f32, in another order, and the iterations multiply a difference by up to
            // 3.4 each time.
            assert!((wide - tall).abs() < 1e-5, "{at}: {wide} is not {tall}");
        }
    }

    #[test]
    fn a_matrix_of_zeros_stays_one() {
        let mut zeros = vec![0.0; 12];
        orthogonalise(&mut zeros, [3, 4], 5);
        assert_eq!(zeros, [0.0; 12]);
    }

    #[test]
    #[should_panic(expected = "5 elements in 2 x 3")]
    fn another_number_of_elements_is_refused() {
        orthogonalise(&mut [0.0; 5], [2, 3], 1);
    }
}

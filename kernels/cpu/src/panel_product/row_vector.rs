//! A single row times a matrix: bound by how fast the matrix is read, which therefore is not packed.
//!
//! The sums are those of the tiles, term by term, so their bits are too.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::target::Target;
use super::words::Words;
use super::{Product, Triangle};
use crate::bf16::Compute;
use crate::matrix::Matrix;
use crate::simd::{multiply_add, vectorised};

/// Most columns whose sums are held at once: they stay in the first-level cache.
const SUM_COLUMNS: usize = 1024;
/// Columns of a task whose matrix lies by columns.
const TASK_COLUMNS: usize = 256;
/// Fewest elements of a matrix that is worth several tasks.
const MIN_SHARED_LEN: usize = 1 << 15;
/// Terms whose sums are added to those of the terms before, as in tiles.
const DEPTH: usize = Words::Terms.of_block();
/// Rows of the matrix that are read side by side.
const ROWS_AT_ONCE: usize = 8;

/// Whether a product `[m, k] x [k, n]` is of a single row and worth several tasks.
pub(super) fn is_worth_tasks([m, k, n]: [usize; 3]) -> bool {
    m == 1 && k.saturating_mul(n) >= MIN_SHARED_LEN
}

/// The product of a single row, in tasks.
pub(super) fn multiply_in_tasks(mut product: Product<'_>) {
    let is_by_rows = takes(&product);
    let (a, w) = (product.a.f32(), product.w.f32());
    // SAFETY: nothing but sums is written.
    let c = unsafe { product.c.f32_elements() };
    if is_by_rows {
        return write_in_order(c, &partial_sums(a.row(0), w));
    }
    c.par_chunks_mut(TASK_COLUMNS).enumerate().for_each(|(task, c)| {
        let first = task * TASK_COLUMNS;
        let its_columns = w.columns(first..first + c.len());
        super::multiply(Product::new(Target::replaced(c), a.into(), its_columns.into(), Compute::F32));
    });
}

/// The sums over each [`DEPTH`] terms, one row of sums after the other. A task reads whole
/// rows, or long parts of them, one behind the other: a stream.
fn partial_sums(a: &[f32], w: Matrix<'_>) -> Vec<f32> {
    let (k, n) = (w.num_rows(), w.num_columns());
    let mut sums = vec![0.0; k.div_ceil(DEPTH) * n];
    sums.par_chunks_mut(n).enumerate().for_each(|(depth, sums)| {
        let terms = depth * DEPTH..k.min((depth + 1) * DEPTH);
        sums.par_chunks_mut(SUM_COLUMNS).enumerate().for_each(|(block, sums)| {
            let first = block * SUM_COLUMNS;
            let part = w.rows(terms.clone()).columns(first..first + sums.len());
            accumulate(sums, &a[terms.clone()], part);
        });
    });
    sums
}

/// Writes the first row of sums, to which the others are added in order.
fn write_in_order(c: &mut [MaybeUninit<f32>], sums: &[f32]) {
    let n = c.len();
    for (j, c) in c.iter_mut().enumerate() {
        let later = sums.iter().skip(j + n).step_by(n);
        c.write(later.fold(sums[j], |sum, next| sum + next));
    }
}

/// Whether [`multiply`] computes this product.
pub(super) fn takes(product: &Product<'_>) -> bool {
    product.a.num_rows() == 1
        && product.a.has_contiguous_rows()
        && product.w.has_contiguous_rows()
        && product.triangle == Triangle::Nowhere
}

/// The product of a single row with a matrix that lies by rows.
pub(super) fn multiply(mut product: Product<'_>) {
    let (a, w, is_added_to) = (product.a.f32().row(0), product.w.f32(), product.c.is_added_to());
    // SAFETY: nothing but sums is written.
    let c = unsafe { product.c.f32_elements() };
    let mut sums = [0.0; SUM_COLUMNS];
    for first_column in (0..w.num_columns()).step_by(SUM_COLUMNS) {
        let columns = first_column..w.num_columns().min(first_column + SUM_COLUMNS);
        let sums = &mut sums[..columns.len()];
        for first_term in (0..w.num_rows()).step_by(DEPTH) {
            let terms = first_term..w.num_rows().min(first_term + DEPTH);
            sums.fill(0.0);
            accumulate(sums, &a[terms.clone()], w.rows(terms).columns(columns.clone()));
            write(&mut c[columns.clone()], sums, is_added_to || first_term > 0);
        }
    }
}

/// Writes sums. With `add`, all elements of `c` have values, to which they are added.
fn write(c: &mut [MaybeUninit<f32>], sums: &[f32], add: bool) {
    for (c, sum) in c.iter_mut().zip(sums) {
        // SAFETY: with `add` the element has a value, of the product before or of its first terms.
        let before = if add { Some(unsafe { c.assume_init() }) } else { None };
        c.write(before.map_or(*sum, |before| before + sum));
    }
}

vectorised! {
    /// Adds the rows of `w` times the elements of `a` to `sums`, one row after the other.
    fn accumulate(sums: &mut [f32], a: &[f32], w: Matrix<'_>) = accumulate_rows;
}

#[inline(always)]
fn accumulate_rows<const FUSED: bool>(sums: &mut [f32], a: &[f32], w: Matrix<'_>) {
    let whole = a.len() / ROWS_AT_ONCE * ROWS_AT_ONCE;
    for first in (0..whole).step_by(ROWS_AT_ONCE) {
        accumulate_some::<ROWS_AT_ONCE, FUSED>(sums, a, w, first..first + ROWS_AT_ONCE);
    }
    for term in whole..a.len() {
        accumulate_some::<1, FUSED>(sums, a, w, term..term + 1);
    }
}

/// The same of `ROWS` rows.
#[inline(always)]
fn accumulate_some<const ROWS: usize, const FUSED: bool>(
    sums: &mut [f32],
    a: &[f32],
    w: Matrix<'_>,
    terms: Range<usize>,
) {
    let len = sums.len();
    let rows: [&[f32]; ROWS] = std::array::from_fn(|i| &w.row(terms.start + i)[..len]);
    let factors: [f32; ROWS] = std::array::from_fn(|i| a[terms.start + i]);
    for (j, sum) in sums.iter_mut().enumerate() {
        let mut new = *sum;
        for (row, factor) in rows.iter().zip(factors) {
            new = multiply_add::<FUSED>(factor, row[j], new);
        }
        *sum = new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panel_product::fill_with_product;

    fn values(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 % 1009) as f32 / 331.0).sin()).collect()
    }

    fn product(a: Matrix<'_>, w: Matrix<'_>) -> Vec<u32> {
        let mut target = vec![MaybeUninit::new(f32::NAN); a.num_rows() * w.num_columns()];
        fill_with_product(&mut target, a, w, Compute::F32).iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn a_single_row_has_the_bits_that_it_has_among_others() {
        for [k, n] in [[1, 1], [7, 5], [256, 33], [300, 130], [513, 1500], [40, 4000]] {
            let (a, w) = (values(3 * k), values(k * n));
            let by_rows = Matrix::row_major(&w, n);
            let by_columns = Matrix::row_major(&w, k).transposed();
            for w in [by_rows, by_columns] {
                let together = product(Matrix::row_major(&a, k), w);
                for row in 0..3 {
                    let alone = product(Matrix::row_major(&a[row * k..][..k], k), w);
                    assert!(alone == together[row * n..][..n], "row {row} of {k} x {n}");
                }
            }
        }
    }
}

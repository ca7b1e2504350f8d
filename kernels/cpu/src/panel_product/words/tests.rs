//! Products with factors rounded to bf16, bit for bit against plain loops.

use proptest::prelude::*;

use super::super::target::Target;
use super::super::tests::all_ways;
use super::super::{Factor, Product, READ_BEYOND_DIAGONAL, Stored, Triangle, fill_with_product};
use crate::bf16::{Bf16, Compute};
use crate::matrix::Matrix;

/// Terms whose sums are added to those of the terms before.
const BLOCK_TERMS: usize = 512;

fn irregular(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) as f32 * 0.37).sin() * 3.0).collect()
}

fn rounded(values: &[f32]) -> Vec<Bf16> {
    values.iter().map(|&value| Bf16::from_f32(value)).collect()
}

/// The bits of `c + a w`: of each pair of terms the second first, each rounded once. A missing
/// second term is zero.
fn reference(c: Option<&[f32]>, a: &[f32], w: &[f32], [m, k, n]: [usize; 3]) -> Vec<f32> {
    let term = |i: usize, p: usize, j: usize| {
        let [a, w] = [a[i * k + p], w[p * n + j]].map(|value| Bf16::from_f32(value).to_f32());
        (a, w)
    };
    let element = |at: usize| {
        let (i, j) = (at / n, at % n);
        let mut total = c.map(|c| c[at]);
        for first in (0..k).step_by(BLOCK_TERMS) {
            let end = k.min(first + BLOCK_TERMS);
            let mut sum = 0.0f32;
            for pair in (first..end).step_by(2) {
                for p in [pair + 1, pair] {
                    let (a, w) = if p < end { term(i, p, j) } else { (0.0, 0.0) };
                    sum = a.mul_add(w, sum);
                }
            }
            total = Some(total.map_or(sum, |total| total + sum));
        }
        total.unwrap_or(0.0)
    };
    (0..m * n).map(element).collect()
}

fn transposed<T: Copy>(values: &[T], [rows, columns]: [usize; 2]) -> Vec<T> {
    (0..rows * columns).map(|at| values[at % rows * columns + at / rows]).collect()
}

/// All ways to compute a product, of factors in either orientation and of either type.
fn check_bits([m, k, n]: [usize; 3]) {
    let (a, w) = (irregular(m * k, 1), irregular(k * n, 2));
    let (a_by_columns, w_by_columns) = (transposed(&a, [m, k]), transposed(&w, [k, n]));
    let [a16, a16_by_columns, w16, w16_by_columns] =
        [&a, &a_by_columns, &w, &w_by_columns].map(|x| rounded(x));
    fn ways<'f, E: Stored>(
        by_rows: &'f [E],
        by_columns: &'f [E],
        [rows, columns]: [usize; 2],
    ) -> [Factor<'f>; 2] {
        [
            E::factor(Matrix::strided(by_rows, [rows, columns], [columns, 1])),
            E::factor(Matrix::strided(by_columns, [columns, rows], [rows, 1]).transposed()),
        ]
    }
    let lefts = [ways(&a, &a_by_columns, [m, k]), ways(&a16, &a16_by_columns, [m, k])].concat();
    let rights = [ways(&w, &w_by_columns, [k, n]), ways(&w16, &w16_by_columns, [k, n])].concat();
    for (way, multiply) in all_ways(Compute::PortableBf16) {
        for (left, right) in lefts.iter().flat_map(|&left| rights.iter().map(move |&right| (left, right))) {
            for add in [false, true] {
                let mut c = irregular(m * n, 3);
                let expected = reference(add.then_some(&c[..]), &a, &w, [m, k, n]);
                multiply(Product::new(Target::values(&mut c, add), left, right, Compute::PortableBf16));
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                if k > 0 {
                    assert!(
                        bits(&c) == bits(&expected),
                        "{way}, {m} x {k} x {n}, {left:?} times {right:?}, {add}"
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn products_in_bf16_have_the_bits_of_the_definition(m in 1_usize..=20, k in 0_usize..=50, n in 1_usize..=150) {
        check_bits([m, k, n]);
    }
}

#[test]
fn products_of_several_blocks_in_bf16_have_the_bits_of_the_definition() {
    for shape in [[7, BLOCK_TERMS + 1, 17], [3, 2 * BLOCK_TERMS + 9, 70], [13, BLOCK_TERMS, 300]] {
        check_bits(shape);
    }
}

/// However deep they are, so that they are rounded once.
#[test]
fn results_in_bf16_are_sums_of_all_terms_rounded_once() {
    for [m, k, n] in [[5, 40, 70], [7, 3 * BLOCK_TERMS + 1, 300], [2, 40_000, 65]] {
        // Exact in any order: multiples of 1/8 below 1 whose sums stay small.
        let exact = |len: usize, seed: usize| -> Vec<f32> {
            (0..len).map(|i| (((i + seed) * 7919 % 15) as f32 - 7.0) / 8.0).collect()
        };
        let (a, w) = (exact(m * k, 0), exact(k * n, 5));
        let sum =
            |at: usize| (0..k).map(|p| f64::from(a[at / n * k + p]) * f64::from(w[p * n + at % n])).sum();
        let sums: Vec<f64> = (0..m * n).map(sum).collect();
        let (a, w) = (Matrix::row_major(&a, k), Matrix::row_major(&w, n));
        for (way, multiply) in all_ways(Compute::PortableBf16) {
            let mut c = vec![std::mem::MaybeUninit::new(Bf16::from_f32(f32::NAN)); m * n];
            multiply(Product::new(Target::replaced(&mut c), a.into(), w.into(), Compute::PortableBf16));
            for (at, (c, sum)) in c.into_iter().zip(&sums).enumerate() {
                // SAFETY: all elements were made with values.
                let c = unsafe { c.assume_init() };
                assert_eq!(c, Bf16::from_f32(*sum as f32), "{way}, element {at} of {m} x {k} x {n}");
            }
        }
    }
}

#[test]
fn rows_of_bf16_read_through_an_index_are_multiplied_as_their_copies() {
    for width in [34, 35] {
        let x = rounded(&irregular(10 * width, 3));
        let picks = [7, 0, 0, 3, 9, 1, 7, 2];
        let offsets = picks.map(|row| row * width);
        let copy: Vec<Bf16> = picks.iter().flat_map(|row| x[row * width..][..width].to_vec()).collect();
        let w = irregular(width * 20, 4);
        let w = Factor::from(Matrix::row_major(&w, 20));
        let products = [Matrix::of_rows_at(&x, width, &offsets), Matrix::row_major(&copy, width)].map(|x| {
            let mut y = vec![std::mem::MaybeUninit::new(f32::NAN); picks.len() * 20];
            let mut dw = vec![std::mem::MaybeUninit::new(f32::NAN); width * width];
            let y = fill_with_product(&mut y, x, w, Compute::PortableBf16).to_vec();
            (y, fill_with_product(&mut dw, x.transposed(), x, Compute::PortableBf16).to_vec())
        });
        assert_eq!(products[0], products[1]);
    }
}

/// What is not to be read is NaN.
#[test]
fn triangles_in_bf16_leave_out_nothing_that_counts() {
    for first in [0, 1, 5, 40] {
        for m in [1, 2, 13, 64] {
            let keys = first + m;
            let n = 24;
            let mut lower = irregular(m * keys, 1);
            for (i, row) in lower.chunks_exact_mut(keys).enumerate() {
                let seen = first + i + 1;
                let read = keys.min(seen + READ_BEYOND_DIAGONAL);
                row[seen..read].fill(0.0);
                row[read..].fill(f32::NAN);
            }
            let zeroed: Vec<f32> = lower.iter().map(|&x| if x.is_nan() { 0.0 } else { x }).collect();
            let lower = Matrix::row_major(&lower, keys);
            let zeroed_by_columns = transposed(&zeroed, [m, keys]);
            let cases = [
                (Triangle::Left { first }, lower, &zeroed, [m, keys, n]),
                (Triangle::LeftTransposed { first }, lower.transposed(), &zeroed_by_columns, [keys, m, n]),
            ];
            for (triangle, left, zeroed, shape) in cases {
                let w = irregular(shape[1] * n, 2);
                for (way, multiply) in all_ways(Compute::PortableBf16) {
                    let mut c = irregular(shape[0] * n, 3);
                    let expected = reference(Some(&c), zeroed, &w, shape);
                    let w = Matrix::row_major(&w, n).into();
                    let product =
                        Product::new(Target::values(&mut c, true), left.into(), w, Compute::PortableBf16);
                    multiply(Product { triangle, ..product });
                    assert_eq!(c, expected, "{way}, {triangle:?}, {shape:?}");
                }
            }
        }
    }
}

#[test]
fn the_products_of_a_row_in_bf16_do_not_depend_on_the_rows_beside_it() {
    let (m, k, n) = (29, BLOCK_TERMS + 71, 90);
    let (a, w) = (irregular(m * k, 1), irregular(k * n, 2));
    let product = |rows: std::ops::Range<usize>| {
        let mut c = vec![std::mem::MaybeUninit::new(f32::NAN); rows.len() * n];
        let a = Matrix::row_major(&a, k).rows(rows);
        fill_with_product(&mut c, a, Matrix::row_major(&w, n), Compute::PortableBf16).to_vec()
    };
    let all = product(0..m);
    for (first, last) in [(0, 1), (11, 12), (28, 29), (3, 20), (5, 29)] {
        assert_eq!(product(first..last), all[first * n..last * n], "rows {first} to {last}");
    }
}

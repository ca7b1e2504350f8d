//! Products in f32 against the definition, in all ways that this CPU has.

use proptest::prelude::*;

use super::*;

pub(super) type Multiply = fn(Product<'_>);

/// The product as each instruction set computes it that this CPU can run. The code of AVX-512
/// is that of AVX2 with more registers of 16 lanes, which AVX2 computes here with pairs of
/// its own.
pub(super) fn all_ways(compute: Compute) -> Vec<(&'static str, Multiply)> {
    fn words_of(product: &Product<'_>) -> Words {
        match product.compute {
            Compute::F32 => Words::Terms,
            Compute::Bf16 | Compute::PortableBf16 => Words::Rounded,
        }
    }
    macro_rules! way {
        ($simd:expr, $registers:expr, $multiply:expr) => {
            |product| {
                let words = words_of(&product);
                Simd::vectorize($simd, Tiled::<_, $registers> { product, multiply: $multiply, words })
            }
        };
    }
    let mut ways: Vec<(&'static str, Multiply)> =
        vec![("portable", way!(Scalar128b, FEW_REGISTERS, Unfused)), ("as chosen", multiply)];
    #[cfg(target_arch = "x86_64")]
    {
        use pulp::x86::V3_512b;
        use words::avx512bf16::Avx512Bf16;
        if V3::is_available() {
            ways.push(("AVX2", way!(V3::try_new().unwrap(), FEW_REGISTERS, Fused)));
            ways.push(("AVX2 in pairs", way!(V3_512b(V3::try_new().unwrap()), MANY_REGISTERS, Fused)));
        }
        if V4::is_available() {
            ways.push(("AVX-512", way!(V4::try_new().unwrap(), MANY_REGISTERS, Fused)));
        }
        if compute.is_rounded() && Avx512Bf16::try_new().is_some() {
            ways.push(("AVX512-BF16", |product| {
                let cpu = Avx512Bf16::try_new().unwrap();
                cpu.run(Tiled::<_, MANY_REGISTERS> { product, multiply: cpu, words: Words::Pairs(cpu) });
            }));
        }
    }
    ways
}

/// Multiples of 1/8 below 2: sums of thousands of their products are exact in any order.
fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| (((i + seed) * 7919 % 31) as f32 - 15.0) / 8.0).collect()
}

/// The matrix whose element (p, j) lies at `p * n + j`, or at `j * k + p` if `by_columns`.
fn oriented(elements: &[f32], [k, n]: [usize; 2], by_columns: bool) -> Matrix<'_> {
    match by_columns {
        true => Matrix::strided(elements, [n, k], [k, 1]).transposed(),
        false => Matrix::strided(elements, [k, n], [n, 1]),
    }
}

/// `c + a w` by the definition, in f64.
fn oracle(c: &[f32], a: &[f32], w: Matrix<'_>, w_at: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let (k, n) = (w.num_rows(), w.num_columns());
    let element = |(index, &c): (usize, &f32)| {
        let (i, j) = (index / n, index % n);
        (0..k).fold(f64::from(c), |sum, p| sum + f64::from(a[i * k + p]) * f64::from(w_at(p, j))) as f32
    };
    c.iter().enumerate().map(element).collect()
}

fn check_against_the_definition([m, k, n]: [usize; 3], by_columns: bool) {
    let (a, w_elements) = (values(m * k, 0), values(k * n, 5));
    // By rows and, transposed, by columns.
    let a_columns: Vec<f32> = (0..m * k).map(|at| a[at % m * k + at / m]).collect();
    let a_matrices = [oriented(&a, [m, k], false), oriented(&a_columns, [m, k], true)];
    let w = oriented(&w_elements, [k, n], by_columns);
    let w_at = |p: usize, j: usize| w_elements[if by_columns { j * k + p } else { p * n + j }];
    for (way, multiply) in all_ways(Compute::F32) {
        for (add, a_matrix) in [false, true].into_iter().flat_map(|add| a_matrices.map(|a| (add, a))) {
            let before = if add { values(m * n, 11) } else { vec![0.0; m * n] };
            let mut c = if add { before.clone() } else { vec![f32::NAN; m * n] };
            let expected = oracle(&before, &a, w, w_at);
            multiply(Product::new(Target::values(&mut c, add), a_matrix.into(), w.into(), Compute::F32));
            if k > 0 || add {
                assert_eq!(c, expected, "{way}, {m} x {k} x {n}, by columns: {by_columns}, added: {add}");
            }
        }
    }
}

proptest! {
    #[test]
    fn products_are_those_of_the_definition(m in 0_usize..=50, k in 0_usize..=50, n in 0_usize..=50, flip: bool) {
        check_against_the_definition([m, k, n], flip);
    }
}

#[test]
fn products_of_several_blocks_are_those_of_the_definition() {
    let (deep, wide) = (Words::Terms.of_block(), block_columns::<MANY_REGISTERS>());
    for [m, k, n] in [[1, deep + 1, wide + 1], [13, 2 * deep + 9, 3], [7, 5, 2 * wide + 17], [25, deep, wide]]
    {
        for by_columns in [false, true] {
            check_against_the_definition([m, k, n], by_columns);
        }
    }
}

#[test]
fn parts_of_a_larger_matrix_are_multiplied_alone() {
    let (a, w) = (values(20 * 30, 0), values(40 * 50, 5));
    let a_part = Matrix::row_major(&a, 30).rows(3..17).columns(4..24);
    let by_rows = Matrix::row_major(&w, 50).rows(10..30).columns(7..44);
    let copy: Vec<f32> = (0..20).flat_map(|p| by_rows.row(p).to_vec()).collect();
    let a_copy: Vec<f32> = (0..14).flat_map(|i| a_part.row(i).to_vec()).collect();
    let mut expected = vec![0.0; 14 * 37];
    add_product(&mut expected, Matrix::row_major(&a_copy, 20), Matrix::row_major(&copy, 37), Compute::F32);
    let mut c = vec![0.0; 14 * 37];
    add_product(&mut c, a_part, by_rows, Compute::F32);
    assert_eq!(c, expected);
}

/// Rows repeated, left out and out of order, as each of the three factors that may be read so.
#[test]
fn rows_read_through_an_index_are_multiplied_as_their_copies() {
    let (picks, width) = ([7, 0, 0, 3, 9, 1, 7, 2, 8, 4, 5], 150);
    let x = values(10 * width, 3);
    let offsets = picks.map(|row| row * width);
    let copy: Vec<f32> = picks.iter().flat_map(|row| x[row * width..][..width].to_vec()).collect();
    let pairs = [Matrix::of_rows_at(&x, width, &offsets), Matrix::row_major(&copy, width)]
        .map(|x| x.rows(1..10).columns(5..147));
    let other = values(142 * 70, 0);
    let [right, left] = [Matrix::row_major(&other, 70), Matrix::row_major(&other[..9 * 13], 9)];
    let products = |x: Matrix<'_>| {
        [(x, right), (x.transposed(), x), (left, x)].map(|(a, w)| {
            let mut c = vec![0.0; a.num_rows() * w.num_columns()];
            add_product(&mut c, a, w, Compute::F32);
            c
        })
    };
    let [indexed, copied] = pairs.map(products);
    assert_eq!(indexed, copied);
}

#[test]
fn a_rows_bits_do_not_depend_on_the_rows_beside_it() {
    // Numbers whose sums do round, unlike those above.
    let irregular = |len: usize| (0..len).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
    let (m, k, n) = (29, Words::Terms.of_block() + 70, block_columns::<MANY_REGISTERS>() + 21);
    let (a, w) = (irregular(m * k), irregular(k * n));
    for (way, multiply) in all_ways(Compute::F32) {
        for by_columns in [false, true] {
            let w = oriented(&w, [k, n], by_columns);
            let rows = |first: usize, last: usize| {
                let mut c = vec![0.0; (last - first) * n];
                let a = Matrix::row_major(&a[first * k..last * k], k);
                multiply(Product::new(Target::values(&mut c, false), a.into(), w.into(), Compute::F32));
                c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let all = rows(0, m);
            for (first, last) in [(0, 1), (11, 12), (28, 29), (3, 20), (5, 29)] {
                assert_eq!(rows(first, last), all[first * n..last * n], "{way}, rows {first} to {last}");
            }
        }
    }
}

/// Elements of a lower triangular matrix; those right of the diagonal that must not be read are
/// NaN, those that may be are zero.
fn lower_triangular(rows: usize, columns: usize, first: usize) -> Vec<f32> {
    let mut elements = values(rows * columns, 3);
    for (i, row) in elements.chunks_exact_mut(columns).enumerate() {
        let seen = columns.min(first + i + 1);
        let read = columns.min(seen + READ_BEYOND_DIAGONAL);
        row[seen..read].fill(0.0);
        row[read..].fill(f32::NAN);
    }
    elements
}

/// The elements of `c` where the product is wanted: all, but of a lower triangular product
/// those up to the diagonal.
fn wanted(triangle: Triangle, c: &[f32], n: usize) -> Vec<f32> {
    let is_wanted = |&(index, _): &(usize, &f32)| match triangle {
        Triangle::Product { first } => index % n <= first + index / n,
        _ => true,
    };
    c.iter().enumerate().filter(is_wanted).map(|(_, &c)| c).collect()
}

fn check_triangle(triangle: Triangle, [m, k, n]: [usize; 3]) {
    let (elements, shape, is_transposed) = match triangle {
        Triangle::Left { first } => (lower_triangular(m, k, first), [m, k], false),
        Triangle::LeftTransposed { first } => (lower_triangular(k, m, first), [m, k], true),
        _ => (values(m * k, 3), [m, k], false),
    };
    let a = oriented(&elements, shape, is_transposed);
    let a_at = |i: usize, p: usize| elements[if is_transposed { p * m + i } else { i * k + p }];
    let read: Vec<f32> = (0..m * k).map(|at| a_at(at / k, at % k)).collect();
    let zeroed: Vec<f32> = read.iter().map(|&a| if a.is_nan() { 0.0 } else { a }).collect();
    let w_elements = values(k * n, 5);
    let w = oriented(&w_elements, [k, n], false);
    for (way, multiply) in all_ways(Compute::F32) {
        for add in [false, true] {
            let before = if add { values(m * n, 11) } else { vec![0.0; m * n] };
            let mut c = before.clone();
            let expected = oracle(&before, &zeroed, w, |p, j| w_elements[p * n + j]);
            multiply(Product {
                triangle,
                ..Product::new(Target::values(&mut c, add), a.into(), w.into(), Compute::F32)
            });
            let [c, expected] = [c, expected].map(|c| wanted(triangle, &c, n));
            assert_eq!(c, expected, "{way}, {triangle:?}, {m} x {k} x {n}, added: {add}");
        }
    }
}

#[test]
fn triangles_leave_out_nothing_that_counts() {
    for first in [0, 1, 40, 300] {
        for m in [1, 13, 64] {
            let keys = first + m;
            check_triangle(Triangle::Product { first }, [m, 33, keys]);
            check_triangle(Triangle::Left { first }, [m, keys, 24]);
            check_triangle(Triangle::LeftTransposed { first }, [keys, m, 24]);
        }
    }
    // More terms than a panel has rows, of which the first or the last are all zero.
    check_triangle(
        Triangle::Left { first: 0 },
        [2 * Words::Terms.of_block(), 2 * Words::Terms.of_block(), 5],
    );
    check_triangle(
        Triangle::LeftTransposed { first: 0 },
        [2 * Words::Terms.of_block(), 2 * Words::Terms.of_block(), 5],
    );
}

#[test]
fn a_product_over_nothing_is_zero_and_adds_nothing() {
    let nothing: &[f32] = &[];
    let (a, w) = (Matrix::strided(nothing, [2, 0], [1, 1]), Matrix::strided(nothing, [0, 3], [3, 1]));
    let mut c = [MaybeUninit::new(7.0); 6];
    assert_eq!(fill_with_product(&mut c, a, w, Compute::F32), [0.0; 6]);
    let mut c = [7.0; 6];
    add_product(&mut c, a, w, Compute::F32);
    assert_eq!(c, [7.0; 6]);
}

#[test]
#[should_panic(expected = "into 5 elements")]
fn shapes_that_do_not_fit_are_refused() {
    let a = Matrix::row_major(&[1.0; 6], 3);
    add_product(&mut [0.0; 5], a, Matrix::row_major(&[1.0; 9], 3), Compute::F32);
}

#[test]
#[should_panic(expected = "into 0 elements")]
fn a_product_of_more_elements_than_numbers_is_refused() {
    // Repeated rows and columns: 2^32 of each, whose number of elements wraps around to 0.
    let column = Matrix::strided(&[1.0], [1 << 32, 1], [0, 1]);
    fill_with_product::<f32>(&mut [], column, column.transposed(), Compute::F32);
}

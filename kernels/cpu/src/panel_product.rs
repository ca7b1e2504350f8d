//! Products of rows with a matrix of weights, or of transposed rows with rows, on the calling
//! thread.
//!
//! The matrix is read once, a block at a time, into panels: as many columns as some vector
//! registers hold, row after row. It may lie by rows or by columns. A forward pass multiplies by
//! the weights and a backward pass by their transpose; packing either costs the same, so nothing is
//! transposed beforehand. Rows may lie anywhere, as an expert's tokens do, and of the products of
//! causal attention only the triangle that counts is computed. A single row reads the matrix where
//! it lies. The product of `matrix.rs` is for
//! results that are columns of a wider matrix.
//!
//! Factors are f32, or are rounded to bf16 while they are brought into order (`words.rs`); or they
//! are bf16 in memory already. Sums are f32 either way.
//!
//! An element of a product is a sum over the terms of one block in order, to which the sums of the
//! next terms are added: the same bits whichever rows and columns surround it.

mod factor;
mod multiply;
mod panels;
mod registers;
mod row_vector;
mod target;
mod tile;
mod words;

use std::mem::MaybeUninit;
use std::ops::Range;

#[cfg(target_arch = "aarch64")]
use pulp::aarch64::Neon;
#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};
use pulp::{Scalar128b, Simd, WithSimd};

use crate::bf16::{Bf16Unit, Compute};
use crate::matrix::Matrix;
use multiply::{Fused, Multiply, Unfused};
use panels::{EIGHT, Fetch, Panels};
use registers::panel_width;
use target::Target;
use tile::Pass;
use words::{LeftWords, Words};

pub(crate) use factor::Factor;
pub(crate) use target::Stored;

/// Rows of a tile: their addresses stay in registers too.
const TILE_ROWS: usize = 6;
/// Registers of a panel's row where there are 16: with six rows, twelve hold sums.
const FEW_REGISTERS: usize = 2;
/// Registers of a panel's row where there are 32. Four times six load less per multiplication than
/// two times twelve, although the panel then comes from the second-level cache (measured with
/// AVX-512: 5 to 20 % faster).
const MANY_REGISTERS: usize = 4;

/// Columns packed at once: a block takes a quarter of the second-level cache or less, and its rows
/// are long enough to be read as a stream.
const fn block_columns<const REGISTERS: usize>() -> usize {
    64 * REGISTERS
}
/// Words of a block whose depth is not cut: such a block has fewer columns.
const DEEP_BLOCK_WORDS: usize = 1 << 16;

/// Which matrix of a product is lower triangular, so that less is to be computed. Its element (i,
/// j) lies right of the diagonal if `j > first + i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Triangle {
    /// None.
    Nowhere,
    /// The product: elements right of the diagonal are not wanted, and what they become is not
    /// defined.
    Product {
        /// The last column of the first row.
        first: usize,
    },
    /// The left factor: the [`READ_BEYOND_DIAGONAL`] elements right of the diagonal are zero, those
    /// behind are not read.
    Left {
        /// The last column of the first row.
        first: usize,
    },
    /// The transpose of the left factor, in the same way.
    LeftTransposed {
        /// The last column of the transpose's first row.
        first: usize,
    },
}

/// As many rows of a tile share the terms of the longest, and the last term may share its word with
/// one behind.
pub(crate) const READ_BEYOND_DIAGONAL: usize = TILE_ROWS;

impl Triangle {
    /// Whether the element of the product is wanted.
    #[inline(always)]
    fn contains(self, row: usize, column: usize) -> bool {
        match self {
            Self::Product { first } => column <= first + row,
            _ => true,
        }
    }

    /// The terms of `all` that are not zero in each of these rows.
    #[inline(always)]
    fn terms(self, rows: Range<usize>, all: Range<usize>) -> Range<usize> {
        match self {
            Self::Nowhere | Self::Product { .. } => all,
            Self::Left { first } => all.start..all.end.min(first + rows.end).max(all.start),
            Self::LeftTransposed { first } => {
                all.start.max(rows.start.saturating_sub(first)).min(all.end)..all.end
            }
        }
    }
}

/// Fills `target` with the rows of `a w`, and returns them.
///
/// # Panics
/// If the shapes do not fit, or `a` or `w` lies neither by rows nor by columns.
pub(crate) fn fill_with_product<'c, 'f, E: Stored>(
    target: &'c mut [MaybeUninit<E>],
    a: impl Into<Factor<'f>>,
    w: impl Into<Factor<'f>>,
    compute: Compute,
) -> &'c mut [E] {
    let product = Product::new(Target::replaced(&mut *target), a.into(), w.into(), compute);
    let (a, w) = (product.a, product.w);
    if w.num_rows() == 0 {
        target.fill(MaybeUninit::new(E::default()));
    } else if compute == Compute::F32
        && row_vector::is_worth_tasks([a.num_rows(), w.num_rows(), w.num_columns()])
    {
        row_vector::multiply_in_tasks(product);
    } else {
        multiply(product);
    }
    // SAFETY: without a triangle, a product of at least one term writes every element.
    unsafe { target.assume_init_mut() }
}

/// Replaces the rows of `c` by those of `a w`.
///
/// # Panics
/// As [`fill_with_product`].
pub(crate) fn write_product<'f>(
    c: &mut [f32],
    a: impl Into<Factor<'f>>,
    w: impl Into<Factor<'f>>,
    compute: Compute,
) {
    multiply(Product::new(Target::values(c, false), a.into(), w.into(), compute));
}

/// Adds the rows of `a w` to those of `c`.
///
/// # Panics
/// As [`fill_with_product`].
pub(crate) fn add_product<'f>(
    c: &mut [f32],
    a: impl Into<Factor<'f>>,
    w: impl Into<Factor<'f>>,
    compute: Compute,
) {
    multiply(Product::new(Target::values(c, true), a.into(), w.into(), compute));
}

/// Replaces the rows of `c` by those of `a w`, of which a triangle is computed.
///
/// # Panics
/// As [`fill_with_product`].
pub(crate) fn write_triangular_product(
    c: &mut [f32],
    a: Matrix<'_>,
    w: Matrix<'_>,
    triangle: Triangle,
    compute: Compute,
) {
    if w.num_rows() == 0 {
        c.fill(0.0);
    }
    multiply(Product { triangle, ..Product::new(Target::values(c, false), a.into(), w.into(), compute) });
}

/// Adds the rows of `a w`, of which a triangle is computed, to those of `c`.
///
/// # Panics
/// As [`fill_with_product`].
pub(crate) fn add_triangular_product(
    c: &mut [f32],
    a: Matrix<'_>,
    w: Matrix<'_>,
    triangle: Triangle,
    compute: Compute,
) {
    multiply(Product { triangle, ..Product::new(Target::values(c, true), a.into(), w.into(), compute) });
}

/// With the widest vectors that the CPU has. The tile of each instruction set fills its registers;
/// nothing else differs.
fn multiply(product: Product<'_>) {
    match product.compute {
        Compute::F32 if row_vector::takes(&product) => row_vector::multiply(product),
        Compute::F32 => multiply_terms(product, Words::Terms),
        Compute::Bf16 => {
            #[cfg(target_arch = "x86_64")]
            if let Some(cpu) = words::avx512bf16::if_faster() {
                return cpu.run(Tiled::<_, MANY_REGISTERS> {
                    product,
                    multiply: cpu,
                    words: Words::Pairs(cpu),
                });
            }
            multiply_terms(product, Words::Rounded);
        }
    }
}

/// What multiplies factors in bf16.
pub(crate) fn bf16_unit() -> Bf16Unit {
    #[cfg(target_arch = "x86_64")]
    if words::avx512bf16::if_faster().is_some() {
        return Bf16Unit::Avx512Bf16;
    }
    Bf16Unit::F32
}

/// With words of one term.
fn multiply_terms(product: Product<'_>, words: Words) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(avx512) = V4::try_new() {
            return Simd::vectorize(avx512, Tiled::<_, MANY_REGISTERS> { product, multiply: Fused, words });
        }
        if let Some(avx2) = V3::try_new() {
            return Simd::vectorize(avx2, Tiled::<_, FEW_REGISTERS> { product, multiply: Fused, words });
        }
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(neon) = Neon::try_new() {
        return Simd::vectorize(neon, Tiled::<_, MANY_REGISTERS> { product, multiply: Fused, words });
    }
    Simd::vectorize(Scalar128b, Tiled::<_, FEW_REGISTERS> { product, multiply: Unfused, words });
}

/// `c = a w`, or `c = c + a w`.
struct Product<'a> {
    c: Target<'a>,
    a: Factor<'a>,
    w: Factor<'a>,
    triangle: Triangle,
    compute: Compute,
}

impl<'a> Product<'a> {
    /// The whole product.
    ///
    /// # Panics
    /// If the shapes do not fit.
    fn new(c: Target<'a>, a: Factor<'a>, w: Factor<'a>, compute: Compute) -> Self {
        let len = a.num_rows().checked_mul(w.num_columns());
        assert!(
            a.num_columns() == w.num_rows() && len == Some(c.len()),
            "{a:?} times {w:?} into {} elements",
            c.len()
        );
        Self { c, a, w, triangle: Triangle::Nowhere, compute }
    }
}

/// A product in tiles of `TILE_ROWS` rows and as many registers, or fewer for its last columns, of
/// words that `multiply` multiplies.
struct Tiled<'a, M, const REGISTERS: usize> {
    product: Product<'a>,
    multiply: M,
    words: Words,
}

impl<M: Multiply, const REGISTERS: usize> WithSimd for Tiled<'_, M, REGISTERS> {
    type Output = ();

    // All that computes with vectors is inlined into this function, which then is compiled for one
    // instruction set.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { product: Product { c, a, w, triangle, .. }, multiply, words } = self;
        let num_columns = w.num_columns();
        let left = LeftWords::new(words, a, triangle);
        let mut tiles = Tiles { simd, multiply, words, c, a: left.matrix(), w, triangle };
        // What whole panels leave is often much narrower: a router has a column for each expert.
        let rest = num_columns % panel_width::<S, REGISTERS>();
        let whole = num_columns - rest;
        match rest.div_ceil(panel_width::<S, 1>()) {
            1 if panel_width::<S, 1>() >= EIGHT => tiles.compute_columns::<1>(whole..num_columns),
            1 | 2 => tiles.compute_columns::<2>(whole..num_columns),
            _ => return tiles.compute_columns::<REGISTERS>(0..num_columns),
        }
        if whole > 0 {
            tiles.compute_columns::<REGISTERS>(0..whole);
        }
    }
}

/// A product whose rows are words.
struct Tiles<'a, S, M> {
    simd: S,
    multiply: M,
    words: Words,
    c: Target<'a>,
    /// `[rows, words]`.
    a: Matrix<'a>,
    w: Factor<'a>,
    triangle: Triangle,
}

impl<S: Simd, M: Multiply> Tiles<'_, S, M> {
    /// The blocks that these columns of the matrix are packed in: those of the first columns from
    /// top to bottom, then those of the next. One block of all words if sums are rounded.
    fn blocks(&self, columns: Range<usize>, [num_words, num_columns]: [usize; 2]) -> Vec<Block> {
        let cut = |all: Range<usize>, step: usize| {
            all.clone().step_by(step).map(move |start| start..all.end.min(start + step))
        };
        let all_words = 0..self.a.num_columns();
        let block_of = |columns: Range<usize>| {
            cut(all_words.clone(), num_words).map(move |words| Block { words, columns: columns.clone() })
        };
        cut(columns, num_columns).flat_map(block_of).collect()
    }

    /// Words and columns of one block with panels of `REGISTERS`.
    fn block_size<const REGISTERS: usize>(&self) -> [usize; 2] {
        let num_words = self.words.of_block();
        if !self.c.is_rounded() || self.a.num_columns() <= num_words {
            return [num_words, block_columns::<REGISTERS>()];
        }
        let (num_words, width) = (self.a.num_columns(), panel_width::<S, REGISTERS>());
        [num_words, (DEEP_BLOCK_WORDS / num_words / width * width).clamp(width, block_columns::<REGISTERS>())]
    }

    /// Computes these columns with panels of `REGISTERS`.
    #[inline(always)]
    fn compute_columns<const REGISTERS: usize>(&mut self, columns: Range<usize>) {
        let width = panel_width::<S, REGISTERS>();
        let [block_words, block_columns] = self.block_size::<REGISTERS>();
        let blocks = self.blocks(columns.clone(), [block_words, block_columns]);
        let is_added_to = self.c.is_added_to();
        let largest = [block_words.min(self.a.num_columns()), block_columns.min(columns.len())];
        let mut panels = Panels::new::<S, REGISTERS>(self.words, largest);
        let (words, w) = (self.words, self.w);
        let part = |block: &Block| {
            w.rows(words.terms(block.words.clone(), w.num_rows())).columns(block.columns.clone())
        };
        for (index, block) in blocks.iter().enumerate() {
            let panels = panels.pack::<S, REGISTERS>(self.simd, words, part(block));
            let num_tiles = self.a.num_rows().div_ceil(TILE_ROWS) * block.columns.len().div_ceil(width);
            // With many registers, fetching ahead takes as long as it saves (measured with
            // AVX-512).
            let next = blocks.get(index + 1).filter(|_| REGISTERS == FEW_REGISTERS);
            let mut fetch = Fetch::new(next.map(part), num_tiles);
            let pass = Pass::<_, _, REGISTERS> {
                simd: self.simd,
                multiply: self.multiply,
                a: self.a.columns(block.words.clone()),
                panels,
                num_columns: self.w.num_columns(),
                columns: block.columns.clone(),
                words: block.words.clone(),
                made: self.words,
                add: is_added_to || block.words.start > 0,
                triangle: self.triangle,
            };
            // SAFETY: a pass writes sums. What is added to has values, and a block that does not
            // hold the first words comes after one of the same columns that does: its pass has
            // written the elements that this one adds to.
            unsafe { pass.run(self.c.elements(), &mut fetch) };
        }
    }
}

/// Part of the matrix of weights, by its words.
struct Block {
    words: Range<usize>,
    columns: Range<usize>,
}

#[cfg(test)]
mod tests {
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
                Compute::Bf16 => Words::Rounded,
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
            if compute == Compute::Bf16 && Avx512Bf16::try_new().is_some() {
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
        for [m, k, n] in
            [[1, deep + 1, wide + 1], [13, 2 * deep + 9, 3], [7, 5, 2 * wide + 17], [25, deep, wide]]
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
        add_product(
            &mut expected,
            Matrix::row_major(&a_copy, 20),
            Matrix::row_major(&copy, 37),
            Compute::F32,
        );
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
}

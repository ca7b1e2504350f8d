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
//! next terms are added: the same bits whichever rows and columns surround it. Matrix units have an
//! order of their own within a block (`tile_unit.rs`).

mod factor;
mod interleave;
mod multiply;
mod panels;
mod products;
mod registers;
mod row_vector;
mod target;
#[cfg(test)]
mod tests;
mod tile;
#[cfg(any(test, target_arch = "x86_64"))]
mod tile_unit;
#[cfg(target_arch = "x86_64")]
mod trial;
mod words;

use std::mem::MaybeUninit;
use std::ops::Range;

#[cfg(target_arch = "aarch64")]
use pulp::aarch64::Neon;
#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};
use pulp::{Scalar128b, Simd, WithSimd};

use crate::bf16::Compute;
use crate::matrix::Matrix;
use interleave::EIGHT;
use multiply::{Fused, Unfused};
use panels::{Fetch, Panels};
use products::Unit;
use registers::panel_width;
use target::Target;
use tile::{MultiplyPanels, Pass};
use words::{LeftWords, Words};

pub(crate) use factor::Factor;
pub use products::Products;
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
    /// Whether the left factor is a triangle, or its transpose.
    fn is_left(self) -> bool {
        matches!(self, Self::Left { .. } | Self::LeftTransposed { .. })
    }

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
        Compute::Bf16 | Compute::PortableBf16 => match Unit::of(product.compute) {
            #[cfg(target_arch = "x86_64")]
            Unit::Amx(units) => units.run(product),
            #[cfg(target_arch = "x86_64")]
            Unit::Avx512Bf16(cpu) => {
                cpu.run(Tiled::<_, MANY_REGISTERS> { product, multiply: cpu, words: Words::Pairs(cpu) });
            }
            Unit::F32 => multiply_terms(product, Words::Rounded),
        },
    }
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

impl<M: MultiplyPanels, const REGISTERS: usize> WithSimd for Tiled<'_, M, REGISTERS> {
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
            1 if panel_width::<S, 1>() >= EIGHT && M::FEWEST_REGISTERS == 1 => {
                tiles.compute_columns::<1>(whole..num_columns);
            }
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

impl<S: Simd, M: MultiplyPanels> Tiles<'_, S, M> {
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
            unsafe { M::run(&pass, self.c.elements(), &mut fetch) };
        }
    }
}

/// Part of the matrix of weights, by its words.
struct Block {
    words: Range<usize>,
    columns: Range<usize>,
}

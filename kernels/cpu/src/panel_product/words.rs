//! What panels and rows are made of: words of 32 bits, each of one term of the sums, or of two.
//!
//! A product in bf16 has the same bits on every machine, unless matrix units compute it. A pair of
//! terms is added to a sum one after the other, the second first, each rounded once: that is what
//! `vdpbf16ps` does. A product of two bf16 is exact in f32, so an f32 sum of rounded terms in that
//! order is the same. Matrix units read the same pairs in tiles (`tile_unit.rs`).

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512bf16;
#[cfg(any(test, target_arch = "x86_64"))]
pub(super) mod pairing;
#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;
use std::ops::Range;

use super::factor::{Factor, of_either};
#[cfg(any(test, target_arch = "x86_64"))]
use super::interleave::{EIGHT, interleave};
use super::{READ_BEYOND_DIAGONAL, Triangle};
use crate::bf16::Element;
use crate::matrix::Matrix;
use crate::simd::vectorised;
use crate::unwritten::{Unwritten, write_zeros};
#[cfg(target_arch = "x86_64")]
use avx512bf16::Avx512Bf16;
#[cfg(any(test, target_arch = "x86_64"))]
use pairing::Pairing;

/// How terms become words.
#[derive(Debug, Clone, Copy)]
pub(super) enum Words {
    /// Each is a word.
    Terms,
    /// Each is a word, rounded to bf16; the second of a pair comes first. What is missing in the
    /// last pair is zero.
    Rounded,
    /// A pair is a word, rounded to bf16: the first in the lower half.
    #[cfg(target_arch = "x86_64")]
    Pairs(Avx512Bf16),
    /// As `Pairs`, filled up with zeros: a multiple of [`TILE_WORDS`] in at least [`TILES_ROWS`]
    /// rows, each in one piece.
    #[cfg(any(test, target_arch = "x86_64"))]
    Tiles(Pairing),
}

/// Words of a row of a matrix unit's tile.
#[cfg(any(test, target_arch = "x86_64"))]
pub(super) const TILE_WORDS: usize = 16;
/// Rows that a matrix unit multiplies at a time: those of two tiles.
#[cfg(any(test, target_arch = "x86_64"))]
pub(super) const TILES_ROWS: usize = 32;

/// Most words of one panel, but of a product that is rounded: as many bytes as 256 terms in f32.
const PANEL_WORDS: usize = 256;

impl Words {
    /// Words of one block, to whose sums those of the next are added: the same terms wherever they
    /// are rounded.
    pub(super) const fn of_block(self) -> usize {
        match self {
            Self::Rounded => 2 * PANEL_WORDS,
            _ => PANEL_WORDS,
        }
    }

    /// The words that hold these terms.
    #[inline(always)]
    pub(super) fn of_terms(self, terms: Range<usize>) -> Range<usize> {
        match self {
            Self::Terms => terms,
            Self::Rounded => terms.start & !1..terms.end.next_multiple_of(2),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs(_) => terms.start / 2..terms.end.div_ceil(2),
            #[cfg(any(test, target_arch = "x86_64"))]
            Self::Tiles(_) => {
                let (start, end) = (terms.start / 2, terms.end.div_ceil(2));
                start / TILE_WORDS * TILE_WORDS..end.next_multiple_of(TILE_WORDS)
            }
        }
    }

    /// The terms that these words hold, of `num_terms` in all.
    pub(super) fn terms(self, words: Range<usize>, num_terms: usize) -> Range<usize> {
        match self {
            Self::Terms => words,
            Self::Rounded => words.start..words.end.min(num_terms),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs(_) => 2 * words.start..num_terms.min(2 * words.end),
            #[cfg(any(test, target_arch = "x86_64"))]
            Self::Tiles(_) => 2 * words.start..num_terms.min(2 * words.end),
        }
    }

    /// Rows of words that are made of as many rows of terms.
    fn num_rows(self, num_rows: usize) -> usize {
        match self {
            #[cfg(any(test, target_arch = "x86_64"))]
            Self::Tiles(_) => num_rows.max(TILES_ROWS),
            _ => num_rows,
        }
    }

    /// Fills `to` with the words of a row's terms.
    ///
    /// # Panics
    /// If they are not as many.
    pub(super) fn along<'t, E: Loads>(self, to: &'t mut [MaybeUninit<f32>], row: &[E]) -> &'t mut [f32] {
        assert_eq!(to.len(), self.of_terms(0..row.len()).end, "words of {} terms", row.len());
        match self {
            Self::Terms | Self::Rounded => round_along(to, row),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs(cpu) => cpu.pair_along(to, row),
            #[cfg(any(test, target_arch = "x86_64"))]
            Self::Tiles(pairing) => {
                let (pairs, missing) = to.split_at_mut(row.len().div_ceil(2));
                pairing.along(pairs, row);
                write_zeros(missing);
            }
        }
        // SAFETY: either writes every word.
        unsafe { to.assume_init_mut() }
    }

    /// Fills `to` with a row of words: as many columns from `first_column` on of those rows of
    /// `terms` that the word with this index is made of.
    ///
    /// # Panics
    /// If there are fewer columns, or they lie apart.
    pub(super) fn across<'t, E: Loads>(
        self,
        to: &'t mut [MaybeUninit<f32>],
        index: usize,
        terms: Matrix<'_, E>,
        first_column: usize,
    ) -> &'t mut [f32] {
        let len = to.len();
        let row = |row: usize| (row < terms.num_rows()).then(|| &terms.row(row)[first_column..][..len]);
        match self {
            Self::Terms | Self::Rounded => match row(index ^ 1) {
                Some(row) => round_each(to, row),
                None => return write_zeros(to),
            },
            #[cfg(target_arch = "x86_64")]
            Self::Pairs(cpu) => cpu.pair_across(to, row(2 * index), row(2 * index + 1)),
            #[cfg(any(test, target_arch = "x86_64"))]
            Self::Tiles(pairing) => pairing.across(to, row(2 * index), row(2 * index + 1)),
        }
        // SAFETY: either writes every word.
        unsafe { to.assume_init_mut() }
    }
}

/// The rows of a left factor as words.
pub(super) enum LeftWords<'a> {
    /// Where they lie, of such words already.
    InPlace(Matrix<'a>),
    /// In a copy of this shape, each in one piece.
    Rows(Vec<f32>, [usize; 2]),
    /// In a copy of this shape, next to each other.
    Columns(Vec<f32>, [usize; 2]),
}

impl<'a> LeftWords<'a> {
    /// Of a factor that `triangle` says of which terms are not read.
    pub(super) fn new(words: Words, source: Factor<'a>, triangle: Triangle) -> Self {
        let shape = [source.num_rows(), words.of_terms(0..source.num_columns()).end];
        match words {
            Words::Terms => Self::InPlace(source.f32()),
            _ if let Some(pairs) = pairs_in_place(words, source, triangle) => Self::InPlace(pairs),
            _ if source.has_contiguous_rows() => {
                Self::Rows(of_either!(source, rows => by_rows(words, rows, triangle)), shape)
            }
            _ => {
                let columns = source.transposed();
                let copy = of_either!(columns, columns => by_columns(words, columns, triangle));
                match words {
                    #[cfg(any(test, target_arch = "x86_64"))]
                    Words::Tiles(_) => Self::Rows(in_one_piece(words, &copy, shape), shape),
                    _ => Self::Columns(copy, shape),
                }
            }
        }
    }

    /// `[rows, words]`.
    pub(super) fn matrix(&self) -> Matrix<'_> {
        match *self {
            Self::InPlace(matrix) => matrix,
            Self::Rows(ref copy, [rows, words]) => Matrix::strided(copy, [rows, words], [words, 1]),
            Self::Columns(ref copy, [rows, words]) => {
                Matrix::strided(copy, [words, rows], [rows, 1]).transposed()
            }
        }
    }
}

/// Rows of bf16 as they lie, if they are pairs.
fn pairs_in_place<'a>(words: Words, source: Factor<'a>, triangle: Triangle) -> Option<Matrix<'a>> {
    match (words, source, triangle.is_left()) {
        #[cfg(target_arch = "x86_64")]
        (Words::Pairs(_), Factor::Bf16(rows), _) => rows.as_pairs(),
        // Of a triangle, many rows share the terms of the longest: more than may be read.
        #[cfg(any(test, target_arch = "x86_64"))]
        (Words::Tiles(_), Factor::Bf16(rows), false) => rows
            .as_pairs()
            .filter(|pairs| pairs.num_rows() >= TILES_ROWS && pairs.num_columns().is_multiple_of(TILE_WORDS)),
        _ => None,
    }
}

/// Words of rows, each in one piece.
fn by_rows<E: Loads>(words: Words, rows: Matrix<'_, E>, triangle: Triangle) -> Vec<f32> {
    let num_terms = rows.num_columns();
    let num_words = words.of_terms(0..num_terms).end;
    let len = words.num_rows(rows.num_rows()) * num_words;
    if let Triangle::Left { .. } = triangle {
        // Of each row only what may be read. The zeros behind it are read by whole tiles.
        let mut copy = vec![0.0; len];
        for (row, to) in copy.chunks_exact_mut(num_words).enumerate().take(rows.num_rows()) {
            let terms = triangle.terms(row..row + READ_BEYOND_DIAGONAL, 0..num_terms);
            let words_of_row = words.of_terms(terms.clone());
            words.along(as_unwritten(&mut to[words_of_row]), &rows.row(row)[terms]);
        }
        return copy;
    }
    let mut copy = Unwritten::new(len);
    for (row, to) in copy.whole().chunks(num_words.max(1)).enumerate() {
        to.fill(|to| match row < rows.num_rows() {
            true => words.along(to, rows.row(row)),
            false => write_zeros(to),
        });
    }
    copy.into_values()
}

/// Words of rows that lie next to each other: `columns` holds a term of all of them in each row.
fn by_columns<E: Loads>(words: Words, columns: Matrix<'_, E>, triangle: Triangle) -> Vec<f32> {
    let (num_terms, num_rows) = (columns.num_rows(), columns.num_columns());
    let num_words = words.of_terms(0..num_terms).end;
    if let Triangle::LeftTransposed { first } = triangle {
        let mut copy = vec![0.0; num_rows * num_words];
        for (word, to) in copy.chunks_exact_mut(num_rows.max(1)).enumerate() {
            // Of a pair's first term what may be read: its second term counts for one row more.
            let first_term = words.terms(word & !1..word + 2, num_terms).start;
            let read = num_rows.min(first + first_term + 1 + READ_BEYOND_DIAGONAL);
            words.across(as_unwritten(&mut to[..read]), word, columns, 0);
        }
        return copy;
    }
    let mut copy = Unwritten::new(num_rows * num_words);
    for (word, to) in copy.whole().chunks(num_rows.max(1)).enumerate() {
        to.fill(|to| words.across(to, word, columns, 0));
    }
    copy.into_values()
}

/// Rows of words that lie next to each other, each in one piece; whole tiles.
#[cfg(any(test, target_arch = "x86_64"))]
fn in_one_piece(words: Words, columns: &[f32], [num_rows, num_words]: [usize; 2]) -> Vec<f32> {
    let mut copy = Unwritten::new(words.num_rows(num_rows) * num_words);
    copy.whole().fill(|to| {
        for (first, eight) in (0..).step_by(EIGHT).zip(columns.chunks_exact((EIGHT * num_rows).max(1))) {
            let column = |i| &eight[i * num_rows..][..num_rows];
            interleave(&mut to[first..], num_words, std::array::from_fn(column));
        }
        write_zeros(&mut to[num_rows * num_words..]);
        // SAFETY: as many words as there are, a multiple of eight, of each row, and the rows behind.
        unsafe { to.assume_init_mut() }
    });
    copy.into_values()
}

/// Values to be replaced by values.
fn as_unwritten(values: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: the same layout; `Words` writes nothing but values.
    unsafe { &mut *(std::ptr::from_mut(values) as *mut [MaybeUninit<f32>]) }
}

vectorised! {
    /// Fills `to` with the pairs of a row, rounded, the second of each first.
    fn round_along<E: Loads>(to: &mut [MaybeUninit<f32>], row: &[E]) = round_row_of_pairs;
}

#[inline(always)]
fn round_row_of_pairs<E: Element, const FUSED: bool>(to: &mut [MaybeUninit<f32>], row: &[E]) {
    let ((pairs, last), (to, last_to)) = (row.as_chunks::<2>(), to.as_chunks_mut::<2>());
    debug_assert!(last_to.is_empty());
    let (whole, rest) = to.split_at_mut(pairs.len());
    for (to, &[first, second]) in whole.iter_mut().zip(pairs) {
        *to = [second, first].map(|term| MaybeUninit::new(rounded(term)));
    }
    if let ([to], [first]) = (rest, last) {
        *to = [0.0, rounded(*first)].map(MaybeUninit::new);
    }
}

vectorised! {
    /// Fills `to` with the terms of a row, rounded.
    fn round_each<E: Loads>(to: &mut [MaybeUninit<f32>], row: &[E]) = round_row;
}

#[inline(always)]
fn round_row<E: Element, const FUSED: bool>(to: &mut [MaybeUninit<f32>], row: &[E]) {
    for (to, &term) in to.iter_mut().zip(row) {
        to.write(rounded(term));
    }
}

#[inline(always)]
fn rounded<E: Element>(term: E) -> f32 {
    term.to_bf16().to_f32()
}

/// Elements that words are made of.
#[cfg(not(target_arch = "x86_64"))]
pub(super) use crate::bf16::Element as Loads;
/// Elements that words are made of.
#[cfg(target_arch = "x86_64")]
pub(super) use avx512bf16::Loads;

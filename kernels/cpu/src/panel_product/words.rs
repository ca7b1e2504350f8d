//! What panels and rows are made of: words of 32 bits, each of one term of the sums, or of two.
//!
//! A product in bf16 has the same bits on every machine. A pair of terms is added to a sum one
//! after the other, the second first, each rounded once: that is what `vdpbf16ps` does. A product
//! of two bf16 is exact in f32, so an f32 sum of rounded terms in that order is the same.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512bf16;
#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;
use std::ops::Range;

use super::factor::{Factor, of_either};
use super::{TILE_ROWS, Triangle};
use crate::bf16::Element;
use crate::matrix::Matrix;
use crate::simd::vectorised;
use crate::unwritten::{Unwritten, write_zeros};
#[cfg(target_arch = "x86_64")]
use avx512bf16::Avx512Bf16;

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
}

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
        }
    }

    /// The terms that these words hold, of `num_terms` in all.
    pub(super) fn terms(self, words: Range<usize>, num_terms: usize) -> Range<usize> {
        match self {
            Self::Terms => words,
            Self::Rounded => words.start..words.end.min(num_terms),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs(_) => 2 * words.start..num_terms.min(2 * words.end),
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
        }
        // SAFETY: either writes every word.
        unsafe { to.assume_init_mut() }
    }
}

/// The rows of a left factor as words, in a copy unless they are such where they lie.
pub(super) struct LeftWords<'a> {
    source: Factor<'a>,
    copy: Option<Vec<f32>>,
    words: Words,
}

impl<'a> LeftWords<'a> {
    /// Of a factor that `triangle` says of which terms are not read.
    pub(super) fn new(words: Words, source: Factor<'a>, triangle: Triangle) -> Self {
        let copy = match words {
            Words::Terms => None,
            _ if pairs_in_place(words, source).is_some() => None,
            _ if source.has_contiguous_rows() => {
                Some(of_either!(source, rows => by_rows(words, rows, triangle)))
            }
            _ => Some(of_either!(source, columns => by_columns(words, columns.transposed(), triangle))),
        };
        Self { source, copy, words }
    }

    /// `[rows, words]`.
    pub(super) fn matrix(&self) -> Matrix<'_> {
        let Self { source, copy, words } = self;
        let (num_rows, num_words) = (source.num_rows(), words.of_terms(0..source.num_columns()).end);
        match copy {
            None => pairs_in_place(*words, *source).unwrap_or_else(|| source.f32()),
            Some(copy) if source.has_contiguous_rows() => {
                Matrix::strided(copy, [num_rows, num_words], [num_words, 1])
            }
            Some(copy) => Matrix::strided(copy, [num_words, num_rows], [num_rows, 1]).transposed(),
        }
    }
}

/// Rows of bf16 as they lie, if they are pairs.
fn pairs_in_place(words: Words, source: Factor<'_>) -> Option<Matrix<'_>> {
    match (words, source) {
        #[cfg(target_arch = "x86_64")]
        (Words::Pairs(_), Factor::Bf16(rows)) => rows.as_pairs(),
        _ => None,
    }
}

/// Words of rows, each in one piece.
fn by_rows<E: Loads>(words: Words, rows: Matrix<'_, E>, triangle: Triangle) -> Vec<f32> {
    let num_terms = rows.num_columns();
    let num_words = words.of_terms(0..num_terms).end;
    if let Triangle::Left { .. } = triangle {
        // Of each row only what the tile that it falls into may read.
        let mut copy = vec![0.0; rows.num_rows() * num_words];
        for (row, to) in copy.chunks_exact_mut(num_words).enumerate() {
            let read = words.of_terms(triangle.terms(row..row + TILE_ROWS, 0..num_terms));
            let terms = words.terms(read.clone(), num_terms);
            words.along(as_unwritten(&mut to[read]), &rows.row(row)[terms]);
        }
        return copy;
    }
    let mut copy = Unwritten::new(rows.num_rows() * num_words);
    for (row, to) in copy.whole().chunks(num_words.max(1)).enumerate() {
        to.fill(|to| words.along(to, rows.row(row)));
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
            // The last row that reads a term, and those of its tile.
            let last_term = words.terms(word & !1..word + 2, num_terms).end;
            let read = num_rows.min(first + last_term + TILE_ROWS);
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

//! Panels times rows by matrix units, which hold tiles of factors and of sums.
//!
//! Rows and panels are those of `vdpbf16ps`: sixteen words of sixteen rows are a tile of the left
//! factor, sixteen rows of one register of a panel a tile of the right factor. Words are filled up
//! with zeros to whole tiles, which changes no sum. Rows are not: the last ones are multiplied with
//! some of those before, and few rows with what lies behind them; such sums are not written.
//!
//! An element is a sum over the words of one block, sixteen at a time: the first terms of these, and
//! the second terms, are summed apart; both sums together are added to the element. So the bits are
//! others than those of `words.rs`, but the same whichever rows and columns surround it.

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod emulated;
#[cfg(test)]
mod manual;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;
use std::ops::Range;

use pulp::Simd;

use super::panels::Fetch;
use super::registers::panel_width;
use super::target::Elements;
use super::tile::{MultiplyPanels, Pass};
use super::words::{TILE_WORDS, TILES_ROWS};

/// Columns that are multiplied at a time: those of two tiles.
const TILES_COLUMNS: usize = 32;

/// The factors of two by two tiles of sums: rows of words, and a part of a panel.
struct Step {
    /// The first of [`TILES_ROWS`] rows of as many whole tiles as there are.
    a: *const f32,
    /// Bytes between rows.
    a_stride: usize,
    /// The first of as many rows of a panel.
    b: *const f32,
    /// Bytes between rows.
    b_stride: usize,
    /// How many times [`TILE_WORDS`] words.
    num_tiles: usize,
}

/// Sums of one step, where no other place is for them.
#[repr(align(64))]
struct Sums([f32; TILES_ROWS * TILES_COLUMNS]);

/// What multiplies tiles.
trait TileUnit: Copy {
    /// Lays out the tiles of this thread.
    fn begin(self);

    /// Writes the sums of a step to rows that begin as many bytes apart.
    ///
    /// # Safety
    /// This thread has laid out its tiles; all that the step describes is there, and as many rows
    /// and columns from `c` on.
    unsafe fn multiply(self, step: &Step, c: *mut f32, c_stride: usize);

    /// Gives up the tiles of this thread, which then costs no more to interrupt than others.
    fn end(self);
}

/// A unit whose tiles are laid out, on the thread that it was made on, for one product.
struct Session<U: TileUnit> {
    unit: U,
    /// Stays on its thread.
    thread: PhantomData<*const ()>,
}

impl<U: TileUnit> Session<U> {
    fn begin(unit: U) -> Self {
        unit.begin();
        Self { unit, thread: PhantomData }
    }
}

impl<U: TileUnit> Drop for Session<U> {
    fn drop(&mut self) {
        self.unit.end();
    }
}

impl<U: TileUnit> MultiplyPanels for &Session<U> {
    const FEWEST_REGISTERS: usize = 2;

    #[inline(always)]
    unsafe fn run<S: Simd, const REGISTERS: usize>(
        pass: &Pass<'_, S, Self, REGISTERS>,
        c: &mut Elements<'_>,
        _: &mut Fetch<'_>,
    ) {
        const { assert!(size_of::<S::f32s>() == 4 * TILE_WORDS, "a register is a row of a tile") }
        assert!(REGISTERS.is_multiple_of(2), "panels of {REGISTERS} registers in pairs of tiles");
        let num_rows = pass.a.num_rows();
        for first in (0..num_rows).step_by(TILES_ROWS) {
            let rows = first..num_rows.min(first + TILES_ROWS);
            let words = pass.words_of(rows.clone());
            for column in pass.columns.clone().step_by(TILES_COLUMNS) {
                let columns = column..pass.columns.end.min(column + TILES_COLUMNS);
                // SAFETY: the caller's.
                unsafe { pass.tiles_of(rows.clone(), columns, words.clone(), c) };
            }
        }
    }
}

impl<S: Simd, U: TileUnit, const REGISTERS: usize> Pass<'_, S, &Session<U>, REGISTERS> {
    /// The products of these rows with these columns, of which these words are not zero.
    ///
    /// # Safety
    /// As [`MultiplyPanels::run`].
    #[inline(always)]
    unsafe fn tiles_of(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        words: Range<usize>,
        c: &mut Elements<'_>,
    ) {
        if !self.triangle.contains(rows.end - 1, columns.start) || words.is_empty() && self.add {
            return;
        }
        let n = self.num_columns;
        // The last rows are multiplied with some of those before, so that there are as many.
        let first = rows.start.min(self.a.num_rows().saturating_sub(TILES_ROWS));
        let step = self.step(first, columns.start, words);
        let is_whole = rows.len() == TILES_ROWS && columns.len() == TILES_COLUMNS && !self.add;
        if let (true, Elements::F32(c)) = (is_whole, &mut *c) {
            let to = &mut c[first * n + columns.start..][..(TILES_ROWS - 1) * n + TILES_COLUMNS];
            // SAFETY: a session has laid out the tiles of its thread. The factors are there, and an
            // element for each sum.
            unsafe { self.multiply.unit.multiply(&step, to.as_mut_ptr().cast(), size_of::<f32>() * n) };
            return;
        }
        let mut sums = Sums([0.0; TILES_ROWS * TILES_COLUMNS]);
        // SAFETY: as above.
        unsafe {
            self.multiply.unit.multiply(&step, sums.0.as_mut_ptr(), size_of::<f32>() * TILES_COLUMNS);
        }
        for row in rows {
            let (sums, _) = S::as_simd_f32s(&sums.0[(row - first) * TILES_COLUMNS..][..TILES_COLUMNS]);
            let start = row * n + columns.start;
            let (sums, _) = sums.as_chunks::<2>();
            // SAFETY: the caller's.
            unsafe { c.write(self.simd, start..start + columns.len(), &sums[0], self.add) };
        }
    }

    /// The factors of the sums of as many rows from `row` on, and as many columns from `column` on,
    /// over these words.
    ///
    /// # Panics
    /// If they are not there.
    fn step(&self, row: usize, column: usize, words: Range<usize>) -> Step {
        let width = panel_width::<S, REGISTERS>();
        let words = words.start - self.words.start..words.end - self.words.start;
        let (panel, within) = ((column - self.columns.start) / width, (column - self.columns.start) % width);
        let panel_len = self.words.len() * width;
        let panel = &self.panels[panel * panel_len..][..panel_len];
        let (a, a_step) = self.a.rows_from(row);
        let a_end = (TILES_ROWS - 1) * a_step + words.end;
        assert!(
            words.len().is_multiple_of(TILE_WORDS) && a_end <= a.len() && within + TILES_COLUMNS <= width,
            "words {words:?} of rows {a_step} apart in {}, columns from {within} of {width}",
            a.len()
        );
        Step {
            a: a[words.start..].as_ptr(),
            a_stride: size_of::<f32>() * a_step,
            b: panel[words.start * width..words.end * width].as_ptr().wrapping_add(within),
            b_stride: size_of::<f32>() * width,
            num_tiles: words.len() / TILE_WORDS,
        }
    }
}

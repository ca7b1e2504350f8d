//! One panel times all rows: tiles that stay in registers while the panel passes by.

use std::mem::MaybeUninit;
use std::ops::Range;

use pulp::{MemMask, Simd};

use super::panels::Fetch;
use super::{TILE_ROWS, Triangle};
use crate::matrix::{Matrix, Step};

/// Elements that stay in the first-level cache beside what passes by.
const FIRST_LEVEL_LEN: usize = 8192;

/// Columns of a panel.
#[inline(always)]
pub(super) const fn panel_width<S: Simd, const REGISTERS: usize>() -> usize {
    REGISTERS * (size_of::<S::f32s>() / size_of::<f32>())
}

/// The mask of as many lanes. Without the functions that pulp would store and load them by: the instruction is there.
#[inline(always)]
pub(super) fn first_lanes<S: Simd>(simd: S, num_lanes: usize) -> MemMask<S::m32s> {
    MemMask::new(simd.mask_between_m32s(0, num_lanes as u32).mask())
}

/// One row of a panel, or the sums of one row of a tile.
type PanelRow<S, const REGISTERS: usize> = [<S as Simd>::f32s; REGISTERS];

/// The panels of one block and the part of each row that they are multiplied by.
pub(super) struct Pass<'a, S, const REGISTERS: usize> {
    pub(super) simd: S,
    pub(super) a: Matrix<'a>,
    pub(super) panels: &'a [f32],
    /// Columns of the product, and which of them the panels hold.
    pub(super) num_columns: usize,
    pub(super) columns: Range<usize>,
    /// Which terms of the sums the panels hold.
    pub(super) terms: Range<usize>,
    /// The elements of the product have values, to be added to.
    pub(super) add: bool,
    pub(super) triangle: Triangle,
}

impl<S: Simd, const REGISTERS: usize> Pass<'_, S, REGISTERS> {
    /// All rows times all panels: whichever is the smaller, a panel or the part of a tile's rows, stays in the first-level cache
    /// while the others pass by.
    #[inline(always)]
    pub(super) fn run<const FUSED: bool>(&self, c: &mut [MaybeUninit<f32>], fetch: &mut Fetch<'_>) {
        let width = panel_width::<S, REGISTERS>();
        let num_panels = self.columns.len().div_ceil(width);
        // Rows that lie next to each other share cache lines with those of the next tile, which comes too late for them.
        let rows_stay = self.a.has_contiguous_rows() && self.terms.len() * width > FIRST_LEVEL_LEN;
        let panels_at_once = if rows_stay { num_panels } else { 1 };
        let mut first = 0;
        while first < num_panels {
            let panels = first..first + panels_at_once;
            // Whole tiles, then ever lower ones. A row's sums do not depend on the tile that it falls into.
            let row = self.tiles::<TILE_ROWS, FUSED>(0, panels.clone(), c, fetch);
            let row = self.tiles::<4, FUSED>(row, panels.clone(), c, fetch);
            let row = self.tiles::<2, FUSED>(row, panels.clone(), c, fetch);
            self.tiles::<1, FUSED>(row, panels, c, fetch);
            first += panels_at_once;
        }
    }

    /// As many tiles of `ROWS` rows as there are from `row` on, times these panels. Returns the row behind them.
    #[inline(always)]
    fn tiles<const ROWS: usize, const FUSED: bool>(
        &self,
        mut row: usize,
        panels: Range<usize>,
        c: &mut [MaybeUninit<f32>],
        fetch: &mut Fetch<'_>,
    ) -> usize {
        while row + ROWS <= self.a.num_rows() {
            let terms = self.triangle.terms(row..row + ROWS, self.terms.clone());
            for (part, panel) in panels.clone().enumerate() {
                fetch.some();
                self.prefetch_rows::<ROWS>(row + ROWS, part, panels.len());
                self.tile::<ROWS, FUSED>(row, panel, terms.clone(), c);
            }
            row += ROWS;
        }
        row
    }

    /// Starts to bring the rows of the next tile into the cache, a part of them with each of several panels.
    #[inline(always)]
    fn prefetch_rows<const ROWS: usize>(&self, first: usize, part: usize, num_parts: usize) {
        if num_parts > 1 {
            (first + part..first + ROWS).step_by(num_parts).for_each(|row| self.a.prefetch_row(row));
        }
    }

    /// The products of the rows from `row` on with one panel, of which these terms are not zero.
    #[inline(always)]
    fn tile<const ROWS: usize, const FUSED: bool>(
        &self,
        row: usize,
        panel: usize,
        terms: Range<usize>,
        c: &mut [MaybeUninit<f32>],
    ) {
        let width = panel_width::<S, REGISTERS>();
        let column = self.columns.start + panel * width;
        if !self.triangle.contains(row + ROWS - 1, column) || terms.is_empty() && self.add {
            return;
        }
        let panel_len = self.terms.len() * width;
        let (registers, _) = S::as_simd_f32s(&self.panels[panel * panel_len..][..panel_len]);
        let (panel, _) = registers.as_chunks::<REGISTERS>();
        let terms = terms.start - self.terms.start..terms.end - self.terms.start;
        let panel = &panel[terms.clone()];
        let sums = if self.a.has_contiguous_rows() {
            self.sums_by_rows::<ROWS, FUSED>(row, terms, panel)
        } else {
            self.sums_by_columns::<ROWS, FUSED>(row, terms, panel)
        };
        self.write(row, column..self.columns.end.min(column + width), sums, c);
    }

    /// The sums over these terms of the rows from `row` on, which lie each in one piece.
    #[inline(always)]
    fn sums_by_rows<const ROWS: usize, const FUSED: bool>(
        &self,
        row: usize,
        terms: Range<usize>,
        panel: &[PanelRow<S, REGISTERS>],
    ) -> [PanelRow<S, REGISTERS>; ROWS] {
        let mut rows = [[].as_slice(); ROWS];
        for (i, a) in rows.iter_mut().enumerate() {
            *a = &self.a.row(row + i)[terms.clone()];
            assert!(a.len() == panel.len(), "{} elements times a panel of {}", a.len(), panel.len());
        }
        // SAFETY: each row is as long as the panel.
        let at = |i: usize, p: usize| unsafe { *rows.get_unchecked(i).get_unchecked(p) };
        sums::<S, REGISTERS, ROWS, FUSED>(self.simd, at, panel)
    }

    /// The same of rows that lie next to each other, as those of a transposed matrix do.
    #[inline(always)]
    fn sums_by_columns<const ROWS: usize, const FUSED: bool>(
        &self,
        row: usize,
        terms: Range<usize>,
        panel: &[PanelRow<S, REGISTERS>],
    ) -> [PanelRow<S, REGISTERS>; ROWS] {
        assert!(
            row + ROWS <= self.a.num_rows()
                && terms.end <= self.a.num_columns()
                && panel.len() == terms.len(),
            "{ROWS} rows from {row} and terms {terms:?} of {:?} times a panel of {}",
            self.a,
            panel.len()
        );
        let (elements, step) = self.a.columns_from_row(row);
        match step {
            Step::Stride(stride) => {
                let first = terms.start * stride;
                // SAFETY: `a` has these rows and columns, as many as the panel is long; its elements lie in the slice.
                let at = |i: usize, p: usize| unsafe { *elements.get_unchecked(first + p * stride + i) };
                sums::<S, REGISTERS, ROWS, FUSED>(self.simd, at, panel)
            }
            Step::Offsets(offsets) => {
                let offsets = &offsets[terms];
                // SAFETY: as above, and there is an offset for each column.
                let at =
                    |i: usize, p: usize| unsafe { *elements.get_unchecked(*offsets.get_unchecked(p) + i) };
                sums::<S, REGISTERS, ROWS, FUSED>(self.simd, at, panel)
            }
        }
    }

    /// Writes the sums of the rows from `row` on, in these columns.
    #[inline(always)]
    fn write<const ROWS: usize>(
        &self,
        row: usize,
        columns: Range<usize>,
        sums: [PanelRow<S, REGISTERS>; ROWS],
        c: &mut [MaybeUninit<f32>],
    ) {
        for (i, sums) in sums.iter().enumerate() {
            let start = (row + i) * self.num_columns + columns.start;
            // The last panel may hold more columns than the product.
            let (whole, rest) = S::as_uninit_mut_simd_f32s(&mut c[start..][..columns.len()]);
            // By constant numbers, all of which are looked at: registers have no others.
            for (register, &sum) in sums.iter().enumerate() {
                if let Some(target) = whole.get_mut(register) {
                    // SAFETY: with `add`, all elements have values.
                    let sum =
                        if self.add { self.simd.add_f32s(unsafe { target.assume_init() }, sum) } else { sum };
                    target.write(sum);
                } else if register == whole.len() {
                    self.write_part(rest, sum);
                }
            }
        }
    }

    /// Writes the first lanes of `sum`, as many as there are elements.
    #[inline(always)]
    fn write_part(&self, part: &mut [MaybeUninit<f32>], sum: S::f32s) {
        let lanes = first_lanes(self.simd, part.len());
        let part = part.as_mut_ptr().cast::<f32>();
        // SAFETY: only the lanes of the part are read and written; with `add`, all elements have values.
        unsafe {
            let sum = match self.add {
                true => self.simd.add_f32s(self.simd.mask_load_ptr_f32s(lanes, part), sum),
                false => sum,
            };
            self.simd.mask_store_ptr_f32s(lanes, part, sum);
        }
    }
}

/// The products of some rows with a panel, each summed from the first term to the last. `a` is their element (row, term).
#[inline(always)]
fn sums<S: Simd, const REGISTERS: usize, const ROWS: usize, const FUSED: bool>(
    simd: S,
    a: impl Fn(usize, usize) -> f32,
    panel: &[PanelRow<S, REGISTERS>],
) -> [PanelRow<S, REGISTERS>; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); REGISTERS]; ROWS];
    for (p, panel_row) in panel.iter().enumerate() {
        for (row, sums) in sums.iter_mut().enumerate() {
            let a = simd.splat_f32s(a(row, p));
            for (sum, &b) in sums.iter_mut().zip(panel_row) {
                *sum = multiply_add::<S, FUSED>(simd, a, b, *sum);
            }
        }
    }
    sums
}

/// As [`crate::simd::multiply_add`], of vectors.
#[inline(always)]
fn multiply_add<S: Simd, const FUSED: bool>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
    if FUSED { simd.mul_add_f32s(a, b, c) } else { simd.add_f32s(simd.mul_f32s(a, b), c) }
}

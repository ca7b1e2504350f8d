//! Blocks of a matrix, packed into panels.

mod interleave;

use std::mem::MaybeUninit;

use pulp::Simd;

use super::tile::{first_lanes, panel_width};
use super::{PANEL_DEPTH, block_columns};
use crate::matrix::{Matrix, Unwritten};
pub(super) use interleave::EIGHT;
use interleave::interleave;

/// Elements of one cache line.
const LINE_LEN: usize = 16;
/// What is packed in place of missing columns.
const ZEROS: &[f32] = &[0.0; PANEL_DEPTH];

/// Room for one block.
pub(super) struct Panels {
    elements: Unwritten,
}

impl Panels {
    /// Room for each block of a matrix of this shape.
    pub(super) fn new<S: Simd, const REGISTERS: usize>([num_rows, num_columns]: [usize; 2]) -> Self {
        let num_columns = num_columns.min(block_columns::<REGISTERS>());
        let num_columns = num_columns.next_multiple_of(panel_width::<S, REGISTERS>());
        Self { elements: Unwritten::new(num_rows.min(PANEL_DEPTH) * num_columns) }
    }

    /// The panels of `block`, one after another, the last one filled up with zeros.
    ///
    /// # Panics
    /// If the block is larger than those that there is room for, or lies neither by rows nor by columns.
    #[inline(always)]
    pub(super) fn pack<S: Simd, const REGISTERS: usize>(&mut self, simd: S, block: Matrix<'_>) -> &[f32] {
        let width = panel_width::<S, REGISTERS>();
        let len = block.num_rows() * block.num_columns().next_multiple_of(width);
        let panels = &mut self.elements.as_mut_slice()[..len];
        if block.has_contiguous_rows() {
            pack_rows(simd, panels, block, width);
        } else {
            pack_columns(panels, block.transposed(), width);
        }
        // SAFETY: either way, each row of each panel has just been written.
        unsafe { &*(std::ptr::from_ref(panels) as *const [f32]) }
    }
}

#[inline(always)]
fn pack_rows<S: Simd>(simd: S, panels: &mut [MaybeUninit<f32>], block: Matrix<'_>, width: usize) {
    let depth = block.num_rows();
    for p in 0..depth {
        for (panel, part) in block.row(p).chunks(width).enumerate() {
            let target = &mut panels[(panel * depth + p) * width..][..width];
            if part.len() == width {
                target.write_copy_of_slice(&part[..width]);
            } else {
                pack_part(simd, target, part);
            }
        }
    }
}

/// A part of a row, filled up with zeros.
#[inline(always)]
fn pack_part<S: Simd>(simd: S, target: &mut [MaybeUninit<f32>], part: &[f32]) {
    let (whole, rest) = S::as_simd_f32s(part);
    let (target, _) = S::as_uninit_mut_simd_f32s(target);
    for (register, target) in target.iter_mut().enumerate() {
        target.write(match whole.get(register) {
            Some(&value) => value,
            None if register > whole.len() => simd.splat_f32s(0.0),
            // SAFETY: only the lanes of what is left are read.
            None => unsafe { simd.mask_load_ptr_f32s(first_lanes(simd, rest.len()), rest.as_ptr()) },
        });
    }
}

/// The rows of `columns` are the columns of the block.
#[inline(always)]
fn pack_columns(panels: &mut [MaybeUninit<f32>], columns: Matrix<'_>, width: usize) {
    let depth = columns.num_columns();
    for (panel, target) in panels.chunks_mut(depth * width).enumerate() {
        for first in (0..width).step_by(EIGHT) {
            let column = |i| {
                let column = panel * width + first + i;
                if column < columns.num_rows() { columns.row(column) } else { &ZEROS[..depth] }
            };
            interleave(&mut target[first..], width, std::array::from_fn(column));
        }
    }
}

/// The cache lines of the block that comes next, fetched a few at a time while this one is multiplied.
pub(super) struct Fetch<'a> {
    /// The block, by rows.
    block: Option<Matrix<'a>>,
    row: usize,
    column: usize,
    lines_at_once: usize,
}

impl<'a> Fetch<'a> {
    /// All lines of `block` in `num_times` times.
    pub(super) fn new(block: Option<Matrix<'a>>, num_times: usize) -> Self {
        let block = block.map(|block| if block.has_contiguous_rows() { block } else { block.transposed() });
        let num_lines = block.map_or(0, |block| block.num_rows() * block.num_columns().div_ceil(LINE_LEN));
        Self { block, row: 0, column: 0, lines_at_once: num_lines.div_ceil(num_times.max(1)) }
    }

    /// The next lines, if any are left.
    #[inline(always)]
    pub(super) fn some(&mut self) {
        let Some(block) = self.block else { return };
        for _ in 0..self.lines_at_once {
            if self.row == block.num_rows() {
                return;
            }
            fetch(&block.row(self.row)[self.column]);
            self.column += LINE_LEN;
            if self.column >= block.num_columns() {
                (self.row, self.column) = (self.row + 1, 0);
            }
        }
    }
}

/// Starts to bring the line of `element` into the second-level cache; a hint, without effect on some CPUs.
#[inline(always)]
fn fetch(element: &f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: prefetching reads no value and belongs to SSE, which every 64-bit x86 has.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(element).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = element;
}

//! Where a product is written.

use std::mem::MaybeUninit;
use std::ops::Range;

use pulp::Simd;

use super::factor::Factor;
use super::registers::first_lanes;
use crate::bf16::{Bf16, Element};
use crate::matrix::Matrix;

/// Elements that a product replaces, or values that it is added to.
pub(super) struct Target<'a> {
    elements: Elements<'a>,
    /// Only with values.
    is_added_to: bool,
}

/// Elements of either type.
pub(crate) enum Elements<'a> {
    F32(&'a mut [MaybeUninit<f32>]),
    /// Sums are rounded once, when all terms are in.
    Bf16(&'a mut [MaybeUninit<Bf16>]),
}

/// Elements of matrices that are multiplied, or that a product is written to.
pub(crate) trait Stored: Element {
    /// A matrix as a factor.
    fn factor(matrix: Matrix<'_, Self>) -> Factor<'_>;

    /// Where a product is written.
    fn elements(elements: &mut [MaybeUninit<Self>]) -> Elements<'_>;
}

impl Stored for f32 {
    fn factor(matrix: Matrix<'_, Self>) -> Factor<'_> {
        Factor::F32(matrix)
    }

    fn elements(elements: &mut [MaybeUninit<Self>]) -> Elements<'_> {
        Elements::F32(elements)
    }
}

impl Stored for Bf16 {
    fn factor(matrix: Matrix<'_, Self>) -> Factor<'_> {
        Factor::Bf16(matrix)
    }

    fn elements(elements: &mut [MaybeUninit<Self>]) -> Elements<'_> {
        Elements::Bf16(elements)
    }
}

impl Elements<'_> {
    /// Writes these elements of one row, or with `add` adds to them: as many sums as they are.
    ///
    /// # Safety
    /// With `add`, they have values.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd, const REGISTERS: usize>(
        &mut self,
        simd: S,
        elements: Range<usize>,
        sums: &[S::f32s; REGISTERS],
        add: bool,
    ) {
        match self {
            // SAFETY: the caller's.
            Self::F32(row) => unsafe { write_row(simd, &mut row[elements], sums, add) },
            Self::Bf16(row) => round_row::<S, REGISTERS>(&mut row[elements], sums),
        }
    }
}

/// Writes the sums of one row, as many as there are elements.
///
/// # Safety
/// With `add`, all elements have values.
#[inline(always)]
unsafe fn write_row<S: Simd, const REGISTERS: usize>(
    simd: S,
    row: &mut [MaybeUninit<f32>],
    sums: &[S::f32s; REGISTERS],
    add: bool,
) {
    let (whole, rest) = S::as_uninit_mut_simd_f32s(row);
    // By constant numbers, all of which are looked at: registers have no others.
    for (register, &sum) in sums.iter().enumerate() {
        if let Some(target) = whole.get_mut(register) {
            let sum = if add {
                // SAFETY: with `add`, all elements have values, says the caller.
                simd.add_f32s(unsafe { target.assume_init() }, sum)
            } else {
                sum
            };
            target.write(sum);
        } else if register == whole.len() {
            // SAFETY: the caller's.
            unsafe { write_part(simd, rest, sum, add) };
        }
    }
}

/// Writes the first lanes of `sum`, as many as there are elements.
///
/// # Safety
/// With `add`, all elements have values.
#[inline(always)]
unsafe fn write_part<S: Simd>(simd: S, part: &mut [MaybeUninit<f32>], sum: S::f32s, add: bool) {
    let lanes = first_lanes(simd, part.len());
    let part = part.as_mut_ptr().cast::<f32>();
    // SAFETY: only the lanes of the part are read and written; with `add`, all elements have values,
    // says the caller.
    unsafe {
        let sum = match add {
            true => simd.add_f32s(simd.mask_load_ptr_f32s(lanes, part), sum),
            false => sum,
        };
        simd.mask_store_ptr_f32s(lanes, part, sum);
    }
}

/// Writes the sums of one row, rounded, as many as there are elements.
#[inline(always)]
fn round_row<S: Simd, const REGISTERS: usize>(row: &mut [MaybeUninit<Bf16>], sums: &[S::f32s; REGISTERS]) {
    let lanes = pulp::bytemuck::cast_slice::<S::f32s, f32>(sums);
    for (to, &sum) in row.iter_mut().zip(lanes) {
        to.write(Bf16::from_f32(sum));
    }
}

impl<'a> Target<'a> {
    /// Elements to replace, which need no values.
    pub(super) fn replaced<E: Stored>(elements: &'a mut [MaybeUninit<E>]) -> Self {
        Self { elements: E::elements(elements), is_added_to: false }
    }

    /// Values to replace, or to add to.
    pub(super) fn values(values: &'a mut [f32], is_added_to: bool) -> Self {
        // SAFETY: the same layout, and whoever gets at the elements has promised to write nothing
        // but values.
        let elements = unsafe { &mut *(std::ptr::from_mut(values) as *mut [MaybeUninit<f32>]) };
        Self { elements: Elements::F32(elements), is_added_to }
    }

    pub(super) fn len(&self) -> usize {
        match &self.elements {
            Elements::F32(elements) => elements.len(),
            Elements::Bf16(elements) => elements.len(),
        }
    }

    /// Whether sums are rounded when they are written.
    pub(super) fn is_rounded(&self) -> bool {
        matches!(self.elements, Elements::Bf16(_))
    }

    /// Whether there are values, to be added to.
    pub(super) fn is_added_to(&self) -> bool {
        self.is_added_to
    }

    /// The elements.
    ///
    /// # Safety
    /// Nothing but values is written to them.
    pub(super) unsafe fn elements(&mut self) -> &mut Elements<'a> {
        &mut self.elements
    }

    /// The elements of a product in f32.
    ///
    /// # Panics
    /// If they are bf16.
    ///
    /// # Safety
    /// As [`Target::elements`].
    pub(super) unsafe fn f32_elements(&mut self) -> &mut [MaybeUninit<f32>] {
        match &mut self.elements {
            Elements::F32(elements) => elements,
            Elements::Bf16(_) => panic!("a product in f32 is not rounded"),
        }
    }
}

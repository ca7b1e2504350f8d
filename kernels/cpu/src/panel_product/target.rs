//! Where a product is written.

use std::mem::MaybeUninit;

use super::factor::Factor;
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

//! Where a product is written.

use std::mem::MaybeUninit;

/// Elements that a product replaces, or values that it is added to.
pub(super) struct Target<'a> {
    elements: &'a mut [MaybeUninit<f32>],
    /// Only with values.
    is_added_to: bool,
}

impl<'a> Target<'a> {
    /// Elements to replace, which need no values.
    pub(super) fn replaced(elements: &'a mut [MaybeUninit<f32>]) -> Self {
        Self { elements, is_added_to: false }
    }

    /// Values to replace, or to add to.
    pub(super) fn values(values: &'a mut [f32], is_added_to: bool) -> Self {
        // SAFETY: the same layout, and whoever gets at the elements has promised to write nothing
        // but values.
        let elements = unsafe { &mut *(std::ptr::from_mut(values) as *mut [MaybeUninit<f32>]) };
        Self { elements, is_added_to }
    }

    pub(super) fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether there are values, to be added to.
    pub(super) fn is_added_to(&self) -> bool {
        self.is_added_to
    }

    /// The elements.
    ///
    /// # Safety
    /// Nothing but values is written to them.
    pub(super) unsafe fn elements(&mut self) -> &mut [MaybeUninit<f32>] {
        self.elements
    }
}

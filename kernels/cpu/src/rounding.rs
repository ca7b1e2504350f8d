//! f32 values as elements of products, and back.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use crate::bf16::Element;
use crate::blocks::BLOCK_LEN;
use crate::simd::vectorised;
use crate::unwritten::Unwritten;

/// All values, rounded unless the elements are f32.
pub(crate) fn rounded<E: Element>(values: &[f32]) -> Cow<'_, [E]> {
    if let Some(elements) = E::unrounded(values) {
        return Cow::Borrowed(elements);
    }
    let mut rounded = Unwritten::new(values.len());
    rounded.whole().fill_chunks(BLOCK_LEN, 1, |block, to| {
        let from = &values[block * BLOCK_LEN..][..to.len()];
        write_rounded(to, from)
    });
    Cow::Owned(rounded.into_values())
}

/// Fills `to` with as many values, rounded, and returns it.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn write_rounded<'t, E: Element>(to: &'t mut [MaybeUninit<E>], from: &[f32]) -> &'t mut [E] {
    assert_eq!(to.len(), from.len(), "lengths of rounded values and their source");
    round_each(to, from);
    // SAFETY: the loop has written each element.
    unsafe { to.assume_init_mut() }
}

vectorised! {
    fn round_each<E: Element>(to: &mut [MaybeUninit<E>], from: &[f32]) = round_lanes;
}

#[inline(always)]
fn round_lanes<E: Element, const FUSED: bool>(to: &mut [MaybeUninit<E>], from: &[f32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        to.write(E::from_f32(from));
    }
}

vectorised! {
    /// Replaces `to` by the same numbers.
    pub(crate) fn widen<E: Element>(to: &mut [f32], from: &[E]) = widen_lanes;
}

#[inline(always)]
fn widen_lanes<E: Element, const FUSED: bool>(to: &mut [f32], from: &[E]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_f32();
    }
}

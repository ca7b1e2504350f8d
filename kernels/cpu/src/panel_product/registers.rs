//! How wide a panel is, in registers, and the mask of a part of one.

use pulp::{MemMask, Simd};

/// Columns of a panel.
#[inline(always)]
pub(super) const fn panel_width<S: Simd, const REGISTERS: usize>() -> usize {
    REGISTERS * (size_of::<S::f32s>() / size_of::<f32>())
}

/// The mask of as many lanes. Without the functions that pulp would store and load them by: the
/// instruction is there.
#[inline(always)]
pub(super) fn first_lanes<S: Simd>(simd: S, num_lanes: usize) -> MemMask<S::m32s> {
    MemMask::new(simd.mask_between_m32s(0, num_lanes as u32).mask())
}

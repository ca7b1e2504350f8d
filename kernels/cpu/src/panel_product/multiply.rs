//! How a word of a row is multiplied by those of a panel.

use pulp::Simd;

/// What is added to sums.
pub(super) trait Multiply: Copy {
    /// `a b + sum` of each lane: all terms of its words.
    fn multiply_add<S: Simd>(self, simd: S, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s;
}

/// Words of one term, rounded once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fused;

/// Words of one term, rounded twice: without hardware support a fused operation is a slow library
/// call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unfused;

impl Multiply for Fused {
    #[inline(always)]
    fn multiply_add<S: Simd>(self, simd: S, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s {
        simd.mul_add_f32s(a, b, sum)
    }
}

impl Multiply for Unfused {
    #[inline(always)]
    fn multiply_add<S: Simd>(self, simd: S, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s {
        simd.add_f32s(simd.mul_f32s(a, b), sum)
    }
}

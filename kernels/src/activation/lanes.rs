//! The loops behind the activation functions: plain slices of equal length, no branches inside.

use crate::exp::exp;
use crate::simd::{multiply_add, vectorised};

vectorised! {
    /// `y = up * gate * sigmoid(gate)`.
    pub(super) fn swiglu(y: &mut [f32], up: &[f32], gate: &[f32]) = swiglu_each;
}

#[inline(always)]
fn swiglu_each<const FUSED: bool>(y: &mut [f32], up: &[f32], gate: &[f32]) {
    for ((y, &up), &gate) in y.iter_mut().zip(up).zip(gate) {
        *y = gate * sigmoid::<FUSED>(gate) * up;
    }
}

vectorised! {
    /// The gradients of both inputs of [`swiglu`], its sigmoid recomputed.
    pub(super) fn swiglu_gradients(
        dup: &mut [f32],
        dgate: &mut [f32],
        up: &[f32],
        gate: &[f32],
        dy: &[f32],
    ) = swiglu_gradients_each;
}

#[inline(always)]
fn swiglu_gradients_each<const FUSED: bool>(
    dup: &mut [f32],
    dgate: &mut [f32],
    up: &[f32],
    gate: &[f32],
    dy: &[f32],
) {
    let gradients = dup.iter_mut().zip(dgate);
    let inputs = up.iter().zip(gate).zip(dy);
    for ((dup, dgate), ((&up, &gate), &dy)) in gradients.zip(inputs) {
        let sigmoid = sigmoid::<FUSED>(gate);
        let silu = gate * sigmoid;
        *dup = dy * silu;
        *dgate = dy * up * multiply_add::<FUSED>(silu, 1.0 - sigmoid, sigmoid);
    }
}

vectorised! {
    /// `y = x * Phi(x)`.
    pub(super) fn gelu(y: &mut [f32], x: &[f32]) = gelu_each;
}

#[inline(always)]
fn gelu_each<const FUSED: bool>(y: &mut [f32], x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x * normal::<FUSED>(x).distribution;
    }
}

vectorised! {
    /// `dx = dy * (Phi(x) + x * Phi'(x))`.
    pub(super) fn gelu_gradient(dx: &mut [f32], x: &[f32], dy: &[f32]) = gelu_gradient_each;
}

#[inline(always)]
fn gelu_gradient_each<const FUSED: bool>(dx: &mut [f32], x: &[f32], dy: &[f32]) {
    for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
        *dx = dy * slope::<FUSED>(x, normal::<FUSED>(x));
    }
}

vectorised! {
    /// [`gelu`] with the tanh approximation of Phi.
    pub(super) fn gelu_tanh(y: &mut [f32], x: &[f32]) = gelu_tanh_each;
}

#[inline(always)]
fn gelu_tanh_each<const FUSED: bool>(y: &mut [f32], x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x * tanh_normal::<FUSED>(x).distribution;
    }
}

vectorised! {
    /// [`gelu_gradient`] with the tanh approximation of Phi.
    pub(super) fn gelu_tanh_gradient(dx: &mut [f32], x: &[f32], dy: &[f32]) = gelu_tanh_gradient_each;
}

#[inline(always)]
fn gelu_tanh_gradient_each<const FUSED: bool>(dx: &mut [f32], x: &[f32], dy: &[f32]) {
    for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
        *dx = dy * slope::<FUSED>(x, tanh_normal::<FUSED>(x));
    }
}

/// A distribution function and its derivative.
struct Normal {
    distribution: f32,
    density: f32,
}

#[inline(always)]
fn slope<const FUSED: bool>(x: f32, normal: Normal) -> f32 {
    // Far out the density is zero but x may be infinite.
    multiply_add::<FUSED>(x.clamp(-FAR, FAR), normal.density, normal.distribution)
}

#[inline(always)]
fn sigmoid<const FUSED: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FUSED>(-x))
}

/// Beyond it the tail of the normal distribution is below every f32.
const FAR: f32 = 16.0;
/// `Phi(-t) e^(t^2 / 2)` as a polynomial in `(t - 4) / (t + 4)`, highest power first: minimax fit of the relative
/// error, 5e-9, over t in 0..=16.
const TAIL: [f32; 11] = [
    1.279_258_7e-5,
    -4.540_222_5e-5,
    -1.732_196_5e-4,
    6.407_150_5e-4,
    5.024_309e-4,
    -8.492_745e-3,
    3.086_564_7e-2,
    -7.170_735e-2,
    1.243_792e-1,
    -1.703_977_2e-1,
    9.441_064e-2,
];
/// `1 / sqrt(2 pi)`.
const DENSITY_AT_0: f32 = 0.398_942_3;

/// The normal distribution at x. The lower tail keeps its relative accuracy, which `1 + erf` would lose.
#[inline(always)]
fn normal<const FUSED: bool>(x: f32) -> Normal {
    let t = x.clamp(-FAR, FAR).abs();
    let exp = exp::<FUSED>(-0.5 * t * t);
    let u = (t - 4.0) / (t + 4.0);
    let mut ratio = TAIL[0];
    for coefficient in &TAIL[1..] {
        ratio = multiply_add::<FUSED>(ratio, u, *coefficient);
    }
    let tail = ratio * exp;
    Normal { distribution: if x < 0.0 { tail } else { 1.0 - tail }, density: DENSITY_AT_0 * exp }
}

/// The approximation of the normal distribution at x by a tanh, which is a logistic function of twice its argument.
#[inline(always)]
fn tanh_normal<const FUSED: bool>(x: f32) -> Normal {
    const LINEAR: f32 = (2.0 * super::SQRT_2_OVER_PI) as f32;
    const CUBIC: f32 = (2.0 * super::SQRT_2_OVER_PI * super::TANH_CUBIC) as f32;
    let x = x.clamp(-FAR, FAR);
    let distribution = sigmoid::<FUSED>(x * multiply_add::<FUSED>(CUBIC * x, x, LINEAR));
    let inner_slope = multiply_add::<FUSED>(3.0 * CUBIC * x, x, LINEAR);
    Normal { distribution, density: distribution * (1.0 - distribution) * inner_slope }
}

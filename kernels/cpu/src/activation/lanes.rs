//! The loops behind the activation functions: plain slices of equal length, no branches inside.

use std::mem::MaybeUninit;

use super::Activation;
use crate::exp::exp;
use crate::simd::{LANES, multiply_add, vectorised};

/// Fills `hidden` with the hidden values of an up projection and, if gated, a gate projection, and
/// returns it.
///
/// # Panics
/// If the gate projection is missing or superfluous for `activation`, or the lengths differ.
pub fn activate<'h>(
    activation: Activation,
    hidden: &'h mut [MaybeUninit<f32>],
    up: &[f32],
    gate: Option<&[f32]>,
) -> &'h mut [f32] {
    let lens = (hidden.len(), gate.map_or(up.len(), <[f32]>::len));
    assert_eq!(lens, (up.len(), up.len()), "lengths of hidden values, gate and up projection");
    match (activation, gate) {
        (Activation::Swiglu, Some(gate)) => swiglu(hidden, up, gate),
        (Activation::ClampedSwiglu { alpha, limit }, Some(gate)) => {
            clamped_swiglu(hidden, up, gate, Clamp::new(alpha, limit));
        }
        (Activation::Gelu, None) => gelu(hidden, up),
        (Activation::GeluTanh, None) => gelu_tanh(hidden, up),
        (Activation::Relu, None) => relu(hidden, up),
        (_, gate) => panic!("{activation:?} with a gate projection = {}", gate.is_some()),
    }
    // SAFETY: each loop writes as many elements as it reads.
    unsafe { hidden.assume_init_mut() }
}

/// The way back of one row whose hidden values h enter the output times `weight`. On entry
/// `dhidden` holds the gradient of `weight * h`; each slice is replaced: `up` and `gate` by their
/// gradients, `dhidden` by `weight * h`, from which the next matrix gets its gradient. Returns the
/// gradient of `weight`.
///
/// # Panics
/// If the gate projection is missing or superfluous for `activation`.
pub fn backward(
    activation: Activation,
    up: &mut [f32],
    gate: Option<&mut [f32]>,
    dhidden: &mut [f32],
    weight: f32,
) -> f32 {
    match (activation, gate) {
        (Activation::Swiglu, Some(gate)) => swiglu_backward(up, gate, dhidden, weight),
        (Activation::ClampedSwiglu { alpha, limit }, Some(gate)) => {
            clamped_swiglu_backward(up, gate, dhidden, weight, Clamp::new(alpha, limit))
        }
        (Activation::Gelu, None) => gelu_backward(up, dhidden, weight),
        (Activation::GeluTanh, None) => gelu_tanh_backward(up, dhidden, weight),
        (Activation::Relu, None) => relu_backward(up, dhidden, weight),
        (_, gate) => panic!("{activation:?} with a gate projection = {}", gate.is_some()),
    }
}

vectorised! {
    /// `hidden = up * gate * sigmoid(gate)` (arXiv:2002.05202, eq. 6).
    fn swiglu(hidden: &mut [MaybeUninit<f32>], up: &[f32], gate: &[f32]) = swiglu_each;
}

#[inline(always)]
fn swiglu_each<const FUSED: bool>(hidden: &mut [MaybeUninit<f32>], up: &[f32], gate: &[f32]) {
    for ((hidden, &up), &gate) in hidden.iter_mut().zip(up).zip(gate) {
        hidden.write(gate * sigmoid::<FUSED>(gate) * up);
    }
}

vectorised! {
    /// [`backward`] of [`swiglu`], its sigmoid recomputed.
    fn swiglu_backward(up: &mut [f32], gate: &mut [f32], dhidden: &mut [f32], weight: f32) -> f32 = swiglu_backward_row;
}

#[inline(always)]
fn swiglu_backward_row<const FUSED: bool>(
    up: &mut [f32],
    gate: &mut [f32],
    dhidden: &mut [f32],
    weight: f32,
) -> f32 {
    gated_backward_row(up, gate, dhidden, |up, gate, dhidden| {
        let sigmoid = sigmoid::<FUSED>(*gate);
        let silu = *gate * sigmoid;
        let hidden = silu * *up;
        let dweight = hidden * *dhidden;
        let weighted = weight * *dhidden;
        *gate = weighted * *up * multiply_add::<FUSED>(silu, 1.0 - sigmoid, sigmoid);
        *up = weighted * silu;
        *dhidden = weight * hidden;
        dweight
    })
}

/// Constants of the clamped SwiGLU.
#[derive(Clone, Copy)]
struct Clamp {
    alpha: f32,
    limit: f32,
}

impl Clamp {
    fn new(alpha: f64, limit: f64) -> Self {
        Self { alpha: alpha as f32, limit: limit as f32 }
    }

    /// `min(gate, limit)`, and NaN for NaN.
    #[inline(always)]
    fn gate(self, gate: f32) -> f32 {
        if gate > self.limit { self.limit } else { gate }
    }

    /// The factor of the up projection, and NaN for NaN.
    #[inline(always)]
    fn up(self, up: f32) -> f32 {
        up.clamp(-self.limit, self.limit) + 1.0
    }
}

vectorised! {
    /// `hidden = g sigmoid(alpha g) * (clamp(up, -limit, limit) + 1)` of `g = min(gate, limit)`.
    fn clamped_swiglu(hidden: &mut [MaybeUninit<f32>], up: &[f32], gate: &[f32], clamp: Clamp) = clamped_swiglu_each;
}

#[inline(always)]
fn clamped_swiglu_each<const FUSED: bool>(
    hidden: &mut [MaybeUninit<f32>],
    up: &[f32],
    gate: &[f32],
    clamp: Clamp,
) {
    for ((hidden, &up), &gate) in hidden.iter_mut().zip(up).zip(gate) {
        let gate = clamp.gate(gate);
        hidden.write(gate * sigmoid::<FUSED>(clamp.alpha * gate) * clamp.up(up));
    }
}

vectorised! {
    /// [`backward`] of [`clamped_swiglu`]; the slope beyond a limit is 0.
    fn clamped_swiglu_backward(
        up: &mut [f32],
        gate: &mut [f32],
        dhidden: &mut [f32],
        weight: f32,
        clamp: Clamp,
    ) -> f32 = clamped_swiglu_backward_row;
}

#[inline(always)]
fn clamped_swiglu_backward_row<const FUSED: bool>(
    up: &mut [f32],
    gate: &mut [f32],
    dhidden: &mut [f32],
    weight: f32,
    clamp: Clamp,
) -> f32 {
    gated_backward_row(up, gate, dhidden, |up, gate, dhidden| {
        let (bounded, factor) = (clamp.gate(*gate), clamp.up(*up));
        let (gate_slope, up_slope) = (f32::from(*gate <= clamp.limit), f32::from(up.abs() <= clamp.limit));
        let sigmoid = sigmoid::<FUSED>(clamp.alpha * bounded);
        let silu = bounded * sigmoid;
        let hidden = silu * factor;
        let dweight = hidden * *dhidden;
        let weighted = weight * *dhidden;
        let slope = multiply_add::<FUSED>(clamp.alpha * silu, 1.0 - sigmoid, sigmoid);
        *gate = weighted * factor * slope * gate_slope;
        *up = weighted * silu * up_slope;
        *dhidden = weight * hidden;
        dweight
    })
}

/// Applies `each` to the elements of a row, which replaces them and returns its share of the
/// gradient of `weight`; returns the sum of the shares.
#[inline(always)]
fn gated_backward_row(
    up: &mut [f32],
    gate: &mut [f32],
    dhidden: &mut [f32],
    each: impl Fn(&mut f32, &mut f32, &mut f32) -> f32,
) -> f32 {
    let mut sums = [0.0; LANES];
    let mut lanes = |up: &mut [f32; LANES], gate: &mut [f32; LANES], dhidden: &mut [f32; LANES]| {
        for (((sum, up), gate), dhidden) in sums.iter_mut().zip(up).zip(gate).zip(dhidden) {
            *sum += each(up, gate, dhidden);
        }
    };
    let ((ups, up), (gates, gate), (dhiddens, dhidden)) =
        (up.as_chunks_mut(), gate.as_chunks_mut(), dhidden.as_chunks_mut());
    for ((up, gate), dhidden) in ups.iter_mut().zip(gates).zip(dhiddens) {
        lanes(up, gate, dhidden);
    }
    if !up.is_empty() {
        let [mut ups, mut gates, mut dhiddens] = [&*up, &*gate, &*dhidden].map(padded);
        lanes(&mut ups, &mut gates, &mut dhiddens);
        for (rest, values) in [(up, ups), (gate, gates), (dhidden, dhiddens)] {
            rest.copy_from_slice(&values[..rest.len()]);
        }
    }
    sums.iter().sum()
}

/// The rest of a row, and zeros: whole vectors cost less than single elements.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

vectorised! {
    /// `y = x * Phi(x)` to a relative 5e-7 at 0 and above and to `1e-7 * (5 + x^2)` below.
    fn gelu(y: &mut [MaybeUninit<f32>], x: &[f32]) = gelu_each;
}

#[inline(always)]
fn gelu_each<const FUSED: bool>(y: &mut [MaybeUninit<f32>], x: &[f32]) {
    each(y, x, |x| x * normal::<FUSED>(x).distribution);
}

vectorised! {
    /// [`backward`] of [`gelu`].
    fn gelu_backward(x: &mut [f32], dhidden: &mut [f32], weight: f32) -> f32 = gelu_backward_row;
}

#[inline(always)]
fn gelu_backward_row<const FUSED: bool>(x: &mut [f32], dhidden: &mut [f32], weight: f32) -> f32 {
    backward_row(x, dhidden, weight, |x| {
        let normal = normal::<FUSED>(x);
        (x * normal.distribution, slope::<FUSED>(x, normal))
    })
}

vectorised! {
    /// [`gelu`] with the tanh approximation of Phi.
    fn gelu_tanh(y: &mut [MaybeUninit<f32>], x: &[f32]) = gelu_tanh_each;
}

#[inline(always)]
fn gelu_tanh_each<const FUSED: bool>(y: &mut [MaybeUninit<f32>], x: &[f32]) {
    each(y, x, |x| x * tanh_normal::<FUSED>(x).distribution);
}

vectorised! {
    /// [`backward`] of [`gelu_tanh`].
    fn gelu_tanh_backward(x: &mut [f32], dhidden: &mut [f32], weight: f32) -> f32 = gelu_tanh_backward_row;
}

#[inline(always)]
fn gelu_tanh_backward_row<const FUSED: bool>(x: &mut [f32], dhidden: &mut [f32], weight: f32) -> f32 {
    backward_row(x, dhidden, weight, |x| {
        let normal = tanh_normal::<FUSED>(x);
        (x * normal.distribution, slope::<FUSED>(x, normal))
    })
}

vectorised! {
    /// `y = max(x, 0)`, and NaN for NaN.
    fn relu(y: &mut [MaybeUninit<f32>], x: &[f32]) = relu_each;
}

#[inline(always)]
fn relu_each<const FUSED: bool>(y: &mut [MaybeUninit<f32>], x: &[f32]) {
    each(y, x, |x| if x < 0.0 { 0.0 } else { x });
}

vectorised! {
    /// [`backward`] of [`relu`]; the slope at 0 is 0.
    fn relu_backward(x: &mut [f32], dhidden: &mut [f32], weight: f32) -> f32 = relu_backward_row;
}

#[inline(always)]
fn relu_backward_row<const FUSED: bool>(x: &mut [f32], dhidden: &mut [f32], weight: f32) -> f32 {
    backward_row(x, dhidden, weight, |x| (if x < 0.0 { 0.0 } else { x }, if x > 0.0 { 1.0 } else { 0.0 }))
}

#[inline(always)]
fn each(y: &mut [MaybeUninit<f32>], x: &[f32], function: impl Fn(f32) -> f32) {
    for (y, &x) in y.iter_mut().zip(x) {
        y.write(function(x));
    }
}

/// [`backward`] of a function of one variable, given its value and slope.
#[inline(always)]
fn backward_row(
    x: &mut [f32],
    dhidden: &mut [f32],
    weight: f32,
    function: impl Fn(f32) -> (f32, f32),
) -> f32 {
    let each = |x: &mut f32, dhidden: &mut f32| {
        let (hidden, slope) = function(*x);
        let dweight = hidden * *dhidden;
        *x = weight * *dhidden * slope;
        *dhidden = weight * hidden;
        dweight
    };
    let mut sums = [0.0; LANES];
    let mut lanes = |x: &mut [f32; LANES], dhidden: &mut [f32; LANES]| {
        for ((sum, x), dhidden) in sums.iter_mut().zip(x).zip(dhidden) {
            *sum += each(x, dhidden);
        }
    };
    let ((xs, x), (dhiddens, dhidden)) = (x.as_chunks_mut(), dhidden.as_chunks_mut());
    for (x, dhidden) in xs.iter_mut().zip(dhiddens) {
        lanes(x, dhidden);
    }
    if !x.is_empty() {
        let [mut xs, mut dhiddens] = [&*x, &*dhidden].map(padded);
        lanes(&mut xs, &mut dhiddens);
        for (rest, values) in [(x, xs), (dhidden, dhiddens)] {
            rest.copy_from_slice(&values[..rest.len()]);
        }
    }
    sums.iter().sum()
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
/// `Phi(-t) e^(t^2 / 2)` as a polynomial in `(t - 4) / (t + 4)`, highest power first: minimax fit
/// of the relative error, 5e-9, over t in 0..=16.
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

/// The normal distribution at x. The lower tail keeps its relative accuracy, which `1 + erf` would
/// lose.
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

/// The approximation of the normal distribution at x by a tanh, which is a logistic function of
/// twice its argument.
#[inline(always)]
fn tanh_normal<const FUSED: bool>(x: f32) -> Normal {
    const LINEAR: f32 = (2.0 * super::SQRT_2_OVER_PI) as f32;
    const CUBIC: f32 = (2.0 * super::SQRT_2_OVER_PI * super::TANH_CUBIC) as f32;
    let x = x.clamp(-FAR, FAR);
    let distribution = sigmoid::<FUSED>(x * multiply_add::<FUSED>(CUBIC * x, x, LINEAR));
    let inner_slope = multiply_add::<FUSED>(3.0 * CUBIC * x, x, LINEAR);
    Normal { distribution, density: distribution * (1.0 - distribution) * inner_slope }
}

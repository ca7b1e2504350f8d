//! The exponential function, without branches or calls: loops over it vectorise.

use crate::simd::{LANES, multiply_add};

/// Below this, `e^x` is smaller than the smallest normal number and is rounded to zero.
const UNDERFLOW: f32 = -87.336_54;
/// Above this, `e^x` is infinite; the reduction works up to here.
const OVERFLOW: f32 = 89.0;
/// 1.5 * 2^23: adding it rounds a small number to an integer, left in the low bits of the sum.
const ROUNDING: f32 = 12_582_912.0;
/// ln 2 in two parts, of which the first has few enough digits for exact multiples.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Minimax coefficients of `(e^r - 1 - r) / r^2` on `|r| <= ln 2 / 2`, highest first (Cephes,
/// expf).
const COEFFICIENTS: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `e^x` to within 2 units in the last place; zero where the result would be subnormal, infinity
/// above the range of `f32`, NaN for NaN. `FUSED` as in [`multiply_add`].
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    // Comparisons with NaN are false, so NaN passes both clamps (`f32::min` would lose it).
    let clamped = if x > OVERFLOW { OVERFLOW } else { x };
    let clamped = if clamped < UNDERFLOW { UNDERFLOW } else { clamped };
    // x = n ln 2 + r with n an integer and |r| <= ln 2 / 2.
    let shifted = multiply_add::<FUSED>(clamped, std::f32::consts::LOG2_E, ROUNDING);
    let n = shifted - ROUNDING;
    let r = multiply_add::<FUSED>(n, -LN_2_HIGH, clamped);
    let r = multiply_add::<FUSED>(n, -LN_2_LOW, r);
    let mut polynomial = COEFFICIENTS[0];
    for coefficient in &COEFFICIENTS[1..] {
        polynomial = multiply_add::<FUSED>(polynomial, r, *coefficient);
    }
    let exp_r = multiply_add::<FUSED>(polynomial * r, r, r) + 1.0;
    // 2^n in two factors: n reaches 128, for which there is no float.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32);
    let half = n >> 1;
    let y = exp_r * power_of_two(half) * power_of_two(n.wrapping_sub(half));
    if x < UNDERFLOW { 0.0 } else { y }
}

/// Replaces the values of a row by their exponentials relative to `max`; returns the sum.
#[inline(always)]
pub(crate) fn exponentials_of_row<const FUSED: bool>(row: &mut [f32], max: f32) -> f32 {
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *value = exp::<FUSED>(*value - max);
            *sum += *value;
        }
    }
    let mut sum = sums.iter().sum();
    for value in rest {
        *value = exp::<FUSED>(*value - max);
        sum += *value;
    }
    sum
}

/// As [`exponentials_of_row`], the elements behind the last whole vector summed in their lanes too:
/// further elements that are minus infinity change no bit of the sum.
#[inline(always)]
pub(crate) fn exponentials_in_lanes<const FUSED: bool>(row: &mut [f32], max: f32) -> f32 {
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *value = exp::<FUSED>(*value - max);
            *sum += *value;
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *value = exp::<FUSED>(*value - max);
        *sum += *value;
    }
    sums.iter().sum()
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance of `actual` from `expected` in units in the last place of `expected`.
    fn ulps(actual: f32, expected: f64) -> f64 {
        let rounded = expected as f32;
        let ulp = f64::from(rounded.next_up()) - f64::from(rounded);
        (f64::from(actual) - expected).abs() / ulp
    }

    #[test]
    fn exp_is_within_two_ulp_over_the_whole_range() {
        let (low, high) = (-87.33f64, 88.72f64);
        let count = 400_003;
        let xs: Vec<f32> =
            (0..count).map(|i| (low + (high - low) * f64::from(i) / f64::from(count)) as f32).collect();
        for x in xs {
            let expected = f64::from(x).exp();
            for y in [exp::<false>(x), exp::<true>(x)] {
                assert!(ulps(y, expected) <= 2.0, "exp({x}) = {y}, not {expected}");
            }
        }
    }

    #[test]
    fn exp_keeps_zero_infinity_and_nan() {
        assert_eq!([0.0, -0.0, f32::NEG_INFINITY, -1e4].map(exp::<false>), [1.0, 1.0, 0.0, 0.0]);
        assert_eq!([f32::INFINITY, 1e4, 88.73].map(exp::<false>), [f32::INFINITY; 3]);
        assert!(exp::<false>(f32::NAN).is_nan());
    }
}

//! The standard normal distribution.

use std::f64::consts::PI;

/// Density at `z`.
pub(crate) fn density(z: f64) -> f64 {
    (-0.5 * z * z).exp() / (2.0 * PI).sqrt()
}

/// Probability of a value up to `z`, to an absolute error of 1e-15.
pub(crate) fn cumulative(z: f64) -> f64 {
    if z.abs() < 3.0 {
        0.5 + density(z) * series(z)
    } else if z < 0.0 {
        upper_tail(-z)
    } else {
        1.0 - upper_tail(z)
    }
}

/// `z + z^3 / 3 + z^5 / (3 * 5) + ...` (Abramowitz and Stegun, 26.2.11), whose terms share one
/// sign.
fn series(z: f64) -> f64 {
    let (mut term, mut sum, mut odd) = (z, z, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        odd += 2.0;
        term *= z * z / odd;
        sum += term;
    }
    sum
}

/// `density / (z + 1 / (z + 2 / (z + 3 / ...)))` (Abramowitz and Stegun, 26.2.14), for `z` of 3 and
/// more.
fn upper_tail(z: f64) -> f64 {
    density(z) / (1..=60).rev().fold(z, |denominator, n| z + f64::from(n) / denominator)
}

/// Published values, and the continuity of the two forms where they meet.
#[test]
fn golden_values() {
    let published = [
        (0.0, 0.5),
        (1.0, 0.841_344_746_068_542_9),
        (-1.0, 0.158_655_253_931_457_05),
        (2.0, 0.977_249_868_051_820_8),
        (-2.5, 0.006_209_665_325_776_132),
        (3.0, 0.998_650_101_968_369_9),
        (-4.0, 3.167_124_183_311_992e-5),
        (-8.0, 6.220_960_574_271_785e-16),
    ];
    for (z, expected) in published {
        assert!((cumulative(z) - expected).abs() < 1e-15, "{} instead of {expected}", cumulative(z));
    }
    assert!((cumulative(3.0) - cumulative(3.0_f64.next_down())).abs() < 1e-15);
}

#[test]
fn the_ends_are_reached() {
    assert_eq!((cumulative(1e4), cumulative(-1e4)), (1.0, 0.0));
    assert_eq!((cumulative(f64::INFINITY), cumulative(f64::NEG_INFINITY)), (1.0, 0.0));
    assert_eq!((density(1e4), density(f64::INFINITY)), (0.0, 0.0));
}

/// Central differences: error 1e-11 from truncation and rounding.
#[test]
fn the_density_is_the_slope() {
    for i in -50..=50 {
        let (z, step) = (f64::from(i) / 10.0, 1e-5);
        let slope = (cumulative(z + step) - cumulative(z - step)) / (2.0 * step);
        assert!((slope - density(z)).abs() < 1e-10, "{slope} instead of {} at {z}", density(z));
    }
}

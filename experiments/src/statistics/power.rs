//! What a number of seeds can find, before they are run.

use statrs::distribution::{ContinuousCDF, Normal};

use super::interval::student_t_reach;

/// The smallest true mean difference, in standard deviations of a pair's difference, of which
/// Student's interval of `count` pairs at `confidence` leaves zero out with probability `power`.
/// `None` with one pair, or if a probability is not between 0 and 1.
pub(crate) fn smallest_found(count: usize, confidence: f64, power: f64) -> Option<f64> {
    let reach = student_t_reach(confidence, count.checked_sub(1)?)?;
    if !(power > 0.0 && power < 1.0) {
        return None;
    }
    let found = |effect: f64| probability_found(effect, count, reach);
    let mut high = 1.0;
    while found(high) < power {
        high *= 2.0;
    }
    let mut low = 0.0;
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if found(middle) < power { low = middle } else { high = middle }
    }
    Some(high)
}

/// Probability that Student's t of `count` pairs, of a true mean of `effect` standard deviations, is
/// beyond `reach` on that side: the noncentral t distribution, as the mean over the sample's
/// standard deviation of what a normal distribution says.
fn probability_found(effect: f64, count: usize, reach: f64) -> f64 {
    let degrees = (count - 1) as f64;
    let shift = effect * (count as f64).sqrt();
    let normal = Normal::standard();
    // Over u = s / sigma: density proportional to u^(degrees - 1) exp(-degrees u^2 / 2), by
    // Simpson's rule where it is not negligible.
    let logarithm = |u: f64| (degrees - 1.0) * u.ln() - degrees * u * u / 2.0;
    let peak = logarithm(((degrees - 1.0) / degrees).sqrt().max(0.1));
    let intervals = 4000;
    let width = (1.0 + 12.0 / degrees.sqrt()) / f64::from(intervals);
    let (mut sum, mut total) = (0.0, 0.0);
    for step in 0..=intervals {
        // The density has an integrable edge at zero with one degree of freedom.
        let u = (f64::from(step) * width).max(1e-12);
        let simpson = match step {
            0 => 1.0,
            step if step == intervals => 1.0,
            step if step % 2 == 1 => 4.0,
            _ => 2.0,
        };
        let density = simpson * (logarithm(u) - peak).exp();
        total += density;
        sum += density * normal.sf(reach * u - shift);
    }
    sum / total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::paired::t_test;
    use crate::statistics::simulated::coverage;

    /// R's `power.t.test(n, power = 0.8, sd = 1, type = "paired")`, two digits.
    #[test]
    fn eighty_percent_is_reached_at_the_published_differences() {
        for (count, expected) in [(3, 3.26), (5, 1.68), (8, 1.16), (10, 1.00)] {
            let found = smallest_found(count, 0.95, 0.8).unwrap();
            assert!((found - expected).abs() < 0.01, "{count}: {found}");
        }
        assert_eq!(smallest_found(1, 0.95, 0.8), None);
        assert_eq!(smallest_found(5, 0.95, 1.0), None);
    }

    #[test]
    fn simulated_studies_of_that_difference_are_decided_as_often() {
        for count in [3, 6, 12] {
            let effect = smallest_found(count, 0.95, 0.8).unwrap();
            let decided = coverage(2_000, |noise| {
                let differences: Vec<f64> = (0..count).map(|_| noise.next() - effect).collect();
                t_test(&differences, 0.0).unwrap() <= 0.05
            });
            assert!((decided - 0.8).abs() < 0.03, "{count}: {decided}");
        }
    }
}

//! An interval that holds however often one looks: for studies to which seeds are added.
//!
//! Student's interval holds for a number of pairs that was fixed before. Who adds seeds until it
//! leaves zero out is wrong far more often than its level says. The confidence sequence here is the
//! set of means that a mixture of t statistics does not reject: with `g = 1 + n c^2`, the ratio
//! `g^(-1/2) ((1 + t^2 / (n - 1)) / (1 + t^2 / ((n - 1) g)))^(n / 2)` of the likelihood under a normal
//! standardised effect of variance `c^2`, and a standard deviation of the right Haar measure, to that
//! under no effect. It is an e-process whatever the standard deviation is, so the probability that
//! it is ever `1 / alpha` or more is at most `alpha` (Ville), for normal differences
//! (Hendriksen, de Heide and Gruenwald, arXiv:1807.09077; Wang and Ramdas, arXiv:2310.03722).

use super::interval::Interval;
use super::moments::{mean, standard_deviation};

/// Standard deviation of the standardised effect in the mixture. The sequence is narrowest where the
/// effect is about as large.
const EFFECT_DEVIATION: f64 = 1.0;

/// How many standard errors the sequence reaches to either side after `count` pairs; `None` where it
/// is still unbounded, or if `confidence` is not between 0 and 1.
pub(super) fn anytime_reach(confidence: f64, count: usize) -> Option<f64> {
    if !(confidence > 0.0 && confidence < 1.0) || count < 2 {
        return None;
    }
    let n = count as f64;
    let g = 1.0 + n * EFFECT_DEVIATION.powi(2);
    // The ratio is below 1 / alpha where (1 + y) / (1 + y / g) < bound, y = t^2 / (n - 1).
    let bound = (g.sqrt() / (1.0 - confidence)).powf(2.0 / n);
    (bound < g).then(|| ((n - 1.0) * (bound - 1.0) / (1.0 - bound / g)).sqrt())
}

/// The sequence's interval of the mean of `values`; `None` where it is unbounded.
pub(super) fn anytime_interval(values: &[f64], confidence: f64) -> Option<Interval> {
    let mean = mean(values)?;
    let deviation = standard_deviation(values, mean)?;
    let reach = anytime_reach(confidence, values.len())?;
    Interval::around(mean, reach * deviation / (values.len() as f64).sqrt())
}

/// p-value against the margin that is nearer, of which the probability that it is ever at most alpha
/// is at most alpha; `None` with one value.
pub(super) fn anytime_p_value(values: &[f64], margin: f64) -> Option<f64> {
    let mean = mean(values)?;
    let deviation = standard_deviation(values, mean)?;
    let beyond = mean.abs() - margin;
    if beyond <= 0.0 {
        return Some(1.0);
    }
    let n = values.len() as f64;
    let g = 1.0 + n * EFFECT_DEVIATION.powi(2);
    let y = n * beyond.powi(2) / (deviation.powi(2) * (n - 1.0));
    // At a deviation of zero the ratio goes to its limit.
    let ratio = if y.is_finite() { (1.0 + y) / (1.0 + y / g) } else { g };
    Some((g.sqrt() / ratio.powf(n / 2.0)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::interval::student_t_reach;
    use crate::statistics::simulated::coverage;

    /// Who looks after every seed from the third to the fortieth, and stops as soon as zero is left
    /// out, is wrong in at most one study of twenty.
    #[test]
    fn looking_after_every_seed_is_wrong_in_at_most_one_study_of_twenty() {
        let never_wrong = |interval: &dyn Fn(&[f64]) -> Option<Interval>| {
            coverage(2_000, |noise| {
                let values: Vec<f64> = (0..40).map(|_| noise.next()).collect();
                (3..=40).all(|n| {
                    interval(&values[..n]).is_none_or(|interval| interval.low <= 0.0 && 0.0 <= interval.high)
                })
            })
        };
        let sequence = never_wrong(&|values| anytime_interval(values, 0.95));
        // Standard error of 2,000 studies at 0.95: 0.005.
        assert!(sequence >= 0.94, "{sequence}");
        let student = never_wrong(&|values| {
            let mean = mean(values)?;
            let deviation = standard_deviation(values, mean)?;
            let reach = student_t_reach(0.95, values.len() - 1)?;
            Interval::around(mean, reach * deviation / (values.len() as f64).sqrt())
        });
        assert!(student < 0.80, "Student's interval would do as well: {student}");
    }

    #[test]
    fn the_sequence_is_wider_than_students_interval_and_narrows() {
        let reaches: Vec<f64> =
            (5..60).map(|n| anytime_reach(0.95, n).unwrap() / (n as f64).sqrt()).collect();
        assert!(reaches.windows(2).all(|pair| pair[1] < pair[0]));
        for n in 5..60 {
            assert!(anytime_reach(0.95, n).unwrap() > student_t_reach(0.95, n - 1).unwrap());
        }
        assert_eq!(anytime_reach(0.95, 2), None, "two pairs bound nothing");
        assert_eq!(anytime_reach(1.0, 9), None);
    }

    /// The set of means that the ratio does not reject, by trying them.
    #[test]
    fn the_interval_is_the_set_of_means_that_are_not_rejected() {
        let values = [0.3, -0.1, 0.5, 0.2, 0.4, 0.1, 0.35];
        let interval = anytime_interval(&values, 0.95).unwrap();
        let ratio = |about: f64| {
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
            let y = n * (mean - about).powi(2) / squares;
            let g = 1.0 + n;
            ((1.0 + y) / (1.0 + y / g)).powf(n / 2.0) / g.sqrt()
        };
        for end in [interval.low, interval.high] {
            assert!((ratio(end) - 20.0).abs() < 1e-6, "{}", ratio(end));
        }
        assert!((anytime_p_value(&values, interval.low).unwrap() - 0.05).abs() < 1e-9);
        assert!((anytime_p_value(&values, 0.0).unwrap() - 1.0 / ratio(0.0)).abs() < 1e-12);
    }
}

//! Mean and deviation of few numbers.

use super::interval::student_t_reach;

/// Mean of finite values; `None` without values or if one is not finite.
pub(super) fn mean(values: &[f64]) -> Option<f64> {
    let usable = !values.is_empty() && values.iter().all(|value| value.is_finite());
    usable.then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Sample standard deviation, with n - 1 in the denominator; `None` with one value.
pub(super) fn standard_deviation(values: &[f64], mean: f64) -> Option<f64> {
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// Sample standard deviation of `values`; `None` with fewer than two, or if one is not finite.
pub(crate) fn standard_deviation_of(values: &[f64]) -> Option<f64> {
    standard_deviation(values, mean(values)?)
}

/// Half the width of the Student t interval of a mean of `count` values; `None` with one value.
pub(super) fn mean_half_width(standard_deviation: f64, count: u64, confidence: f64) -> Option<f64> {
    let reach = student_t_reach(confidence, count.checked_sub(1)? as usize)?;
    Some(reach * standard_deviation / (count as f64).sqrt())
}

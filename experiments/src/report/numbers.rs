//! Numbers as a reader wants them: rounded to what they are worth, with units.

use switchyard_ground::units::scaled;

use crate::statistics::{Interval, RatioEstimate};

/// What stands for a number that does not exist.
pub(super) const ABSENT: &str = "-";

/// A loss in nats per token.
pub(super) fn nats(loss: f64) -> String {
    format!("{loss:.4}")
}

/// A share in percent. The space does not break.
pub(super) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent.fract().abs() < 1e-9 || percent >= 10.0 {
        return format!("{percent:.0}\u{a0}%");
    }
    format!("{percent:.1}\u{a0}%")
}

/// A difference with its interval, `-0.031 [-0.052, -0.010]`: as many decimals as the interval's
/// width is worth.
pub(super) fn difference(mean: f64, interval: Option<&Interval>) -> String {
    let Some(Interval { low, high }) = interval else { return format!("{mean:+.4}") };
    let decimals = decimals_for(high - low);
    format!("{mean:+.decimals$} [{low:+.decimals$}, {high:+.decimals$}]")
}

/// An interval alone, or the sign for an absent number.
pub(super) fn interval(interval: Option<&Interval>) -> String {
    let text = |Interval { low, high }: &Interval| {
        let decimals = decimals_for(high - low);
        format!("[{low:+.decimals$}, {high:+.decimals$}]")
    };
    interval.map_or_else(|| ABSENT.into(), text)
}

/// A ratio with its interval: `0.62 [0.55, 0.70]`.
pub(super) fn ratio(estimate: &RatioEstimate) -> String {
    let Interval { low, high } = &estimate.interval;
    let decimals = decimals_for(high - low).min(4);
    format!("{:.decimals$} [{low:.decimals$}, {high:.decimals$}]", estimate.geometric_mean)
}

/// `text` of a value, or the sign for an absent number.
pub(super) fn or_absent<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| ABSENT.into(), text)
}

/// Decimals that leave two significant digits of `width`.
fn decimals_for(width: f64) -> usize {
    if !(width.is_finite() && width > 0.0) {
        return 4;
    }
    (1.0 - width.log10().floor()).clamp(2.0, 6.0) as usize
}

/// Four to nine round values in `low..=high`, evenly apart.
pub(super) fn round_ticks(low: f64, high: f64) -> Vec<f64> {
    let span = high - low;
    if !(span.is_finite() && span > 0.0) {
        return vec![low];
    }
    let power = 10f64.powf((span / 4.0).log10().floor());
    let step = [5.0, 2.0, 1.0].map(|factor| factor * power).into_iter().find(|step| span / step >= 4.0);
    let step = step.unwrap_or(power);
    let (first, last) = ((low / step).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|index| index as f64 * step).collect()
}

/// The labels of `ticks`, with the decimals that tell neighbours apart.
pub(super) fn tick_labels(ticks: &[f64]) -> Vec<(f64, String)> {
    let step = ticks.windows(2).map(|pair| (pair[1] - pair[0]).abs()).fold(f64::INFINITY, f64::min);
    let decimals = if step.is_finite() { (-step.log10()).ceil().clamp(0.0, 6.0) as usize } else { 2 };
    let label = |tick: f64| format!("{:.decimals$}", if tick.abs() < step / 1e6 { 0.0 } else { tick });
    ticks.iter().map(|&tick| (tick, label(tick))).collect()
}

/// The labels of `ticks` of a large quantity: `1.5 M`.
pub(super) fn si_tick_labels(ticks: &[f64], unit: &str) -> Vec<(f64, String)> {
    let label = |tick: f64| {
        let text = scaled(tick, unit);
        let Some((number, rest)) = text.split_once(' ') else { return text };
        let number =
            if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number };
        format!("{number} {rest}")
    };
    ticks.iter().map(|&tick| (tick, label(tick))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_keeps_two_digits_of_its_width() {
        let text = |mean, low, high| difference(mean, Some(&Interval { low, high }));
        assert_eq!(text(-0.0312, -0.0519, -0.0104), "-0.031 [-0.052, -0.010]");
        assert_eq!(text(-0.003_12, -0.005_19, -0.001_04), "-0.0031 [-0.0052, -0.0010]");
        assert_eq!(text(1.5, -2.0, 5.0), "+1.50 [-2.00, +5.00]");
        assert_eq!(difference(-0.25, None), "-0.2500");
    }

    #[test]
    fn ticks_are_round_and_inside() {
        for (low, high) in [(0.0, 1.0), (2.9, 3.7), (-0.08, 0.013), (0.0, 123_456.0), (1e-5, 3e-5)] {
            let ticks = round_ticks(low, high);
            assert!((4..=10).contains(&ticks.len()), "{low}..{high}: {ticks:?}");
            assert!(ticks.iter().all(|tick| (low..=high * (1.0 + 1e-9)).contains(tick)), "{ticks:?}");
        }
        assert_eq!(
            tick_labels(&[-0.05, 0.0, 0.05]).iter().map(|tick| tick.1.as_str()).collect::<Vec<_>>(),
            ["-0.05", "0.00", "0.05"]
        );
        assert_eq!(si_tick_labels(&[1.5e6], "")[0].1, "1.5 M");
        assert_eq!(si_tick_labels(&[200.0], "")[0].1, "200");
    }
}

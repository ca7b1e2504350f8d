//! Numbers as a reader wants them: rounded to what they are worth, with units.

use crate::statistics::{Interval, RatioEstimate};

/// What stands for a number that does not exist.
pub(super) const ABSENT: &str = "-";

const PREFIXES: [(f64, &str); 7] =
    [(1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")];

/// A value with three significant digits, an SI prefix and its unit: `1.23 PFLOP`. The unit may be
/// empty.
pub(super) fn with_si_prefix(value: f64, unit: &str) -> String {
    let (scale, prefix) =
        PREFIXES.into_iter().find(|(scale, _)| value.abs() >= *scale * 0.9995).unwrap_or((1.0, ""));
    let scaled = value / scale;
    let decimals = match scaled.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    let is_whole_count = scale == 1.0 && value.fract() == 0.0;
    let number = format!("{scaled:.*}", if is_whole_count { 0 } else { decimals });
    format!("{number} {prefix}{unit}").trim_end().to_string()
}

/// A loss in nats per token.
pub(super) fn nats(loss: f64) -> String {
    format!("{loss:.4}")
}

/// A whole number, its thousands apart: `12 000`. The spaces do not break.
pub(super) fn whole(count: u64) -> String {
    let digits = count.to_string();
    let is_start_of_group = |index: usize| index > 0 && (digits.len() - index).is_multiple_of(3);
    let grouped = |(index, digit): (usize, char)| {
        is_start_of_group(index).then_some('\u{a0}').into_iter().chain(std::iter::once(digit))
    };
    digits.chars().enumerate().flat_map(grouped).collect()
}

/// A share in percent. The space does not break.
pub(super) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent.fract().abs() < 1e-9 || percent >= 10.0 {
        return format!("{percent:.0}\u{a0}%");
    }
    format!("{percent:.1}\u{a0}%")
}

/// A duration in the unit that suits its size.
pub(super) fn duration(secs: f64) -> String {
    match secs {
        secs if secs < 120.0 => format!("{secs:.1} s"),
        secs if secs < 7200.0 => format!("{:.1} min", secs / 60.0),
        secs => format!("{:.2} h", secs / 3600.0),
    }
}

/// A size of memory.
pub(super) fn memory(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1024.0 { format!("{mebibytes:.1} MiB") } else { format!("{:.2} GiB", mebibytes / 1024.0) }
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
        let text = with_si_prefix(tick, unit);
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
    fn large_numbers_have_three_digits_and_a_prefix() {
        let table =
            [(999.6, "1.00 k"), (12_345.0, "12.3 k"), (7.0, "7"), (0.5, "0.50"), (1.234e15, "1.23 P")];
        for (value, text) in table {
            assert_eq!(with_si_prefix(value, ""), text);
        }
        assert_eq!(with_si_prefix(2.5e15, "FLOP"), "2.50 PFLOP");
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(whole), ["0", "999", "1\u{a0}000", "1\u{a0}234\u{a0}567"]);
    }

    #[test]
    fn durations_change_their_unit() {
        assert_eq!([1.25, 119.9, 600.0, 7200.0].map(duration), ["1.2 s", "119.9 s", "10.0 min", "2.00 h"]);
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

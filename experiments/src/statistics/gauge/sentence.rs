//! The gauge in words.

use super::{Crossing, CrossingInterval, Gauge, GaugePoint, SlopeMethod, Straightness, Trend};
use crate::statistics::interval::Interval;
use crate::statistics::measure::Measure;

/// Where the arm stands at the largest budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ahead,
    Behind,
    Undecided,
}

impl Gauge {
    /// The trend, the gap measured at the largest budget, and the crossing.
    pub(super) fn words(&self, measure: Measure, confidence: f64) -> String {
        format!(
            "{} {}. {} {}",
            self.trend_words(),
            self.slope_words(measure, confidence),
            self.largest_words(measure, confidence),
            self.crossing_words(confidence),
        )
    }

    /// What was measured at the largest budget: the fitted line may lie elsewhere.
    fn largest_words(&self, measure: Measure, confidence: f64) -> String {
        let Some(GaugePoint { mean_gap, interval, .. }) = self.points.last() else { return String::new() };
        let interval = interval.map_or(String::new(), |Interval { low, high }| {
            format!(" ({:.0}% interval {low:+.4} to {high:+.4})", 100.0 * confidence)
        });
        let place = match self.place() {
            Place::Ahead => "the arm is ahead",
            Place::Behind => "the arm is behind",
            Place::Undecided => "which of the two is ahead is undecided there",
        };
        let mean_gap = measure.amount(format_args!("{mean_gap:+.4}"));
        format!("At the largest budget the mean gap is {mean_gap}{interval}: {place}.")
    }

    fn place(&self) -> Place {
        match self.points.last().and_then(|point| Some((point.mean_gap, point.interval?))) {
            Some((_, Interval { high, .. })) if high < 0.0 => Place::Ahead,
            Some((_, Interval { low, .. })) if low > 0.0 => Place::Behind,
            _ => Place::Undecided,
        }
    }

    /// What the last budgets say, where no line fits.
    fn bent(&self, confidence: f64) -> Option<Straightness> {
        self.straightness.filter(|found| found.is_bent(confidence))
    }

    fn trend_words(&self) -> &'static str {
        match (self.trend, self.place()) {
            (Trend::ArmGains, Place::Ahead) => "The arm's advantage grows with compute:",
            (Trend::ArmGains, Place::Behind) => "The arm catches up with compute:",
            (Trend::ArmGains, Place::Undecided) => "The gap moves in the arm's favour with compute:",
            (Trend::ArmLosesGround, Place::Ahead) => "The arm's advantage shrinks with compute:",
            (Trend::ArmLosesGround, Place::Behind) => "The arm falls further behind with compute:",
            (Trend::ArmLosesGround, Place::Undecided) => "The gap moves against the arm with compute:",
            (Trend::Undecided, _) => "Whether the gap changes with compute is undecided:",
        }
    }

    fn slope_words(&self, measure: Measure, confidence: f64) -> String {
        if let Some(Straightness { p_value, last_slope, last_interval, .. }) = self.bent(confidence) {
            let (percent, low, high) = (100.0 * confidence, last_interval.low, last_interval.high);
            let last_slope = measure.amount(format_args!("{last_slope:+.4}"));
            return format!(
                "no straight line fits its gaps (p = {p_value:.4}), and between the last two budgets it changes by \
                 {last_slope} per decade ({percent:.0}% interval {low:+.4} to {high:+.4})"
            );
        }
        let slope = measure.amount(format_args!("{:+.4}", self.slope_per_decade));
        let slope = format!("it changes by {slope} per decade");
        let source = match self.slope_method {
            SlopeMethod::SeedBootstrap => "from resampled seeds",
            SlopeMethod::RegressionT => "from the regression, too few seeds to resample",
        };
        self.slope_interval.map_or(slope.clone(), |interval| {
            let (percent, low, high) = (100.0 * confidence, interval.low, interval.high);
            format!("{slope} ({percent:.0}% interval {low:+.4} to {high:+.4}, {source})")
        })
    }

    fn crossing_words(&self, confidence: f64) -> String {
        let event = match self.trend {
            Trend::ArmGains => "overtakes the baseline",
            Trend::ArmLosesGround | Trend::Undecided => "loses its advantage",
        };
        match self.crossing {
            Crossing::WithinRange { compute, interval } => {
                let interval = interval_words(interval);
                let doubt = match self.place() {
                    Place::Undecided => ", as far as the mean gaps say: no larger budget shows it yet",
                    Place::Ahead | Place::Behind => "",
                };
                format!(
                    "Within the range measured the arm {event}, at {compute:.2e} FLOPs ({interval}){doubt}."
                )
            }
            Crossing::Extrapolated { compute, interval } => {
                let times = compute / self.largest_compute();
                format!(
                    "If this went on, it {event} at {compute:.2e} FLOPs ({}), {times:.1} times the largest budget.",
                    interval_words(interval)
                )
            }
            Crossing::NotWithinReach => format!("{}.", self.no_crossing_words(confidence)),
        }
    }

    /// Why there is no crossing.
    fn no_crossing_words(&self, confidence: f64) -> &'static str {
        let towards_zero = self.slope_per_decade * self.intercept_at_largest < 0.0;
        match self.trend {
            _ if self.bent(confidence).is_some() => {
                "Without a line there is no crossing to foretell: measure larger budgets"
            }
            Trend::Undecided => "A trend that is undecided gives no crossing",
            _ if towards_zero => "It would cross zero more than six decades beyond the largest budget",
            _ => "It leads away from zero, and no mean gap changes its sign within the range measured",
        }
    }

    fn largest_compute(&self) -> f64 {
        self.points.last().map_or(f64::NAN, |point| point.compute)
    }
}

fn interval_words(interval: Option<CrossingInterval>) -> String {
    let Some(CrossingInterval { low, high }) = interval else {
        return "no interval: too few seeds".into();
    };
    match (low, high) {
        (Some(low), Some(high)) => format!("interval {low:.2e} to {high:.2e}"),
        (Some(low), None) => format!("interval {low:.2e} to beyond reach"),
        (None, Some(high)) => format!("interval up to {high:.2e}"),
        (None, None) => "an interval wider than the gauge's reach".into(),
    }
}

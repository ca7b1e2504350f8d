//! Where the gap crosses zero.

use serde::{Deserialize, Serialize};

use super::GaugePoint;
use super::line::Line;
use super::trend::{Trend, TrendFit};
use crate::statistics::bootstrap::central_range;

/// Decades beyond the budgets measured up to which a compute is named. Further out nobody plans a
/// run.
pub(super) const REACH_DECADES: f64 = 6.0;

/// The compute at which the fitted gap is zero.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Crossing {
    /// Between two budgets measured, whose mean gaps have different signs.
    WithinRange {
        /// Training compute in FLOPs.
        compute: f64,
        /// Its interval; `None` with fewer than three seeds. Where no line fits: between the budgets
        /// around it whose own intervals leave zero out.
        interval: Option<CrossingInterval>,
    },
    /// Beyond the largest budget, if the gap stays straight in the logarithm of compute.
    Extrapolated {
        /// Training compute in FLOPs.
        compute: f64,
        /// Its interval; `None` with fewer than three seeds.
        interval: Option<CrossingInterval>,
    },
    /// Nowhere that the measurements tell: the trend is undecided, the gap leads away from zero, no
    /// line fits that could be followed, or zero is more than six decades beyond the largest budget.
    NotWithinReach,
}

/// Interval of a crossing, from resampled seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct CrossingInterval {
    /// Lower end in FLOPs; `None` if it is more than six decades below the smallest budget.
    pub(crate) low: Option<f64>,
    /// Upper end in FLOPs; `None` if it is more than six decades beyond the largest budget.
    pub(crate) high: Option<f64>,
}

impl Crossing {
    /// The crossing of `points` and of `fit`, their line, which is not to be followed if the gap is
    /// `bent`.
    pub(super) fn of(
        fit: &TrendFit,
        points: &[GaugePoint],
        trend: Trend,
        bent: bool,
        confidence: f64,
    ) -> Self {
        // Without a trend the line crosses zero wherever the noise wants, inside the range as well
        // as outside.
        if trend == Trend::Undecided {
            return Self::NotWithinReach;
        }
        let decades = -fit.line.at_largest / fit.line.slope;
        let by_line = fit.compute_at(decades);
        match measured_crossing(points, trend) {
            // The line is believed where the measured gaps agree with it.
            Some(Bracket { budgets: [before, after], .. })
                if !bent && before <= by_line && by_line <= after =>
            {
                Self::WithinRange { compute: by_line, interval: CrossingInterval::of(fit, confidence) }
            }
            Some(Bracket { compute, .. }) => {
                Self::WithinRange { compute, interval: decided_around(points, compute) }
            }
            None if !bent && decades > 0.0 && decades <= REACH_DECADES && by_line.is_finite() => {
                Self::Extrapolated { compute: by_line, interval: CrossingInterval::of(fit, confidence) }
            }
            _ => Self::NotWithinReach,
        }
    }
}

/// Two neighbouring budgets between which the mean gap changes its sign.
struct Bracket {
    budgets: [f64; 2],
    /// Where it does, if it is straight between them.
    compute: f64,
}

/// Where the mean gap last changes its sign in the direction of `trend`.
fn measured_crossing(points: &[GaugePoint], trend: Trend) -> Option<Bracket> {
    let sign = if trend == Trend::ArmLosesGround { 1.0 } else { -1.0 };
    let changes = |pair: &&[GaugePoint]| sign * pair[0].mean_gap < 0.0 && sign * pair[1].mean_gap >= 0.0;
    let pair = points.windows(2).rev().find(changes)?;
    let [before, after] = [&pair[0], &pair[1]];
    let share = before.mean_gap / (before.mean_gap - after.mean_gap);
    let compute = before.compute * (after.compute / before.compute).powf(share);
    Some(Bracket { budgets: [before.compute, after.compute], compute })
}

/// The nearest budgets around `compute` whose intervals leave zero out.
fn decided_around(points: &[GaugePoint], compute: f64) -> Option<CrossingInterval> {
    let is_decided = |point: &&GaugePoint| {
        point.interval.is_some_and(|interval| interval.low > 0.0 || interval.high < 0.0)
    };
    let low = points.iter().rev().filter(|point| point.compute <= compute).find(is_decided);
    let high = points.iter().filter(|point| point.compute >= compute).find(is_decided);
    let of = |point: Option<&GaugePoint>| point.map(|point| point.compute);
    (points.len() > 1).then_some(CrossingInterval { low: of(low), high: of(high) })
}

impl CrossingInterval {
    /// The central range of the resampled lines' crossings; `None` if nothing was resampled.
    fn of(fit: &TrendFit, confidence: f64) -> Option<Self> {
        let crossings = fit.resampled.iter().map(|&line| oriented_crossing(line, fit.line.slope)).collect();
        let (low, high) = central_range(crossings, confidence)?;
        let named = |decades: f64| Some(fit.compute_at(decades)).filter(|compute| compute.is_finite());
        Some(Self {
            low: named(low).filter(|_| low >= -fit.span_decades - REACH_DECADES),
            high: named(high).filter(|_| high <= REACH_DECADES),
        })
    }
}

impl TrendFit {
    /// Compute in FLOPs at `decades` from the largest budget.
    fn compute_at(&self, decades: f64) -> f64 {
        self.largest_compute * 10_f64.powf(decades)
    }
}

/// Decades from the largest budget at which `line` crosses zero in the direction of `slope`. A line
/// that does not go that way crosses at infinity if its gap at the largest budget has yet to change
/// sign, at minus infinity if it has already: so the crossings of all resampled lines have an
/// order.
fn oriented_crossing(line: Line, slope: f64) -> f64 {
    let (at_largest, slope) = (line.at_largest * slope.signum(), line.slope * slope.signum());
    if slope > 0.0 {
        -at_largest / slope
    } else if at_largest < 0.0 {
        f64::INFINITY
    } else {
        f64::NEG_INFINITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at_largest: f64, slope: f64) -> Line {
        Line { at_largest, slope }
    }

    #[test]
    fn a_line_of_the_same_direction_crosses_where_it_is_zero() {
        assert_eq!(oriented_crossing(line(-0.2, 0.1), 0.3), 2.0);
        assert_eq!(oriented_crossing(line(0.2, -0.1), -0.3), 2.0);
        assert_eq!(oriented_crossing(line(0.1, 0.1), 0.3), -1.0);
    }

    #[test]
    fn a_line_of_the_other_direction_crosses_at_infinity() {
        assert_eq!(oriented_crossing(line(-0.2, -0.1), 0.3), f64::INFINITY);
        assert_eq!(oriented_crossing(line(0.2, 0.1), -0.3), f64::INFINITY);
        assert_eq!(oriented_crossing(line(0.2, -0.1), 0.3), f64::NEG_INFINITY);
        assert_eq!(oriented_crossing(line(0.0, 0.0), 0.3), f64::NEG_INFINITY);
    }
}

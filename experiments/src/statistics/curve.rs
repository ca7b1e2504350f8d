//! Validation-loss curves: the loss at an x, and the x at a loss.

use serde::{Deserialize, Serialize};

/// A validation-loss curve over steps, tokens, FLOPs or seconds.
///
/// Between two points it is straight in ln x, where loss curves bend less, or in x if one of the
/// points is not above zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(f64, f64)>", into = "Vec<(f64, f64)>")]
pub(crate) struct LossCurve {
    /// Points (x, loss), at least one, finite, x strictly ascending.
    points: Vec<(f64, f64)>,
}

impl LossCurve {
    /// The curve through `points`, (x, loss) in any order; of several at one x the last given
    /// counts. `None` without points or if a number is not finite.
    pub(crate) fn new(mut points: Vec<(f64, f64)>) -> Option<Self> {
        if points.is_empty() || !points.iter().all(|(x, loss)| x.is_finite() && loss.is_finite()) {
            return None;
        }
        // Reversed before the stable sort, so that of equal x the last given comes first and is the
        // one kept.
        points.reverse();
        points.sort_by(|left, right| left.0.total_cmp(&right.0));
        points.dedup_by(|later, kept| later.0 == kept.0);
        Some(Self { points })
    }

    /// The largest x.
    pub(crate) fn last_x(&self) -> f64 {
        self.last().0
    }

    /// The loss at the smallest x.
    pub(crate) fn first_loss(&self) -> f64 {
        self.points[0].1
    }

    /// The loss at the largest x.
    pub(crate) fn final_loss(&self) -> f64 {
        self.last().1
    }

    /// The loss at `x`; `None` outside the range of the points.
    pub(crate) fn loss_at(&self, x: f64) -> Option<f64> {
        let next = self.points.partition_point(|point| point.0 < x);
        let &(next_x, next_loss) = self.points.get(next)?;
        if next_x == x {
            return Some(next_loss);
        }
        let &(previous_x, previous_loss) = self.points.get(next.checked_sub(1)?)?;
        let share = share_between(previous_x, next_x, x);
        Some(previous_loss + share * (next_loss - previous_loss))
    }

    /// As [`LossCurve::loss_at`], and up to `beyond` times past either end with the slope of the
    /// nearest two points; `None` further out, and outside a curve of one point.
    pub(crate) fn loss_near(&self, x: f64, beyond: f64) -> Option<f64> {
        let (first, last) = (self.points[0].0, self.last_x());
        if x >= first && x <= last {
            return self.loss_at(x);
        }
        let [near, far] = match &self.points[..] {
            [near, far, ..] if x < first && x * beyond >= first => [near, far],
            [.., far, near] if x > last && x <= last * beyond => [near, far],
            _ => return None,
        };
        // Negative: on the other side of the near point.
        let share = share_between(near.0, far.0, x);
        Some(near.1 + share * (far.1 - near.1))
    }

    /// The first x at which the curve is at or below `loss`, whatever it does later; `None` if it
    /// is never within its range (a censored observation: the x is larger than
    /// [`LossCurve::last_x`]).
    pub(crate) fn first_x_at(&self, loss: f64) -> Option<f64> {
        let next = self.points.iter().position(|point| point.1 <= loss)?;
        let (next_x, next_loss) = self.points[next];
        let Some(&(previous_x, previous_loss)) = next.checked_sub(1).and_then(|index| self.points.get(index))
        else {
            return Some(next_x);
        };
        // The previous loss is above the target, so the two differ.
        let share = (previous_loss - loss) / (previous_loss - next_loss);
        Some(x_between(previous_x, next_x, share))
    }

    fn last(&self) -> (f64, f64) {
        self.points[self.points.len() - 1]
    }
}

impl TryFrom<Vec<(f64, f64)>> for LossCurve {
    type Error = &'static str;

    fn try_from(points: Vec<(f64, f64)>) -> Result<Self, Self::Error> {
        Self::new(points).ok_or("a loss curve needs at least one point, and every number in it finite")
    }
}

impl From<LossCurve> for Vec<(f64, f64)> {
    fn from(curve: LossCurve) -> Self {
        curve.points
    }
}

/// How far `x` is on the way from `low` to `high`: 0 at `low`, 1 at `high`.
fn share_between(low: f64, high: f64, x: f64) -> f64 {
    if low > 0.0 { (x / low).ln() / (high / low).ln() } else { (x - low) / (high - low) }
}

/// The x at a share of the way from `low` to `high`: the inverse of [`share_between`], inside the
/// two despite rounding.
fn x_between(low: f64, high: f64, share: f64) -> f64 {
    let x = if low > 0.0 { low * (high / low).powf(share) } else { low + share * (high - low) };
    x.clamp(low, high)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn curve(points: &[(f64, f64)]) -> LossCurve {
        LossCurve::new(points.to_vec()).unwrap()
    }

    /// Curves whose loss falls from point to point, over x above zero.
    fn falling() -> impl Strategy<Value = LossCurve> {
        prop::collection::vec((0.05..2.0_f64, 0.01..1.0_f64), 2..12).prop_map(|steps| {
            let mut point = (1.0, 10.0);
            let next = |(growth, fall): (f64, f64)| {
                point = (point.0 * (1.0 + growth), point.1 - fall);
                point
            };
            LossCurve::new(steps.into_iter().map(next).collect()).unwrap()
        })
    }

    #[test]
    fn points_are_sorted_and_the_last_given_of_equal_x_counts() {
        let curve = curve(&[(4.0, 2.0), (1.0, 5.0), (4.0, 1.0)]);
        assert_eq!((curve.last_x(), curve.final_loss()), (4.0, 1.0));
        assert_eq!(curve.loss_at(1.0), Some(5.0));
    }

    #[test]
    fn a_little_past_its_ends_a_curve_goes_on_as_straight_as_it_came() {
        let curve = curve(&[(1.0, 5.0), (2.0, 4.0), (4.0, 3.5)]);
        assert_eq!(curve.loss_near(2.0, 1.3), Some(4.0));
        let at = |x: f64| curve.loss_near(x, 1.3).unwrap();
        assert!((at(1.0 / 1.25) - (5.0 + 1.25_f64.log2())).abs() < 1e-12);
        assert!((at(5.0) - (3.5 - 0.5 * 1.25_f64.log2())).abs() < 1e-12);
        assert_eq!([0.7, 6.0].map(|x| curve.loss_near(x, 1.3)), [None, None]);
        assert_eq!(LossCurve::new(vec![(1.0, 2.0)]).unwrap().loss_near(1.1, 1.3), None);
    }

    #[test]
    fn a_curve_without_points_or_with_one_that_is_no_number_is_refused() {
        for points in [vec![], vec![(f64::NAN, 1.0)], vec![(1.0, 2.0), (2.0, f64::NAN)]] {
            assert_eq!(LossCurve::new(points), None);
        }
    }

    #[test]
    fn the_loss_is_straight_in_the_logarithm_of_x() {
        let curve = curve(&[(1.0, 5.0), (100.0, 3.0), (400.0, 2.0)]);
        assert!((curve.loss_at(10.0).unwrap() - 4.0).abs() < 1e-12);
        assert!((curve.loss_at(200.0).unwrap() - 2.5).abs() < 1e-12);
        assert!((curve.first_x_at(4.0).unwrap() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn from_x_zero_the_loss_is_straight_in_x() {
        let curve = curve(&[(0.0, 5.0), (100.0, 3.0)]);
        assert!((curve.loss_at(25.0).unwrap() - 4.5).abs() < 1e-12);
        assert!((curve.first_x_at(4.5).unwrap() - 25.0).abs() < 1e-12);
    }

    #[test]
    fn outside_the_range_there_is_no_loss() {
        let curve = curve(&[(1.0, 5.0), (2.0, 4.0)]);
        for x in [0.5, 2.5, f64::NAN] {
            assert_eq!(curve.loss_at(x), None);
        }
        assert_eq!((curve.loss_at(1.0), curve.loss_at(2.0)), (Some(5.0), Some(4.0)));
    }

    #[test]
    fn a_loss_that_was_reached_once_counts_although_the_curve_rises_again() {
        let curve = curve(&[(1.0, 5.0), (2.0, 3.0), (3.0, 4.0), (4.0, 2.0)]);
        assert_eq!(curve.first_x_at(3.0), Some(2.0));
        assert!(curve.first_x_at(3.5).unwrap() < 2.0);
        assert!(curve.first_x_at(2.5).unwrap() > 3.0);
    }

    #[test]
    fn a_loss_that_is_never_reached_is_censored() {
        let curve = curve(&[(1.0, 5.0), (2.0, 3.0)]);
        assert_eq!(curve.first_x_at(2.9), None);
        assert_eq!(curve.first_x_at(f64::NAN), None);
        assert_eq!(curve.first_x_at(6.0), Some(1.0), "reached before the first point");
    }

    #[test]
    fn a_curve_of_one_point_is_a_curve() {
        let curve = curve(&[(3.0, 2.0)]);
        assert_eq!(
            (curve.loss_at(3.0), curve.first_x_at(2.0), curve.first_x_at(1.9)),
            (Some(2.0), Some(3.0), None)
        );
    }

    #[test]
    fn a_curve_survives_json_and_a_broken_one_does_not() {
        let curve = curve(&[(1.0, 5.0), (2.5, 3.1)]);
        let text = serde_json::to_string(&curve).unwrap();
        assert_eq!(text, "[[1.0,5.0],[2.5,3.1]]");
        assert_eq!(serde_json::from_str::<LossCurve>(&text).unwrap(), curve);
        assert!(serde_json::from_str::<LossCurve>("[]").is_err());
    }

    proptest! {
        #[test]
        fn the_x_at_a_loss_has_that_loss(curve in falling(), share in 0.0..=1.0_f64) {
            let first_loss = curve.points[0].1;
            let loss = first_loss + share * (curve.final_loss() - first_loss);
            let x = curve.first_x_at(loss).unwrap();
            prop_assert!((curve.loss_at(x).unwrap() - loss).abs() < 1e-9);
        }

        #[test]
        fn the_loss_at_an_x_is_first_met_there(curve in falling(), share in 0.0..=1.0_f64) {
            let x = x_between(curve.points[0].0, curve.last_x(), share);
            let found = curve.first_x_at(curve.loss_at(x).unwrap()).unwrap();
            prop_assert!((found / x - 1.0).abs() < 1e-9);
        }

        #[test]
        fn an_interpolated_loss_is_between_its_neighbours(
            points in prop::collection::vec((0.0..100.0_f64, 0.0..10.0_f64), 2..12), share in 0.0..=1.0_f64,
        ) {
            let curve = LossCurve::new(points).unwrap();
            for pair in curve.points.windows(2) {
                let loss = curve.loss_at(x_between(pair[0].0, pair[1].0, share)).unwrap();
                let (low, high) = (pair[0].1.min(pair[1].1), pair[0].1.max(pair[1].1));
                prop_assert!(low - 1e-9 <= loss && loss <= high + 1e-9);
            }
        }

        #[test]
        fn a_lower_loss_is_not_met_earlier(
            points in prop::collection::vec((0.0..100.0_f64, 0.0..10.0_f64), 1..12),
            low in 0.0..10.0_f64, more in 0.0..5.0_f64,
        ) {
            let curve = LossCurve::new(points).unwrap();
            if let Some(late) = curve.first_x_at(low) {
                prop_assert!(curve.first_x_at(low + more).unwrap() <= late);
            }
        }
    }
}

//! Straight lines through gaps, by least squares.
//!
//! The x-axis is decades of compute from the largest budget: 0 there, -1 at a tenth of it.

use std::ops::AddAssign;

/// A gap that is straight in the logarithm of compute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Line {
    /// Gap at the largest budget.
    pub(super) at_largest: f64,
    /// Change of the gap per decade.
    pub(super) slope: f64,
}

impl Line {
    /// The gap `decades` from the largest budget.
    pub(super) fn at(self, decades: f64) -> f64 {
        self.at_largest + self.slope * decades
    }

    /// This line with its deviation from `centre` multiplied by `factor`.
    pub(super) fn widened(self, centre: Self, factor: f64) -> Self {
        Self {
            at_largest: centre.at_largest + factor * (self.at_largest - centre.at_largest),
            slope: centre.slope + factor * (self.slope - centre.slope),
        }
    }
}

/// Sums over points from which a line follows; those of several groups of points add up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct LineSums {
    count: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl LineSums {
    /// Adds the gap `y` at `x` decades.
    pub(super) fn add(&mut self, x: f64, y: f64) {
        *self += Self { count: 1.0, x, y, xx: x * x, xy: x * y };
    }

    /// Squared deviations of x from its mean, summed; zero where all points are at one x.
    pub(super) fn spread(&self) -> f64 {
        let spread = self.xx - self.x * self.x / self.count;
        // Below this it is the rounding of the two terms: budgets of one group are exactly at one
        // x.
        if spread > 1e-12 * self.xx { spread } else { 0.0 }
    }

    /// The line of least squares; `None` where all points are at one x.
    pub(super) fn line(&self) -> Option<Line> {
        let spread = Some(self.spread()).filter(|&spread| spread > 0.0)?;
        let slope = (self.xy - self.x * self.y / self.count) / spread;
        Some(Line { at_largest: (self.y - slope * self.x) / self.count, slope })
    }
}

impl AddAssign for LineSums {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.x += other.x;
        self.y += other.y;
        self.xx += other.xx;
        self.xy += other.xy;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sums(points: &[(f64, f64)]) -> LineSums {
        let mut sums = LineSums::default();
        points.iter().for_each(|&(x, y)| sums.add(x, y));
        sums
    }

    #[test]
    fn a_worked_example_has_the_line_of_the_textbook() {
        // Anscombe's first data set (The American Statistician 27, 1973): y = 3.0001 + 0.50009 x,
        // sum of squares of x 110.
        let x = [10.0, 8.0, 13.0, 9.0, 11.0, 14.0, 6.0, 4.0, 12.0, 7.0, 5.0];
        let y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68];
        let sums = sums(&x.into_iter().zip(y).collect::<Vec<_>>());
        let line = sums.line().unwrap();
        assert!((line.slope - 0.500_09).abs() < 1e-5 && (line.at_largest - 3.0001).abs() < 1e-4);
        assert!((sums.spread() - 110.0).abs() < 1e-9);
    }

    #[test]
    fn points_at_one_x_have_no_line() {
        assert_eq!(sums(&[(-1.3, 0.1), (-1.3, 0.2), (-1.3, 0.4)]).line(), None);
        assert_eq!(sums(&[(0.0, 0.1)]).line(), None);
        assert_eq!(sums(&[]).line(), None);
    }

    proptest! {
        #[test]
        fn a_line_goes_through_points_on_it(
            at_largest in -1.0..1.0_f64, slope in -1.0..1.0_f64, span in 0.5..6.0_f64, count in 2..9_u32,
        ) {
            let line = Line { at_largest, slope };
            let decades = (0..count).map(|point| -span * f64::from(point) / f64::from(count - 1));
            let points: Vec<_> = decades.map(|x| (x, line.at(x))).collect();
            let found = sums(&points).line().unwrap();
            prop_assert!((found.slope - slope).abs() < 1e-10 && (found.at_largest - at_largest).abs() < 1e-10);
        }
    }
}

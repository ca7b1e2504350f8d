//! The coordinate check: the same few steps at growing sizes, with the learning rate as it is and
//! transferred, and how the size of what they change goes with the model's.

mod shapes;
mod table;

use std::fmt;

use switchyard_trainer::coordinates::{Coordinate, Site};

pub(crate) use shapes::{base_shape, scaled, tuned_shape};
pub(crate) use table::table;

/// Largest exponent with which the changes of a transferred model may grow with its size. Over 8 times
/// the width, 0.25 is a factor of 1.7; without a parametrisation the exponents of blocks and logits lie
/// at 0.5 and above.
pub(crate) const MAX_EXPONENT: f64 = 0.25;

/// Smallest exponent. What reads the stream out to a few numbers has initial values at random, whose
/// part falls with the root of the width until what is learned outweighs it; nothing else may vanish.
pub(crate) fn min_exponent(site: Site) -> f64 {
    match site {
        Site::Embedding | Site::Blocks => -MAX_EXPONENT,
        Site::RouterLogits | Site::Logits => -0.6,
    }
}

/// A size of the model that is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axis {
    /// All widths and the number of heads.
    Width,
    /// The layers.
    Depth,
    /// The routed experts, of which a token has as many as before.
    Experts,
    /// The experts of a token and all experts, each as much narrower.
    Granularity,
}

impl Axis {
    pub(crate) const ALL: [Self; 4] = [Self::Width, Self::Depth, Self::Experts, Self::Granularity];

    /// The multiples, 1 first.
    pub(crate) fn multiples(self) -> &'static [usize] {
        match self {
            Self::Width | Self::Experts | Self::Granularity => &[1, 2, 4, 8],
            Self::Depth => &[1, 2, 4],
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Width => "width",
            Self::Depth => "depth",
            Self::Experts => "experts",
            Self::Granularity => "granularity",
        })
    }
}

/// What was measured along one axis, in one way of choosing rates.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) axis: Axis,
    pub(crate) is_transferred: bool,
    /// The multiples that the shape allows, each with its coordinates.
    pub(crate) points: Vec<(usize, Vec<Coordinate>)>,
}

impl Series {
    /// What the steps changed at `site`, by multiple.
    pub(crate) fn changes(&self, site: Site) -> Vec<(usize, f64)> {
        let change = |(multiple, coordinates): &(usize, Vec<Coordinate>)| {
            let found = coordinates.iter().find(|coordinate| coordinate.site == site)?;
            Some((*multiple, found.change_rms))
        };
        self.points.iter().filter_map(change).collect()
    }

    /// The exponent with which it goes with the multiple; `None` with fewer than two points, and for
    /// routers that learn nothing, such as a hash.
    pub(crate) fn exponent(&self, site: Site) -> Option<f64> {
        let changes = self.changes(site);
        let learns = site != Site::RouterLogits || changes.iter().any(|(_, change)| *change != 0.0);
        exponent(&changes).filter(|_| learns)
    }

    /// The sites whose changes go with the size by other exponents than [`min_exponent`] to
    /// [`MAX_EXPONENT`].
    pub(crate) fn drifts(&self) -> Vec<(Site, f64)> {
        let exponents = Site::ALL.into_iter().filter_map(|site| Some((site, self.exponent(site)?)));
        // A change that is zero or not finite has no exponent that could be within the bound.
        let drifts =
            |(site, exponent): &(Site, f64)| !(min_exponent(*site)..=MAX_EXPONENT).contains(exponent);
        exponents.filter(drifts).collect()
    }
}

/// The slope of the line through the logarithms, by least squares.
fn exponent(points: &[(usize, f64)]) -> Option<f64> {
    if points.len() < 2 {
        return None;
    }
    let logarithms = || points.iter().map(|(multiple, change)| ((*multiple as f64).ln(), change.ln()));
    let count = points.len() as f64;
    let mean = |of: &dyn Fn((f64, f64)) -> f64| logarithms().map(of).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(&|(x, _)| x), mean(&|(_, y)| y));
    let covariance = mean(&|(x, y)| (x - mean_x) * (y - mean_y));
    Some(covariance / mean(&|(x, _)| (x - mean_x).powi(2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(change: impl Fn(f64) -> f64) -> Series {
        let point = |multiple: &usize| {
            let change_rms = change(*multiple as f64);
            let coordinate = Coordinate { site: Site::Blocks, initial_rms: 1.0, final_rms: 1.0, change_rms };
            (*multiple, vec![coordinate])
        };
        let points = Axis::Width.multiples().iter().map(point).collect();
        Series { axis: Axis::Width, is_transferred: true, points }
    }

    #[test]
    fn a_power_of_the_size_has_its_exponent_and_is_a_drift_above_the_bound() {
        for power in [-1.0, -0.2, 0.0, 0.2, 0.5] {
            let series = series(|multiple| 3.0 * multiple.powf(power));
            let found = series.exponent(Site::Blocks).unwrap();
            assert!((found - power).abs() < 1e-12, "{found} for {power}");
            assert_eq!(series.drifts().len(), usize::from(power.abs() > MAX_EXPONENT), "{power}");
        }
    }

    #[test]
    fn a_router_that_learns_nothing_does_not_drift_but_blocks_that_stand_still_do() {
        let still = series(|_| 0.0);
        assert_eq!(still.drifts().len(), 1, "blocks");
        let mut routers = still;
        for coordinate in routers.points.iter_mut().flat_map(|(_, coordinates)| coordinates) {
            coordinate.site = Site::RouterLogits;
        }
        assert!(routers.drifts().is_empty());
    }

    #[test]
    fn what_is_read_out_at_random_may_fall_with_the_root() {
        assert!(min_exponent(Site::Logits) < -0.5 && min_exponent(Site::RouterLogits) < -0.5);
    }

    #[test]
    fn changes_that_vanish_or_diverge_are_drifts() {
        for change in [0.0, f64::NAN, f64::INFINITY] {
            assert_eq!(series(|multiple| if multiple > 2.0 { change } else { 1.0 }).drifts().len(), 1);
        }
        assert_eq!(series(|_| 0.0).drifts().len(), 1);
    }
}

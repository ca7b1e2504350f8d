//! Robust least squares: Levenberg-Marquardt on residuals whose squares are the Huber loss.

use levenberg_marquardt::{LeastSquaresProblem, LevenbergMarquardt};
use nalgebra::{DMatrix, DVector, Dyn, storage::Owned};

use super::Observation;
use super::coordinates::Coordinates;
use super::law::Law;
use super::parameters::starting_points;
use super::terms::LogTerm;

/// Log loss beyond which a residual counts linearly, not squared: arXiv:2203.15556, appendix D.2.
const HUBER_DELTA: f64 = 1e-3;

/// Evaluations allowed per parameter. Smooth fits take a tenth of it; a search that needs more is
/// in a ravine that another start avoids.
const PATIENCE: usize = 60;

/// Relative change of the loss or of the parameters at which a search ends.
const TOLERANCE: f64 = 1e-10;

/// Two ends whose losses differ by less, relatively, are the same minimum.
const SAME_MINIMUM: f64 = 1e-3;

/// A fitted parameter vector.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Solution {
    pub(super) parameters: Vec<f64>,
    /// Weighted sum over the runs.
    pub(super) huber_loss: f64,
}

/// The best of many searches.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Search {
    pub(super) best: Solution,
    /// How many were made.
    pub(super) starts: usize,
    /// How many ended at the best one's loss.
    pub(super) converged_starts: usize,
}

/// The best fit of `law` over all starts; `None` if no search ends at a finite loss.
pub(super) fn search(law: &Law, observations: &[&Observation]) -> Option<Search> {
    let starts = starting_points(law.parameters());
    let mut ends: Vec<Solution> = starts
        .iter()
        .map(|start| minimize(law, observations, start))
        .filter(|end| end.huber_loss.is_finite())
        .collect();
    ends.sort_by(|one, other| one.huber_loss.total_cmp(&other.huber_loss));
    let best = ends.first()?.clone();
    // An exact fit has a loss near zero, where a relative bound would tell equal ends apart.
    let bound = best.huber_loss * (1.0 + SAME_MINIMUM) + f64::EPSILON;
    let converged_starts = ends.iter().filter(|end| end.huber_loss <= bound).count();
    Some(Search { best, starts: starts.len(), converged_starts })
}

/// The minimum that a search from `start` ends at.
pub(super) fn minimize(law: &Law, observations: &[&Observation], start: &[f64]) -> Solution {
    let problem = Problem::new(law, observations, start);
    let solver = LevenbergMarquardt::new().with_tol(TOLERANCE).with_patience(PATIENCE);
    let (problem, report) = solver.minimize(problem);
    Solution { parameters: problem.values(), huber_loss: report.objective_function }
}

/// Log loss at `coordinates` against the run's, and the root of its weight.
struct Sample {
    coordinates: Coordinates,
    log_loss: f64,
    root_weight: f64,
}

struct Problem<'law> {
    law: &'law Law,
    samples: Vec<Sample>,
    /// Unbounded search variables.
    variables: DVector<f64>,
}

impl<'law> Problem<'law> {
    fn new(law: &'law Law, observations: &[&Observation], start: &[f64]) -> Self {
        let sample = |run: &&Observation| Sample {
            coordinates: law.centre.coordinates(law.form, &run.point),
            log_loss: run.loss_nats.ln(),
            root_weight: run.weight.sqrt(),
        };
        let variables =
            law.parameters().iter().zip(start).map(|(parameter, &value)| parameter.variable(value));
        Self {
            law,
            samples: observations.iter().map(sample).collect(),
            variables: DVector::from_iterator(start.len(), variables),
        }
    }

    fn values_and_slopes(&self) -> impl Iterator<Item = (f64, f64)> {
        let parameters = self.law.parameters().iter();
        parameters
            .zip(self.variables.iter())
            .map(|(parameter, &variable)| parameter.value_and_slope(variable))
    }

    fn values(&self) -> Vec<f64> {
        self.values_and_slopes().map(|(value, _)| value).collect()
    }
}

impl Sample {
    /// Root of twice the weighted Huber loss, and the slope in the prediction.
    fn residual(&self, predicted: &LogTerm) -> (f64, f64) {
        let (residual, slope) = huber_root(predicted.value - self.log_loss);
        (self.root_weight * residual, self.root_weight * slope)
    }
}

/// The value whose half square is the Huber loss of `error`, with its slope.
fn huber_root(error: f64) -> (f64, f64) {
    if error.abs() <= HUBER_DELTA {
        return (error, 1.0);
    }
    let root = (HUBER_DELTA * (2.0 * error.abs() - HUBER_DELTA)).sqrt();
    (root.copysign(error), HUBER_DELTA / root)
}

impl LeastSquaresProblem<f64, Dyn, Dyn> for Problem<'_> {
    type ResidualStorage = Owned<f64, Dyn>;
    type JacobianStorage = Owned<f64, Dyn, Dyn>;
    type ParameterStorage = Owned<f64, Dyn>;

    fn set_params(&mut self, variables: &DVector<f64>) {
        self.variables.copy_from(variables);
    }

    fn params(&self) -> DVector<f64> {
        self.variables.clone()
    }

    fn residuals(&self) -> Option<DVector<f64>> {
        let values = self.values();
        let residuals = self.samples.iter().map(|sample| {
            let predicted = self.law.log_loss(&sample.coordinates, &values);
            sample.residual(&predicted).0
        });
        Some(DVector::from_iterator(self.samples.len(), residuals))
    }

    fn jacobian(&self) -> Option<DMatrix<f64>> {
        let (values, slopes): (Vec<f64>, Vec<f64>) = self.values_and_slopes().unzip();
        let rows = self.samples.iter().flat_map(|sample| {
            let predicted = self.law.log_loss(&sample.coordinates, &values);
            let slope = sample.residual(&predicted).1;
            let row = predicted.gradient.into_iter().zip(slopes.clone());
            row.map(move |(gradient, inner)| slope * gradient * inner)
        });
        Some(DMatrix::from_row_iterator(self.samples.len(), slopes.len(), rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Huber's loss as its definition has it.
    fn huber(error: f64) -> f64 {
        let size = error.abs();
        if size <= 1e-3 { 0.5 * size * size } else { 1e-3 * (size - 0.5e-3) }
    }

    #[test]
    fn half_the_squared_residual_is_the_huber_loss() {
        for error in [-2.0, -1e-3, -4e-4, 0.0, 5e-4, 1.1e-3, 0.3] {
            let (root, _) = huber_root(error);
            assert!((0.5 * root * root - huber(error)).abs() < 1e-15, "{error}");
            assert!(root * error >= 0.0);
        }
    }

    #[test]
    fn the_residuals_slope_matches_central_differences() {
        let step = 1e-8;
        for error in [-0.5, -2e-3, 4e-4, 0.02] {
            let difference = huber_root(error + step).0 - huber_root(error - step).0;
            assert!((huber_root(error).1 - difference / (2.0 * step)).abs() < 1e-6, "{error}");
        }
    }
}

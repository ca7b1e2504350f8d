//! Error of a form on runs that its fit did not see.

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use serde::Serialize;

use super::Observation;
use super::bootstrap::by_label;
use super::form::Form;
use super::law::Law;
use super::optimizer::search;

/// The largest runs, left out together, are one in this many configurations.
const LARGEST_ONE_IN: usize = 5;

/// Parts of the cross-validation.
const NUM_FOLDS: usize = 5;

/// Error on runs that the fit did not see.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct HeldOut {
    /// Which runs were left out.
    pub(crate) how: String,
    pub(crate) held_out_observations: usize,
    /// Largest |predicted / measured - 1| of the loss.
    pub(crate) max_relative_error: f64,
    pub(crate) mean_relative_error: f64,
    /// Training operations of the largest run left out over those of the largest one fitted.
    pub(crate) extrapolation_factor: f64,
}

/// The errors that `observations` allow: on the runs of largest compute, which tests extrapolation,
/// and in a cross-validation. Configurations are left out with all their seeds. A split whose rest
/// is too poor for the form is missing.
pub(super) fn held_out(form: Form, observations: &[&Observation], seed: u64) -> Vec<HeldOut> {
    [largest_compute(form, observations), cross_validation(form, observations, seed)]
        .into_iter()
        .flatten()
        .collect()
}

fn largest_compute(form: Form, observations: &[&Observation]) -> Option<HeldOut> {
    let mut groups = by_label(observations);
    groups.sort_by(|one, other| flops(one).total_cmp(&flops(other)));
    let fitted = groups.len() - groups.len().div_ceil(LARGEST_ONE_IN);
    let (fitted, left_out) = (groups[..fitted].concat(), groups[fitted..].concat());
    let errors = relative_errors(form, &fitted, &left_out)?;
    let how = format!("the largest fifth by compute ({} of {} runs)", left_out.len(), observations.len());
    Some(HeldOut::new(how, &errors, flops(&left_out) / flops(&fitted)))
}

fn cross_validation(form: Form, observations: &[&Observation], seed: u64) -> Option<HeldOut> {
    let mut groups = by_label(observations);
    groups.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let fold = |fold: usize, is_left_out: bool| -> Vec<&Observation> {
        let members =
            groups.iter().enumerate().filter(|(group, _)| (group % NUM_FOLDS == fold) == is_left_out);
        members.flat_map(|(_, group)| group.iter().copied()).collect()
    };
    let num_folds = NUM_FOLDS.min(groups.len());
    let errors = (0..num_folds)
        .map(|part| relative_errors(form, &fold(part, false), &fold(part, true)))
        .collect::<Option<Vec<_>>>()?;
    let factors = (0..num_folds).map(|part| flops(&fold(part, true)) / flops(&fold(part, false)));
    let how = format!("{num_folds}-fold cross-validation over {} configurations", groups.len());
    Some(HeldOut::new(how, &errors.concat(), factors.fold(0.0, f64::max)))
}

impl HeldOut {
    fn new(how: String, errors: &[f64], extrapolation_factor: f64) -> Self {
        Self {
            how,
            held_out_observations: errors.len(),
            max_relative_error: errors.iter().copied().fold(0.0, f64::max),
            mean_relative_error: errors.iter().sum::<f64>() / errors.len() as f64,
            extrapolation_factor,
        }
    }
}

/// Training operations of the largest run.
fn flops(observations: &[&Observation]) -> f64 {
    observations.iter().map(|run| run.point.training_flops).fold(0.0, f64::max)
}

/// Errors on `left_out` of the form fitted to `fitted`; `None` if those are too few for it.
fn relative_errors(form: Form, fitted: &[&Observation], left_out: &[&Observation]) -> Option<Vec<f64>> {
    let law = Law::new(form, fitted).ok()?;
    let solution = search(&law, fitted)?.best;
    let error =
        |run: &&Observation| (law.loss_nats(&run.point, &solution.parameters) / run.loss_nats - 1.0).abs();
    Some(left_out.iter().map(error).collect())
}

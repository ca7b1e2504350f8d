//! Training FLOPs of runs that are there, and of runs that are not there yet.

use super::Observation;
use super::table::four_digits;

/// Operations of training per active parameter and token: two forward, four backward.
const FLOPS_PER_PARAM_TOKEN: f64 = 6.0;

/// Smallest ratio of the largest size to the smallest that gives a line. Nearer sizes differ in
/// their routers as much as in their width, and a line through them would point anywhere.
const LINE_NEEDS_RATIO: f64 = 1.5;

/// Share of the smallest run's FLOPs below which the line's constant is rounding.
const ROUNDING: f64 = 1e-9;

/// `6 N D`, N the active parameters, embeddings included: arXiv:2001.08361, section 2.1. For a run
/// whose products nobody counted.
pub(crate) fn approximate_training_flops(active_params: f64, tokens: f64) -> f64 {
    FLOPS_PER_PARAM_TOKEN * active_params * tokens
}

/// Training FLOPs per token as a line in the active parameters, fitted to a study's runs.
///
/// A run that is not there has a size but no layers whose products could be counted. Within a
/// family of models the products grow with the parameters that multiply; the line's other term
/// stands for those that do not, such as the embedding, and for the attention's scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FlopsPerToken {
    per_param: f64,
    constant: f64,
    /// Largest |line / run - 1| over the runs.
    largest_error: f64,
}

/// Least squares of the relative errors: sums over the runs of products of 1/y and N/y, where y are
/// the FLOPs per token.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    ones: f64,
    params: f64,
    ones_ones: f64,
    ones_params: f64,
    params_params: f64,
}

impl Sums {
    fn of(observations: &[&Observation]) -> Self {
        observations.iter().fold(Self::default(), |sums, run| {
            let one = 1.0 / flops_per_token(run);
            let params = run.point.active_params * one;
            Self {
                ones: sums.ones + one,
                params: sums.params + params,
                ones_ones: sums.ones_ones + one * one,
                ones_params: sums.ones_params + one * params,
                params_params: sums.params_params + params * params,
            }
        })
    }

    /// Slope and constant of the best line.
    fn line(&self) -> (f64, f64) {
        let determinant = self.ones_ones * self.params_params - self.ones_params * self.ones_params;
        let per_param = self.params * self.ones_ones - self.ones * self.ones_params;
        let constant = self.ones * self.params_params - self.params * self.ones_params;
        (per_param / determinant, constant / determinant)
    }

    /// Slope of the best line through the origin.
    fn proportion(&self) -> f64 {
        if self.params_params > 0.0 { self.params / self.params_params } else { FLOPS_PER_PARAM_TOKEN }
    }
}

impl FlopsPerToken {
    /// The line through `observations`; through the origin if their sizes lie too near to each
    /// other.
    pub(super) fn of(observations: &[&Observation]) -> Self {
        let sizes = observations.iter().map(|run| run.point.active_params);
        let (smallest, largest) = (sizes.clone().fold(f64::INFINITY, f64::min), sizes.fold(0.0, f64::max));
        let sums = Sums::of(observations);
        let line = if largest >= LINE_NEEDS_RATIO * smallest { sums.line() } else { (0.0, 0.0) };
        // A line that falls or passes below zero inside the study belongs to no family of models.
        let is_plausible = line.0 > 0.0 && line.0 * smallest + line.1 > 0.0;
        let (per_param, constant) = if is_plausible { line } else { (sums.proportion(), 0.0) };
        // What rounding leaves of runs in exact proportion is no constant.
        let constant = if constant.abs() < ROUNDING * per_param * smallest { 0.0 } else { constant };
        let line = Self { per_param, constant, largest_error: 0.0 };
        let error =
            |run: &&Observation| (line.at(run.point.active_params) / flops_per_token(run) - 1.0).abs();
        Self { largest_error: observations.iter().map(error).fold(0.0, f64::max), ..line }
    }

    /// FLOPs per token of a model of `active_params`.
    pub(super) fn at(&self, active_params: f64) -> f64 {
        self.per_param * active_params + self.constant
    }

    /// How the FLOPs of `observations`, to which the line was fitted, and of unseen runs are
    /// counted.
    pub(super) fn in_words(&self, observations: &[&Observation]) -> String {
        let without_count = observations.iter().filter(|run| !run.has_counted_flops).count();
        let counted = "FLOPs are those of training as `switchyard plan` and `switchyard compare` count \
                       them, the products of the layers";
        let of_runs = if without_count == 0 {
            counted.to_string()
        } else if without_count == observations.len() {
            "FLOPs are six per active parameter, embeddings included, and training token (6 N D), since no run \
             recorded its own"
                .to_string()
        } else {
            format!(
                "{counted}; {without_count} of {} runs did not record theirs and stand at six per active \
                 parameter, embeddings included, and token (6 N D)",
                observations.len()
            )
        };
        format!(
            "{of_runs}. Those of the next runs follow from their active parameters N: {} per token, fitted to the \
             runs and off by at most {:.1}%",
            self.formula(),
            100.0 * self.largest_error
        )
    }

    fn formula(&self) -> String {
        let slope = four_digits(self.per_param);
        match self.constant {
            0.0 => format!("{slope} N"),
            constant if constant < 0.0 => format!("{slope} N - {}", four_digits(-constant)),
            constant => format!("{slope} N + {}", four_digits(constant)),
        }
    }
}

fn flops_per_token(run: &Observation) -> f64 {
    run.point.training_flops / run.point.tokens
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::Point;
    use crate::scaling::planted::{grid, observe};

    /// Runs of two lengths whose models have a quarter of a million parameters that are looked up.
    fn counted(sizes_up_to: f64) -> Vec<Observation> {
        let points: Vec<Point> = grid(&[(1.0, 1.0)], &[1e9, 2e9])
            .into_iter()
            .filter(|point| point.active_params <= sizes_up_to)
            .map(|point| Point {
                training_flops: 6.0 * (point.active_params - 2.5e5) * point.tokens,
                ..point
            })
            .collect();
        observe(&points, |_| 3.0, 0.0)
    }

    fn line(observations: &[Observation]) -> (FlopsPerToken, String) {
        let runs: Vec<&Observation> = observations.iter().collect();
        let line = FlopsPerToken::of(&runs);
        (line, line.in_words(&runs))
    }

    #[test]
    fn unseen_sizes_follow_the_line_of_the_counted_runs() {
        let (line, words) = line(&counted(1e9));
        assert!((line.at(2e9) / (6.0 * (2e9 - 2.5e5)) - 1.0).abs() < 1e-9);
        assert!((line.at(1e7) / (6.0 * (1e7 - 2.5e5)) - 1.0).abs() < 1e-9);
        assert!(words.starts_with("FLOPs are those of training as `switchyard plan`"), "{words}");
        assert!(
            words.ends_with("6.000 N - 1.500e6 per token, fitted to the runs and off by at most 0.0%"),
            "{words}"
        );
    }

    #[test]
    fn one_size_gives_a_proportion() {
        let (line, words) = line(&counted(1e7));
        assert!((line.at(2e7) - 12.0 * (1e7 - 2.5e5)).abs() < 1.0);
        assert!(words.contains("5.850 N per token"), "{words}");
    }

    #[test]
    fn runs_without_a_count_are_named() {
        let mut observations = counted(3e7);
        observations[0].has_counted_flops = false;
        assert!(
            line(&observations).1.contains("1 of 4 runs did not record theirs and stand at six per active")
        );
        observations.iter_mut().for_each(|run| run.has_counted_flops = false);
        assert!(line(&observations).1.contains("(6 N D), since no run recorded its own"));
    }

    #[test]
    fn a_line_that_would_fall_is_a_proportion() {
        let mut observations = counted(3e7);
        observations.iter_mut().for_each(|run| run.point.training_flops = 1e7 * run.point.tokens);
        let (line, _) = line(&observations);
        assert!(line.constant.abs() < 1e-12 && line.per_param > 0.0 && line.largest_error > 0.1);
    }

    #[test]
    fn without_runs_the_line_is_the_approximation() {
        assert!((line(&[]).0.at(1e7) - 6e7).abs() < 1e-3);
    }
}

//! The runs that would tell most: where the fitted forms disagree, or one of them is least sure.

use serde::Serialize;

use super::flops::FlopsPerToken;
use super::form::Form;
use super::variety::is_same_size;
use super::{Fit, Observation, Point};

/// Largest training compute recommended, in units of the study's largest.
const COMPUTE_REACH: f64 = 4.0;

/// Runs recommended at most.
const MOST_RUNS: usize = 4;

/// A run that tells this share of what the best one tells, for less compute, is preferred.
const AS_TELLING: f64 = 0.9;

/// A run worth making.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct NextRun {
    #[serde(flatten)]
    pub(crate) point: Point,
    /// What it would decide.
    pub(crate) why: String,
    /// What the forms that cover it expect.
    pub(crate) predicted: Vec<Prediction>,
}

/// What a form expects of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Prediction {
    pub(crate) form: Form,
    pub(crate) loss_nats: f64,
    /// 95% over the bootstrap.
    pub(crate) interval: Option<(f64, f64)>,
}

/// Up to four runs within four times the measured compute, the most telling first, each of another
/// number of experts or granularity. Empty without fits.
pub(super) fn recommend(
    fits: &[Fit],
    observations: &[&Observation],
    flops_per_token: &FlopsPerToken,
) -> Vec<NextRun> {
    let largest = observations.iter().map(|run| run.point.training_flops).fold(0.0, f64::max);
    let mut left: Vec<Candidate> = candidates(observations, flops_per_token)
        .into_iter()
        .filter(|point| point.training_flops <= COMPUTE_REACH * largest)
        .map(|point| Candidate::new(point, fits))
        .filter(|candidate| candidate.score() > 0.0)
        .collect();
    let mut chosen = Vec::new();
    while let (true, Some(best)) = (chosen.len() < MOST_RUNS, most_telling(&left)) {
        let best = best.clone();
        left.retain(|candidate| !candidate.point.has_layers_of(&best.point));
        chosen.push(best.into_run(largest));
    }
    chosen
}

/// The cheapest of those that tell about as much as the best.
fn most_telling(candidates: &[Candidate]) -> Option<&Candidate> {
    let best = candidates.iter().map(Candidate::score).fold(0.0, f64::max);
    let flops = |candidate: &Candidate| candidate.point.training_flops;
    candidates
        .iter()
        .filter(|candidate| candidate.score() >= AS_TELLING * best)
        .min_by(|one, other| flops(one).total_cmp(&flops(other)))
}

impl Point {
    /// Whether the two have the same experts.
    fn has_layers_of(&self, other: &Self) -> bool {
        is_same_size(self.num_experts, other.num_experts)
            && is_same_size(self.granularity, other.granularity)
            && is_same_size(1.0 + self.shared_ratio, 1.0 + other.shared_ratio)
    }

    /// Whether the two are one configuration.
    fn is_like(&self, other: &Self) -> bool {
        self.has_layers_of(other)
            && is_same_size(self.active_params, other.active_params)
            && is_same_size(self.tokens, other.tokens)
    }
}

/// A run that could be made.
#[derive(Debug, Clone)]
struct Candidate {
    point: Point,
    predicted: Vec<Prediction>,
}

impl Candidate {
    fn new(point: Point, fits: &[Fit]) -> Self {
        let prediction = |fit: &Fit| Prediction {
            form: fit.form,
            loss_nats: fit.predict(&point),
            interval: fit.prediction_interval(&point),
        };
        let describes = |fit: &&Fit| fit.form.covers_any_allocation() && fit.covers(&point);
        Self { point, predicted: fits.iter().filter(describes).map(prediction).collect() }
    }

    /// Log ratio of the highest to the lowest expectation; 0 with one form.
    fn disagreement(&self) -> f64 {
        let lowest =
            self.predicted.iter().map(|prediction| prediction.loss_nats).fold(f64::INFINITY, f64::min);
        let highest = self.predicted.iter().map(|prediction| prediction.loss_nats).fold(0.0, f64::max);
        if highest > 0.0 { (highest / lowest).ln() } else { 0.0 }
    }

    /// The widest log interval, with its form.
    fn uncertainty(&self) -> Option<(f64, Form)> {
        let width = |prediction: &Prediction| {
            Some(((prediction.interval?.1 / prediction.interval?.0).ln(), prediction.form))
        };
        self.predicted.iter().filter_map(width).max_by(|one, other| one.0.total_cmp(&other.0))
    }

    /// How much it would tell.
    fn score(&self) -> f64 {
        self.disagreement().max(self.uncertainty().map_or(0.0, |(width, _)| width))
    }

    fn into_run(self, largest_flops: f64) -> NextRun {
        let share = self.point.training_flops / largest_flops;
        let why = format!("{}; {share:.2}x the largest measured compute", self.reason());
        NextRun { point: self.point, why, predicted: self.predicted }
    }

    fn reason(&self) -> String {
        match self.uncertainty() {
            Some((width, form)) if width >= self.disagreement() => {
                format!("the {} form's 95% interval is {:.1}% wide", form.name(), 100.0 * width.exp_m1())
            }
            _ => {
                let forms: Vec<&str> =
                    self.predicted.iter().map(|prediction| prediction.form.name()).collect();
                let difference = 100.0 * self.disagreement().exp_m1();
                format!("{} differ by {difference:.1}%", forms.join(" and "))
            }
        }
    }
}

/// Configurations not yet measured: the study's sizes, lengths and experts in every combination,
/// and twice the largest of each.
fn candidates(observations: &[&Observation], flops_per_token: &FlopsPerToken) -> Vec<Point> {
    let sizes = distinct_and_double(observations, |point| point.active_params);
    let lengths = distinct_and_double(observations, |point| point.tokens);
    let layers = layers(observations);
    let shapes = layers.iter().flat_map(|layers| sizes.iter().map(|&size| layers.shape(size)));
    let points = shapes.flat_map(|shape| {
        lengths.iter().map(move |&tokens| {
            let training_flops = flops_per_token.at(shape.active_params) * tokens;
            Point { tokens, training_flops, ..shape }
        })
    });
    let is_measured = |point: &Point| observations.iter().any(|run| run.point.is_like(point));
    points.filter(|point| !is_measured(point)).collect()
}

/// The distinct values in ascending order and twice the last.
fn distinct_and_double(observations: &[&Observation], value: fn(&Point) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = observations.iter().map(|run| value(&run.point)).collect();
    values.sort_by(f64::total_cmp);
    values.dedup_by(|next, kept| is_same_size(*next, *kept));
    let double = values.last().map(|largest| 2.0 * largest);
    values.into_iter().chain(double).collect()
}

/// The experts of a model of any size.
#[derive(Debug, Clone, Copy)]
struct Layers {
    num_experts: f64,
    granularity: f64,
    shared_ratio: f64,
    width_granularity: f64,
    /// Total parameters over active ones, less 1.
    idle: f64,
    /// Parameters outside the blocks over active ones.
    outer: f64,
}

impl Layers {
    /// The model of `active_params`, which no training has yet made a run.
    fn shape(&self, active_params: f64) -> Point {
        Point {
            active_params,
            total_params: active_params * (1.0 + self.idle),
            outer_params: active_params * self.outer,
            num_experts: self.num_experts,
            granularity: self.granularity,
            shared_ratio: self.shared_ratio,
            width_granularity: self.width_granularity,
            tokens: 0.0,
            training_flops: 0.0,
        }
    }

    /// Twice as many experts of the same width; idle parameters grow with all experts but one.
    fn with_twice_the_experts(&self) -> Option<Self> {
        let rate = self.num_experts / self.granularity;
        let idle = self.idle * (2.0 * rate - 1.0) / (rate - 1.0);
        (rate > 1.0).then_some(Self { num_experts: 2.0 * self.num_experts, idle, ..*self })
    }

    /// Twice as many experts of half the width.
    fn with_finer_experts(&self) -> Option<Self> {
        let is_sparse = self.num_experts > self.granularity;
        is_sparse.then_some(Self {
            num_experts: 2.0 * self.num_experts,
            granularity: 2.0 * self.granularity,
            width_granularity: 2.0 * self.width_granularity,
            ..*self
        })
    }
}

/// The study's experts, twice the most and half the width of the finest.
fn layers(observations: &[&Observation]) -> Vec<Layers> {
    let mut layers: Vec<Layers> = Vec::new();
    for point in observations.iter().map(|run| &run.point) {
        if !layers.iter().any(|known| known.shape(point.active_params).has_layers_of(point)) {
            let idle = point.total_params / point.active_params - 1.0;
            let outer = point.outer_params / point.active_params;
            layers.push(Layers {
                num_experts: point.num_experts,
                granularity: point.granularity,
                shared_ratio: point.shared_ratio,
                width_granularity: point.width_granularity,
                idle,
                outer,
            });
        }
    }
    let by =
        |value: fn(&Layers) -> f64| layers.iter().max_by(|one, other| value(one).total_cmp(&value(other)));
    let most = by(|layers| layers.num_experts / layers.granularity).and_then(Layers::with_twice_the_experts);
    let finest = by(|layers| layers.granularity).and_then(Layers::with_finer_experts);
    layers.extend([most, finest].into_iter().flatten());
    layers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::FitOptions;
    use crate::scaling::planted::{grid, observe};

    fn study() -> Vec<Observation> {
        let layers = [(1.0, 1.0), (4.0, 1.0), (8.0, 1.0), (16.0, 1.0)];
        let loss = |point: &Point| {
            1.5 + 40.0 / (point.active_params * point.num_experts.powf(0.3)).powf(0.2)
                + 30.0 / point.tokens.powf(0.18)
        };
        observe(&grid(&layers, &[2e8, 1e9, 5e9]), loss, 2e-3)
    }

    fn recommended(observations: &[Observation]) -> Vec<NextRun> {
        let options = FitOptions { num_bootstrap_samples: 50, seed: 1 };
        let fits: Vec<Fit> =
            Form::ALL.iter().filter_map(|&form| Fit::new(form, observations, &options).ok()).collect();
        assert_eq!(fits.len(), 4);
        let observations: Vec<&Observation> = observations.iter().collect();
        recommend(&fits, &observations, &FlopsPerToken::of(&observations))
    }

    #[test]
    fn recommended_runs_are_new_and_within_reach() {
        let observations = study();
        let runs = recommended(&observations);
        let largest = observations.iter().map(|run| run.point.training_flops).fold(0.0, f64::max);
        assert!(!runs.is_empty() && runs.len() <= MOST_RUNS);
        for run in &runs {
            assert!(run.point.training_flops <= COMPUTE_REACH * largest, "{run:?}");
            assert!(!observations.iter().any(|known| known.point.is_like(&run.point)), "{run:?}");
            assert!(run.predicted.iter().all(|prediction| prediction.form != Form::Leverage), "{run:?}");
            assert!(!run.predicted.is_empty() && run.why.contains("the largest measured compute"), "{run:?}");
        }
    }

    const DENSE: Layers = Layers {
        num_experts: 1.0,
        granularity: 1.0,
        shared_ratio: 0.0,
        width_granularity: 1.0,
        idle: 0.0,
        outer: 0.0,
    };

    /// Half of the parameters multiply, so that six per parameter and token is twice the count.
    #[test]
    fn the_flops_of_a_recommended_run_are_those_that_the_runs_counted() {
        let mut observations = study();
        for run in &mut observations {
            run.point.training_flops = (3.0 * run.point.active_params + 4e6) * run.point.tokens;
        }
        let largest = observations.iter().map(|run| run.point.training_flops).fold(0.0, f64::max);
        for NextRun { point, why, .. } in recommended(&observations) {
            let counted = (3.0 * point.active_params + 4e6) * point.tokens;
            assert!((point.training_flops / counted - 1.0).abs() < 1e-9, "{point:?}");
            assert!(
                why.ends_with(&format!("; {:.2}x the largest measured compute", counted / largest)),
                "{why}"
            );
        }
    }

    #[test]
    fn recommended_runs_have_different_experts() {
        let runs = recommended(&study());
        for (index, run) in runs.iter().enumerate() {
            assert!(!runs[..index].iter().any(|other| other.point.has_layers_of(&run.point)));
        }
    }

    #[test]
    fn without_fits_nothing_is_recommended() {
        let observations = study();
        let observations: Vec<&Observation> = observations.iter().collect();
        assert_eq!(recommend(&[], &observations, &FlopsPerToken::of(&observations)), []);
    }

    #[test]
    fn the_cheaper_of_two_equally_telling_runs_is_preferred() {
        let candidate = |tokens: f64, highest: f64| {
            let predict = |form, loss_nats| Prediction { form, loss_nats, interval: None };
            let point = DENSE.shape(1e7);
            let point = Point { tokens, training_flops: 6e7 * tokens, ..point };
            Candidate { point, predicted: vec![predict(Form::Dense, 2.0), predict(Form::Joint, highest)] }
        };
        let candidates = [candidate(4e9, 2.2), candidate(2e9, 2.195), candidate(1e9, 2.02)];
        assert!((most_telling(&candidates).unwrap().point.tokens - 2e9).abs() < 1.0);
    }

    #[test]
    fn twice_the_experts_hold_the_idle_parameters_of_their_number() {
        // Two thirds of the active parameters in each expert.
        let layers = Layers { num_experts: 4.0, idle: 2.0, ..DENSE };
        assert!((layers.with_twice_the_experts().unwrap().idle - 14.0 / 3.0).abs() < 1e-12);
    }
}

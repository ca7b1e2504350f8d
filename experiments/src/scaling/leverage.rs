//! The efficiency leverage of a study's mixtures, by a fitted law and as their runs measured it.

use serde::Serialize;

use super::bootstrap::{by_label, percentile_interval};
use super::law::Law;
use super::variety::is_same_size;
use super::{Observation, Point};

/// Efficiency leverage of a mixture of the study.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Leverage {
    /// Width of a token's experts over that of all: A.
    pub(crate) activation_ratio: f64,
    /// Twice the model's width over an expert's: G.
    pub(crate) width_granularity: f64,
    /// The mixture's compute C.
    pub(crate) training_flops: f64,
    /// By the fitted law.
    pub(crate) value: f64,
    /// 95% over the bootstrap.
    pub(crate) interval: Option<(f64, f64)>,
    /// Compute of the fitted dense models at the losses that these runs measured, over theirs.
    pub(crate) measured: f64,
}

impl Leverage {
    /// Whether it is of the mixture at `point`, whose compute may be another.
    pub(super) fn is_of(&self, point: &Point) -> bool {
        is_same_size(self.activation_ratio * point.expansion_rate(), 1.0)
            && is_same_size(self.width_granularity, point.width_granularity)
    }
}

/// The leverage of each mixture among `observations` at the largest of its computes, the densest
/// first. `law` must be that of [`Form::Leverage`](super::Form::Leverage).
pub(super) fn leverages(
    law: &Law,
    parameters: &[f64],
    refits: &[Vec<f64>],
    observations: &[&Observation],
) -> Vec<Leverage> {
    let sparse: Vec<&Observation> =
        observations.iter().copied().filter(|run| run.point.is_sparse()).collect();
    let mut configurations = by_label(&sparse);
    configurations
        .sort_by(|one, other| other[0].point.training_flops.total_cmp(&one[0].point.training_flops));
    let mut leverages: Vec<Leverage> = Vec::new();
    for runs in configurations {
        if !leverages.iter().any(|known| known.is_of(&runs[0].point)) {
            leverages.push(leverage(law, parameters, refits, &runs));
        }
    }
    leverages.sort_by(|one, other| {
        let by_ratio = other.activation_ratio.total_cmp(&one.activation_ratio);
        by_ratio.then(one.width_granularity.total_cmp(&other.width_granularity))
    });
    leverages
}

/// The leverage of `runs`, repeats of one configuration.
fn leverage(law: &Law, parameters: &[f64], refits: &[Vec<f64>], runs: &[&Observation]) -> Leverage {
    let point = &runs[0].point;
    let log_flops = |run: &&Observation| law.dense_flops(run.loss_nats, parameters).ln();
    let mean_log_flops = runs.iter().map(log_flops).sum::<f64>() / runs.len() as f64;
    let resampled = refits.iter().map(|refit| law.leverage(point, refit)).collect();
    Leverage {
        activation_ratio: 1.0 / point.expansion_rate(),
        width_granularity: point.width_granularity,
        training_flops: point.training_flops,
        value: law.leverage(point, parameters),
        interval: percentile_interval(resampled),
        measured: mean_log_flops.exp() / point.training_flops,
    }
}

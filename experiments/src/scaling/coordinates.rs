//! Logarithms of a run's shape, centred on the study.

use super::Observation;
use super::Point;
use super::expert_saturation::ExpertSaturation;
use super::form::Form;

/// Mean logarithms of the fitted runs. Exponents and factors of a power law are almost collinear
/// when the sizes are far from 1; measured from the middle of the study they are not.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Centre {
    pub(super) log_params: f64,
    pub(super) log_tokens: f64,
    /// Of E_hat under the published transform: the fitted transform moves, the centre must not.
    pub(super) log_experts: f64,
    pub(super) log_loss: f64,
}

/// A run as the forms see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Coordinates {
    /// ln N less its mean; active or total parameters, as the form counts them.
    pub(super) params: f64,
    /// ln D less its mean.
    pub(super) tokens: f64,
    /// ln G.
    pub(super) log_granularity: f64,
    /// E, not yet transformed.
    pub(super) expansion_rate: f64,
}

impl Centre {
    /// The middle of `observations`, which must not be empty.
    pub(super) fn of(form: Form, observations: &[&Observation]) -> Self {
        let mean = |value: &dyn Fn(&Observation) -> f64| {
            observations.iter().map(|run| value(run)).sum::<f64>() / observations.len() as f64
        };
        Self {
            log_params: mean(&|run| form.params(&run.point).ln()),
            log_tokens: mean(&|run| run.point.tokens.ln()),
            log_experts: mean(&|run| {
                ExpertSaturation::PUBLISHED.effective_experts(run.point.expansion_rate()).ln()
            }),
            log_loss: mean(&|run| run.loss_nats.ln()),
        }
    }

    /// `point` seen from the middle.
    pub(super) fn coordinates(&self, form: Form, point: &Point) -> Coordinates {
        Coordinates {
            params: form.params(point).ln() - self.log_params,
            tokens: point.tokens.ln() - self.log_tokens,
            log_granularity: point.granularity.ln(),
            expansion_rate: point.expansion_rate(),
        }
    }
}

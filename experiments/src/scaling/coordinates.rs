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
    pub(super) log_active: f64,
    pub(super) log_tokens: f64,
    pub(super) log_flops: f64,
    /// Of E_hat under the published transform: the fitted transform moves, the centre must not.
    pub(super) log_experts: f64,
    /// Of the experts of a token.
    pub(super) log_active_experts: f64,
    pub(super) log_width_granularity: f64,
    pub(super) log_loss: f64,
}

/// A run as the forms see it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Coordinates {
    /// ln N less its mean; active or total parameters, as the form counts them.
    pub(super) params: f64,
    /// ln of the active parameters less its mean.
    pub(super) active_params: f64,
    /// ln D less its mean.
    pub(super) tokens: f64,
    /// ln C less its mean.
    pub(super) flops: f64,
    /// ln G.
    pub(super) log_granularity: f64,
    /// ln of the number of a token's experts less its mean.
    pub(super) active_experts: f64,
    /// S.
    pub(super) shared_ratio: f64,
    /// ln of the width granularity less its mean.
    pub(super) width_granularity: f64,
    /// E, not yet transformed.
    pub(super) expansion_rate: f64,
    /// Whether it is a mixture.
    pub(super) is_sparse: bool,
}

impl Centre {
    /// The middle of `observations`, which must not be empty.
    pub(super) fn of(form: Form, observations: &[&Observation]) -> Self {
        let mean = |value: &dyn Fn(&Observation) -> f64| {
            observations.iter().map(|run| value(run)).sum::<f64>() / observations.len() as f64
        };
        Self {
            log_params: mean(&|run| form.params(&run.point).ln()),
            log_active: mean(&|run| run.point.active_params.ln()),
            log_tokens: mean(&|run| run.point.tokens.ln()),
            log_flops: mean(&|run| run.point.training_flops.ln()),
            log_experts: mean(&|run| {
                ExpertSaturation::PUBLISHED.effective_experts(run.point.expansion_rate()).ln()
            }),
            log_active_experts: mean(&|run| run.point.granularity.ln()),
            log_width_granularity: mean(&|run| run.point.width_granularity.ln()),
            log_loss: mean(&|run| run.loss_nats.ln()),
        }
    }

    /// `point` seen from the middle.
    pub(super) fn coordinates(&self, form: Form, point: &Point) -> Coordinates {
        Coordinates {
            params: form.params(point).ln() - self.log_params,
            active_params: point.active_params.ln() - self.log_active,
            tokens: point.tokens.ln() - self.log_tokens,
            flops: point.training_flops.ln() - self.log_flops,
            log_granularity: point.granularity.ln(),
            active_experts: point.granularity.ln() - self.log_active_experts,
            shared_ratio: point.shared_ratio,
            width_granularity: point.width_granularity.ln() - self.log_width_granularity,
            expansion_rate: point.expansion_rate(),
            is_sparse: point.is_sparse(),
        }
    }
}

//! Scaling laws fitted to the runs of a study: what a larger run would reach, and which run to make
//! next.
//!
//! Pure: from observations to a [`ScalingReport`]. Six published [`Form`]s are fitted in log
//! space, as arXiv:2203.15556 does, with a Huber loss, so that one run that went wrong does not
//! decide the coefficients.

mod bootstrap;
mod coordinates;
mod expert_saturation;
mod fit;
mod five_factor;
mod flops;
mod form;
mod held_out;
mod law;
mod leverage;
mod leverage_terms;
mod next_runs;
mod optimizer;
mod parameters;
mod report;
mod scope;
mod table;
mod terms;
mod variety;

#[cfg(test)]
mod planted;
#[cfg(test)]
mod recovery;

use serde::{Deserialize, Serialize};

pub(crate) use fit::{Coefficient, Fit, FitOptions};
pub(crate) use flops::approximate_training_flops;
pub(crate) use form::{Form, Refusal};
pub(crate) use held_out::HeldOut;
pub(crate) use leverage::Leverage;
pub(crate) use report::ScalingReport;

use variety::is_same_size;

/// The shape and length of a run: all that a form may depend on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// Parameters that one token uses.
    pub(crate) active_params: f64,
    /// All parameters.
    pub(crate) total_params: f64,
    /// Those of them in embeddings, positions, head and routers.
    pub(crate) outer_params: f64,
    /// Width of all experts of a layer together, shared ones included, over the width of one; 1 for
    /// a dense model.
    pub(crate) num_experts: f64,
    /// FFN width of the dense model over the width of one expert, and with it the width of a
    /// token's experts, shared ones included, over one; 1 for a dense model.
    pub(crate) granularity: f64,
    /// Width of the shared experts over that of all experts of a token; 0 for a dense model.
    pub(crate) shared_ratio: f64,
    /// Twice the model's width over the width of one expert: G of arXiv:2507.17702, section 2.1; 1
    /// for a dense model.
    pub(crate) width_granularity: f64,
    /// Training tokens.
    pub(crate) tokens: f64,
    /// Floating-point operations of training, forward and backward, as `switchyard plan` counts
    /// them.
    pub(crate) training_flops: f64,
}

impl Point {
    /// Parameters of attention, norms and feed-forward blocks: N of arXiv:2402.07871, section 5.
    pub(crate) fn inner_params(&self) -> f64 {
        self.total_params - self.outer_params
    }

    /// Width of all experts together over the width of the dense FFN: E of arXiv:2402.07871, eq. 3,
    /// and with granularity 1 the number of experts.
    pub(crate) fn expansion_rate(&self) -> f64 {
        (self.num_experts / self.granularity).max(1.0)
    }

    /// Whether a token uses a part of the experts only.
    fn is_sparse(&self) -> bool {
        !is_same_size(self.expansion_rate(), 1.0)
    }

    /// Whether every number can enter a logarithm.
    fn is_usable(&self) -> bool {
        let numbers = [
            self.active_params,
            self.inner_params(),
            self.num_experts,
            self.granularity,
            self.width_granularity,
            // From 1, as most models share no expert.
            1.0 + self.shared_ratio,
            self.tokens,
            self.training_flops,
        ];
        numbers.iter().all(|value| value.is_finite() && *value > 0.0)
    }
}

/// One finished run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Observation {
    #[serde(flatten)]
    pub(crate) point: Point,
    /// Whether the run recorded its training FLOPs; otherwise they are
    /// [`approximate_training_flops`].
    pub(crate) has_counted_flops: bool,
    /// Final validation loss, in nats per token.
    pub(crate) loss_nats: f64,
    /// Factor of this run's Huber loss; 1 counts it once.
    pub(crate) weight: f64,
    /// Name of the configuration. Runs that share it are repeats with other seeds: the bootstrap
    /// and the held-out tests keep them together.
    pub(crate) label: String,
}

impl Observation {
    /// Whether the run can be fitted: finite positive numbers throughout.
    fn is_usable(&self) -> bool {
        let is_positive = |value: f64| value.is_finite() && value > 0.0;
        self.point.is_usable() && is_positive(self.loss_nats) && is_positive(self.weight)
    }
}

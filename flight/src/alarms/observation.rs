//! What the alarms are shown of a step.

use switchyard_model::NonFinite;

/// One optimizer step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepObservation {
    /// Updates done, this one included.
    pub step: u64,
    /// Updates that the run will do.
    pub num_steps: u64,
    /// Mean next-token cross-entropy, in nats.
    pub cross_entropy_nats: f64,
    /// One entry per MoE layer.
    pub layers: Vec<LayerObservation>,
    /// The first NaN or infinity of the step, in the order of computation; `None` if all was
    /// finite.
    pub non_finite: Option<NonFinite>,
    /// Why the step moved no parameter; `None` if it did.
    pub skipped: Option<SkippedStep>,
}

/// A step that was not taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SkippedStep {
    /// What was too large, such as `loss`.
    pub what: &'static str,
    /// Its value.
    pub value: f64,
    /// The most that it might have been.
    pub limit: f64,
}

/// The routing of one layer in the step, over all its micro-batches.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerObservation {
    /// Index of the Transformer block, from 0.
    pub layer: usize,
    /// Tokens of the step.
    pub num_tokens: u64,
    /// Experts that each token chooses; `None` for a router whose tokens do not each choose the same
    /// number, such as expert choice.
    pub top_k: Option<usize>,
    /// Tokens sent to each expert, dropped ones included.
    pub tokens_per_expert: Vec<u64>,
    /// Assignments dropped over capacity.
    pub num_dropped: u64,
    /// Mean entropy of a token's gate.
    pub gate_entropy_nats: f64,
    /// Entropy of the mean gate.
    pub marginal_entropy_nats: f64,
    /// Gradient norm of the router, of all losses together; `None` if it was not measured in this
    /// step.
    pub router_grad_norm: Option<f64>,
    /// Gradient norm of the router from the weighted balancing loss alone; `None` without such a
    /// loss, or if it was not measured in this step.
    pub balancing_grad_norm: Option<f64>,
    /// Load-balancing loss, unweighted, mean over micro-batches; `None` without one.
    pub load_balancing_loss: Option<f64>,
    /// Mean over the same micro-batches of the loss's lower bound, from
    /// [`super::balancing_bound_of_top_k`] or [`super::balancing_bound_of_any_selection`]. The
    /// bound of the summed counts is no bound of the mean loss. `None` if the loss is another one.
    pub load_balancing_bound: Option<f64>,
    /// Agreement with the previous probe of the same tokens; `None` if the step was not probed.
    pub agreement: Option<f64>,
}

impl LayerObservation {
    /// Assignments of tokens to experts.
    pub(super) fn num_assignments(&self) -> u64 {
        self.tokens_per_expert.iter().sum()
    }

    /// The natural logarithm of the number of experts, the largest entropy there is.
    pub(super) fn most_nats(&self) -> f64 {
        (self.tokens_per_expert.len() as f64).ln()
    }

    /// Largest load over mean load, minus 1, and the expert that has it; `None` without tokens.
    pub(super) fn max_violation(&self) -> Option<(f64, usize)> {
        let busiest = self.tokens_per_expert.iter().enumerate().max_by_key(|&(expert, &load)| {
            (load, usize::MAX - expert) // The lowest index among equals.
        });
        let (expert, &load) = busiest.filter(|&(_, &load)| load > 0)?;
        let mean = self.num_assignments() as f64 / self.tokens_per_expert.len() as f64;
        Some((load as f64 / mean - 1.0, expert))
    }

    /// MaxVio with all tokens on the same k experts: `E / k - 1`.
    pub(super) fn worst_violation(&self) -> f64 {
        let per_token = self.num_assignments() as f64 / self.num_tokens.max(1) as f64;
        let top_k = self.top_k.map_or(per_token, |top_k| top_k as f64);
        (self.tokens_per_expert.len() as f64 / top_k.max(1.0) - 1.0).max(0.0)
    }

    /// Whether a token's experts depend on the router at all.
    pub(super) fn has_a_choice(&self) -> bool {
        let num_experts = self.tokens_per_expert.len();
        num_experts > 1 && self.top_k.is_none_or(|top_k| top_k < num_experts)
    }

    /// Whether every expert has the same load: the balancing loss is then at its minimum and
    /// rightly without gradient.
    pub(super) fn is_balanced(&self) -> bool {
        self.tokens_per_expert.windows(2).all(|loads| loads[0] == loads[1])
    }
}

//! An alarm in words.

use super::readings::Reading;
use super::{Alarm, AlarmKind};

impl Reading<'_> {
    /// The alarm that the reading raises at `step`.
    pub(super) fn alarm(&self, step: u64) -> Alarm {
        Alarm {
            kind: self.kind,
            step,
            since_step: self.since_step,
            layer: self.layer,
            expert: self.expert,
            value: self.value,
            threshold: self.threshold,
            message: format!("{}{}; {}", self.place(), self.finding(), advice(self.kind)),
        }
    }

    fn place(&self) -> String {
        match (self.layer, self.expert) {
            (Some(layer), Some(expert)) => format!("layer {layer} expert {expert}: "),
            (Some(layer), None) => format!("layer {layer}: "),
            (None, _) => String::new(),
        }
    }

    fn finding(&self) -> String {
        let (since, value, threshold) = (self.since_step, self.value, self.threshold);
        match self.kind {
            AlarmKind::DeadExpert => {
                format!("no tokens since step {since} ({value} steps, alarm at {threshold})")
            }
            AlarmKind::MaxViolation => format!(
                "the busiest expert of the layer; its MaxVio is {value:.3} on average since step {since} (alarm above {threshold:.3})"
            ),
            AlarmKind::EntropyCollapse => format!(
                "the {} is {value:.4} nats at step {since} (alarm below {threshold:.4}): nearly all probability \
                 goes to few experts",
                self.what
            ),
            AlarmKind::RouterGradientZero => format!(
                "the gradient of the router is exactly 0 since step {since} ({value} times, alarm at {threshold}): it does not learn"
            ),
            AlarmKind::AuxiliaryLossWithoutGradient => format!(
                "the balancing loss has a weight, but its gradient on the router is exactly 0 since step {since} \
                 ({value} times, alarm at {threshold}) although the load is uneven"
            ),
            AlarmKind::EarlySaturation => format!(
                "{:.2}% of the choices are those of the previous probe at step {since} (alarm above {:.2}%), \
                 early in the run",
                100.0 * value,
                100.0 * threshold
            ),
            AlarmKind::LossSpike => {
                format!("the loss is {value:.4} nats at step {since} (alarm above {threshold:.4})")
            }
            AlarmKind::NonFinite => format!("the first NaN or infinity of step {since} is in {}", self.what),
            AlarmKind::CapacityDrops => format!(
                "{:.1}% of the assignments are dropped on average since step {since} (alarm above {:.1}%)",
                100.0 * value,
                100.0 * threshold
            ),
            AlarmKind::LossBelowBound => format!(
                "the load-balancing loss is {value:.6} at step {since}, but with this load it cannot be below {threshold:.6}"
            ),
            AlarmKind::DuplicatedCounts => format!(
                "the experts were sent {value} tokens at step {since}, but the tokens times top_k are {threshold}"
            ),
            AlarmKind::SkippedStep => format!(
                "step {since} moved no parameter: its {} of {value:.4} is above {threshold:.4}",
                self.what
            ),
        }
    }
}

fn advice(kind: AlarmKind) -> &'static str {
    match kind {
        AlarmKind::DeadExpert => {
            "try a larger `model.ffn.moe.router.load_balancing_weight`, input jitter, or a lower learning rate \
             (an expert without tokens gets no gradient and seldom comes back)"
        }
        AlarmKind::MaxViolation => {
            "try a larger `model.ffn.moe.router.load_balancing_weight`, or loss-free balancing"
        }
        AlarmKind::EntropyCollapse => {
            "try `model.ffn.moe.router.z_loss_weight`, a larger `load_balancing_weight`, or a lower learning rate"
        }
        AlarmKind::RouterGradientZero => {
            "with `top_k = 1` a renormalised gate is always 1: set `model.ffn.moe.router.renormalise = false`; \
             otherwise look for a detached gate or logits so large that the softmax is exactly 0 or 1"
        }
        AlarmKind::AuxiliaryLossWithoutGradient => {
            "the loss is detached, or computed from the choice alone, or the softmax is saturated: \
             try `model.ffn.moe.router.z_loss_weight`"
        }
        AlarmKind::EarlySaturation => {
            "try a lower learning rate, a longer warm-up, input jitter or a smaller initial router, \
             so that the choice stays open while the experts differ little"
        }
        AlarmKind::LossSpike => {
            "try a lower `train.adamw.learning_rate`, `train.max_grad_norm`, or a router z-loss; \
             `switchyard replay` repeats the step"
        }
        AlarmKind::NonFinite => {
            "try a lower `train.adamw.learning_rate`, `train.max_grad_norm`, or a smaller `model.init.std`; \
             `switchyard replay` repeats the step"
        }
        AlarmKind::CapacityDrops => {
            "try a larger `model.ffn.moe.capacity.factor` (`switchyard whatif` says what it would drop), a stronger \
             balancing loss, or a dropless layer"
        }
        AlarmKind::LossBelowBound => {
            "the router found a way around the loss: check that the probabilities in it sum to 1 \
             (an epsilon in their normalisation lets all of them shrink to 0)"
        }
        AlarmKind::DuplicatedCounts => {
            "tokens were counted twice (recomputation, evaluation or accumulation adding to the counts of the step) \
             or lost; a selection bias that follows these counts is wrong"
        }
        AlarmKind::SkippedStep => {
            "`train.skip_spikes` asks for it; if there are many, try a lower `train.adamw.learning_rate` or a longer \
             warm-up; `switchyard replay` repeats the step"
        }
    }
}

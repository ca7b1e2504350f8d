//! What the user writes in `[train.flight_recorder.alarms]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_ground::key_error::KeyError;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlarmKind {
    /// An expert gets no tokens.
    DeadExpert,
    /// The busiest expert of a layer gets too large a share.
    MaxViolation,
    /// The router of a layer gives nearly all probability to one expert, for each token or over the
    /// batch.
    EntropyCollapse,
    /// A router has a choice to make, but its gradient is exactly zero.
    RouterGradientZero,
    /// A balancing loss is configured, but does not move the router.
    AuxiliaryLossWithoutGradient,
    /// A router no longer changes although the run has just begun.
    EarlySaturation,
    /// The loss jumps.
    LossSpike,
    /// A NaN or an infinity.
    NonFinite,
    /// A layer drops too many assignments.
    CapacityDrops,
    /// A balancing loss is smaller than it can be: it, or the probabilities it is made of, are
    /// wrong.
    LossBelowBound,
    /// The load of a layer is not its tokens times `top_k`: tokens were counted twice, or not at
    /// all.
    DuplicatedCounts,
    /// A step was not taken: its loss or its gradient was a spike.
    SkippedStep,
}

/// When to raise an alarm. Alarms are recorded and printed once; those in `stop_on` end the run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)] // A misspelt threshold must stop the run, not leave it unwatched.
pub struct AlarmsConfig {
    /// Steps without a token after which an expert is dead; default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_expert_steps: Option<u64>,
    /// Steps over which MaxVio and the dropped share are averaged; default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_steps: Option<usize>,
    /// Mean MaxVio above which a layer is unbalanced; default half of the worst case,
    /// `(E / k - 1) / 2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_violation: Option<f64>,
    /// Share of the largest entropy, `ln E`, below which the mean entropy of a token's gate is
    /// collapsed; default 0.01. Small alone is not bad: a specialised router is sure of each token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate_entropy_share: Option<f64>,
    /// Share of `ln E` below which the entropy of the mean gate is collapsed; default 0.25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marginal_entropy_share: Option<f64>,
    /// Measurements in a row of a gradient of exactly zero; default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_gradient_steps: Option<u64>,
    /// Agreement with the previous probe above which a router no longer changes; default 0.99.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saturation_agreement: Option<f64>,
    /// Share of the run before which that is too early; default 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saturation_share: Option<f64>,
    /// Steps over which the mean and the standard deviation of the loss are taken; default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_spike_window_steps: Option<usize>,
    /// Standard deviations above the mean at which the loss spikes; default 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_spike_deviations: Option<f64>,
    /// Nats above the mean below which nothing is a spike, however smooth the loss was; default
    /// 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_spike_min_nats: Option<f64>,
    /// Mean share of dropped assignments above which a layer drops too many; default 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_share: Option<f64>,
    /// Relative rounding error allowed below a balancing loss's lower bound; default 0.001.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_tolerance: Option<f64>,
    /// Alarms that end the run; default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop_on: Vec<AlarmKind>,
    /// Alarms that are neither printed nor recorded; default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub off: Vec<AlarmKind>,
}

/// The thresholds with every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Thresholds {
    pub(super) dead_expert_steps: u64,
    pub(super) window_steps: usize,
    /// Absent is half of the worst case, which depends on the layer.
    pub(super) max_violation: Option<f64>,
    pub(super) gate_entropy_share: f64,
    pub(super) marginal_entropy_share: f64,
    pub(super) zero_gradient_steps: u64,
    pub(super) saturation_agreement: f64,
    pub(super) saturation_share: f64,
    pub(super) loss_spike_window_steps: usize,
    pub(super) loss_spike_deviations: f64,
    pub(super) loss_spike_min_nats: f64,
    pub(super) dropped_share: f64,
    pub(super) bound_tolerance: f64,
}

impl AlarmsConfig {
    /// Checks every threshold.
    ///
    /// # Errors
    /// The first key whose value cannot be meant.
    pub fn validate(&self) -> Result<(), KeyError> {
        let steps = |value: Option<usize>| value.map(|steps| steps as f64);
        let at_least_one = [
            ("dead_expert_steps", self.dead_expert_steps.map(|steps| steps as f64)),
            ("window_steps", steps(self.window_steps)),
            ("zero_gradient_steps", self.zero_gradient_steps.map(|steps| steps as f64)),
            ("loss_spike_window_steps", steps(self.loss_spike_window_steps)),
        ];
        let not_negative = [
            ("max_violation", self.max_violation),
            ("loss_spike_deviations", self.loss_spike_deviations),
            ("loss_spike_min_nats", self.loss_spike_min_nats),
        ];
        let shares = [
            ("gate_entropy_share", self.gate_entropy_share),
            ("marginal_entropy_share", self.marginal_entropy_share),
            ("saturation_agreement", self.saturation_agreement),
            ("saturation_share", self.saturation_share),
            ("dropped_share", self.dropped_share),
            ("bound_tolerance", self.bound_tolerance),
        ];
        check(&at_least_one, "a whole number from 1", |value| value >= 1.0)?;
        check(&not_negative, "a number from 0", |value| value >= 0.0 && value.is_finite())?;
        check(&shares, "a number from 0 to 1", |value| (0.0..=1.0).contains(&value))?;
        let both = self.stop_on.iter().find(|kind| self.off.contains(kind));
        both.map_or(Ok(()), |kind| {
            let problem = format!("has {kind:?}, and so has `off`");
            Err(KeyError::new("stop_on", problem, "remove it from one of them").naming("off"))
        })
    }

    pub(super) fn thresholds(&self) -> Thresholds {
        Thresholds {
            dead_expert_steps: self.dead_expert_steps.unwrap_or(100),
            window_steps: self.window_steps.unwrap_or(50),
            max_violation: self.max_violation,
            gate_entropy_share: self.gate_entropy_share.unwrap_or(0.01),
            marginal_entropy_share: self.marginal_entropy_share.unwrap_or(0.25),
            zero_gradient_steps: self.zero_gradient_steps.unwrap_or(10),
            saturation_agreement: self.saturation_agreement.unwrap_or(0.99),
            saturation_share: self.saturation_share.unwrap_or(0.1),
            loss_spike_window_steps: self.loss_spike_window_steps.unwrap_or(100),
            loss_spike_deviations: self.loss_spike_deviations.unwrap_or(6.0),
            loss_spike_min_nats: self.loss_spike_min_nats.unwrap_or(0.1),
            dropped_share: self.dropped_share.unwrap_or(0.1),
            bound_tolerance: self.bound_tolerance.unwrap_or(1e-3),
        }
    }
}

fn check(
    values: &[(&'static str, Option<f64>)],
    range: &'static str,
    is_in_range: impl Fn(f64) -> bool,
) -> Result<(), KeyError> {
    for &(key, value) in values {
        match value {
            Some(value) if !is_in_range(value) => {
                let remedy = format!("use {range}, or remove the key for its default");
                return Err(KeyError::new(key, format!("is {value}"), remedy));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_written_is_every_default() {
        let config: AlarmsConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(config, AlarmsConfig::default());
        assert!(config.validate().is_ok());
        assert_eq!(serde_json::to_string(&config).unwrap(), "{}");
    }

    #[test]
    fn kinds_are_written_in_snake_case_and_misspelt_keys_refused() {
        let config: AlarmsConfig =
            serde_json::from_str(r#"{"stop_on": ["non_finite", "auxiliary_loss_without_gradient"]}"#)
                .unwrap();
        assert_eq!(config.stop_on, [AlarmKind::NonFinite, AlarmKind::AuxiliaryLossWithoutGradient]);
        assert!(serde_json::from_str::<AlarmsConfig>(r#"{"max_violations": 1}"#).is_err());
        assert!(serde_json::from_str::<AlarmsConfig>(r#"{"stop_on": ["everything"]}"#).is_err());
    }

    #[test]
    fn each_mistake_names_its_key_value_and_remedy() {
        let message = |json: &str| {
            serde_json::from_str::<AlarmsConfig>(json).unwrap().validate().unwrap_err().to_string()
        };
        assert_eq!(
            message(r#"{"window_steps": 0}"#),
            "`window_steps` is 0: use a whole number from 1, or remove the key for its \
             default"
        );
        assert_eq!(
            message(r#"{"dropped_share": 1.5}"#),
            "`dropped_share` is 1.5: use a number from 0 to 1, or remove the key for its default"
        );
        assert!(message(r#"{"max_violation": -1.0}"#).contains("`max_violation` is -1"));
        assert_eq!(
            message(r#"{"stop_on": ["loss_spike"], "off": ["loss_spike"]}"#),
            "`stop_on` has LossSpike, and so has `off`: remove it from one of them"
        );
    }
}

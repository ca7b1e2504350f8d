//! What the user writes in `[model.ffn.moe.router]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::RouterError;

/// Where the softmax stands relative to the choice of the top-k experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum SoftmaxOrder {
    /// Softmax over all experts, then select (Switch, OLMoE, Qwen3-MoE).
    #[default]
    BeforeSelection,
    /// Select by logit, then softmax over the selected logits only (Mixtral).
    AfterSelection,
}

/// Top-k token choice: each token picks its `top_k` experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)] // A misspelt `top_K` must stop the run, not train another model.
pub struct TopKRouterConfig {
    /// Experts each token is sent to, in `1..=num_experts`.
    pub top_k: usize,
    /// Where the softmax stands; default `before_selection`.
    #[serde(default)]
    pub softmax: SoftmaxOrder,
    /// Divide the selected gates by their sum, so that they add up to one; default true.
    /// Has no effect with `softmax = "after_selection"`, whose gates already sum to one.
    #[serde(default = "enabled")]
    pub renormalise: bool,
    /// Multiply the router's input by uniform noise in `[1 - jitter, 1 + jitter]` while training
    /// (Switch, arXiv:2101.03961, appendix C); absent turns it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<f64>,
    /// Weight of the load-balancing loss; absent turns the loss off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing_weight: Option<f64>,
    /// Weight of the router z-loss; absent turns the loss off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub z_loss_weight: Option<f64>,
}

impl TopKRouterConfig {
    /// Checks what does not depend on the rest of the model.
    ///
    /// # Errors
    /// Names the first key under `model.ffn.moe.router` whose value is out of range.
    pub fn validate(&self, num_experts: usize) -> Result<(), RouterError> {
        if !(1..=num_experts).contains(&self.top_k) {
            return Err(RouterError::TopKOutOfRange { top_k: self.top_k, num_experts });
        }
        match self.jitter {
            Some(jitter) if !(jitter > 0.0 && jitter < 1.0) => {
                return Err(RouterError::JitterOutOfRange { jitter });
            }
            _ => {}
        }
        let weights =
            [("load_balancing_weight", self.load_balancing_weight), ("z_loss_weight", self.z_loss_weight)];
        for (key, weight) in weights {
            match weight {
                Some(weight) if !(weight.is_finite() && weight > 0.0) => {
                    return Err(RouterError::LossWeightOutOfRange { key, weight });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Limit on the tokens one expert takes from a batch while training. Evaluation is dropless.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CapacityConfig {
    /// Capacity of an expert is `ceil(factor * top_k * num_tokens / num_experts)`.
    pub factor: f64,
    /// Which assignments are dropped over capacity.
    #[serde(default)]
    pub drop: DropPolicy,
}

impl CapacityConfig {
    /// Checks the factor.
    ///
    /// # Errors
    /// If `model.ffn.moe.capacity.factor` is not a positive number.
    pub fn validate(&self) -> Result<(), RouterError> {
        if self.factor.is_finite() && self.factor > 0.0 {
            return Ok(());
        }
        Err(RouterError::CapacityFactorOutOfRange { factor: self.factor })
    }
}

/// Which assignments an expert over its capacity drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum DropPolicy {
    /// The later tokens of the batch (Switch, GShard).
    #[default]
    Position,
    /// Those with the smallest gate.
    Probability,
}

fn enabled() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(top_k: usize) -> TopKRouterConfig {
        TopKRouterConfig {
            top_k,
            softmax: SoftmaxOrder::BeforeSelection,
            renormalise: true,
            jitter: None,
            load_balancing_weight: None,
            z_loss_weight: None,
        }
    }

    #[test]
    fn each_mistake_names_its_key_value_and_remedy() {
        let message = |config: TopKRouterConfig| config.validate(8).unwrap_err().to_string();
        assert_eq!(
            message(config(9)),
            "`model.ffn.moe.router.top_k` is 9, but the layer has 8 experts: use 1..=8"
        );
        assert_eq!(
            message(config(0)),
            "`model.ffn.moe.router.top_k` is 0, but the layer has 8 experts: use 1..=8"
        );
        assert_eq!(
            message(TopKRouterConfig { jitter: Some(1.5), ..config(2) }),
            "`model.ffn.moe.router.jitter` is 1.5: use a number between 0 and 1, or remove the key to turn jitter off"
        );
        assert_eq!(
            message(TopKRouterConfig { z_loss_weight: Some(-0.1), ..config(2) }),
            "`model.ffn.moe.router.z_loss_weight` is -0.1: use a positive number, or remove the key to turn the loss off"
        );
        assert_eq!(
            message(TopKRouterConfig { load_balancing_weight: Some(f64::NAN), ..config(2) }),
            "`model.ffn.moe.router.load_balancing_weight` is NaN: use a positive number, or remove the key to turn \
             the loss off"
        );
        assert!(config(8).validate(8).is_ok());
    }

    #[test]
    fn a_capacity_factor_must_be_positive() {
        let capacity = |factor| CapacityConfig { factor, drop: DropPolicy::Position };
        assert_eq!(
            capacity(0.0).validate().unwrap_err().to_string(),
            "`model.ffn.moe.capacity.factor` is 0: use a positive number, or remove the table for a dropless layer"
        );
        assert!(capacity(f64::INFINITY).validate().is_err());
        assert!(capacity(1.25).validate().is_ok());
    }
}

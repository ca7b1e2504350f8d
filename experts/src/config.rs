//! What the user writes in `[model.ffn]` about activations, and in `[model.ffn.moe]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_router::{CapacityConfig, RouterConfig};

use crate::MoeConfigError;

/// A mixture of experts in place of the dense feed-forward block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    /// Routed experts in each MoE layer.
    pub num_experts: usize,
    /// Hidden width of one routed expert.
    pub d_expert: usize,
    /// Hidden width of the shared expert that sees every token; absent means none. Several shared
    /// experts of one width are the same function as one of their summed width.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_shared_expert: Option<usize>,
    /// Weigh the shared expert's output of each token with a sigmoid gate of its own (Qwen2-MoE); default false.
    #[serde(default)]
    pub shared_expert_gate: bool,
    /// How tokens choose experts.
    pub router: RouterConfig,
    /// Limit on tokens per expert; absent is dropless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<CapacityConfig>,
    /// Which layers are MoE; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<MoeLayersConfig>,
}

impl MoeConfig {
    /// Checks everything except `layers`, which depends on the number of layers.
    ///
    /// # Errors
    /// Names the first key under `model.ffn.moe` whose value is out of range.
    pub fn validate(&self) -> Result<(), MoeConfigError> {
        let sizes = [
            ("num_experts", Some(self.num_experts), false),
            ("d_expert", Some(self.d_expert), false),
            ("d_shared_expert", self.d_shared_expert, true),
        ];
        for (key, size, optional) in sizes {
            if size == Some(0) {
                return Err(MoeConfigError::Zero { key, optional });
            }
        }
        if self.shared_expert_gate && self.d_shared_expert.is_none() {
            return Err(MoeConfigError::SharedExpertGate);
        }
        self.router.validate(self.num_experts)?;
        if let Some(capacity) = &self.capacity {
            capacity.validate(self.num_experts)?;
            capacity.validate_selection(&self.router)?;
        }
        Ok(())
    }
}

/// Which layers hold a mixture: give exactly one of the two keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoeLayersConfig {
    /// Every n-th layer is MoE, counting so that the last of each group of n is (Switch uses 2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<usize>,
    /// Exactly these layers, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<Vec<usize>>,
}

#[cfg(test)]
mod tests {
    use switchyard_router::DropPolicy;

    use super::*;

    fn config() -> MoeConfig {
        let router = RouterConfig { load_balancing_weight: Some(0.01), ..RouterConfig::top_k(2) };
        MoeConfig {
            num_experts: 8,
            d_expert: 16,
            d_shared_expert: None,
            shared_expert_gate: false,
            router,
            capacity: None,
            layers: None,
        }
    }

    #[test]
    fn each_mistake_names_its_key_value_and_remedy() {
        let message = |config: MoeConfig| config.validate().unwrap_err().to_string();
        assert_eq!(
            message(MoeConfig { d_expert: 0, ..config() }),
            "`model.ffn.moe.d_expert` is 0: use at least 1"
        );
        assert_eq!(
            message(MoeConfig { d_shared_expert: Some(0), ..config() }),
            "`model.ffn.moe.d_shared_expert` is 0: use at least 1, or remove the key"
        );
        assert_eq!(
            message(MoeConfig { num_experts: 1, ..config() }),
            "`model.ffn.moe.router.top_k` is 2, but the layer has 1 experts: use 1..=1"
        );
        let capacity = CapacityConfig {
            factor: -1.0,
            factor_per_expert: None,
            drop: DropPolicy::Position,
            evaluation_factor: None,
        };
        assert_eq!(
            message(MoeConfig { capacity: Some(capacity), ..config() }),
            "`model.ffn.moe.capacity.factor` is -1: use a positive number, or remove the table for a dropless layer"
        );
        assert_eq!(config().validate(), Ok(()));
    }
}

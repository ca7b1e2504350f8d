//! `[[train.groups]]`: parameters that are trained otherwise than the rest.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A group of parameters: one of `[[train.groups]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParameterGroupConfig {
    /// Which parameters: `role:` and embedding, head, norms, attention, lstm, dense, router, experts or
    /// shared_experts; or a name with `*`, such as `blocks.0.*`.
    #[serde(rename = "match")]
    pub matches: String,
    /// Their learning rate over the run's; default 1.
    #[serde(default = "default_learning_rate_factor")]
    pub learning_rate_factor: f64,
    /// Their weight decay, vectors included; absent is as `train.adamw` or `train.muon` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Keep them as they are; default false.
    #[serde(default)]
    pub freeze: bool,
}

fn default_learning_rate_factor() -> f64 {
    1.0
}

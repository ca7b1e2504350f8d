//! `[train.qk_clip]`: how large logits of attention may become.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[train.qk_clip]`: make the queries and keys of a head smaller, after the update, if its largest
/// logit of the step was too large (Kimi K2, arXiv:2507.20534, algorithm 1).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QkClipConfig {
    /// Largest logit, the scale of scores included, up to which a head stays as it is; default 100.
    #[serde(default = "default_max_logit")]
    pub max_logit: f64,
}

fn default_max_logit() -> f64 {
    100.0
}

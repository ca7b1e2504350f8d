//! `[train.precision]`: what a step computes with.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_model::Compute;

/// `[train.precision]`: what a step computes with. Parameters, their gradients and moments
/// (but for [`super::AdamWConfig::moments`]), the residual stream, routers, norms, softmax, losses and all sums are f32 whatever it says;
/// evaluation and generation compute in f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrecisionConfig {
    /// `f32` or `bf16`: what the factors of products are rounded to, and what feed-forward blocks
    /// keep for the backward pass; default `f32`.
    #[serde(default)]
    pub compute: Compute,
}

impl PrecisionConfig {
    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

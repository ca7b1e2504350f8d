//! `[train.precision]`: what a step computes with.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_model::Compute;

/// `[train.precision]`: what a step computes with. Parameters, their gradients and moments
/// (but for [`super::AdamWConfig::moments`]), the residual stream, routers, norms, softmax, losses and all sums are f32 whatever it says;
/// evaluation and generation compute in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrecisionConfig {
    /// `f32` or `bf16`: what the factors of products are rounded to, and what feed-forward blocks
    /// keep for the backward pass; default `f32`.
    #[serde(default)]
    pub compute: ComputeType,
    /// Matrix units (AMX) may multiply bf16 where the processor has them; default true. `false`
    /// gives the bits that every processor has.
    #[serde(default = "super::enabled", skip_serializing_if = "super::is_enabled")]
    pub matrix_units: bool,
}

/// What the factors of products are rounded to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ComputeType {
    /// Factors are f32.
    #[default]
    F32,
    /// Factors are rounded to bf16.
    Bf16,
}

impl Default for PrecisionConfig {
    fn default() -> Self {
        Self { compute: ComputeType::default(), matrix_units: true }
    }
}

impl PrecisionConfig {
    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What products compute with.
    pub fn resolve(self) -> Compute {
        match (self.compute, self.matrix_units) {
            (ComputeType::F32, _) => Compute::F32,
            (ComputeType::Bf16, true) => Compute::Bf16,
            (ComputeType::Bf16, false) => Compute::PortableBf16,
        }
    }
}

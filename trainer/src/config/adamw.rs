//! `[train.adamw]`: the optimizer of all that Muon does not take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// AdamW (arXiv:1711.05101). Matrices decay; norms, biases and embeddings do not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment; default 0.9.
    #[serde(default = "default_beta1")]
    pub beta1: f64,
    /// Decay of the second moment; default 0.95.
    #[serde(default = "default_beta2")]
    pub beta2: f64,
    /// Added to the root of the second moment; default 1e-8.
    #[serde(default = "default_epsilon")]
    pub epsilon: f64,
    /// Decoupled weight decay; default 0.1.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    /// Decay the embedding (and a tied head) too, as nanoGPT does; default false.
    #[serde(default)]
    pub decay_embeddings: bool,
    /// `f32` or `bf16`: what both moments are between two updates, whose arithmetic is f32 with
    /// either. bf16 takes 4 bytes less for each parameter, and is rounded at random, so that it is
    /// right in the mean; default `f32`.
    #[serde(default, skip_serializing_if = "MomentType::is_f32")]
    pub moments: MomentType,
}

/// What AdamW's moments are between two updates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MomentType {
    /// 4 bytes each.
    #[default]
    F32,
    /// 2 bytes each.
    Bf16,
}

impl MomentType {
    /// Whether moments are not rounded.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

fn default_beta1() -> f64 {
    0.9
}

fn default_beta2() -> f64 {
    0.95
}

fn default_epsilon() -> f64 {
    1e-8
}

fn default_weight_decay() -> f64 {
    0.1
}

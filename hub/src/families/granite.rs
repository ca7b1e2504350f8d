//! Granite with experts.

use serde_json::{Map, Value, json};
use switchyard_model::{AttentionBias, ModelConfig, MultipliersConfig};

use super::{PLAIN_MOE, mixtral};
use crate::HubError;
use crate::decoder_config::{self, Defaults, bias_on_all};
use crate::keys::Keys;
use crate::table::MoeNames;

/// Experts are published as stacks alone: in earlier files under other names.
pub(super) const NAMES: MoeNames = MoeNames {
    router: &["block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"],
    expert: "",
    fused: ["block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"],
    ..PLAIN_MOE
};

pub(super) fn read(keys: &Keys) -> Result<ModelConfig, HubError> {
    let mut model = decoder_config::read(keys, Defaults::default())?;
    model.attention_mut().bias = bias_on_all(keys, "attention_bias", false)?;
    // All of them are 1 by default: the scale of scores too.
    let factor = |key: &str| Ok::<_, HubError>(keys.number(key)?.unwrap_or(1.0));
    model.attention_mut().scale = Some(factor("attention_multiplier")?);
    model.multipliers = MultipliersConfig {
        embedding: factor("embedding_multiplier")?,
        residual: factor("residual_multiplier")?,
        logits: 1.0 / factor("logits_scaling")?,
    };
    mixtral::read_experts(keys, &mut model, 2)?;
    Ok(model)
}

pub(super) fn write(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    config.insert("attention_bias".into(), json!(model.attention().bias == AttentionBias::All));
    config.insert("attention_multiplier".into(), json!(model.attention().scale.unwrap_or(1.0)));
    config.insert("embedding_multiplier".into(), json!(model.multipliers.embedding));
    config.insert("residual_multiplier".into(), json!(model.multipliers.residual));
    config.insert("logits_scaling".into(), json!(1.0 / model.multipliers.logits));
    mixtral::write_experts(model, &mut config);
    config
}

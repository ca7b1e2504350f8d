//! ERNIE 4.5 with experts.

use serde_json::{Map, Value, json};
use switchyard_experts::MoeLayersConfig;
use switchyard_model::{AttentionBias, ModelConfig};
use switchyard_router::{BiasRule, RouterConfig};

use super::PLAIN_MOE;
use crate::HubError;
use crate::decoder_config::{self, Defaults, bias_on_all, plain_moe, read_balancing, write_balancing};
use crate::keys::Keys;
use crate::rope::RopeDefaults;
use crate::table::MoeNames;

pub(super) const NAMES: MoeNames = MoeNames {
    selection_bias: &[
        "mlp.moe_statics.e_score_correction_bias",
        "mlp.gate.moe_statics.e_score_correction_bias",
    ],
    selection_bias_is_row: true,
    ..PLAIN_MOE
};

pub(super) fn read(keys: &Keys) -> Result<ModelConfig, HubError> {
    let rope = RopeDefaults { theta: 5e5, ..RopeDefaults::default() };
    let defaults = Defaults { norm_epsilon: 1e-5, rope, tied: true, d_head: None };
    let mut model = decoder_config::read(keys, defaults)?;
    model.attention_mut().bias = bias_on_all(keys, "use_bias", false)?;
    let has_biases = model.attention().bias == AttentionBias::All;
    model.ffn.bias = has_biases;
    model.head_bias = has_biases;
    if !keys.has("pad_token_id") {
        model.padding_id = Some(0);
    }
    let top_k = keys.size("moe_k")?.unwrap_or(6);
    let mut router = RouterConfig { bias: Some(BiasRule::Fixed {}), ..RouterConfig::top_k(top_k) };
    read_balancing(keys, &mut router, 0.001)?;
    // It is there against a division by zero, which ours does not make.
    if keys.number("moe_norm_min")?.is_some_and(|min| min > 1e-6) {
        return Err(keys.unsupported("moe_norm_min", "numbers above 1e-6 are not supported"));
    }
    let num_experts = keys.size("moe_num_experts")?.unwrap_or(64);
    let d_expert = keys.size_of(&["moe_intermediate_size"])?;
    let interval = keys.size("moe_layer_interval")?.unwrap_or(1).max(1);
    let start = keys.size("moe_layer_start_index")?.unwrap_or(1);
    let end = match keys.number("moe_layer_end_index")? {
        Some(end) if end >= 0.0 => end as usize,
        _ => model.num_layers.saturating_sub(1),
    };
    let is_sparse = |layer: &usize| (layer + 1).is_multiple_of(interval) && (start..=end).contains(layer);
    let sparse: Vec<usize> = (0..model.num_layers).filter(is_sparse).collect();
    if sparse.is_empty() {
        return Ok(model);
    }
    let mut moe = plain_moe(num_experts, d_expert, router);
    let num_shared = keys.size("moe_num_shared_experts")?.unwrap_or(2);
    moe.d_shared_expert = (num_shared > 0).then_some(num_shared * d_expert);
    moe.shared_expert_bias = has_biases && num_shared > 0;
    match sparse.len() == model.num_layers {
        true => (model.ffn.d_ff, model.ffn.bias) = (None, false),
        false => moe.layers = Some(MoeLayersConfig::List(sparse)),
    }
    model.ffn.moe = Some(moe);
    Ok(model)
}

pub(super) fn write(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    config.insert("use_bias".into(), json!(model.attention().bias == AttentionBias::All));
    let Some(moe) = &model.ffn.moe else { return config };
    let sparse = super::sparse_layers(model);
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_owned(), value);
    };
    set("moe_num_experts", json!(moe.num_experts));
    set("moe_k", json!(moe.router.top_k));
    set("moe_intermediate_size", json!(moe.d_expert));
    set("moe_num_shared_experts", json!(moe.d_shared_expert.unwrap_or(0) / moe.d_expert.max(1)));
    let gap = sparse.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap_or(1);
    set("moe_layer_interval", json!(gap));
    set("moe_layer_start_index", json!(sparse.first()));
    set("moe_layer_end_index", json!(sparse.last()));
    set("moe_norm_min", json!(1e-12));
    if model.ffn.d_ff.is_none() {
        set("intermediate_size", json!(moe.d_expert));
    }
    write_balancing(&moe.router, &mut config);
    config
}

//! Qwen2, Qwen3, and both with experts.

use serde_json::{Map, Value, json};
use switchyard_experts::MoeLayersConfig;
use switchyard_model::{
    AttentionBias, ModelConfig, NormConfig, QkNorm, QkNormConfig, QkNormOver, RmsNormConfig,
};
use switchyard_router::RouterConfig;

use crate::HubError;
use crate::decoder_config::{
    self, Defaults, bias_on_all, layer_types, plain_moe, read_balancing, read_window, write_balancing,
};
use crate::keys::Keys;

pub(super) fn read_qwen2(keys: &Keys) -> Result<ModelConfig, HubError> {
    let mut model = decoder_config::read(keys, Defaults::default())?;
    model.attention_mut().bias = AttentionBias::Qkv;
    read_windows(keys, &mut model, |layer, full| layer >= full)?;
    Ok(model)
}

pub(super) fn write_qwen2(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    write_windows(model, &mut config);
    config
}

pub(super) fn read_qwen3(keys: &Keys) -> Result<ModelConfig, HubError> {
    let mut model = decoder_config::read(keys, Defaults { d_head: Some(128), ..Defaults::default() })?;
    model.attention_mut().bias = bias_on_all(keys, "attention_bias", false)?;
    normalise_heads(&mut model);
    read_windows(keys, &mut model, |layer, full| layer >= full)?;
    Ok(model)
}

pub(super) fn write_qwen3(model: &ModelConfig) -> Map<String, Value> {
    let mut config = write_qwen2(model);
    config.insert("attention_bias".into(), json!(model.attention().bias == AttentionBias::All));
    config
}

pub(super) fn read_qwen2_moe(keys: &Keys) -> Result<ModelConfig, HubError> {
    let mut model = decoder_config::read(keys, Defaults::default())?;
    if keys.flag_or("qkv_bias", true)? {
        model.attention_mut().bias = AttentionBias::Qkv;
    }
    let window = |layer: usize, full: usize| layer.is_multiple_of(2) && layer < full;
    read_windows(keys, &mut model, window)?;
    read_experts(keys, &mut model, &["num_experts"], 4)?;
    if let Some(moe) = &mut model.ffn.moe {
        moe.d_shared_expert = Some(keys.size("shared_expert_intermediate_size")?.unwrap_or(5632));
        moe.shared_expert_gate = true;
    }
    Ok(model)
}

pub(super) fn write_qwen2_moe(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    config.insert("qkv_bias".into(), json!(model.attention().bias == AttentionBias::Qkv));
    write_windows(model, &mut config);
    write_experts(model, "num_experts", &mut config);
    if let Some(moe) = &model.ffn.moe {
        config.insert("shared_expert_intermediate_size".into(), json!(moe.d_shared_expert));
    }
    config
}

pub(super) fn read_qwen3_moe(keys: &Keys) -> Result<ModelConfig, HubError> {
    let mut model = decoder_config::read(keys, Defaults::default())?;
    model.attention_mut().bias = bias_on_all(keys, "attention_bias", false)?;
    normalise_heads(&mut model);
    read_windows(keys, &mut model, |_, _| true)?;
    read_experts(keys, &mut model, &["num_experts", "num_local_experts"], 8)?;
    Ok(model)
}

pub(super) fn write_qwen3_moe(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    config.insert("attention_bias".into(), json!(model.attention().bias == AttentionBias::All));
    write_windows(model, &mut config);
    write_experts(model, "num_experts", &mut config);
    config
}

/// Queries and keys normalised by head, with the epsilon of all norms.
fn normalise_heads(model: &mut ModelConfig) {
    if let Some(NormConfig::Rms(RmsNormConfig { epsilon })) = model.norm {
        model.attention_mut().qk_norm = QkNorm::On(QkNormConfig { over: QkNormOver::Head, epsilon });
    }
}

/// Layers with a window, which `slides` names from their number and `max_window_layers`.
fn read_windows(
    keys: &Keys,
    model: &mut ModelConfig,
    slides: impl Fn(usize, usize) -> bool,
) -> Result<(), HubError> {
    let is_used = keys.flag_or("use_sliding_window", false)?;
    let len = keys.size("sliding_window")?.unwrap_or(4096);
    let full = keys.size("max_window_layers")?.unwrap_or(28);
    let len = is_used.then_some(len);
    model.attention_mut().window = read_window(keys, len, model.num_layers, |layer| slides(layer, full))?;
    Ok(())
}

fn write_windows(model: &ModelConfig, config: &mut Map<String, Value>) {
    let window = model.attention().window.as_ref();
    config.insert("use_sliding_window".into(), json!(window.is_some()));
    config.insert("sliding_window".into(), json!(window.map(|window| window.len)));
    config.insert("layer_types".into(), layer_types(model));
}

/// Experts in the layers that `mlp_only_layers` and `decoder_sparse_step` leave.
fn read_experts(
    keys: &Keys,
    model: &mut ModelConfig,
    count: &[&str],
    default_top_k: usize,
) -> Result<(), HubError> {
    let top_k = keys.size("num_experts_per_tok")?.unwrap_or(default_top_k);
    let mut router =
        RouterConfig { renormalise: keys.flag_or("norm_topk_prob", false)?, ..RouterConfig::top_k(top_k) };
    read_balancing(keys, &mut router, 0.001)?;
    let num_experts = keys.size_of(count)?;
    let d_expert = keys.size_of(&["moe_intermediate_size"])?;
    let dense = keys.sizes("mlp_only_layers")?.unwrap_or_default();
    let step = keys.size("decoder_sparse_step")?.unwrap_or(1).max(1);
    let is_sparse = |layer: &usize| !dense.contains(layer) && (layer + 1).is_multiple_of(step);
    let sparse: Vec<usize> = (0..model.num_layers).filter(is_sparse).collect();
    if sparse.is_empty() || num_experts == 0 {
        return Ok(());
    }
    let mut moe = plain_moe(num_experts, d_expert, router);
    match sparse.len() == model.num_layers {
        // The width of dense layers, of which there are none.
        true => model.ffn.d_ff = None,
        false => moe.layers = Some(MoeLayersConfig::List(sparse)),
    }
    model.ffn.moe = Some(moe);
    Ok(())
}

fn write_experts(model: &ModelConfig, count: &str, config: &mut Map<String, Value>) {
    let Some(moe) = &model.ffn.moe else { return };
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_owned(), value);
    };
    set(count, json!(moe.num_experts));
    set("num_experts_per_tok", json!(moe.router.top_k));
    set("moe_intermediate_size", json!(moe.d_expert));
    set("norm_topk_prob", json!(moe.router.renormalise));
    set("decoder_sparse_step", json!(1));
    set("mlp_only_layers", json!(super::dense_layers(model)));
    if model.ffn.d_ff.is_none() {
        set("intermediate_size", json!(moe.d_expert));
    }
    write_balancing(&moe.router, config);
}

//! OLMo 2 and OLMoE.

use serde_json::{Map, Value, json};
use switchyard_model::{
    AttentionBias, ModelConfig, NormConfig, QkNorm, QkNormConfig, QkNormOver, Residual, RmsNormConfig,
};
use switchyard_router::RouterConfig;

use crate::HubError;
use crate::decoder_config::{self, Defaults, bias_on_all, plain_moe, read_balancing, write_balancing};
use crate::keys::Keys;

pub(super) fn read_olmo2(keys: &Keys) -> Result<ModelConfig, HubError> {
    let mut model = decoder_config::read(keys, Defaults { norm_epsilon: 1e-5, ..Defaults::default() })?;
    model.attention_mut().bias = bias_on_all(keys, "attention_bias", false)?;
    model.residual = Residual::OutputNorm;
    normalise_projections(&mut model);
    model.padding_id = padding(keys)?;
    Ok(model)
}

pub(super) fn write_olmo2(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    config.insert("attention_bias".into(), json!(model.attention().bias == AttentionBias::All));
    config
}

pub(super) fn read_olmoe(keys: &Keys) -> Result<ModelConfig, HubError> {
    let mut model = decoder_config::read(keys, Defaults { norm_epsilon: 1e-5, ..Defaults::default() })?;
    model.attention_mut().bias = bias_on_all(keys, "attention_bias", false)?;
    model.attention_mut().clip_qkv = keys.number("clip_qkv")?;
    normalise_projections(&mut model);
    model.padding_id = padding(keys)?;
    let top_k = keys.size("num_experts_per_tok")?.unwrap_or(8);
    let mut router =
        RouterConfig { renormalise: keys.flag_or("norm_topk_prob", false)?, ..RouterConfig::top_k(top_k) };
    read_balancing(keys, &mut router, 0.01)?;
    let d_expert = model.ffn.d_ff.take().unwrap_or(2048);
    let num_experts = keys.size("num_experts")?.unwrap_or(64);
    model.ffn.moe = Some(plain_moe(num_experts, d_expert, router));
    Ok(model)
}

pub(super) fn write_olmoe(model: &ModelConfig) -> Map<String, Value> {
    let mut config = write_olmo2(model);
    config.insert("clip_qkv".into(), json!(model.attention().clip_qkv));
    if let Some(moe) = &model.ffn.moe {
        config.insert("num_experts".into(), json!(moe.num_experts));
        config.insert("num_experts_per_tok".into(), json!(moe.router.top_k));
        config.insert("intermediate_size".into(), json!(moe.d_expert));
        config.insert("norm_topk_prob".into(), json!(moe.router.renormalise));
        write_balancing(&moe.router, &mut config);
    }
    config
}

/// Queries and keys normalised over all heads, with the epsilon of all norms.
fn normalise_projections(model: &mut ModelConfig) {
    if let Some(NormConfig::Rms(RmsNormConfig { epsilon })) = model.norm {
        model.attention_mut().qk_norm = QkNorm::On(QkNormConfig { over: QkNormOver::Projection, epsilon });
    }
}

/// Absent is 1 here, null is none.
fn padding(keys: &Keys) -> Result<Option<usize>, HubError> {
    if keys.has("pad_token_id") { keys.size("pad_token_id") } else { Ok(Some(1)) }
}

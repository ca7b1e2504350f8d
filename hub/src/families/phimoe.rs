//! Phi-3.5-MoE.

use serde_json::{Map, Value, json};
use switchyard_model::{AttentionBias, LayerNormConfig, ModelConfig, NormConfig, RmsNormConfig};
use switchyard_router::{RouterConfig, Selection, SparseMixerConfig};

use super::PLAIN_MOE;
use crate::HubError;
use crate::decoder_config::{
    self, Defaults, bias_on_all, plain_moe, read_balancing, read_window, write_balancing,
};
use crate::keys::Keys;
use crate::rope::RopeDefaults;
use crate::table::MoeNames;

pub(super) const NAMES: MoeNames = MoeNames {
    router: &["block_sparse_moe.gate.weight", "mlp.router.weight"],
    expert: "block_sparse_moe.experts.",
    matrices: ["w1", "w3", "w2"],
    ..PLAIN_MOE
};

pub(super) fn read(keys: &Keys) -> Result<ModelConfig, HubError> {
    let rope = RopeDefaults { theta: 1e6, ..RopeDefaults::default() };
    let mut model = decoder_config::read(keys, Defaults { norm_epsilon: 1e-5, rope, ..Defaults::default() })?;
    if let Some(NormConfig::Rms(RmsNormConfig { epsilon })) = model.norm {
        model.norm = Some(NormConfig::Layer(LayerNormConfig { epsilon, bias: true }));
    }
    model.attention_mut().bias = bias_on_all(keys, "attention_bias", false)?;
    model.head_bias = keys.flag_or("lm_head_bias", false)?;
    let window = keys.size("sliding_window")?;
    model.attention_mut().window = read_window(keys, window, model.num_layers, |_| true)?;
    keys.must_be("input_jitter_noise", &json!(0.0))?;
    let jitter = keys.number("router_jitter_noise")?.unwrap_or(0.01);
    let top_k = keys.size("num_experts_per_tok")?.unwrap_or(2);
    let selection = Selection::SparseMixer(SparseMixerConfig { jitter });
    let mut router = RouterConfig { selection, ..RouterConfig::top_k(top_k) };
    read_balancing(keys, &mut router, 0.001)?;
    let d_expert = model.ffn.d_ff.take().ok_or_else(|| keys.missing("intermediate_size"))?;
    let num_experts = keys.size("num_local_experts")?.unwrap_or(16);
    model.ffn.moe = Some(plain_moe(num_experts, d_expert, router));
    Ok(model)
}

pub(super) fn write(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    if let Some(NormConfig::Layer(LayerNormConfig { epsilon, .. })) = model.norm {
        config.insert("rms_norm_eps".into(), json!(epsilon));
    }
    config.insert("attention_bias".into(), json!(model.attention().bias == AttentionBias::All));
    config.insert("lm_head_bias".into(), json!(model.head_bias));
    let window = model.attention().window.as_ref();
    config.insert("sliding_window".into(), json!(window.map(|window| window.len)));
    super::mixtral::write_experts(model, &mut config);
    if let Some(moe) = &model.ffn.moe {
        if let Selection::SparseMixer(SparseMixerConfig { jitter }) = moe.router.selection {
            config.insert("router_jitter_noise".into(), json!(jitter));
        }
        config.insert("input_jitter_noise".into(), json!(0.0));
        write_balancing(&moe.router, &mut config);
    }
    config
}

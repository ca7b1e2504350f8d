//! Mixtral.

use serde_json::{Map, Value, json};
use switchyard_model::ModelConfig;
use switchyard_router::{RouterConfig, SoftmaxOrder};

use super::PLAIN_MOE;
use crate::HubError;
use crate::decoder_config::{
    self, Defaults, layer_types, plain_moe, read_balancing, read_window, write_balancing,
};
use crate::keys::Keys;
use crate::rope::RopeDefaults;
use crate::table::MoeNames;

pub(super) const NAMES: MoeNames = MoeNames {
    router: &["block_sparse_moe.gate.weight", "mlp.gate.weight"],
    expert: "block_sparse_moe.experts.",
    matrices: ["w1", "w3", "w2"],
    ..PLAIN_MOE
};

pub(super) fn read(keys: &Keys) -> Result<ModelConfig, HubError> {
    let rope = RopeDefaults { theta: 1e6, ..RopeDefaults::default() };
    let mut model = decoder_config::read(keys, Defaults { norm_epsilon: 1e-5, rope, ..Defaults::default() })?;
    let window = keys.size("sliding_window")?;
    model.attention_mut().window = read_window(keys, window, model.num_layers, |_| true)?;
    read_experts(keys, &mut model, 2)?;
    keys.must_be("router_jitter_noise", &json!(0.0))?;
    Ok(model)
}

/// Experts in every layer, weighed by a softmax over the chosen ones.
pub(super) fn read_experts(
    keys: &Keys,
    model: &mut ModelConfig,
    default_top_k: usize,
) -> Result<(), HubError> {
    let top_k = keys.size("num_experts_per_tok")?.unwrap_or(default_top_k);
    let mut router = RouterConfig { softmax: SoftmaxOrder::AfterSelection, ..RouterConfig::top_k(top_k) };
    read_balancing(keys, &mut router, 0.001)?;
    let d_expert = model.ffn.d_ff.take().ok_or_else(|| keys.missing("intermediate_size"))?;
    let num_experts = keys.size("num_local_experts")?.unwrap_or(8);
    model.ffn.moe = Some(plain_moe(num_experts, d_expert, router));
    Ok(())
}

pub(super) fn write(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    let window = model.attention().window.as_ref();
    config.insert("sliding_window".into(), json!(window.map(|window| window.len)));
    if window.is_some_and(|window| window.layers.is_some()) {
        config.insert("layer_types".into(), layer_types(model));
    }
    write_experts(model, &mut config);
    config
}

/// The inverse of [`read_experts`].
pub(super) fn write_experts(model: &ModelConfig, config: &mut Map<String, Value>) {
    let Some(moe) = &model.ffn.moe else { return };
    config.insert("num_local_experts".into(), json!(moe.num_experts));
    config.insert("num_experts_per_tok".into(), json!(moe.router.top_k));
    config.insert("intermediate_size".into(), json!(moe.d_expert));
    write_balancing(&moe.router, config);
}

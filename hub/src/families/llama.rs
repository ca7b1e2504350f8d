//! Llama and Mistral.

use serde_json::{Map, Value, json};
use switchyard_model::{AttentionBias, ModelConfig};

use crate::HubError;
use crate::decoder_config::{self, Defaults, bias_on_all, layer_types, read_window};
use crate::keys::Keys;

pub(super) fn read_llama(keys: &Keys) -> Result<ModelConfig, HubError> {
    let mut model = decoder_config::read(keys, Defaults::default())?;
    model.attention_mut().bias = bias_on_all(keys, "attention_bias", false)?;
    model.ffn.bias = keys.flag_or("mlp_bias", false)?;
    keys.must_be("pretraining_tp", &json!(1))?;
    Ok(model)
}

pub(super) fn write_llama(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    config.insert("attention_bias".into(), json!(model.attention().bias == AttentionBias::All));
    config.insert("mlp_bias".into(), json!(model.ffn.bias));
    config
}

pub(super) fn read_mistral(keys: &Keys) -> Result<ModelConfig, HubError> {
    let mut model = decoder_config::read(keys, Defaults::default())?;
    // Absent is not null here.
    let len = if keys.has("sliding_window") { keys.size("sliding_window")? } else { Some(4096) };
    model.attention_mut().window = read_window(keys, len, model.num_layers, |_| true)?;
    Ok(model)
}

pub(super) fn write_mistral(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    let window = model.attention().window.as_ref();
    config.insert("sliding_window".into(), json!(window.map(|window| window.len)));
    if window.is_some_and(|window| window.layers.is_some()) {
        config.insert("layer_types".into(), layer_types(model));
    }
    config
}

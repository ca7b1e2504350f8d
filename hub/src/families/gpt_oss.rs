//! gpt-oss: experts stacked, gate and up in alternating columns, biases everywhere.

use serde_json::{Map, Value, json};
use switchyard_experts::{Activation, FfnSpec};
use switchyard_model::{AttentionBias, FfnMatrix, ModelConfig, Role, RouterPart};
use switchyard_router::{RouterConfig, SoftmaxOrder};

use crate::HubError;
use crate::decoder_config::{
    self, Defaults, bias_on_all, layer_types, plain_moe, read_balancing, read_window, write_balancing,
};
use crate::keys::Keys;
use crate::layout::{Channels, Mapping, Pairs, Part};
use crate::rope::RopeDefaults;
use crate::table::{DecoderNames, Table};

pub(super) fn read(keys: &Keys) -> Result<ModelConfig, HubError> {
    let rope = RopeDefaults { theta: 150_000.0, ..RopeDefaults::default() };
    let defaults = Defaults { norm_epsilon: 1e-5, rope, tied: false, d_head: Some(64) };
    let mut model = decoder_config::read(keys, defaults)?;
    model.attention_mut().bias = bias_on_all(keys, "attention_bias", true)?;
    model.attention_mut().sinks = true;
    let window = keys.size("sliding_window")?.unwrap_or(128);
    model.attention_mut().window =
        read_window(keys, Some(window), model.num_layers, |layer| layer.is_multiple_of(2))?;
    model.ffn.activation = Activation::ClampedSwiglu {
        alpha: keys.number("swiglu_alpha")?.unwrap_or(1.702),
        limit: keys.number("swiglu_limit")?.unwrap_or(7.0),
    };
    let top_k = keys.size("num_experts_per_tok")?.or(keys.size("experts_per_token")?).unwrap_or(4);
    let mut router =
        RouterConfig { softmax: SoftmaxOrder::AfterSelection, gate_bias: true, ..RouterConfig::top_k(top_k) };
    read_balancing(keys, &mut router, 0.9)?;
    let d_expert = model.ffn.d_ff.take().ok_or_else(|| keys.missing("intermediate_size"))?;
    let num_experts = keys.size("num_local_experts")?.or(keys.size("num_experts")?).unwrap_or(128);
    let moe = plain_moe(num_experts, d_expert, router);
    model.ffn.moe = Some(switchyard_experts::MoeConfig { expert_bias: true, ..moe });
    Ok(model)
}

pub(super) fn write(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_owned(), value);
    };
    set("attention_bias", json!(model.attention().bias == AttentionBias::All));
    set("sliding_window", json!(model.attention().window.as_ref().map_or(128, |window| window.len)));
    set("layer_types", layer_types(model));
    if let Activation::ClampedSwiglu { alpha, limit } = model.ffn.activation {
        set("swiglu_alpha", json!(alpha));
        set("swiglu_limit", json!(limit));
    }
    if let Some(moe) = &model.ffn.moe {
        set("num_local_experts", json!(moe.num_experts));
        set("num_experts_per_tok", json!(moe.router.top_k));
        set("intermediate_size", json!(moe.d_expert));
        write_balancing(&moe.router, &mut config);
    }
    config
}

pub(super) fn tensors(table: Table<'_>) -> Vec<Mapping> {
    let spec = table.spec;
    let norms = ["input_layernorm", "post_attention_layernorm"];
    let mut table = table.decoder(&DecoderNames { norms, pairs: Pairs::Halves, moe: None });
    for (layer, of_layer) in spec.layers.iter().enumerate() {
        let FfnSpec::Moe(moe) = &of_layer.ffn else { continue };
        let (d, e, f) = (spec.d_model, moe.experts.num_experts, moe.experts.d_expert);
        let prefix = format!("model.layers.{layer}.mlp.");
        let router = format!("{prefix}router.");
        let weight = Part::linear(format!("{router}weight"), [d, e]);
        table.one(Some(layer), Role::Router(RouterPart::Weight), weight);
        let bias = Part::vector(format!("{router}bias"), e);
        table.one(Some(layer), Role::Router(RouterPart::Bias), bias);
        let every_second = |first: usize| Channels::Listed((first..2 * f).step_by(2).collect());
        for (matrix, name, sizes, channels) in [
            (FfnMatrix::Gate, "gate_up_proj", [d, 2 * f], every_second(0)),
            (FfnMatrix::Up, "gate_up_proj", [d, 2 * f], every_second(1)),
            (FfnMatrix::Down, "down_proj", [f, d], Channels::All),
        ] {
            let name = format!("{prefix}experts.{name}");
            let of_expert = |expert: usize| {
                let part = Part::as_is(&name, sizes).channels(channels.clone(), sizes[1]);
                part.stacked(expert, e)
            };
            table.stack(Some(layer), Role::Expert(matrix), vec![(0..e).map(of_expert).collect()]);
            let bias_of = |expert: usize| {
                let part = Part::vector(format!("{name}_bias"), sizes[1]);
                part.channels(channels.clone(), sizes[1]).stacked(expert, e)
            };
            table.stack(Some(layer), Role::ExpertBias(matrix), vec![(0..e).map(bias_of).collect()]);
        }
    }
    table.finish()
}

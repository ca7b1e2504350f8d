//! GPT-2: matrices lie as ours, queries, keys and values side by side in one.

use serde_json::{Map, Value, json};
use switchyard_experts::Activation;
use switchyard_model::{
    Affine, AttentionBias, AttentionConfig, AttentionPart, EmbeddingPart, FfnConfig, FfnMatrix,
    LayerNormConfig, ModelConfig, NormConfig, NormPlace, PositionConfig, Role,
};

use crate::HubError;
use crate::decoder_config::{bare, head_width, plain_attention, plain_ffn};
use crate::keys::Keys;
use crate::layout::{Channels, Mapping, Part};
use crate::table::Table;

pub(super) fn read(keys: &Keys) -> Result<ModelConfig, HubError> {
    let activation = activation(keys, "activation_function", "gelu_new")?;
    let d_model = keys.size_of(&["n_embd", "hidden_size"])?;
    let num_heads = keys.size_of(&["n_head", "num_attention_heads"])?;
    head_width(keys, d_model, num_heads)?;
    let scales = keys.flag_or("scale_attn_weights", true)?;
    let attention = AttentionConfig {
        bias: AttentionBias::All,
        scale: (!scales).then_some(1.0),
        scale_by_layer: keys.flag_or("scale_attn_by_inverse_layer_idx", false)?,
        ..plain_attention(num_heads)
    };
    keys.must_be("add_cross_attention", &json!(false))?;
    // It changes the order of rounding alone.
    keys.has("reorder_and_upcast_attn");
    let epsilon = keys.number("layer_norm_epsilon")?.unwrap_or(1e-5);
    let d_ff = keys.size("n_inner")?.unwrap_or(4 * d_model);
    Ok(ModelConfig {
        num_layers: keys.size_of(&["n_layer", "num_hidden_layers"])?,
        d_model,
        attention: Some(attention),
        ffn: FfnConfig { d_ff: Some(d_ff), bias: true, ..plain_ffn(activation) },
        norm: Some(NormConfig::Layer(LayerNormConfig { epsilon, bias: true })),
        position: Some(PositionConfig::Learned {}),
        tie_embeddings: keys.flag_or("tie_word_embeddings", true)?,
        num_positions: Some(keys.size_of(&["n_positions", "max_position_embeddings"])?),
        padding_id: None,
        ..bare(keys)?
    })
}

/// An activation without a gate by its published name.
pub(super) fn activation(keys: &Keys, key: &str, default: &str) -> Result<Activation, HubError> {
    match keys.text(key)?.as_deref().unwrap_or(default) {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        _ => {
            Err(keys.unsupported(key, "gelu, gelu_new, gelu_fast, gelu_pytorch_tanh and relu are supported"))
        }
    }
}

/// The published name of an activation without a gate.
pub(super) fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::GeluTanh => "gelu_new",
        Activation::Relu => "relu",
        _ => "gelu",
    }
}

pub(super) fn write(model: &ModelConfig) -> Map<String, Value> {
    let epsilon = match &model.norm {
        Some(NormConfig::Layer(LayerNormConfig { epsilon, .. })) => *epsilon,
        _ => 1e-5,
    };
    let keys = json!({
        "n_embd": model.d_model,
        "n_layer": model.num_layers,
        "n_head": model.attention().num_heads,
        "n_inner": model.ffn.d_ff,
        "n_positions": model.num_positions,
        "vocab_size": model.vocab_size,
        "activation_function": activation_name(model.ffn.activation),
        "layer_norm_epsilon": epsilon,
        "initializer_range": model.init.std,
        "tie_word_embeddings": model.tie_embeddings,
        "scale_attn_weights": model.attention().scale.is_none(),
        "scale_attn_by_inverse_layer_idx": model.attention().scale_by_layer,
    });
    if let Value::Object(keys) = keys { keys } else { Map::new() }
}

pub(super) fn tensors(mut table: Table<'_>) -> Vec<Mapping> {
    let spec = table.spec;
    let (d, v) = (spec.d_model, spec.vocab_size);
    table.ends("transformer.wte.weight", "transformer.ln_f", &["lm_head"]);
    let positions = Part::as_is("transformer.wpe.weight", [spec.num_positions(), d]);
    table.one(None, Role::Embedding(EmbeddingPart::Position), positions);
    let _ = v;
    for layer in 0..spec.num_layers() {
        let prefix = format!("transformer.h.{layer}.");
        table.norm(Some(layer), NormPlace::Attention, &format!("{prefix}ln_1"));
        table.norm(Some(layer), NormPlace::Ffn, &format!("{prefix}ln_2"));
        let all = format!("{prefix}attn.c_attn");
        for (i, part) in
            [AttentionPart::Query, AttentionPart::Key, AttentionPart::Value].into_iter().enumerate()
        {
            let channels = Channels::Range(i * d..(i + 1) * d);
            conv(
                &mut table,
                layer,
                [Role::Attention(part, Affine::Weight), Role::Attention(part, Affine::Bias)],
                &all,
                [d, 3 * d],
                channels,
            );
        }
        let output = AttentionPart::Output;
        let roles = [Role::Attention(output, Affine::Weight), Role::Attention(output, Affine::Bias)];
        conv(&mut table, layer, roles, &format!("{prefix}attn.c_proj"), [d, d], Channels::All);
        let switchyard_experts::FfnSpec::Dense(dense) = &spec.layers[layer].ffn else { continue };
        let f = dense.d_ff;
        for (matrix, name, sizes) in
            [(FfnMatrix::Up, "mlp.c_fc", [d, f]), (FfnMatrix::Down, "mlp.c_proj", [f, d])]
        {
            let roles = [Role::Dense(matrix), Role::DenseBias(matrix)];
            conv(&mut table, layer, roles, &format!("{prefix}{name}"), sizes, Channels::All);
        }
    }
    table.finish()
}

/// A matrix `[in, out]` and its bias.
fn conv(
    table: &mut Table<'_>,
    layer: usize,
    [weight, bias]: [Role; 2],
    name: &str,
    sizes: [usize; 2],
    channels: Channels,
) {
    let matrix = Part::as_is(format!("{name}.weight"), sizes).channels(channels.clone(), sizes[1]);
    table.one(Some(layer), weight, matrix);
    let vector = Part::vector(format!("{name}.bias"), sizes[1]).channels(channels, sizes[1]);
    table.one(Some(layer), bias, vector);
}

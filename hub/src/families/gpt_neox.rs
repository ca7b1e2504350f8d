//! GPT-NeoX and Pythia: queries, keys and values in one matrix, head by head.

use serde_json::{Map, Value, json};
use switchyard_model::{
    AttentionBias, AttentionConfig, AttentionPart, FfnConfig, LayerNormConfig, ModelConfig, NormConfig,
    NormPlace, PositionConfig, Residual,
};

use super::gpt2::{activation, activation_name};
use crate::HubError;
use crate::decoder_config::{bare, head_width, plain_attention, plain_ffn, rope_of, write_bare};
use crate::keys::Keys;
use crate::layout::{Channels, Mapping, Pairs};
use crate::rope::{self, RopeDefaults};
use crate::table::Table;

pub(super) fn read(keys: &Keys) -> Result<ModelConfig, HubError> {
    let activation = activation(keys, "hidden_act", "gelu")?;
    let d_model = keys.size_of(&["hidden_size"])?;
    let num_heads = keys.size_of(&["num_attention_heads"])?;
    let d_head = head_width(keys, d_model, num_heads)?;
    let rope = rope::read(keys, d_head, RopeDefaults { partial: 0.25, ..RopeDefaults::default() })?;
    let biased = keys.flag_or("attention_bias", true)?;
    let attention = AttentionConfig {
        bias: if biased { AttentionBias::All } else { AttentionBias::Off },
        ..plain_attention(num_heads)
    };
    let epsilon = keys.number("layer_norm_eps")?.unwrap_or(1e-5);
    let parallel = keys.flag_or("use_parallel_residual", true)?;
    Ok(ModelConfig {
        num_layers: keys.size_of(&["num_hidden_layers"])?,
        d_model,
        attention: Some(attention),
        ffn: FfnConfig {
            d_ff: Some(keys.size_of(&["intermediate_size"])?),
            bias: true,
            ..plain_ffn(activation)
        },
        norm: Some(NormConfig::Layer(LayerNormConfig { epsilon, bias: true })),
        position: Some(PositionConfig::Rope(rope)),
        tie_embeddings: keys.flag_or("tie_word_embeddings", false)?,
        residual: if parallel { Residual::ParallelNorms } else { Residual::Sequential },
        padding_id: None,
        ..bare(keys)?
    })
}

pub(super) fn write(model: &ModelConfig) -> Map<String, Value> {
    let mut config = write_bare(model);
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_owned(), value);
    };
    set("intermediate_size", json!(model.ffn.d_ff));
    set("hidden_act", json!(activation_name(model.ffn.activation)));
    if let Some(NormConfig::Layer(LayerNormConfig { epsilon, .. })) = &model.norm {
        set("layer_norm_eps", json!(epsilon));
    }
    set("attention_bias", json!(model.attention().bias == AttentionBias::All));
    set("use_parallel_residual", json!(model.residual == Residual::ParallelNorms));
    if let Some(rope) = rope_of(model) {
        let d_head = model.d_model / model.attention().num_heads.max(1);
        let mut rope = rope::write(rope, d_head);
        if let Some(table) = rope.as_object_mut() {
            table.entry("partial_rotary_factor").or_insert(json!(1.0));
        }
        set("rope_parameters", rope);
    }
    config
}

pub(super) fn tensors(mut table: Table<'_>) -> Vec<Mapping> {
    let spec = table.spec;
    let d = spec.d_model;
    table.ends("gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm", &["embed_out", "lm_head"]);
    for layer in 0..spec.num_layers() {
        let prefix = format!("gpt_neox.layers.{layer}.");
        table.norm(Some(layer), NormPlace::Attention, &format!("{prefix}input_layernorm"));
        table.norm(Some(layer), NormPlace::Ffn, &format!("{prefix}post_attention_layernorm"));
        let attention = table.attention_of(layer);
        let (h, w) = (attention.num_heads, attention.d_head);
        let turned = table.turned_channels(layer, 1, Pairs::Halves);
        let name = format!("{prefix}attention.query_key_value");
        let parts = [AttentionPart::Query, AttentionPart::Key, AttentionPart::Value];
        for (i, part) in parts.into_iter().enumerate() {
            let of_head = if part == AttentionPart::Value { Channels::All } else { turned.clone() };
            let channels = fused_channels(h, |head| (3 * head + i) * w, &of_head, w);
            table.projection(layer, part, &name, [d, 3 * d], channels);
        }
        let output = format!("{prefix}attention.dense");
        table.projection(layer, AttentionPart::Output, &output, [d, d], Channels::All);
        table.dense(layer, &format!("{prefix}mlp."), ["", "dense_h_to_4h", "dense_4h_to_h"]);
    }
    table.finish()
}

/// The channels of heads of width `d_head`, each of which begins at `start_of` in a fused matrix.
pub(super) fn fused_channels(
    num_heads: usize,
    start_of: impl Fn(usize) -> usize,
    of_head: &Channels,
    d_head: usize,
) -> Channels {
    let of_head: Vec<usize> = match of_head {
        Channels::All => (0..d_head).collect(),
        Channels::Range(range) => range.clone().collect(),
        Channels::Listed(listed) => listed.clone(),
    };
    let channels = |head: usize| of_head.iter().map(move |channel| (head, channel));
    Channels::Listed(
        (0..num_heads).flat_map(channels).map(|(head, channel)| start_of(head) + channel).collect(),
    )
}

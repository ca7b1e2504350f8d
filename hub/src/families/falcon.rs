//! Falcon: three generations with one name.
//!
//! | | norms | queries, keys and values in one matrix |
//! |---|---|---|
//! | 7B | one, both halves on it | all queries, one key, one value |
//! | 40B, 180B | one for each half, or one | per group: its queries, its key, its value |
//! | RefinedWeb | one before each half | per head: query, key, value |

use serde_json::{Map, Value, json};
use switchyard_model::{
    AlibiConfig, AttentionBias, AttentionConfig, AttentionPart, FfnConfig, LayerNormConfig, ModelConfig,
    NormConfig, NormPlace, PositionConfig, Residual,
};

use super::gpt_neox::fused_channels;
use super::gpt2::{activation, activation_name};
use crate::HubError;
use crate::decoder_config::{bare, head_width, plain_attention, plain_ffn, rope_of, write_bare};
use crate::keys::Keys;
use crate::layout::{Mapping, Pairs};
use crate::rope::{self, RopeDefaults};
use crate::table::Table;

pub(super) fn read(keys: &Keys) -> Result<ModelConfig, HubError> {
    let activation = activation(keys, "activation", "gelu")?;
    let d_model = keys.size_of(&["hidden_size"])?;
    let num_heads = keys.size_of(&["num_attention_heads", "n_head"])?;
    let d_head = head_width(keys, d_model, num_heads)?;
    let new_decoder = keys.flag_or("new_decoder_architecture", false)?;
    let multi_query = keys.flag_or("multi_query", true)?;
    let parallel = keys.flag_or("parallel_attn", true)?;
    let given = match keys.size("num_kv_heads")? {
        Some(given) => Some(given),
        None => keys.size("n_head_kv")?,
    };
    let num_kv_heads = match (new_decoder, multi_query) {
        (true, _) => given.unwrap_or(num_heads),
        (false, true) => 1,
        (false, false) => num_heads,
    };
    let biased = keys.flag_or("bias", false)?;
    let position = match keys.flag_or("alibi", false)? {
        true => PositionConfig::Alibi(AlibiConfig { as_falcon: true }),
        false => PositionConfig::Rope(rope::read(keys, d_head, RopeDefaults::default())?),
    };
    let num_norms = keys.size("num_ln_in_parallel_attn")?.unwrap_or(if new_decoder { 2 } else { 1 });
    let residual = match (new_decoder || parallel, num_norms) {
        (false, _) => Residual::Sequential,
        (true, 2) if new_decoder => Residual::ParallelNorms,
        (true, _) => Residual::Parallel,
    };
    let attention = AttentionConfig {
        num_kv_heads: Some(num_kv_heads),
        bias: if biased { AttentionBias::All } else { AttentionBias::Off },
        ..plain_attention(num_heads)
    };
    let epsilon = keys.number("layer_norm_epsilon")?.unwrap_or(1e-5);
    let d_ff = keys.size("ffn_hidden_size")?.unwrap_or(4 * d_model);
    Ok(ModelConfig {
        num_layers: keys.size_of(&["num_hidden_layers", "n_layer"])?,
        d_model,
        attention: Some(attention),
        ffn: FfnConfig { d_ff: Some(d_ff), bias: biased, ..plain_ffn(activation) },
        norm: Some(NormConfig::Layer(LayerNormConfig { epsilon, bias: true })),
        position: Some(position),
        tie_embeddings: keys.flag_or("tie_word_embeddings", true)?,
        residual,
        padding_id: None,
        ..bare(keys)?
    })
}

/// Which generation the model is of.
fn is_new_decoder(residual: Residual, num_heads: usize, num_kv_heads: usize) -> bool {
    // One key head, or as many as heads, both older ones can have.
    residual == Residual::ParallelNorms || (num_kv_heads != 1 && num_kv_heads != num_heads)
}

pub(super) fn write(model: &ModelConfig) -> Map<String, Value> {
    let mut config = write_bare(model);
    let heads = model.attention();
    let num_kv_heads = heads.num_kv_heads.unwrap_or(heads.num_heads);
    let new_decoder = is_new_decoder(model.residual, heads.num_heads, num_kv_heads);
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_owned(), value);
    };
    set("activation", json!(activation_name(model.ffn.activation)));
    set("ffn_hidden_size", json!(model.ffn.d_ff));
    set("new_decoder_architecture", json!(new_decoder));
    set("multi_query", json!(num_kv_heads == 1));
    set("parallel_attn", json!(model.residual != Residual::Sequential));
    set("num_kv_heads", json!(num_kv_heads));
    set("bias", json!(heads.bias == AttentionBias::All));
    if new_decoder {
        let norms = if model.residual == Residual::ParallelNorms { 2 } else { 1 };
        set("num_ln_in_parallel_attn", json!(norms));
    }
    if let Some(NormConfig::Layer(LayerNormConfig { epsilon, .. })) = &model.norm {
        set("layer_norm_epsilon", json!(epsilon));
    }
    set("alibi", json!(matches!(model.position, Some(PositionConfig::Alibi(_)))));
    if let Some(rope) = rope_of(model) {
        set("rope_parameters", rope::write(rope, model.d_model / heads.num_heads.max(1)));
    }
    config
}

pub(super) fn tensors(mut table: Table<'_>) -> Vec<Mapping> {
    let spec = table.spec;
    let d = spec.d_model;
    table.ends("transformer.word_embeddings.weight", "transformer.ln_f", &["lm_head"]);
    for (layer, of_layer) in spec.layers.iter().enumerate() {
        let prefix = format!("transformer.h.{layer}.");
        let (attention_norm, ffn_norm) = match of_layer.residual {
            Residual::ParallelNorms => ("ln_attn", Some("ln_mlp")),
            Residual::Parallel => ("input_layernorm", None),
            _ => ("input_layernorm", Some("post_attention_layernorm")),
        };
        table.norm(Some(layer), NormPlace::Attention, &format!("{prefix}{attention_norm}"));
        if let Some(ffn_norm) = ffn_norm {
            table.norm(Some(layer), NormPlace::Ffn, &format!("{prefix}{ffn_norm}"));
        }
        let it = table.attention_of(layer);
        let (h, g, w) = (it.num_heads, it.num_kv_heads, it.d_head);
        // All layouts are groups of some queries, a key and a value.
        let (sharing, group) = (h / g, (h / g + 2) * w);
        let turned = table.turned_channels(layer, 1, Pairs::Halves);
        let whole = crate::layout::Channels::All;
        let name = format!("{prefix}self_attention.query_key_value");
        let sizes = [d, g * group];
        let query = |head: usize| head / sharing * group + head % sharing * w;
        let of_queries = fused_channels(h, query, &turned, w);
        table.projection(layer, AttentionPart::Query, &name, sizes, of_queries);
        let key = fused_channels(g, |head| head * group + sharing * w, &turned, w);
        table.projection(layer, AttentionPart::Key, &name, sizes, key);
        let value = fused_channels(g, |head| head * group + (sharing + 1) * w, &whole, w);
        table.projection(layer, AttentionPart::Value, &name, sizes, value);
        let output = format!("{prefix}self_attention.dense");
        table.projection(layer, AttentionPart::Output, &output, [h * w, d], whole);
        table.dense(layer, &format!("{prefix}mlp."), ["", "dense_h_to_4h", "dense_4h_to_h"]);
    }
    table.finish()
}

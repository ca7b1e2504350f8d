//! `[model.attention]`: from what is written to the attention of each layer.

use switchyard_ground::key_checks::{in_range, positive};
use switchyard_ground::key_error::KeyError;

use super::limits::{MAX_D_HEAD, MAX_HEADS, MAX_HIDDEN_WIDTH};
use crate::{
    AttentionBias, AttentionConfig, AttentionSpec, LatentConfig, ModelConfig, PositionKind, RopeScaling,
};

/// The attention of each layer, first layer first.
///
/// # Errors
/// The first key under `model.attention` whose value cannot be used.
pub(super) fn resolve_attention(
    model: &ModelConfig,
    config: &AttentionConfig,
    position: &PositionKind,
) -> Result<Vec<AttentionSpec>, KeyError> {
    let common = common_to_layers(config, model.d_model, position)?;
    let windowed = windowed_layers(config, model.num_layers)?;
    let of_layer = |(layer, window): (usize, Option<usize>)| {
        let scale = match (common.scale, config.scale_by_layer) {
            (scale, false) => scale,
            (scale, true) => {
                let scale = scale.unwrap_or(1.0 / (common.d_head as f64).sqrt());
                Some(scale / (layer + 1) as f64)
            }
        };
        AttentionSpec { window, scale, ..common.clone() }
    };
    Ok(windowed.into_iter().enumerate().map(of_layer).collect())
}

/// The window of each layer that has one.
fn windowed_layers(config: &AttentionConfig, num_layers: usize) -> Result<Vec<Option<usize>>, KeyError> {
    let Some(window) = &config.window else { return Ok(vec![None; num_layers]) };
    if window.len == 0 {
        let remedy = "use at least 1, or remove the table to see all earlier tokens";
        return Err(KeyError::new("model.attention.window.len", "is 0", remedy));
    }
    let Some(layers) = &window.layers else { return Ok(vec![Some(window.len); num_layers]) };
    if let Some(layer) = layers.iter().find(|layer| **layer >= num_layers) {
        let problem = format!("holds {layer}, but the model has {num_layers} layers");
        let remedy = format!("use 0..={}", num_layers - 1);
        return Err(KeyError::new("model.attention.window.layers", problem, remedy));
    }
    Ok((0..num_layers).map(|layer| layers.contains(&layer).then_some(window.len)).collect())
}

fn common_to_layers(
    config: &AttentionConfig,
    d_model: usize,
    position: &PositionKind,
) -> Result<AttentionSpec, KeyError> {
    let num_heads = config.num_heads;
    in_range("model.attention.num_heads", num_heads, 1..=MAX_HEADS)?;
    let num_kv_heads = config.num_kv_heads.unwrap_or(num_heads);
    if num_kv_heads == 0 || !num_heads.is_multiple_of(num_kv_heads) {
        let problem =
            format!("is {num_kv_heads}, which does not divide `model.attention.num_heads` = {num_heads}");
        return Err(KeyError::new("model.attention.num_kv_heads", problem, "use a divisor"));
    }
    let d_head = match config.d_head {
        Some(d_head) => d_head,
        None if d_model.is_multiple_of(num_heads) => d_model / num_heads,
        None => {
            let problem = format!("is {num_heads}, which does not divide `model.d_model` = {d_model}");
            let remedy = "use a divisor, or set `model.attention.d_head`";
            return Err(KeyError::new("model.attention.num_heads", problem, remedy));
        }
    };
    in_range("model.attention.d_head", d_head, 1..=MAX_D_HEAD)?;
    if matches!(position, PositionKind::Rope { .. }) && config.latent.is_none() && !d_head.is_multiple_of(2) {
        return Err(odd_head(config, d_head));
    }
    if let Some(settings) = config.qk_norm.settings() {
        positive("model.attention.qk_norm.epsilon", settings.epsilon)?;
    }
    for (key, value) in [("clip_qkv", config.clip_qkv), ("scale", config.scale)] {
        value.map_or(Ok(()), |value| positive(&format!("model.attention.{key}"), value))?;
    }
    let spec = AttentionSpec {
        qk_norm: config.qk_norm,
        bias: config.bias,
        sinks: config.sinks,
        clip_qkv: config.clip_qkv,
        scale: config.scale,
        latent: config.latent.clone(),
        ..AttentionSpec::new(num_heads, num_kv_heads, d_head)
    };
    if let Some(latent) = &config.latent {
        check_latent(latent, &spec, position)?;
    }
    check_rotary(&spec, position)?;
    Ok(spec)
}

/// Ok if latent attention has sizes that fit, and nothing that it does not heed.
fn check_latent(
    latent: &LatentConfig,
    spec: &AttentionSpec,
    position: &PositionKind,
) -> Result<(), KeyError> {
    const TABLE: &str = "model.attention.latent";
    let LatentConfig { d_query, d_key_value, d_rope, d_value } = *latent;
    let widths = [("d_query", d_query), ("d_key_value", Some(d_key_value)), ("d_value", Some(d_value))];
    for (key, width) in widths.into_iter().filter_map(|(key, width)| Some((key, width?))) {
        in_range(&format!("{TABLE}.{key}"), width, 1..=MAX_HIDDEN_WIDTH)?;
    }
    if d_rope == 0 || !d_rope.is_multiple_of(2) || d_rope >= spec.d_head {
        let problem = format!("is {d_rope}, of heads of {} channels", spec.d_head);
        let remedy = "use an even number above 0 and below `model.attention.d_head`";
        return Err(KeyError::new(format!("{TABLE}.d_rope"), problem, remedy));
    }
    if !matches!(position, PositionKind::Rope { .. }) {
        let remedy = "use `model.position.rope`, or remove the table";
        return Err(KeyError::new(TABLE, "needs rotary positions", remedy).naming("model.position"));
    }
    let without_effect = [
        ("num_kv_heads", spec.num_kv_heads != spec.num_heads),
        ("qk_norm", spec.qk_norm.settings().is_some()),
        ("clip_qkv", spec.clip_qkv.is_some()),
        ("bias", spec.bias == AttentionBias::Qkv),
    ];
    match without_effect.iter().find(|(_, given)| *given) {
        Some((key, _)) => {
            let problem = "has no effect on latent attention";
            Err(KeyError::new(format!("model.attention.{key}"), problem, format!("remove it, or `{TABLE}`")))
        }
        None => Ok(()),
    }
}

/// Ok if the channels that are turned are there, in pairs, and each pair has its factors.
fn check_rotary(spec: &AttentionSpec, position: &PositionKind) -> Result<(), KeyError> {
    let PositionKind::Rope { d_rotary, scaling, .. } = position else { return Ok(()) };
    if let Some(RopeScaling::Longrope(longrope)) = scaling {
        let num_pairs = d_rotary.unwrap_or(spec.d_rotary()) / 2;
        for (key, list) in [("short_factor", &longrope.short_factor), ("long_factor", &longrope.long_factor)]
        {
            if list.len() != num_pairs {
                let problem = format!("has {} factors, but {num_pairs} pairs are turned", list.len());
                let key = format!("model.position.rope.scaling.longrope.{key}");
                return Err(KeyError::new(key, problem, "give one for each pair"));
            }
        }
    }
    let Some(d_rotary) = d_rotary else { return Ok(()) };
    if *d_rotary == 0 || !d_rotary.is_multiple_of(2) || *d_rotary > spec.d_rotary() {
        let problem = format!("is {d_rotary}, of {} channels", spec.d_rotary());
        let remedy = "use an even number above 0 that is not larger, or remove the key to turn all";
        return Err(KeyError::new("model.position.rope.d_rotary", problem, remedy));
    }
    Ok(())
}

fn odd_head(config: &AttentionConfig, d_head: usize) -> KeyError {
    let reason = "but rotary positions turn pairs of elements";
    match config.d_head {
        Some(_) => {
            let problem = format!("is {d_head}, {reason}");
            KeyError::new("model.attention.d_head", problem, "use an even width")
        }
        None => {
            let problem = format!("is {}, which makes heads of width {d_head}, {reason}", config.num_heads);
            KeyError::new("model.attention.num_heads", problem, "make the width even")
        }
    }
}

//! `[train.qk_clip]`: whether its heads can be clipped.

use switchyard_ground::key_checks::positive;
use switchyard_ground::key_error::KeyError;
use switchyard_model::{AttentionSpec, MixerSpec, ModelSpec};

use crate::config::QkClipConfig;

/// Ok if smaller queries and keys make the logits of `model` smaller.
///
/// # Errors
/// A number that cannot be used, or a model without attention, or whose queries and keys are bounded
/// otherwise.
pub(super) fn check(clip: Option<QkClipConfig>, model: &ModelSpec) -> Result<(), KeyError> {
    const KEY: &str = "train.qk_clip";
    let Some(clip) = clip else { return Ok(()) };
    positive("train.qk_clip.max_logit", clip.max_logit)?;
    let attentions: Vec<&AttentionSpec> =
        model.layers.iter().filter_map(|layer| attention_of(&layer.mixer)).collect();
    let has = |of: fn(&AttentionSpec) -> bool| attentions.iter().any(|attention| of(attention));
    if attentions.is_empty() {
        let problem = "needs attention, and the model has none";
        return Err(KeyError::new(KEY, problem, "remove the table"));
    }
    let problem = if has(|attention| attention.qk_norm.settings().is_some()) {
        "has no effect beside `model.attention.qk_norm`, which makes queries and keys as large again"
    } else if has(|attention| attention.clip_qkv.is_some()) {
        "is given beside `model.attention.clip_qkv`, which bounds the same queries and keys"
    } else {
        return Ok(());
    };
    Err(KeyError::new(KEY, problem, "remove one of them").naming("model.attention"))
}

fn attention_of(mixer: &MixerSpec) -> Option<&AttentionSpec> {
    match mixer {
        MixerSpec::Attention(attention) => Some(attention),
        MixerSpec::Lstm(_) => None,
    }
}

//! What must hold for a dense model to become a mixture, and what for it to stay the same function.

use serde::Serialize;
use switchyard_experts::{DenseSpec, ExpertsSpec, FfnSpec};
use switchyard_ground::key_error::KeyError;
use switchyard_model::{LayerSpec, MixerSpec, ModelSpec, PositionKind};
use switchyard_router::{RouterConfig, Selection, SoftmaxOrder};

use super::{UpcycleError, UpcycleMethod};

/// Ok if `dense` can become `spec`.
pub(super) fn check(dense: &ModelSpec, spec: &ModelSpec, method: UpcycleMethod) -> Result<(), UpcycleError> {
    for (layer, LayerSpec { ffn, .. }) in dense.layers.iter().enumerate() {
        let kind = match ffn {
            // A layer without a block stays without.
            FfnSpec::Dense(_) | FfnSpec::Absent => continue,
            FfnSpec::Moe(_) | FfnSpec::SoftMoe(_) => "a mixture",
            FfnSpec::BlockSparse(_) => "block-sparse",
        };
        return Err(UpcycleError::NotDense { layer, kind });
    }
    if let UpcycleMethod::Drop { ratio } = method
        && !(0.0..=1.0).contains(&ratio)
    {
        return Err(UpcycleError::Ratio { ratio });
    }
    check_carried_over(dense, spec)?;
    if spec.mixture_uses().is_empty() {
        let remedy = "describe the mixture that the dense model becomes";
        return Err(KeyError::new("model.ffn.moe", "is missing", remedy).into());
    }
    for (before, now) in dense.layers.iter().zip(&spec.layers) {
        check_block(&before.ffn, &now.ffn, method)?;
    }
    Ok(())
}

/// Everything outside the feed-forward blocks.
fn check_carried_over(dense: &ModelSpec, spec: &ModelSpec) -> Result<(), UpcycleError> {
    same("model.vocab_size", &spec.vocab_size, &dense.vocab_size)?;
    same("model.num_layers", &spec.num_layers(), &dense.num_layers())?;
    same("model.d_model", &spec.d_model, &dense.d_model)?;
    for (now, before) in spec.layers.iter().zip(&dense.layers) {
        same("model.residual", &now.residual, &before.residual)?;
        let (now, before) = match (&now.mixer, &before.mixer) {
            (MixerSpec::Attention(now), MixerSpec::Attention(before)) => (now, before),
            (now, before) => {
                same("model.lstm", now, before)?;
                continue;
            }
        };
        same("model.attention.num_heads", &now.num_heads, &before.num_heads)?;
        same("model.attention.num_kv_heads", &now.num_kv_heads, &before.num_kv_heads)?;
        same("model.attention.d_head", &now.d_head, &before.d_head)?;
        same("model.attention.qk_norm", &now.qk_norm, &before.qk_norm)?;
        same("model.attention.bias", &now.bias, &before.bias)?;
        same("model.attention.window", &now.window, &before.window)?;
        same("model.attention.sinks", &now.sinks, &before.sinks)?;
        same("model.attention.clip_qkv", &now.clip_qkv, &before.clip_qkv)?;
        same("model.attention.scale", &now.scale, &before.scale)?;
        same("model.attention.latent", &now.latent, &before.latent)?;
    }
    if spec.parametrisation.is_some() != dense.parametrisation.is_some() {
        let (with, without) = match spec.parametrisation {
            Some(_) => ("the mixture", "the dense model"),
            None => ("the dense model", "the mixture"),
        };
        let problem =
            format!("is given for {with}, but not for {without}: their rates would not be of one kind");
        let remedy = "give the mixture the table exactly if the dense model has it";
        return Err(KeyError::new("model.parametrisation", problem, remedy).into());
    }
    same("model.multipliers", &spec.multipliers, &dense.multipliers)?;
    same("model.head_bias", &spec.head_bias, &dense.head_bias)?;
    same("model.padding_id", &spec.padding_id, &dense.padding_id)?;
    same("model.norm", &spec.norm, &dense.norm)?;
    same("model.position", &spec.position, &dense.position)?;
    same("model.tie_embeddings", &spec.tie_embeddings, &dense.tie_embeddings)?;
    let have_block =
        |(now, before): &(&LayerSpec, &LayerSpec)| ![&now.ffn, &before.ffn].contains(&&FfnSpec::Absent);
    for (now, before) in spec.layers.iter().zip(&dense.layers).filter(have_block) {
        same("model.ffn.activation", &now.ffn.activation(), &before.ffn.activation())?;
    }
    match spec.position {
        PositionKind::Learned => same("train.seq_len", &spec.num_positions(), &dense.num_positions()),
        _ => Ok(()),
    }
}

fn same<T: PartialEq + Serialize>(key: &'static str, now: &T, there: &T) -> Result<(), UpcycleError> {
    let text = |value: &T| serde_json::to_string(value).unwrap_or_default();
    if now == there { Ok(()) } else { Err(UpcycleError::Differs { key, now: text(now), there: text(there) }) }
}

/// A block that stays dense, or becomes experts.
fn check_block(before: &FfnSpec, now: &FfnSpec, method: UpcycleMethod) -> Result<(), UpcycleError> {
    // What is upcycled is dense.
    let FfnSpec::Dense(dense) = before else { return same("model.ffn", now, before) };
    match now {
        FfnSpec::Dense(DenseSpec { d_ff, bias, .. }) => {
            same("model.ffn.d_ff", d_ff, &dense.d_ff)?;
            same("model.ffn.bias", bias, &dense.bias)
        }
        FfnSpec::BlockSparse(_) => Ok(()),
        FfnSpec::Absent => same("model.ffn.d_ff", &None, &Some(dense.d_ff)),
        FfnSpec::Moe(_) | FfnSpec::SoftMoe(_) => now.routed().map_or(Ok(()), |(experts, _)| {
            check_biases(dense.bias, experts, method)?;
            check_experts(dense.d_ff, experts, method)
        }),
    }
}

/// Biases of the dense block become those of its copies; of parts, no bias of theirs adds up to it.
fn check_biases(bias: bool, experts: &ExpertsSpec, method: UpcycleMethod) -> Result<(), UpcycleError> {
    same("model.ffn.moe.expert_bias", &experts.bias, &bias)?;
    if bias && method != UpcycleMethod::Copy {
        let problem = "is true, but only `--method copy` knows what to do with biases";
        return Err(KeyError::new("model.ffn.moe.expert_bias", problem, "use that method").into());
    }
    Ok(())
}

fn check_experts(d_ff: usize, experts: &ExpertsSpec, method: UpcycleMethod) -> Result<(), UpcycleError> {
    let ExpertsSpec { num_experts, d_expert, .. } = *experts;
    let width = "model.ffn.moe.d_expert";
    match method {
        UpcycleMethod::Copy | UpcycleMethod::Drop { .. } if d_expert != d_ff => {
            let problem =
                format!("is {d_expert}, but each expert is a copy of the dense block of width {d_ff}");
            let remedy = format!("use {d_ff}, or `--method granular_split`");
            Err(KeyError::new(width, problem, remedy).into())
        }
        UpcycleMethod::GranularSplit if !d_ff.is_multiple_of(d_expert) => {
            let problem = format!("is {d_expert}, which does not divide the dense block's width {d_ff}");
            Err(KeyError::new(width, problem, "use a divisor").into())
        }
        UpcycleMethod::GranularSplit if !num_experts.is_multiple_of(d_ff / d_expert) => {
            let problem =
                format!("is {num_experts}, but the dense block is cut into {} parts", d_ff / d_expert);
            Err(KeyError::new("model.ffn.moe.num_experts", problem, "use a multiple").into())
        }
        UpcycleMethod::Copy | UpcycleMethod::Drop { .. } | UpcycleMethod::GranularSplit => Ok(()),
    }
}

/// The sum of one token's gates, where it is the same for every token.
pub(super) fn gate_sum(router: &RouterConfig) -> Option<f64> {
    match &router.selection {
        Selection::ExpertChoice(_) | Selection::Soft(_) => return None,
        _ if !router.learns() => return Some(1.0),
        _ => {}
    }
    match &router.sigmoid {
        _ if matches!(router.selection, Selection::SparseMixer(_)) => None,
        Some(_) => router.renormalise.then_some(router.gate_scale()),
        None => {
            let sums_to_one = router.renormalise || router.softmax == SoftmaxOrder::AfterSelection;
            sums_to_one.then_some(router.gate_scale())
        }
    }
}

/// Parts that one copy of the dense block is cut into; 1 where it stays one.
pub(super) fn num_parts(before: &FfnSpec, now: &FfnSpec, method: UpcycleMethod) -> usize {
    match (method, before, now.routed()) {
        (UpcycleMethod::GranularSplit, FfnSpec::Dense(dense), Some((experts, _))) => {
            dense.d_ff / experts.d_expert
        }
        _ => 1,
    }
}

/// Why the mixture of `layer` computes something else than its dense block; `None` if it does not.
pub(super) fn deviation(
    dense: &ModelSpec,
    spec: &ModelSpec,
    layer: usize,
    method: UpcycleMethod,
) -> Option<String> {
    let (before, now) = (&dense.layers.get(layer)?.ffn, &spec.layers.get(layer)?.ffn);
    let router = &now.router()?.config;
    let num_parts = num_parts(before, now, method);
    let drops = match now {
        FfnSpec::Moe(moe) => {
            moe.capacity.as_ref().is_some_and(|capacity| capacity.evaluation_factor.is_some())
        }
        FfnSpec::Dense(_) | FfnSpec::SoftMoe(_) | FfnSpec::BlockSparse(_) | FfnSpec::Absent => false,
    };
    if matches!(method, UpcycleMethod::Drop { ratio } if ratio > 0.0) {
        return Some("hidden units were drawn anew".into());
    }
    if gate_sum(router).is_none() {
        return Some("a token's gates do not add up to the same number for all tokens".into());
    }
    if drops {
        return Some("`model.ffn.moe.capacity.evaluation_factor` drops tokens".into());
    }
    if !router.top_k.is_multiple_of(num_parts) {
        let top_k = router.top_k;
        return Some(format!("`top_k` = {top_k} takes no whole copies of {num_parts} parts"));
    }
    if num_parts > 1 && (!router.learns() || router.groups.is_some()) {
        return Some(format!("the router does not keep the {num_parts} parts of a copy together"));
    }
    None
}

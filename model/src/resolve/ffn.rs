//! `[model.ffn]`: from what is written to the block of each layer.

use switchyard_experts::{
    BlockSparseSpec, DenseSpec, FfnSpec, MoeConfig, MoeLayersConfig, RouterSpec, SoftMoeSpec,
};
use switchyard_ground::key_checks::{in_range, not_zero, optional_in_range};
use switchyard_ground::key_error::KeyError;
use switchyard_router::{RouterConfig, Selection};

use super::limits::{MAX_EXPERTS, MAX_HIDDEN_WIDTH};
use crate::{FfnConfig, FfnUse, ModelConfig};

/// Which block a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LayerKind {
    Dense,
    Moe,
    BlockSparse,
    Absent,
}

/// The feed-forward block of each layer, first layer first.
pub(super) fn resolve_ffn(
    config: &ModelConfig,
    max_seq_len: usize,
    notes: &mut Vec<String>,
) -> Result<Vec<FfnSpec>, KeyError> {
    let ffn = &config.ffn;
    let activation = ffn.activation;
    let kinds = resolve_kinds(config)?;
    check_block_sparse(ffn, config.d_model)?;
    let moe = ffn.moe.as_ref().map(|moe| resolve_moe(moe, &kinds)).transpose()?;
    let d_ff = resolve_width(ffn, &kinds, notes)?;
    let mut layers = Vec::with_capacity(kinds.len());
    for (layer, kind) in kinds.into_iter().enumerate() {
        layers.push(match (kind, &moe, &ffn.block_sparse) {
            (LayerKind::Moe, Some(moe), _) => {
                checked_mixture(FfnSpec::mixture(moe, layer, activation, max_seq_len))?
            }
            (LayerKind::BlockSparse, _, Some(matrices)) => {
                FfnSpec::BlockSparse(BlockSparseSpec { activation, matrices: matrices.clone() })
            }
            (LayerKind::Absent, ..) => FfnSpec::Absent,
            _ => FfnSpec::Dense(DenseSpec { activation, d_ff, bias: ffn.bias }),
        });
    }
    Ok(layers)
}

/// The mixture, if its sequences are not cut into too many slots.
fn checked_mixture(ffn: FfnSpec) -> Result<FfnSpec, KeyError> {
    if let FfnSpec::SoftMoe(SoftMoeSpec { router, slots_per_expert, .. }) = &ffn {
        // Written out or not: as many as the sequence's length asks for can be too many, too.
        let key = format!("{}.selection.soft.slots_per_expert", router.key);
        in_range(&key, *slots_per_expert, 1..=MAX_HIDDEN_WIDTH)?;
    }
    Ok(ffn)
}

/// Kind of each layer, first layer first.
fn resolve_kinds(config: &ModelConfig) -> Result<Vec<LayerKind>, KeyError> {
    let (ffn, num_layers) = (&config.ffn, config.num_layers);
    // Attention alone computes nothing but means, so its layers without a block are a mistake.
    let is_optional = config.lstm.is_some();
    let other = if is_optional && ffn.d_ff.is_none() { LayerKind::Absent } else { LayerKind::Dense };
    if ffn.block_sparse.is_some() {
        return Ok(vec![LayerKind::BlockSparse; num_layers]);
    }
    let Some(moe) = &ffn.moe else {
        return Ok(vec![other; num_layers]);
    };
    let is_moe = |layer: usize| match &moe.layers {
        None => true,
        Some(MoeLayersConfig::Every(every)) => (layer + 1).is_multiple_of(*every),
        Some(MoeLayersConfig::List(list)) => list.contains(&layer),
    };
    if let Some(layers) = &moe.layers {
        check_layer_choice(layers, num_layers)?;
    }
    Ok((0..num_layers).map(|layer| if is_moe(layer) { LayerKind::Moe } else { other }).collect())
}

fn check_layer_choice(layers: &MoeLayersConfig, num_layers: usize) -> Result<(), KeyError> {
    const LIST_KEY: &str = "model.ffn.moe.layers.list";
    match layers {
        MoeLayersConfig::Every(every) => in_range("model.ffn.moe.layers.every", *every, 1..=num_layers),
        MoeLayersConfig::List(list) if list.is_empty() => {
            let remedy = "name at least one layer, or remove `model.ffn.moe` for a dense model";
            Err(KeyError::new(LIST_KEY, "is empty", remedy))
        }
        MoeLayersConfig::List(list) => {
            let mut seen = vec![false; num_layers];
            for &layer in list {
                if layer >= num_layers {
                    let problem = format!("holds {layer}, but the model has {num_layers} layers");
                    return Err(KeyError::new(LIST_KEY, problem, format!("use 0..={}", num_layers - 1)));
                }
                if std::mem::replace(&mut seen[layer], true) {
                    let problem = format!("holds {layer} twice");
                    return Err(KeyError::new(LIST_KEY, problem, "name each layer once"));
                }
            }
            Ok(())
        }
    }
}

/// Hidden width of the dense blocks; 0 in a model without.
fn resolve_width(ffn: &FfnConfig, layers: &[LayerKind], notes: &mut Vec<String>) -> Result<usize, KeyError> {
    let first_dense = layers.iter().position(|kind| *kind == LayerKind::Dense);
    match (ffn.d_ff, first_dense) {
        (Some(d_ff), Some(_)) => {
            in_range("model.ffn.d_ff", d_ff, 1..=MAX_HIDDEN_WIDTH)?;
            Ok(d_ff)
        }
        (None, Some(layer)) => {
            let problem = format!("is missing, but layer {layer} is dense");
            Err(KeyError::new("model.ffn.d_ff", problem, "give the hidden width of the dense block"))
        }
        (d_ff, None) => {
            let has_blocks = layers.iter().any(|kind| *kind != LayerKind::Absent);
            let without_effect = [("d_ff", d_ff.is_some()), ("bias", ffn.bias), ("activation", !has_blocks)];
            for (key, _) in without_effect.iter().filter(|(_, given)| *given) {
                let kind = match (&ffn.block_sparse, has_blocks) {
                    (Some(_), _) => "block-sparse",
                    (None, false) => "an LSTM alone",
                    (None, true) if layers.contains(&LayerKind::Absent) => "MoE or an LSTM alone",
                    (None, true) => "MoE",
                };
                notes.push(format!("`model.ffn.{key}` has no effect: every layer is {kind}"));
            }
            Ok(0)
        }
    }
}

fn check_block_sparse(ffn: &FfnConfig, d_model: usize) -> Result<(), KeyError> {
    let Some(block_sparse) = &ffn.block_sparse else { return Ok(()) };
    if ffn.moe.is_some() {
        let problem = "is given beside `model.ffn.moe`";
        return Err(KeyError::new("model.ffn.block_sparse", problem, "keep one of them"));
    }
    in_range("model.ffn.block_sparse.d_ff", block_sparse.d_ff, 1..=MAX_HIDDEN_WIDTH)?;
    block_sparse.validate(d_model).map_err(|error| error.under("model.ffn.block_sparse"))
}

/// The mixture with its granularity applied.
fn resolve_moe(written: &MoeConfig, layers: &[LayerKind]) -> Result<MoeConfig, KeyError> {
    for (key, size) in [("num_experts", written.num_experts), ("d_expert", written.d_expert)] {
        not_zero(&format!("model.ffn.moe.{key}"), size == 0, "")?;
    }
    let of_moe = |error: KeyError| error.under("model.ffn.moe");
    let moe = written.with_granularity_applied().map_err(of_moe)?;
    moe.validate().map_err(of_moe)?;
    check_router_sizes("model.ffn.moe.router", &moe.router)?;
    for (index, rule) in moe.router_overrides.iter().enumerate() {
        check_router_sizes(&format!("model.ffn.moe.router_overrides[{index}].router"), &rule.router)?;
    }
    in_range("model.ffn.moe.num_experts", moe.num_experts, 1..=MAX_EXPERTS)?;
    in_range("model.ffn.moe.d_expert", moe.d_expert, 1..=MAX_HIDDEN_WIDTH)?;
    optional_in_range(
        "model.ffn.moe.d_shared_expert",
        moe.d_shared_expert,
        1..=MAX_HIDDEN_WIDTH,
        "for no shared expert",
    )?;
    check_router_overrides(&moe, layers)?;
    Ok(moe)
}

/// Upper bounds that are the model's and not the router's own.
fn check_router_sizes(key: &str, router: &RouterConfig) -> Result<(), KeyError> {
    if let Selection::Soft(soft) = &router.selection {
        optional_in_range(
            &format!("{key}.selection.soft.slots_per_expert"),
            soft.slots_per_expert,
            1..=MAX_HIDDEN_WIDTH,
            "for as much work as of `top_k` experts",
        )?;
    }
    match &router.cosine {
        Some(cosine) => {
            in_range(&format!("{key}.cosine.d_projection"), cosine.d_projection, 1..=MAX_HIDDEN_WIDTH)
        }
        None => Ok(()),
    }
}

/// Ok if each override names mixtures, and each mixture is named once at most.
fn check_router_overrides(moe: &MoeConfig, layers: &[LayerKind]) -> Result<(), KeyError> {
    let mut seen = vec![false; layers.len()];
    for (index, rule) in moe.router_overrides.iter().enumerate() {
        let key = format!("model.ffn.moe.router_overrides[{index}].layers");
        if rule.layers.is_empty() {
            return Err(KeyError::new(key, "is empty", "name at least one layer, or remove the override"));
        }
        for &layer in &rule.layers {
            let (problem, remedy) = match layers.get(layer) {
                None => (
                    format!("but the model has {} layers", layers.len()),
                    format!("use 0..={}", layers.len() - 1),
                ),
                Some(LayerKind::Dense | LayerKind::BlockSparse) => {
                    ("which is dense".into(), "name layers that are mixtures".into())
                }
                Some(LayerKind::Absent) => {
                    ("which has no feed-forward block".into(), "name layers that are mixtures".into())
                }
                Some(LayerKind::Moe) if std::mem::replace(&mut seen[layer], true) => {
                    ("which has a router of its own already".into(), "name each layer once".into())
                }
                Some(LayerKind::Moe) => continue,
            };
            return Err(KeyError::new(key, format!("holds {layer}, {problem}"), remedy));
        }
    }
    Ok(())
}

/// A capacity that no layer heeds is an error, one that some do not heed a note.
pub(super) fn check_capacity(
    written: Option<&MoeConfig>,
    mixtures: &[FfnUse<'_>],
    notes: &mut Vec<String>,
) -> Result<(), KeyError> {
    let Some(capacity) = written.and_then(|moe| moe.capacity.as_ref()) else { return Ok(()) };
    let refusals: Vec<(&FfnUse<'_>, &RouterSpec, KeyError)> = mixtures
        .iter()
        .filter_map(|used| {
            let router = used.ffn.router()?;
            Some((used, router, capacity.validate_selection(&router.config, &router.key).err()?))
        })
        .collect();
    match refusals.first() {
        Some((.., refusal)) if refusals.len() == mixtures.len() => {
            Err(refusal.clone().under("model.ffn.moe.capacity"))
        }
        _ => {
            notes.extend(refusals.iter().map(|(used, router, _)| {
                format!(
                    "`model.ffn.moe.capacity` has no effect in {}, where `{}.selection` decides by itself how many tokens \
                     an expert takes",
                    used.layers_in_words(),
                    router.key
                )
            }));
            Ok(())
        }
    }
}

/// Warning printed for a router that is not causal; `None` if it is causal.
pub(super) fn note_on_causality(used: &FfnUse<'_>) -> Option<String> {
    let router = used.ffn.router()?;
    let (table, what) = match &router.config.selection {
        Selection::ExpertChoice(_) => ("expert_choice", "a token's experts depend on later tokens"),
        Selection::Soft(_) => ("soft", "later tokens are mixed into every output"),
        _ => return None,
    };
    Some(format!(
        "`{}.selection.{table}` in {} is not causal: {what}, so the validation loss sees what it should predict and does \
         not compare with that of a causal router",
        router.key,
        used.layers_in_words()
    ))
}

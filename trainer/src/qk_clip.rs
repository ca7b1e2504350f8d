//! Heads of attention whose logits of a step were too large, made smaller after its update.

use std::collections::BTreeMap;

use switchyard_model::{Affine, AttentionPart, ParameterName, Role, Transformer, with_scaled_logits};

/// The largest logit of each head in a step, by layer.
pub(crate) type MaxLogits = BTreeMap<usize, Vec<f64>>;

/// The parts whose matrices are made smaller.
const CLIPPED: [AttentionPart; 3] = [AttentionPart::Query, AttentionPart::Key, AttentionPart::KeyValue];

/// What the logits of each head are to be multiplied by, in layers with one above `max_logit`: 1, or
/// what brings the largest down to it (Kimi K2, arXiv:2507.20534, algorithm 1). Layers of which
/// `is_frozen` names queries or keys stay as they are.
pub(crate) fn clip_factors(
    max_logits: &MaxLogits,
    max_logit: f64,
    is_frozen: impl Fn(ParameterName) -> bool,
) -> BTreeMap<usize, Vec<f64>> {
    let factors = |logits: &Vec<f64>| logits.iter().map(|logit| max_logit / logit.max(max_logit)).collect();
    let is_large = |logits: &Vec<f64>| logits.iter().any(|logit| *logit > max_logit);
    let clipped =
        max_logits.iter().filter(|(layer, logits)| is_large(logits) && !stays_as_it_is(**layer, &is_frozen));
    clipped.map(|(layer, logits)| (*layer, factors(logits))).collect()
}

/// Whether queries or keys of the layer, or biases of theirs, are frozen, so that none of its heads is
/// clipped.
pub(crate) fn stays_as_it_is(layer: usize, is_frozen: impl Fn(ParameterName) -> bool) -> bool {
    let name = |part, affine| ParameterName::of_layer(layer, Role::Attention(part, affine));
    let either = [Affine::Weight, Affine::Bias];
    CLIPPED.iter().any(|part| either.into_iter().any(|affine| is_frozen(name(*part, affine))))
}

/// Heads that are made smaller by these factors.
pub(crate) fn num_clipped(factors: &BTreeMap<usize, Vec<f64>>) -> usize {
    factors.values().flatten().filter(|factor| **factor < 1.0).count()
}

/// The network with its heads clipped by these factors.
pub(crate) fn clipped(model: Transformer, factors: &BTreeMap<usize, Vec<f64>>) -> Transformer {
    if factors.is_empty() { model } else { with_scaled_logits(model, factors) }
}

//! What a router computes from its gate logits: gates and losses, each with its softmax inside.
//!
//! Shape letters: t tokens, e experts, k experts per token.

mod rows;

use std::sync::Arc;

use rayon::prelude::*;

/// Tokens of one task.
const TASK_TOKENS: usize = 128;

/// Which logits compete for a chosen expert's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateSoftmax {
    /// Those of the chosen experts, so that a token's gates add up to one. The same as the softmax
    /// over all experts, renormalised over the chosen ones.
    OverChosen,
    /// Those of all experts.
    OverAll,
}

/// A mean over tokens of a function of each token's logits.
#[derive(Debug, Clone)]
pub enum RouterLoss {
    /// `sum_e load_e p_e`.
    Load(Arc<[f64]>),
    /// `(log sum_e exp(logit_e))^2`.
    SquareLogPartition,
}

/// Whom each token has chosen, and what the logits were.
#[derive(Debug, Clone, Copy)]
pub struct Chosen<'a> {
    /// `[t, e]`.
    pub logits: &'a [f32],
    /// Ids below e, `[t, k]`.
    pub expert_ids: &'a [u32],
    /// e, at least 1.
    pub num_experts: usize,
    /// k, at least 1.
    pub top_k: usize,
    /// Which logits compete.
    pub softmax: GateSoftmax,
}

impl<'a> Chosen<'a> {
    /// Each token's logits and ids.
    fn tokens(self) -> impl IndexedParallelIterator<Item = (&'a [f32], &'a [u32])> {
        self.logits.par_chunks(self.num_experts).zip(self.expert_ids.par_chunks(self.top_k))
    }
}

/// The gate of each chosen expert, `[t, k]`.
///
/// # Panics
/// If e or k is 0, or an id is not below e.
pub fn gates(chosen: Chosen<'_>) -> Vec<f32> {
    let mut gates = vec![0.0; chosen.expert_ids.len()];
    let tasks = gates.par_chunks_mut(chosen.top_k).zip(chosen.tokens()).with_min_len(TASK_TOKENS);
    tasks.for_each(|(gates, (logits, ids))| rows::gates(gates, logits, ids, chosen.softmax));
    gates
}

/// The gradient of the logits, `[t, e]`, from the gates and their gradient, `[t, k]` each.
///
/// # Panics
/// If e or k is 0, or an id is not below e.
pub fn gates_gradient(chosen: Chosen<'_>, gates: &[f32], dgates: &[f32]) -> Vec<f32> {
    let mut dlogits = vec![0.0; chosen.logits.len()];
    let gates = gates.par_chunks(chosen.top_k).zip(dgates.par_chunks(chosen.top_k));
    let rows = chosen.tokens().zip(gates);
    dlogits.par_chunks_mut(chosen.num_experts).zip(rows).with_min_len(TASK_TOKENS).for_each(
        |(dlogits, ((logits, ids), (gates, dgates)))| {
            rows::gates_gradient(dlogits, logits, ids, gates, dgates, chosen.softmax);
        },
    );
    dlogits
}

/// The mean over tokens of the loss of `logits`, `[t, e]`.
///
/// # Panics
/// If `num_experts` is 0.
pub fn loss(logits: &[f32], num_experts: usize, loss: &RouterLoss) -> f64 {
    let num_tokens = logits.len() / num_experts;
    let mut terms = vec![0.0; num_tokens];
    terms
        .par_iter_mut()
        .zip(logits.par_chunks(num_experts))
        .with_min_len(TASK_TOKENS)
        .for_each(|(term, logits)| *term = rows::loss_term(logits, loss));
    terms.iter().sum::<f64>() / num_tokens as f64
}

/// The gradient of `logits`, `[t, e]`, from that of the mean over tokens.
///
/// # Panics
/// If `num_experts` is 0.
pub fn loss_gradient(logits: &[f32], num_experts: usize, loss: &RouterLoss, dloss: f32) -> Vec<f32> {
    let factor = dloss / (logits.len() / num_experts) as f32;
    let mut dlogits = vec![0.0; logits.len()];
    dlogits
        .par_chunks_mut(num_experts)
        .zip(logits.par_chunks(num_experts))
        .with_min_len(TASK_TOKENS)
        .for_each(|(dlogits, logits)| rows::loss_gradient(dlogits, logits, loss, factor));
    dlogits
}

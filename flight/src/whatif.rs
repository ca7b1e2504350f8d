//! What another `top_k` or capacity would have done to a routing, from its recorded gate scores.
//!
//! The choice is the router's own code on the same logits, so the answer equals that of a run whose
//! router had these logits. It is not what training with the other setting would have led to: the
//! router would have learned otherwise.
//!
//! Shape letters: t tokens, e experts, k experts per token.

use rand::{SeedableRng, rngs::ChaCha8Rng};
use switchyard_model::layers_in_words;
use switchyard_router::{
    DropPolicy, RouterStatistics, RouterSummary, expert_capacity, keep_earliest, keep_largest_gates,
    keep_random, select_top_k,
};

use crate::columns::ScoreRow;

/// The setting asked about.
#[derive(Debug, Clone, PartialEq)]
pub struct WhatIf {
    /// Experts each token is sent to, in `1..=num_experts`.
    pub top_k: usize,
    /// Capacity factor of the experts; absent is dropless.
    pub capacity_factor: Option<f64>,
    /// Which assignments are dropped over capacity.
    pub drop: DropPolicy,
    /// Whether the gates are the softmax over the chosen experts (`renormalise`, or softmax after
    /// selection) and not that over all: it decides which gates are the smallest.
    pub renormalise: bool,
    /// Tokens of one forward pass, which share the capacity; absent means all tokens.
    pub tokens_per_pass: Option<usize>,
}

/// What the setting would have done.
#[derive(Debug, Clone, PartialEq)]
pub struct WhatIfAnswer {
    /// Load, MaxVio, entropies, dropped share: as a run would have recorded them.
    pub summary: RouterSummary,
    /// Assignments that each expert would have taken.
    pub kept_per_expert: Vec<u64>,
    /// Experts that no token would have chosen.
    pub dead_experts: Vec<usize>,
}

/// A question that has no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WhatIfError {
    /// A dense run.
    #[error("the run has no mixture of experts, so there is nothing to ask about its routing")]
    NoMixture,
    /// A router whose choice is not worked out from the recorded scores.
    #[error(
        "the router of {} has `{key}`, with which it takes more than the recorded scores to say who goes where: train a \
         run with the other setting instead",
        layers_in_words(.layers)
    )]
    NotPlain {
        /// The layers that it routes.
        layers: Vec<usize>,
        /// The key that stands in the way.
        key: String,
    },
    /// A capacity that the question cannot express.
    #[error(
        "the run's experts have capacities of their own (`model.ffn.moe.capacity.factor_per_expert`): ask about one \
         capacity factor, or about a dropless layer"
    )]
    FactorPerExpert,
    /// Not that many experts.
    #[error("`top_k` is {top_k}, but the layer has {num_experts} experts: use 1..={num_experts}")]
    TopKOutOfRange {
        /// The value.
        top_k: usize,
        /// Experts of the layer.
        num_experts: usize,
    },
    /// Not a factor.
    #[error("the capacity factor is {factor}: use a positive number, or leave it out for a dropless layer")]
    CapacityFactorOutOfRange {
        /// The value.
        factor: f64,
    },
    /// Passes of no tokens.
    #[error("a forward pass has 0 tokens: use the run's tokens per micro-batch, or leave it out")]
    EmptyPass,
    /// Scores that are not one per token and expert.
    #[error(
        "the recorded scores of layer {layer} are not one per token and expert: token {token} has {num_experts} of {expected}"
    )]
    IncompleteScores {
        /// The layer.
        layer: u32,
        /// The first token with another number of experts.
        token: u32,
        /// Its number of scores.
        num_experts: usize,
        /// That of the first token.
        expected: usize,
    },
}

/// Gate logits of one layer in one step.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerScores {
    /// Experts of the layer.
    pub num_experts: usize,
    /// `[num_tokens, num_experts]`, row-major, in the order of the tokens.
    pub logits_te: Vec<f64>,
}

impl LayerScores {
    /// The scores of `layer` among recorded rows in any order; absent if there are none.
    ///
    /// # Errors
    /// [`WhatIfError::IncompleteScores`].
    pub fn of_layer(rows: &[ScoreRow], layer: u32) -> Result<Option<Self>, WhatIfError> {
        let mut rows: Vec<&ScoreRow> = rows.iter().filter(|row| row.layer == layer).collect();
        rows.sort_by_key(|row| (row.token, row.expert));
        let tokens: Vec<&[&ScoreRow]> = rows.chunk_by(|a, b| a.token == b.token).collect();
        let Some(expected) = tokens.first().map(|scores_e| scores_e.len()) else { return Ok(None) };
        let is_incomplete = |scores_e: &&&[&ScoreRow]| {
            scores_e.len() != expected || (0..).zip(scores_e.iter()).any(|(expert, row)| row.expert != expert)
        };
        if let Some(scores_e) = tokens.iter().find(is_incomplete) {
            let (token, num_experts) = (scores_e[0].token, scores_e.len());
            return Err(WhatIfError::IncompleteScores { layer, token, num_experts, expected });
        }
        let logits_te = rows.iter().map(|row| f64::from(row.logit)).collect();
        Ok(Some(Self { num_experts: expected, logits_te }))
    }
}

/// What `question` would have done to a layer with these gate logits.
///
/// # Errors
/// [`WhatIfError`] for a setting that no router can have.
///
/// # Panics
/// If the logits do not divide into rows of `num_experts`.
pub fn what_if(scores: &LayerScores, question: &WhatIf) -> Result<WhatIfAnswer, WhatIfError> {
    let LayerScores { num_experts, ref logits_te } = *scores;
    check(question, num_experts)?;
    assert!(
        logits_te.len().is_multiple_of(num_experts),
        "{} logits of {num_experts} experts",
        logits_te.len()
    );
    let top_k = question.top_k;
    let pass_len =
        question.tokens_per_pass.map_or(logits_te.len(), |tokens| tokens.saturating_mul(num_experts));
    let mut statistics = RouterStatistics::measure(&[], &[], None, num_experts, top_k);
    let mut kept_per_expert = vec![0; num_experts];
    for logits_te in logits_te.chunks(pass_len.max(1)) {
        let expert_ids_tk = select_top_k(logits_te, num_experts, top_k);
        let keep = slots_kept(logits_te, &expert_ids_tk, num_experts, question);
        let num_kept = keep.iter().filter(|&&kept| kept).count();
        for (&expert, _) in expert_ids_tk.iter().zip(&keep).filter(|&(_, &kept)| kept) {
            kept_per_expert[expert as usize] += 1;
        }
        let pass = RouterStatistics::measure(logits_te, &expert_ids_tk, None, num_experts, top_k);
        statistics.merge(&pass.with_dropped((keep.len() - num_kept) as u64));
    }
    let summary = statistics.summary();
    let dead_experts = (0..num_experts).filter(|&expert| summary.tokens_per_expert[expert] == 0).collect();
    Ok(WhatIfAnswer { summary, kept_per_expert, dead_experts })
}

fn check(question: &WhatIf, num_experts: usize) -> Result<(), WhatIfError> {
    let top_k = question.top_k;
    if !(1..=num_experts).contains(&top_k) {
        return Err(WhatIfError::TopKOutOfRange { top_k, num_experts });
    }
    if question.tokens_per_pass == Some(0) {
        return Err(WhatIfError::EmptyPass);
    }
    match question.capacity_factor {
        Some(factor) if !(factor.is_finite() && factor > 0.0) => {
            Err(WhatIfError::CapacityFactorOutOfRange { factor })
        }
        _ => Ok(()),
    }
}

/// Whether each slot of one forward pass stays: `[t * k]`.
fn slots_kept(logits_te: &[f64], expert_ids_tk: &[u32], num_experts: usize, question: &WhatIf) -> Vec<bool> {
    let Some(factor) = question.capacity_factor else { return vec![true; expert_ids_tk.len()] };
    let num_tokens = logits_te.len() / num_experts;
    let capacities_e = vec![expert_capacity(factor, question.top_k, num_tokens, num_experts); num_experts];
    match question.drop {
        DropPolicy::Position => keep_earliest(expert_ids_tk, &capacities_e),
        DropPolicy::Probability => {
            let gates_tk = gates(logits_te, expert_ids_tk, num_experts, question);
            keep_largest_gates(expert_ids_tk, &gates_tk, &capacities_e)
        }
        DropPolicy::Random => {
            let mut generator = ChaCha8Rng::seed_from_u64(0);
            keep_random(expert_ids_tk, &capacities_e, &mut generator)
        }
    }
}

/// The gates of the chosen experts, `[t * k]`: computed in f64, rounded to the f32 that the router
/// compares.
fn gates(logits_te: &[f64], expert_ids_tk: &[u32], num_experts: usize, question: &WhatIf) -> Vec<f32> {
    let tokens = logits_te.chunks_exact(num_experts).zip(expert_ids_tk.chunks_exact(question.top_k));
    let gates_of_token = |(logits_e, chosen_k): (&[f64], &[u32])| {
        let chosen: Vec<f64> = chosen_k.iter().map(|&expert| logits_e[expert as usize]).collect();
        let max = chosen[0]; // Best first.
        let rivals = if question.renormalise { &chosen } else { logits_e };
        let partition: f64 = rivals.iter().map(|&logit| (logit - max).exp()).sum();
        chosen.iter().map(|&logit| ((logit - max).exp() / partition) as f32).collect::<Vec<_>>()
    };
    tokens.flat_map(gates_of_token).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn question(top_k: usize, capacity_factor: Option<f64>) -> WhatIf {
        WhatIf {
            top_k,
            capacity_factor,
            drop: DropPolicy::Position,
            renormalise: true,
            tokens_per_pass: None,
        }
    }

    fn scores(num_experts: usize, logits_te: &[f64]) -> LayerScores {
        LayerScores { num_experts, logits_te: logits_te.to_vec() }
    }

    fn score_rows(layer: u32, num_experts: u32, logits_te: &[f64]) -> Vec<ScoreRow> {
        let row = |(i, &logit): (u32, &f64)| ScoreRow {
            step: 1,
            layer,
            token: i / num_experts,
            token_id: 0,
            domain: None,
            expert: i % num_experts,
            logit: logit as f32,
            rank: None,
            kept: false,
            gate: 0.0,
        };
        (0..).zip(logits_te).map(row).collect()
    }

    /// Four tokens, three experts: first choices 0, 0, 0, 1; second choices 1, 2, 1, 0.
    const LOGITS: [f64; 12] = [3.0, 2.0, 1.0, 3.0, 0.0, 2.0, 5.0, 1.0, 0.0, 1.0, 2.0, 0.0];

    #[test]
    fn a_smaller_capacity_by_hand() {
        let answer = what_if(&scores(3, &LOGITS), &question(1, Some(1.0))).unwrap();
        assert_eq!(answer.summary.tokens_per_expert, [3, 1, 0]);
        assert_eq!(answer.kept_per_expert, [2, 1, 0]); // Capacity ceil(4 / 3) = 2.
        assert_eq!(answer.dead_experts, [2]);
        assert_eq!(answer.summary.dropped_fraction, 0.25);
        assert_eq!(answer.summary.max_violation, 1.25); // 3 over 4/3, minus 1.
    }

    #[test]
    fn a_larger_k_wakes_a_dead_expert() {
        let answer = what_if(&scores(3, &LOGITS), &question(2, None)).unwrap();
        assert_eq!(answer.summary.tokens_per_expert, [4, 3, 1]);
        assert_eq!(answer.kept_per_expert, [4, 3, 1]);
        assert!(answer.dead_experts.is_empty());
        assert_eq!(answer.summary.dropped_fraction, 0.0);
    }

    #[test]
    fn each_forward_pass_has_its_own_capacity() {
        let two_passes = WhatIf { tokens_per_pass: Some(2), ..question(1, Some(1.5)) };
        let answer = what_if(&scores(3, &LOGITS), &two_passes).unwrap();
        assert_eq!(answer.kept_per_expert, [2, 1, 0]); // Capacity 1 in each of the two.
        let one_pass = what_if(&scores(3, &LOGITS), &question(1, Some(2.25))).unwrap();
        assert_eq!(one_pass.kept_per_expert, [3, 1, 0]); // Capacity 3 in the one.
    }

    #[test]
    fn renormalising_changes_which_gate_is_the_smallest() {
        // Over all experts the first token's gate is the larger one, over the chosen two the
        // second's.
        let logits = [2.0, 1.9, -9.0, 1.0, 0.0, 0.8];
        let base = WhatIf { drop: DropPolicy::Probability, ..question(2, Some(0.01)) };
        let kept = |renormalise| {
            let question = WhatIf { renormalise, ..base.clone() };
            let ids = select_top_k(&logits, 3, 2);
            slots_kept(&logits, &ids, 3, &question)
        };
        assert!(kept(false)[0]);
        assert!(!kept(true)[0]);
    }

    #[test]
    fn a_question_without_an_answer_says_what_to_ask_instead() {
        let message = |question: WhatIf| what_if(&scores(3, &LOGITS), &question).unwrap_err().to_string();
        assert_eq!(message(question(4, None)), "`top_k` is 4, but the layer has 3 experts: use 1..=3");
        assert!(
            message(question(1, Some(0.0))).starts_with("the capacity factor is 0: use a positive number")
        );
        assert!(message(WhatIf { tokens_per_pass: Some(0), ..question(1, None) }).contains("has 0 tokens"));
    }

    #[test]
    fn recorded_rows_become_logits_in_the_order_of_the_tokens() {
        let mut rows = score_rows(2, 3, &LOGITS);
        rows.extend(score_rows(5, 4, &LOGITS));
        rows.reverse();
        assert_eq!(LayerScores::of_layer(&rows, 2).unwrap(), Some(scores(3, &LOGITS)));
        assert_eq!(LayerScores::of_layer(&rows, 5).unwrap(), Some(scores(4, &LOGITS)));
        assert_eq!(LayerScores::of_layer(&rows, 0).unwrap(), None);
        rows.retain(|row| (row.layer, row.token, row.expert) != (2, 1, 2));
        let message = LayerScores::of_layer(&rows, 2).unwrap_err().to_string();
        assert!(message.ends_with("token 1 has 2 of 3"), "{message}");
    }

    proptest! {
        /// The oracle walks the tokens and counts; it shares nothing with the router.
        #[test]
        fn load_and_drops_are_those_of_a_plain_loop(
            logits in prop::collection::vec(-3.0..3.0_f64, 48),
            num_experts in prop::sample::select(vec![1_usize, 2, 4, 6]),
            factor in prop::option::of(0.1..3.0_f64),
        ) {
            let num_tokens = 48 / num_experts;
            let capacity = factor.map_or(u64::MAX, |factor| ((factor * num_tokens as f64 / num_experts as f64).ceil() as u64).max(1));
            let mut load = vec![0_u64; num_experts];
            for row in logits.chunks(num_experts) {
                let best = (0..num_experts).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
                load[best] += 1;
            }
            let answer = what_if(&scores(num_experts, &logits), &question(1, factor)).unwrap();
            prop_assert_eq!(&answer.summary.tokens_per_expert, &load);
            let kept: Vec<u64> = load.iter().map(|&load| load.min(capacity)).collect();
            prop_assert_eq!(&answer.kept_per_expert, &kept);
            let dropped = 1.0 - kept.iter().sum::<u64>() as f64 / num_tokens as f64;
            prop_assert!((answer.summary.dropped_fraction - dropped).abs() < 1e-12);
        }

        #[test]
        fn more_capacity_never_drops_more(
            logits in prop::collection::vec(-3.0..3.0_f64, 64),
            factor in 0.1..2.0_f64,
            drop in prop::sample::select(vec![DropPolicy::Position, DropPolicy::Probability]),
        ) {
            let dropped = |factor| {
                let question = WhatIf { drop, tokens_per_pass: Some(8), ..question(2, Some(factor)) };
                what_if(&scores(4, &logits), &question).unwrap().summary.dropped_fraction
            };
            prop_assert!(dropped(factor * 1.5) <= dropped(factor));
            prop_assert_eq!(dropped(2.0), 0.0); // E / k: room for every token in every expert.
        }
    }
}

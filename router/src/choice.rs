//! The host's part of routing: from scores to who goes where.
//!
//! Shape letters: t tokens, e experts, k slots per token.

use std::borrow::Cow;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::expert_choice::pad;
use crate::noise::Purpose;
use crate::{
    BiasRule, ExpertChoice, RouterConfig, RouterInput, RouterNoise, RouterPass, RouterStatistics, Selection,
    TokenHash, expert_capacity, expert_choice, forced_uniform_experts, keep_second_at_random, random_experts,
    round_tokens, sample_second_expert, select_top_k, sinkhorn_plan,
};

/// Tokens whose choice is made at once.
const BLOCK_TOKENS: usize = 256;

/// Which experts each token goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Experts of each token: `[t, k]`, row-major.
    pub expert_ids_tk: Vec<u32>,
    /// Whether a slot is a choice at all: `[t, k]`. None if all are.
    pub keep_tk: Option<Vec<bool>>,
    /// Slots of each token.
    pub slots_per_token: usize,
}

impl Choice {
    /// The experts of each token on a device: `[t, k]`.
    pub(crate) fn upload(&self, device: &Device) -> Tensor<2, Int> {
        let ids: Vec<i32> = self.expert_ids_tk.iter().map(|&id| id as i32).collect();
        let shape_tk = [ids.len() / self.slots_per_token, self.slots_per_token];
        Tensor::from_data(TensorData::new(ids, shape_tk), device)
    }
}

/// What the gate said, on the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostScores<'a> {
    /// `[t, e]`, row-major.
    pub(crate) logits_te: &'a [f64],
    pub(crate) bias_e: Option<&'a [f64]>,
    pub(crate) num_experts: usize,
}

impl RouterConfig {
    /// The choice of every token.
    pub(crate) fn choose(&self, scores: HostScores<'_>, input: &RouterInput<'_>) -> Choice {
        let HostScores { logits_te, num_experts, .. } = scores;
        let (top_k, num_tokens) = (self.top_k, logits_te.len() / num_experts);
        let best = |scores_te: &[f64]| {
            select_in_blocks(scores_te, num_experts, |block| select_top_k(block, num_experts, top_k))
        };
        let training = match input.pass {
            RouterPass::Training { noise, .. } => Some(noise),
            RouterPass::Evaluation | RouterPass::Generation => None,
        };
        let expert_ids_tk = match (&self.selection, training) {
            (Selection::TopK, _) => self.best_by_score(scores),
            (Selection::RandomSecond(second), Some(noise)) => {
                return random_second(second.sampled, scores, noise);
            }
            (Selection::Sinkhorn(config), Some(_)) => best(&sinkhorn_plan(logits_te, num_experts, config)),
            (Selection::ExpertChoice(config), _) if input.pass != RouterPass::Generation => {
                let capacity = expert_capacity(config.capacity_factor, top_k, num_tokens, num_experts);
                return chosen_by_experts(expert_choice(&self.scores(scores), num_experts, capacity));
            }
            (Selection::Hash(hash), _) => {
                let num_ids = input.token_ids_t.len();
                assert!(num_ids == num_tokens, "hash routing of {num_tokens} tokens by {num_ids} token ids");
                TokenHash::random(num_experts, top_k, hash.seed).experts_of(input.token_ids_t)
            }
            (Selection::Random {}, noise) => {
                let noise = noise.unwrap_or(RouterNoise::new(0));
                random_experts(num_tokens, num_experts, top_k, &mut noise.generator(Purpose::Experts))
            }
            (Selection::ForcedUniform {}, _) => forced_uniform_experts(num_tokens, num_experts, top_k),
            (Selection::Soft(_), _) => unreachable!("soft mixing does not choose"),
            (
                Selection::Noisy(_)
                | Selection::RandomSecond(_)
                | Selection::Sinkhorn(_)
                | Selection::SparseMixer(_)
                | Selection::ExpertChoice(_),
                _,
            ) => best(logits_te),
        };
        Choice { expert_ids_tk, keep_tk: None, slots_per_token: top_k }
    }

    /// The best experts of each token by logit, or by score where scores meet a bias or each other.
    /// Logits order experts as their scores do, and still tell them apart where a score rounds to 0
    /// or 1.
    fn best_by_score(&self, scores: HostScores<'_>) -> Vec<u32> {
        let HostScores { logits_te, bias_e, num_experts } = scores;
        let best = |scores_te: &[f64]| select_top_k(scores_te, num_experts, self.top_k);
        if bias_e.is_none() && self.groups.is_none() {
            return select_in_blocks(logits_te, num_experts, best);
        }
        select_in_blocks(logits_te, num_experts, |logits_te| {
            let scores_te = self.biased_scores(HostScores { logits_te, ..scores });
            match &self.groups {
                Some(groups) => best(&groups.mask_scores(&scores_te, num_experts)),
                None => best(&scores_te),
            }
        })
    }

    /// `plain`, a choice of the best experts, with the tokens of each expert rounded to a multiple of
    /// the tile by the scores that it was made by; `None` without a tile.
    pub(crate) fn rounded(&self, plain: &Choice, scores: HostScores<'_>) -> Option<Choice> {
        let rounding = self.token_rounding.as_ref()?;
        let scores_te = self.biased_scores(scores);
        let ids_tk = (&plain.expert_ids_tk[..], plain.slots_per_token);
        let experts_of_token = round_tokens(ids_tk, (&scores_te, scores.num_experts), rounding.tile);
        // Each token keeps the slots of its plain choice, by which its gates are renormalised; those of
        // experts that dropped it are no choices.
        let all_of_token = |(plain, now): (&[u32], &Vec<u32>)| {
            let added = now.iter().filter(|expert| !plain.contains(expert));
            plain.iter().chain(added).copied().collect()
        };
        let tokens = plain.expert_ids_tk.chunks(plain.slots_per_token).zip(&experts_of_token);
        let mut choice = chosen_by_experts(pad(&tokens.map(all_of_token).collect::<Vec<_>>()));
        let slots = choice.expert_ids_tk.chunks(choice.slots_per_token).zip(&experts_of_token);
        let keep_tk = slots.flat_map(|(ids, now)| ids.iter().map(|expert| now.contains(expert)));
        choice.keep_tk = Some(keep_tk.collect());
        Some(choice)
    }

    /// Scores, and the bias where there is one.
    fn biased_scores(&self, scores: HostScores<'_>) -> Vec<f64> {
        let mut scores_te = self.scores(scores);
        if let Some(bias_e) = scores.bias_e {
            let biases = bias_e.iter().cycle();
            scores_te.iter_mut().zip(biases).for_each(|(score, bias)| *score += bias);
        }
        scores_te
    }

    /// Scores between 0 and 1: sigmoids, or each token's softmax. `[t, e]`, row-major.
    pub(crate) fn scores(&self, scores: HostScores<'_>) -> Vec<f64> {
        let HostScores { logits_te, num_experts, .. } = scores;
        if self.sigmoid.is_some() {
            return logits_te.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
        }
        logits_te.chunks_exact(num_experts).flat_map(softmax).collect()
    }

    /// Logits whose softmax is the normalised score: those of the gate, or the logarithms of its
    /// sigmoids.
    pub fn log_scores<'a>(&self, logits_te: &'a [f64]) -> Cow<'a, [f64]> {
        if self.sigmoid.is_none() {
            return Cow::Borrowed(logits_te);
        }
        logits_te.iter().map(|logit| logit.min(0.0) - (-logit.abs()).exp().ln_1p()).collect()
    }

    /// Whether the bias is solved for from a step's scores.
    pub(crate) fn balances_by_quantile(&self) -> bool {
        matches!(self.bias, Some(BiasRule::Quantile {}))
    }
}

/// Statistics of a choice, in parallel. Tokens are cut into blocks that do not depend on the number
/// of threads, and the blocks' sums are added in order.
pub(crate) fn statistics(log_scores_te: &[f64], choice: &Choice, num_experts: usize) -> RouterStatistics {
    let k = choice.slots_per_token;
    let measure = |(block, log_scores_te): (usize, &[f64])| {
        let first = block * BLOCK_TOKENS * k;
        let slots = first..first + log_scores_te.len() / num_experts * k;
        let keep_tk = choice.keep_tk.as_ref().map(|keep_tk| &keep_tk[slots.clone()]);
        RouterStatistics::measure(log_scores_te, &choice.expert_ids_tk[slots], keep_tk, num_experts, k)
    };
    let blocks: Vec<_> =
        log_scores_te.par_chunks(BLOCK_TOKENS * num_experts).enumerate().map(measure).collect();
    let mut all = RouterStatistics::measure(&[], &[], None, num_experts, k);
    blocks.iter().for_each(|block| all.merge(block));
    all
}

fn select_in_blocks(
    scores_te: &[f64],
    num_experts: usize,
    select: impl Fn(&[f64]) -> Vec<u32> + Send + Sync,
) -> Vec<u32> {
    scores_te.par_chunks(BLOCK_TOKENS * num_experts).map(select).collect::<Vec<_>>().concat()
}

fn random_second(sampled: bool, scores: HostScores<'_>, noise: RouterNoise) -> Choice {
    let HostScores { logits_te, num_experts, .. } = scores;
    let mut generator = noise.generator(Purpose::SecondExpert);
    let expert_ids_tk = match sampled {
        true => sample_second_expert(logits_te, num_experts, &mut generator),
        false => select_top_k(logits_te, num_experts, 2),
    };
    let keep_tk = (!sampled).then(|| {
        let gates_tk: Vec<f64> = logits_te
            .chunks_exact(num_experts)
            .zip(expert_ids_tk.chunks_exact(2))
            .flat_map(|(logits_e, ids)| softmax(&[logits_e[ids[0] as usize], logits_e[ids[1] as usize]]))
            .collect();
        keep_second_at_random(&gates_tk, &mut generator)
    });
    Choice { expert_ids_tk, keep_tk, slots_per_token: 2 }
}

fn chosen_by_experts(chosen: ExpertChoice) -> Choice {
    let ExpertChoice { slots_per_token, expert_ids_tk, keep_tk } = chosen;
    Choice { expert_ids_tk, keep_tk: Some(keep_tk), slots_per_token }
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = logits.iter().map(|logit| (logit - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|exp| exp / sum).collect()
}

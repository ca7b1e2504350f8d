//! The recorded scores of a step.
//!
//! Shape letters: t tokens, e experts, k slots per token.

use std::iter;

use switchyard_experts::Route;
use switchyard_model::Transformer;
use switchyard_router::{RouterConfig, Selection, SoftmaxOrder, sparse_mixer_gates};

use crate::routed_pass::RoutedPass;
use switchyard_flight::columns::ScoreRow;

/// Most rows of one step: compressed, they are held in memory, about 10 bytes each.
const MAX_ROWS: usize = 1 << 22;

/// As many of the step's first passes as have scores for [`MAX_ROWS`] rows together, so that a
/// pass, whose tokens share the capacity, is there as a whole or not at all. None if the first one
/// has more already.
pub(super) fn recordable<'a>(passes: &'a [RoutedPass], model: &Transformer) -> &'a [RoutedPass] {
    let num_experts: usize = model.moe_layers().map(|(_, moe)| moe.router.num_experts()).sum();
    let mut num_rows = 0;
    let fits = |pass: &&RoutedPass| {
        num_rows += pass.token_ids_t.len() * num_experts;
        num_rows <= MAX_ROWS
    };
    let num_passes = passes.iter().take_while(fits).count();
    &passes[..num_passes]
}

/// One row per layer, token and expert; tokens are counted over the step's micro-batches.
/// `has_domains` says whether the corpus knows them. There can be millions: each is made when it is
/// asked for.
pub(super) fn score_rows<'a>(
    step: u64,
    passes: &'a [RoutedPass],
    model: &'a Transformer,
    has_domains: bool,
) -> impl Iterator<Item = ScoreRow> + 'a {
    model.moe_layers().flat_map(move |(layer, moe)| {
        let with_route = passes.iter().filter_map(move |pass| {
            let route = pass.layer(layer).and_then(|routed| routed.route.as_ref())?;
            Some((pass, LayerScores { step, layer: layer as u32, config: moe.router.config(), route }))
        });
        let mut first_token = 0;
        with_route.flat_map(move |(pass, scores)| {
            let first_of_pass = first_token;
            first_token += pass.token_ids_t.len() as u32;
            scores.rows(pass, first_of_pass, has_domains)
        })
    })
}

/// The experts that row `row` of a pass over `num_rows` reached, with their gates, in the order of
/// choice.
pub(crate) fn chosen_gates(
    config: &RouterConfig,
    route: &Route,
    num_rows: usize,
    row: usize,
) -> Vec<(u32, f32)> {
    let scores = LayerScores { step: 0, layer: 0, config, route };
    let (k, num_experts) = (route.choice.slots_per_token, route.logits_te.len() / num_rows.max(1));
    let chosen = scores.chosen(row * k..(row + 1) * k);
    let logits_e = &route.logits_te[row * num_experts..][..num_experts];
    let gates = scores.gates(logits_e, row * k..(row + 1) * k, &chosen);
    let slots = chosen.iter().zip(gates).filter(|(slot, _)| slot.is_kept);
    slots.map(|(slot, gate)| (slot.expert, gate)).collect()
}

/// Scores of one layer in one pass.
#[derive(Clone, Copy)]
struct LayerScores<'a> {
    step: u64,
    layer: u32,
    config: &'a RouterConfig,
    route: &'a Route,
}

impl<'a> LayerScores<'a> {
    fn rows(
        self,
        pass: &'a RoutedPass,
        first_token: u32,
        has_domains: bool,
    ) -> impl Iterator<Item = ScoreRow> + 'a {
        let Self { step, layer, route, .. } = self;
        let (k, num_tokens) = (route.choice.slots_per_token, pass.token_ids_t.len());
        let num_experts = route.logits_te.len() / num_tokens.max(1);
        let tokens = (0..num_tokens).zip(pass.token_ids_t.iter()).zip(pass.domains_of_tokens());
        let rows_of_token = move |((token, &token_id), domain): ((usize, &u32), u32)| {
            let logits_e = &route.logits_te[token * num_experts..][..num_experts];
            let chosen = self.chosen(token * k..(token + 1) * k);
            let gates = self.gates(logits_e, token * k..(token + 1) * k, &chosen);
            (0_u32..).zip(logits_e).map(move |(expert, &logit)| {
                let rank = chosen.iter().position(|slot| slot.expert == expert);
                ScoreRow {
                    step,
                    layer,
                    token: first_token + token as u32,
                    token_id,
                    domain: has_domains.then_some(domain),
                    expert,
                    logit: logit as f32,
                    rank: rank.map(|rank| rank.min(u8::MAX.into()) as u8),
                    kept: rank.is_some_and(|rank| chosen[rank].is_kept),
                    gate: rank.map_or(0.0, |rank| gates[rank]),
                }
            })
        };
        tokens.flat_map(rows_of_token)
    }

    /// The gates of the chosen slots among `slots`, those of one token.
    fn gates(self, logits_e: &[f64], slots: std::ops::Range<usize>, chosen: &[ChosenSlot]) -> Vec<f32> {
        let ids: Vec<u32> = chosen.iter().map(|slot| slot.expert).collect();
        // A token whose experts are rounded to tiles has its plain choice first.
        let plain = match self.config.token_rounding {
            Some(_) => &self.route.choice.expert_ids_tk[slots][..self.config.top_k],
            None => &ids,
        };
        gates(self.config, logits_e, &ids, plain)
    }

    /// The slots that are choices, in order.
    fn chosen(&self, slots: std::ops::Range<usize>) -> Vec<ChosenSlot> {
        let Route { choice, kept_tk, .. } = self.route;
        let is_choice = |slot: &usize| choice.keep_tk.as_ref().is_none_or(|keep_tk| keep_tk[*slot]);
        let chosen = |slot: usize| ChosenSlot {
            expert: choice.expert_ids_tk[slot],
            is_kept: kept_tk.as_ref().is_none_or(|kept_tk| kept_tk[slot]),
        };
        slots.filter(is_choice).map(chosen).collect()
    }
}

struct ChosenSlot {
    expert: u32,
    is_kept: bool,
}

/// The gates of a token's chosen experts, from its gate logits; renormalised over those of `plain`.
/// The device computes them in f32; these are f64, rounded.
fn gates(config: &RouterConfig, logits_e: &[f64], chosen: &[u32], plain: &[u32]) -> Vec<f32> {
    if !config.learns() {
        return iter::repeat_n((1.0 / config.top_k as f64) as f32, chosen.len()).collect();
    }
    let scores_e = config.log_scores(logits_e);
    let scores_of = |ids: &[u32]| ids.iter().map(|&expert| scores_e[expert as usize]).collect::<Vec<f64>>();
    let (chosen, plain) = (scores_of(chosen), scores_of(plain));
    let over_chosen = config.renormalise && !matches!(config.selection, Selection::ExpertChoice(_));
    let scaling = config.gate_scale();
    if let Selection::SparseMixer(mixer) = &config.selection {
        let gates = sparse_mixer_gates(logits_e, mixer.jitter);
        return gates.iter().map(|gate| (scaling * gate) as f32).collect();
    }
    match &config.sigmoid {
        Some(_) if !over_chosen => chosen.iter().map(|score| (scaling * score.exp()) as f32).collect(),
        _ => {
            let rivals = if over_chosen || config.softmax == SoftmaxOrder::AfterSelection {
                plain.as_slice()
            } else {
                &*scores_e
            };
            let max = rivals.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let partition: f64 = rivals.iter().map(|score| (score - max).exp()).sum();
            chosen.iter().map(|score| (scaling * (score - max).exp() / partition) as f32).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_follow_the_order_of_softmax_and_selection() {
        let scores = [1.0_f64.ln(), 2.0_f64.ln(), 5.0_f64.ln()];
        let mut config = RouterConfig::top_k(2);
        let rounded = |config: &RouterConfig| {
            gates(config, &scores, &[2, 1], &[2, 1])
                .iter()
                .map(|gate| (gate * 1000.0).round())
                .collect::<Vec<_>>()
        };
        assert_eq!(rounded(&config), [714.0, 286.0]); // 5/7 and 2/7.
        config.renormalise = false;
        assert_eq!(rounded(&config), [625.0, 250.0]); // 5/8 and 2/8.
        config.softmax = SoftmaxOrder::AfterSelection;
        assert_eq!(rounded(&config), [714.0, 286.0]);
    }

    /// An added expert weighs by the scores of those that the token chose itself, of which one may have
    /// dropped it.
    #[test]
    fn gates_of_rounded_tokens_are_renormalised_over_the_plain_choice() {
        let scores = [1.0_f64.ln(), 2.0_f64.ln(), 5.0_f64.ln()];
        let config = RouterConfig::top_k(2);
        let gates = gates(&config, &scores, &[2, 0], &[2, 1]);
        assert_eq!(gates.iter().map(|gate| (gate * 1000.0).round()).collect::<Vec<_>>(), [714.0, 143.0]);
    }
}

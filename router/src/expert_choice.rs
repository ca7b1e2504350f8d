//! Expert choice: each expert picks its best tokens (Zhou et al., arXiv:2202.09368).
//!
//! Shape letters: t tokens, e experts, k slots per token.

use crate::selection::best_first;

/// The experts that picked each token, in equally many slots per token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertChoice {
    /// Largest number of experts that picked one token, at least 1.
    pub slots_per_token: usize,
    /// Experts of each token, `[t, k]`, row-major: first those that picked it, ascending; then, as
    /// padding, the lowest of the others.
    pub expert_ids_tk: Vec<u32>,
    /// Whether the slot's expert picked the token: `[t, k]`. Padding is never read.
    pub keep_tk: Vec<bool>,
}

/// The choice in which every expert takes the `capacity` tokens with the highest scores for it, or
/// all if there are fewer (arXiv:2202.09368, eq. 1-3, where `capacity` is k and the scores are each
/// token's softmax over experts). Ties go to the earlier token; NaN ranks below everything. A token
/// may be picked by several experts or by none.
///
/// A token's place depends on the other tokens of the batch, later ones included: not for
/// autoregressive decoding.
///
/// # Shapes
/// - `scores_te`: `[num_tokens, num_experts]`, row-major
///
/// # Panics
/// If there are no experts, or the scores do not divide into rows of `num_experts`.
pub fn expert_choice(scores_te: &[f64], num_experts: usize, capacity: usize) -> ExpertChoice {
    let rows = scores_te.chunks_exact(num_experts);
    assert!(rows.remainder().is_empty(), "{} scores for {num_experts} experts", scores_te.len());
    let mut experts_of_token = vec![Vec::new(); rows.len()];
    for expert in 0..num_experts {
        for token in best_tokens(scores_te, num_experts, expert, capacity) {
            experts_of_token[token].push(expert as u32);
        }
    }
    pad(&experts_of_token)
}

fn best_tokens(scores_te: &[f64], num_experts: usize, expert: usize, capacity: usize) -> Vec<usize> {
    let score = |token: usize| scores_te[token * num_experts + expert];
    let mut tokens: Vec<usize> = (0..scores_te.len() / num_experts).collect();
    tokens.sort_by(|&a, &b| best_first(score(a), score(b))); // Stable: equal scores stay in token order.
    tokens.truncate(capacity);
    tokens
}

/// The experts of each token, distinct, in equally many slots.
pub(crate) fn pad(experts_of_token: &[Vec<u32>]) -> ExpertChoice {
    let slots_per_token = experts_of_token.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let num_slots = experts_of_token.len() * slots_per_token;
    let (mut expert_ids_tk, mut keep_tk) = (Vec::with_capacity(num_slots), Vec::with_capacity(num_slots));
    for experts in experts_of_token {
        // No expert picks a token twice, so there are at least as many experts as slots.
        let padding = (0..).filter(|expert| !experts.contains(expert));
        expert_ids_tk.extend(experts.iter().copied().chain(padding).take(slots_per_token));
        keep_tk.extend((0..slots_per_token).map(|slot| slot < experts.len()));
    }
    ExpertChoice { slots_per_token, expert_ids_tk, keep_tk }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tokens of each expert, ascending.
    fn tokens_of(choice: &ExpertChoice, expert: u32) -> Vec<usize> {
        let slots = choice.expert_ids_tk.iter().zip(&choice.keep_tk).enumerate();
        slots
            .filter(|&(_, (&id, &keep))| keep && id == expert)
            .map(|(slot, _)| slot / choice.slots_per_token)
            .collect()
    }

    /// Expert 0 takes tokens 0 and 2, expert 1 tokens 0 and 1, expert 2 tokens 0 and 2.
    #[test]
    fn golden_values() {
        let scores = [
            0.5, 0.3, 0.2, //
            0.1, 0.9, 0.0, //
            0.4, 0.1, 0.5,
        ];
        let choice = expert_choice(&scores, 3, 2);
        assert_eq!(choice.slots_per_token, 3);
        assert_eq!(choice.expert_ids_tk, [0, 1, 2, 1, 0, 2, 0, 2, 1]);
        assert_eq!(choice.keep_tk, [true, true, true, true, false, false, true, true, false]);
    }

    #[test]
    fn ties_go_to_the_earlier_token_and_nan_ranks_last() {
        assert_eq!(tokens_of(&expert_choice(&[0.5; 4], 1, 2), 0), [0, 1]);
        let choice = expert_choice(&[f64::NAN, f64::NEG_INFINITY, 0.0, -0.0], 1, 3);
        assert_eq!(tokens_of(&choice, 0), [1, 2, 3]);
    }

    #[test]
    fn an_unpicked_token_still_has_a_slot() {
        let choice = expert_choice(&[0.9, 0.9, 0.1, 0.1], 2, 1);
        assert_eq!(choice.expert_ids_tk, [0, 1, 0, 1]);
        assert_eq!(choice.keep_tk, [true, true, false, false]);
        let nothing = expert_choice(&[0.9, 0.1], 1, 0);
        assert_eq!((nothing.slots_per_token, nothing.keep_tk), (1, vec![false; 2]));
    }

    #[test]
    fn no_tokens_choose_nothing() {
        let choice = expert_choice(&[], 3, 2);
        assert_eq!(choice, ExpertChoice { slots_per_token: 1, expert_ids_tk: vec![], keep_tk: vec![] });
    }

    proptest! {
        #[test]
        fn every_expert_takes_its_best_tokens_up_to_capacity(
            scores in prop::collection::vec(
                prop_oneof![3 => 0.0..1.0_f64, 1 => prop::sample::select(vec![f64::NAN, 0.5, 1e4, -1e4])],
                24,
            ),
            num_experts in prop::sample::select(vec![1_usize, 2, 3, 6, 12, 24]),
            capacity in 0_usize..30,
        ) {
            let num_tokens = 24 / num_experts;
            let choice = expert_choice(&scores, num_experts, capacity);
            let rank = |token: usize, expert: u32| {
                let score = scores[token * num_experts + expert as usize];
                if score.is_nan() { f64::NEG_INFINITY } else { score }
            };
            let mut num_kept = 0;
            for expert in 0..num_experts as u32 {
                let taken = tokens_of(&choice, expert);
                prop_assert_eq!(taken.len(), capacity.min(num_tokens));
                prop_assert!(taken.windows(2).all(|pair| pair[0] < pair[1]), "a token taken twice: {:?}", taken);
                let smallest_kept = taken.iter().map(|&t| rank(t, expert)).fold(f64::INFINITY, f64::min);
                let mut left = (0..num_tokens).filter(|token| !taken.contains(token));
                prop_assert!(left.all(|token| rank(token, expert) <= smallest_kept));
                num_kept += taken.len();
            }
            prop_assert_eq!(choice.keep_tk.iter().filter(|&&keep| keep).count(), num_kept);
        }

        #[test]
        fn a_token_has_distinct_experts_and_its_own_come_first_in_order(
            scores in prop::collection::vec(0.0..1.0_f64, 24),
            num_experts in prop::sample::select(vec![1_usize, 2, 3, 6, 12]),
            capacity in 1_usize..8,
        ) {
            let choice = expert_choice(&scores, num_experts, capacity);
            let k = choice.slots_per_token;
            prop_assert_eq!(choice.expert_ids_tk.len(), 24 / num_experts * k);
            let mut most = 0;
            for (ids, keep) in choice.expert_ids_tk.chunks(k).zip(choice.keep_tk.chunks(k)) {
                let picked = keep.iter().take_while(|&&keep| keep).count();
                prop_assert!(keep[picked..].iter().all(|&keep| !keep));
                prop_assert!(ids[..picked].windows(2).all(|pair| pair[0] < pair[1]));
                let mut sorted = ids.to_vec();
                sorted.sort_unstable();
                sorted.dedup();
                prop_assert_eq!(sorted.len(), k);
                prop_assert!((sorted[k - 1] as usize) < num_experts);
                most = most.max(picked);
            }
            prop_assert_eq!(k, most.max(1));
        }
    }
}

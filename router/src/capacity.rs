//! Which assignments stay when an expert takes only so many tokens.
//!
//! Slot `t * k + s` is the s-th choice of token t. A token never chooses one expert twice, so
//! inside an expert the order of slots is the order of tokens.
//!
//! Shape letters: t tokens, e experts, k experts per token.

use std::cmp::Ordering;

use rand::Rng;

use crate::selection::best_first;

/// Tokens one expert takes: `ceil(factor * top_k * num_tokens / num_experts)`, at least 1
/// (Switch, arXiv:2101.03961, eq. 3, with the factor k of GShard).
pub fn expert_capacity(factor: f64, top_k: usize, num_tokens: usize, num_experts: usize) -> usize {
    let even_share = (top_k * num_tokens) as f64 / num_experts as f64;
    ((factor * even_share).ceil() as usize).max(1)
}

/// Whether each slot stays when every expert keeps its earliest tokens of the batch, whichever of
/// the token's choices it was: `[t * k]`.
///
/// # Shapes
/// - `capacities_e`: `[num_experts]`, tokens each expert takes
///
/// # Panics
/// If an expert id has no capacity.
pub fn keep_earliest(expert_ids_tk: &[u32], capacities_e: &[usize]) -> Vec<bool> {
    keep_first(expert_ids_tk, capacities_e, |_, _| Ordering::Equal)
}

/// Whether each slot stays when every expert keeps its largest gates: `[t * k]`. Ties go to the
/// earlier token; NaN ranks lowest.
///
/// # Shapes
/// - `capacities_e`: `[num_experts]`, tokens each expert takes
///
/// # Panics
/// If an expert id has no capacity, or there is not one gate per id.
pub fn keep_largest_gates(expert_ids_tk: &[u32], gates_tk: &[f32], capacities_e: &[usize]) -> Vec<bool> {
    assert!(
        expert_ids_tk.len() == gates_tk.len(),
        "{} expert ids but {} gates",
        expert_ids_tk.len(),
        gates_tk.len()
    );
    let gate = |slot: usize| f64::from(gates_tk[slot]);
    keep_first(expert_ids_tk, capacities_e, |a, b| best_first(gate(a), gate(b)))
}

/// Whether each slot stays when every expert keeps a random set of its tokens, all sets equally
/// likely: `[t * k]`. Unlike the order of the batch, this drops late tokens no more often than
/// early ones.
///
/// # Shapes
/// - `capacities_e`: `[num_experts]`, tokens each expert takes
///
/// # Panics
/// If an expert id has no capacity.
pub fn keep_random(expert_ids_tk: &[u32], capacities_e: &[usize], rng: &mut impl Rng) -> Vec<bool> {
    // One draw per slot, dropped or not: what follows in the generator does not depend on the
    // routing.
    let priority_tk: Vec<u64> = expert_ids_tk.iter().map(|_| rng.next_u64()).collect();
    keep_first(expert_ids_tk, capacities_e, |a, b| priority_tk[a].cmp(&priority_tk[b]))
}

/// Whether each slot is among the first of its expert in this order, in which equals stay in the
/// order of slots.
fn keep_first(
    expert_ids_tk: &[u32],
    capacities_e: &[usize],
    order: impl Fn(usize, usize) -> Ordering,
) -> Vec<bool> {
    let mut slots_of_expert = vec![Vec::new(); capacities_e.len()];
    for (slot, &expert) in expert_ids_tk.iter().enumerate() {
        slots_of_expert[expert as usize].push(slot);
    }
    let mut keep = vec![false; expert_ids_tk.len()];
    for (mut slots, &capacity) in slots_of_expert.into_iter().zip(capacities_e) {
        slots.sort_by(|&a, &b| order(a, b));
        for &slot in slots.iter().take(capacity) {
            keep[slot] = true;
        }
    }
    keep
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::ChaCha8Rng};

    use super::*;

    #[test]
    fn capacity_rounds_up_and_is_never_zero() {
        assert_eq!(expert_capacity(1.0, 2, 6, 4), 3);
        assert_eq!(expert_capacity(1.25, 1, 10, 4), 4); // 3.125
        assert_eq!(expert_capacity(0.01, 1, 8, 8), 1);
    }

    #[test]
    fn position_drops_the_later_tokens() {
        let ids = [0, 1, 0, 1, 0, 2]; // 3 tokens, k = 2
        assert_eq!(keep_earliest(&ids, &[2; 3]), [true, true, true, true, false, true]);
        assert_eq!(keep_earliest(&ids, &[3, 0, 1]), [true, false, true, false, true, true]);
    }

    #[test]
    fn probability_drops_the_smallest_gates() {
        let ids = [0, 0, 0, 1];
        assert_eq!(keep_largest_gates(&ids, &[0.2, 0.9, 0.5, 0.1], &[2; 2]), [false, true, true, true]);
        let gates = [0.5, 0.5, f32::NAN, 0.1];
        assert_eq!(keep_largest_gates(&ids, &gates, &[1; 2]), [true, false, false, true]);
        assert_eq!(keep_largest_gates(&ids, &gates, &[3, 0]), [true, true, true, false]);
    }

    #[test]
    fn nothing_routed_keeps_nothing() {
        assert!(keep_earliest(&[], &[2; 3]).is_empty());
        assert!(keep_largest_gates(&[], &[], &[2; 3]).is_empty());
        assert!(keep_random(&[], &[], &mut ChaCha8Rng::seed_from_u64(0)).is_empty());
    }

    /// 4,000 draws keep 3 of 8 tokens: each stays with probability 3/8, with a standard deviation
    /// of 31 draws.
    #[test]
    fn random_drops_late_tokens_no_more_often_than_early_ones() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut times_kept = [0_i64; 8];
        for _ in 0..4000 {
            let keep = keep_random(&[0; 8], &[3], &mut rng);
            times_kept.iter_mut().zip(keep).for_each(|(times, kept)| *times += i64::from(kept));
        }
        assert!(times_kept.iter().all(|times| (times - 1500).abs() < 5 * 31), "{times_kept:?}");
    }

    #[test]
    fn random_repeats_with_its_seed() {
        let keep = |seed| keep_random(&[0; 64], &[32], &mut ChaCha8Rng::seed_from_u64(seed));
        assert_eq!(keep(3), keep(3));
        assert_ne!(keep(3), keep(4));
    }

    proptest! {
        #[test]
        fn every_expert_keeps_the_smaller_of_load_and_capacity(
            slots in prop::collection::vec((0_u32..5, 0.0_f32..1.0), 0..60),
            capacities in prop::collection::vec(0_usize..12, 5),
            seed in any::<u64>(),
        ) {
            let (ids, gates): (Vec<u32>, Vec<f32>) = slots.into_iter().unzip();
            let kept_by = |keep: &[bool], expert| {
                ids.iter().zip(keep).filter(|&(&id, &kept)| id == expert && kept).count()
            };
            let earliest = keep_earliest(&ids, &capacities);
            let largest = keep_largest_gates(&ids, &gates, &capacities);
            let random = keep_random(&ids, &capacities, &mut ChaCha8Rng::seed_from_u64(seed));
            for (expert, &capacity) in (0_u32..).zip(&capacities) {
                let load = ids.iter().filter(|&&id| id == expert).count();
                prop_assert_eq!(kept_by(&earliest, expert), load.min(capacity));
                prop_assert_eq!(kept_by(&largest, expert), load.min(capacity));
                prop_assert_eq!(kept_by(&random, expert), load.min(capacity));
                let kept_in_order = ids.iter().zip(&earliest).filter(|&(&id, _)| id == expert).map(|(_, &keep)| keep);
                prop_assert!(kept_in_order.is_sorted_by(|a, b| a >= b));
                let gates_where = |kept| {
                    let slots = ids.iter().zip(&gates).zip(&largest);
                    slots.filter(move |&((&id, _), &keep)| id == expert && keep == kept).map(|((_, &g), _)| g)
                };
                let smallest_kept = gates_where(true).fold(f32::INFINITY, f32::min);
                prop_assert!(gates_where(false).all(|gate| gate <= smallest_kept));
            }
        }
    }
}

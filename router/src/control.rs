//! Choices without learning: what a learned router has to beat.
//!
//! Shape letters: t tokens, e experts, k experts per token.

use rand::{Rng, RngExt};

use crate::draw::distinct_experts;

/// For each token, `top_k` distinct experts, every ordered choice equally likely: `[t, k]`,
/// row-major. The same token goes elsewhere at each draw, so experts cannot specialise: the control
/// for the whole idea of routing.
///
/// # Panics
/// If `top_k` is not in `1..=num_experts`.
pub fn random_experts(num_tokens: usize, num_experts: usize, top_k: usize, rng: &mut impl Rng) -> Vec<u32> {
    check_top_k(top_k, num_experts);
    (0..num_tokens).flat_map(|_| distinct_experts(num_experts, top_k, |n| rng.random_range(0..n))).collect()
}

/// For each token, `top_k` distinct experts in turn, so that loads differ by at most one: `[t, k]`,
/// row-major. Slot j of token t goes to expert `(t k + j) mod E`. The control for speed: perfect
/// balance at no cost.
///
/// # Panics
/// If `top_k` is not in `1..=num_experts`.
pub fn forced_uniform_experts(num_tokens: usize, num_experts: usize, top_k: usize) -> Vec<u32> {
    check_top_k(top_k, num_experts);
    (0..num_tokens * top_k).map(|slot| (slot % num_experts) as u32).collect()
}

fn check_top_k(top_k: usize, num_experts: usize) {
    assert!((1..=num_experts).contains(&top_k), "cannot choose {top_k} of {num_experts} experts");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::ChaCha8Rng};

    use super::*;

    fn loads(ids: &[u32], num_experts: usize) -> Vec<usize> {
        (0..num_experts as u32).map(|expert| ids.iter().filter(|&&id| id == expert).count()).collect()
    }

    fn all_distinct(ids: &[u32], num_experts: usize, top_k: usize) -> bool {
        ids.chunks(top_k).all(|chosen| {
            let mut sorted = chosen.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            sorted.len() == top_k && sorted.iter().all(|&expert| (expert as usize) < num_experts)
        })
    }

    #[test]
    fn golden_values() {
        assert_eq!(forced_uniform_experts(4, 3, 2), [0, 1, 2, 0, 1, 2, 0, 1]);
        assert_eq!(forced_uniform_experts(2, 5, 1), [0, 1]);
        assert_eq!(forced_uniform_experts(2, 1, 1), [0, 0]);
    }

    /// 20,000 draws of 2 of 5 experts: each is in 2/5 of them, with a standard deviation of 69, and
    /// first in 1/5, with one of 57.
    #[test]
    fn random_experts_are_equally_likely_in_every_slot() {
        let ids = random_experts(20_000, 5, 2, &mut ChaCha8Rng::seed_from_u64(5));
        let firsts: Vec<u32> = ids.iter().copied().step_by(2).collect();
        assert!(loads(&ids, 5).iter().all(|&load| load.abs_diff(8000) < 5 * 69));
        assert!(loads(&firsts, 5).iter().all(|&load| load.abs_diff(4000) < 5 * 57));
    }

    #[test]
    fn no_tokens_go_nowhere() {
        assert!(random_experts(0, 3, 2, &mut ChaCha8Rng::seed_from_u64(0)).is_empty());
        assert!(forced_uniform_experts(0, 3, 2).is_empty());
    }

    proptest! {
        #[test]
        fn random_experts_are_distinct_and_repeat_with_their_seed(
            num_tokens in 0_usize..20,
            (num_experts, top_k) in prop::sample::select(vec![(1_usize, 1_usize), (4, 2), (4, 4), (64, 8)]),
            seed in any::<u64>(),
        ) {
            let draw = || random_experts(num_tokens, num_experts, top_k, &mut ChaCha8Rng::seed_from_u64(seed));
            let ids = draw();
            prop_assert_eq!(ids.len(), num_tokens * top_k);
            prop_assert!(all_distinct(&ids, num_experts, top_k));
            prop_assert_eq!(ids, draw());
        }

        #[test]
        fn forced_loads_differ_by_at_most_one(
            num_tokens in 0_usize..40,
            (num_experts, top_k) in prop::sample::select(vec![(1_usize, 1_usize), (4, 2), (5, 3), (4, 4), (64, 8)]),
        ) {
            let ids = forced_uniform_experts(num_tokens, num_experts, top_k);
            let load_e = loads(&ids, num_experts);
            prop_assert!(load_e.iter().max().unwrap() - load_e.iter().min().unwrap() <= 1);
            prop_assert!(all_distinct(&ids, num_experts, top_k));
        }
    }
}

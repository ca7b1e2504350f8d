//! Hash routing: the token id alone decides its experts, without learning (Roller et al.,
//! arXiv:2106.04426).
//!
//! Only the paper's random hash is here. Its balanced assignment depends on how often each id
//! occurs in the training data, which a router does not see, and a checkpoint would have to hold
//! the resulting table.
//!
//! Shape letters: t tokens, k experts per token.

use switchyard_ground::digest::split_mix;

use crate::draw::distinct_experts;

/// A fixed map from token ids to distinct experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenHash {
    num_experts: usize,
    top_k: usize,
    seed: u64,
}

impl TokenHash {
    /// The random hash (arXiv:2106.04426, section 3, "Random Hash"): every id has experts drawn
    /// from `seed` and the id.
    ///
    /// # Panics
    /// If `top_k` is not in `1..=num_experts`.
    pub fn random(num_experts: usize, top_k: usize, seed: u64) -> Self {
        assert!((1..=num_experts).contains(&top_k), "cannot choose {top_k} of {num_experts} experts");
        Self { num_experts, top_k, seed }
    }

    /// The experts of each token: `[t, k]`, row-major.
    pub fn experts_of(&self, token_ids: &[u32]) -> Vec<u32> {
        token_ids.iter().flat_map(|&id| self.experts_of_id(id)).collect()
    }

    fn experts_of_id(&self, id: u32) -> Vec<u32> {
        // The seed is mixed before the id joins it: else seed 1 would be seed 0 with the ids moved.
        let mut state = split_mix(self.seed) ^ u64::from(id);
        distinct_experts(self.num_experts, self.top_k, |n| {
            state = split_mix(state);
            ((u128::from(state) * n as u128) >> 64) as usize // Bias below n / 2^64.
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn distinct(experts: &[u32], num_experts: usize) -> bool {
        let mut sorted = experts.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        sorted.len() == experts.len() && sorted.iter().all(|&expert| (expert as usize) < num_experts)
    }

    /// Numbers of the same hash in Python, which removes chosen experts from a list. A change here
    /// would send the tokens of every stored checkpoint to experts that never saw them.
    #[test]
    fn the_random_hash_never_changes() {
        let hash = TokenHash::random(8, 2, 42);
        assert_eq!(hash.experts_of(&[0, 1, 2, u32::MAX]), [2, 3, 7, 4, 3, 0, 0, 6]);
    }

    /// 40,000 ids over 8 experts: binomial, standard deviation sqrt(40000 * 1/8 * 7/8) = 66
    /// of 5000.
    #[test]
    fn the_random_hash_spreads_ids_evenly() {
        let ids: Vec<u32> = (0..40_000).collect();
        for seed in 0..4 {
            let mut load_e = [0_i64; 8];
            let experts = TokenHash::random(8, 1, seed).experts_of(&ids);
            experts.iter().for_each(|&expert| load_e[expert as usize] += 1);
            assert!(load_e.iter().all(|load| (load - 5000).abs() < 5 * 66), "{load_e:?}");
        }
    }

    #[test]
    fn one_expert_takes_everything() {
        assert_eq!(TokenHash::random(1, 1, 7).experts_of(&[0, 9, u32::MAX]), [0; 3]);
        assert!(TokenHash::random(4, 2, 7).experts_of(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn experts_are_distinct_and_depend_on_seed_and_id_alone(
            ids in prop::collection::vec(any::<u32>(), 0..20),
            seed in any::<u64>(),
            (num_experts, top_k) in prop::sample::select(vec![(1_usize, 1_usize), (4, 1), (4, 2), (4, 4), (64, 8)]),
        ) {
            let together = TokenHash::random(num_experts, top_k, seed).experts_of(&ids);
            let hash = TokenHash::random(num_experts, top_k, seed);
            let alone: Vec<u32> = ids.iter().rev().flat_map(|&id| hash.experts_of(&[id])).collect();
            for (a, b) in together.chunks(top_k).zip(alone.chunks(top_k).rev()) {
                prop_assert_eq!(a, b);
                prop_assert!(distinct(a, num_experts), "{:?}", a);
            }
        }
    }
}

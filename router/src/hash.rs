//! Hash routing: the token id alone decides its experts, without learning (Roller et al., arXiv:2106.04426).
//!
//! Shape letters: t tokens, v vocabulary, k experts per token.

use std::cmp::Reverse;

use crate::draw::distinct_experts;

/// A fixed map from token ids to distinct experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenHash {
    num_experts: usize,
    top_k: usize,
    seed: u64,
    /// Experts of the ids whose frequency is known, `[v, k]`, row-major; the others are hashed.
    experts_vk: Vec<Option<u32>>,
}

impl TokenHash {
    /// The random hash (arXiv:2106.04426, section 3, "Random Hash"): every id has experts drawn from `seed` and the id.
    ///
    /// # Panics
    /// If `top_k` is not in `1..=num_experts`.
    pub fn random(num_experts: usize, top_k: usize, seed: u64) -> Self {
        assert!((1..=num_experts).contains(&top_k), "cannot choose {top_k} of {num_experts} experts");
        Self { num_experts, top_k, seed, experts_vk: Vec::new() }
    }

    /// The balanced hash (arXiv:2106.04426, section 3, "Balanced assignment"): ids in the order of their frequency
    /// in the corpus, most frequent first, each go to the `top_k` experts with the least load so far. The experts'
    /// loads then differ by at most the largest frequency. Ties go to the lower id and the lower expert index.
    ///
    /// Ids that never occur, and those beyond `token_counts`, carry no load: they are hashed as in
    /// [`TokenHash::random`], which spreads them should they turn up.
    ///
    /// # Shapes
    /// - `token_counts`: `[vocab_size]`, occurrences of each id
    ///
    /// # Panics
    /// If `top_k` is not in `1..=num_experts`.
    pub fn balanced(token_counts: &[u64], num_experts: usize, top_k: usize, seed: u64) -> Self {
        let mut by_count: Vec<usize> = (0..token_counts.len()).filter(|&id| token_counts[id] > 0).collect();
        by_count.sort_by_key(|&id| Reverse(token_counts[id])); // Stable: equal counts stay in order of id.
        let mut hash = Self::random(num_experts, top_k, seed);
        hash.experts_vk = vec![None; token_counts.len() * top_k];
        let mut load_e = vec![0_u64; num_experts];
        let mut by_load: Vec<usize> = (0..num_experts).collect();
        for id in by_count {
            by_load.sort_unstable_by_key(|&expert| (load_e[expert], expert));
            for (slot, &expert) in by_load[..top_k].iter().enumerate() {
                hash.experts_vk[id * top_k + slot] = Some(expert as u32);
                load_e[expert] += token_counts[id];
            }
        }
        hash
    }

    /// The experts of each token: `[t, k]`, row-major.
    pub fn experts_of(&self, token_ids: &[u32]) -> Vec<u32> {
        token_ids.iter().flat_map(|&id| self.experts_of_id(id)).collect()
    }

    fn experts_of_id(&self, id: u32) -> Vec<u32> {
        let start = id as usize * self.top_k;
        let listed = self.experts_vk.get(start..start + self.top_k);
        let listed = listed.and_then(|experts_k| experts_k.iter().copied().collect());
        listed.unwrap_or_else(|| self.hashed(id))
    }

    fn hashed(&self, id: u32) -> Vec<u32> {
        // The seed is mixed before the id joins it: else seed 1 would be seed 0 with the ids moved.
        let mut state = split_mix(self.seed) ^ u64::from(id);
        distinct_experts(self.num_experts, self.top_k, |n| {
            state = split_mix(state);
            ((u128::from(state) * n as u128) >> 64) as usize // Bias below n / 2^64.
        })
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014). Written out, since the map must outlive any release of a random number
/// library: a checkpoint's experts are trained for it.
fn split_mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loads(hash: &TokenHash, token_counts: &[u64], num_experts: usize, top_k: usize) -> Vec<u64> {
        let ids: Vec<u32> = (0..token_counts.len() as u32).collect();
        let mut load_e = vec![0; num_experts];
        for (experts, &count) in hash.experts_of(&ids).chunks(top_k).zip(token_counts) {
            experts.iter().for_each(|&expert| load_e[expert as usize] += count);
        }
        load_e
    }

    fn distinct(experts: &[u32], num_experts: usize) -> bool {
        let mut sorted = experts.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        sorted.len() == experts.len() && sorted.iter().all(|&expert| (expert as usize) < num_experts)
    }

    /// The generator's published first outputs from seed 0.
    #[test]
    fn split_mix_is_the_published_one() {
        assert_eq!(split_mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(split_mix(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
    }

    /// Counts 5, 3, 3, 2, 2, 1 over 3 experts: 5 | 3 | 3, then 2 to expert 1, 2 to expert 2, 1 to expert 0.
    #[test]
    fn golden_values() {
        let hash = TokenHash::balanced(&[2, 5, 1, 3, 3, 2], 3, 1, 0);
        assert_eq!(hash.experts_of(&[1, 3, 4, 0, 5, 2]), [0, 1, 2, 1, 2, 0]);
        // Two each: 4 to {0, 1}, 3 to {2, 0}, then 1 to {2, 1} with loads 7, 4, 3.
        let hash = TokenHash::balanced(&[4, 3, 1], 3, 2, 0);
        assert_eq!(hash.experts_of(&[0, 1, 2]), [0, 1, 2, 0, 2, 1]);
    }

    /// Numbers of the same hash in Python, which removes chosen experts from a list. A change here would send the
    /// tokens of every stored checkpoint to experts that never saw them.
    #[test]
    fn the_random_hash_never_changes() {
        let hash = TokenHash::random(8, 2, 42);
        assert_eq!(hash.experts_of(&[0, 1, 2, u32::MAX]), [2, 3, 7, 4, 3, 0, 0, 6]);
    }

    /// 40,000 ids over 8 experts: binomial, standard deviation sqrt(40000 * 1/8 * 7/8) = 66 of 5000.
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
        assert_eq!(TokenHash::balanced(&[3, 0], 1, 1, 7).experts_of(&[0, 1, 2]), [0; 3]);
        assert!(TokenHash::random(4, 2, 7).experts_of(&[]).is_empty());
    }

    #[test]
    fn ids_without_a_frequency_are_hashed() {
        let balanced = TokenHash::balanced(&[9, 0, 4], 16, 2, 5);
        let random = TokenHash::random(16, 2, 5);
        assert_eq!(balanced.experts_of(&[1, 3, 70_000]), random.experts_of(&[1, 3, 70_000]));
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

        #[test]
        fn balanced_loads_differ_by_at_most_the_largest_frequency(
            token_counts in prop::collection::vec(prop_oneof![3 => 0_u64..50, 1 => 0_u64..2000], 0..40),
            (num_experts, top_k) in prop::sample::select(vec![(1_usize, 1_usize), (3, 1), (4, 2), (5, 4), (4, 4)]),
        ) {
            let hash = TokenHash::balanced(&token_counts, num_experts, top_k, 1);
            let load_e = loads(&hash, &token_counts, num_experts, top_k);
            let spread = load_e.iter().max().unwrap() - load_e.iter().min().unwrap();
            prop_assert!(spread <= token_counts.iter().copied().max().unwrap_or(0), "{load_e:?}");
            for id in 0..token_counts.len() as u32 {
                prop_assert!(distinct(&hash.experts_of(&[id]), num_experts));
            }
        }
    }
}

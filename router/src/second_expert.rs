//! Random treatment of a token's second expert.
//!
//! Shape letters: t tokens, e experts.

use rand::distr::Open01;
use rand::{Rng, RngExt};

use crate::selection::best_first;

/// Whether each slot of a top-2 choice stays when the second expert is used with probability
/// `min(1, 2 g2)`, where the gates are normalised to `g1 + g2 = 1`: `[t * 2]`. The first always
/// stays (GShard, arXiv:2006.16668, section 2.2 "random routing" and algorithm 1: `2 g2 > rnd`).
/// Gates whose sum is 0 or not finite have no share, and drop the second.
///
/// # Shapes
/// - `gates_tk`: `[num_tokens, 2]`, row-major, best first, normalised or not
///
/// # Panics
/// If the gates are not two per token.
pub fn keep_second_at_random(gates_tk: &[f64], rng: &mut impl Rng) -> Vec<bool> {
    let tokens = gates_tk.chunks_exact(2);
    assert!(tokens.remainder().is_empty(), "{} gates are not two per token", gates_tk.len());
    tokens
        .flat_map(|gates| {
            let share = gates[1] / (gates[0] + gates[1]);
            [true, 2.0 * share > rng.random::<f64>()]
        })
        .collect()
}

/// A top-2 choice whose second expert is sampled by the softmax over the experts other than the
/// best: `[t, 2]`, row-major. By the Gumbel-max trick, it is the largest of their logits with
/// Gumbel noise added (DeepSpeed's `top2gating`). NaN ranks below everything, and ties go to the
/// lower index.
///
/// # Shapes
/// - `logits_te`: `[num_tokens, num_experts]`, row-major
///
/// # Panics
/// If there are fewer than 2 experts, or the logits do not divide into rows of `num_experts`.
pub fn sample_second_expert(logits_te: &[f64], num_experts: usize, rng: &mut impl Rng) -> Vec<u32> {
    assert!(num_experts >= 2, "cannot choose 2 of {num_experts} experts");
    let rows = logits_te.chunks_exact(num_experts);
    assert!(rows.remainder().is_empty(), "{} logits for {num_experts} experts", logits_te.len());
    rows.flat_map(|logits_e| {
        let noisy_e: Vec<f64> = logits_e.iter().map(|logit| logit + gumbel(rng)).collect();
        let first = best(logits_e, None);
        [first, best(&noisy_e, Some(first))]
    })
    .collect()
}

fn gumbel(rng: &mut impl Rng) -> f64 {
    let uniform: f64 = rng.sample(Open01); // Without its ends: the noise stays finite.
    -(-uniform.ln()).ln()
}

fn best(scores_e: &[f64], excluded: Option<u32>) -> u32 {
    let candidates = (0..scores_e.len() as u32).filter(|&expert| Some(expert) != excluded);
    let order = |&a: &u32, &b: &u32| best_first(scores_e[a as usize], scores_e[b as usize]);
    candidates.min_by(order).unwrap_or(0) // The first of equals; there is always one.
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::ChaCha8Rng};

    use super::*;

    const NUM_DRAWS: usize = 10_000;

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    #[track_caller]
    fn assert_frequency(count: usize, probability: f64) {
        let mean = NUM_DRAWS as f64 * probability;
        let deviation = (mean * (1.0 - probability)).sqrt();
        assert!((count as f64 - mean).abs() <= 4.0 * deviation, "{count} instead of {mean} +- {deviation}");
    }

    #[test]
    fn the_second_expert_is_kept_with_twice_its_gate() {
        for (gates, probability) in [([0.9, 0.1], 0.2), ([0.7, 0.3], 0.6), ([0.35, 0.15], 0.6)] {
            let keep = keep_second_at_random(&gates.repeat(NUM_DRAWS), &mut rng(1));
            assert!(keep.iter().step_by(2).all(|&first| first));
            assert_frequency(keep.iter().skip(1).step_by(2).filter(|&&second| second).count(), probability);
        }
    }

    #[test]
    fn an_even_second_expert_always_stays_and_a_weightless_one_never() {
        let kept = |gates: [f64; 2]| {
            keep_second_at_random(&gates.repeat(1000), &mut rng(2)).iter().filter(|&&keep| keep).count()
        };
        assert_eq!(kept([0.5, 0.5]), 2000);
        assert_eq!(kept([0.2, 0.3]), 2000);
        assert_eq!(kept([1.0, 0.0]), 1000);
        assert_eq!(kept([0.0, 0.0]), 1000);
        assert_eq!(kept([0.5, f64::NAN]), 1000);
        assert!(keep_second_at_random(&[], &mut rng(2)).is_empty());
    }

    /// Weights 4, 3, 2, 1: the first is best, the rest are sampled by 3, 2 and 1 sixths.
    #[test]
    fn the_second_expert_is_sampled_by_the_softmax_of_the_rest() {
        let logits: Vec<f64> = [2.0_f64, 4.0, 1.0, 3.0].iter().map(|weight| weight.ln() + 100.0).collect();
        let ids = sample_second_expert(&logits.repeat(NUM_DRAWS), 4, &mut rng(3));
        assert!(ids.iter().step_by(2).all(|&first| first == 1));
        for (expert, weight) in [(0, 2.0), (2, 1.0), (3, 3.0)] {
            assert_frequency(ids.iter().skip(1).step_by(2).filter(|&&id| id == expert).count(), weight / 6.0);
        }
    }

    #[test]
    fn of_two_experts_the_second_is_the_other() {
        assert_eq!(sample_second_expert(&[0.0, 0.0, -1e4, 1e4], 2, &mut rng(4)), [0, 1, 1, 0]);
        assert_eq!(sample_second_expert(&[f64::NAN; 2], 2, &mut rng(4)), [0, 1]);
        assert!(sample_second_expert(&[], 2, &mut rng(4)).is_empty());
    }

    proptest! {
        #[test]
        fn the_first_is_the_best_and_the_second_another(
            logits in prop::collection::vec(prop::sample::select(vec![-1e4, 0.0, 0.5, 1e4, f64::NAN]), 24),
            num_experts in prop::sample::select(vec![2_usize, 3, 8]),
            seed in any::<u64>(),
        ) {
            let ids = sample_second_expert(&logits, num_experts, &mut rng(seed));
            let best = crate::select_top_k(&logits, num_experts, 1);
            for (pair, best) in ids.chunks(2).zip(best) {
                prop_assert_eq!(pair[0], best);
                prop_assert!(pair[1] != pair[0] && (pair[1] as usize) < num_experts);
            }
            prop_assert_eq!(ids, sample_second_expert(&logits, num_experts, &mut rng(seed)));
        }
    }
}

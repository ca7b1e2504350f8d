//! Quantile balancing: a selection bias solved for, without a rate (Su,
//! <https://kexue.fm/archives/11619>; Kimi K3 technical report, section 2.3.3 and appendix D).
//!
//! A token sends itself to the k experts with the highest biased scores `s + b`; its cutoff is the
//! (k+1)-th of them. Expert e gets the token where `s_e + b_e` exceeds the cutoff, so
//! `cutoff - s_e` is the bias it requires to get it. For a k/E share of the tokens, the bias must
//! lie at the k/E quantile of what they require.
//!
//! Shape letters: t tokens, e experts, b histogram bins.

use serde::{Deserialize, Serialize};

use crate::bias::recentre;
use crate::select_top_k;

const NUM_BINS: usize = 1000;

/// Required biases counted in bins, so that the micro-batches of a step give one quantile: a
/// histogram of 1000 uniform bins from `min(bias) - 1` to `max(bias) + 1`, which holds every
/// required bias of scores in `0..=1`, such as sigmoid's or softmax's (Kimi K3, appendix D). Values
/// beyond count in the outermost bins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantileHistogram {
    bias_e: Vec<f64>,
    top_k: usize,
    counts_eb: Vec<u64>,
    lowest: f64,
    bin_width: f64,
}

impl QuantileHistogram {
    /// An empty histogram for tokens routed under this bias.
    ///
    /// # Panics
    /// If `top_k` is not in `1..=num_experts`.
    pub fn new(bias_e: &[f64], top_k: usize) -> Self {
        check_top_k(top_k, bias_e.len());
        let lowest = bias_e.iter().copied().fold(f64::INFINITY, f64::min) - 1.0;
        let highest = bias_e.iter().copied().fold(f64::NEG_INFINITY, f64::max) + 1.0;
        Self {
            bias_e: bias_e.to_vec(),
            top_k,
            counts_eb: vec![0; bias_e.len() * NUM_BINS],
            lowest,
            bin_width: (highest - lowest) / NUM_BINS as f64,
        }
    }

    /// Width of a bin: what [`QuantileHistogram::solve`] can be off by, before it subtracts the
    /// mean.
    pub fn bin_width(&self) -> f64 {
        self.bin_width
    }

    /// Counts the required biases of these tokens. Those with a score that is not finite have no
    /// say.
    ///
    /// # Shapes
    /// - `scores_te`: `[num_tokens, num_experts]`, row-major, without the bias
    ///
    /// # Panics
    /// If the scores do not divide into rows.
    pub fn add(&mut self, scores_te: &[f64]) {
        let Self { bias_e, top_k, counts_eb, lowest, bin_width } = self;
        for_each_required_bias(scores_te, bias_e, *top_k, |expert, required| {
            let bin = ((required - *lowest) / *bin_width).clamp(0.0, (NUM_BINS - 1) as f64);
            counts_eb[expert * NUM_BINS + bin as usize] += 1;
        });
    }

    /// Adds the tokens of another micro-batch of the same step.
    ///
    /// # Panics
    /// If the other's tokens were routed under another bias or with another `top_k`: the bins would
    /// not be the same.
    pub fn merge(&mut self, other: &Self) {
        assert!(
            self.bias_e == other.bias_e && self.top_k == other.top_k,
            "cannot merge histograms of the biases {:?} with top_k {} and {:?} with top_k {}",
            self.bias_e,
            self.top_k,
            other.bias_e,
            other.top_k
        );
        self.counts_eb.iter_mut().zip(&other.counts_eb).for_each(|(count, more)| *count += more);
    }

    /// The bias under which, by the cutoffs of the counted tokens, every expert gets an even share
    /// of them: `[e]`, with mean 0, off by a bin's width before the mean is subtracted. The cutoffs
    /// move with the biases, so one update is one step of an iteration, usually taken once per
    /// optimiser step. Without any token, or with `top_k` equal to the number of experts, where
    /// there is no cutoff, the bias stays as it is.
    ///
    /// A bin's values count as spread evenly over it; torchtitan and Megatron-LM interpolate inside
    /// the bin that crosses the quantile only, which differs where the quantile falls into a gap.
    pub fn solve(&self) -> Vec<f64> {
        let num_tokens: u64 = self.counts_eb[..NUM_BINS].iter().sum();
        let Some(last) = (num_tokens as usize).checked_sub(1) else {
            return self.bias_e.clone();
        };
        let rank = quantile_rank(last, self.top_k, self.bias_e.len());
        let quantile = |counts_b| interpolated(rank, |i| self.order_statistic(counts_b, i as u64));
        let mut solved_e: Vec<f64> = self.counts_eb.chunks_exact(NUM_BINS).map(quantile).collect();
        recentre(&mut solved_e);
        solved_e
    }

    /// Position of the `rank`-th smallest value, from 0.
    fn order_statistic(&self, counts_b: &[u64], rank: u64) -> f64 {
        let mut before = 0;
        for (bin, &count) in counts_b.iter().enumerate() {
            if rank < before + count {
                let inside = ((rank - before) as f64 + 0.5) / count as f64;
                return self.lowest + (bin as f64 + inside) * self.bin_width;
            }
            before += count;
        }
        self.lowest + NUM_BINS as f64 * self.bin_width
    }
}

fn check_top_k(top_k: usize, num_experts: usize) {
    assert!((1..=num_experts).contains(&top_k), "cannot choose {top_k} of {num_experts} experts");
}

/// Calls back with each expert and its required bias, of each token whose scores are finite. With
/// no cutoff, never.
fn for_each_required_bias(
    scores_te: &[f64],
    bias_e: &[f64],
    top_k: usize,
    mut visit: impl FnMut(usize, f64),
) {
    let num_experts = bias_e.len();
    check_top_k(top_k, num_experts);
    let rows = scores_te.chunks_exact(num_experts);
    assert!(rows.remainder().is_empty(), "{} scores for {num_experts} experts", scores_te.len());
    if top_k == num_experts {
        return;
    }
    for scores_e in rows.filter(|scores_e| scores_e.iter().all(|score| score.is_finite())) {
        let biased_e: Vec<f64> = scores_e.iter().zip(bias_e).map(|(score, bias)| score + bias).collect();
        let cutoff = biased_e[select_top_k(&biased_e, num_experts, top_k + 1)[top_k] as usize];
        for (expert, score) in scores_e.iter().enumerate() {
            visit(expert, cutoff - score);
        }
    }
}

/// Where the k/E quantile of `last + 1` sorted values lies, between 0 and `last`.
fn quantile_rank(last: usize, top_k: usize, num_experts: usize) -> f64 {
    // Of a whole share q = T k / E, this is q - k / E: between the q-th and the (q+1)-th smallest,
    // so that exactly q tokens require less.
    last as f64 * top_k as f64 / num_experts as f64
}

/// The value at a fractional rank, from the values at whole ones.
fn interpolated(rank: f64, value_at: impl Fn(usize) -> f64) -> f64 {
    let (below, above) = (value_at(rank.floor() as usize), value_at(rank.ceil() as usize));
    below + (above - below) * rank.fract()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
    use serde::Deserialize;

    use super::*;
    use crate::RouterStatistics;

    /// What the histogram approximates: the bias from the required biases themselves, sorted.
    /// Quantiles are interpolated linearly between order statistics.
    fn quantile_balanced_bias(scores_te: &[f64], bias_e: &[f64], top_k: usize) -> Vec<f64> {
        let mut required_et = vec![Vec::new(); bias_e.len()];
        for_each_required_bias(scores_te, bias_e, top_k, |expert, required| {
            required_et[expert].push(required)
        });
        let Some(last) = required_et.first().and_then(|required_t| required_t.len().checked_sub(1)) else {
            return bias_e.to_vec();
        };
        let rank = quantile_rank(last, top_k, bias_e.len());
        let mut solved_e: Vec<f64> = required_et
            .iter_mut()
            .map(|required_t| {
                required_t.sort_unstable_by(f64::total_cmp);
                interpolated(rank, |i| required_t[i])
            })
            .collect();
        recentre(&mut solved_e);
        solved_e
    }

    fn histogram(scores_te: &[f64], bias_e: &[f64], top_k: usize) -> QuantileHistogram {
        let mut histogram = QuantileHistogram::new(bias_e, top_k);
        histogram.add(scores_te);
        histogram
    }

    /// Scores in 0..1 that favour the experts of high index.
    fn skewed_scores(num_tokens: usize, num_experts: usize, seed: u64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut score = |i: usize| {
            let favour = (i % num_experts) as f64 / num_experts as f64;
            let logit = 2.0 * rng.random::<f64>() + 3.0 * favour - 2.0;
            1.0 / (1.0 + (-logit).exp())
        };
        (0..num_tokens * num_experts).map(&mut score).collect()
    }

    fn max_violation(scores_te: &[f64], bias_e: &[f64], top_k: usize) -> f64 {
        let biased: Vec<f64> =
            scores_te.iter().enumerate().map(|(i, s)| s + bias_e[i % bias_e.len()]).collect();
        let ids = select_top_k(&biased, bias_e.len(), top_k);
        RouterStatistics::measure(scores_te, &ids, None, bias_e.len(), top_k).max_violation()
    }

    #[track_caller]
    fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() <= tolerance, "{actual:?} instead of {expected:?}");
        }
    }

    /// Two experts, k = 1: the cutoff is the lower score. Expert 0 requires -0.4, -0.2, 0 and
    /// expert 1 requires 0, 0, -0.1: medians -0.2 and 0, whose mean is -0.1.
    #[test]
    fn golden_values() {
        let scores = [0.9, 0.5, 0.6, 0.4, 0.2, 0.3];
        assert_close(&quantile_balanced_bias(&scores, &[0.0; 2], 1), &[-0.1, 0.1], 1e-15);
    }

    #[test]
    fn a_whole_share_of_the_tokens_requires_less_than_the_quantile() {
        for (num_tokens, num_experts, top_k) in [(8, 4, 1), (12, 4, 3), (6, 3, 2), (64, 8, 2)] {
            let rank = quantile_rank(num_tokens - 1, top_k, num_experts);
            let quantile = interpolated(rank, |i| i as f64);
            let num_below = (0..num_tokens).filter(|&required| (required as f64) < quantile).count();
            assert_eq!(num_below, num_tokens * top_k / num_experts);
        }
    }

    #[derive(Deserialize)]
    struct Golden {
        top_k: usize,
        num_experts: usize,
        scores_te: Vec<f64>,
        bias_e: Vec<f64>,
        solved_e: Vec<f64>,
        histogram_bin_width: f64,
    }

    /// Numbers of PyTorch's `topk` and `quantile`: `tests/golden/reference.py`.
    #[test]
    fn the_bias_is_that_of_the_pytorch_reference() {
        let golden: Vec<Golden> =
            serde_json::from_str(include_str!("../tests/golden/quantile.json")).unwrap();
        for case in golden {
            assert_eq!(case.bias_e.len(), case.num_experts);
            let solved = quantile_balanced_bias(&case.scores_te, &case.bias_e, case.top_k);
            assert_close(&solved, &case.solved_e, 1e-12);
            let histogram = histogram(&case.scores_te, &case.bias_e, case.top_k);
            assert_close(&[histogram.bin_width()], &[case.histogram_bin_width], 1e-15);
        }
    }

    #[test]
    fn solving_a_static_batch_again_and_again_balances_it() {
        for (num_experts, top_k, seed) in [(8, 1, 0), (8, 2, 1), (16, 4, 2), (4, 3, 3)] {
            let scores = skewed_scores(512, num_experts, seed);
            let mut exact_e = vec![0.0; num_experts];
            let mut binned_e = exact_e.clone();
            assert!(max_violation(&scores, &exact_e, top_k) > 0.3);
            for _ in 0..50 {
                exact_e = quantile_balanced_bias(&scores, &exact_e, top_k);
                binned_e = histogram(&scores, &binned_e, top_k).solve();
            }
            // One token of the smallest even share, 64, is 0.016. A bin, 0.002 to 0.003 wide, holds
            // a few, and each expert competes with others that are off by as much.
            let exact = max_violation(&scores, &exact_e, top_k);
            let binned = max_violation(&scores, &binned_e, top_k);
            assert!(exact < 0.02 && binned < 0.15, "{exact} exact, {binned} binned");
        }
    }

    #[test]
    fn without_a_cutoff_or_a_token_the_bias_stays() {
        let bias_e = [0.5, 0.25, 0.0];
        for (scores, top_k) in [(vec![0.1; 6], 3), (vec![], 1), (vec![f64::NAN, 0.1, 0.2], 2)] {
            assert_eq!(quantile_balanced_bias(&scores, &bias_e, top_k), bias_e);
            assert_eq!(histogram(&scores, &bias_e, top_k).solve(), bias_e);
        }
        assert_eq!(quantile_balanced_bias(&[0.3, 0.2], &[0.0], 1), [0.0]);
    }

    #[test]
    fn huge_and_tied_scores_stay_finite() {
        for scores in [[1e4, -1e4, 1e4, 1e4], [0.5; 4]] {
            assert!(quantile_balanced_bias(&scores, &[0.0; 4], 2).iter().all(|bias| bias.is_finite()));
            assert!(histogram(&scores, &[0.0; 4], 2).solve().iter().all(|bias| bias.is_finite()));
        }
    }

    #[test]
    #[should_panic(expected = "cannot merge histograms")]
    fn histograms_of_other_biases_do_not_merge() {
        QuantileHistogram::new(&[0.0, 1.0], 1).merge(&QuantileHistogram::new(&[0.0, 0.5], 1));
    }

    fn sizes() -> impl Strategy<Value = (usize, usize)> {
        prop::sample::select(vec![(2, 1), (4, 1), (4, 3), (8, 2), (24, 5)])
    }

    proptest! {
        /// An order statistic is off by less than a bin, their interpolation too, and so is the
        /// mean that is subtracted.
        #[test]
        fn the_histogram_agrees_with_the_exact_quantile(
            scores in prop::collection::vec(0.0..1.0_f64, 48),
            bias in prop::collection::vec(-0.5..0.5_f64, 24),
            (num_experts, top_k) in sizes(),
        ) {
            let bias_e = &bias[..num_experts];
            let histogram = histogram(&scores, bias_e, top_k);
            let exact = quantile_balanced_bias(&scores, bias_e, top_k);
            for (a, e) in histogram.solve().iter().zip(exact) {
                prop_assert!((a - e).abs() < 2.0 * histogram.bin_width(), "{} instead of {}", a, e);
            }
        }

        #[test]
        fn merging_micro_batches_counts_all_their_tokens(
            scores in prop::collection::vec(0.0..1.0_f64, 48),
            split in 0_usize..=6,
        ) {
            let bias_e = [0.1, 0.0, -0.2, 0.1, 0.0, 0.0, 0.3, -0.3];
            let (first, second) = scores.split_at(split * 8);
            let mut merged = histogram(first, &bias_e, 2);
            merged.merge(&histogram(second, &bias_e, 2));
            prop_assert_eq!(merged, histogram(&scores, &bias_e, 2));
        }

        #[test]
        fn shifting_all_scores_of_a_token_changes_nothing(
            scores in prop::collection::vec(0.0..1.0_f64, 48),
            by_t in prop::collection::vec(-5.0..5.0_f64, 24),
            (num_experts, top_k) in sizes(),
        ) {
            let shifted: Vec<f64> = scores.iter().enumerate().map(|(i, s)| s + by_t[i / num_experts]).collect();
            let bias_e = vec![0.0; num_experts];
            let (once, again) = (
                quantile_balanced_bias(&scores, &bias_e, top_k),
                quantile_balanced_bias(&shifted, &bias_e, top_k),
            );
            for (a, b) in once.iter().zip(again) {
                prop_assert!((a - b).abs() < 1e-13, "{} instead of {}", b, a);
            }
        }

        #[test]
        fn the_mean_bias_is_zero(scores in prop::collection::vec(0.0..1.0_f64, 48), (num_experts, top_k) in sizes()) {
            let solved = quantile_balanced_bias(&scores, &vec![3.0; num_experts], top_k);
            prop_assert!(solved.iter().sum::<f64>().abs() < 1e-13);
        }
    }
}

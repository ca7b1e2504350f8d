//! What one MoE layer's routing looked like, measured on the host in f64.
//!
//! Shape letters: t tokens, e experts, k experts per token.

use serde::{Deserialize, Serialize};

/// Routing statistics of one layer over some tokens. Holds sums, so that
/// [`RouterStatistics::merge`] over micro-batches gives what one measurement over all their tokens
/// gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouterStatistics {
    num_tokens: u64,
    tokens_per_expert: Vec<u64>,
    probability_sum_e: Vec<f64>,
    entropy_sum_nats: f64,
    margin_sum: f64,
    num_dropped: u64,
}

/// The numbers of a [`RouterStatistics`], each defined at the method of its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouterSummary {
    /// See [`RouterStatistics::tokens_per_expert`].
    pub tokens_per_expert: Vec<u64>,
    /// See [`RouterStatistics::max_violation`].
    pub max_violation: f64,
    /// See [`RouterStatistics::coefficient_of_variation`].
    pub coefficient_of_variation: f64,
    /// See [`RouterStatistics::gini_coefficient`].
    pub gini_coefficient: f64,
    /// See [`RouterStatistics::effective_num_experts`].
    pub effective_num_experts: f64,
    /// See [`RouterStatistics::gate_entropy_nats`].
    pub gate_entropy_nats: f64,
    /// See [`RouterStatistics::marginal_entropy_nats`].
    pub marginal_entropy_nats: f64,
    /// See [`RouterStatistics::dead_expert_fraction`].
    pub dead_expert_fraction: f64,
    /// See [`RouterStatistics::gate_margin`].
    pub gate_margin: f64,
    /// See [`RouterStatistics::dropped_fraction`].
    pub dropped_fraction: f64,
}

impl RouterStatistics {
    /// Statistics of one choice, nothing dropped.
    ///
    /// # Shapes
    /// - `logits_te`: `[num_tokens, num_experts]`, row-major; `expert_ids_tk`:
    ///   `[num_tokens, top_k]`, row-major; `keep_tk`: whether a slot is a choice at all, absent if
    ///   all are
    ///
    /// # Panics
    /// If the lengths do not fit, or an expert id is not below `num_experts`.
    pub fn measure(
        logits_te: &[f64],
        expert_ids_tk: &[u32],
        keep_tk: Option<&[bool]>,
        num_experts: usize,
        top_k: usize,
    ) -> Self {
        let num_tokens = logits_te.len() / num_experts;
        assert!(
            logits_te.len() == num_tokens * num_experts
                && expert_ids_tk.len() == num_tokens * top_k
                && keep_tk.is_none_or(|keep_tk| keep_tk.len() == expert_ids_tk.len()),
            "{} logits and {} expert ids do not fit {num_experts} experts with top_k {top_k}",
            logits_te.len(),
            expert_ids_tk.len(),
        );
        let mut statistics = Self {
            num_tokens: num_tokens as u64,
            tokens_per_expert: vec![0; num_experts],
            probability_sum_e: vec![0.0; num_experts],
            entropy_sum_nats: 0.0,
            margin_sum: 0.0,
            num_dropped: 0,
        };
        let mut chosen = Vec::with_capacity(top_k);
        for (token, logits_e) in logits_te.chunks_exact(num_experts).enumerate() {
            let slots = token * top_k..(token + 1) * top_k;
            let is_chosen = |slot: &usize| keep_tk.is_none_or(|keep_tk| keep_tk[*slot]);
            chosen.clear();
            chosen.extend(slots.filter(is_chosen).map(|slot| expert_ids_tk[slot]));
            statistics.add_token(logits_e, &chosen);
        }
        statistics
    }

    /// The same statistics with this many assignments dropped over capacity.
    pub fn with_dropped(self, num_dropped: u64) -> Self {
        Self { num_dropped, ..self }
    }

    /// Adds the tokens of another measurement of the same layer.
    ///
    /// # Panics
    /// If the other layer has another number of experts.
    pub fn merge(&mut self, other: &Self) {
        assert!(
            self.tokens_per_expert.len() == other.tokens_per_expert.len(),
            "cannot merge statistics of {} and {} experts",
            self.tokens_per_expert.len(),
            other.tokens_per_expert.len()
        );
        self.num_tokens += other.num_tokens;
        for (sum, more) in self.tokens_per_expert.iter_mut().zip(&other.tokens_per_expert) {
            *sum += more;
        }
        for (sum, more) in self.probability_sum_e.iter_mut().zip(&other.probability_sum_e) {
            *sum += more;
        }
        self.entropy_sum_nats += other.entropy_sum_nats;
        self.margin_sum += other.margin_sum;
        self.num_dropped += other.num_dropped;
    }

    /// Assignments to each expert, before capacity.
    pub fn tokens_per_expert(&self) -> &[u64] {
        &self.tokens_per_expert
    }

    /// MaxVio: largest load over mean load, minus 1 (arXiv:2408.15664, section 4.1). 0 is perfect
    /// balance, `E / k - 1` all tokens on the same k experts. 0 without tokens.
    pub fn max_violation(&self) -> f64 {
        let max = self.tokens_per_expert.iter().max().map_or(0.0, |&max| max as f64);
        self.over_mean_load(max, 1.0) - 1.0
    }

    /// Standard deviation of the loads (population form, divided by E) over their mean. 0 without
    /// tokens.
    pub fn coefficient_of_variation(&self) -> f64 {
        let mean = self.mean_load();
        let squares = self.tokens_per_expert.iter().map(|&load| (load as f64 - mean).powi(2));
        let variance = squares.sum::<f64>() / self.tokens_per_expert.len() as f64;
        self.over_mean_load(variance.sqrt(), 0.0)
    }

    /// Gini coefficient of the loads: the mean absolute difference between the loads of two
    /// experts, drawn with replacement, over twice the mean load. 0 is perfect balance, `1 - k / E`
    /// all tokens on the same k experts. 0 without tokens.
    pub fn gini_coefficient(&self) -> f64 {
        let num_experts = self.tokens_per_expert.len() as i128;
        let mut sorted = self.tokens_per_expert.clone();
        sorted.sort_unstable();
        // With ranks 1..=E, sum_i sum_j |x_i - x_j| = 2 sum_rank (2 rank - E - 1) x_rank; in
        // integers, balance is exactly 0.
        let weighted =
            (1_i128..).zip(&sorted).map(|(rank, &load)| (2 * rank - num_experts - 1) * i128::from(load));
        let sum = weighted.sum::<i128>() as f64;
        self.over_mean_load(sum / (num_experts * num_experts) as f64, 0.0)
    }

    /// Effective number of experts: the exponential of the entropy of the experts' shares of the
    /// load, the number of equally loaded experts that would be as diverse. From 1 to E; 0 without
    /// tokens.
    pub fn effective_num_experts(&self) -> f64 {
        let total: u64 = self.tokens_per_expert.iter().sum();
        if total == 0 {
            return 0.0;
        }
        let shares = self.tokens_per_expert.iter().map(|&load| load as f64 / total as f64);
        shares.map(entropy_term).sum::<f64>().max(0.0).exp()
    }

    /// Mean over tokens of the entropy `-sum_e p_e ln p_e` of the softmax over all experts: how
    /// undecided the router is about a single token, from 0 to `ln E`.
    pub fn gate_entropy_nats(&self) -> f64 {
        self.per_token(self.entropy_sum_nats)
    }

    /// Entropy of the mean over tokens of the softmax: how evenly probability is spread over the
    /// batch, from 0 to `ln E`. High here with a low gate entropy means that experts specialise.
    pub fn marginal_entropy_nats(&self) -> f64 {
        let mean_e = self.probability_sum_e.iter().map(|&sum| self.per_token(sum));
        mean_e.map(entropy_term).sum::<f64>().max(0.0)
    }

    /// Share of experts that no token chose.
    pub fn dead_expert_fraction(&self) -> f64 {
        let num_dead = self.tokens_per_expert.iter().filter(|&&load| load == 0).count();
        num_dead as f64 / self.tokens_per_expert.len() as f64
    }

    /// Mean over tokens of the smallest chosen probability minus the largest one not chosen: how
    /// far the choice is from flipping. With `top_k` equal to the number of experts nothing is left
    /// out, and the latter counts as 0.
    pub fn gate_margin(&self) -> f64 {
        self.per_token(self.margin_sum)
    }

    /// Share of the assignments that were dropped over capacity.
    pub fn dropped_fraction(&self) -> f64 {
        let num_assignments: u64 = self.tokens_per_expert.iter().sum();
        if num_assignments == 0 { 0.0 } else { self.num_dropped as f64 / num_assignments as f64 }
    }

    /// Every number at once.
    pub fn summary(&self) -> RouterSummary {
        RouterSummary {
            tokens_per_expert: self.tokens_per_expert.clone(),
            max_violation: self.max_violation(),
            coefficient_of_variation: self.coefficient_of_variation(),
            gini_coefficient: self.gini_coefficient(),
            effective_num_experts: self.effective_num_experts(),
            gate_entropy_nats: self.gate_entropy_nats(),
            marginal_entropy_nats: self.marginal_entropy_nats(),
            dead_expert_fraction: self.dead_expert_fraction(),
            gate_margin: self.gate_margin(),
            dropped_fraction: self.dropped_fraction(),
        }
    }

    fn add_token(&mut self, logits_e: &[f64], chosen_k: &[u32]) {
        let (mut probs_e, log_partition) = softmax(logits_e);
        for (sum, p) in self.probability_sum_e.iter_mut().zip(&probs_e) {
            *sum += p;
        }
        // -ln p_e = log_partition - logit_e; a term's limit at p = 0 is 0.
        let surprise = |(&p, logit): (&f64, &f64)| if p > 0.0 { p * (log_partition - logit) } else { 0.0 };
        self.entropy_sum_nats += probs_e.iter().zip(logits_e).map(surprise).sum::<f64>().max(0.0);
        let mut smallest_chosen = f64::INFINITY;
        for &expert in chosen_k {
            self.tokens_per_expert[expert as usize] += 1;
            smallest_chosen = smallest_chosen.min(probs_e[expert as usize]);
        }
        if chosen_k.is_empty() {
            return; // Nothing that could flip.
        }
        chosen_k.iter().for_each(|&expert| probs_e[expert as usize] = 0.0);
        self.margin_sum += smallest_chosen - probs_e.iter().fold(0.0, |largest: f64, &p| p.max(largest));
    }

    fn mean_load(&self) -> f64 {
        self.tokens_per_expert.iter().sum::<u64>() as f64 / self.tokens_per_expert.len() as f64
    }

    fn over_mean_load(&self, value: f64, without_tokens: f64) -> f64 {
        let mean = self.mean_load();
        if mean > 0.0 { value / mean } else { without_tokens }
    }

    fn per_token(&self, sum: f64) -> f64 {
        if self.num_tokens == 0 { 0.0 } else { sum / self.num_tokens as f64 }
    }
}

impl From<RouterStatistics> for RouterSummary {
    fn from(statistics: RouterStatistics) -> Self {
        statistics.summary()
    }
}

/// The softmax, and the logarithm of its denominator.
fn softmax(logits_e: &[f64]) -> (Vec<f64>, f64) {
    let max = logits_e.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut probs_e: Vec<f64> = logits_e.iter().map(|&logit| (logit - max).exp()).collect();
    let sum: f64 = probs_e.iter().sum();
    probs_e.iter_mut().for_each(|p| *p /= sum);
    (probs_e, sum.ln() + max)
}

/// `-p ln p`, with its limit 0 at 0.
fn entropy_term(p: f64) -> f64 {
    if p > 0.0 { -p * p.ln() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::select_top_k;

    fn measure(logits_te: &[f64], num_experts: usize, top_k: usize) -> RouterStatistics {
        let ids = select_top_k(logits_te, num_experts, top_k);
        RouterStatistics::measure(logits_te, &ids, None, num_experts, top_k)
    }

    fn numbers(summary: &RouterSummary) -> [f64; 9] {
        [
            summary.max_violation,
            summary.coefficient_of_variation,
            summary.gini_coefficient,
            summary.effective_num_experts,
            summary.gate_entropy_nats,
            summary.marginal_entropy_nats,
            summary.dead_expert_fraction,
            summary.gate_margin,
            summary.dropped_fraction,
        ]
    }

    #[track_caller]
    fn assert_close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() < 1e-12, "{actual} instead of {expected}");
    }

    /// Worked by hand: four tokens with probabilities (1/2, 1/4, 1/4), one with (1/4, 1/4, 1/2),
    /// k = 1.
    #[test]
    fn golden_values() {
        let (half, quarter) = (0.5_f64.ln(), 0.25_f64.ln());
        let mut logits_te = [half, quarter, quarter].repeat(4);
        logits_te.extend([quarter, quarter, half]);
        let summary = measure(&logits_te, 3, 1).with_dropped(2).summary();
        assert_eq!(summary.tokens_per_expert, [4, 0, 1]);
        assert_close(summary.max_violation, 1.4); // 4 / (5/3) - 1
        // Variance (49 + 25 + 4) / 27 = 26/9; its root over 5/3.
        assert_close(summary.coefficient_of_variation, 26.0_f64.sqrt() / 5.0);
        // Six ordered pairs differ by 4, 4, 1, 1, 3, 3: 16 / (2 * 3 * 5).
        assert_close(summary.gini_coefficient, 8.0 / 15.0);
        // exp(0.8 ln(5/4) + 0.2 ln 5) = 5 / 4^0.8.
        assert_close(summary.effective_num_experts, 5.0 / 4.0_f64.powf(0.8));
        assert_close(summary.gate_entropy_nats, 1.5 * 2.0_f64.ln());
        // Mean probabilities 0.45, 0.25, 0.3.
        assert_close(
            summary.marginal_entropy_nats,
            -(0.45 * 0.45_f64.ln() + 0.25 * 0.25_f64.ln() + 0.3 * 0.3_f64.ln()),
        );
        assert_close(summary.dead_expert_fraction, 1.0 / 3.0);
        assert_close(summary.gate_margin, 0.25);
        assert_close(summary.dropped_fraction, 0.4);
    }

    #[test]
    fn the_margin_is_the_kth_minus_the_next_probability() {
        let logits_te: Vec<f64> = [0.1_f64, 0.4, 0.2, 0.3].iter().map(|p| p.ln()).collect();
        assert_close(measure(&logits_te, 4, 1).gate_margin(), 0.1);
        assert_close(measure(&logits_te, 4, 3).gate_margin(), 0.1); // 0.2 - 0.1
        assert_close(measure(&logits_te, 4, 4).gate_margin(), 0.1); // 0.1 - 0
    }

    #[test]
    fn one_expert_is_perfectly_balanced_and_certain() {
        let summary = measure(&[0.3, -7.0, 1e4], 1, 1).summary();
        assert_eq!(summary.tokens_per_expert, [3]);
        assert_eq!(numbers(&summary), [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn a_collapsed_router_violates_by_experts_over_k_minus_one() {
        let logits_te = [1e4, -1e4, -1e4, -1e4].repeat(5);
        let summary = measure(&logits_te, 4, 1).summary();
        assert_close(summary.coefficient_of_variation, 3.0_f64.sqrt());
        let exact = RouterSummary { coefficient_of_variation: 0.0, ..summary };
        assert_eq!(numbers(&exact), [3.0, 0.0, 0.75, 1.0, 0.0, 0.0, 0.75, 1.0, 0.0]);
    }

    #[test]
    fn even_loads_have_no_inequality_and_use_every_expert() {
        let even = measure(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], 3, 1);
        assert_eq!(even.tokens_per_expert(), [1; 3]);
        assert_eq!(even.gini_coefficient(), 0.0);
        assert_close(even.effective_num_experts(), 3.0);
    }

    #[test]
    fn a_router_collapsed_to_k_experts_effectively_uses_k() {
        let collapsed = measure(&[0.9, 0.8, 0.1, 0.0].repeat(5), 4, 2);
        assert_close(collapsed.gini_coefficient(), 0.5);
        assert_close(collapsed.effective_num_experts(), 2.0);
    }

    #[test]
    fn no_tokens_are_no_numbers_but_zeros() {
        let summary = measure(&[], 4, 2).summary();
        assert_eq!(numbers(&summary), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    }

    proptest! {
        #[test]
        fn statistics_are_finite_and_in_range(
            logits in prop::collection::vec(prop::sample::select(vec![-1e4, -1.0, 0.0, 0.5, 3.0, 1e4]), 24),
            num_experts in prop::sample::select(vec![1_usize, 2, 3, 8, 24]),
            share in 0.0..1.0_f64,
        ) {
            let top_k = 1 + (share * num_experts as f64) as usize;
            let summary = measure(&logits, num_experts, top_k).summary();
            let most = (num_experts as f64).ln() + 1e-12;
            prop_assert!(numbers(&summary).iter().all(|x| x.is_finite()));
            prop_assert_eq!(summary.tokens_per_expert.iter().sum::<u64>() as usize, 24 / num_experts * top_k);
            prop_assert!((0.0..=num_experts as f64 / top_k as f64 - 1.0 + 1e-12).contains(&summary.max_violation));
            let few = 1.0 - top_k as f64 / num_experts as f64;
            prop_assert!((0.0..=few + 1e-12).contains(&summary.gini_coefficient));
            prop_assert!(summary.effective_num_experts >= top_k as f64 - 1e-12);
            prop_assert!(summary.effective_num_experts <= num_experts as f64 + 1e-12);
            prop_assert!((0.0..=most).contains(&summary.gate_entropy_nats));
            // Entropy is concave: the mean's entropy is at least the mean entropy.
            prop_assert!(summary.marginal_entropy_nats >= summary.gate_entropy_nats - 1e-12);
            prop_assert!(summary.marginal_entropy_nats <= most);
            prop_assert!((0.0..=1.0).contains(&summary.gate_margin));
            prop_assert!((0.0..1.0).contains(&summary.dead_expert_fraction));
        }

        /// The oracle is the definition, over all pairs.
        #[test]
        fn gini_is_the_mean_difference_over_twice_the_mean(
            logits in prop::collection::vec(prop::sample::select(vec![-1.0, 0.0, 0.5, 3.0]), 40),
            top_k in 1_usize..=5,
        ) {
            let statistics = measure(&logits, 5, top_k);
            let load_e = statistics.tokens_per_expert();
            let pairs = load_e.iter().flat_map(|a| load_e.iter().map(move |b| a.abs_diff(*b)));
            let expected = pairs.sum::<u64>() as f64 / (2 * 5 * load_e.iter().sum::<u64>()) as f64;
            prop_assert!((statistics.gini_coefficient() - expected).abs() < 1e-12);
        }

        #[test]
        fn merging_micro_batches_measures_all_their_tokens(
            logits in prop::collection::vec(-3.0..3.0_f64, 40),
            split in 0_usize..=10,
        ) {
            let (first, second) = logits.split_at(split * 4);
            let mut merged = measure(first, 4, 2).with_dropped(1);
            merged.merge(&measure(second, 4, 2).with_dropped(2));
            let whole = measure(&logits, 4, 2).with_dropped(3);
            prop_assert_eq!(merged.tokens_per_expert(), whole.tokens_per_expert());
            for (a, b) in numbers(&merged.summary()).iter().zip(numbers(&whole.summary())) {
                prop_assert!((a - b).abs() < 1e-12, "{} instead of {}", a, b);
            }
        }
    }
}

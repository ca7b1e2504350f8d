//! Balanced assignment by Sinkhorn normalisation (S-BASE, Clark et al., arXiv:2202.01169).
//!
//! Shape letters: t tokens, e experts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bound on the logits: beyond it, infinities included, their differences mean nothing but must
/// stay finite.
const LARGEST_LOGIT: f64 = 1e100;

/// When the normalisation stops, and how sharp its plan is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SinkhornConfig {
    /// Divides the logits: a lower temperature follows them more closely and converges more slowly.
    pub temperature: f64,
    /// Upper limit of the normalisations of the columns.
    pub max_iterations: usize,
    /// Relative error of the column sums at which it stops.
    pub tolerance: f64,
}

impl Default for SinkhornConfig {
    fn default() -> Self {
        Self { temperature: 1.0, max_iterations: 100, tolerance: 1e-4 }
    }
}

/// The share of each token that each expert should take, if every expert takes as much: `[t, e]`,
/// row-major. It is the matrix `exp(logits / temperature)` with rows and columns scaled in turn
/// until the rows sum to 1 and the columns to `num_tokens / num_experts`. Rows sum to 1 whether or
/// not the columns have converged.
///
/// Select by the plan and take gates from the logits, as S-BASE and Megatron-LM do. Megatron-LM's
/// plan is this one divided by `num_tokens`, which selects the same.
///
/// Works on logarithms, so that any logits give a plan. NaN counts as the lowest logit.
///
/// # Shapes
/// - `logits_te`: `[num_tokens, num_experts]`, row-major
///
/// # Panics
/// If the temperature is not positive, or the logits do not divide into rows of `num_experts`.
pub fn sinkhorn_plan(logits_te: &[f64], num_experts: usize, config: &SinkhornConfig) -> Vec<f64> {
    assert!(config.temperature > 0.0, "temperature {} is not positive", config.temperature);
    let rows = logits_te.chunks_exact(num_experts);
    assert!(rows.remainder().is_empty(), "{} logits for {num_experts} experts", logits_te.len());
    let log_share = (rows.len() as f64 / num_experts as f64).ln();
    let mut log_plan_te: Vec<f64> = logits_te.iter().map(|&x| bounded(x / config.temperature)).collect();
    normalise_rows(&mut log_plan_te, num_experts);
    for _ in 0..config.max_iterations {
        let excess_e: Vec<f64> =
            log_column_sums(&log_plan_te, num_experts).iter().map(|log_sum| log_sum - log_share).collect();
        if excess_e.iter().all(|excess| excess.exp_m1().abs() <= config.tolerance) {
            break;
        }
        for log_plan_e in log_plan_te.chunks_exact_mut(num_experts) {
            log_plan_e.iter_mut().zip(&excess_e).for_each(|(log_plan, excess)| *log_plan -= excess);
        }
        normalise_rows(&mut log_plan_te, num_experts);
    }
    log_plan_te.iter().map(|log_plan| log_plan.exp()).collect()
}

fn bounded(logit: f64) -> f64 {
    if logit.is_nan() { -LARGEST_LOGIT } else { logit.clamp(-LARGEST_LOGIT, LARGEST_LOGIT) }
}

fn normalise_rows(log_plan_te: &mut [f64], num_experts: usize) {
    for log_plan_e in log_plan_te.chunks_exact_mut(num_experts) {
        // In two steps: beside a huge maximum, the logarithm of the sum would be rounded away.
        let max = log_plan_e.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        log_plan_e.iter_mut().for_each(|log_plan| *log_plan -= max);
        let log_sum = log_plan_e.iter().map(|log_plan| log_plan.exp()).sum::<f64>().ln();
        log_plan_e.iter_mut().for_each(|log_plan| *log_plan -= log_sum);
    }
}

fn log_column_sums(log_plan_te: &[f64], num_experts: usize) -> Vec<f64> {
    let mut max_e = vec![f64::NEG_INFINITY; num_experts];
    for log_plan_e in log_plan_te.chunks_exact(num_experts) {
        max_e.iter_mut().zip(log_plan_e).for_each(|(max, log_plan)| *max = max.max(*log_plan));
    }
    let mut sum_e = vec![0.0; num_experts];
    for log_plan_e in log_plan_te.chunks_exact(num_experts) {
        for ((sum, log_plan), max) in sum_e.iter_mut().zip(log_plan_e).zip(&max_e) {
            *sum += (log_plan - max).exp();
        }
    }
    sum_e.iter().zip(&max_e).map(|(sum, max)| sum.ln() + max).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::select_top_k;

    const PATIENT: SinkhornConfig =
        SinkhornConfig { temperature: 1.0, max_iterations: 10_000, tolerance: 1e-12 };

    #[track_caller]
    fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() <= tolerance, "{actual:?} instead of {expected:?}");
        }
    }

    fn column_sums(plan_te: &[f64], num_experts: usize) -> Vec<f64> {
        (0..num_experts).map(|e| plan_te.iter().skip(e).step_by(num_experts).sum()).collect()
    }

    /// Two tokens, two experts: the balanced plan ((p, q), (q, p)) keeps the cross ratio p^2 / q^2
    /// of exp(logits) = ((8, 2), (3, 3)), which is 4: p = 2/3.
    #[test]
    fn golden_values() {
        let logits: Vec<f64> = [8.0_f64, 2.0, 3.0, 3.0].iter().map(|x| x.ln()).collect();
        let expected = [2.0, 1.0, 1.0, 2.0].map(|x: f64| x / 3.0);
        assert_close(&sinkhorn_plan(&logits, 2, &PATIENT), &expected, 1e-12);
        // Half the temperature squares the cross ratio: p / q = 4.
        let sharp = sinkhorn_plan(&logits, 2, &SinkhornConfig { temperature: 0.5, ..PATIENT });
        assert_close(&sharp, &[0.8, 0.2, 0.2, 0.8], 1e-12);
    }

    #[derive(Deserialize)]
    struct Golden {
        num_experts: usize,
        temperature: f64,
        logits_te: Vec<f64>,
        plan_te: Vec<f64>,
    }

    /// Numbers of PyTorch, by scaling vectors instead of logarithms: `tests/golden/reference.py`.
    #[test]
    fn the_plan_is_that_of_the_pytorch_reference() {
        let golden: Vec<Golden> =
            serde_json::from_str(include_str!("../tests/golden/sinkhorn.json")).unwrap();
        for Golden { num_experts, temperature, logits_te, plan_te } in golden {
            let plan = sinkhorn_plan(&logits_te, num_experts, &SinkhornConfig { temperature, ..PATIENT });
            assert_close(&plan, &plan_te, 1e-11);
        }
    }

    /// Each token's logits are the previous one's, shifted by one expert: softmax already balances
    /// them.
    #[test]
    fn what_is_balanced_already_keeps_its_softmax() {
        let first = [0.3_f64, -1.0, 2.0, 0.0];
        let logits: Vec<f64> = (0..4).flat_map(|t| (0..4).map(move |e| first[(t + e) % 4])).collect();
        let partition: f64 = first.iter().map(|x| x.exp()).sum();
        let softmax: Vec<f64> = logits.iter().map(|x| x.exp() / partition).collect();
        let plan = sinkhorn_plan(&logits, 4, &SinkhornConfig::default());
        assert_close(&plan, &softmax, 1e-15);
        assert_eq!(select_top_k(&plan, 4, 1), select_top_k(&logits, 4, 1));
    }

    /// Every token prefers expert 0 by 2e4: the preference, being the same for all, is scaled away.
    #[test]
    fn a_preference_common_to_all_tokens_is_balanced_away() {
        let plan = sinkhorn_plan(&[1e4, -1e4, -1e4].repeat(5), 3, &SinkhornConfig::default());
        assert_close(&plan, &[1.0 / 3.0; 15], 1e-12);
    }

    #[test]
    fn degenerate_input_gives_a_plan() {
        let config = SinkhornConfig::default();
        assert!(sinkhorn_plan(&[], 3, &config).is_empty());
        assert_eq!(sinkhorn_plan(&[0.3, f64::NAN, -1e4], 1, &config), [1.0; 3]);
        assert_close(&sinkhorn_plan(&[f64::NAN; 4], 2, &config), &[0.5; 4], 1e-12);
        assert_close(&sinkhorn_plan(&[f64::INFINITY, f64::NEG_INFINITY], 2, &config), &[0.5; 2], 1e-12);
        // Fewer tokens than experts.
        assert_close(&sinkhorn_plan(&[5.0, 0.0, 0.0], 3, &config), &[1.0 / 3.0; 3], 1e-12);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn rows_sum_to_one_and_columns_to_the_even_share(
            logits in prop::collection::vec(-3.0..3.0_f64, 24),
            num_experts in prop::sample::select(vec![1_usize, 2, 4, 8, 24]),
        ) {
            let plan = sinkhorn_plan(&logits, num_experts, &PATIENT);
            let share = (24 / num_experts) as f64 / num_experts as f64;
            for row in plan.chunks(num_experts) {
                prop_assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-13);
            }
            for sum in column_sums(&plan, num_experts) {
                prop_assert!((sum / share - 1.0).abs() < 2e-12, "column sum {sum} instead of {share}");
            }
        }

        /// Shifts per token and per expert are scalings of rows and columns, which the plan
        /// removes.
        #[test]
        fn shifting_a_token_or_an_expert_changes_nothing(
            logits in prop::collection::vec(-3.0..3.0_f64, 24),
            by_t in prop::collection::vec(-50.0..50.0_f64, 6),
            by_e in prop::collection::vec(-50.0..50.0_f64, 4),
        ) {
            let shifted: Vec<f64> =
                logits.iter().enumerate().map(|(i, x)| x + by_t[i / 4] + by_e[i % 4]).collect();
            let (plan, again) = (sinkhorn_plan(&logits, 4, &PATIENT), sinkhorn_plan(&shifted, 4, &PATIENT));
            for (a, b) in plan.iter().zip(again) {
                prop_assert!((a - b).abs() < 1e-9, "{} instead of {}", b, a);
            }
        }

        #[test]
        fn any_logits_give_rows_that_sum_to_one(
            logits in prop::collection::vec(prop::sample::select(vec![
                -1e4, -1.0, 0.0, 0.5, 1e4, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX,
            ]), 24),
            num_experts in prop::sample::select(vec![1_usize, 2, 3, 8, 24]),
        ) {
            let plan = sinkhorn_plan(&logits, num_experts, &SinkhornConfig::default());
            for row in plan.chunks(num_experts) {
                prop_assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{row:?}");
            }
        }
    }
}

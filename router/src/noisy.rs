//! Noisy top-k gating and its two balancing losses (Shazeer et al., arXiv:1701.06538), in closed form on the host:
//! the reference for what a device computes.
//!
//! Shape letters: t tokens, e experts, k experts per token.

use std::f64::consts::TAU;

use rand::Rng;
use rand::distr::{Distribution, Open01};

use crate::normal;
use crate::select_top_k;

/// The load loss and its gradients.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadLoss {
    /// Squared coefficient of variation of the experts' expected loads.
    pub loss: f64,
    /// Gradient with respect to the logits without noise: `[t, e]`, row-major.
    pub clean_logits_gradient_te: Vec<f64>,
    /// Gradient with respect to the noise's standard deviations: `[t, e]`, row-major.
    pub noise_std_gradient_te: Vec<f64>,
}

/// Gate logits with normal noise: `clean + normal * noise_std`, `[t, e]`, row-major (arXiv:1701.06538, eq. 4).
///
/// # Shapes
/// - `clean_logits_te`, `noise_std_te`: `[num_tokens, num_experts]`, row-major; the latter is the softplus of the
///   noise's own projection
///
/// # Panics
/// If there is not one standard deviation per logit.
pub fn noisy_logits(clean_logits_te: &[f64], noise_std_te: &[f64], rng: &mut impl Rng) -> Vec<f64> {
    check_lengths(clean_logits_te.len(), noise_std_te.len());
    clean_logits_te.iter().zip(noise_std_te).map(|(clean, std)| clean + std * standard_normal(rng)).collect()
}

/// Gates of all experts, softmax over each token's `top_k` highest logits and 0 elsewhere: `[t, e]`, row-major
/// (arXiv:1701.06538, eq. 3 and 5). NaN counts as the lowest logit.
///
/// # Panics
/// If `top_k` is not in `1..=num_experts`, or the logits do not divide into rows of `num_experts`.
pub fn noisy_top_k_gates(noisy_logits_te: &[f64], num_experts: usize, top_k: usize) -> Vec<f64> {
    let mut gates_te = vec![0.0; noisy_logits_te.len()];
    let chosen_tk = select_top_k(noisy_logits_te, num_experts, top_k);
    for (token, chosen_k) in chosen_tk.chunks_exact(top_k).enumerate() {
        let place = |&expert: &u32| token * num_experts + expert as usize;
        let logit = |expert: &u32| or_lowest(noisy_logits_te[place(expert)]);
        let weights: Vec<f64> =
            chosen_k.iter().map(|expert| (logit(expert) - logit(&chosen_k[0])).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for (expert, weight) in chosen_k.iter().zip(weights) {
            gates_te[place(expert)] = weight / sum;
        }
    }
    gates_te
}

/// The squared coefficient of variation of the experts' importance, the sum over tokens of their gates, and its
/// gradient with respect to the gates: `[t, e]`, row-major (arXiv:1701.06538, eq. 6 and 7). Population variance over
/// squared mean. Unscaled: the caller applies the weight. 0 without gates; NaN counts as no gate.
///
/// # Shapes
/// - `gates_te`: `[num_tokens, num_experts]`, row-major
///
/// # Panics
/// If the gates do not divide into rows of `num_experts`.
pub fn importance_loss_and_gradient(gates_te: &[f64], num_experts: usize) -> (f64, Vec<f64>) {
    let (loss, gradient_e) = squared_variation(&column_sums(gates_te, num_experts));
    (loss, gradient_e.repeat(gates_te.len() / num_experts))
}

/// The squared coefficient of variation of the experts' expected loads, and its gradients (arXiv:1701.06538, eq. 10
/// and 11). A load is the sum over tokens of [`load_probabilities`], which is smooth in the logits where a count is
/// not. The thresholds are constants of the gradient. Population variance over squared mean. Unscaled: the caller
/// applies the weight.
///
/// # Shapes
/// - `clean_logits_te`, `noise_std_te`, `noisy_logits_te`: `[num_tokens, num_experts]`, row-major
///
/// # Panics
/// If `top_k` is not in `1..=num_experts`, or the lengths do not fit.
pub fn load_loss_and_gradient(
    clean_logits_te: &[f64],
    noise_std_te: &[f64],
    noisy_logits_te: &[f64],
    num_experts: usize,
    top_k: usize,
) -> LoadLoss {
    let standardised_te = standardised(clean_logits_te, noise_std_te, noisy_logits_te, num_experts, top_k);
    let probability_te: Vec<f64> = standardised_te.iter().map(|&z| normal::cumulative(z)).collect();
    let (loss, gradient_e) = squared_variation(&column_sums(&probability_te, num_experts));
    let slope = |i: usize, z: f64| gradient_e[i % num_experts] * normal::density(z) / noise_std_te[i];
    let gradient = |of_z: fn(f64) -> f64| {
        let terms = standardised_te.iter().enumerate();
        // Where z is infinite, the probability is 0 or 1 and does not move.
        terms.map(|(i, &z)| if z.is_finite() { slope(i, z) * of_z(z) } else { 0.0 }).collect()
    };
    LoadLoss { loss, clean_logits_gradient_te: gradient(|_| 1.0), noise_std_gradient_te: gradient(|z| -z) }
}

/// Probability that an expert would be among the token's `top_k` if its own noise were drawn again: `[t, e]`,
/// row-major. `Phi((clean - threshold) / noise_std)`, the threshold being the k-th highest of the other experts'
/// noisy logits (arXiv:1701.06538, eq. 8 and 9). 1 where fewer than k others exist. Without noise it is 0 or 1, and
/// 1 at a tie.
///
/// # Shapes
/// - `clean_logits_te`, `noise_std_te`, `noisy_logits_te`: `[num_tokens, num_experts]`, row-major
///
/// # Panics
/// If `top_k` is not in `1..=num_experts`, or the lengths do not fit.
pub fn load_probabilities(
    clean_logits_te: &[f64],
    noise_std_te: &[f64],
    noisy_logits_te: &[f64],
    num_experts: usize,
    top_k: usize,
) -> Vec<f64> {
    let standardised_te = standardised(clean_logits_te, noise_std_te, noisy_logits_te, num_experts, top_k);
    standardised_te.iter().map(|&z| normal::cumulative(z)).collect()
}

/// How many standard deviations of its noise each clean logit lies above its threshold, infinite where the choice is
/// certain: `[t, e]`.
fn standardised(
    clean_logits_te: &[f64],
    noise_std_te: &[f64],
    noisy_logits_te: &[f64],
    num_experts: usize,
    top_k: usize,
) -> Vec<f64> {
    check_lengths(clean_logits_te.len(), noise_std_te.len());
    check_lengths(clean_logits_te.len(), noisy_logits_te.len());
    let threshold_te = thresholds(noisy_logits_te, num_experts, top_k);
    let margins = clean_logits_te.iter().zip(&threshold_te).map(|(&clean, &threshold)| {
        if clean.is_nan() { f64::NEG_INFINITY } else { or_lowest(clean) - threshold }
    });
    margins.zip(noise_std_te).map(|(margin, &std)| in_standard_deviations(margin, std)).collect()
}

fn in_standard_deviations(margin: f64, std: f64) -> f64 {
    let z = margin / std;
    if std > 0.0 && !z.is_nan() {
        z
    } else if margin >= 0.0 {
        f64::INFINITY
    } else {
        f64::NEG_INFINITY
    }
}

/// The k-th highest noisy logit of the other experts; minus infinity where there are fewer: `[t, e]`.
fn thresholds(noisy_logits_te: &[f64], num_experts: usize, top_k: usize) -> Vec<f64> {
    let num_ranked = (top_k + 1).min(num_experts);
    let ranked = select_top_k(noisy_logits_te, num_experts, num_ranked);
    let rows = noisy_logits_te.chunks_exact(num_experts).zip(ranked.chunks_exact(num_ranked));
    let row_thresholds = |(noisy_e, ranked): (&[f64], &[u32])| {
        let logit = |rank: usize| {
            ranked.get(rank).map_or(f64::NEG_INFINITY, |&expert| or_lowest(noisy_e[expert as usize]))
        };
        // An expert among the k best is out of its own way: the next one moves up to the k-th place.
        let chosen = &ranked[..top_k];
        let (kth, next) = (logit(top_k - 1), logit(top_k));
        (0..num_experts as u32)
            .map(|expert| if chosen.contains(&expert) { next } else { kth })
            .collect::<Vec<_>>()
    };
    rows.flat_map(row_thresholds).collect()
}

/// Variance over squared mean of the loads, and its gradient. Never by way of the standard deviation, whose slope at
/// perfect balance is infinite (google-research/vmoe#218).
fn squared_variation(load_e: &[f64]) -> (f64, Vec<f64>) {
    let num_experts = load_e.len() as f64;
    let mean = load_e.iter().sum::<f64>() / num_experts;
    if mean == 0.0 {
        return (0.0, vec![0.0; load_e.len()]);
    }
    // Relative to the mean, so that squares neither overflow nor vanish.
    let loss = load_e.iter().map(|load| (load / mean - 1.0).powi(2)).sum::<f64>() / num_experts;
    let gradient = |load: &f64| 2.0 / (num_experts * mean) * (load / mean - 1.0 - loss);
    (loss, load_e.iter().map(gradient).collect())
}

fn column_sums(values_te: &[f64], num_experts: usize) -> Vec<f64> {
    let rows = values_te.chunks_exact(num_experts);
    assert!(rows.remainder().is_empty(), "{} values for {num_experts} experts", values_te.len());
    let mut sum_e = vec![0.0; num_experts];
    for values_e in rows {
        for (sum, value) in sum_e.iter_mut().zip(values_e).filter(|(_, value)| !value.is_nan()) {
            *sum += value;
        }
    }
    sum_e
}

/// The logit, with NaN as the lowest: finite, so that differences are numbers.
fn or_lowest(logit: f64) -> f64 {
    // Half the range: a difference of two cannot overflow.
    let bound = f64::MAX / 2.0;
    if logit.is_nan() { -bound } else { logit.clamp(-bound, bound) }
}

/// By Box and Muller, one of the pair.
fn standard_normal(rng: &mut impl Rng) -> f64 {
    let [radius, angle]: [f64; 2] = [Open01.sample(rng), Open01.sample(rng)];
    (-2.0 * radius.ln()).sqrt() * (TAU * angle).cos()
}

fn check_lengths(num_logits: usize, num_others: usize) {
    assert!(num_logits == num_others, "{num_logits} logits do not fit {num_others} values");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::ChaCha8Rng};
    use serde::Deserialize;

    use super::*;

    const E: usize = 4;

    #[derive(Deserialize)]
    struct Golden {
        num_experts: usize,
        top_k: usize,
        clean_logits_te: Vec<f64>,
        noise_std_te: Vec<f64>,
        noisy_logits_te: Vec<f64>,
        gates_te: Vec<f64>,
        importance_loss: f64,
        importance_gradient_te: Vec<f64>,
        load_probabilities_te: Vec<f64>,
        load_loss: f64,
        clean_logits_gradient_te: Vec<f64>,
        noise_std_gradient_te: Vec<f64>,
    }

    #[track_caller]
    fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() <= tolerance, "{actual:?} instead of {expected:?}");
        }
    }

    /// Central differences: error 1e-10 from truncation plus 1e-10 from rounding, for values of size 1.
    fn differences(at: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        let step = 1e-5;
        let shifted = |i: usize, by: f64| {
            let mut x = at.to_vec();
            x[i] += by;
            loss(&x)
        };
        (0..at.len()).map(|i| (shifted(i, step) - shifted(i, -step)) / (2.0 * step)).collect()
    }

    /// Numbers of PyTorch's autograd, in f64: `tests/golden/reference.py`.
    #[test]
    fn everything_is_as_in_the_pytorch_reference() {
        let golden: Vec<Golden> = serde_json::from_str(include_str!("../tests/golden/noisy.json")).unwrap();
        for case in golden {
            let Golden { num_experts, top_k, .. } = case;
            assert_close(
                &noisy_top_k_gates(&case.noisy_logits_te, num_experts, top_k),
                &case.gates_te,
                1e-14,
            );
            let (loss, gradient) = importance_loss_and_gradient(&case.gates_te, num_experts);
            assert_close(&[loss], &[case.importance_loss], 1e-13);
            assert_close(&gradient, &case.importance_gradient_te, 1e-13);
            let (clean, std, noisy) = (&case.clean_logits_te, &case.noise_std_te, &case.noisy_logits_te);
            let probabilities = load_probabilities(clean, std, noisy, num_experts, top_k);
            assert_close(&probabilities, &case.load_probabilities_te, 1e-14);
            let load = load_loss_and_gradient(clean, std, noisy, num_experts, top_k);
            assert_close(&[load.loss], &[case.load_loss], 1e-13);
            assert_close(&load.clean_logits_gradient_te, &case.clean_logits_gradient_te, 1e-12);
            assert_close(&load.noise_std_gradient_te, &case.noise_std_gradient_te, 1e-12);
        }
    }

    /// Importances 1.5 and 0.5: variance 1/4, mean 1. The slope is (load - 1) - 1/4.
    #[test]
    fn golden_values() {
        let (loss, gradient) = importance_loss_and_gradient(&[0.75, 0.25, 0.75, 0.25], 2);
        assert_close(&[loss], &[0.25], 1e-15);
        assert_close(&gradient, &[0.25, -0.75, 0.25, -0.75], 1e-15);
        // Clean logits one standard deviation above and below the other's noisy logit.
        let probabilities = load_probabilities(&[1.0, -2.0], &[0.5, 3.0], &[1.0, 0.5], 2, 1);
        assert_close(&probabilities, &[0.841_344_746_068_542_9, 0.158_655_253_931_457_05], 1e-15);
    }

    #[test]
    fn regression_vmoe_218_the_gradient_at_perfect_balance_is_zero() {
        let (loss, gradient) = importance_loss_and_gradient(&[0.25; 4 * E], E);
        assert_eq!((loss, gradient), (0.0, vec![0.0; 4 * E]));
        // A zero router: every expert as likely as every other. One expert: always balanced.
        for (num_experts, top_k) in [(E, 2), (1, 1)] {
            let zeros = [0.0; 4 * E];
            let load = load_loss_and_gradient(&zeros, &[1.0; 4 * E], &zeros, num_experts, top_k);
            assert_eq!(load.loss, 0.0);
            assert_eq!(load.clean_logits_gradient_te, [0.0; 4 * E]);
            assert!(load.noise_std_gradient_te.iter().all(|&slope| slope == 0.0));
        }
    }

    #[test]
    fn all_experts_or_no_tokens_are_balanced() {
        let (clean, std) = ([0.3, -1.0, 7.0, 0.0], [0.5; 4]);
        assert_eq!(load_probabilities(&clean, &std, &clean, E, E), [1.0; 4]);
        let load = load_loss_and_gradient(&clean, &std, &clean, E, E);
        assert_eq!((load.loss, load.clean_logits_gradient_te), (0.0, vec![0.0; 4]));
        assert_eq!(load_loss_and_gradient(&[], &[], &[], E, 2).loss, 0.0);
        assert_eq!(importance_loss_and_gradient(&[], E), (0.0, vec![]));
        assert_eq!(importance_loss_and_gradient(&[0.0; 4], E), (0.0, vec![0.0; 4]));
    }

    #[test]
    fn without_noise_the_probability_is_the_choice() {
        let logits = [0.3, -1.0, 7.0, 0.0];
        assert_eq!(load_probabilities(&logits, &[0.0; 4], &logits, E, 2), [1.0, 0.0, 1.0, 0.0]);
        let load = load_loss_and_gradient(&logits, &[0.0; 4], &logits, E, 2);
        assert_eq!((load.loss, load.clean_logits_gradient_te), (1.0, vec![0.0; 4]));
    }

    /// 20,000 draws: the mean's standard deviation is 2 / sqrt(20000) = 0.014, and that of the variance's estimate
    /// 4 sqrt(2 / 20000) = 0.04.
    #[test]
    fn the_noise_has_its_mean_and_standard_deviation() {
        let n = 20_000;
        let noisy = noisy_logits(&vec![3.0; n], &vec![2.0; n], &mut ChaCha8Rng::seed_from_u64(9));
        let mean = noisy.iter().sum::<f64>() / n as f64;
        let variance = noisy.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((mean - 3.0).abs() < 4.0 * 0.0142, "mean {mean}");
        assert!((variance - 4.0).abs() < 4.0 * 0.04, "variance {variance}");
        let certain = noisy_logits(&[1.0, 2.0], &[0.0; 2], &mut ChaCha8Rng::seed_from_u64(9));
        assert_eq!(certain, [1.0, 2.0]);
    }

    /// The probability by its meaning: redraw one expert's noise and count how often it is chosen. 20,000 draws have a
    /// standard deviation of at most 0.0036.
    #[test]
    fn the_load_probability_is_the_frequency_of_being_chosen() {
        let (clean, std) = ([0.3, -0.2, 0.9, 0.1], [0.7, 1.1, 0.4, 0.9]);
        let mut rng = ChaCha8Rng::seed_from_u64(10);
        let noisy = noisy_logits(&clean, &std, &mut rng);
        let probabilities = load_probabilities(&clean, &std, &noisy, E, 2);
        for (expert, &probability) in probabilities.iter().enumerate() {
            let mut redrawn = noisy.clone();
            let chosen = (0..20_000).filter(|_| {
                redrawn[expert] = noisy_logits(&clean[expert..=expert], &std[expert..=expert], &mut rng)[0];
                select_top_k(&redrawn, E, 2).contains(&(expert as u32))
            });
            let frequency = chosen.count() as f64 / 20_000.0;
            assert!((frequency - probability).abs() < 4.0 * 0.0036, "{frequency} instead of {probability}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn gradients_are_the_slopes_of_the_losses(
            clean in prop::collection::vec(-2.0..2.0_f64, 3 * E),
            std in prop::collection::vec(0.5..2.0_f64, 3 * E),
            noisy in prop::collection::vec(-2.0..2.0_f64, 3 * E),
            top_k in 1..=E,
        ) {
            // The noisy logits, and with them the thresholds, stay: constants of the gradient.
            let load = load_loss_and_gradient(&clean, &std, &noisy, E, top_k);
            let by_clean = differences(&clean, |x| load_loss_and_gradient(x, &std, &noisy, E, top_k).loss);
            let by_std = differences(&std, |x| load_loss_and_gradient(&clean, x, &noisy, E, top_k).loss);
            assert_close(&load.clean_logits_gradient_te, &by_clean, 1e-8);
            assert_close(&load.noise_std_gradient_te, &by_std, 1e-8);
            let gates = noisy_top_k_gates(&noisy, E, top_k);
            let (_, gradient) = importance_loss_and_gradient(&gates, E);
            assert_close(&gradient, &differences(&gates, |x| importance_loss_and_gradient(x, E).0), 1e-8);
        }

        #[test]
        fn any_input_gives_numbers(
            rows in prop::collection::vec(
                (prop::sample::select(vec![-1e4, 0.0, 0.5, 1e4, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
                 prop::sample::select(vec![0.0, 1e-300, 1.0, 1e4, f64::NAN, f64::INFINITY]),
                 prop::sample::select(vec![-1e4, 0.0, 0.5, 1e4, f64::NAN, f64::INFINITY, f64::NEG_INFINITY])),
                24,
            ),
            num_experts in prop::sample::select(vec![1_usize, 2, 3, 8, 24]),
            share in 0.0..1.0_f64,
        ) {
            let top_k = 1 + (share * num_experts as f64) as usize;
            let clean: Vec<f64> = rows.iter().map(|row| row.0).collect();
            let std: Vec<f64> = rows.iter().map(|row| row.1).collect();
            let noisy: Vec<f64> = rows.iter().map(|row| row.2).collect();
            let load = load_loss_and_gradient(&clean, &std, &noisy, num_experts, top_k);
            prop_assert!(load.loss.is_finite());
            let gradients = load.clean_logits_gradient_te.iter().chain(&load.noise_std_gradient_te);
            prop_assert!(gradients.copied().all(f64::is_finite));
            let probabilities = load_probabilities(&clean, &std, &noisy, num_experts, top_k);
            prop_assert!(probabilities.iter().all(|p| (0.0..=1.0).contains(p)));
            let mut gates = noisy_top_k_gates(&noisy, num_experts, top_k);
            for gates_e in gates.chunks(num_experts) {
                prop_assert!((gates_e.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
            gates[0] = f64::NAN;
            let (loss, gradient) = importance_loss_and_gradient(&gates, num_experts);
            prop_assert!(loss.is_finite() && gradient.iter().all(|slope| slope.is_finite()));
        }
    }
}

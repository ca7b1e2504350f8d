//! Noisy top-k gating and its two balancing losses (Shazeer et al., arXiv:1701.06538), in closed
//! form on the host: what the router's tensors are compared with.
//!
//! Shape letters: t tokens, e experts, k experts per token.

use std::f64::consts::TAU;

use rand::Rng;
use rand::distr::{Distribution, Open01};
use switchyard_router::select_top_k;

use crate::normal;

/// The load loss and its gradients.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LoadLoss {
    /// Squared coefficient of variation of the experts' expected loads.
    pub(crate) loss: f64,
    /// Gradient with respect to the logits without noise: `[t, e]`, row-major.
    pub(crate) clean_logits_gradient_te: Vec<f64>,
    /// Gradient with respect to the noise's standard deviations: `[t, e]`, row-major.
    pub(crate) noise_std_gradient_te: Vec<f64>,
}

/// Gate logits with normal noise: `clean + normal * noise_std`, `[t, e]`, row-major
/// (arXiv:1701.06538, eq. 4).
///
/// # Shapes
/// - `clean_logits_te`, `noise_std_te`: `[num_tokens, num_experts]`, row-major; the latter is the
///   softplus of the noise's own projection
///
/// # Panics
/// If there is not one standard deviation per logit.
pub(crate) fn noisy_logits(clean_logits_te: &[f64], noise_std_te: &[f64], rng: &mut impl Rng) -> Vec<f64> {
    check_lengths(clean_logits_te.len(), noise_std_te.len());
    clean_logits_te.iter().zip(noise_std_te).map(|(clean, std)| clean + std * standard_normal(rng)).collect()
}

/// Gates of all experts, softmax over each token's `top_k` highest logits and 0 elsewhere:
/// `[t, e]`, row-major (arXiv:1701.06538, eq. 3 and 5). NaN counts as the lowest logit.
///
/// # Panics
/// If `top_k` is not in `1..=num_experts`, or the logits do not divide into rows of `num_experts`.
pub(crate) fn noisy_top_k_gates(noisy_logits_te: &[f64], num_experts: usize, top_k: usize) -> Vec<f64> {
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

/// The squared coefficient of variation of the experts' importance, the sum over tokens of their
/// gates, and its gradient with respect to the gates: `[t, e]`, row-major (arXiv:1701.06538, eq. 6
/// and 7). Population variance over squared mean. Unscaled: the caller applies the weight. 0
/// without gates; NaN counts as no gate.
///
/// # Shapes
/// - `gates_te`: `[num_tokens, num_experts]`, row-major
///
/// # Panics
/// If the gates do not divide into rows of `num_experts`.
pub(crate) fn importance_loss_and_gradient(gates_te: &[f64], num_experts: usize) -> (f64, Vec<f64>) {
    let (loss, gradient_e) = squared_variation(&column_sums(gates_te, num_experts));
    (loss, gradient_e.repeat(gates_te.len() / num_experts))
}

/// The squared coefficient of variation of the experts' expected loads, and its gradients
/// (arXiv:1701.06538, eq. 10 and 11). A load is the sum over tokens of [`load_probabilities`],
/// which is smooth in the logits where a count is not. The thresholds are constants of the
/// gradient. Population variance over squared mean. Unscaled: the caller applies the weight.
///
/// # Shapes
/// - `clean_logits_te`, `noise_std_te`, `noisy_logits_te`: `[num_tokens, num_experts]`, row-major
///
/// # Panics
/// If `top_k` is not in `1..=num_experts`, or the lengths do not fit.
pub(crate) fn load_loss_and_gradient(
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

/// Probability that an expert would be among the token's `top_k` if its own noise were drawn again:
/// `[t, e]`, row-major. `Phi((clean - threshold) / noise_std)`, the threshold being the k-th
/// highest of the other experts' noisy logits (arXiv:1701.06538, eq. 8 and 9). 1 where fewer than k
/// others exist. Without noise it is 0 or 1, and 1 at a tie.
///
/// # Shapes
/// - `clean_logits_te`, `noise_std_te`, `noisy_logits_te`: `[num_tokens, num_experts]`, row-major
///
/// # Panics
/// If `top_k` is not in `1..=num_experts`, or the lengths do not fit.
pub(crate) fn load_probabilities(
    clean_logits_te: &[f64],
    noise_std_te: &[f64],
    noisy_logits_te: &[f64],
    num_experts: usize,
    top_k: usize,
) -> Vec<f64> {
    let standardised_te = standardised(clean_logits_te, noise_std_te, noisy_logits_te, num_experts, top_k);
    standardised_te.iter().map(|&z| normal::cumulative(z)).collect()
}

/// How many standard deviations of its noise each clean logit lies above its threshold, infinite
/// where the choice is certain: `[t, e]`.
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

/// The k-th highest noisy logit of the other experts; minus infinity where there are fewer:
/// `[t, e]`.
fn thresholds(noisy_logits_te: &[f64], num_experts: usize, top_k: usize) -> Vec<f64> {
    let num_ranked = (top_k + 1).min(num_experts);
    let ranked = select_top_k(noisy_logits_te, num_experts, num_ranked);
    let rows = noisy_logits_te.chunks_exact(num_experts).zip(ranked.chunks_exact(num_ranked));
    let row_thresholds = |(noisy_e, ranked): (&[f64], &[u32])| {
        let logit = |rank: usize| {
            ranked.get(rank).map_or(f64::NEG_INFINITY, |&expert| or_lowest(noisy_e[expert as usize]))
        };
        // An expert among the k best is out of its own way: the next one moves up to the k-th
        // place.
        let chosen = &ranked[..top_k];
        let (kth, next) = (logit(top_k - 1), logit(top_k));
        (0..num_experts as u32)
            .map(|expert| if chosen.contains(&expert) { next } else { kth })
            .collect::<Vec<_>>()
    };
    rows.flat_map(row_thresholds).collect()
}

/// Variance over squared mean of the loads, and its gradient. Never by way of the standard
/// deviation, whose slope at perfect balance is infinite (google-research/vmoe#218).
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

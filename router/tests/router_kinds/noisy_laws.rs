//! Whether the closed forms are right themselves: against PyTorch, against differences, by their
//! meaning.

use proptest::prelude::*;
use rand::{SeedableRng, rngs::ChaCha8Rng};
use serde::Deserialize;
use switchyard_router::select_top_k;

use crate::noisy::{
    importance_loss_and_gradient, load_loss_and_gradient, load_probabilities, noisy_logits, noisy_top_k_gates,
};

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
    let golden: Vec<Golden> = serde_json::from_str(include_str!("../golden/noisy.json")).unwrap();
    for case in golden {
        let Golden { num_experts, top_k, .. } = case;
        assert_close(&noisy_top_k_gates(&case.noisy_logits_te, num_experts, top_k), &case.gates_te, 1e-14);
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

/// 20,000 draws: the mean's standard deviation is 2 / sqrt(20000) = 0.014, and that of the
/// variance's estimate 4 sqrt(2 / 20000) = 0.04.
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

/// The probability by its meaning: redraw one expert's noise and count how often it is chosen.
/// 20,000 draws have a standard deviation of at most 0.0036.
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

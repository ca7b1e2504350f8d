//! Auxiliary losses that keep a router usable. Unscaled: the caller applies the configured weights.
//!
//! Shape letters: t tokens, e experts, k experts per token.

use burn::tensor::Tensor;
use switchyard_kernels::{expected_load, mean_square_log_partition};

/// How unevenly the experts are used: `E * sum_e f_e P_e` with `f_e = tokens_per_expert[e] / (T * k)` and `P_e` the
/// mean over tokens of the softmax over all experts (Switch, arXiv:2101.03961, eq. 4-6; GShard, arXiv:2006.16668, section 2.2). Only
/// `P_e` has a gradient. Perfect balance is 1, whatever `top_k` is; the worst case is `E / k`, all tokens on the same
/// k experts. Libraries that divide the counts by T alone (Hugging Face's `load_balancing_loss_func`) report k times
/// this value.
///
/// # Shapes
/// - `logits_te`: `[num_tokens, num_experts]`; returns `[1]`
///
/// # Panics
/// If `tokens_per_expert` has not one count per expert, or counts nothing.
pub fn load_balancing_loss(logits_te: Tensor<2>, tokens_per_expert: &[u64]) -> Tensor<1> {
    let [_, num_experts] = logits_te.dims();
    assert!(
        tokens_per_expert.len() == num_experts,
        "{} counts for {num_experts} experts",
        tokens_per_expert.len()
    );
    let num_assignments: u64 = tokens_per_expert.iter().sum();
    assert!(num_assignments > 0, "no token was assigned to any of the {num_experts} experts");
    let scale = num_experts as f64 / num_assignments as f64;
    let load_e: Vec<f64> = tokens_per_expert.iter().map(|&count| count as f64 * scale).collect();
    expected_load(logits_te, &load_e)
}

/// Mean squared log-partition of the gate; keeps logits small enough for low precision.
/// ST-MoE, arXiv:2202.08906, eq. 5.
///
/// # Shapes
/// - `logits_te`: `[num_tokens, num_experts]`; returns `[1]`
pub fn router_z_loss(logits_te: Tensor<2>) -> Tensor<1> {
    mean_square_log_partition(logits_te)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, Tensor, TensorData};
    use proptest::prelude::*;

    use super::*;

    const E: usize = 3;

    fn leaf(logits_te: &[f64], num_experts: usize) -> Tensor<2> {
        let data = TensorData::new(logits_te.to_vec(), [logits_te.len() / num_experts, num_experts]);
        Tensor::from_data(data, (&Device::flex().autodiff(), DType::F64)).require_grad()
    }

    fn value(loss: &Tensor<1>) -> f64 {
        loss.clone().into_scalar()
    }

    /// Central differences of `loss`: error 1e-10 from truncation plus 1e-10 from rounding, for values of size 1.
    fn differences(logits_te: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        let step = 1e-5;
        let shifted = |i: usize, by: f64| {
            let mut logits_te = logits_te.to_vec();
            logits_te[i] += by;
            loss(&logits_te)
        };
        (0..logits_te.len()).map(|i| (shifted(i, step) - shifted(i, -step)) / (2.0 * step)).collect()
    }

    #[track_caller]
    fn assert_gradient(leaf: &Tensor<2>, loss: Tensor<1>, expected: &[f64]) {
        let gradient = leaf.grad(&loss.backward()).unwrap().into_data().try_into_vec::<f64>().unwrap();
        for (actual, expected) in gradient.iter().zip(expected) {
            assert!((actual - expected).abs() < 1e-8, "{gradient:?} instead of {expected:?}");
        }
    }

    fn oracle_z_loss(logits_te: &[f64]) -> f64 {
        let rows = logits_te.chunks(E).map(|row| row.iter().map(|x| x.exp()).sum::<f64>().ln().powi(2));
        rows.sum::<f64>() / (logits_te.len() / E) as f64
    }

    fn oracle_load_balancing(logits_te: &[f64], counts: &[u64]) -> f64 {
        let (num_tokens, total) = ((logits_te.len() / E) as f64, counts.iter().sum::<u64>() as f64);
        let mut loss = 0.0;
        for row in logits_te.chunks(E) {
            let partition: f64 = row.iter().map(|x| x.exp()).sum();
            for (x, &count) in row.iter().zip(counts) {
                loss += E as f64 * count as f64 / total * x.exp() / partition / num_tokens;
            }
        }
        loss
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn z_loss_and_its_gradient_are_those_of_the_definition(
            logits in prop::collection::vec(-3.0..3.0_f64, 4 * E),
        ) {
            let logits_te = leaf(&logits, E);
            let loss = router_z_loss(logits_te.clone());
            prop_assert!((value(&loss) - oracle_z_loss(&logits)).abs() < 1e-12);
            assert_gradient(&logits_te, loss, &differences(&logits, oracle_z_loss));
        }

        #[test]
        fn load_balancing_loss_and_its_gradient_are_those_of_the_definition(
            logits in prop::collection::vec(-3.0..3.0_f64, 4 * E),
            counts in prop::collection::vec(1_u64..9, E),
        ) {
            let logits_te = leaf(&logits, E);
            let loss = load_balancing_loss(logits_te.clone(), &counts);
            prop_assert!((value(&loss) - oracle_load_balancing(&logits, &counts)).abs() < 1e-12);
            assert_gradient(&logits_te, loss, &differences(&logits, |x| oracle_load_balancing(x, &counts)));
        }
    }

    #[test]
    fn even_probabilities_or_even_loads_cost_one_whatever_k() {
        let uniform = leaf(&[0.0; 8], 4);
        assert!((value(&load_balancing_loss(uniform, &[4, 0, 0, 0])) - 1.0).abs() < 1e-12);
        let decided = leaf(&[5.0, 0.0, -3.0, 1.0], 4);
        for count in [1, 2, 7] {
            assert!((value(&load_balancing_loss(decided.clone(), &[count; 4])) - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_collapsed_router_costs_the_number_of_experts() {
        let certain = leaf(&[1e4, 0.0, 0.0, 0.0], 4);
        assert!((value(&load_balancing_loss(certain, &[1, 0, 0, 0])) - 4.0).abs() < 1e-12);
    }

    #[test]
    fn one_expert_costs_exactly_one_without_gradient() {
        let logits_t1 = leaf(&[0.3, -2.0, 1e4], 1);
        let loss = load_balancing_loss(logits_t1.clone(), &[3]);
        assert_eq!(value(&loss), 1.0);
        assert_gradient(&logits_t1, loss, &[0.0; 3]);
    }

    #[test]
    fn huge_logits_stay_finite() {
        for logits in [[1e4, -1e4, 0.0], [-1e4; 3], [1e4; 3]] {
            let logits_te = leaf(&logits, E);
            let loss = router_z_loss(logits_te.clone()) + load_balancing_loss(logits_te.clone(), &[1, 0, 0]);
            assert!(value(&loss).is_finite());
            let gradient = logits_te.grad(&loss.backward()).unwrap().into_data();
            assert!(gradient.iter::<f64>().all(f64::is_finite), "{gradient:?}");
        }
    }

    #[test]
    #[should_panic(expected = "2 counts for 3 experts")]
    fn a_wrong_number_of_counts_is_refused() {
        load_balancing_loss(leaf(&[0.0; 3], E), &[1, 1]);
    }
}

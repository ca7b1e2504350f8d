//! Soft mixing (Soft MoE, arXiv:2308.00951) against its equations in plain loops, and its laws.

use burn::tensor::{DType, Tensor};
use proptest::prelude::*;
use switchyard_router::{RouterConfig, RouterPass};

use crate::case::{Setup, Values, forward_in_sequences, layer, layer_gradients, tensor, training, values};
use crate::oracle::{expert, softmax, vector_times_matrix};

/// Sequences of `seq_len` tokens, 3 experts.
fn setup(num_sequences: usize, seq_len: usize, slots_per_expert: usize) -> Setup {
    let router: RouterConfig = serde_json::from_str(r#"{"top_k": 2, "selection": {"soft": {}}}"#).unwrap();
    assert_eq!(router.validate(3), Ok(()));
    Setup { router, slots_per_expert, ..Setup::small(num_sequences * seq_len, 3, 2) }
}

/// Eq. 1 to 3, one sequence at a time.
fn mixed(setup: &Setup, inputs: &Values, seq_len: usize) -> Vec<f64> {
    let (d, q) = (setup.d_model, setup.num_experts * setup.slots_per_expert);
    let of_sequence = |sequence: &[f64]| {
        let tokens: Vec<&[f64]> = sequence.chunks(d).collect();
        let logits: Vec<Vec<f64>> =
            tokens.iter().map(|x| vector_times_matrix(x, &inputs.router_de, q)).collect();
        let outputs: Vec<Vec<f64>> = (0..q)
            .map(|slot| {
                let column: Vec<f64> = logits.iter().map(|logits| logits[slot]).collect();
                let mut mean = vec![0.0; d];
                for (weight, x) in softmax(&column).iter().zip(&tokens) {
                    mean.iter_mut().zip(*x).for_each(|(sum, x)| *sum += weight * x);
                }
                expert(setup, inputs, slot / setup.slots_per_expert, &mean)
            })
            .collect();
        let of_token = |logits: &Vec<f64>| {
            let mut y = vec![0.0; d];
            for (weight, output) in softmax(logits).iter().zip(&outputs) {
                y.iter_mut().zip(output).for_each(|(sum, output)| *sum += weight * output);
            }
            y
        };
        logits.iter().flat_map(of_token).collect::<Vec<f64>>()
    };
    inputs.x_td.chunks(seq_len * d).flat_map(of_sequence).collect()
}

fn run(setup: &Setup, inputs: &Values, seq_len: usize) -> Vec<f64> {
    let layer = layer(setup, inputs, DType::F64);
    let x_td = tensor(&inputs.x_td, [setup.num_tokens, setup.d_model], DType::F64);
    values(&forward_in_sequences(&layer, x_td, seq_len, RouterPass::Evaluation).hidden_td)
}

#[test]
fn the_output_is_that_of_the_paper() {
    for (num_sequences, seq_len, slots_per_expert) in [(1, 1, 1), (2, 5, 1), (3, 4, 2), (2, 2, 4)] {
        let setup = setup(num_sequences, seq_len, slots_per_expert);
        let inputs = Values::random(&setup, 31);
        for (a, e) in run(&setup, &inputs, seq_len).iter().zip(mixed(&setup, &inputs, seq_len)) {
            // Sums of some dozen terms of size 1 in f64.
            assert!((a - e).abs() < 1e-11, "{a} instead of {e}");
        }
    }
}

/// Central differences of the oracle with step 1e-5: truncation and rounding each leave about 1e-10
/// to 1e-9.
#[test]
fn gradients_are_those_of_the_equations() {
    let setup = setup(2, 4, 2);
    let inputs = Values::random(&setup, 32);
    let shape = [setup.num_tokens, setup.d_model];
    let layer = layer(&setup, &inputs, DType::F64);
    let x_td = tensor(&inputs.x_td, shape, DType::F64).require_grad();
    let output = forward_in_sequences(&layer, x_td.clone(), 4, training());
    assert!(output.aux.losses.is_empty() && output.aux.balance.is_none() && output.aux.route.is_none());
    let loss = (output.hidden_td * tensor(&inputs.c_td, shape, DType::F64)).sum();
    let gradients = layer_gradients(&x_td, &layer, &loss.backward()).map(|gradient| values(&gradient));
    for (leaf, gradient) in gradients.iter().enumerate().take(5) {
        for (i, actual) in gradient.iter().enumerate() {
            let value_at = |by: f64| {
                let mut shifted = inputs.clone();
                shifted.leaves_mut()[leaf].1[i] += by;
                let hidden = mixed(&setup, &shifted, 4);
                hidden.iter().zip(&shifted.c_td).map(|(y, c)| y * c).sum::<f64>()
            };
            let expected = (value_at(1e-5) - value_at(-1e-5)) / 2e-5;
            let leaf = inputs.clone().leaves_mut()[leaf].0;
            assert!((actual - expected).abs() < 1e-7, "{leaf}: {actual} instead of {expected}");
        }
    }
}

#[test]
fn no_input_gives_nan() {
    for (num_sequences, seq_len, slots_per_expert) in [(1, 1, 1), (2, 3, 2)] {
        let setup = setup(num_sequences, seq_len, slots_per_expert);
        let plain = Values::random(&setup, 33);
        for (size, dtype) in
            [0.0, 1e-30, 1e4].into_iter().flat_map(|size| [(size, DType::F32), (size, DType::F64)])
        {
            let mut inputs = plain.clone();
            inputs.router_de.iter_mut().for_each(|weight| *weight = size * weight.signum());
            let layer = layer(&setup, &inputs, dtype);
            let x_td: Tensor<2> =
                tensor(&inputs.x_td, [setup.num_tokens, setup.d_model], dtype).require_grad();
            let output = forward_in_sequences(&layer, x_td.clone(), seq_len, training());
            let gradients = layer_gradients(&x_td, &layer, &output.hidden_td.clone().sum().backward());
            assert!(values(&output.hidden_td).iter().all(|y| y.is_finite()), "{size}");
            for gradient in gradients {
                assert!(values(&gradient).iter().all(|g| g.is_finite()), "{size}");
            }
            let summary = output.aux.statistics.summary();
            assert!(summary.gate_entropy_nats.is_finite() && summary.gate_margin.is_finite(), "{summary:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn sequences_do_not_see_each_other(seed in any::<u32>()) {
        let (both, one) = (setup(2, 4, 1), setup(1, 4, 1));
        let inputs = Values::random(&both, seed.into());
        let first = Values { x_td: inputs.x_td[..12].to_vec(), ..inputs.clone() };
        prop_assert_eq!(&run(&both, &inputs, 4)[..12], &run(&one, &first, 4)[..]);
    }

    /// Soft mixing knows no order: tokens in another one get the same outputs in that one. Sums of
    /// 4 terms in another order differ by some roundings.
    #[test]
    fn the_order_of_tokens_does_not_matter(seed in any::<u32>(), by in 1_usize..4) {
        let setup = setup(1, 4, 2);
        let inputs = Values::random(&setup, seed.into());
        let mut turned = inputs.clone();
        turned.x_td.rotate_left(3 * by);
        let mut expected = run(&setup, &inputs, 4);
        expected.rotate_left(3 * by);
        for (a, e) in run(&setup, &turned, 4).iter().zip(expected) {
            prop_assert!((a - e).abs() < 1e-13, "{} instead of {}", a, e);
        }
    }

    /// The rows of both softmaxes sum to one: tokens alike get the mean of their experts' outputs.
    #[test]
    fn tokens_alike_get_a_mean_of_the_experts_outputs(seed in any::<u32>()) {
        let setup = setup(1, 4, 1);
        let mut inputs = Values::random(&setup, seed.into());
        inputs.x_td = inputs.x_td[..3].repeat(4);
        let outputs: Vec<Vec<f64>> = (0..3).map(|e| expert(&setup, &inputs, e, &inputs.x_td[..3])).collect();
        for (i, y) in run(&setup, &inputs, 4).iter().enumerate() {
            let of_experts = outputs.iter().map(|output| output[i % 3]);
            let (low, high) = (of_experts.clone().fold(f64::MAX, f64::min), of_experts.fold(f64::MIN, f64::max));
            prop_assert!((low - 1e-12..=high + 1e-12).contains(y), "{} outside {}..{}", y, low, high);
        }
    }
}

//! The layer under every selection: its output is the gate-weighted sum of the experts that the
//! router chose.

use burn::tensor::{DType, Tensor};
use switchyard_router::{RouterConfig, RouterInput, RouterPass, Sequences};

use crate::case::{Setup, Values, forward_in_sequences, layer, layer_gradients, tensor, training, values};
use crate::oracle;

const SELECTIONS: [(&str, &str); 12] = [
    ("switch", r#"{"top_k": 1, "renormalise": false, "load_balancing_weight": 0.3}"#),
    ("noisy", r#"{"top_k": 2, "selection": {"noisy": {"importance_weight": 0.3}}}"#),
    ("random second", r#"{"top_k": 2, "selection": {"random_second": {}}}"#),
    ("sampled second", r#"{"top_k": 2, "selection": {"random_second": {"sampled": true}}}"#),
    (
        "deepseek_v3",
        r#"{"top_k": 2, "sigmoid": {"routed_scaling": 2.5}, "bias": {"sign": {}},
            "groups": {"num_groups": 2, "top_groups": 1}, "load_balancing_weight": 0.3,
            "load_balancing_scope": "sequence"}"#,
    ),
    ("sigmoid alone", r#"{"top_k": 2, "sigmoid": {}, "renormalise": false}"#),
    ("quantile", r#"{"top_k": 2, "bias": {"quantile": {}}}"#),
    ("sinkhorn", r#"{"top_k": 2, "selection": {"sinkhorn": {}}}"#),
    ("expert choice", r#"{"top_k": 2, "selection": {"expert_choice": {}}, "z_loss_weight": 0.1}"#),
    ("hash", r#"{"top_k": 2, "selection": {"hash": {}}}"#),
    ("random", r#"{"top_k": 2, "selection": {"random": {}}}"#),
    ("forced uniform", r#"{"top_k": 2, "selection": {"forced_uniform": {}}}"#),
];

/// Two sequences of 5 tokens and 4 experts.
fn setup(router: &str) -> Setup {
    let router: RouterConfig = serde_json::from_str(router).unwrap();
    assert_eq!(router.validate(4), Ok(()));
    Setup { router, ..Setup::small(10, 4, 2) }
}

fn run(setup: &Setup, inputs: &Values, pass: RouterPass<'_>) -> Vec<f64> {
    let layer = layer(setup, inputs, DType::F64);
    let x_td = tensor(&inputs.x_td, [10, 3], DType::F64);
    values(&forward_in_sequences(&layer, x_td, 5, pass).hidden_td)
}

/// The sum by its definition, of the slots that the router chose with the gates that it gave.
fn combined(setup: &Setup, inputs: &Values, pass: RouterPass<'_>) -> Vec<f64> {
    let token_ids: Vec<u32> = (0..10).collect();
    let x_td = tensor(&inputs.x_td, [10, 3], DType::F64);
    let input = RouterInput { x_td, token_ids_t: &token_ids, sequences: Sequences::OfLen(5), pass };
    let routing = layer(setup, inputs, DType::F64).router.forward(input);
    let (k, gates) = (routing.choice.slots_per_token, values(&routing.gates_tk));
    let mut hidden_td = vec![0.0; 30];
    for (slot, (&id, gate)) in routing.choice.expert_ids_tk.iter().zip(gates).enumerate() {
        if routing.choice.keep_tk.as_ref().is_some_and(|keep_tk| !keep_tk[slot]) {
            continue;
        }
        let x = &inputs.x_td[slot / k * 3..slot / k * 3 + 3];
        for (i, y) in oracle::expert(setup, inputs, id as usize, x).iter().enumerate() {
            hidden_td[slot / k * 3 + i] += gate * y;
        }
    }
    hidden_td
}

#[test]
fn the_output_is_the_weighted_sum_of_the_chosen_experts() {
    for (name, router) in SELECTIONS {
        let setup = setup(router);
        let inputs = Values::random(&setup, 21);
        for pass in [training(), RouterPass::Evaluation, RouterPass::Generation] {
            let (actual, expected) = (run(&setup, &inputs, pass), combined(&setup, &inputs, pass));
            for (a, e) in actual.iter().zip(expected) {
                // Sums of some dozen terms of size 1 in f64.
                assert!((a - e).abs() < 1e-11, "{name}: {a} instead of {e}");
            }
        }
    }
}

/// Output and losses as one number.
fn objective(setup: &Setup, inputs: &Values) -> (Tensor<1>, [Vec<f64>; 5]) {
    let layer = layer(setup, inputs, DType::F64);
    let x_td = tensor(&inputs.x_td, [10, 3], DType::F64).require_grad();
    let output = forward_in_sequences(&layer, x_td.clone(), 5, training());
    let weighted = (output.hidden_td * tensor(&inputs.c_td, [10, 3], DType::F64)).sum();
    let losses = output.aux.losses.iter();
    let total = losses.fold(weighted, |sum, loss| sum + loss.value_1.clone().mul_scalar(loss.weight));
    let gradients = layer_gradients(&x_td, &layer, &total.backward());
    let [x, router, gate, up, down, ..] = gradients.map(|gradient| values(&gradient));
    (total, [x, router, gate, up, down])
}

/// Central differences of the layer itself with step 1e-5: truncation and rounding each leave about
/// 1e-10 to 1e-9.
#[test]
fn gradients_are_those_of_the_output_and_the_losses() {
    for (name, router) in SELECTIONS {
        let setup = setup(router);
        let inputs = Values::random(&setup, 22);
        let (_, gradients) = objective(&setup, &inputs);
        for (leaf, gradient) in gradients.iter().enumerate() {
            for (i, actual) in gradient.iter().enumerate() {
                let value_at = |by: f64| {
                    let mut shifted = inputs.clone();
                    shifted.leaves_mut()[leaf].1[i] += by;
                    objective(&setup, &shifted).0.into_scalar::<f64>()
                };
                let expected = (value_at(1e-5) - value_at(-1e-5)) / 2e-5;
                let leaf = inputs.clone().leaves_mut()[leaf].0;
                assert!((actual - expected).abs() < 1e-7, "{name}, {leaf}: {actual} instead of {expected}");
            }
        }
    }
}

#[test]
fn a_token_that_no_expert_takes_gets_nothing() {
    let setup = setup(r#"{"top_k": 1, "selection": {"expert_choice": {}}}"#);
    let mut inputs = Values::random(&setup, 23);
    // Every expert takes 3 of 10 tokens alike: the first ones.
    inputs.x_td = inputs.x_td[..3].repeat(10);
    let hidden = run(&setup, &inputs, training());
    assert!(hidden[..9].iter().all(|y| *y != 0.0));
    assert!(hidden[9..].iter().all(|y| *y == 0.0));
}

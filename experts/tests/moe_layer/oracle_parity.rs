use burn::tensor::DType;
use switchyard_experts::{Activation, DropPolicy, MoeOutput};
use switchyard_router::{AuxLossKind, SoftmaxOrder};

use crate::case::{
    Setup, Values, capacity, forward, layer, layer_gradients, loss_of, tensor, training, values,
};
use crate::oracle;

/// A limit within the range of the values, so that both sides of it are seen.
const CLAMPED: Activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 0.25 };
const ACTIVATIONS: [Activation; 5] =
    [Activation::Swiglu, CLAMPED, Activation::Gelu, Activation::GeluTanh, Activation::Relu];
const ORDERS: [(SoftmaxOrder, bool); 3] = [
    (SoftmaxOrder::BeforeSelection, true),
    (SoftmaxOrder::BeforeSelection, false),
    (SoftmaxOrder::AfterSelection, true),
];

/// The layer's output in f64 and the gradients of output, load-balancing and z-loss together.
fn run(setup: &Setup, inputs: &Values) -> (MoeOutput, [Vec<f64>; 8]) {
    let layer = layer(setup, inputs, DType::F64);
    let shape = [setup.num_tokens, setup.d_model];
    let x_td = tensor(&inputs.x_td, shape, DType::F64).require_grad();
    let output = forward(&layer, x_td.clone(), training());
    let mut loss = (output.hidden_td.clone() * tensor(&inputs.c_td, shape, DType::F64)).sum();
    let weighted = [
        (setup.router.load_balancing_weight, loss_of(&output.aux, AuxLossKind::LoadBalancing)),
        (setup.router.z_loss_weight, loss_of(&output.aux, AuxLossKind::RouterZ)),
    ];
    for (weight, aux) in weighted {
        assert_eq!(weight.is_some(), aux.is_some(), "a loss is computed exactly if it has a weight");
        if let (Some(weight), Some(aux)) = (weight, aux) {
            loss = loss + aux * weight;
        }
    }
    let gradients = layer_gradients(&x_td, &layer, &loss.backward());
    (output, gradients.map(|gradient| values(&gradient)))
}

#[track_caller]
fn assert_close(what: &str, actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() < tolerance, "{what}, element {i}: {a} instead of {e}");
    }
}

/// Compares forward and gradients; returns the oracle's outcome for further conditions.
#[track_caller]
fn check(setup: &Setup, inputs: &Values) -> oracle::Outcome {
    let (output, gradients) = run(setup, inputs);
    let expected = oracle::forward(setup, inputs);
    let statistics = &output.aux.statistics;
    // Sums of some dozen terms of size 1 in f64; burn's erf is good to 1e-13 or so.
    assert_close("output", &values(&output.hidden_td), &expected.hidden_td, 1e-11);
    for (kind, loss) in [
        (AuxLossKind::LoadBalancing, expected.load_balancing_loss),
        (AuxLossKind::RouterZ, expected.router_z_loss),
    ] {
        if let Some(aux) = loss_of(&output.aux, kind) {
            assert_close(kind.name(), &values(&aux), &[loss], 1e-11);
        }
    }
    assert_eq!(statistics.tokens_per_expert(), expected.tokens_per_expert);
    let num_slots = setup.num_tokens * setup.router.top_k;
    assert_eq!(statistics.dropped_fraction(), expected.num_dropped as f64 / num_slots as f64);

    let names: Vec<_> = inputs.clone().leaves_mut().map(|(name, _)| name).into();
    for (leaf, name) in names.iter().enumerate() {
        if name.ends_with("gate") && !setup.activation.is_gated() {
            continue;
        }
        // Central differences with step 1e-5: truncation and rounding each leave about 1e-10 to
        // 1e-9.
        assert_close(name, &gradients[leaf], &differences(setup, inputs, leaf), 1e-7);
    }
    expected
}

/// Central differences of the oracle's loss for one leaf.
fn differences(setup: &Setup, inputs: &Values, leaf: usize) -> Vec<f64> {
    let step = 1e-5;
    let len = inputs.clone().leaves_mut()[leaf].1.len();
    let loss_at = |i: usize, by: f64| {
        let mut shifted = inputs.clone();
        shifted.leaves_mut()[leaf].1[i] += by;
        oracle::forward(setup, &shifted).loss(setup, &shifted)
    };
    (0..len).map(|i| (loss_at(i, step) - loss_at(i, -step)) / (2.0 * step)).collect()
}

#[test]
fn every_activation_and_gate_agrees_with_the_oracle() {
    for activation in ACTIVATIONS {
        for (softmax, renormalise) in ORDERS {
            let mut setup = Setup::small(7, 4, 2);
            setup.activation = activation;
            setup.router.softmax = softmax;
            setup.router.renormalise = renormalise;
            check(&setup, &Values::random(&setup, 1));
        }
    }
}

#[test]
fn any_number_of_tokens_and_experts_agrees_with_the_oracle() {
    // One token; fewer tokens than experts, so that some are empty; k = E; one expert; k = 1.
    for (num_tokens, num_experts, top_k) in
        [(1, 4, 2), (3, 8, 1), (5, 3, 3), (6, 1, 1), (11, 5, 1), (2, 2, 2)]
    {
        let setup = Setup::small(num_tokens, num_experts, top_k);
        check(&setup, &Values::random(&setup, 2));
    }
}

#[test]
fn all_tokens_on_the_same_experts_agree_with_the_oracle() {
    let setup = Setup::small(6, 4, 2);
    let mut inputs = Values::random(&setup, 3);
    let first_token = inputs.x_td[..setup.d_model].to_vec();
    inputs.x_td = first_token.repeat(setup.num_tokens);
    let outcome = check(&setup, &inputs);
    assert_eq!(outcome.tokens_per_expert.iter().filter(|&&count| count == 6).count(), 2);
}

#[test]
fn a_shared_expert_agrees_with_the_oracle() {
    for activation in ACTIVATIONS {
        let mut setup = Setup::small(5, 4, 2);
        setup.d_shared_expert = Some(2);
        setup.activation = activation;
        check(&setup, &Values::random(&setup, 4));
    }
}

#[test]
fn both_drop_policies_agree_with_the_oracle() {
    for drop in [DropPolicy::Position, DropPolicy::Probability] {
        for shared in [None, Some(2)] {
            let mut setup = Setup::small(9, 4, 2);
            setup.d_shared_expert = shared;
            setup.capacity = Some(capacity(0.6, drop));
            let outcome = check(&setup, &Values::random(&setup, 5));
            assert!(outcome.num_dropped > 0, "nothing was dropped");
        }
    }
}

#[test]
fn f32_agrees_with_the_oracle_within_its_precision() {
    for activation in ACTIVATIONS {
        let mut setup = Setup::small(33, 4, 2);
        (setup.d_model, setup.d_expert, setup.activation) = (24, 40, activation);
        let inputs = Values::random(&setup, 6);
        let layer = layer(&setup, &inputs, DType::F32);
        let x_td = tensor(&inputs.x_td, [33, 24], DType::F32);
        let output = forward(&layer, x_td, training());
        let expected = oracle::forward(&setup, &inputs).hidden_td;
        let largest = expected.iter().fold(0.0_f64, |largest, y| largest.max(y.abs()));
        // Two products in a row, of 24 and 40 terms: some 64 roundings of 6e-8 each, never all in
        // one direction.
        assert_close("output", &values(&output.hidden_td), &expected, 4e-6 * largest);
    }
}

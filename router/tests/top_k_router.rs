//! The router's gates and choices, against plain loops.

use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::prelude::*;
use switchyard_router::{
    CapacityConfig, DropPolicy, GatePrecision, GateWeights, Router, RouterConfig, RouterInput, RouterNoise,
    RouterPass, Routing, Sequences, SoftmaxOrder,
};

const D: usize = 4;

fn config(top_k: usize, softmax: SoftmaxOrder, renormalise: bool) -> RouterConfig {
    RouterConfig { softmax, renormalise, ..RouterConfig::top_k(top_k) }
}

fn input(x_td: Tensor<2>, pass: RouterPass<'_>) -> RouterInput<'_> {
    let [seq_len, _] = x_td.dims();
    RouterInput { x_td, token_ids_t: &[], sequences: Sequences::OfLen(seq_len), pass }
}

fn matrix(values: &[f64], num_columns: usize, dtype: DType) -> Tensor<2> {
    let data = TensorData::new(values.to_vec(), [values.len() / num_columns, num_columns]);
    Tensor::from_data(data, (&Device::flex().autodiff(), dtype))
}

fn values(tensor: &Tensor<2>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

/// The routing of tokens whose logits are `logits_te`: the gate matrix is the identity.
fn route(logits_te: &[f64], num_experts: usize, config: &RouterConfig) -> Routing {
    let identity: Vec<f64> = (0..num_experts * num_experts)
        .map(|i| f64::from(u8::from(i / num_experts == i % num_experts)))
        .collect();
    let router = config.init(num_experts, GateWeights::linear(matrix(&identity, num_experts, DType::F64)));
    router.forward(input(matrix(logits_te, num_experts, DType::F64), RouterPass::Evaluation))
}

/// Gates of one token's choice by the definition.
fn oracle_gates(logits_e: &[f64], chosen: &[u32], config: &RouterConfig) -> Vec<f64> {
    let exps: Vec<f64> = chosen.iter().map(|&e| logits_e[e as usize].exp()).collect();
    let over_all = config.softmax == SoftmaxOrder::BeforeSelection && !config.renormalise;
    let partition: f64 = if over_all { logits_e.iter().map(|x| x.exp()).sum() } else { exps.iter().sum() };
    exps.iter().map(|exp| exp / partition).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn gates_are_those_of_the_definition(
        logits in prop::collection::vec(-3.0..3.0_f64, 24),
        num_experts in prop::sample::select(vec![1_usize, 2, 3, 6]),
        share in 0.0..1.0_f64,
        before in any::<bool>(),
        renormalise in any::<bool>(),
    ) {
        let top_k = 1 + (share * num_experts as f64) as usize;
        let order = if before { SoftmaxOrder::BeforeSelection } else { SoftmaxOrder::AfterSelection };
        let config = config(top_k, order, renormalise);
        let routing = route(&logits, num_experts, &config);
        let expected: Vec<f64> = logits
            .chunks(num_experts)
            .zip(routing.choice.expert_ids_tk.chunks(top_k))
            .flat_map(|(logits_e, chosen)| oracle_gates(logits_e, chosen, &config))
            .collect();
        for (gate, expected) in values(&routing.gates_tk).iter().zip(expected) {
            prop_assert!((gate - expected).abs() < 1e-12, "{} instead of {}", gate, expected);
        }
        prop_assert_eq!(routing.num_tokens() * num_experts, logits.len());
        let total: u64 = routing.tokens_per_expert().iter().sum();
        prop_assert_eq!(total as usize, routing.choice.expert_ids_tk.len());
    }
}

#[test]
fn with_one_expert_the_gate_is_one_and_the_router_has_no_gradient() {
    let orders = [SoftmaxOrder::BeforeSelection, SoftmaxOrder::AfterSelection];
    for (order, renormalise) in orders.into_iter().flat_map(|order| [(order, true), (order, false)]) {
        let weight_de = matrix(&[0.3, -0.2, 7.0, 1e3], 1, DType::F32);
        let router = config(1, order, renormalise).init(1, GateWeights::linear(weight_de));
        let x_td = matrix(&[0.1, 0.2, 0.3, 0.4, -9.0, 0.0, 5.0, 9.0], D, DType::F32);
        let routing = router.forward(input(x_td, RouterPass::Evaluation));
        assert_eq!(values(&routing.gates_tk), [1.0, 1.0]);
        let gradients = (routing.gates_tk * matrix(&[3.0, -0.7], 1, DType::F32)).sum().backward();
        assert_eq!(values(&router.weight_de.unwrap().val().grad(&gradients).unwrap()), [0.0; D]);
    }
}

#[test]
fn huge_logits_still_choose_the_right_experts() {
    // The softmax of these logits is 1 for the first expert and exactly 0 for all others.
    let logits = [1e4, -2e4, -1e4, -3e4];
    for renormalise in [true, false] {
        let routing = route(&logits, 4, &config(3, SoftmaxOrder::BeforeSelection, renormalise));
        assert_eq!(routing.choice.expert_ids_tk, [0, 2, 1]);
        assert_eq!(values(&routing.gates_tk), [1.0, 0.0, 0.0]);
    }
}

/// A router of two experts whose gate is the identity.
fn identity_router(config: &RouterConfig, dtype: DType) -> Router {
    config.init(2, GateWeights::linear(matrix(&[1.0, 0.0, 0.0, 1.0], 2, dtype)))
}

#[test]
fn jitter_multiplies_the_input_before_the_gate_while_training_only() {
    let config = RouterConfig { jitter: Some(0.25), ..RouterConfig::top_k(2) };
    let router = identity_router(&config, DType::F64);
    let x_td = matrix(&[2.0, 3.0], 2, DType::F64);
    let training =
        |seed| RouterPass::Training { noise: RouterNoise::new(seed), earlier_tokens_per_expert: &[] };
    let logits = |pass| router.forward(input(x_td.clone(), pass)).host_logits_te;
    assert_eq!(logits(RouterPass::Evaluation), [2.0, 3.0]);
    assert_eq!(logits(training(1)), logits(training(1)));
    assert_ne!(logits(training(1)), logits(training(2)));
    for (noisy, clean) in logits(training(1)).iter().zip([2.0, 3.0]) {
        assert!((noisy / clean - 1.0).abs() <= 0.25 && *noisy != clean, "{noisy} from {clean}");
    }
}

#[test]
fn short_floats_are_routed_in_f32() {
    let router = identity_router(&RouterConfig::top_k(1), DType::BF16);
    // 257 / 256 has no bf16: in bf16 the sum of the two products would be 1.
    let sum_router =
        RouterConfig::top_k(1).init(1, GateWeights::linear(matrix(&[1.0, 0.00390625], 1, DType::BF16)));
    let x_td = matrix(&[1.0, 1.0], 2, DType::BF16);
    let routing = router.forward(input(x_td.clone(), RouterPass::Evaluation));
    assert_eq!(routing.gates_tk.dtype(), DType::F32);
    let routing = sum_router.forward(input(x_td, RouterPass::Evaluation));
    assert_eq!(routing.host_logits_te, [1.00390625]);
}

#[test]
fn a_gate_in_f64_tells_logits_apart_that_are_equal_in_f32() {
    let config = |precision| RouterConfig { precision, ..RouterConfig::top_k(1) };
    let x_td = matrix(&[1.0, 1.0], 2, DType::F32);
    let small = 2.0_f64.powi(-20);
    // The second expert's logit is ahead by the square of 2^-20, which f32 rounds away.
    let weights = [1.0, 1.0, small * small, 0.0];
    let chosen = |precision| {
        let weight_de = matrix(&[weights[0], weights[1], weights[3], weights[2]], 2, DType::F32);
        let router = config(precision).init(2, GateWeights::linear(weight_de));
        router.forward(input(x_td.clone(), RouterPass::Evaluation)).choice.expert_ids_tk
    };
    assert_eq!(chosen(GatePrecision::F32), [0]);
    assert_eq!(chosen(GatePrecision::F64), [1]);
}

#[test]
fn capacity_follows_the_configured_policy() {
    // Three tokens, two experts: all prefer expert 0, the last one most.
    let routing = route(&[1.0, 0.0, 2.0, 0.0, 3.0, 0.0], 2, &config(1, SoftmaxOrder::BeforeSelection, false));
    let kept = |drop| {
        let capacity = CapacityConfig { factor: 1.0, factor_per_expert: None, drop, evaluation_factor: None };
        routing.slots_within(&capacity, 1.0)
    };
    assert_eq!(kept(DropPolicy::Position), [true, true, false]);
    assert_eq!(kept(DropPolicy::Probability), [false, true, true]);
}

//! The router's gates and choices, against plain loops.

use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::prelude::*;
use switchyard_router::{CapacityConfig, DropPolicy, Routing, SoftmaxOrder, TopKRouterConfig};

const D: usize = 4;

fn config(top_k: usize, softmax: SoftmaxOrder, renormalise: bool) -> TopKRouterConfig {
    TopKRouterConfig {
        top_k,
        softmax,
        renormalise,
        jitter: None,
        load_balancing_weight: None,
        z_loss_weight: None,
    }
}

fn matrix(values: &[f64], num_columns: usize, dtype: DType) -> Tensor<2> {
    let data = TensorData::new(values.to_vec(), [values.len() / num_columns, num_columns]);
    Tensor::from_data(data, (&Device::flex().autodiff(), dtype))
}

fn values(tensor: &Tensor<2>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

/// The routing of tokens whose logits are `logits_te`: the gate matrix is the identity.
fn route(logits_te: &[f64], num_experts: usize, config: &TopKRouterConfig) -> Routing {
    let identity: Vec<f64> = (0..num_experts * num_experts)
        .map(|i| f64::from(u8::from(i / num_experts == i % num_experts)))
        .collect();
    let router = config.init(matrix(&identity, num_experts, DType::F64));
    router.forward(matrix(logits_te, num_experts, DType::F64), None)
}

/// Gates of one token's choice by the definition.
fn oracle_gates(logits_e: &[f64], chosen: &[u32], config: &TopKRouterConfig) -> Vec<f64> {
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
            .zip(routing.expert_ids_tk.chunks(top_k))
            .flat_map(|(logits_e, chosen)| oracle_gates(logits_e, chosen, &config))
            .collect();
        for (gate, expected) in values(&routing.gates_tk).iter().zip(expected) {
            prop_assert!((gate - expected).abs() < 1e-12, "{} instead of {}", gate, expected);
        }
        prop_assert_eq!(routing.num_tokens() * num_experts, logits.len());
        let total: u64 = routing.tokens_per_expert().iter().sum();
        prop_assert_eq!(total as usize, routing.expert_ids_tk.len());
    }
}

#[test]
fn with_one_expert_the_gate_is_one_and_the_router_has_no_gradient() {
    let orders = [SoftmaxOrder::BeforeSelection, SoftmaxOrder::AfterSelection];
    for (order, renormalise) in orders.into_iter().flat_map(|order| [(order, true), (order, false)]) {
        let weight_de = matrix(&[0.3, -0.2, 7.0, 1e3], 1, DType::F32);
        let router = config(1, order, renormalise).init(weight_de);
        let x_td = matrix(&[0.1, 0.2, 0.3, 0.4, -9.0, 0.0, 5.0, 9.0], D, DType::F32);
        let routing = router.forward(x_td, None);
        assert_eq!(values(&routing.gates_tk), [1.0, 1.0]);
        let gradients = (routing.gates_tk * matrix(&[3.0, -0.7], 1, DType::F32)).sum().backward();
        assert_eq!(values(&router.weight_de.val().grad(&gradients).unwrap()), [0.0; D]);
    }
}

#[test]
fn huge_logits_still_choose_the_right_experts() {
    // The softmax of these logits is 1 for the first expert and exactly 0 for all others.
    let logits = [1e4, -2e4, -1e4, -3e4];
    for renormalise in [true, false] {
        let routing = route(&logits, 4, &config(3, SoftmaxOrder::BeforeSelection, renormalise));
        assert_eq!(routing.expert_ids_tk, [0, 2, 1]);
        assert_eq!(values(&routing.gates_tk), [1.0, 0.0, 0.0]);
    }
}

#[test]
fn noise_multiplies_the_input_before_the_gate() {
    let router =
        config(1, SoftmaxOrder::BeforeSelection, true).init(matrix(&[1.0, 0.0, 0.0, 1.0], 2, DType::F64));
    let x_td = matrix(&[2.0, 3.0], 2, DType::F64);
    let noise_td = matrix(&[2.0, 0.5], 2, DType::F64);
    assert_eq!(values(&router.forward(x_td.clone(), Some(noise_td)).logits_te), [4.0, 1.5]);
    assert_eq!(values(&router.forward(x_td, None).logits_te), [2.0, 3.0]);
}

#[test]
fn short_floats_are_routed_in_f32() {
    let router =
        config(1, SoftmaxOrder::BeforeSelection, true).init(matrix(&[1.0, 0.0, 0.0, 1.0], 2, DType::BF16));
    // In bf16 the two products would be equal, and expert 0 would win the tie.
    let x_td = matrix(&[1.0, 1.0078125], 2, DType::BF16);
    let noise_td = matrix(&[1.0, 0.99951171875], 2, DType::F32);
    let routing = router.forward(x_td, Some(noise_td));
    assert_eq!(routing.gates_tk.dtype(), DType::F32);
    assert_eq!(values(&routing.logits_te), [1.0, 1.0078125 * 0.99951171875]);
}

#[test]
fn capacity_follows_the_configured_policy() {
    // Three tokens, two experts: all prefer expert 0, the last one most.
    let routing = route(&[1.0, 0.0, 2.0, 0.0, 3.0, 0.0], 2, &config(1, SoftmaxOrder::BeforeSelection, false));
    let kept = |drop| routing.slots_within(&CapacityConfig { factor: 1.0, drop });
    assert_eq!(kept(DropPolicy::Position), [true, true, false]);
    assert_eq!(kept(DropPolicy::Probability), [false, true, true]);
}

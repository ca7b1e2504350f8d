//! Input that breaks lesser routers: nothing here may be NaN, infinite, or a panic.

use burn::tensor::{DType, Tensor};
use switchyard_router::{
    AuxLossKind, CapacityConfig, DropPolicy, ExpertGroups, Router, RouterPass, Routing, Selection,
};

use crate::case::{D, Kind, Values, kind, kinds, route, route_with, router, training, values};

/// The router for another number of experts; `None` where it needs more of them.
fn resized(kind: &Kind, num_experts: usize, top_k: usize) -> Option<Kind> {
    let mut config = kind.config.clone();
    if matches!(config.selection, Selection::RandomSecond(_)) && top_k != 2 {
        return None;
    }
    config.top_k = top_k;
    config.groups = config.groups.map(|groups| ExpertGroups { num_groups: 1, top_groups: 1, ..groups });
    Some(Kind { num_experts, config, ..kind.clone() })
}

/// Every router in every size: more experts than tokens, all experts, one expert, one per token.
fn sizes() -> Vec<Kind> {
    let sizes = [(8, 2), (64, 2), (4, 4), (1, 1), (8, 1), (2, 2)];
    let resized_to = |(e, k)| kinds().into_iter().filter_map(move |kind| resized(&kind, e, k));
    kinds().into_iter().chain(sizes.into_iter().flat_map(resized_to)).collect()
}

/// Inputs by name.
fn inputs(kind: &Kind) -> Vec<(&'static str, Values)> {
    let plain = Values::random(kind, 3, 71);
    let with_x = |x: &dyn Fn(usize, f64) -> f64| {
        let x_td = plain.x_td.iter().enumerate().map(|(i, &value)| x(i, value)).collect();
        Values { x_td, ..plain.clone() }
    };
    let large = |by: f64| Values {
        weight_de: plain.weight_de.iter().map(|w| by * w.signum()).collect(),
        noise_weight_de: plain.noise_weight_de.iter().map(|w| by * w.signum()).collect(),
        ..with_x(&|_, x| x.signum())
    };
    vec![
        ("plain", plain.clone()),
        (
            "one token",
            Values { token_ids_t: vec![5], x_td: plain.x_td[..D].to_vec(), seq_len: 1, ..plain.clone() },
        ),
        ("zeros", with_x(&|_, _| 0.0)),
        ("all tokens alike", with_x(&|i, _| plain.x_td[i % D])),
        ("logits of 1e4", large(1e4 / D as f64)),
        ("tiny logits", large(1e-30)),
        (
            "a noise that vanishes",
            Values { noise_weight_de: vec![-1e4; D * kind.num_experts], ..with_x(&|_, x| x.abs()) },
        ),
        ("a temperature near zero", Values { log_scale_1: vec![1e4], ..plain.clone() }),
        (
            "a huge bias",
            Values { bias_e: (0..kind.num_experts).map(|e| 1e30 * e as f64).collect(), ..plain.clone() },
        ),
        (
            "a gate of zeros",
            Values {
                weight_de: vec![0.0; D * kind.num_experts],
                projection_dc: vec![0.0; plain.projection_dc.len()],
                directions_ce: vec![0.0; plain.directions_ce.len()],
                ..plain.clone()
            },
        ),
    ]
}

#[track_caller]
fn assert_finite(what: &str, numbers: &[f64]) {
    assert!(numbers.iter().all(|number| number.is_finite()), "{what}: {numbers:?}");
}

fn total(routing: &Routing) -> Tensor<1> {
    let losses = routing.losses.iter().map(|loss| loss.value_1.clone().mul_scalar(loss.weight));
    losses.fold((routing.gates_tk.clone() * 0.7).sum(), |sum, loss| sum + loss)
}

fn check_gradients(what: &str, router: &Router, x_td: &Tensor<2>, routing: &Routing) {
    let gradients = total(routing).backward();
    let all = [
        x_td.grad(&gradients),
        router.weight_de.as_ref().and_then(|weight| weight.val().grad(&gradients)),
        router.noise_weight_de.as_ref().and_then(|weight| weight.val().grad(&gradients)),
        router.cosine.as_ref().and_then(|cosine| cosine.projection_dc.val().grad(&gradients)),
        router.cosine.as_ref().and_then(|cosine| cosine.directions_ce.val().grad(&gradients)),
    ];
    all.iter().flatten().for_each(|gradient| assert_finite(what, &values(gradient)));
    let scale = router.cosine.as_ref().and_then(|cosine| cosine.log_scale_1.val().grad(&gradients));
    scale.iter().for_each(|gradient| assert_finite(what, &values(gradient)));
}

fn check(what: &str, kind: &Kind, input: &Values, dtype: DType) {
    let router = router(kind, input, dtype);
    for pass in [training(72), RouterPass::Evaluation, RouterPass::Generation] {
        let x_td = input.x_td(dtype).require_grad();
        let routing = route_with(&router, input, x_td.clone(), pass);
        assert_finite(what, &values(&routing.gates_tk));
        assert_finite(what, &routing.host_logits_te);
        for loss in &routing.losses {
            assert_finite(&format!("{what}, {:?}", loss.kind), &values(&loss.value_1));
        }
        let summary = routing.statistics.summary();
        assert_finite(what, &[summary.max_violation, summary.gate_entropy_nats, summary.gate_margin]);
        if kind.config.learns() {
            check_gradients(what, &router, &x_td, &routing);
        }
        if let Some(balance) = &routing.balance {
            assert_finite(what, &router.clone().rebalanced(balance).bias_on_host().unwrap());
        }
        for drop in [DropPolicy::Position, DropPolicy::Probability, DropPolicy::Random] {
            let capacity =
                CapacityConfig { factor: 0.5, factor_per_expert: None, drop, evaluation_factor: None };
            assert_eq!(routing.slots_within(&capacity, 0.5).len(), routing.choice.expert_ids_tk.len());
        }
    }
}

#[test]
fn no_number_of_experts_and_no_input_gives_nan_or_a_panic() {
    for kind in sizes() {
        for (name, input) in inputs(&kind) {
            for dtype in [DType::F32, DType::F64] {
                let sizes = format!("{} of {}", kind.config.top_k, kind.num_experts);
                check(&format!("{}, {sizes}, {name}, {dtype:?}", kind.name), &kind, &input, dtype);
            }
        }
    }
}

#[test]
fn no_tokens_go_nowhere() {
    for kind in kinds() {
        let empty = Values { x_td: vec![], token_ids_t: vec![], ..Values::random(&kind, 3, 73) };
        for pass in [training(73), RouterPass::Evaluation, RouterPass::Generation] {
            let routing = route(&kind, &empty, pass);
            assert_eq!(routing.num_tokens(), 0, "{}", kind.name);
            assert_eq!(routing.tokens_per_expert(), [0; 8]);
            assert!(routing.losses.is_empty() && routing.choice.expert_ids_tk.is_empty());
        }
    }
}

#[test]
fn ties_go_to_the_lower_index() {
    for name in ["mixtral", "olmoe", "qwen", "switch", "gshard", "group_limited", "sinkhorn", "cosine"] {
        let kind = kind(name);
        let zeros =
            Values { x_td: vec![0.0; 2 * D], token_ids_t: vec![1, 2], ..Values::random(&kind, 1, 74) };
        let expected: Vec<u32> = (0..kind.config.top_k as u32).collect::<Vec<_>>().repeat(2);
        assert_eq!(route(&kind, &zeros, RouterPass::Evaluation).choice.expert_ids_tk, expected, "{name}");
    }
    // Experts that choose take the earlier tokens.
    let kind = kind("expert_choice");
    let zeros = Values { x_td: vec![0.0; 8 * D], token_ids_t: vec![1; 8], ..Values::random(&kind, 4, 75) };
    let picked = crate::case::chosen(&route(&kind, &zeros, RouterPass::Evaluation));
    let num_experts: Vec<usize> = picked.iter().map(Vec::len).collect();
    assert_eq!(num_experts, [8, 8, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn of_one_expert_every_gate_is_the_whole() {
    for kind in kinds() {
        let Some(one) = resized(&kind, 1, 1) else { continue };
        if one.config.sigmoid.is_some() {
            continue; // A sigmoid of one expert is a gate of its own.
        }
        let input = Values::random(&one, 4, 76);
        let routing = route(&one, &input, training(76));
        assert!(values(&routing.gates_tk).iter().all(|&gate| gate == 1.0), "{}", one.name);
        assert_eq!(routing.tokens_per_expert(), [8], "{}", one.name);
    }
}

/// By way of the standard deviation, the slope at perfect balance is infinite
/// (google-research/vmoe#218).
#[test]
fn vmoe_218_the_variation_losses_have_a_gradient_at_perfect_balance() {
    for dtype in [DType::F32, DType::F64] {
        let noisy = Kind {
            config: crate::case::config(
                r#"{"top_k": 1, "renormalise": false,
                    "selection": {"noisy": {"importance_weight": 1.0, "load_weight": 1.0}}}"#,
            ),
            num_experts: D,
            ..kind("noisy_top_1")
        };
        // Token i prefers expert i by far more than the noise: sums of gates and expected loads are
        // even.
        let diagonal =
            |size: f64| -> Vec<f64> { (0..D * D).map(|i| if i / D == i % D { size } else { 0.0 }).collect() };
        let even = Values {
            x_td: diagonal(1.0),
            weight_de: diagonal(100.0),
            noise_weight_de: vec![0.0; D * D],
            token_ids_t: vec![0; D],
            seq_len: D,
            ..Values::random(&noisy, 1, 77)
        };
        let router = router(&noisy, &even, dtype);
        let x_td = even.x_td(dtype).require_grad();
        let routing = route_with(&router, &even, x_td.clone(), training(77));
        assert_eq!(routing.tokens_per_expert(), [1; D]);
        for kind in [AuxLossKind::Importance, AuxLossKind::Load] {
            let loss = routing.losses.iter().find(|loss| loss.kind == kind).unwrap();
            assert!(values(&loss.value_1)[0].abs() < 1e-12, "{kind:?}");
        }
        check_gradients("perfect balance", &router, &x_td, &routing);
    }
}

#[test]
#[should_panic(expected = "hash routing of 6 tokens by 0 token ids")]
fn a_hash_without_token_ids_says_so() {
    let kind = kind("hash");
    let input = Values { seq_len: 3, ..Values::random(&kind, 3, 78) };
    let router = router(&kind, &input, DType::F64);
    let x_td = input.x_td(DType::F64);
    router.forward(switchyard_router::RouterInput {
        x_td,
        token_ids_t: &[],
        sequences: switchyard_router::Sequences::OfLen(3),
        pass: RouterPass::Evaluation,
    });
}

//! Token rounding in a router: what is routed, gates and their gradients against plain loops.

#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::prelude::*;
use switchyard_router::{
    GatePrecision, GateWeights, Router, RouterConfig, RouterInput, RouterNoise, RouterPass, Routing,
    Sequences, round_tokens, select_top_k,
};

const T: usize = 60;
const E: usize = 6;
const TILE: usize = 8;

fn training() -> RouterPass<'static> {
    RouterPass::Training { noise: RouterNoise::new(0), earlier_tokens_per_expert: &[] }
}

/// Numbers between -2 and 2; the first experts' are larger, so that loads differ.
fn logits() -> Vec<f64> {
    (0..T * E).map(|i| 2.0 * ((i * i + 7 * i) as f64 * 0.37).sin() - 0.2 * (i % E) as f64).collect()
}

fn config(router: &str) -> RouterConfig {
    let config: RouterConfig = serde_json::from_str(router).unwrap();
    RouterConfig { precision: GatePrecision::F64, ..config }
}

fn matrix(values: &[f64], num_columns: usize) -> Tensor<2> {
    let data = TensorData::new(values.to_vec(), [values.len() / num_columns, num_columns]);
    Tensor::from_data(data, (&Device::flex().autodiff(), DType::F64))
}

/// A router whose gate is the identity, so that its input is the logits.
fn router(config: &RouterConfig) -> Router {
    let identity: Vec<f64> = (0..E * E).map(|i| if i / E == i % E { 1.0 } else { 0.0 }).collect();
    config.init(E, GateWeights::linear(matrix(&identity, E)))
}

fn route(config: &RouterConfig, x_td: Tensor<2>, pass: RouterPass<'_>) -> Routing {
    router(config).forward(RouterInput { x_td, token_ids_t: &[], sequences: Sequences::OfLen(T), pass })
}

fn values(tensor: &Tensor<2>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

/// Every slot that is a choice: token, expert and gate.
fn slots(routing: &Routing) -> Vec<(usize, usize, f64)> {
    let k = routing.choice.slots_per_token;
    let gates = values(&routing.gates_tk);
    let keep = routing.choice.keep_tk.clone().unwrap_or_else(|| vec![true; gates.len()]);
    let slot = |slot: usize| (slot / k, routing.choice.expert_ids_tk[slot] as usize, gates[slot]);
    (0..gates.len()).filter(|&index| keep[index]).map(slot).collect()
}

const ROUTERS: [&str; 5] = [
    r#"{"top_k": 2, "token_rounding": {"tile": 8}, "routed_scaling": 1.5}"#,
    r#"{"top_k": 2, "token_rounding": {"tile": 8}, "softmax": "after_selection"}"#,
    r#"{"top_k": 1, "token_rounding": {"tile": 8}, "renormalise": false}"#,
    r#"{"top_k": 3, "token_rounding": {"tile": 8}, "sigmoid": {"routed_scaling": 2.0}}"#,
    r#"{"top_k": 3, "token_rounding": {"tile": 8}, "sigmoid": {}, "renormalise": false}"#,
];

/// The gate by its definition: the slot's score, over the sum of the token's best `top_k` where gates
/// are renormalised.
fn expected_gate(config: &RouterConfig, logits_e: &[f64], expert: usize) -> f64 {
    let sum: f64 = logits_e.iter().map(|logit| logit.exp()).sum();
    let score = |logit: f64| match config.sigmoid {
        Some(_) => 1.0 / (1.0 + (-logit).exp()),
        None => logit.exp() / sum,
    };
    let sums_to_one = config.renormalise || config.softmax == switchyard_router::SoftmaxOrder::AfterSelection;
    let best: f64 =
        select_top_k(logits_e, E, config.top_k).iter().map(|&id| score(logits_e[id as usize])).sum();
    config.gate_scale() * score(logits_e[expert]) / if sums_to_one { best } else { 1.0 }
}

#[test]
fn training_fills_tiles_and_counts_what_is_routed() {
    let logits = logits();
    for text in ROUTERS {
        let config = config(text);
        let routing = route(&config, matrix(&logits, E), training());
        let mut loads = [0; E];
        for (token, expert, gate) in slots(&routing) {
            loads[expert] += 1;
            let expected = expected_gate(&config, &logits[token * E..(token + 1) * E], expert);
            assert!((gate - expected).abs() < 1e-12, "{text}: {gate} instead of {expected}");
        }
        assert_eq!(routing.tokens_per_expert(), loads, "{text}");
        assert!(loads.iter().all(|load| load % TILE as u64 == 0), "{text}: {loads:?}");
        let plain = route(&RouterConfig { token_rounding: None, ..config }, matrix(&logits, E), training());
        assert_ne!(plain.tokens_per_expert(), loads, "{text}: nothing is rounded");
    }
}

#[test]
fn evaluation_and_generation_take_the_best_experts() {
    for text in ROUTERS {
        let config = config(text);
        let plain = RouterConfig { token_rounding: None, ..config.clone() };
        for pass in [RouterPass::Evaluation, RouterPass::Generation] {
            let [with, without] = [&config, &plain].map(|config| route(config, matrix(&logits(), E), pass));
            assert_eq!(with.choice, without.choice, "{text}");
            assert_eq!(values(&with.gates_tk), values(&without.gates_tk), "{text}");
        }
    }
}

#[test]
fn loads_that_are_multiples_already_stay_as_they_are() {
    let round_robin: Vec<f64> = (0..48 * E).map(|i| if i % E == i / E % E { 1.0 } else { 0.0 }).collect();
    let config = config(r#"{"top_k": 1, "token_rounding": {"tile": 8}, "renormalise": false}"#);
    let [with, without] = [config.clone(), RouterConfig { token_rounding: None, ..config }].map(|config| {
        let x_td = matrix(&round_robin, E);
        let sequences = Sequences::OfLen(48);
        router(&config).forward(RouterInput { x_td, token_ids_t: &[], sequences, pass: training() })
    });
    assert_eq!(with.choice.expert_ids_tk, without.choice.expert_ids_tk);
    assert_eq!(with.choice.keep_tk, Some(vec![true; 48]));
    assert_eq!(values(&with.gates_tk), values(&without.gates_tk));
}

/// The gradient of the logits, through added slots and the sum of the chosen.
#[test]
fn gradients_of_the_gates_are_differences_of_the_definition() {
    let logits = logits();
    for text in ROUTERS {
        let config = config(text);
        let x_td = matrix(&logits, E).require_grad();
        let routing = route(&config, x_td.clone(), training());
        let k = routing.choice.slots_per_token;
        let weight = |index: usize| (index as f64 * 0.7).cos();
        let kept = routing.choice.keep_tk.clone().unwrap();
        let weights: Vec<f64> =
            kept.iter().enumerate().map(|(slot, &kept)| if kept { weight(slot) } else { 0.0 }).collect();
        let gradients = (routing.gates_tk.clone() * matrix(&weights, k)).sum().backward();
        let found = values(&x_td.grad(&gradients).unwrap());
        for place in 0..T * E {
            let token = place / E;
            let loss = |by: f64| {
                let mut row = logits[token * E..(token + 1) * E].to_vec();
                row[place % E] += by;
                let slots = (token * k..(token + 1) * k).filter(|&slot| kept[slot]);
                slots
                    .map(|slot| {
                        let expert = routing.choice.expert_ids_tk[slot] as usize;
                        weights[slot] * expected_gate(&config, &row, expert)
                    })
                    .sum::<f64>()
            };
            let expected = (loss(1e-5) - loss(-1e-5)) / 2e-5;
            assert!((found[place] - expected).abs() < 1e-8, "{text}: {} is not {expected}", found[place]);
        }
    }
}

fn loads(experts_of_token: &[Vec<u32>], num_experts: usize) -> Vec<usize> {
    let load = |expert| experts_of_token.iter().filter(|ids| ids.contains(&expert)).count();
    (0..num_experts as u32).map(load).collect()
}

/// The definition in plain loops: the nearest multiple by distance, and the best tokens one after
/// the other.
fn by_definition(
    ids: &[u32],
    top_k: usize,
    scores: &[f64],
    num_experts: usize,
    tile: usize,
) -> Vec<Vec<u32>> {
    let num_tokens = scores.len() / num_experts;
    let mut experts: Vec<Vec<u32>> = ids.chunks(top_k).map(<[u32]>::to_vec).collect();
    for expert in 0..num_experts as u32 {
        let has = |token: usize| ids[token * top_k..(token + 1) * top_k].contains(&expert);
        let load = (0..num_tokens).filter(|&token| has(token)).count();
        let mut target = 0_usize;
        for multiple in (0..=num_tokens).step_by(tile) {
            let (new, old) = (multiple.abs_diff(load), target.abs_diff(load));
            if new < old || (new == old && (multiple / tile).is_multiple_of(2)) {
                target = multiple;
            }
        }
        let rank = |token: usize| {
            let score = scores[token * num_experts + expert as usize];
            if score.is_nan() { f64::NEG_INFINITY } else { score }
        };
        let mut now: Vec<usize> = (0..num_tokens).filter(|&token| has(token)).collect();
        while now.len() > target {
            let mut worst = now[0];
            for &token in &now {
                if rank(token) <= rank(worst) {
                    worst = token;
                }
            }
            now.retain(|&token| token != worst);
            experts[worst].retain(|&id| id != expert);
        }
        while now.len() < target {
            let mut best = None;
            for token in (0..num_tokens).filter(|&token| !has(token) && !now.contains(&token)) {
                if best.is_none_or(|best| rank(token) > rank(best)) {
                    best = Some(token);
                }
            }
            let best = best.unwrap();
            now.push(best);
            experts[best].push(expert);
        }
    }
    experts
}

proptest! {
    #[test]
    fn rounding_is_its_definition(
        scores in prop::collection::vec(
            prop_oneof![3 => 0.0..1.0_f64, 1 => prop::sample::select(vec![f64::NAN, 0.5, 0.25])],
            120,
        ),
        (num_experts, top_k) in prop::sample::select(vec![(2_usize, 1_usize), (4, 2), (6, 4), (3, 3), (10, 2)]),
        tile in 1_usize..20,
    ) {
        let ids = select_top_k(&scores, num_experts, top_k);
        let found = round_tokens((&ids, top_k), (&scores, num_experts), tile);
        prop_assert_eq!(&found, &by_definition(&ids, top_k, &scores, num_experts, tile));
        for load in loads(&found, num_experts) {
            prop_assert!(load.is_multiple_of(tile));
        }
        let before: Vec<Vec<u32>> = ids.chunks(top_k).map(<[u32]>::to_vec).collect();
        for (now, before) in loads(&found, num_experts).into_iter().zip(loads(&before, num_experts)) {
            // Less than a tile, where there are tokens for the next multiple; else at most one.
            prop_assert!(now.abs_diff(before) < tile.max(2));
        }
    }
}

//! The expert bias: what a step's tokens say about it, and what it changes.

use burn::tensor::DType;
use switchyard_router::{BalanceCount, Router, RouterPass};

use crate::case::{Kind, Values, chosen, kind, kinds, route_with, router, training, values};
use crate::oracle;

fn with_bias() -> Vec<Kind> {
    kinds().into_iter().filter(|kind| kind.config.bias.is_some()).collect()
}

/// What a training pass says about the balance.
fn balance(router: &Router, values: &Values) -> BalanceCount {
    route_with(router, values, values.x_td(DType::F64), training(51)).balance.unwrap()
}

/// Tokens that all prefer the experts of high index.
fn skewed(kind: &Kind, seed: u64) -> Values {
    let mut values = Values::random(kind, 64, seed);
    values.x_td.iter_mut().step_by(crate::case::D).for_each(|first| *first = 1.0);
    let favour = |(i, weight): (usize, &mut f64)| *weight = 0.3 * *weight + 0.2 * i as f64;
    values.weight_de.iter_mut().take(kind.num_experts).enumerate().for_each(favour);
    values.bias_e.fill(0.0);
    values
}

/// A step of the rate towards the mean load, then the mean taken off (arXiv:2408.15664, algorithm
/// 1).
fn stepped(bias_e: &[f64], loads: &[u64], step: impl Fn(f64) -> f64) -> Vec<f64> {
    let mean_load = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
    let moved: Vec<f64> = bias_e
        .iter()
        .zip(loads)
        .map(|(bias, &load)| bias + step((mean_load - load as f64) / mean_load))
        .collect();
    let mean = moved.iter().sum::<f64>() / moved.len() as f64;
    moved.iter().map(|bias| bias - mean).collect()
}

#[track_caller]
fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for (a, e) in actual.iter().zip(expected) {
        assert!((a - e).abs() <= tolerance, "{actual:?} instead of {expected:?}");
    }
}

#[test]
fn a_step_moves_the_bias_by_its_rule() {
    let sign = |violation: f64| 0.01 * f64::from((violation > 0.0) as i8 - (violation < 0.0) as i8);
    let proportional = |violation: f64| 0.1 * violation;
    for (name, step) in
        [("deepseek_v3", &sign as &dyn Fn(f64) -> f64), ("sigmoid_proportional", &proportional)]
    {
        let kind = kind(name);
        let values = Values::random(&kind, 20, 52);
        let router = router(&kind, &values, DType::F64);
        let count = balance(&router, &values);
        let expected = stepped(&values.bias_e, &count.tokens_per_expert, step);
        assert_close(&router.rebalanced(&count).bias_on_host().unwrap(), &expected, 1e-12);
    }
}

/// The k/E quantile of the biases that tokens would have required, by sorting them.
fn quantile(kind: &Kind, values: &Values, num_earlier: usize) -> Vec<f64> {
    let (e, k) = (kind.num_experts, kind.config.top_k);
    let mut required = vec![Vec::new(); e];
    for logits in oracle::logits(kind, values).iter().take(num_earlier) {
        let scores = oracle::scores(&kind.config, logits);
        let biased: Vec<f64> = scores.iter().zip(&values.bias_e).map(|(score, bias)| score + bias).collect();
        let cutoff = biased[oracle::largest(&biased, k + 1)[k]];
        scores.iter().enumerate().for_each(|(expert, score)| required[expert].push(cutoff - score));
    }
    let solved: Vec<f64> = required
        .iter_mut()
        .map(|required| {
            required.sort_by(f64::total_cmp);
            let rank = (required.len() - 1) as f64 * k as f64 / e as f64;
            let (below, above) = (required[rank.floor() as usize], required[rank.ceil() as usize]);
            below + (above - below) * rank.fract()
        })
        .collect();
    let mean = solved.iter().sum::<f64>() / e as f64;
    solved.iter().map(|bias| bias - mean).collect()
}

#[test]
fn quantile_balancing_solves_for_the_bias() {
    for name in ["quantile", "quantile_softmax"] {
        let kind = kind(name);
        let values = Values::random(&kind, 200, 53);
        let router = router(&kind, &values, DType::F64);
        let count = balance(&router, &values);
        // A bin is a thousandth of the range of 2.2; the mean can add as much again.
        let solved = router.rebalanced(&count).bias_on_host().unwrap();
        assert_close(&solved, &quantile(&kind, &values, 400), 2.0 * 2.2e-3);
    }
}

#[test]
fn micro_batches_count_together() {
    for kind in with_bias() {
        let values = Values::random(&kind, 30, 54);
        let router = router(&kind, &values, DType::F64);
        let part = |from: usize| {
            let tokens = from..from + 30;
            let mut part = values.clone();
            part.x_td = values.x_td[tokens.start * crate::case::D..tokens.end * crate::case::D].to_vec();
            part.token_ids_t = values.token_ids_t[tokens].to_vec();
            balance(&router, &part)
        };
        let mut merged = part(0);
        merged.merge(&part(30));
        assert_eq!(merged, balance(&router, &values), "{}", kind.name);
        let once = router.clone().rebalanced(&merged).bias_on_host().unwrap();
        assert_eq!(once, router.clone().rebalanced(&balance(&router, &values)).bias_on_host().unwrap());
    }
}

fn max_violation(router: &Router, values: &Values) -> f64 {
    let routing = route_with(router, values, values.x_td(DType::F64), RouterPass::Evaluation);
    routing.statistics.max_violation()
}

/// Half the violation after one solve, or after 100 steps of a hundredth.
#[test]
fn every_rule_balances_a_skewed_load() {
    for kind in with_bias() {
        let values = skewed(&kind, 55);
        let mut router = router(&kind, &values, DType::F64);
        let before = max_violation(&router, &values);
        for _ in 0..100 {
            let count = balance(&router, &values);
            router = router.rebalanced(&count);
        }
        let after = max_violation(&router, &values);
        assert!(before > 0.9 && after < 0.5 * before, "{}: from {before} to {after}", kind.name);
        let mean = router.bias_on_host().unwrap().iter().sum::<f64>();
        assert!(mean.abs() < 1e-12, "{}: the biases drift by {mean}", kind.name);
    }
}

#[test]
fn the_bias_changes_who_is_chosen_and_never_a_gate() {
    let kind = kind("sigmoid_proportional");
    let mut values_ = Values::random(&kind, 10, 56);
    values_.bias_e = vec![0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5.0, 5.0];
    let router = router(&kind, &values_, DType::F64);
    let routing = route_with(&router, &values_, values_.x_td(DType::F64), RouterPass::Evaluation);
    for (slots, logits) in chosen(&routing).iter().zip(oracle::logits(&kind, &values_)) {
        for (expert, gate) in slots {
            assert!(*expert >= 6);
            let score = 1.0 / (1.0 + (-logits[*expert as usize]).exp());
            assert!((gate - score).abs() < 1e-12, "{gate} instead of {score}");
        }
    }
}

#[test]
fn an_even_load_or_no_bias_changes_nothing() {
    let count = BalanceCount { tokens_per_expert: vec![7; 8], required_biases: None };
    for name in ["deepseek_v3", "sigmoid_proportional"] {
        let kind = kind(name);
        let values_ = Values::random(&kind, 4, 57);
        let router = router(&kind, &values_, DType::F64).rebalanced(&count);
        assert_eq!(router.bias_on_host().unwrap(), values_.bias_e);
    }
    let mixtral = kind("mixtral");
    let values_ = Values::random(&mixtral, 4, 57);
    let router = router(&mixtral, &values_, DType::F64).rebalanced(&count);
    assert!(router.bias_on_host().is_none());
    assert_eq!(values(&router.weight_de.unwrap().val()), values_.weight_de);
}

#[test]
fn a_bias_keeps_its_type_and_needs_no_gradient() {
    for dtype in [DType::F32, DType::F64] {
        let kind = kind("deepseek_v3");
        let values = Values::random(&kind, 20, 58);
        let router = router(&kind, &values, dtype);
        let count = route_with(&router, &values, values.x_td(dtype), training(58)).balance.unwrap();
        let bias_e = router.rebalanced(&count).bias_e.unwrap();
        assert_eq!(bias_e.val().dtype(), dtype);
        assert!(!bias_e.val().is_require_grad());
    }
}

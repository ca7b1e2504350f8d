//! Choices and gates against the oracle.

use switchyard_router::{RouterPass, Routing, Selection};

use crate::case::{D, Kind, Values, chosen, kind, kinds, route, training, values};
use crate::oracle;

/// Sequences of one pass under test: two of each length.
const SEQ_LENS: [usize; 4] = [1, 3, 8, 150];

/// Largest difference of a gate from the oracle's: sums of a few products of numbers below 100 in
/// f64. The cosine gate adds 1e-12 to the squares of lengths, of which the shortest here is near
/// 0.01.
const TOLERANCE: f64 = 1e-10;

/// Experts and gates of each token, in the router's order.
#[track_caller]
fn assert_routes(kind: &Kind, routing: &Routing, choices: &[Vec<usize>], logits: &[Vec<f64>]) {
    let actual = chosen(routing);
    assert_eq!(actual.len(), choices.len(), "{}", kind.name);
    for (token, (actual, experts)) in actual.iter().zip(choices).enumerate() {
        let ids: Vec<usize> = actual.iter().map(|(id, _)| *id as usize).collect();
        assert_eq!(&ids, experts, "{}, token {token}", kind.name);
        for ((_, gate), expected) in actual.iter().zip(oracle::gates(&kind.config, &logits[token], experts)) {
            assert!((gate - expected).abs() < TOLERANCE, "{}: {gate} instead of {expected}", kind.name);
        }
    }
    assert_eq!(routing.tokens_per_expert(), oracle::loads(choices, kind.num_experts), "{}", kind.name);
}

fn is_random(kind: &Kind) -> bool {
    matches!(kind.config.selection, Selection::Random {})
}

/// Logits that the router selected by, noise included; the oracle's own where there is no noise.
fn selecting_logits(kind: &Kind, values_: &Values, routing: &Routing) -> Vec<Vec<f64>> {
    let by_token = |flat: Vec<f64>| flat.chunks(kind.num_experts).map(<[f64]>::to_vec).collect();
    match (&routing.logits_te, &kind.config.selection) {
        (Some(logits_te), Selection::Noisy(_)) => by_token(values(logits_te)),
        _ => oracle::logits(kind, values_),
    }
}

#[test]
fn evaluation_routes_as_the_papers_say() {
    for kind in kinds().iter().filter(|kind| !is_random(kind)) {
        for (seed, seq_len) in (0..).zip(SEQ_LENS) {
            let values = Values::random(kind, seq_len, seed);
            let logits = oracle::logits(kind, &values);
            let choices = oracle::choices(kind, &values, &logits, false);
            assert_routes(kind, &route(kind, &values, RouterPass::Evaluation), &choices, &logits);
        }
    }
}

#[test]
fn training_routes_as_the_papers_say() {
    for kind in kinds().iter().filter(|kind| !is_random(kind) && kind.config.jitter.is_none()) {
        for (seed, seq_len) in (10..).zip(SEQ_LENS) {
            let values = Values::random(kind, seq_len, seed);
            let routing = route(kind, &values, training(seed));
            if let Selection::RandomSecond(_) = &kind.config.selection {
                assert_routes_with_random_second(kind, &routing, &oracle::logits(kind, &values));
                continue;
            }
            let logits = selecting_logits(kind, &values, &routing);
            let choices = oracle::choices(kind, &values, &logits, true);
            assert_routes(kind, &routing, &choices, &logits);
        }
    }
}

/// The first expert is the best, and its gate is that of both whether or not the second stays
/// (arXiv:2006.16668, algorithm 1).
#[track_caller]
fn assert_routes_with_random_second(kind: &Kind, routing: &Routing, logits: &[Vec<f64>]) {
    let gates = values(&routing.gates_tk);
    let pairs = routing.choice.expert_ids_tk.chunks(2).zip(gates.chunks(2));
    for ((ids, gates), logits) in pairs.zip(logits) {
        let experts: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        assert_eq!(experts[0], oracle::largest(logits, 1)[0]);
        for (gate, expected) in gates.iter().zip(oracle::gates(&kind.config, logits, &experts)) {
            assert!((gate - expected).abs() < TOLERANCE, "{}: {gate} instead of {expected}", kind.name);
        }
    }
}

#[test]
fn the_noise_is_normal_and_as_large_as_its_gate_says() {
    let noisy = kind("noisy_top_k");
    let mut values_ = Values::random(&noisy, 500, 3);
    let clean: Vec<f64> = oracle::logits(&noisy, &values_).concat();
    let normal = |values_: &Values| -> Vec<f64> {
        let noisy_te = values(&route(&noisy, values_, training(7)).logits_te.unwrap());
        let sizes = values_.x_td.chunks(D).flat_map(|x| {
            // Softplus, and the floor that the authors' code adds.
            let sizes = oracle::product(x, &values_.noise_weight_de, noisy.num_experts);
            sizes.into_iter().map(|size| size.exp().ln_1p() + 0.01)
        });
        noisy_te.iter().zip(&clean).zip(sizes).map(|((noisy, clean), size)| (noisy - clean) / size).collect()
    };
    let first = normal(&values_);
    let (n, mean) = (first.len() as f64, first.iter().sum::<f64>() / first.len() as f64);
    let variance = first.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / n;
    // 8000 draws: the standard deviations of mean and variance are 0.011 and 0.016.
    assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.07, "mean {mean}, variance {variance}");
    // The draws are the same whatever their size.
    values_.noise_weight_de.iter_mut().for_each(|weight| *weight = 2.0 * *weight + 0.3);
    for (a, b) in first.iter().zip(normal(&values_)) {
        assert!((a - b).abs() < 1e-10, "{a} and {b}");
    }
}

/// Tokens alike, so that all have the same gates: 10,000 draws of known probability.
fn alike(kind: &Kind) -> Values {
    let mut values = Values::random(kind, 5000, 4);
    let first = values.x_td[..D].to_vec();
    values.x_td = first.repeat(values.num_tokens());
    values
}

#[track_caller]
fn assert_frequency(count: usize, num_draws: usize, probability: f64) {
    let mean = num_draws as f64 * probability;
    let deviation = (mean * (1.0 - probability)).sqrt();
    assert!((count as f64 - mean).abs() <= 4.0 * deviation, "{count} instead of {mean} +- {deviation}");
}

#[test]
fn gshard_keeps_the_second_expert_with_twice_its_gate() {
    let gshard = kind("gshard");
    let values = alike(&gshard);
    let logits = &oracle::logits(&gshard, &values)[0];
    let experts = oracle::largest(logits, 2);
    let share = oracle::gates(&gshard.config, logits, &experts)[1];
    let routing = route(&gshard, &values, training(5));
    let num_seconds = chosen(&routing).iter().filter(|slots| slots.len() == 2).count();
    assert_frequency(num_seconds, values.num_tokens(), 2.0 * share);
    // While evaluating, nothing is left to chance.
    let evaluation = route(&gshard, &values, RouterPass::Evaluation);
    assert!(chosen(&evaluation).iter().all(|slots| slots.len() == 2));
}

#[test]
fn gshard_samples_the_second_expert_by_the_others_probabilities() {
    let gshard = kind("gshard_sampled");
    let values = alike(&gshard);
    let logits = &oracle::logits(&gshard, &values)[0];
    let first = oracle::largest(logits, 1)[0];
    let others: f64 = (0..8).filter(|&e| e != first).map(|e| logits[e].exp()).sum();
    let routing = route(&gshard, &values, training(6));
    let seconds: Vec<usize> =
        routing.choice.expert_ids_tk.iter().skip(1).step_by(2).map(|&id| id as usize).collect();
    for expert in (0..8).filter(|&expert| expert != first) {
        let count = seconds.iter().filter(|&&second| second == expert).count();
        assert_frequency(count, seconds.len(), logits[expert].exp() / others);
    }
    assert!(!seconds.contains(&first));
}

#[test]
fn the_random_router_draws_every_expert_alike_and_weighs_them_alike() {
    let random = kind("random");
    let values = Values::random(&random, 5000, 8);
    let routing = route(&random, &values, training(9));
    for expert in 0..8 {
        let count = routing.choice.expert_ids_tk.iter().filter(|&&id| id == expert).count();
        assert_frequency(count, values.num_tokens(), 0.25);
    }
    assert!(chosen(&routing).iter().flatten().all(|&(_, gate)| gate == 0.5));
    assert!(routing.logits_te.is_none() && routing.losses.is_empty());
}

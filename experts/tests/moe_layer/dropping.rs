use burn::tensor::DType;
use switchyard_experts::{CapacityConfig, DropPolicy, FfnOptions, MoeOutput};
use switchyard_router::{RouterNoise, RouterPass, expert_capacity};

use crate::case::{Setup, Values, capacity, forward, layer, tensor, training, values};

fn crowded(shared: Option<usize>) -> (Setup, Values) {
    let mut setup = Setup::small(8, 4, 1);
    setup.d_shared_expert = shared;
    // One token per expert at most.
    setup.capacity = Some(capacity(0.5, DropPolicy::Position));
    let mut inputs = Values::random(&setup, 9);
    let first_token = inputs.x_td[..setup.d_model].to_vec();
    inputs.x_td = first_token.repeat(setup.num_tokens);
    (setup, inputs)
}

#[test]
fn evaluation_is_dropless() {
    let (setup, inputs) = crowded(None);
    let layer_with = |setup: &Setup| layer(setup, &inputs, DType::F32);
    let x_td = tensor(&inputs.x_td, [8, 3], DType::F32);
    let output = forward(&layer_with(&setup), x_td.clone(), RouterPass::Evaluation);
    let dropless = forward(&layer_with(&Setup { capacity: None, ..setup }), x_td, training());
    assert_eq!(output.aux.statistics.dropped_fraction(), 0.0);
    assert_eq!(values(&output.hidden_td), values(&dropless.hidden_td));
}

#[test]
fn a_dropped_token_gets_the_shared_expert_only() {
    for shared in [None, Some(2)] {
        let (setup, inputs) = crowded(shared);
        let layer = layer(&setup, &inputs, DType::F32);
        let x_td = tensor(&inputs.x_td, [8, 3], DType::F32);
        let output = forward(&layer, x_td.clone(), training());
        let shared_td = layer
            .shared_expert
            .map_or_else(|| x_td.zeros_like(), |shared| shared.forward(x_td.clone(), FfnOptions::default()));
        let (hidden, shared_hidden) = (values(&output.hidden_td), values(&shared_td));
        assert_eq!(output.aux.statistics.dropped_fraction(), 7.0 / 8.0);
        assert_eq!(hidden[3..], shared_hidden[3..], "tokens after the first are dropped");
        assert_ne!(hidden[..3], shared_hidden[..3], "the first token is kept");
    }
}

/// How many assignments each expert got, and how many it kept.
fn loads(output: &MoeOutput, num_experts: usize) -> Vec<(usize, usize)> {
    let Some(route) = &output.aux.route else { panic!("tokens were mixed") };
    let Some(kept_tk) = &route.kept_tk else { panic!("nothing limits the experts") };
    let of_expert = |expert: usize| {
        let slots: Vec<usize> =
            (0..kept_tk.len()).filter(|&slot| route.choice.expert_ids_tk[slot] as usize == expert).collect();
        (slots.len(), slots.iter().filter(|&&slot| kept_tk[slot]).count())
    };
    (0..num_experts).map(of_expert).collect()
}

fn training_with(seed: u64) -> RouterPass<'static> {
    RouterPass::Training { noise: RouterNoise::new(seed), earlier_tokens_per_expert: &[] }
}

#[test]
fn evaluation_drops_only_when_asked_and_then_by_its_own_factor() {
    let (mut setup, inputs) = crowded(None);
    setup.capacity =
        Some(CapacityConfig { evaluation_factor: Some(1.0), ..capacity(0.5, DropPolicy::Position) });
    let layer = layer(&setup, &inputs, DType::F32);
    let x_td = tensor(&inputs.x_td, [8, 3], DType::F32);
    let dropped = |pass| forward(&layer, x_td.clone(), pass).aux.statistics.dropped_fraction();
    assert_eq!(dropped(training()), 7.0 / 8.0, "one of eight tokens fits");
    assert_eq!(dropped(RouterPass::Evaluation), 6.0 / 8.0, "two of eight tokens fit");
    assert_eq!(dropped(RouterPass::Generation), 6.0 / 8.0);
}

#[test]
fn each_expert_keeps_as_many_tokens_as_its_own_factor_allows() {
    let mut setup = Setup::small(24, 4, 2);
    let factors = [0.1, 0.5, 1.0, 4.0];
    for drop in [DropPolicy::Position, DropPolicy::Probability, DropPolicy::Random] {
        let factor_per_expert = Some(factors.to_vec());
        setup.capacity = Some(CapacityConfig { factor_per_expert, ..capacity(1.0, drop) });
        let inputs = Values::random(&setup, 5);
        let x_td = tensor(&inputs.x_td, [24, 3], DType::F32);
        let output = forward(&layer(&setup, &inputs, DType::F32), x_td, training());
        let mut num_dropped = 0;
        for ((load, kept), factor) in loads(&output, 4).into_iter().zip(factors) {
            assert_eq!(kept, load.min(expert_capacity(factor, 2, 24, 4)), "{drop:?}, factor {factor}");
            num_dropped += load - kept;
        }
        assert!(num_dropped > 0, "{drop:?}: nothing to drop");
        assert_eq!(output.aux.statistics.dropped_fraction(), num_dropped as f64 / 48.0);
    }
}

#[test]
fn random_dropping_repeats_with_its_noise_and_favours_no_position() {
    let (mut setup, inputs) = crowded(None);
    setup.capacity = Some(capacity(0.5, DropPolicy::Random));
    let layer = layer(&setup, &inputs, DType::F32);
    let kept = |seed| {
        let x_td = tensor(&inputs.x_td, [8, 3], DType::F32);
        let route = forward(&layer, x_td, training_with(seed)).aux.route.unwrap();
        route.kept_tk.unwrap().iter().position(|kept| *kept).unwrap()
    };
    let mut times_kept = [0; 8];
    for seed in 0..800 {
        times_kept[kept(seed)] += 1;
    }
    assert_eq!(kept(3), kept(3));
    // Five standard deviations of a binomial count of 800 draws at 1/8, which is 9.4.
    assert!(times_kept.iter().all(|&times| (53..=147).contains(&times)), "{times_kept:?}");
}

//! A layer whose experts are spread over ranks against the layer of one process, bit for bit.

use burn::tensor::{DType, Gradients, Tensor};
use switchyard_experts::{
    Activation, Compute, DropPolicy, ExpertParallel, Experts, ExpertsWeights, FfnOptions, MoeLayer, MoeOutput,
};
use switchyard_router::{RouterConfig, RouterPass};

use crate::case::{
    Setup, Values, bits, capacity, flat_gradient, forward, forward_in, forward_in_sequences, layer,
    layer_gradients, param_gradient, tensor, training,
};
use crate::ranks::on_ranks;

const COMPUTE: [Compute; 2] = [Compute::F32, Compute::Bf16];

/// The parameters are those of all ranks, the tokens and their weights the rank's own.
fn values(setup: &Setup, rank: usize) -> Values {
    let Values { x_td, c_td, .. } = Values::random(setup, 50 + rank as u64);
    Values { x_td, c_td, ..Values::random(setup, 40) }
}

fn tokens(setup: &Setup, rank: usize) -> Tensor<2> {
    tensor(&values(setup, rank).x_td, [setup.num_tokens, setup.d_model], DType::F32).require_grad()
}

/// Of all losses and of the output, weighted.
fn backward(setup: &Setup, rank: usize, output: MoeOutput) -> Gradients {
    let c_td = tensor(&values(setup, rank).c_td, [setup.num_tokens, setup.d_model], DType::F32);
    let losses = output.aux.losses.into_iter().map(|loss| loss.value_1);
    losses.fold((output.hidden_td * c_td).sum(), |sum, loss| sum + loss).backward()
}

/// What of the gradients does not belong to experts: tokens, router, shared expert.
fn dense_gradients(x_td: &Tensor<2>, layer: &MoeLayer, gradients: &Gradients) -> Vec<Vec<u32>> {
    let shared = layer.shared_expert.as_ref();
    let params = [
        layer.router.weight_de.as_ref(),
        shared.and_then(|shared| shared.w_gate_df.as_ref()),
        shared.map(|shared| &shared.w_up_df),
        shared.map(|shared| &shared.w_down_fd),
    ];
    let of_params = params.map(|param| bits(&param_gradient(param, gradients)));
    std::iter::once(bits(&flat_gradient(x_td, gradients))).chain(of_params).collect()
}

/// One forward and backward pass of a rank.
struct Step {
    hidden: Vec<u32>,
    dense: Vec<Vec<u32>>,
    /// Gradients of the gate, up and down projections: all in one process, or the rank's own from
    /// each rank's tokens.
    experts: Vec<Vec<Vec<u32>>>,
}

type Forward = fn(&MoeLayer, Tensor<2>, FfnOptions) -> MoeOutput;

fn alone(setup: &Setup, rank: usize, options: FfnOptions, forward: Forward) -> Step {
    let (layer, x_td) = (layer(setup, &values(setup, rank), DType::F32), tokens(setup, rank));
    let output = forward(&layer, x_td.clone(), options);
    let hidden = bits(&output.hidden_td);
    let gradients = backward(setup, rank, output);
    let dense = dense_gradients(&x_td, &layer, &gradients);
    let all = layer_gradients(&x_td, &layer, &gradients).map(|gradient| bits(&gradient));
    // Without a gate projection its gradient is empty.
    let of_experts = all[2..5].iter().filter(|gradient| !gradient.is_empty()).cloned().collect();
    Step { hidden, dense, experts: vec![of_experts] }
}

fn over_ranks(
    setup: &Setup,
    rank: usize,
    options: FfnOptions,
    forward: Forward,
    ranks: ExpertParallel,
) -> Step {
    let layer = layer(setup, &values(setup, rank), DType::F32).over_ranks(ranks.clone());
    assert_eq!(layer.experts.w_up_edf.val().dims()[0], layer.experts.own().len());
    let x_td = tokens(setup, rank);
    let output = forward(&layer, x_td.clone(), options);
    let hidden = bits(&output.hidden_td);
    let gradients = backward(setup, rank, output);
    assert!(layer.experts.w_up_edf.val().grad(&gradients).is_none(), "the tape leaves experts alone");
    let dense = dense_gradients(&x_td, &layer, &gradients);
    let bits_of = |stack: Vec<f32>| stack.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let [by_rank]: [_; 1] = ranks.gradients.take().try_into().unwrap();
    let experts = by_rank.into_iter().map(|of_rank| of_rank.into_stacks().into_iter().map(bits_of).collect());
    Step { hidden, dense, experts: experts.collect() }
}

#[track_caller]
fn check(setup: &Setup, num_ranks: usize, options: FfnOptions, forward: Forward) {
    let expected: Vec<_> = (0..num_ranks).map(|rank| alone(setup, rank, options, forward)).collect();
    let steps = on_ranks(num_ranks, |rank, ranks| over_ranks(setup, rank, options, forward, ranks));
    for (rank, step) in steps.iter().enumerate() {
        assert_eq!(step.hidden, expected[rank].hidden, "output of rank {rank} of {num_ranks}, {options:?}");
        assert_eq!(step.dense, expected[rank].dense, "gradients of rank {rank} of {num_ranks}, {options:?}");
        assert_eq!(step.experts.len(), num_ranks);
        for (source, expected) in expected.iter().enumerate() {
            assert_eq!(step.experts[source].len(), expected.experts[0].len());
            for (stack, expected) in step.experts[source].iter().zip(&expected.experts[0]) {
                let own = expected.chunks(expected.len() / num_ranks).nth(rank).unwrap();
                assert_eq!(stack, own, "experts of rank {rank} of {num_ranks}, tokens of {source}");
            }
        }
    }
}

#[test]
fn a_layer_with_a_shared_expert_and_a_capacity_has_the_bits_of_one_process() {
    for num_ranks in [1, 2, 4] {
        for (activation, num_experts) in [(Activation::Swiglu, 4), (Activation::Gelu, 8)] {
            let setup = Setup {
                d_shared_expert: Some(5),
                capacity: Some(capacity(0.75, DropPolicy::Position)),
                activation,
                ..Setup::small(21, num_experts, 2)
            };
            for (compute, recompute) in COMPUTE.into_iter().flat_map(|c| [(c, false), (c, true)]) {
                check(&setup, num_ranks, FfnOptions { compute, recompute }, |layer, x_td, options| {
                    forward_in(layer, x_td, training(), options)
                });
            }
        }
    }
}

#[test]
fn soft_mixing_over_ranks_has_the_bits_of_one_process() {
    let router: RouterConfig = serde_json::from_str(r#"{"top_k": 2, "selection": {"soft": {}}}"#).unwrap();
    let setup = Setup { router, slots_per_expert: 2, d_shared_expert: Some(3), ..Setup::small(12, 4, 2) };
    check(&setup, 2, FfnOptions::default(), |layer, x_td, _| {
        forward_in_sequences(layer, x_td, 4, training())
    });
}

#[test]
fn evaluation_over_ranks_has_the_bits_of_one_process_and_leaves_no_gradients() {
    let setup = Setup::small(9, 4, 2);
    let of_rank = |layer: &MoeLayer, rank| {
        bits(&forward(layer, tokens(&setup, rank), RouterPass::Evaluation).hidden_td)
    };
    let layer = || layer(&setup, &values(&setup, 0), DType::F32);
    let ours = on_ranks(2, |rank, ranks| {
        let hidden = of_rank(&layer().over_ranks(ranks.clone()), rank);
        assert!(ranks.gradients.take().is_empty());
        hidden
    });
    assert_eq!(ours, [0, 1].map(|rank| of_rank(&layer(), rank)));
}

/// Without an answer from the other rank, which does not ask.
#[test]
fn a_rank_finds_its_own_expert_whose_output_is_not_finite() {
    let setup = Setup::small(16, 4, 2);
    let mut values = values(&setup, 0);
    values.w_down_efd[3 * setup.d_expert * setup.d_model] = f64::NAN;
    let found = on_ranks(2, |rank, ranks| {
        let layer = layer(&setup, &values, DType::F32).over_ranks(ranks);
        let x_td = tokens(&setup, 0);
        let route = forward(&layer, x_td.clone(), training()).aux.route.unwrap();
        assert!(route.choice.expert_ids_tk.contains(&3));
        (rank == 1).then(|| layer.first_non_finite_expert(&x_td, &route, FfnOptions::default()))
    });
    assert_eq!(found, [None, Some(Some(3))]);
}

#[test]
fn a_layer_is_made_of_a_router_of_all_experts_and_the_own_ones() {
    let setup = Setup::small(2, 4, 1);
    let num_experts = on_ranks(2, |rank, ranks| {
        let whole = layer(&setup, &values(&setup, 0), DType::F32);
        let Experts { w_gate_edf, w_up_edf, w_down_efd, .. } =
            whole.experts.clone().over_ranks(ranks.clone());
        let weights = ExpertsWeights {
            w_gate_edf: w_gate_edf.map(|stack| stack.val()),
            w_up_edf: w_up_edf.val(),
            w_down_efd: w_down_efd.val(),
            biases: None,
        };
        let own = Experts::new(weights, setup.activation).of_rank(ranks);
        assert_eq!(own.own(), 2 * rank..2 * rank + 2);
        MoeLayer::new(whole.router, own, None, None).experts.num_experts()
    });
    assert_eq!(num_experts, [4, 4]);
}

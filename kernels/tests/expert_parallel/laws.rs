use burn::tensor::Tensor;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use switchyard_kernels::{
    Activation, Compute, ExpertGradients, FfnOptions, RoutedTokens, expert_parallel_ffn,
};

use crate::case::{Case, Choices, TokenBits, bits, bits_of};
use crate::ranks::on_ranks;

const ACTIVATIONS: [Activation; 5] = [
    Activation::Swiglu,
    Activation::ClampedSwiglu { alpha: 1.702, limit: 0.25 },
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
];
const COMPUTE: [Compute; 3] = [Compute::F32, Compute::Bf16, Compute::PortableBf16];
const NUM_PATTERNS: usize = 6;

/// Choices of two experts per token.
fn pattern(pattern: usize, seed: u64, case: &Case) -> Choices {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let e = case.num_experts as u32;
    let (num_tokens, ids) = match pattern {
        0 | 1 => (13 - 4 * pattern, 0..e),
        // All on one expert.
        2 => (7, e / 2..e / 2 + 1),
        // Nothing for all ranks but the first.
        3 => (5, 0..e / case.num_ranks as u32),
        // No token.
        4 => (0, 0..e),
        // No row.
        _ => (4, 0..e),
    };
    let expert_ids = (0..2 * num_tokens).map(|_| rng.random_range(ids.clone())).collect();
    let keep = match pattern {
        1 => Some((0..2 * num_tokens).map(|_| rng.random()).collect()),
        5 => Some(vec![false; 2 * num_tokens]),
        _ => None,
    };
    Choices { top_k: 2, expert_ids, keep }
}

/// Each rank's output and gradients are those of one process with all experts, and so are the
/// gradients of each rank's experts from each rank's tokens.
#[track_caller]
fn check(case: &Case, choices: &[Choices]) {
    type Ours = (TokenBits, Vec<Vec<ExpertGradients>>);
    let fused: Vec<_> = (0..case.num_ranks).map(|rank| case.fused(rank, &choices[rank])).collect();
    let ours: Vec<Ours> =
        on_ranks(case.num_ranks, |rank, ranks| case.over_ranks(rank, &choices[rank], &ranks));
    for (rank, (tokens, mut deposits)) in ours.into_iter().enumerate() {
        assert!(tokens == fused[rank].0, "tokens of rank {rank}: {case:?} {choices:?}");
        assert_eq!(deposits.len(), 1, "one backward pass");
        let by_rank = deposits.remove(0);
        assert_eq!(by_rank.len(), case.num_ranks, "gradients from each rank");
        for (source, (gradients, (_, expected))) in by_rank.into_iter().zip(&fused).enumerate() {
            let stacks = gradients.into_stacks();
            assert_eq!(stacks.len(), expected.len(), "stacks of {case:?}");
            for (stack, expected) in stacks.iter().zip(expected) {
                let own =
                    expected.chunks(expected.len() / case.num_ranks).nth(rank).expect("a part for each rank");
                assert!(bits_of(stack) == own, "experts of rank {rank}, tokens of {source}: {case:?}");
            }
        }
    }
}

fn case(num_ranks: usize, num_experts: usize) -> Case {
    let options = FfnOptions::default();
    Case { activation: Activation::Swiglu, biased: true, options, num_ranks, num_experts, d: 9, f: 20 }
}

#[test]
fn any_number_of_ranks_has_the_bits_of_one_process() {
    let mut first_pattern = 0;
    for (num_ranks, num_experts) in [1, 2, 4].into_iter().flat_map(|n| [4, 8, 32].map(|e| (n, e))) {
        for (activation, compute) in ACTIVATIONS.into_iter().flat_map(|a| COMPUTE.map(|c| (a, c))) {
            for (biased, recompute) in [(false, false), (false, true), (true, false), (true, true)] {
                let options = FfnOptions { compute, recompute };
                let case = Case { activation, biased, options, ..case(num_ranks, num_experts) };
                // Ranks in step would meet the same few combinations of patterns only.
                let pattern_of = |rank: usize| {
                    pattern((first_pattern * (rank + 1) + rank) % NUM_PATTERNS, rank as u64, &case)
                };
                check(&case, &(0..num_ranks).map(pattern_of).collect::<Vec<_>>());
                first_pattern += 1;
            }
        }
    }
}

/// Alone, a rank's rows are cut into smaller tiles than the rows of all ranks together.
#[test]
fn tiles_of_the_owner_are_others_than_those_of_one_process_and_the_bits_are_the_same() {
    for compute in COMPUTE {
        let options = FfnOptions { compute, recompute: false };
        let case = Case { options, d: 40, f: 56, ..case(4, 4) };
        let skewed = |seed: u64| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let expert_ids =
                (0..1200).map(|_| if rng.random_range(0..9) > 0 { 1 } else { rng.random_range(0..4) });
            Choices { top_k: 2, expert_ids: expert_ids.collect(), keep: None }
        };
        check(&case, &[0, 1, 2, 3].map(skewed));
    }
}

/// A single row takes another way through a product, in tasks if the matrix is large, and long sums
/// are cut into blocks.
#[test]
fn experts_with_a_single_row_have_the_bits_of_one_process() {
    for compute in COMPUTE {
        let options = FfnOptions { compute, recompute: false };
        let case = Case { options, d: 300, f: 530, ..case(2, 4) };
        let choices =
            [vec![0, 3], vec![2, 2, 1]].map(|expert_ids| Choices { top_k: 1, expert_ids, keep: None });
        check(&case, &choices);
    }
}

#[test]
fn a_pass_without_a_tape_leaves_no_gradients_and_has_the_same_output() {
    let case = case(2, 4);
    let choices = [pattern(0, 1, &case), pattern(1, 2, &case)];
    let ours = on_ranks(2, |rank, ranks| {
        let [x_td, gates_tk] = case.tokens(rank, &choices[rank]);
        let y_td = case.forward(rank, [x_td, gates_tk], &choices[rank], &ranks);
        assert!(ranks.gradients.take().is_empty());
        bits(&y_td)
    });
    let fused = [0, 1].map(|rank| case.fused(rank, &choices[rank]).0.y);
    assert_eq!(ours, fused);
}

#[test]
fn backward_passes_leave_their_gradients_in_order() {
    let case = case(2, 4);
    let ours = on_ranks(2, |rank, ranks| {
        let choices = [0, 1].map(|pass| pattern(0, pass, &case));
        let alone = choices.each_ref().map(|choices| case.over_ranks(rank, choices, &ranks).1.remove(0));
        let outputs = choices.each_ref().map(|choices| {
            let tokens = case.tokens(rank, choices).map(Tensor::require_grad);
            case.forward(rank, tokens, choices, &ranks)
        });
        for y_td in outputs {
            case.backward(rank, &y_td);
        }
        (alone, ranks.gradients.take())
    });
    for (alone, together) in ours {
        assert!(together == alone);
        assert!(alone[0] != alone[1]);
    }
}

#[test]
#[should_panic(expected = "13 tokens with gates [13, 2] and 4 experts do not fit 26 rows in 8 groups")]
fn a_plan_of_more_experts_than_all_ranks_hold_is_refused() {
    let (large, small) = (case(2, 8), case(2, 4));
    on_ranks(2, |rank, ranks| {
        let choices = pattern(0, 1, &large);
        let [x_td, gates_tk] = small.tokens(rank, &choices);
        let tokens = RoutedTokens { x_td, gates_tk, plan: &large.plan(&choices) };
        expert_parallel_ffn(tokens, small.matrices_of(rank), small.activation, small.options, &ranks);
    });
}

use burn::tensor::{DType, Tensor};
use proptest::prelude::*;
use rayon::ThreadPoolBuilder;
use switchyard_kernels::{Activation, DispatchPlan, ExpertMatrices, FfnOptions, SlotMap, expert_ffn};

use crate::case::{Case, Inputs};
use crate::oracle;
use crate::tensors::{assert_close, random, tensor};

/// A limit within the range of the values, so that both sides of it are seen.
const CLAMPED: Activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 0.25 };
const ACTIVATIONS: [Activation; 5] =
    [Activation::Swiglu, CLAMPED, Activation::Gelu, Activation::GeluTanh, Activation::Relu];
const NAMES: [&str; 8] = ["x", "up", "down", "gate", "gates", "up bias", "down bias", "gate bias"];
/// f32 sums of at most a few hundred products of size 1, in any order: a relative 1e-5 is some
/// dozens of roundings.
const F32: f64 = 1e-5;
/// Central differences in f64 with a step of 1e-5 are good to about 1e-9, the values themselves to
/// 1e-13.
const F64: f64 = 1e-8;

/// In f64 the stock operations run, in f32 the fused ones: both against the definition.
fn check(case: &Case) {
    let (inputs, c) = (case.inputs(), random(case.t * case.d, 9));
    let (y, gradients) = (oracle::forward(case, &inputs), oracle::gradients(case, &inputs, &c));
    for (dtype, tolerance) in [(DType::F64, F64), (DType::F32, F32)] {
        let (actual, actual_gradients) = case.run(&inputs, &c, dtype);
        assert_close(&format!("{dtype:?} output of {case:?}"), &actual, &y, tolerance);
        for ((name, actual), expected) in NAMES.iter().zip(&actual_gradients).zip(&gradients) {
            assert_close(&format!("{dtype:?} gradient of {name} of {case:?}"), actual, expected, tolerance);
        }
    }
}

#[test]
fn a_dense_block_is_its_definition() {
    for activation in ACTIVATIONS {
        for biased in [false, true] {
            for sizes in [[1, 1, 1], [5, 3, 7], [2, 9, 18]] {
                check(&Case::dense(activation, sizes, biased));
            }
        }
    }
}

#[test]
fn a_mixture_is_its_definition() {
    for activation in ACTIVATIONS {
        // Ragged groups, among them an empty one; one token; all tokens on one expert; more experts
        // than tokens.
        for (experts, ids) in [
            ([3, 2], vec![0, 2, 2, 0, 0, 2, 2, 0, 0, 2]),
            ([4, 1], vec![3]),
            ([4, 1], vec![1, 1, 1, 1, 1, 1]),
            ([7, 3], vec![6, 0, 3, 1, 2, 5]),
            ([1, 1], vec![0, 0, 0]),
        ] {
            let case = Case::mixture(activation, [3, 5], experts, &ids, None);
            check(&case);
            check(&case.with_biases());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_choice_with_any_slots_dropped_is_its_definition(
        choices in (1_usize..6, 1_usize..4).prop_flat_map(|(t, k)| (
            Just(k), prop::collection::vec(0_u32..5, t * k), prop::collection::vec(any::<bool>(), t * k),
        )),
    ) {
        let (top_k, ids, keep) = choices;
        let case = Case::mixture(Activation::Swiglu, [2, 3], [5, top_k], &ids, Some(&keep));
        check(&case.with_biases());
        check(&Case::mixture(Activation::Swiglu, [2, 3], [5, top_k], &ids, Some(&keep)));
    }
}

/// Ids that leave expert 2 without tokens and give expert 0 half of all slots.
fn skewed_ids(num_slots: usize) -> Vec<u32> {
    (0..num_slots).map(|i| if i % 2 == 0 { 0 } else { [1, 3, 4][i / 2 % 3] }).collect()
}

fn bits(values: &[Vec<f64>]) -> Vec<u64> {
    values.iter().flatten().map(|value| value.to_bits()).collect()
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for case in [
        Case::dense(Activation::Swiglu, [300, 40, 56], true),
        Case::mixture(Activation::Gelu, [40, 56], [5, 2], &skewed_ids(900), None),
    ] {
        let (inputs, c) = (case.inputs(), random(case.t * case.d, 9));
        let run = || {
            let (y, mut gradients) = case.run(&inputs, &c, DType::F32);
            gradients.push(y);
            bits(&gradients)
        };
        let with_threads = |n| ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(run);
        let one = with_threads(1);
        assert!(one == with_threads(2), "1 and 2 threads differ");
        assert!(one == with_threads(3), "1 and 3 threads differ");
        assert!(one == run(), "two runs differ");
    }
}

#[test]
fn one_expert_with_gate_one_is_the_dense_block_bit_for_bit() {
    for activation in ACTIVATIONS {
        for t in [1, 127, 128, 300] {
            let dense = Case::dense(activation, [t, 33, 65], false);
            let mixture = Case::mixture(activation, [33, 65], [1, 1], &vec![0; t], None);
            let inputs = Inputs { gates: vec![1.0; t], ..mixture.inputs() };
            let c = random(t * 33, 9);
            let (dense_y, dense_gradients) = dense.run(&inputs, &c, DType::F32);
            let (y, gradients) = mixture.run(&inputs, &c, DType::F32);
            assert_eq!(bits(&[y]), bits(&[dense_y]), "{activation:?}, {t} tokens");
            assert_eq!(bits(&gradients[..4]), bits(&dense_gradients[..4]), "{activation:?}, {t} tokens");
        }
    }
}

#[test]
fn a_token_whose_slots_were_all_dropped_gets_zero_and_an_idle_expert_no_gradient() {
    let keep = [false, false, true, true];
    let case = Case::mixture(Activation::Swiglu, [3, 5], [2, 2], &[1, 0, 0, 0], Some(&keep));
    let (inputs, c) = (case.inputs(), random(2 * 3, 9));
    let (y, gradients) = case.run(&inputs, &c, DType::F32);
    assert_eq!(y[..3], [0.0; 3]);
    assert_eq!(gradients[0][..3], [0.0; 3], "the token's gradient");
    assert_eq!(gradients[1][3 * 5..], [0.0; 15], "the idle expert's gradient");
    assert_eq!(gradients[4][..2], [0.0; 2], "the dropped gates' gradients");
}

fn matrices(e: usize) -> ExpertMatrices {
    let stack = |seed| tensor(&random(e * 12, seed), [e, 3, 4], DType::F32);
    let w_down_efd = tensor(&random(e * 12, 3), [e, 4, 3], DType::F32);
    ExpertMatrices { w_gate_edf: Some(stack(1)), w_up_edf: stack(2), w_down_efd, biases: None }
}

fn tokens() -> (Tensor<2>, Tensor<2>) {
    (tensor(&random(6, 1), [2, 3], DType::F32), tensor(&[0.5; 2], [2, 1], DType::F32))
}

#[test]
fn frozen_matrices_get_no_gradient_and_the_tokens_keep_theirs() {
    let (x_td, gates_tk) = tokens();
    let x_td = x_td.require_grad();
    let plan = DispatchPlan::new(&[0, 1], None, 2, 1);
    let frozen = matrices(2);
    let y_td =
        expert_ffn(x_td.clone(), gates_tk, frozen.clone(), Activation::Swiglu, &plan, FfnOptions::default());
    let gradients = y_td.sum().backward();
    assert!(x_td.grad(&gradients).is_some());
    assert!(frozen.w_up_edf.grad(&gradients).is_none());
}

#[test]
#[should_panic(expected = "2 tokens with gates [2, 1] and 3 experts do not fit 2 rows in 2 groups")]
fn matrices_that_do_not_fit_the_plan_are_refused() {
    let (x_td, gates_tk) = tokens();
    let plan = DispatchPlan::new(&[0, 1], None, 2, 1);
    expert_ffn(x_td, gates_tk, matrices(3), Activation::Swiglu, &plan, FfnOptions::default());
}

#[test]
#[should_panic(expected = "Gelu with a gate projection = true")]
fn a_superfluous_gate_projection_is_refused() {
    let (x_td, gates_tk) = tokens();
    let plan = DispatchPlan::new(&[0, 1], None, 2, 1);
    expert_ffn(x_td, gates_tk, matrices(2), Activation::Gelu, &plan, FfnOptions::default());
}

#[test]
#[should_panic(expected = "slot 1 is in rows Some(0) and 2")]
fn a_slot_with_two_rows_is_refused() {
    SlotMap::new([1, 0, 1], 2, 1);
}

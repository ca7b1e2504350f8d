use burn::backend::Flex;
use switchyard_kernels_cpu::routing::RouterLoss;

use super::{Choice, GateSoftmax, Route, stock};
use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};

const SIZES: [[usize; 3]; 5] = [[1, 1, 1], [3, 2, 2], [5, 16, 3], [129, 37, 8], [300, 64, 8]];
const SOFTMAXES: [GateSoftmax; 2] = [GateSoftmax::OverChosen, GateSoftmax::OverAll];

/// Distinct ids for each token.
fn choice([t, e, k]: [usize; 3], softmax: GateSoftmax) -> Choice {
    let ids = (0..t * k).map(|i| ((i / k * 7 + i % k) % e) as u32);
    Choice { expert_ids_tk: ids.collect(), softmax }
}

fn losses(e: usize) -> [RouterLoss; 2] {
    [RouterLoss::Load((0..e).map(|i| 0.3 + i as f64).collect()), RouterLoss::SquareLogPartition]
}

#[test]
fn fused_gates_agree_with_the_stock_body() {
    for ([t, e, k], softmax) in SIZES.into_iter().flat_map(|sizes| SOFTMAXES.map(|softmax| (sizes, softmax)))
    {
        let (logits, dgates, choice) =
            (random_flex(1, [t, e]), random_flex(2, [t, k]), choice([t, e, k], softmax));
        let gates = Flex::top_k_gates(logits.clone(), choice.clone());
        assert_agree("gates", &gates, &stock::gates::<Flex>(logits.clone(), &choice));
        let stock = stock::gates_gradient::<Flex>(logits.clone(), gates.clone(), dgates.clone(), &choice);
        assert_agree("gradient", &Flex::top_k_gates_gradient(logits, gates, dgates, choice), &stock);
    }
}

#[test]
fn fused_losses_agree_with_the_stock_body() {
    for [t, e, _] in SIZES {
        for loss in losses(e) {
            let (logits, dloss) = (random_flex(1, [t, e]), random_flex(2, [1]));
            let fused = Flex::router_loss(logits.clone(), loss.clone());
            assert_agree("loss", &fused, &stock::loss::<Flex>(logits.clone(), &loss));
            let stock = stock::loss_gradient::<Flex>(logits.clone(), dloss.clone(), &loss);
            assert_agree("gradient", &Flex::router_loss_gradient(logits, dloss, loss), &stock);
        }
    }
}

#[test]
fn routing_repeats_bit_for_bit_for_any_number_of_threads() {
    let compute = || {
        let (logits, dgates) = (random_flex(1, [517, 48]), random_flex(2, [517, 4]));
        let choice = choice([517, 48, 4], GateSoftmax::OverAll);
        let gates = Flex::top_k_gates(logits.clone(), choice.clone());
        let mut results =
            vec![gates.clone(), Flex::top_k_gates_gradient(logits.clone(), gates, dgates, choice)];
        for loss in losses(48) {
            results.push(Flex::router_loss(logits.clone(), loss.clone()));
            results.push(Flex::router_loss_gradient(logits.clone(), random_flex(3, [1]), loss));
        }
        results
    };
    assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
}

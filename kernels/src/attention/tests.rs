use burn::backend::{Flex, TensorMetadata, flex::FlexTensor};
use burn::tensor::TensorData;

use super::{CausalAttention, Heads, SavedForAttention, stock};
use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};
use crate::slices::{elements, from_elements};
use crate::tensor_list::TensorList;

#[derive(Debug, Clone, Copy)]
struct Case {
    b: usize,
    s: usize,
    d: usize,
    heads: Heads,
    /// Documents of 7 tokens, or one.
    masked: bool,
    rotary: bool,
}

fn case([b, h, g, s, d]: [usize; 5], masked: bool, rotary: bool, alibi: bool) -> Case {
    Case { b, s, d, heads: Heads { num_heads: h, num_kv_heads: g, alibi }, masked, rotary }
}

/// Inputs with the results of the stock body, and a gradient of the output.
fn inputs(case: Case) -> (SavedForAttention<Flex>, FlexTensor) {
    let Case { b, s, d, heads, masked, rotary } = case;
    let rows = |seed, num_heads| random_flex(seed, [b * s, num_heads * d]);
    let mut inputs = vec![rows(1, heads.num_heads), rows(2, heads.num_kv_heads), rows(3, heads.num_kv_heads)];
    if rotary {
        let angles = random_flex(5, [s + 2, d / 2]);
        let table = |f: fn(f32) -> f32| {
            from_elements(elements(&angles).iter().map(|&angle| f(angle)).collect(), angles.shape())
        };
        inputs.extend([table(f32::cos), table(f32::sin)]);
    }
    let inputs = TensorList::from_vec(inputs);
    let ids: Vec<i32> = (0..b * s).map(|i| if masked { (i / 7) as i32 } else { 0 }).collect();
    let segment_ids_bs = FlexTensor::from_data(TensorData::new(ids, [b, s]));
    let (y_tq, log_partition_bhs) = stock::forward::<Flex>(inputs.clone(), segment_ids_bs.clone(), heads);
    (SavedForAttention { y_tq, log_partition_bhs, segment_ids_bs, inputs }, rows(4, heads.num_heads))
}

fn fused_forward(saved: &SavedForAttention<Flex>, heads: Heads) -> (FlexTensor, FlexTensor) {
    Flex::causal_attention_and_partition(saved.inputs.clone(), saved.segment_ids_bs.clone(), heads)
}

#[test]
fn fused_attention_agrees_with_the_stock_body() {
    for case in [
        case([1, 1, 1, 1, 1], false, false, false),
        case([1, 2, 1, 2, 2], false, true, false),
        case([2, 2, 1, 16, 16], false, false, true),
        case([2, 6, 2, 17, 6], true, true, false),
        case([1, 4, 4, 64, 24], true, false, true),
        case([1, 3, 1, 130, 34], false, true, true),
        case([1, 2, 1, 300, 8], true, true, true),
    ] {
        let (saved, dy_tq) = inputs(case);
        let (y_tq, log_partition_bhs) = fused_forward(&saved, case.heads);
        assert_agree("output", &y_tq, &saved.y_tq);
        assert_agree("log partition", &log_partition_bhs, &saved.log_partition_bhs);
        let fused = Flex::causal_attention_gradients(saved.clone(), dy_tq.clone(), case.heads);
        let stock = stock::gradients::<Flex>(saved, dy_tq, case.heads);
        assert_agree("gradient of queries", &fused.0, &stock.0);
        assert_agree("gradient of keys", &fused.1, &stock.1);
        assert_agree("gradient of values", &fused.2, &stock.2);
    }
}

#[test]
fn attention_repeats_bit_for_bit_for_any_number_of_threads() {
    let case = case([3, 6, 2, 137, 20], true, true, true);
    let compute = || {
        let (saved, dy_tq) = inputs(case);
        let (y_tq, _) = fused_forward(&saved, case.heads);
        let (dq_tq, dk_tg, dv_tg) = Flex::causal_attention_gradients(saved, dy_tq, case.heads);
        vec![y_tq, dq_tq, dk_tg, dv_tg]
    };
    assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
}

#[test]
fn no_later_key_changes_an_output_even_if_it_is_no_number() {
    let case = case([1, 1, 1, 20, 4], false, false, false);
    let (mut saved, _) = inputs(case);
    let (clean, _) = fused_forward(&saved, case.heads);
    let mut list = saved.inputs.into_vec();
    list[1].storage_mut::<f32>()[19 * 4..].fill(f32::NAN);
    saved.inputs = TensorList::from_vec(list);
    let (y, _) = fused_forward(&saved, case.heads);
    let y: &[f32] = y.storage();
    assert_eq!(y[..19 * 4], clean.storage::<f32>()[..19 * 4]);
    assert!(y[19 * 4..].iter().all(|value| value.is_nan()));
}

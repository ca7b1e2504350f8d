use burn::backend::{Flex, TensorMetadata, flex::FlexTensor};
use burn::tensor::TensorData;

use switchyard_kernels_cpu::bf16::Compute;

use super::operands::Operands;
use super::{Alibi, Call, CausalAttention, Heads, SavedForAttention, stock};
use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};
use crate::slices::{elements, from_elements};
use crate::tensor_list::TensorList;

#[derive(Debug, Clone, Copy)]
struct Case {
    b: usize,
    s: usize,
    d: usize,
    /// Width of a head of the values.
    v: usize,
    heads: Heads,
    /// Documents of 7 tokens, or one.
    masked: bool,
    rotary: bool,
    sinks: bool,
}

fn case([b, h, g, s, d]: [usize; 5], masked: bool, rotary: bool, alibi: bool) -> Case {
    let heads = Heads { alibi: alibi.then_some(Alibi::Distance), ..Heads::new(h, g) };
    Case { b, s, d, v: d, heads, masked, rotary, sinks: false }
}

/// Inputs with the results of the stock body, and a gradient of the output.
fn inputs(case: Case) -> (SavedForAttention<Flex>, FlexTensor, Call) {
    let Case { b, s, d, v, heads, masked, rotary, sinks } = case;
    let (h, g) = (heads.num_heads, heads.num_kv_heads);
    let rows = |seed, width| random_flex(seed, [b * s, width]);
    let angles = random_flex(5, [s + 2, d / 2]);
    let table = |f: fn(f32) -> f32| {
        from_elements(elements(&angles).iter().map(|&angle| f(angle)).collect(), angles.shape())
    };
    let operands = Operands {
        q: rows(1, h * d),
        k: rows(2, g * d),
        v: rows(3, g * v),
        sinks: sinks.then(|| random_flex(6, [h])),
        rotation: rotary.then(|| [table(f32::cos), table(f32::sin)]),
    };
    let call = Call { heads, parts: operands.parts(), compute: Compute::F32 };
    let inputs = TensorList::from_vec(operands.into_vec());
    let ids: Vec<i32> = (0..b * s).map(|i| if masked { (i / 7) as i32 } else { 0 }).collect();
    let segment_ids_bs = FlexTensor::from_data(TensorData::new(ids, [b, s]));
    let (y_tq, log_partition_bhs) = stock::forward::<Flex>(inputs.clone(), segment_ids_bs.clone(), call);
    (SavedForAttention { y_tq, log_partition_bhs, segment_ids_bs, inputs }, rows(4, h * v), call)
}

fn fused_forward(saved: &SavedForAttention<Flex>, call: Call) -> (FlexTensor, FlexTensor) {
    Flex::causal_attention_and_partition(saved.inputs.clone(), saved.segment_ids_bs.clone(), call)
}

#[track_caller]
fn assert_fused_agrees(case: Case) {
    let (saved, dy_tq, call) = inputs(case);
    let (y_tq, log_partition_bhs) = fused_forward(&saved, call);
    assert_agree("output", &y_tq, &saved.y_tq);
    assert_agree("log partition", &log_partition_bhs, &saved.log_partition_bhs);
    let fused = Flex::causal_attention_gradients(saved.clone(), dy_tq.clone(), call);
    let stock = stock::gradients::<Flex>(saved, dy_tq, call);
    assert_eq!(fused.len(), if case.sinks { 4 } else { 3 });
    for (name, (fused, stock)) in ["queries", "keys", "values", "sinks"].iter().zip(fused.iter().zip(&stock))
    {
        assert_agree(&format!("gradient of {name} of {case:?}"), fused, stock);
    }
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
        assert_fused_agrees(case);
    }
}

#[test]
fn fused_attention_with_windows_sinks_and_other_values_agrees_with_the_stock_body() {
    for window in [1, 2, 7, 100, 130, 1000] {
        let case = case([2, 4, 2, 300, 8], window == 7, true, window == 2);
        let heads = Heads { window: Some(window), scale: Some(0.2), ..case.heads };
        assert_fused_agrees(Case { heads, sinks: window % 2 == 0, v: window % 5 + 4, ..case });
    }
    let falcon = case([1, 3, 3, 70, 6], false, false, true);
    let heads = Heads { alibi: Some(Alibi::Falcon), ..falcon.heads };
    assert_fused_agrees(Case { heads, sinks: true, ..falcon });
}

#[test]
fn attention_repeats_bit_for_bit_for_any_number_of_threads() {
    let case = Case { sinks: true, ..case([3, 6, 2, 137, 20], true, true, true) };
    let compute = || {
        let (saved, dy_tq, call) = inputs(case);
        let (y_tq, _) = fused_forward(&saved, call);
        let gradients = Flex::causal_attention_gradients(saved, dy_tq, call);
        [vec![y_tq], gradients].concat()
    };
    assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
}

#[test]
fn no_later_key_changes_an_output_even_if_it_is_no_number() {
    let case = case([1, 1, 1, 20, 4], false, false, false);
    let (mut saved, _, call) = inputs(case);
    let (clean, _) = fused_forward(&saved, call);
    let mut list = saved.inputs.into_vec();
    list[1].storage_mut::<f32>()[19 * 4..].fill(f32::NAN);
    saved.inputs = TensorList::from_vec(list);
    let (y, _) = fused_forward(&saved, call);
    let y: &[f32] = y.storage();
    assert_eq!(y[..19 * 4], clean.storage::<f32>()[..19 * 4]);
    assert!(y[19 * 4..].iter().all(|value| value.is_nan()));
}

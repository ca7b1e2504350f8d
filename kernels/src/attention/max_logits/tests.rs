use burn::backend::{Flex, flex::FlexTensor};
use burn::tensor::TensorData;

use super::{Heads, MaxLogits, stock};
use crate::attention::Alibi;
use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};
use crate::slices::{elements, from_elements};
use crate::tensor_list::TensorList;

/// Queries and keys of `b` sequences of `s` tokens, and documents of 7 tokens or one.
fn inputs(
    [b, s, d]: [usize; 3],
    heads: Heads,
    [masked, rotary]: [bool; 2],
) -> (TensorList<Flex>, FlexTensor) {
    let rows = |seed, num_heads: usize| random_flex(seed, [b * s, num_heads * d]);
    let angles = random_flex(5, [s + 2, d / 2]);
    let table = |f: fn(f32) -> f32| {
        from_elements(elements(&angles).iter().map(|&angle| f(angle)).collect(), [s + 2, d / 2].into())
    };
    let mut tensors = vec![rows(1, heads.num_heads), rows(2, heads.num_kv_heads)];
    if rotary {
        tensors.extend([table(f32::cos), table(f32::sin)]);
    }
    let ids: Vec<i32> = (0..b * s).map(|i| if masked { (i / 7) as i32 } else { 0 }).collect();
    (TensorList::from_vec(tensors), FlexTensor::from_data(TensorData::new(ids, [b, s])))
}

#[test]
fn fused_logits_agree_with_the_stock_body_and_with_any_number_of_threads() {
    let window = |window| Heads { window: Some(window), ..Heads::new(4, 2) };
    let alibi = Heads { alibi: Some(Alibi::Distance), scale: Some(0.7), ..Heads::new(3, 3) };
    for (shape, heads) in [
        ([1, 1, 2], Heads::new(1, 1)),
        ([2, 64, 8], Heads::new(4, 2)),
        ([3, 150, 6], Heads::new(2, 1)),
        ([2, 150, 8], window(1)),
        ([2, 200, 8], window(70)),
        ([2, 90, 4], alibi),
    ] {
        for of in [[false, false], [true, false], [false, true], [true, true]] {
            let stock = {
                let (inputs, segment_ids_bs) = inputs(shape, heads, of);
                stock::max_logits::<Flex>(inputs, segment_ids_bs, heads)
            };
            let compute = || {
                let (inputs, segment_ids_bs) = inputs(shape, heads, of);
                vec![Flex::max_logits(inputs, segment_ids_bs, heads)]
            };
            assert_agree(&format!("{shape:?}, {heads:?}, {of:?}"), &compute()[0], &stock);
            assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
        }
    }
}

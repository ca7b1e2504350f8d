use burn::backend::{Flex, flex::FlexTensor};
use burn::tensor::Shape;
use switchyard_kernels_cpu::attention::Alibi;
use switchyard_kernels_cpu::attention::cached::CacheShape;
use switchyard_kernels_cpu::bf16::Compute;

use super::{AppendCall, CachedAttention, CachedCall, Operands, stock};
use crate::Heads;
use crate::attention::{Call, CausalAttention};
use crate::slices::test_support::{assert_agree, random_flex};
use crate::slices::{elements, from_elements};
use crate::tensor_list::TensorList;

/// A sequence that grows token by token.
#[derive(Debug, Clone, Copy)]
struct Case {
    shape: CacheShape,
    heads: Heads,
    rotary: bool,
    sinks: bool,
}

fn case([h, g, d, v]: [usize; 4]) -> Case {
    let shape = CacheShape { num_kv_heads: g, capacity: 303, d_head: d, d_value: v };
    Case { shape, heads: Heads::new(h, g), rotary: false, sinks: false }
}

struct Tensors {
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    sinks: Option<FlexTensor>,
    rotation: Option<[FlexTensor; 2]>,
}

fn tensors(case: Case, n: usize) -> Tensors {
    let CacheShape { num_kv_heads: g, d_head: d, d_value, .. } = case.shape;
    let angles = random_flex(5, [n, d / 2]);
    let table = |f: fn(f32) -> f32| {
        from_elements(elements(&angles).iter().map(|&angle| f(angle)).collect(), Shape::new([n, d / 2]))
    };
    Tensors {
        q: random_flex(1, [n, case.heads.num_heads * d]),
        k: random_flex(2, [n, g * d]),
        v: random_flex(3, [n, g * d_value]),
        sinks: case.sinks.then(|| random_flex(6, [case.heads.num_heads])),
        rotation: case.rotary.then(|| [table(f32::cos), table(f32::sin)]),
    }
}

fn row(tensor: &FlexTensor, row: usize, width: usize) -> FlexTensor {
    from_elements(elements(tensor)[row * width..][..width].to_vec(), Shape::new([1, width]))
}

/// The output of every token, one after the other, by one body.
fn grown(case: Case, n: usize, fused: bool) -> FlexTensor {
    let Tensors { q, k, v, sinks, rotation } = tensors(case, n);
    let CacheShape { num_kv_heads: g, capacity: c, d_head: d, d_value } = case.shape;
    let zeros = |shape: [usize; 3]| from_elements(vec![0.0; shape.iter().product()], Shape::new(shape));
    let (mut keys, mut values) = (zeros([g, d, c]), zeros([g, c, d_value]));
    let mut y = Vec::new();
    for token in 0..n {
        let rows = [row(&k, token, g * d), row(&v, token, g * d_value)];
        let rows =
            TensorList::from_vec(rows.into_iter().chain(rotation.clone().into_iter().flatten()).collect());
        let append = AppendCall { shape: case.shape, first: token, rotary: case.rotary };
        (keys, values) = match fused {
            true => Flex::append_to_cache(keys, values, rows, append),
            false => stock::append::<Flex>(keys, values, rows, append),
        };
        let operands = Operands {
            q: row(&q, token, case.heads.num_heads * d),
            k: keys.clone(),
            v: values.clone(),
            sinks: sinks.clone(),
            rotation: rotation.clone(),
        };
        let call = CachedCall {
            heads: case.heads,
            parts: operands.parts(),
            shape: case.shape,
            num_tokens: token + 1,
        };
        let inputs = TensorList::from_vec(operands.into_vec());
        let y_1 = match fused {
            true => Flex::cached_attention(inputs, call),
            false => stock::forward::<Flex>(inputs, call),
        };
        y.extend_from_slice(elements(&y_1));
    }
    from_elements(y, Shape::new([n, case.heads.num_heads * d_value]))
}

/// The output of all tokens in one pass.
fn whole(case: Case, n: usize) -> FlexTensor {
    let Tensors { q, k, v, sinks, rotation } = tensors(case, n);
    let operands = Operands { q, k, v, sinks, rotation };
    let call = Call { heads: case.heads, parts: operands.parts(), compute: Compute::F32 };
    let ids = FlexTensor::from_data(burn::tensor::TensorData::new(vec![0_i32; n], [1, n]));
    Flex::causal_attention_and_partition(TensorList::from_vec(operands.into_vec()), ids, call).0
}

fn cases() -> Vec<Case> {
    let plain = case([4, 2, 8, 8]);
    let heads = plain.heads;
    vec![
        plain,
        Case { rotary: true, sinks: true, ..case([3, 3, 34, 5]) },
        Case { heads: Heads { alibi: Some(Alibi::Distance), ..heads }, ..plain },
        Case { heads: Heads { alibi: Some(Alibi::Falcon), scale: Some(0.3), ..heads }, ..plain },
        Case { heads: Heads { window: Some(1), ..heads }, ..plain },
        Case { heads: Heads { window: Some(70), ..heads }, rotary: true, sinks: true, ..plain },
    ]
}

#[test]
fn a_grown_sequence_has_the_bits_of_the_whole_pass() {
    for case in cases() {
        for n in [1, 66, 300] {
            let (grown, whole) = (grown(case, n, true), whole(case, n));
            assert!(elements(&grown) == elements(&whole), "{n} tokens of {case:?}");
        }
    }
}

#[test]
fn kept_keys_and_values_agree_with_the_stock_body() {
    for case in cases() {
        assert_agree(&format!("output of {case:?}"), &grown(case, 90, true), &grown(case, 90, false));
    }
}

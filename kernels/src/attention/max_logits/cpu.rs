//! The largest logits on the CPU, without a `[seq, seq]` tensor.

use burn::backend::{Flex, TensorMetadata, flex::FlexTensor};
use burn::tensor::Shape;
use switchyard_kernels_cpu::max_logits::{Inputs, max_logits};
use switchyard_kernels_cpu::rotary::Rotation;

use super::{Heads, MaxLogits, Split, stock};
use crate::slices::{all_f32, contiguous, elements, from_elements, host_integers};
use crate::tensor_list::TensorList;

impl MaxLogits for Flex {
    fn max_logits(inputs: TensorList<Flex>, segment_ids_bs: FlexTensor, heads: Heads) -> FlexTensor {
        let tensors = inputs.into_vec();
        let is_fused = all_f32(&tensors.iter().collect::<Vec<_>>()) && tensors[0].shape().num_elements() > 0;
        if !is_fused {
            return stock::max_logits::<Flex>(TensorList::from_vec(tensors), segment_ids_bs, heads);
        }
        let Split { q, k, rotation } = Split::of(tensors.into_iter().map(contiguous).collect());
        let seq_len = segment_ids_bs.shape()[1];
        let largest = max_logits(Inputs {
            q: elements(&q),
            k: elements(&k),
            rotation: rotation.as_ref().map(|[cos, sin]| Rotation { cos: elements(cos), sin: elements(sin) }),
            segment_ids: &host_integers(segment_ids_bs),
            seq_len,
            d_head: q.shape()[1] / heads.num_heads,
            heads,
        });
        from_elements(largest, Shape::new([heads.num_heads]))
    }
}

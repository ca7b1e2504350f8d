//! The largest logits as stock tensor operations, for every backend.

use burn::backend::{
    Backend, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::Shape;

use super::{Heads, Split};
use crate::attention::stock::{repeat_heads, scores, to_heads};
use crate::rotary::{Turn, rotate};
use crate::tensor_list::TensorList;

/// The default body of [`super::MaxLogits::max_logits`].
pub(super) fn max_logits<B: Backend>(
    inputs: TensorList<B>,
    segment_ids_bs: IntTensor<B>,
    heads: Heads,
) -> FloatTensor<B> {
    let Split { q, k, rotation } = Split::of(inputs.into_vec());
    let s = segment_ids_bs.shape()[1];
    let (b, h) = (q.shape()[0] / s, heads.num_heads);
    let turned = |x_bhsd: FloatTensor<B>| match rotation.clone() {
        Some([cos_sp, sin_sp]) => rotate::<B>(x_bhsd, cos_sp, sin_sp, Turn::Forward),
        None => x_bhsd,
    };
    let q_bhsd = turned(to_heads::<B>(q, [b, s, h]));
    let k_bgsd = turned(to_heads::<B>(k, [b, s, heads.num_kv_heads]));
    let without_positions = Heads { alibi: None, ..heads };
    let scores_bhss = scores::<B>(q_bhsd, repeat_heads::<B>(k_bgsd, h), segment_ids_bs, without_positions);
    let of_heads = B::float_reshape(B::float_swap_dims(scores_bhss, 0, 1), Shape::new([h, b * s * s]));
    B::float_reshape(B::float_max_dim(of_heads, 1), Shape::new([h]))
}

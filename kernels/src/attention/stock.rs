//! Attention and its gradients from stock tensor operations: the default body on every backend.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_device_settings};
use burn::tensor::Shape;

use super::SavedForAttention;

/// The output, `[b, h, s, d]`, and the logarithm of each softmax's denominator, `[b, h, s, 1]`.
pub(super) fn forward<B: Backend>(
    q_bhsd: FloatTensor<B>,
    k_bgsd: FloatTensor<B>,
    v_bgsd: FloatTensor<B>,
    segment_ids_bs: IntTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let h = q_bhsd.shape()[1];
    let scores_bhss = scores::<B>(q_bhsd, repeat_heads::<B>(k_bgsd, h), segment_ids_bs);
    let max_bhs1 = B::float_max_dim(scores_bhss.clone(), 3);
    let exp_bhss = B::float_exp(B::float_sub(scores_bhss, max_bhs1.clone()));
    let sum_bhs1 = B::float_sum_dim(exp_bhss.clone(), 3);
    let weights_bhss = B::float_div(exp_bhss, sum_bhs1.clone());
    let y_bhsd = B::float_matmul(weights_bhss, repeat_heads::<B>(v_bgsd, h));
    (y_bhsd, B::float_add(B::float_log(sum_bhs1), max_bhs1))
}

/// Gradients of queries, `[b, h, s, d]`, keys and values, `[b, g, s, d]`.
pub(super) fn backward<B: Backend>(
    saved: SavedForAttention<B>,
    dy_bhsd: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let ([h, d], g) = ([1, 3].map(|dim| saved.q_bhsd.shape()[dim]), saved.k_bgsd.shape()[1]);
    let (k_bhsd, v_bhsd) = (repeat_heads::<B>(saved.k_bgsd, h), repeat_heads::<B>(saved.v_bgsd, h));
    let scores_bhss = scores::<B>(saved.q_bhsd.clone(), k_bhsd.clone(), saved.segment_ids_bs);
    let weights_bhss = B::float_exp(B::float_sub(scores_bhss, saved.log_partition_bhs1));
    let dv_bhsd = B::float_matmul(B::float_swap_dims(weights_bhss.clone(), 2, 3), dy_bhsd.clone());
    let dweights_bhss = B::float_matmul(dy_bhsd.clone(), B::float_swap_dims(v_bhsd, 2, 3));
    let dy_times_y_bhs1 = B::float_sum_dim(B::float_mul(dy_bhsd, saved.y_bhsd), 3);
    let dscores_bhss = B::float_mul(weights_bhss, B::float_sub(dweights_bhss, dy_times_y_bhs1));
    let dscores_bhss = B::float_mul_scalar(dscores_bhss, scale(d).into());
    let dq_bhsd = B::float_matmul(dscores_bhss.clone(), k_bhsd);
    let dk_bhsd = B::float_matmul(B::float_swap_dims(dscores_bhss, 2, 3), saved.q_bhsd);
    (dq_bhsd, sum_shared_heads::<B>(dk_bhsd, g), sum_shared_heads::<B>(dv_bhsd, g))
}

/// The factor of the scores.
fn scale(d: usize) -> f64 {
    1.0 / (d as f64).sqrt()
}

/// Scores, minus infinity where a query does not see a key.
fn scores<B: Backend>(
    q_bhsd: FloatTensor<B>,
    k_bhsd: FloatTensor<B>,
    segment_ids_bs: IntTensor<B>,
) -> FloatTensor<B> {
    let [b, h, s, d] = q_bhsd.shape().dims();
    let q_bhsd = B::float_mul_scalar(q_bhsd, scale(d).into());
    let scores_bhss = B::float_matmul(q_bhsd, B::float_swap_dims(k_bhsd, 2, 3));
    let forbidden_bhss = B::bool_expand(forbidden::<B>(segment_ids_bs), Shape::new([b, h, s, s]));
    B::float_mask_fill(scores_bhss, forbidden_bhss, f32::NEG_INFINITY.into())
}

/// `[b or 1, 1, s, s]`: true where the query (dimension 2) does not see the key (dimension 3).
fn forbidden<B: Backend>(segment_ids_bs: IntTensor<B>) -> BoolTensor<B> {
    let ([b, s], device) = (segment_ids_bs.shape().dims(), segment_ids_bs.device());
    let (int, bool) = (segment_ids_bs.dtype().into(), get_device_settings::<B>(&device).bool_dtype);
    let pairs = |ids: IntTensor<B>, b, query, key| {
        let ids = B::int_reshape(ids, Shape::new([b, 1, query, key]));
        B::int_expand(ids, Shape::new([b, 1, s, s]))
    };
    let positions_s = B::int_arange(0..s as i64, &device, int);
    let later = B::int_greater(pairs(positions_s.clone(), 1, 1, s), pairs(positions_s, 1, s, 1), bool);
    let elsewhere =
        B::int_not_equal(pairs(segment_ids_bs.clone(), b, s, 1), pairs(segment_ids_bs, b, 1, s), bool);
    B::bool_or(B::bool_expand(later, Shape::new([b, 1, s, s])), elsewhere)
}

/// Each key/value head repeated for the query heads that share it.
fn repeat_heads<B: Backend>(x_bgsd: FloatTensor<B>, num_heads: usize) -> FloatTensor<B> {
    let [b, g, s, d] = x_bgsd.shape().dims();
    if g == num_heads {
        return x_bgsd;
    }
    let r = num_heads / g;
    let x_bg1sd = B::float_reshape(x_bgsd, Shape::new([b, g, 1, s, d]));
    let x_bgrsd = B::float_expand(x_bg1sd, Shape::new([b, g, r, s, d]));
    B::float_reshape(x_bgrsd, Shape::new([b, num_heads, s, d]))
}

/// The gradient of [`repeat_heads`].
fn sum_shared_heads<B: Backend>(x_bhsd: FloatTensor<B>, num_kv_heads: usize) -> FloatTensor<B> {
    let [b, h, s, d] = x_bhsd.shape().dims();
    let x_bgrsd = B::float_reshape(x_bhsd, Shape::new([b, num_kv_heads, h / num_kv_heads, s, d]));
    B::float_reshape(B::float_sum_dim(x_bgrsd, 2), Shape::new([b, num_kv_heads, s, d]))
}

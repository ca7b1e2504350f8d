//! Attention and its gradients from stock tensor operations: the default body on every backend.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_device_settings};
use burn::tensor::{Shape, TensorData};

use switchyard_kernels_cpu::attention::alibi_slopes;

use super::operands::Operands;
use super::{Alibi, Call, Heads, SavedForAttention};
use crate::rotary::{Turn, rotate};
use crate::tensor_list::TensorList;

/// The output, `[t, h * v]`, and the logarithm of each softmax's denominator, `[b, h, s]`.
pub(super) fn forward<B: Backend>(
    inputs: TensorList<B>,
    segment_ids_bs: IntTensor<B>,
    call: Call,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let SplitInputs { q_bhsd, k_bgsd, v_bgsd, sinks_h, .. } = split::<B>(inputs, &segment_ids_bs, call);
    let h = call.heads.num_heads;
    let scores_bhss = scores::<B>(q_bhsd, repeat_heads::<B>(k_bgsd, h), segment_ids_bs, call.heads);
    let [b, _, s, _] = scores_bhss.shape().dims();
    let max_bhs1 = B::float_max_dim(scores_bhss.clone(), 3);
    let exp_bhss = B::float_exp(B::float_sub(scores_bhss, max_bhs1.clone()));
    let sum_bhs1 = B::float_sum_dim(exp_bhss.clone(), 3);
    let sum_bhs1 = match sinks_h {
        Some(sinks_h) => {
            let exp_bhs1 = B::float_exp(B::float_sub(of_heads::<B>(sinks_h), max_bhs1.clone()));
            B::float_add(sum_bhs1, exp_bhs1)
        }
        None => sum_bhs1,
    };
    let weights_bhss = B::float_div(exp_bhss, sum_bhs1.clone());
    let y_bhsd = B::float_matmul(weights_bhss, repeat_heads::<B>(v_bgsd, h));
    let log_partition_bhs1 = B::float_add(B::float_log(sum_bhs1), max_bhs1);
    (from_heads::<B>(y_bhsd), B::float_reshape(log_partition_bhs1, Shape::new([b, h, s])))
}

/// Gradients of queries, `[t, h * d]`, keys, `[t, g * d]`, values, `[t, g * v]`, and sinks, `[h]`, if
/// there are any.
pub(super) fn gradients<B: Backend>(
    saved: SavedForAttention<B>,
    dy_tq: FloatTensor<B>,
    call: Call,
) -> Vec<FloatTensor<B>> {
    let SavedForAttention { inputs, segment_ids_bs, y_tq, log_partition_bhs } = saved;
    let SplitInputs { q_bhsd, k_bgsd, v_bgsd, sinks_h, rotation } = split::<B>(inputs, &segment_ids_bs, call);
    let (h, g) = (call.heads.num_heads, call.heads.num_kv_heads);
    let [b, _, s, d] = q_bhsd.shape().dims();
    let (y_bhsd, dy_bhsd) = (to_heads::<B>(y_tq, [b, s, h]), to_heads::<B>(dy_tq, [b, s, h]));
    let log_partition_bhs1 = B::float_reshape(log_partition_bhs, Shape::new([b, h, s, 1]));
    let (k_bhsd, v_bhsd) = (repeat_heads::<B>(k_bgsd, h), repeat_heads::<B>(v_bgsd, h));
    let scores_bhss = scores::<B>(q_bhsd.clone(), k_bhsd.clone(), segment_ids_bs, call.heads);
    let weights_bhss = B::float_exp(B::float_sub(scores_bhss, log_partition_bhs1.clone()));
    let dv_bhsd = B::float_matmul(B::float_swap_dims(weights_bhss.clone(), 2, 3), dy_bhsd.clone());
    let dweights_bhss = B::float_matmul(dy_bhsd.clone(), B::float_swap_dims(v_bhsd, 2, 3));
    let dy_times_y_bhs1 = B::float_sum_dim(B::float_mul(dy_bhsd, y_bhsd), 3);
    let dsinks_h = sinks_h.map(|sinks_h| {
        let sink_weights = B::float_exp(B::float_sub(of_heads::<B>(sinks_h), log_partition_bhs1));
        let of_tokens = B::float_neg(B::float_mul(sink_weights, dy_times_y_bhs1.clone()));
        B::float_reshape(B::float_sum_dim(B::float_sum_dim(of_tokens, 2), 0), Shape::new([h]))
    });
    let dscores_bhss = B::float_mul(weights_bhss, B::float_sub(dweights_bhss, dy_times_y_bhs1));
    let dscores_bhss = B::float_mul_scalar(dscores_bhss, scale(call.heads, d).into());
    let dq_bhsd = B::float_matmul(dscores_bhss.clone(), k_bhsd);
    let dk_bhsd = B::float_matmul(B::float_swap_dims(dscores_bhss, 2, 3), q_bhsd);
    let turn_back = |x_bhsd: FloatTensor<B>| match rotation.clone() {
        Some([cos_sp, sin_sp]) => rotate::<B>(x_bhsd, cos_sp, sin_sp, Turn::Back),
        None => x_bhsd,
    };
    let gradients = [
        from_heads::<B>(turn_back(dq_bhsd)),
        from_heads::<B>(turn_back(sum_shared_heads::<B>(dk_bhsd, g))),
        from_heads::<B>(sum_shared_heads::<B>(dv_bhsd, g)),
    ];
    gradients.into_iter().chain(dsinks_h).collect()
}

/// Heads of queries and keys, turned, and of values; the tables that they were turned by.
struct SplitInputs<B: Backend> {
    q_bhsd: FloatTensor<B>,
    k_bgsd: FloatTensor<B>,
    v_bgsd: FloatTensor<B>,
    sinks_h: Option<FloatTensor<B>>,
    rotation: Option<[FloatTensor<B>; 2]>,
}

fn split<B: Backend>(inputs: TensorList<B>, segment_ids_bs: &IntTensor<B>, call: Call) -> SplitInputs<B> {
    let Operands { q, k, v, sinks, rotation } = Operands::from_vec(inputs.into_vec(), call.parts);
    let s = segment_ids_bs.shape()[1];
    let b = q.shape()[0] / s;
    let turn = |x_bhsd: FloatTensor<B>| match rotation.clone() {
        Some([cos_sp, sin_sp]) => rotate::<B>(x_bhsd, cos_sp, sin_sp, Turn::Forward),
        None => x_bhsd,
    };
    SplitInputs {
        q_bhsd: turn(to_heads::<B>(q, [b, s, call.heads.num_heads])),
        k_bgsd: turn(to_heads::<B>(k, [b, s, call.heads.num_kv_heads])),
        v_bgsd: to_heads::<B>(v, [b, s, call.heads.num_kv_heads]),
        sinks_h: sinks,
        rotation,
    }
}

/// One number per head, to go with `[b, h, s, 1]`.
fn of_heads<B: Backend>(x_h: FloatTensor<B>) -> FloatTensor<B> {
    let h = x_h.shape()[0];
    B::float_reshape(x_h, Shape::new([1, h, 1, 1]))
}

/// `[b * s, h * d]` as `[b, h, s, d]`.
pub(super) fn to_heads<B: Backend>(x_tq: FloatTensor<B>, [b, s, h]: [usize; 3]) -> FloatTensor<B> {
    let d = x_tq.shape()[1] / h;
    B::float_swap_dims(B::float_reshape(x_tq, Shape::new([b, s, h, d])), 1, 2)
}

/// The inverse of [`to_heads`].
fn from_heads<B: Backend>(x_bhsd: FloatTensor<B>) -> FloatTensor<B> {
    let [b, h, s, d] = x_bhsd.shape().dims();
    B::float_reshape(B::float_swap_dims(x_bhsd, 1, 2), Shape::new([b * s, h * d]))
}

/// The factor of the scores.
fn scale(heads: Heads, d: usize) -> f64 {
    heads.scale.map_or_else(|| 1.0 / (d as f64).sqrt(), f64::from)
}

/// Scores, minus infinity where a query does not see a key.
pub(super) fn scores<B: Backend>(
    q_bhsd: FloatTensor<B>,
    k_bhsd: FloatTensor<B>,
    segment_ids_bs: IntTensor<B>,
    heads: Heads,
) -> FloatTensor<B> {
    let [b, h, s, d] = q_bhsd.shape().dims();
    let q_bhsd = B::float_mul_scalar(q_bhsd, scale(heads, d).into());
    let scores_bhss = B::float_matmul(q_bhsd, B::float_swap_dims(k_bhsd, 2, 3));
    let scores_bhss = match heads.alibi {
        Some(alibi) => add_alibi::<B>(scores_bhss, alibi, d),
        None => scores_bhss,
    };
    let forbidden = forbidden::<B>(segment_ids_bs, heads.window);
    let forbidden_bhss = B::bool_expand(forbidden, Shape::new([b, h, s, s]));
    B::float_mask_fill(scores_bhss, forbidden_bhss, f32::NEG_INFINITY.into())
}

/// Scores plus what positions add.
fn add_alibi<B: Backend>(scores_bhss: FloatTensor<B>, alibi: Alibi, d: usize) -> FloatTensor<B> {
    let [_, h, s, _] = scores_bhss.shape().dims();
    let biases: Vec<f32> = alibi_slopes(h)
        .into_iter()
        .flat_map(|slope| (0..s * s).map(move |pair| alibi.bias(slope, pair / s, pair % s, d)))
        .collect();
    let (device, dtype) = (scores_bhss.device(), scores_bhss.dtype());
    let data = TensorData::new(biases, [1, h, s, s]).convert_dtype(dtype);
    B::float_add(scores_bhss, B::float_from_data(data, &device))
}

/// `[b or 1, 1, s, s]`: true where the query (dimension 2) does not see the key (dimension 3).
fn forbidden<B: Backend>(segment_ids_bs: IntTensor<B>, window: Option<usize>) -> BoolTensor<B> {
    let ([b, s], device) = (segment_ids_bs.shape().dims(), segment_ids_bs.device());
    let (int, bool) = (segment_ids_bs.dtype().into(), get_device_settings::<B>(&device).bool_dtype);
    let pairs = |ids: IntTensor<B>, b, query, key| {
        let ids = B::int_reshape(ids, Shape::new([b, 1, query, key]));
        B::int_expand(ids, Shape::new([b, 1, s, s]))
    };
    let positions_s = B::int_arange(0..s as i64, &device, int);
    let (queries, keys) = (pairs(positions_s.clone(), 1, s, 1), pairs(positions_s, 1, 1, s));
    let later = B::int_greater(keys.clone(), queries.clone(), bool);
    let unseen = match window {
        Some(window) => {
            let too_early =
                B::int_greater_equal_elem(B::int_sub(queries, keys), (window as i64).into(), bool);
            B::bool_or(later, too_early)
        }
        None => later,
    };
    let elsewhere =
        B::int_not_equal(pairs(segment_ids_bs.clone(), b, s, 1), pairs(segment_ids_bs, b, 1, s), bool);
    B::bool_or(B::bool_expand(unseen, Shape::new([b, 1, s, s])), elsewhere)
}

/// Each key/value head repeated for the query heads that share it.
pub(super) fn repeat_heads<B: Backend>(x_bgsd: FloatTensor<B>, num_heads: usize) -> FloatTensor<B> {
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

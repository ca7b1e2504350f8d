//! Kept keys and values by stock tensor operations: the default body on every backend.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use burn::tensor::{Shape, Slice, TensorData};
use switchyard_kernels_cpu::attention::alibi_slopes;
use switchyard_kernels_cpu::attention::cached::CacheShape;

use super::{AppendCall, CachedCall, Operands};
use crate::rotary::{Turn, rotate};
use crate::tensor_list::TensorList;

/// The default body of [`super::CachedAttention::append_to_cache`].
pub(super) fn append<B: Backend>(
    keys_gdc: FloatTensor<B>,
    values_gcv: FloatTensor<B>,
    rows: TensorList<B>,
    call: AppendCall,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let CacheShape { num_kv_heads: g, d_head: d, d_value: v, .. } = call.shape;
    let mut rows = rows.into_vec().into_iter();
    let mut next = || rows.next().expect("keys, values and the tables that the call names");
    let (k_tg, v_tg) = (next(), next());
    let t = k_tg.shape()[0];
    let rotation = call.rotary.then(|| [next(), next()]);
    let new = call.first..call.first + t;
    let to_heads = |x_tg: FloatTensor<B>, width| {
        B::float_swap_dims(B::float_reshape(x_tg, Shape::new([1, t, g, width])), 1, 2)
    };
    let k_1gtd = turned::<B>(to_heads(k_tg, d), rotation, new.start);
    let k_gdt = B::float_reshape(B::float_swap_dims(k_1gtd, 2, 3), Shape::new([g, d, t]));
    let v_gtv = B::float_reshape(to_heads(v_tg, v), Shape::new([g, t, v]));
    let new = Slice::from(new);
    (
        B::float_slice_assign(keys_gdc, &[Slice::full(), Slice::full(), new], k_gdt),
        B::float_slice_assign(values_gcv, &[Slice::full(), new, Slice::full()], v_gtv),
    )
}

/// The default body of [`super::CachedAttention::cached_attention`].
pub(super) fn forward<B: Backend>(inputs: TensorList<B>, call: CachedCall) -> FloatTensor<B> {
    let CachedCall { heads, parts, shape, num_tokens: n } = call;
    let CacheShape { num_kv_heads: g, d_head: d, d_value: v, .. } = shape;
    let (h, sharing) = (heads.num_heads, heads.num_heads / g);
    let Operands { q, k, v: values, sinks, rotation } = Operands::from_vec(inputs.into_vec(), parts);
    let first_key = heads.window.map_or(0, |window| n.saturating_sub(window));
    let seen = Slice::from(first_key..n);
    let num_keys = n - first_key;
    let k_gdn = B::float_slice(k, &[Slice::full(), Slice::full(), seen]);
    let v_gnv = B::float_slice(values, &[Slice::full(), seen, Slice::full()]);
    let q_1h1d = turned::<B>(B::float_reshape(q, Shape::new([1, h, 1, d])), rotation, n - 1);
    let q_gsd = B::float_reshape(q_1h1d, Shape::new([g, sharing, d]));
    let q_gsd = B::float_mul_scalar(q_gsd, f64::from(heads.scale_of(d)).into());
    let scores_hn = B::float_reshape(B::float_matmul(q_gsd, k_gdn), Shape::new([h, num_keys]));
    let scores_hn = match heads.alibi {
        Some(alibi) => {
            let biases: Vec<f32> = alibi_slopes(h)
                .into_iter()
                .flat_map(|slope| (first_key..n).map(move |key| alibi.bias(slope, n - 1, key, d)))
                .collect();
            let data = TensorData::new(biases, [h, num_keys]).convert_dtype(scores_hn.dtype());
            let device = scores_hn.device();
            B::float_add(scores_hn, B::float_from_data(data, &device))
        }
        None => scores_hn,
    };
    let max_h1 = B::float_max_dim(scores_hn.clone(), 1);
    let exp_hn = B::float_exp(B::float_sub(scores_hn, max_h1.clone()));
    let sum_h1 = B::float_sum_dim(exp_hn.clone(), 1);
    let sum_h1 = match sinks {
        Some(sinks_h) => {
            let sinks_h1 = B::float_reshape(sinks_h, Shape::new([h, 1]));
            B::float_add(sum_h1, B::float_exp(B::float_sub(sinks_h1, max_h1)))
        }
        None => sum_h1,
    };
    let weights_gsn = B::float_reshape(B::float_div(exp_hn, sum_h1), Shape::new([g, sharing, num_keys]));
    B::float_reshape(B::float_matmul(weights_gsn, v_gnv), Shape::new([1, h * v]))
}

/// Rows of heads, `[1, heads, t, d]`, turned by the positions from `first` on.
fn turned<B: Backend>(
    x_1htd: FloatTensor<B>,
    rotation: Option<[FloatTensor<B>; 2]>,
    first: usize,
) -> FloatTensor<B> {
    let Some(tables) = rotation else { return x_1htd };
    let t = x_1htd.shape()[2];
    let [cos, sin] = tables.map(|table_sp| B::float_slice(table_sp, &[Slice::from(first..first + t)]));
    rotate::<B>(x_1htd, cos, sin, Turn::Forward)
}

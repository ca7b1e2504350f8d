//! Causal self-attention and the rotary position embedding.
//!
//! Shape letters: b batch, s sequence, h query heads, g key/value heads, d head width.

use burn::tensor::{Bool, Int, Tensor, activation::softmax};

/// Which earlier tokens a token may attend to. Build it once per forward pass; every layer shares it.
#[derive(Debug, Clone)]
pub struct CausalMask {
    /// `[b or 1, 1, s, s]`, true where attention is forbidden.
    forbidden_b1ss: Tensor<4, Bool>,
}

impl CausalMask {
    /// Each token sees itself and what precedes it.
    pub fn new(seq_len: usize, device: &burn::tensor::Device) -> Self {
        let rows = Tensor::<1, Int>::arange(0..seq_len as i64, device).reshape([seq_len, 1]);
        let columns = Tensor::<1, Int>::arange(0..seq_len as i64, device).reshape([1, seq_len]);
        let later = columns.expand([seq_len, seq_len]).greater(rows.expand([seq_len, seq_len]));
        Self { forbidden_b1ss: later.reshape([1, 1, seq_len, seq_len]) }
    }

    /// As [`CausalMask::new`], and only within the token's own document.
    ///
    /// # Shapes
    /// - `segment_ids_bs`: `[batch, seq]`, equal for tokens of one document
    pub fn within_documents(segment_ids_bs: Tensor<2, Int>) -> Self {
        let [b, s] = segment_ids_bs.dims();
        let causal = Self::new(s, &segment_ids_bs.device()).forbidden_b1ss.expand([b, 1, s, s]);
        let query = segment_ids_bs.clone().reshape([b, 1, s, 1]).expand([b, 1, s, s]);
        let key = segment_ids_bs.reshape([b, 1, 1, s]).expand([b, 1, s, s]);
        Self { forbidden_b1ss: causal.bool_or(query.not_equal(key)) }
    }
}

/// Scaled dot-product attention, `softmax(Q K^T / sqrt(d)) V` under `mask`
/// (arXiv:1706.03762, eq. 1); query head i reads key/value head `i / (h / g)` (arXiv:2305.13245).
///
/// # Shapes
/// - `q_bhsd`: `[batch, num_heads, seq, d_head]`
/// - `k_bgsd`, `v_bgsd`: `[batch, num_kv_heads, seq, d_head]`
/// - returns `[batch, num_heads, seq, d_head]`
///
/// # Panics
/// If `num_heads` is not a multiple of `num_kv_heads`.
pub fn causal_attention(
    q_bhsd: Tensor<4>,
    k_bgsd: Tensor<4>,
    v_bgsd: Tensor<4>,
    mask: &CausalMask,
) -> Tensor<4> {
    let [b, h, s, d] = q_bhsd.dims();
    let k_bhsd = repeat_heads(k_bgsd, h);
    let v_bhsd = repeat_heads(v_bgsd, h);
    let scores_bhss = q_bhsd.mul_scalar(1.0 / (d as f64).sqrt()).matmul(k_bhsd.swap_dims(2, 3));
    let forbidden = mask.forbidden_b1ss.clone().expand([b, h, s, s]);
    softmax(scores_bhss.mask_fill(forbidden, f32::NEG_INFINITY), 3).matmul(v_bhsd)
}

/// Each key/value head repeated for the query heads that share it.
fn repeat_heads(x_bgsd: Tensor<4>, num_heads: usize) -> Tensor<4> {
    let [b, g, s, d] = x_bgsd.dims();
    if g == num_heads {
        return x_bgsd;
    }
    assert!(num_heads.is_multiple_of(g), "{num_heads} query heads cannot share {g} key/value heads");
    let repeats = num_heads / g;
    x_bgsd.reshape([b, g, 1, s, d]).expand([b, g, repeats, s, d]).reshape([b, num_heads, s, d])
}

/// Sines and cosines of the rotary position embedding (arXiv:2104.09864, eq. 34), rotate-half pairing: element i
/// turns with element `i + d/2`, as in Llama.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    cos_sd: Tensor<2>,
    sin_sd: Tensor<2>,
}

impl RotaryTable {
    /// Table for positions `0..seq_len`; the angle of pair i at position p is `p * theta^(-2i/d)`.
    ///
    /// # Panics
    /// If `d_head` is odd.
    pub fn new(seq_len: usize, d_head: usize, theta: f64, device: &burn::tensor::Device) -> Self {
        assert!(d_head.is_multiple_of(2), "rotary embedding needs an even head width, not {d_head}");
        let half = d_head / 2;
        let angles: Vec<f64> = (0..seq_len)
            .flat_map(|p| (0..half).map(move |i| p as f64 * theta.powf(-2.0 * i as f64 / d_head as f64)))
            .collect();
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|&a| f(a) as f32).collect();
            let half_table =
                Tensor::<2>::from_data(burn::tensor::TensorData::new(values, [seq_len, half]), device);
            Tensor::cat(vec![half_table.clone(), half_table], 1)
        };
        Self { cos_sd: table(f64::cos), sin_sd: table(f64::sin) }
    }

    /// `x_bhsd` with each pair of elements turned by its position's angle.
    pub fn rotate(&self, x_bhsd: Tensor<4>) -> Tensor<4> {
        let [b, h, s, d] = x_bhsd.dims();
        let half = d / 2;
        let first = x_bhsd.clone().narrow(3, 0, half);
        let second = x_bhsd.clone().narrow(3, half, half);
        let turned = Tensor::cat(vec![second.neg(), first], 3);
        let at_positions = |table_sd: &Tensor<2>| {
            table_sd.clone().narrow(0, 0, s).reshape([1, 1, s, d]).expand([b, h, s, d])
        };
        x_bhsd * at_positions(&self.cos_sd) + turned * at_positions(&self.sin_sd)
    }
}

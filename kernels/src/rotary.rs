//! The rotary position embedding.
//!
//! Shape letters: b batch, s sequence, h heads, d head width, p pairs of elements (`d / 2`).

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use burn::tensor::{Shape, Slice, Tensor, TensorData};

/// Sines and cosines of the rotary position embedding (arXiv:2104.09864, eq. 34), rotate-half
/// pairing: element i turns with element `i + d/2`, as in Llama.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    pub(crate) cos_sp: Tensor<2>,
    pub(crate) sin_sp: Tensor<2>,
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
            Tensor::<2>::from_data(TensorData::new(values, [seq_len, half]), device)
        };
        Self { cos_sp: table(f64::cos), sin_sp: table(f64::sin) }
    }
}

/// Which way the pairs turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Forward,
    /// By minus the angle: the inverse, and the gradient.
    Back,
}

/// `x_bhsd` with each pair turned by the angle of its position, from stock operations: `[b, h, s,
/// d]`.
pub(crate) fn rotate<B: Backend>(
    x_bhsd: FloatTensor<B>,
    cos_sp: FloatTensor<B>,
    sin_sp: FloatTensor<B>,
    turn: Turn,
) -> FloatTensor<B> {
    let (s, half) = (x_bhsd.shape()[2], x_bhsd.shape()[3] / 2);
    let at_positions = |table_sp: FloatTensor<B>| {
        let table_sp = B::float_slice(table_sp, &[Slice::from(0..s)]);
        B::float_reshape(table_sp, Shape::new([1, 1, s, half]))
    };
    let sin_sp = match turn {
        Turn::Forward => sin_sp,
        Turn::Back => B::float_neg(sin_sp),
    };
    let (cos_11sp, sin_11sp) = (at_positions(cos_sp), at_positions(sin_sp));
    let half_of = |range: std::ops::Range<usize>| {
        B::float_slice(x_bhsd.clone(), &[Slice::full(), Slice::full(), Slice::full(), Slice::from(range)])
    };
    let (a, b) = (half_of(0..half), half_of(half..2 * half));
    let turned_a =
        B::float_sub(B::float_mul(a.clone(), cos_11sp.clone()), B::float_mul(b.clone(), sin_11sp.clone()));
    let turned_b = B::float_add(B::float_mul(b, cos_11sp), B::float_mul(a, sin_11sp));
    B::float_cat(vec![turned_a, turned_b], 3)
}

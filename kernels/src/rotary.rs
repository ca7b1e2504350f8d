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
    /// Table for positions `0..seq_len` of heads with a pair of elements for each frequency: the
    /// angle of pair i at position p is `p * frequencies[i]`, and pairs with the frequency 0 are
    /// left as they are. The others' cosines and sines are multiplied by `factor`.
    pub fn new(seq_len: usize, frequencies: &[f64], factor: f64, device: &burn::tensor::Device) -> Self {
        let half = frequencies.len();
        let turns = |f: &f64| (*f, if *f == 0.0 { 1.0 } else { factor });
        let angles: Vec<(f64, f64)> = (0..seq_len)
            .flat_map(|p| frequencies.iter().map(turns).map(move |(f, factor)| (p as f64 * f, factor)))
            .collect();
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|&(angle, factor)| (factor * f(angle)) as f32).collect();
            Tensor::<2>::from_data(TensorData::new(values, [seq_len, half]), device)
        };
        Self { cos_sp: table(f64::cos), sin_sp: table(f64::sin) }
    }
}

impl RotaryTable {
    /// Every head of `x_thr` turned by the position of its token, where sequences have `seq_len`
    /// tokens: for heads of which only a part is turned, before they are put together.
    ///
    /// # Shapes
    /// - `x_thr`: `[batch * seq_len, heads, r]` of a table for r channels; returns the same
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn turn(&self, x_thr: Tensor<3>, seq_len: usize) -> Tensor<3> {
        self.turn_from(x_thr, 0, seq_len)
    }

    /// As [`RotaryTable::turn`], of sequences whose tokens lie at the positions from `first` on.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn turn_from(&self, x_thr: Tensor<3>, first: usize, seq_len: usize) -> Tensor<3> {
        let ([t, h, r], [_, half]) = (x_thr.dims(), self.cos_sp.dims());
        assert!(r == 2 * half, "{r} channels do not fit a table of {half} pairs");
        let at_positions =
            |table_sp: &Tensor<2>| table_sp.clone().narrow(0, first, seq_len).reshape([1, seq_len, 1, half]);
        let (cos, sin) = (at_positions(&self.cos_sp), at_positions(&self.sin_sp));
        let x_bshr = x_thr.reshape([t / seq_len, seq_len, h, r]);
        let (a, b) = (x_bshr.clone().narrow(3, 0, half), x_bshr.narrow(3, half, half));
        let turned_a = a.clone() * cos.clone() - b.clone() * sin.clone();
        let turned_b = b * cos + a * sin;
        Tensor::cat(vec![turned_a, turned_b], 3).reshape([t, h, r])
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

//! The rotary position embedding.
//!
//! Shape letters: b batch, s sequence, h heads, d head width, p pairs of elements (`d / 2`).

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, TensorMetadata,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    flex::FlexTensor,
    tensor::FloatTensor,
};
use burn::tensor::{Shape, Slice, Tensor, TensorData};
use rayon::prelude::*;

use crate::heads::Heads;
use crate::simd::{multiply_add, vectorised};
use crate::slices::{all_f32, contiguous, elements, from_elements};

/// Sines and cosines of the rotary position embedding (arXiv:2104.09864, eq. 34), rotate-half pairing: element i
/// turns with element `i + d/2`, as in Llama.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    cos_sp: Tensor<2>,
    sin_sp: Tensor<2>,
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

    /// `x_bhsd` with each pair of elements turned by its position's angle.
    ///
    /// # Panics
    /// If the table ends before the sequence or has another head width.
    pub fn rotate(&self, x_bhsd: Tensor<4>) -> Tensor<4> {
        let ([_, _, s, d], [table_len, half]) = (x_bhsd.dims(), self.cos_sp.dims());
        assert!(
            s <= table_len && d == 2 * half,
            "{s} positions of head width {d} do not fit a table of {table_len} positions of width {}",
            2 * half,
        );
        Tensor::from_dispatch(Dispatch::rotate(
            x_bhsd.into_dispatch(),
            self.cos_sp.clone().into_dispatch(),
            self.sin_sp.clone().into_dispatch(),
            Turn::Forward,
        ))
    }
}

/// Which way the pairs turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Forward,
    /// By minus the angle: the inverse, and the gradient.
    Back,
}

/// The operation on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait Rotate: Backend {
    /// `x_bhsd` with each pair turned by the angle of its position: `[b, h, s, d]`.
    fn rotate(
        x_bhsd: FloatTensor<Self>,
        cos_sp: FloatTensor<Self>,
        sin_sp: FloatTensor<Self>,
        turn: Turn,
    ) -> FloatTensor<Self> {
        stock_rotate::<Self>(x_bhsd, cos_sp, sin_sp, turn)
    }
}

/// The default body of [`Rotate::rotate`].
fn stock_rotate<B: Backend>(
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

impl Rotate for Flex {
    fn rotate(x_bhsd: FlexTensor, cos_sp: FlexTensor, sin_sp: FlexTensor, turn: Turn) -> FlexTensor {
        let shape = x_bhsd.shape();
        if !all_f32(&[&x_bhsd, &cos_sp, &sin_sp]) || shape.num_elements() == 0 {
            return stock_rotate::<Flex>(x_bhsd, cos_sp, sin_sp, turn);
        }
        let (x, cos_sp, sin_sp) = (Heads::new(x_bhsd), contiguous(cos_sp), contiguous(sin_sp));
        let [_, h, s, d] = x.dims();
        let sign = match turn {
            Turn::Forward => 1.0,
            Turn::Back => -1.0,
        };
        let mut y = vec![0.0; shape.num_elements()];
        y.par_chunks_mut(s * d).enumerate().for_each(|(index, y)| {
            let tables = elements(&cos_sp).chunks(d / 2).zip(elements(&sin_sp).chunks(d / 2));
            for (position, (y, (cos, sin))) in y.chunks_mut(d).zip(tables).enumerate() {
                rotate_row(y, x.row(index / h, index % h, position), cos, sin, sign);
            }
        });
        from_elements(y, shape)
    }
}

vectorised! {
    /// One head at one position, turned by `sign` times the angles.
    fn rotate_row(y: &mut [f32], x: &[f32], cos: &[f32], sin: &[f32], sign: f32) = rotate_pairs;
}

#[inline(always)]
fn rotate_pairs<const FUSED: bool>(y: &mut [f32], x: &[f32], cos: &[f32], sin: &[f32], sign: f32) {
    let half = cos.len();
    let ((y_a, y_b), (x_a, x_b)) = (y.split_at_mut(half), x.split_at(half));
    let pairs = y_a.iter_mut().zip(y_b).zip(x_a.iter().zip(x_b));
    for (((y_a, y_b), (&a, &b)), (&cos, &sin)) in pairs.zip(cos.iter().zip(sin)) {
        let sin = sign * sin;
        *y_a = multiply_add::<FUSED>(a, cos, -b * sin);
        *y_b = multiply_add::<FUSED>(b, cos, a * sin);
    }
}

#[cfg(feature = "cube")]
impl Rotate for burn_cubecl::CubeBackend {}

impl<B: Rotate, C: CheckpointStrategy> Rotate for Autodiff<B, C> {
    fn rotate(
        x_bhsd: FloatTensor<Self>,
        cos_sp: FloatTensor<Self>,
        sin_sp: FloatTensor<Self>,
        turn: Turn,
    ) -> FloatTensor<Self> {
        let (cos_sp, sin_sp) = (cos_sp.into_primitive(), sin_sp.into_primitive());
        match RotateBackward.prepare::<C>([x_bhsd.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let y_bhsd = B::rotate(x_bhsd.into_primitive(), cos_sp.clone(), sin_sp.clone(), turn);
                prepared.finish(SavedTables { cos_sp, sin_sp, turn }, y_bhsd)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::rotate(x_bhsd.into_primitive(), cos_sp, sin_sp, turn))
            }
        }
    }
}

#[derive(Debug)]
struct RotateBackward;

/// What the backward pass reads again.
#[derive(Debug, Clone)]
struct SavedTables<B: Backend> {
    cos_sp: FloatTensor<B>,
    sin_sp: FloatTensor<B>,
    turn: Turn,
}

impl<B: Rotate> Backward<B, 1> for RotateBackward {
    type State = SavedTables<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy_bhsd = grads.consume::<B>(&ops.node);
        let SavedTables { cos_sp, sin_sp, turn } = ops.state;
        let opposite = match turn {
            Turn::Forward => Turn::Back,
            Turn::Back => Turn::Forward,
        };
        let [x_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::rotate(dy_bhsd, cos_sp, sin_sp, opposite));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};

    #[test]
    fn fused_rotation_agrees_with_the_stock_body() {
        for (turn, d) in [(Turn::Forward, 2), (Turn::Back, 6), (Turn::Forward, 38)] {
            let (cos_sp, sin_sp) = (random_flex(1, [9, d / 2]), random_flex(2, [9, d / 2]));
            let x_bhsd = random_flex(3, [2, 7, 3, d]).transpose(1, 2);
            let fused = Flex::rotate(x_bhsd.clone(), cos_sp.clone(), sin_sp.clone(), turn);
            assert_agree("rotate", &fused, &stock_rotate::<Flex>(x_bhsd, cos_sp, sin_sp, turn));
        }
    }

    #[test]
    fn rotation_repeats_bit_for_bit_for_any_number_of_threads() {
        let compute = || {
            let (cos_sp, sin_sp) = (random_flex(1, [9, 16]), random_flex(2, [9, 16]));
            vec![Flex::rotate(random_flex(3, [2, 3, 9, 32]), cos_sp, sin_sp, Turn::Forward)]
        };
        assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
    }
}

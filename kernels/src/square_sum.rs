//! Sums of squares, for norms over many parameters.

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, autodiff::checkpoint::strategy::CheckpointStrategy, backend_extension,
    flex::FlexTensor, tensor::FloatTensor,
};
use burn::tensor::{Shape, Tensor};
use rayon::prelude::*;

use crate::simd::{LANES, vectorised};
use crate::slices::{BLOCK_LEN, all_f32, contiguous, elements, from_doubles};

/// The sum of the squares of all elements in several parts, to be added in order: `[parts]`. On the CPU the parts are
/// f64, so that neither their number nor that of the elements costs precision. Nothing is differentiated.
pub fn square_sums(x_n: Tensor<1>) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::square_sums(x_n.into_dispatch()))
}

/// The operation on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait SquareSums: Backend {
    /// Parts of the sum, `[parts]`.
    fn square_sums(x_n: FloatTensor<Self>) -> FloatTensor<Self> {
        stock_square_sums::<Self>(x_n)
    }
}

/// The default body of [`SquareSums::square_sums`]: one part.
fn stock_square_sums<B: Backend>(x_n: FloatTensor<B>) -> FloatTensor<B> {
    B::float_sum(B::float_mul(x_n.clone(), x_n))
}

impl SquareSums for Flex {
    fn square_sums(x_n: FlexTensor) -> FlexTensor {
        if !all_f32(&[&x_n]) {
            return stock_square_sums::<Flex>(x_n);
        }
        let x_n = contiguous(x_n);
        let sums: Vec<f64> = elements(&x_n).par_chunks(BLOCK_LEN).map(sum_of_squares).collect();
        let num_parts = sums.len();
        from_doubles(sums, Shape::new([num_parts]))
    }
}

#[cfg(feature = "cube")]
impl SquareSums for burn_cubecl::CubeBackend {}

/// The sum is no part of any graph: it is made on the inner tensor.
impl<B: SquareSums, C: CheckpointStrategy> SquareSums for Autodiff<B, C> {
    fn square_sums(x_n: FloatTensor<Self>) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::square_sums(x_n.into_primitive()))
    }
}

vectorised! {
    fn sum_of_squares(x: &[f32]) -> f64 = sum_of_squares_in_lanes;
}

#[inline(always)]
fn sum_of_squares_in_lanes<const FUSED: bool>(x: &[f32]) -> f64 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            // The square of an f32 is exact in f64.
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.into_iter().chain(rest.iter().map(|&x| f64::from(x) * f64::from(x))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::test_support::random_flex;

    #[test]
    fn parts_add_up_to_the_sum_of_squares() {
        for n in [1, 15, 16, BLOCK_LEN + 3] {
            let x_n = random_flex(1, [n]);
            let expected: f64 = elements(&x_n).iter().map(|&x| f64::from(x).powi(2)).sum();
            let parts: f64 = Flex::square_sums(x_n).into_data().iter::<f64>().sum();
            assert!((parts - expected).abs() <= 1e-12 * expected, "{parts} is not {expected}");
        }
    }

    #[test]
    fn a_value_that_is_no_number_makes_the_sum_none() {
        let x_n = crate::slices::from_elements(vec![1.0, f32::NAN], Shape::new([2]));
        assert!(Flex::square_sums(x_n).into_data().iter::<f64>().sum::<f64>().is_nan());
    }
}

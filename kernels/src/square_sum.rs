//! Sums of squares, for norms over many parameters.

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, TensorMetadata, autodiff::checkpoint::strategy::CheckpointStrategy,
    backend_extension, flex::FlexTensor, tensor::FloatTensor,
};
use burn::tensor::{Shape, Tensor};
use switchyard_kernels_cpu::square_sum as on_slices;

use crate::slices::{all_f32, contiguous, elements, from_doubles};

/// The sum of the squares of all elements in several parts, to be added in order: `[parts]`. On the CPU the parts are
/// f64, so that neither their number nor that of the elements costs precision. Nothing is differentiated.
pub fn square_sums(x_n: Tensor<1>) -> Tensor<1> {
    square_sums_of_rows(x_n, 1)
}

/// As [`square_sums`] for each of `num_rows` equally long rows that lie one after another: the parts of the first row,
/// then as many of the next one.
///
/// # Panics
/// If the elements do not divide into rows.
pub fn square_sums_of_rows(x_n: Tensor<1>, num_rows: usize) -> Tensor<1> {
    let [num_elements] = x_n.dims();
    assert!(num_elements.is_multiple_of(num_rows), "{num_elements} elements in {num_rows} rows");
    Tensor::from_dispatch(Dispatch::square_sums(x_n.into_dispatch(), num_rows))
}

/// The operation on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait SquareSums: Backend {
    /// Parts of the sum of each row, `[num_rows * parts]`.
    fn square_sums(x_n: FloatTensor<Self>, num_rows: usize) -> FloatTensor<Self> {
        stock_square_sums::<Self>(x_n, num_rows)
    }
}

/// The default body of [`SquareSums::square_sums`]: one part per row.
fn stock_square_sums<B: Backend>(x_n: FloatTensor<B>, num_rows: usize) -> FloatTensor<B> {
    let row_len = x_n.shape().num_elements() / num_rows;
    let x_rn = B::float_reshape(x_n, Shape::new([num_rows, row_len]));
    let sums_r1 = B::float_sum_dim(B::float_mul(x_rn.clone(), x_rn), 1);
    B::float_reshape(sums_r1, Shape::new([num_rows]))
}

impl SquareSums for Flex {
    fn square_sums(x_n: FlexTensor, num_rows: usize) -> FlexTensor {
        if !all_f32(&[&x_n]) {
            return stock_square_sums::<Flex>(x_n, num_rows);
        }
        let x_n = contiguous(x_n);
        let sums = on_slices::square_sums(elements(&x_n), num_rows);
        let num_parts = sums.len();
        from_doubles(sums, Shape::new([num_parts]))
    }
}

#[cfg(feature = "cube")]
impl SquareSums for burn_cubecl::CubeBackend {}

/// The sum is no part of any graph: it is made on the inner tensor.
impl<B: SquareSums, C: CheckpointStrategy> SquareSums for Autodiff<B, C> {
    fn square_sums(x_n: FloatTensor<Self>, num_rows: usize) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::square_sums(x_n.into_primitive(), num_rows))
    }
}

#[cfg(test)]
mod tests {
    use switchyard_kernels_cpu::blocks::BLOCK_LEN;

    use super::*;
    use crate::slices::test_support::random_flex;

    #[test]
    fn parts_add_up_to_the_sum_of_squares() {
        for n in [1, 15, 16, BLOCK_LEN + 3] {
            let x_n = random_flex(1, [n]);
            let expected: f64 = elements(&x_n).iter().map(|&x| f64::from(x).powi(2)).sum();
            let parts: f64 = Flex::square_sums(x_n, 1).into_data().iter::<f64>().sum();
            assert!((parts - expected).abs() <= 1e-12 * expected, "{parts} is not {expected}");
        }
    }

    /// The oracle sums each row alone; the stock body is the one of other devices.
    #[test]
    fn rows_have_sums_of_their_own() {
        for row_len in [1, 17, BLOCK_LEN + 3] {
            let x_n = random_flex(2, [3 * row_len]);
            let expected: Vec<f64> = elements(&x_n)
                .chunks(row_len)
                .map(|row| row.iter().map(|&x| f64::from(x).powi(2)).sum())
                .collect();
            let parts: Vec<f64> = Flex::square_sums(x_n.clone(), 3).into_data().iter::<f64>().collect();
            let sums: Vec<f64> = parts.chunks(parts.len() / 3).map(|parts| parts.iter().sum()).collect();
            let stock: Vec<f64> = stock_square_sums::<Flex>(x_n, 3).into_data().iter::<f64>().collect();
            for ((sum, stock), expected) in sums.iter().zip(stock).zip(expected) {
                assert!((sum - expected).abs() <= 1e-12 * expected, "{sum} is not {expected}");
                // One f32 sum of up to 16,387 terms.
                assert!((stock - expected).abs() <= 1e-3 * expected, "{stock} is not {expected}");
            }
        }
    }

    #[test]
    fn a_value_that_is_no_number_makes_the_sum_none() {
        let x_n = crate::slices::from_elements(vec![1.0, f32::NAN], Shape::new([2]));
        assert!(Flex::square_sums(x_n, 1).into_data().iter::<f64>().sum::<f64>().is_nan());
    }
}

//! Sums of squares, for norms over many parameters.

mod autodiff;
mod cpu;
mod stock;
#[cfg(test)]
mod tests;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

pub use switchyard_kernels_cpu::blocks::BLOCK_LEN as SQUARE_SUM_BLOCK;

/// The sum of the squares of all elements in several parts, to be added in order: `[parts]`. On the
/// CPU the parts are f64, so that neither their number nor that of the elements costs precision:
/// each is of [`SQUARE_SUM_BLOCK`] elements, the last one of a row of what is left. Nothing is
/// differentiated.
pub fn square_sums(x_n: Tensor<1>) -> Tensor<1> {
    square_sums_of_rows(x_n, 1)
}

/// As [`square_sums`] for each of `num_rows` equally long rows that lie one after another: the
/// parts of the first row, then as many of the next one.
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
        stock::square_sums::<Self>(x_n, num_rows)
    }
}

#[cfg(feature = "cube")]
impl SquareSums for burn_cubecl::CubeBackend {}

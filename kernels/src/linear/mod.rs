//! Linear projections.
//!
//! Shape letters: t rows, d input width, f output width.

mod autodiff;
mod cpu;
mod stock;
#[cfg(test)]
mod tests;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use switchyard_kernels_cpu::bf16::Compute;

/// `x W + b`, the product and those of its gradients computed with factors of `compute`.
///
/// # Shapes
/// - `x_td`: `[rows, d]`; `w_df`: `[d, f]`; `b_f`: `[f]`; returns `[rows, f]`
///
/// # Panics
/// If the shapes do not fit each other.
pub fn linear(x_td: Tensor<2>, w_df: Tensor<2>, b_f: Option<Tensor<1>>, compute: Compute) -> Tensor<2> {
    let ([t, d], [d_in, f]) = (x_td.dims(), w_df.dims());
    assert!(
        d == d_in && b_f.as_ref().is_none_or(|b_f| b_f.dims() == [f]),
        "{t} rows of width {d} do not fit a matrix of {d_in} x {f} with a bias of {:?}",
        b_f.map(|b_f| b_f.dims()),
    );
    let (x_td, w_df) = (x_td.into_dispatch(), w_df.into_dispatch());
    Tensor::from_dispatch(match b_f {
        Some(b_f) => Dispatch::project_with_bias(x_td, w_df, b_f.into_dispatch(), compute),
        None => Dispatch::project(x_td, w_df, compute),
    })
}

/// The operation and its gradients on one backend. The default bodies are for tensors of other types
/// than the kernels', which are multiplied as they are.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait Project: Backend {
    /// `x_td` times `w_df`: `[t, f]`.
    fn project(x_td: FloatTensor<Self>, w_df: FloatTensor<Self>, _compute: Compute) -> FloatTensor<Self> {
        Self::float_matmul(x_td, w_df)
    }

    /// `x_td` times `w_df` plus `b_f` in each row: `[t, f]`.
    fn project_with_bias(
        x_td: FloatTensor<Self>,
        w_df: FloatTensor<Self>,
        b_f: FloatTensor<Self>,
        _compute: Compute,
    ) -> FloatTensor<Self> {
        stock::project_with_bias::<Self>(x_td, w_df, b_f)
    }

    /// Gradient of `x_td` from that of the product, `[t, f]`.
    fn project_input_gradient(
        dy_tf: FloatTensor<Self>,
        w_df: FloatTensor<Self>,
        _compute: Compute,
    ) -> FloatTensor<Self> {
        Self::float_matmul(dy_tf, Self::float_transpose(w_df))
    }

    /// Gradient of `w_df` from that of the product, `[t, f]`.
    fn project_weight_gradient(
        x_td: FloatTensor<Self>,
        dy_tf: FloatTensor<Self>,
        _compute: Compute,
    ) -> FloatTensor<Self> {
        Self::float_matmul(Self::float_transpose(x_td), dy_tf)
    }

    /// Gradient of `b_f` from that of the sum, `[t, f]`.
    fn project_bias_gradient(dy_tf: FloatTensor<Self>) -> FloatTensor<Self> {
        stock::bias_gradient::<Self>(dy_tf)
    }
}

#[cfg(feature = "cube")]
impl Project for burn_cubecl::CubeBackend {}

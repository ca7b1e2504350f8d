//! Projections on the CPU.

use burn::backend::{Flex, TensorMetadata, flex::FlexTensor, ops::FloatTensorOps};
use burn::tensor::Shape;
use switchyard_kernels_cpu::bf16::Compute;
use switchyard_kernels_cpu::linear::{self as on_slices, sum_rows};
use switchyard_kernels_cpu::matrix::Matrix;

use super::{Project, stock};
use crate::slices::{all_f32, contiguous, elements, from_elements, matrix};

impl Project for Flex {
    fn project(x_td: FlexTensor, w_df: FlexTensor, compute: Compute) -> FlexTensor {
        if !all_f32(&[&x_td, &w_df]) {
            return Self::float_matmul(x_td, w_df);
        }
        let w_df = oriented(w_df);
        multiply_rows(x_td, as_it_lies(&w_df), None, compute)
    }

    fn project_with_bias(
        x_td: FlexTensor,
        w_df: FlexTensor,
        b_f: FlexTensor,
        compute: Compute,
    ) -> FlexTensor {
        if !all_f32(&[&x_td, &w_df, &b_f]) {
            return stock::project_with_bias::<Flex>(x_td, w_df, b_f);
        }
        let (w_df, b_f) = (oriented(w_df), contiguous(b_f));
        multiply_rows(x_td, as_it_lies(&w_df), Some(elements(&b_f)), compute)
    }

    fn project_input_gradient(dy_tf: FlexTensor, w_df: FlexTensor, compute: Compute) -> FlexTensor {
        if !all_f32(&[&dy_tf, &w_df]) {
            return Self::float_matmul(dy_tf, Self::float_transpose(w_df));
        }
        let w_df = contiguous(w_df);
        multiply_rows(dy_tf, matrix(&w_df).transposed(), None, compute)
    }

    fn project_weight_gradient(x_td: FlexTensor, dy_tf: FlexTensor, compute: Compute) -> FlexTensor {
        if !all_f32(&[&x_td, &dy_tf]) {
            return Self::float_matmul(Self::float_transpose(x_td), dy_tf);
        }
        let (x_td, dy_tf) = (contiguous(x_td), contiguous(dy_tf));
        let dw = on_slices::weight_gradient(matrix(&x_td), matrix(&dy_tf), compute);
        from_elements(dw, Shape::new([x_td.shape()[1], dy_tf.shape()[1]]))
    }

    fn project_bias_gradient(dy_tf: FlexTensor) -> FlexTensor {
        if !all_f32(&[&dy_tf]) {
            return stock::bias_gradient::<Flex>(dy_tf);
        }
        let (dy_tf, f) = (contiguous(dy_tf.clone()), dy_tf.shape()[1]);
        from_elements(sum_rows(matrix(&dy_tf)), Shape::new([f]))
    }
}

/// The matrix, copied unless it lies by rows or, as a transposed embedding does, by columns.
fn oriented(w_df: FlexTensor) -> FlexTensor {
    let lies_by_columns = w_df.layout().strides() == [1, w_df.shape()[0] as isize];
    if lies_by_columns { w_df } else { contiguous(w_df) }
}

/// The matrix of a tensor from [`oriented`].
fn as_it_lies(w_df: &FlexTensor) -> Matrix<'_> {
    if w_df.is_contiguous() {
        return matrix(w_df);
    }
    let [rows, columns] = w_df.shape().dims();
    let stored: &[f32] = w_df.storage();
    Matrix::strided(&stored[w_df.layout().start_offset()..], [rows, columns], [1, rows])
}

/// `x w + bias`.
fn multiply_rows(x_td: FlexTensor, w_df: Matrix<'_>, bias: Option<&[f32]>, compute: Compute) -> FlexTensor {
    let x_td = contiguous(x_td);
    let y = on_slices::project(matrix(&x_td), w_df, bias, compute);
    from_elements(y, Shape::new([x_td.shape()[0], w_df.num_columns()]))
}

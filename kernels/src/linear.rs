//! Linear projections.
//!
//! Shape letters: t rows, d input width, f output width.

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, TensorMetadata,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    flex::FlexTensor,
    ops::FloatTensorOps,
    tensor::FloatTensor,
};
use burn::tensor::{Shape, Tensor};
use switchyard_kernels_cpu::linear::{self as on_slices, sum_rows};
use switchyard_kernels_cpu::matrix::Matrix;

use crate::slices::{all_f32, contiguous, elements, from_elements, matrix};

/// `x W + b`.
///
/// # Shapes
/// - `x_td`: `[rows, d]`; `w_df`: `[d, f]`; `b_f`: `[f]`; returns `[rows, f]`
///
/// # Panics
/// If the shapes do not fit each other.
pub fn linear(x_td: Tensor<2>, w_df: Tensor<2>, b_f: Option<Tensor<1>>) -> Tensor<2> {
    let ([t, d], [d_in, f]) = (x_td.dims(), w_df.dims());
    assert!(
        d == d_in && b_f.as_ref().is_none_or(|b_f| b_f.dims() == [f]),
        "{t} rows of width {d} do not fit a matrix of {d_in} x {f} with a bias of {:?}",
        b_f.map(|b_f| b_f.dims()),
    );
    let (x_td, w_df) = (x_td.into_dispatch(), w_df.into_dispatch());
    Tensor::from_dispatch(match b_f {
        Some(b_f) => Dispatch::project_with_bias(x_td, w_df, b_f.into_dispatch()),
        None => Dispatch::project(x_td, w_df),
    })
}

/// The operation and its gradients on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait Project: Backend {
    /// `x_td` times `w_df`: `[t, f]`.
    fn project(x_td: FloatTensor<Self>, w_df: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(x_td, w_df)
    }

    /// `x_td` times `w_df` plus `b_f` in each row: `[t, f]`.
    fn project_with_bias(
        x_td: FloatTensor<Self>,
        w_df: FloatTensor<Self>,
        b_f: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        stock_project_with_bias::<Self>(x_td, w_df, b_f)
    }

    /// Gradient of `x_td` from that of the product, `[t, f]`.
    fn project_input_gradient(dy_tf: FloatTensor<Self>, w_df: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(dy_tf, Self::float_transpose(w_df))
    }

    /// Gradient of `w_df` from that of the product, `[t, f]`.
    fn project_weight_gradient(x_td: FloatTensor<Self>, dy_tf: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(Self::float_transpose(x_td), dy_tf)
    }

    /// Gradient of `b_f` from that of the sum, `[t, f]`.
    fn project_bias_gradient(dy_tf: FloatTensor<Self>) -> FloatTensor<Self> {
        stock_bias_gradient::<Self>(dy_tf)
    }
}

/// The default body of [`Project::project_with_bias`].
fn stock_project_with_bias<B: Backend>(
    x_td: FloatTensor<B>,
    w_df: FloatTensor<B>,
    b_f: FloatTensor<B>,
) -> FloatTensor<B> {
    let b_1f = B::float_reshape(b_f, Shape::new([1, w_df.shape()[1]]));
    B::float_add(B::float_matmul(x_td, w_df), b_1f)
}

/// The default body of [`Project::project_bias_gradient`].
fn stock_bias_gradient<B: Backend>(dy_tf: FloatTensor<B>) -> FloatTensor<B> {
    let width = dy_tf.shape()[1];
    B::float_reshape(B::float_sum_dim(dy_tf, 0), Shape::new([width]))
}

impl Project for Flex {
    fn project(x_td: FlexTensor, w_df: FlexTensor) -> FlexTensor {
        if !all_f32(&[&x_td, &w_df]) {
            return Self::float_matmul(x_td, w_df);
        }
        let w_df = contiguous(w_df);
        multiply_rows(x_td, matrix(&w_df), None)
    }

    fn project_with_bias(x_td: FlexTensor, w_df: FlexTensor, b_f: FlexTensor) -> FlexTensor {
        if !all_f32(&[&x_td, &w_df, &b_f]) {
            return stock_project_with_bias::<Flex>(x_td, w_df, b_f);
        }
        let (w_df, b_f) = (contiguous(w_df), contiguous(b_f));
        multiply_rows(x_td, matrix(&w_df), Some(elements(&b_f)))
    }

    fn project_input_gradient(dy_tf: FlexTensor, w_df: FlexTensor) -> FlexTensor {
        if !all_f32(&[&dy_tf, &w_df]) {
            return Self::float_matmul(dy_tf, Self::float_transpose(w_df));
        }
        let w_df = contiguous(w_df);
        multiply_rows(dy_tf, matrix(&w_df).transposed(), None)
    }

    fn project_weight_gradient(x_td: FlexTensor, dy_tf: FlexTensor) -> FlexTensor {
        if !all_f32(&[&x_td, &dy_tf]) {
            return Self::float_matmul(Self::float_transpose(x_td), dy_tf);
        }
        let (x_td, dy_tf) = (contiguous(x_td), contiguous(dy_tf));
        let dw = on_slices::weight_gradient(matrix(&x_td), matrix(&dy_tf));
        from_elements(dw, Shape::new([x_td.shape()[1], dy_tf.shape()[1]]))
    }

    fn project_bias_gradient(dy_tf: FlexTensor) -> FlexTensor {
        if !all_f32(&[&dy_tf]) {
            return stock_bias_gradient::<Flex>(dy_tf);
        }
        let (dy_tf, f) = (contiguous(dy_tf.clone()), dy_tf.shape()[1]);
        from_elements(sum_rows(matrix(&dy_tf)), Shape::new([f]))
    }
}

/// `x w + bias`.
fn multiply_rows(x_td: FlexTensor, w_df: Matrix<'_>, bias: Option<&[f32]>) -> FlexTensor {
    let x_td = contiguous(x_td);
    let y = on_slices::project(matrix(&x_td), w_df, bias);
    from_elements(y, Shape::new([x_td.shape()[0], w_df.num_columns()]))
}

#[cfg(feature = "cube")]
impl Project for burn_cubecl::CubeBackend {}

impl<B: Project, C: CheckpointStrategy> Project for Autodiff<B, C> {
    fn project(x_td: FloatTensor<Self>, w_df: FloatTensor<Self>) -> FloatTensor<Self> {
        match LinearBackward.prepare::<C>([x_td.node(), w_df.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = SavedInputs {
                    x_td: w_df.is_tracked().then(|| prepared.checkpoint(&x_td)),
                    w_df: x_td.is_tracked().then(|| prepared.checkpoint(&w_df)),
                };
                prepared.finish(state, B::project(x_td.into_primitive(), w_df.into_primitive()))
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::project(x_td.into_primitive(), w_df.into_primitive()))
            }
        }
    }

    fn project_with_bias(
        x_td: FloatTensor<Self>,
        w_df: FloatTensor<Self>,
        b_f: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x_td.node(), w_df.node(), b_f.node()];
        match LinearBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = SavedInputs {
                    x_td: w_df.is_tracked().then(|| prepared.checkpoint(&x_td)),
                    w_df: x_td.is_tracked().then(|| prepared.checkpoint(&w_df)),
                };
                let [x_td, w_df, b_f] = [x_td, w_df, b_f].map(|tensor| tensor.into_primitive());
                prepared.finish(state, B::project_with_bias(x_td, w_df, b_f))
            }
            OpsKind::UnTracked(prepared) => {
                let [x_td, w_df, b_f] = [x_td, w_df, b_f].map(|tensor| tensor.into_primitive());
                prepared.finish(B::project_with_bias(x_td, w_df, b_f))
            }
        }
    }
}

#[derive(Debug)]
struct LinearBackward;

/// What the backward pass reads again: each input only if the other one has a gradient.
#[derive(Debug, Clone)]
struct SavedInputs {
    x_td: Option<NodeId>,
    w_df: Option<NodeId>,
}

/// With two parents, or three with a bias.
impl<B: Project, const N: usize> Backward<B, N> for LinearBackward {
    type State = SavedInputs;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_tf = grads.consume::<B>(&ops.node);
        let SavedInputs { x_td, w_df } = ops.state;
        let x_td = x_td.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let w_df = w_df.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let mut nodes = ops.parents.into_iter();
        let [x_node, w_node, b_node] = [(); 3].map(|()| nodes.next().flatten());
        if let (Some(node), Some(w_df)) = (x_node, w_df) {
            grads.register::<B>(node.id, B::project_input_gradient(dy_tf.clone(), w_df));
        }
        if let (Some(node), Some(x_td)) = (w_node, x_td) {
            grads.register::<B>(node.id, B::project_weight_gradient(x_td, dy_tf.clone()));
        }
        if let Some(node) = b_node {
            grads.register::<B>(node.id, B::project_bias_gradient(dy_tf));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};

    /// Output and gradients of one product with a bias.
    fn fused([t, d, f]: [usize; 3]) -> Vec<FlexTensor> {
        let (x_td, w_df, dy_tf) = (random_flex(1, [t, d]), random_flex(2, [d, f]), random_flex(3, [t, f]));
        vec![
            Flex::project(x_td.clone(), w_df.clone()),
            Flex::project_with_bias(x_td.clone(), w_df.clone(), random_flex(4, [f])),
            Flex::project_input_gradient(dy_tf.clone(), w_df),
            Flex::project_weight_gradient(x_td, dy_tf.clone()),
            Flex::project_bias_gradient(dy_tf),
        ]
    }

    #[test]
    fn fused_projection_agrees_with_the_stock_operations() {
        for [t, d, f] in [[1, 1, 1], [5, 17, 3], [129, 40, 33], [300, 64, 128]] {
            let (x_td, w_df, dy_tf) =
                (random_flex(1, [t, d]), random_flex(2, [d, f]), random_flex(3, [t, f]));
            let stock = [
                Flex::float_matmul(x_td.clone(), w_df.clone()),
                stock_project_with_bias::<Flex>(x_td.clone(), w_df.clone(), random_flex(4, [f])),
                Flex::float_matmul(dy_tf.clone(), Flex::float_transpose(w_df)),
                Flex::float_matmul(Flex::float_transpose(x_td), dy_tf.clone()),
                stock_bias_gradient::<Flex>(dy_tf),
            ];
            for (fused, stock) in fused([t, d, f]).iter().zip(&stock) {
                assert_agree("projection or gradient", fused, stock);
            }
        }
    }

    #[test]
    fn projections_read_transposed_views() {
        let (x_td, w_df) = (random_flex(1, [9, 40]).transpose(0, 1), random_flex(2, [5, 9]).transpose(0, 1));
        let stock = Flex::float_matmul(x_td.clone(), w_df.clone());
        assert_agree("product", &Flex::project(x_td, w_df), &stock);
    }

    #[test]
    fn no_rows_at_all_have_a_product_and_zero_gradients() {
        let (x_td, w_df) = (random_flex(1, [0, 4]), random_flex(2, [4, 3]));
        assert_eq!(Flex::project(x_td.clone(), w_df).shape(), Shape::new([0, 3]));
        let dw_df = Flex::project_weight_gradient(x_td, random_flex(3, [0, 3]));
        assert_eq!(elements(&dw_df), [0.0; 12]);
    }

    #[test]
    fn projections_repeat_bit_for_bit_for_any_number_of_threads() {
        let compute = || fused([517, 160, 200]);
        assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
    }
}

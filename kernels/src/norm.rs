//! Normalisation over the last dimension, in one pass forward and one backward.
//!
//! Shape letters: n rows, d width.

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, TensorMetadata,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, NodeGuard, Ops, OpsKind},
    },
    backend_extension,
    flex::FlexTensor,
    tensor::FloatTensor,
};
use burn::tensor::{Shape, Tensor};
use switchyard_kernels_cpu::norm::{self as on_slices, Measure};

use crate::slices::{all_f32, contiguous, elements, from_elements};

/// `x / sqrt(mean(x^2) + epsilon) * scale`, row by row (arXiv:1910.07467, eq. 4).
///
/// # Shapes
/// - `x_nd`: `[rows, width]`; `scale_d`: `[width]`; returns `[rows, width]`
///
/// # Panics
/// If the widths differ.
pub fn rms_norm(x_nd: Tensor<2>, scale_d: Tensor<1>, epsilon: f64) -> Tensor<2> {
    normalize(x_nd, scale_d, None, Norm { centre: Centre::Zero, epsilon })
}

/// `(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias`, row by row (arXiv:1607.06450, eq. 3); the variance is
/// the biased one.
///
/// # Shapes
/// - `x_nd`: `[rows, width]`; `scale_d`, `bias_d`: `[width]`; returns `[rows, width]`
///
/// # Panics
/// If the widths differ.
pub fn layer_norm(x_nd: Tensor<2>, scale_d: Tensor<1>, bias_d: Option<Tensor<1>>, epsilon: f64) -> Tensor<2> {
    normalize(x_nd, scale_d, bias_d, Norm { centre: Centre::Mean, epsilon })
}

fn normalize(x_nd: Tensor<2>, scale_d: Tensor<1>, bias_d: Option<Tensor<1>>, norm: Norm) -> Tensor<2> {
    let ([_, width], [scale_width]) = (x_nd.dims(), scale_d.dims());
    let bias_width = bias_d.as_ref().map_or(width, |bias_d| bias_d.dims()[0]);
    assert!(
        width == scale_width && width == bias_width,
        "rows of width {width} do not fit a scale of width {scale_width} and a bias of width {bias_width}",
    );
    let (x_nd, scale_d) = (x_nd.into_dispatch(), scale_d.into_dispatch());
    Tensor::from_dispatch(match bias_d {
        Some(bias_d) => Dispatch::normalize_rows_with_bias(x_nd, scale_d, bias_d.into_dispatch(), norm),
        None => Dispatch::normalize_rows(x_nd, scale_d, norm),
    })
}

/// How a row is normalised.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm {
    centre: Centre,
    epsilon: f64,
}

/// From where a row's deviation is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Centre {
    Zero,
    Mean,
}

impl Norm {
    fn measure(self) -> Measure {
        Measure { centred: self.centre == Centre::Mean, epsilon: self.epsilon as f32 }
    }
}

/// The operation and its gradients on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait NormalizeRows: Backend {
    /// The rows of `x_nd` normalised and scaled: `[n, d]`.
    fn normalize_rows(x_nd: FloatTensor<Self>, scale_d: FloatTensor<Self>, norm: Norm) -> FloatTensor<Self> {
        stock_normalize::<Self>(x_nd, scale_d, None, norm)
    }

    /// The rows of `x_nd` normalised, scaled and shifted: `[n, d]`.
    fn normalize_rows_with_bias(
        x_nd: FloatTensor<Self>,
        scale_d: FloatTensor<Self>,
        bias_d: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        stock_normalize::<Self>(x_nd, scale_d, Some(bias_d), norm)
    }

    /// Gradients of `x_nd`, `[n, d]`, and of `scale_d`, `[d]`.
    fn normalize_rows_gradients(
        x_nd: FloatTensor<Self>,
        scale_d: FloatTensor<Self>,
        dy_nd: FloatTensor<Self>,
        norm: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        stock_gradients::<Self>(x_nd, scale_d, dy_nd, norm)
    }

    /// Gradient of the bias, the sum of the rows of `dy_nd`: `[d]`.
    fn sum_rows(dy_nd: FloatTensor<Self>) -> FloatTensor<Self> {
        stock_sum_rows::<Self>(dy_nd)
    }
}

/// The default body of [`NormalizeRows::normalize_rows`].
fn stock_normalize<B: Backend>(
    x_nd: FloatTensor<B>,
    scale_d: FloatTensor<B>,
    bias_d: Option<FloatTensor<B>>,
    norm: Norm,
) -> FloatTensor<B> {
    let (normalized_nd, _) = stock_normalized::<B>(x_nd, norm);
    let scaled_nd = B::float_mul(normalized_nd, as_row::<B>(scale_d));
    match bias_d {
        Some(bias_d) => B::float_add(scaled_nd, as_row::<B>(bias_d)),
        None => scaled_nd,
    }
}

/// The default body of [`NormalizeRows::normalize_rows_gradients`].
fn stock_gradients<B: Backend>(
    x_nd: FloatTensor<B>,
    scale_d: FloatTensor<B>,
    dy_nd: FloatTensor<B>,
    norm: Norm,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (normalized_nd, inverse_n1) = stock_normalized::<B>(x_nd, norm);
    let dscale_d = stock_sum_rows::<B>(B::float_mul(dy_nd.clone(), normalized_nd.clone()));
    let gradient_nd = B::float_mul(dy_nd, as_row::<B>(scale_d));
    let along_n1 = B::float_mean_dim(B::float_mul(gradient_nd.clone(), normalized_nd.clone()), 1);
    let across_nd = B::float_sub(gradient_nd.clone(), B::float_mul(normalized_nd, along_n1));
    let across_nd = match norm.centre {
        Centre::Zero => across_nd,
        Centre::Mean => B::float_sub(across_nd, B::float_mean_dim(gradient_nd, 1)),
    };
    (B::float_mul(across_nd, inverse_n1), dscale_d)
}

/// The rows before scaling, `[n, d]`, and one over each row's deviation, `[n, 1]`.
fn stock_normalized<B: Backend>(x_nd: FloatTensor<B>, norm: Norm) -> (FloatTensor<B>, FloatTensor<B>) {
    let centred_nd = match norm.centre {
        Centre::Zero => x_nd,
        Centre::Mean => B::float_sub(x_nd.clone(), B::float_mean_dim(x_nd, 1)),
    };
    let mean_square_n1 = B::float_mean_dim(B::float_mul(centred_nd.clone(), centred_nd.clone()), 1);
    let deviation_n1 = B::float_sqrt(B::float_add_scalar(mean_square_n1, norm.epsilon.into()));
    let inverse_n1 = B::float_recip(deviation_n1);
    (B::float_mul(centred_nd, inverse_n1.clone()), inverse_n1)
}

/// The default body of [`NormalizeRows::sum_rows`].
fn stock_sum_rows<B: Backend>(x_nd: FloatTensor<B>) -> FloatTensor<B> {
    let width = x_nd.shape()[1];
    B::float_reshape(B::float_sum_dim(x_nd, 0), Shape::new([width]))
}

fn as_row<B: Backend>(x_d: FloatTensor<B>) -> FloatTensor<B> {
    let width = x_d.shape()[0];
    B::float_reshape(x_d, Shape::new([1, width]))
}

impl NormalizeRows for Flex {
    fn normalize_rows(x_nd: FlexTensor, scale_d: FlexTensor, norm: Norm) -> FlexTensor {
        flex_normalize(x_nd, scale_d, None, norm)
    }

    fn normalize_rows_with_bias(
        x_nd: FlexTensor,
        scale_d: FlexTensor,
        bias_d: FlexTensor,
        norm: Norm,
    ) -> FlexTensor {
        flex_normalize(x_nd, scale_d, Some(bias_d), norm)
    }

    fn normalize_rows_gradients(
        x_nd: FlexTensor,
        scale_d: FlexTensor,
        dy_nd: FlexTensor,
        norm: Norm,
    ) -> (FlexTensor, FlexTensor) {
        if !has_f32_rows(&x_nd, &scale_d) || !all_f32(&[&dy_nd]) {
            return stock_gradients::<Flex>(x_nd, scale_d, dy_nd, norm);
        }
        let (x_nd, scale_d, dy_nd) = (contiguous(x_nd), contiguous(scale_d), contiguous(dy_nd));
        let (dx, dscale) =
            on_slices::gradients(elements(&x_nd), elements(&scale_d), elements(&dy_nd), norm.measure());
        (from_elements(dx, x_nd.shape()), from_elements(dscale, scale_d.shape()))
    }

    fn sum_rows(dy_nd: FlexTensor) -> FlexTensor {
        if !has_f32_rows(&dy_nd, &dy_nd) {
            return stock_sum_rows::<Flex>(dy_nd);
        }
        let dy_nd = contiguous(dy_nd);
        let width = dy_nd.shape()[1];
        from_elements(on_slices::sum_rows(elements(&dy_nd), width), Shape::new([width]))
    }
}

fn flex_normalize(
    x_nd: FlexTensor,
    scale_d: FlexTensor,
    bias_d: Option<FlexTensor>,
    norm: Norm,
) -> FlexTensor {
    if !has_f32_rows(&x_nd, &scale_d) || bias_d.as_ref().is_some_and(|bias_d| !all_f32(&[bias_d])) {
        return stock_normalize::<Flex>(x_nd, scale_d, bias_d, norm);
    }
    let (x_nd, scale_d, bias_d) = (contiguous(x_nd), contiguous(scale_d), bias_d.map(contiguous));
    let bias = bias_d.as_ref().map(elements);
    let y = on_slices::normalize(elements(&x_nd), elements(&scale_d), bias, norm.measure());
    from_elements(y, x_nd.shape())
}

/// Whether the row loops can run: f32 only, and no rows of width 0.
fn has_f32_rows(x_nd: &FlexTensor, scale_d: &FlexTensor) -> bool {
    all_f32(&[x_nd, scale_d]) && x_nd.shape()[1] > 0
}

#[cfg(feature = "cube")]
impl NormalizeRows for burn_cubecl::CubeBackend {}

impl<B: NormalizeRows, C: CheckpointStrategy> NormalizeRows for Autodiff<B, C> {
    fn normalize_rows(x_nd: FloatTensor<Self>, scale_d: FloatTensor<Self>, norm: Norm) -> FloatTensor<Self> {
        track_rows::<B, C, 2>([x_nd.node(), scale_d.node()], x_nd, scale_d, norm, |x_nd, scale_d| {
            B::normalize_rows(x_nd, scale_d, norm)
        })
    }

    fn normalize_rows_with_bias(
        x_nd: FloatTensor<Self>,
        scale_d: FloatTensor<Self>,
        bias_d: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let nodes = [x_nd.node(), scale_d.node(), bias_d.node()];
        track_rows::<B, C, 3>(nodes, x_nd, scale_d, norm, |x_nd, scale_d| {
            B::normalize_rows_with_bias(x_nd, scale_d, bias_d.into_primitive(), norm)
        })
    }
}

/// The operation `forward` with `N` parents: two, and the bias if there is one.
fn track_rows<B: NormalizeRows, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    x_nd: FloatTensor<Autodiff<B, C>>,
    scale_d: FloatTensor<Autodiff<B, C>>,
    norm: Norm,
    forward: impl FnOnce(FloatTensor<B>, FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match Backward::<B, N>::prepare::<C>(NormalizeRowsBackward, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prepared) => {
            let state =
                SavedRows { x_nd: prepared.checkpoint(&x_nd), scale_d: prepared.checkpoint(&scale_d), norm };
            prepared.finish(state, forward(x_nd.into_primitive(), scale_d.into_primitive()))
        }
        OpsKind::UnTracked(prepared) => {
            prepared.finish(forward(x_nd.into_primitive(), scale_d.into_primitive()))
        }
    }
}

#[derive(Debug)]
struct NormalizeRowsBackward;

/// What the backward pass reads again; it recomputes each row's mean and deviation.
#[derive(Debug, Clone)]
struct SavedRows {
    x_nd: NodeId,
    scale_d: NodeId,
    norm: Norm,
}

impl<B: NormalizeRows, const N: usize> Backward<B, N> for NormalizeRowsBackward {
    type State = SavedRows;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_nd = grads.consume::<B>(&ops.node);
        let mut parents = ops.parents.into_iter();
        let [x_node, scale_node, bias_node] = std::array::from_fn(|_| parents.next().flatten());
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, B::sum_rows(dy_nd.clone()));
        }
        let SavedRows { x_nd, scale_d, norm } = ops.state;
        let x_nd = checkpointer.retrieve_node_output::<FloatTensor<B>>(x_nd);
        let scale_d = checkpointer.retrieve_node_output::<FloatTensor<B>>(scale_d);
        let (dx_nd, dscale_d) = B::normalize_rows_gradients(x_nd, scale_d, dy_nd, norm);
        if let Some(node) = x_node {
            grads.register::<B>(node.id, dx_nd);
        }
        if let Some(node) = scale_node {
            grads.register::<B>(node.id, dscale_d);
        }
    }
}

#[cfg(test)]
mod tests {
    use switchyard_kernels_cpu::blocks::BLOCK_LEN;

    use super::*;
    use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};

    const NORMS: [Norm; 2] =
        [Norm { centre: Centre::Zero, epsilon: 1e-5 }, Norm { centre: Centre::Mean, epsilon: 1e-5 }];
    /// No multiple of a block, one row, one column, a row wider than a block, more than one block.
    const SHAPES: [[usize; 2]; 5] = [[1, 1], [3, 17], [7, 1], [2, BLOCK_LEN + 5], [67, 521]];

    #[test]
    fn fused_norms_agree_with_the_stock_bodies() {
        for shape in SHAPES {
            for norm in NORMS {
                let (x, dy) = (random_flex(1, shape), random_flex(2, shape));
                let (scale, bias) = (random_flex(3, [shape[1]]), random_flex(4, [shape[1]]));
                let fused = <Flex as NormalizeRows>::normalize_rows(x.clone(), scale.clone(), norm);
                let stock = stock_normalize::<Flex>(x.clone(), scale.clone(), None, norm);
                assert_agree("rows", &fused, &stock);
                let fused = <Flex as NormalizeRows>::normalize_rows_with_bias(
                    x.clone(),
                    scale.clone(),
                    bias.clone(),
                    norm,
                );
                let stock = stock_normalize::<Flex>(x.clone(), scale.clone(), Some(bias), norm);
                assert_agree("rows with bias", &fused, &stock);
                let fused = <Flex as NormalizeRows>::normalize_rows_gradients(
                    x.clone(),
                    scale.clone(),
                    dy.clone(),
                    norm,
                );
                let stock = stock_gradients::<Flex>(x, scale, dy.clone(), norm);
                assert_agree("gradient of rows", &fused.0, &stock.0);
                assert_agree("gradient of scale", &fused.1, &stock.1);
                let sum = <Flex as NormalizeRows>::sum_rows(dy.clone());
                assert_agree("gradient of bias", &sum, &stock_sum_rows::<Flex>(dy));
            }
        }
    }

    #[test]
    fn a_row_far_from_zero_is_centred_before_it_is_squared() {
        let x = from_elements((0..64).map(|i| 1000.0 + (i % 2) as f32).collect(), [1, 64].into());
        let ones = from_elements(vec![1.0; 64], [64].into());
        let y = <Flex as NormalizeRows>::normalize_rows(x, ones, Norm { epsilon: 0.0, ..NORMS[1] });
        assert_eq!(elements(&y)[..2], [-1.0, 1.0]);
    }

    #[test]
    fn no_rows_give_no_output_and_a_zero_scale_gradient() {
        let (x, scale) = (random_flex(1, [0, 4]), random_flex(2, [4]));
        let (dx, dscale) = <Flex as NormalizeRows>::normalize_rows_gradients(x.clone(), scale, x, NORMS[0]);
        assert_eq!((elements(&dx), elements(&dscale)), (&[][..], &[0.0; 4][..]));
    }

    #[test]
    fn norms_repeat_bit_for_bit_for_any_number_of_threads() {
        let compute = || {
            let (x, dy, scale) =
                (random_flex(1, [67, 521]), random_flex(2, [67, 521]), random_flex(3, [521]));
            let y = <Flex as NormalizeRows>::normalize_rows(x.clone(), scale.clone(), NORMS[1]);
            let (dx, dscale) =
                <Flex as NormalizeRows>::normalize_rows_gradients(x, scale, dy.clone(), NORMS[1]);
            vec![y, dx, dscale, <Flex as NormalizeRows>::sum_rows(dy)]
        };
        assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
    }
}

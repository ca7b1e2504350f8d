//! The model's head and the loss of the next token, in one operation.
//!
//! Logits are `[tokens, vocabulary]`, larger than anything else in a step: they exist one chunk of rows at a time. Under
//! autodiff the forward pass computes the gradients too, because it has the logits; the backward pass scales them.
//!
//! Shape letters: t tokens, d model width, v vocabulary.

mod fused;
mod rows;
mod stock;

use burn::backend::{
    Autodiff, Backend, Dispatch, ExtensionType, Flex, TensorMetadata,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    flex::FlexTensor,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{Int, Shape, Tensor};
use rayon::prelude::*;

use crate::matrix::Matrix;
use crate::slices::{BLOCK_LEN, InPlace, all_f32, contiguous, elements, from_elements, host_integers};
use fused::{Head, Means};

/// What counts, and what is added to the cross-entropy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HeadLossOptions {
    /// Target of tokens that count neither in the sums nor in the means; absent counts every token.
    pub ignored_target: Option<i64>,
    /// Weight of the mean squared log-partition, which keeps the logits near zero (PaLM, arXiv:2204.02311, section 5);
    /// absent adds nothing.
    pub z_loss_weight: Option<f64>,
}

/// Means over the tokens that count, each `[1]`; zero if none does.
#[derive(Debug, Clone)]
pub struct HeadLoss {
    /// Cross-entropy plus the weighted squared log-partition: the only one that is differentiated.
    pub total_1: Tensor<1>,
    /// `logsumexp(logits) - logits[target]`, in nats.
    pub cross_entropy_1: Tensor<1>,
    /// `logsumexp(logits)^2`, unweighted.
    pub square_log_partition_1: Tensor<1>,
}

/// The loss of the logits `x w`, which are not kept. Gradients of `w` lie in memory as `w` does.
///
/// # Shapes
/// - `x_td`: `[num_tokens, d]`; `w_dv`: `[d, vocab_size]`; `target_ids_t`: `[num_tokens]`
///
/// # Panics
/// If the shapes do not fit, or a target that counts lies outside the vocabulary.
pub fn head_loss(
    x_td: Tensor<2>,
    w_dv: Tensor<2>,
    target_ids_t: Tensor<1, Int>,
    options: HeadLossOptions,
) -> HeadLoss {
    let ([t, d], [rows, _]) = (x_td.dims(), w_dv.dims());
    assert!(
        rows == d && target_ids_t.dims() == [t],
        "tokens {:?} do not fit a head {:?} and targets {:?}",
        x_td.dims(),
        w_dv.dims(),
        target_ids_t.dims(),
    );
    let losses = Dispatch::head_loss(
        x_td.into_dispatch(),
        w_dv.into_dispatch(),
        target_ids_t.into_dispatch(),
        options,
    );
    HeadLoss {
        total_1: Tensor::from_dispatch(losses.total_1),
        cross_entropy_1: Tensor::from_dispatch(losses.cross_entropy_1),
        square_log_partition_1: Tensor::from_dispatch(losses.square_1),
    }
}

/// Logits that [`head_loss`] holds at a time on the CPU, of `num_tokens` rows.
pub fn num_logits_held(num_tokens: usize, vocab_size: usize) -> usize {
    fused::chunk_rows(vocab_size).min(num_tokens).saturating_mul(vocab_size)
}

/// What the operation returns: means over the tokens that count, each `[1]`.
#[derive(Debug, Clone, ExtensionType)]
pub(crate) struct Losses<B: Backend> {
    total_1: FloatTensor<B>,
    cross_entropy_1: FloatTensor<B>,
    /// Mean squared log-partition.
    square_1: FloatTensor<B>,
}

/// The operation and its gradients on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait HeadLossOp: Backend {
    /// The losses.
    fn head_loss(
        x_td: FloatTensor<Self>,
        w_dv: FloatTensor<Self>,
        target_ids_t: IntTensor<Self>,
        options: HeadLossOptions,
    ) -> Losses<Self> {
        stock::losses::<Self>(x_td, w_dv, target_ids_t, options)
    }

    /// [`HeadLossOp::head_loss`], and the gradients of the mean loss: those of the rows, `[t, d]`, and of the matrix,
    /// `[d, v]`.
    fn head_loss_and_gradients(
        x_td: FloatTensor<Self>,
        w_dv: FloatTensor<Self>,
        target_ids_t: IntTensor<Self>,
        options: HeadLossOptions,
    ) -> (Losses<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        stock::losses_and_gradients::<Self>(x_td, w_dv, target_ids_t, options)
    }

    /// `gradient` times the gradient of the mean loss, `[1]`.
    fn scaled_gradient(gradient: FloatTensor<Self>, dloss_1: FloatTensor<Self>) -> FloatTensor<Self> {
        stock::scaled_gradient::<Self>(gradient, dloss_1)
    }
}

impl HeadLossOp for Flex {
    fn head_loss(
        x_td: FlexTensor,
        w_dv: FlexTensor,
        target_ids_t: FlexTensor,
        options: HeadLossOptions,
    ) -> Losses<Flex> {
        if !is_fused(&x_td, &w_dv) {
            return stock::losses::<Flex>(x_td, w_dv, target_ids_t, options);
        }
        loss_tensors(Operands::new(x_td, w_dv, target_ids_t, options).head().losses())
    }

    fn head_loss_and_gradients(
        x_td: FlexTensor,
        w_dv: FlexTensor,
        target_ids_t: FlexTensor,
        options: HeadLossOptions,
    ) -> (Losses<Flex>, FlexTensor, FlexTensor) {
        if !is_fused(&x_td, &w_dv) {
            return stock::losses_and_gradients::<Flex>(x_td, w_dv, target_ids_t, options);
        }
        let operands = Operands::new(x_td, w_dv, target_ids_t, options);
        let (means, gradients) = operands.head().losses_and_gradients(operands.by_columns());
        let dx_td = from_elements(gradients.dx, operands.x_td.shape());
        let [d, v] = operands.matrix_shape();
        let dw_dv = match operands.by_columns() {
            true => from_elements(gradients.dw, Shape::new([v, d])).transpose(0, 1),
            false => from_elements(gradients.dw, Shape::new([d, v])),
        };
        (loss_tensors(means), dx_td, dw_dv)
    }

    fn scaled_gradient(gradient: FlexTensor, dloss_1: FlexTensor) -> FlexTensor {
        if !all_f32(&[&gradient, &dloss_1]) {
            return stock::scaled_gradient::<Flex>(gradient, dloss_1);
        }
        let factor = elements(&contiguous(dloss_1))[0];
        if factor == 1.0 {
            return gradient;
        }
        // A tied head's gradient lies transposed: it is scaled as it lies.
        let is_transposed = !gradient.is_contiguous();
        let oriented = |gradient: FlexTensor| match is_transposed {
            true => gradient.transpose(0, 1),
            false => gradient,
        };
        let mut gradient = InPlace::new(oriented(gradient));
        gradient.par_blocks(BLOCK_LEN).for_each(|block| rows::scale(block, factor));
        oriented(gradient.finish())
    }
}

/// Whether the CPU's own body is for these operands: it takes one type, and something to multiply.
fn is_fused(x_td: &FlexTensor, w_dv: &FlexTensor) -> bool {
    all_f32(&[x_td, w_dv]) && x_td.shape().num_elements() > 0 && w_dv.shape().num_elements() > 0
}

/// The operands of the CPU's own body.
struct Operands {
    x_td: FlexTensor,
    w_dv: FlexTensor,
    targets: Vec<Option<usize>>,
    z_loss_weight: f64,
}

impl Operands {
    fn new(x_td: FlexTensor, w_dv: FlexTensor, target_ids_t: FlexTensor, options: HeadLossOptions) -> Self {
        let targets = target_columns(target_ids_t, w_dv.shape()[1], options.ignored_target);
        let lies_in_order = |w_dv: &FlexTensor| w_dv.layout().strides().contains(&1);
        let w_dv = if lies_in_order(&w_dv) { w_dv } else { contiguous(w_dv) };
        let z_loss_weight = options.z_loss_weight.unwrap_or(0.0);
        Self { x_td: contiguous(x_td), w_dv, targets, z_loss_weight }
    }

    fn head(&self) -> Head<'_> {
        let layout = self.w_dv.layout();
        let strides = [layout.strides()[0] as usize, layout.strides()[1] as usize];
        let stored: &[f32] = self.w_dv.storage();
        Head {
            x: Matrix::row_major(elements(&self.x_td), self.matrix_shape()[0]),
            w: Matrix::strided(&stored[layout.start_offset()..], self.matrix_shape(), strides),
            targets: &self.targets,
            z_loss_weight: self.z_loss_weight,
        }
    }

    fn matrix_shape(&self) -> [usize; 2] {
        [self.w_dv.shape()[0], self.w_dv.shape()[1]]
    }

    /// Whether the matrix lies in memory column by column, as a transposed embedding does.
    fn by_columns(&self) -> bool {
        self.w_dv.layout().strides()[1] != 1
    }
}

fn loss_tensors(means: Means) -> Losses<Flex> {
    let scalar = |value: f64| from_elements(vec![value as f32], Shape::new([1]));
    Losses {
        total_1: scalar(means.total),
        cross_entropy_1: scalar(means.cross_entropy),
        square_1: scalar(means.square_log_partition),
    }
}

/// The target of each token as a column of the logits; none for one that is ignored.
///
/// # Panics
/// If another target is not below `vocab_size`.
fn target_columns(
    target_ids_t: FlexTensor,
    vocab_size: usize,
    ignored_target: Option<i64>,
) -> Vec<Option<usize>> {
    let column = |id: i64| match usize::try_from(id) {
        _ if Some(id) == ignored_target => None,
        Ok(column) if column < vocab_size => Some(column),
        _ => panic!("target {id} lies outside a vocabulary of {vocab_size}"),
    };
    host_integers(target_ids_t).into_iter().map(column).collect()
}

#[cfg(feature = "cube")]
impl HeadLossOp for burn_cubecl::CubeBackend {}

impl<B: HeadLossOp, C: CheckpointStrategy> HeadLossOp for Autodiff<B, C> {
    fn head_loss(
        x_td: FloatTensor<Self>,
        w_dv: FloatTensor<Self>,
        target_ids_t: IntTensor<Self>,
        options: HeadLossOptions,
    ) -> Losses<Self> {
        let prepared = HeadLossBackward.prepare::<C>([x_td.node(), w_dv.node()]).compute_bound().stateful();
        let (x_td, w_dv) = (x_td.into_primitive(), w_dv.into_primitive());
        let (losses, total_1) = match prepared {
            OpsKind::Tracked(prepared) => {
                let (losses, dx_td, dw_dv) = B::head_loss_and_gradients(x_td, w_dv, target_ids_t, options);
                let total_1 = prepared.finish(UnitGradients { dx_td, dw_dv }, losses.total_1.clone());
                (losses, total_1)
            }
            OpsKind::UnTracked(prepared) => {
                let losses = B::head_loss(x_td, w_dv, target_ids_t, options);
                let total_1 = prepared.finish(losses.total_1.clone());
                (losses, total_1)
            }
        };
        let untracked = FloatTensor::<Self>::new;
        Losses {
            total_1,
            cross_entropy_1: untracked(losses.cross_entropy_1),
            square_1: untracked(losses.square_1),
        }
    }
}

#[derive(Debug)]
struct HeadLossBackward;

/// Gradients of the inputs where that of the loss is one.
#[derive(Debug, Clone)]
struct UnitGradients<B: Backend> {
    dx_td: FloatTensor<B>,
    dw_dv: FloatTensor<B>,
}

impl<B: HeadLossOp> Backward<B, 2> for HeadLossBackward {
    type State = UnitGradients<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dloss_1 = grads.consume::<B>(&ops.node);
        let UnitGradients { dx_td, dw_dv } = ops.state;
        let [x_node, w_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::scaled_gradient(dx_td, dloss_1.clone()));
        }
        if let Some(node) = w_node {
            grads.register::<B>(node.id, B::scaled_gradient(dw_dv, dloss_1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};
    use burn::backend::ops::FloatTensorOps;
    use burn::tensor::TensorData;

    const EVERYTHING: HeadLossOptions =
        HeadLossOptions { ignored_target: Some(-1), z_loss_weight: Some(0.125) };

    /// Every third token is ignored.
    fn targets(t: usize, v: usize) -> FlexTensor {
        let id = |i: usize| if i % 3 == 1 { -1 } else { (i * 7919 % v) as i32 };
        FlexTensor::from_data(TensorData::new((0..t).map(id).collect::<Vec<_>>(), [t]))
    }

    /// Rows and matrix; the matrix as the transpose of one that lies in order if `tied`.
    fn inputs([t, d, v]: [usize; 3], tied: bool) -> (FlexTensor, FlexTensor) {
        let small = |tensor: FlexTensor| Flex::float_mul_scalar(tensor, 0.25.into());
        let w_dv = match tied {
            true => random_flex(2, [v, d]).transpose(0, 1),
            false => random_flex(2, [d, v]),
        };
        (small(random_flex(1, [t, d])), w_dv)
    }

    #[test]
    fn fused_loss_agrees_with_the_stock_body() {
        // The last sizes take several chunks, of which the last one is not whole.
        for shape in [[1, 1, 1], [1, 3, 17], [5, 16, 16], [70, 33, 1003], [1100, 5, 4099]] {
            for (tied, options) in [
                (false, EVERYTHING),
                (true, EVERYTHING),
                (true, HeadLossOptions { z_loss_weight: None, ..EVERYTHING }),
            ] {
                let (x_td, w_dv) = inputs(shape, tied);
                let ids_t = targets(shape[0], shape[2]);
                let stock =
                    stock::losses_and_gradients::<Flex>(x_td.clone(), w_dv.clone(), ids_t.clone(), options);
                let alone = Flex::head_loss(x_td.clone(), w_dv.clone(), ids_t.clone(), options);
                let fused = Flex::head_loss_and_gradients(x_td, w_dv, ids_t, options);
                for losses in [&alone, &fused.0] {
                    assert_agree("total", &losses.total_1, &stock.0.total_1);
                    assert_agree("cross-entropy", &losses.cross_entropy_1, &stock.0.cross_entropy_1);
                    assert_agree("squared log-partition", &losses.square_1, &stock.0.square_1);
                }
                assert_agree("rows", &fused.1, &stock.1);
                assert_eq!(
                    fused.2.is_contiguous(),
                    !tied || shape[1] == 1,
                    "the gradient lies as the matrix does"
                );
                assert_agree("matrix", &contiguous(fused.2), &stock.2);
            }
        }
    }

    #[test]
    fn without_an_ignored_target_every_token_counts() {
        let (x_td, w_dv) = inputs([5, 3, 7], false);
        let ids_t = FlexTensor::from_data(TensorData::new(vec![0i32, 6, 3, 3, 1], [5]));
        let options = HeadLossOptions::default();
        let stock = stock::losses::<Flex>(x_td.clone(), w_dv.clone(), ids_t.clone(), options);
        let fused = Flex::head_loss(x_td, w_dv, ids_t, options);
        assert_agree("total", &fused.total_1, &stock.total_1);
        assert_eq!(elements(&fused.total_1), elements(&fused.cross_entropy_1), "nothing is added");
    }

    #[test]
    fn ignored_tokens_are_as_if_they_were_not_there() {
        let options = HeadLossOptions { ignored_target: Some(-1), z_loss_weight: Some(0.5) };
        let (x_td, w_dv) = inputs([4, 3, 7], false);
        let ids = |ids: &[i32]| FlexTensor::from_data(TensorData::new(ids.to_vec(), [ids.len()]));
        let some = Flex::head_loss_and_gradients(x_td.clone(), w_dv.clone(), ids(&[2, 0, -1, -1]), options);
        let only = Flex::head_loss_and_gradients(x_td.narrow(0, 0, 2), w_dv.clone(), ids(&[2, 0]), options);
        assert_agree("total", &some.0.total_1, &only.0.total_1);
        // Sums of another length may be summed in another order.
        assert_agree("matrix", &some.2, &only.2);
        assert_eq!(elements(&some.1)[6..], [0.0; 6]);
        let none = Flex::head_loss_and_gradients(x_td, w_dv, ids(&[-1; 4]), options);
        assert_eq!((elements(&none.0.total_1), elements(&none.2)), (&[0.0][..], &[0.0; 21][..]));
    }

    /// Central differences of the default body's loss are good to about 1e-9 in f64.
    #[test]
    fn stock_gradients_are_those_of_the_stock_loss() {
        let f64s = |values: &[f64], shape: [usize; 2]| {
            FlexTensor::from_data(TensorData::new(values.to_vec(), shape))
        };
        let [t, d, v] = [3, 2, 4];
        let (x, w): (Vec<f64>, Vec<f64>) = (
            (0..t * d).map(|i| (i as f64).sin()).collect(),
            (0..d * v).map(|i| (3.0 * i as f64).cos()).collect(),
        );
        let both = [x, w].concat();
        let split = |both: &[f64]| (f64s(&both[..t * d], [t, d]), f64s(&both[t * d..], [d, v]));
        let loss = |both: &[f64]| {
            let (x_td, w_dv) = split(both);
            stock::losses::<Flex>(x_td, w_dv, targets(t, v), EVERYTHING).total_1.storage::<f64>()[0]
        };
        let (x_td, w_dv) = split(&both);
        let (_, dx_td, dw_dv) = stock::losses_and_gradients::<Flex>(x_td, w_dv, targets(t, v), EVERYTHING);
        let gradients =
            [dx_td, dw_dv].map(|gradient| gradient.to_contiguous().storage::<f64>().to_vec()).concat();
        for (i, gradient) in gradients.into_iter().enumerate() {
            let moved = |by: f64| {
                let mut both = both.clone();
                both[i] += by;
                loss(&both)
            };
            let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((gradient - difference).abs() < 1e-8, "[{i}]: {gradient} is not {difference}");
        }
    }

    #[test]
    fn the_loss_repeats_bit_for_bit_for_any_number_of_threads() {
        for tied in [false, true] {
            let compute = || {
                let (x_td, w_dv) = inputs([1100, 33, 4099], tied);
                let (losses, dx_td, dw_dv) =
                    Flex::head_loss_and_gradients(x_td, w_dv, targets(1100, 4099), EVERYTHING);
                vec![losses.total_1, losses.cross_entropy_1, losses.square_1, dx_td, contiguous(dw_dv)]
            };
            assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
        }
    }

    #[test]
    fn gradients_are_scaled_in_place_and_left_alone_by_one() {
        let scalar = |value: f32| from_elements(vec![value], Shape::new([1]));
        for tied in [false, true] {
            let (_, w_dv) = inputs([1, 5, 7], tied);
            let (before, address) = (elements(&contiguous(w_dv.clone())).to_vec(), w_dv.bytes().as_ptr());
            let same = Flex::scaled_gradient(w_dv, scalar(1.0));
            let doubled = Flex::scaled_gradient(same, scalar(2.0));
            assert_eq!(doubled.bytes().as_ptr(), address);
            let expected: Vec<f32> = before.iter().map(|value| 2.0 * value).collect();
            assert_eq!(elements(&contiguous(doubled)), expected);
        }
    }

    #[test]
    fn a_logit_that_is_no_number_makes_the_loss_none() {
        let (x_td, w_dv) = (
            from_elements(vec![1.0], Shape::new([1, 1])),
            from_elements(vec![0.0, f32::NAN, 1.0], Shape::new([1, 3])),
        );
        let losses = Flex::head_loss(x_td, w_dv, targets(1, 3), EVERYTHING);
        assert!(elements(&losses.total_1)[0].is_nan());
    }

    #[test]
    #[should_panic(expected = "target 3 lies outside a vocabulary of 3")]
    fn a_target_outside_the_vocabulary_is_named() {
        let ids = FlexTensor::from_data(TensorData::new(vec![3i32], [1]));
        Flex::head_loss(random_flex(1, [1, 1]), random_flex(1, [1, 3]), ids, EVERYTHING);
    }
}

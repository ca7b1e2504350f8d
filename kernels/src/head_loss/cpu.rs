//! The loss and its gradients on the CPU, without the matrix of all logits.

use burn::backend::{Flex, TensorMetadata, flex::FlexTensor};
use burn::tensor::Shape;
use switchyard_kernels_cpu::bf16::Compute;
use switchyard_kernels_cpu::head_loss::{self as on_slices, Head, Means};
use switchyard_kernels_cpu::matrix::Matrix;

use super::{HeadLossOp, HeadLossOptions, Losses, stock};
use crate::slices::{InPlaceTensor, all_f32, contiguous, elements, from_elements, host_integers};

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
        let mut gradient = InPlaceTensor::new(oriented(gradient));
        on_slices::scale(gradient.elements(), factor);
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
    compute: Compute,
}

impl Operands {
    fn new(x_td: FlexTensor, w_dv: FlexTensor, target_ids_t: FlexTensor, options: HeadLossOptions) -> Self {
        let targets = target_columns(target_ids_t, w_dv.shape()[1], options.ignored_target);
        // A matrix that is flipped runs backwards through memory, where no slice does.
        let w_dv = if forward_strides(&w_dv).is_some_and(|strides| strides.contains(&1)) {
            w_dv
        } else {
            contiguous(w_dv)
        };
        let z_loss_weight = options.z_loss_weight.unwrap_or(0.0);
        Self { x_td: contiguous(x_td), w_dv, targets, z_loss_weight, compute: options.compute }
    }

    fn head(&self) -> Head<'_> {
        let strides = forward_strides(&self.w_dv).expect("copied if it runs backwards");
        let stored: &[f32] = self.w_dv.storage();
        let start = self.w_dv.layout().start_offset();
        Head {
            x: Matrix::row_major(elements(&self.x_td), self.matrix_shape()[0]),
            w: Matrix::strided(&stored[start..], self.matrix_shape(), strides),
            targets: &self.targets,
            z_loss_weight: self.z_loss_weight,
            compute: self.compute,
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

/// The strides of a matrix; `None` if one is negative.
fn forward_strides(w_dv: &FlexTensor) -> Option<[usize; 2]> {
    let &[row, column] = w_dv.layout().strides() else { return None };
    Some([usize::try_from(row).ok()?, usize::try_from(column).ok()?])
}

fn loss_tensors(means: Means) -> Losses<Flex> {
    let scalar = |value: f64| from_elements(vec![value as f32], Shape::new([1]));
    Losses {
        total_1: scalar(means.total),
        cross_entropy_1: scalar(means.cross_entropy),
        square_1: scalar(means.square_log_partition),
    }
}

/// The target of each token as a column of the logits; `None` for one that is ignored.
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

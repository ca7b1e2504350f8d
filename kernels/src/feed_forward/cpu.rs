//! Feed-forward blocks on the CPU.

use burn::backend::flex::FlexTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Shape;
use switchyard_kernels_cpu::activation::Kept;
use switchyard_kernels_cpu::bf16::{Bf16, Compute};
use switchyard_kernels_cpu::feed_forward::{self as on_slices, Block, Operands, Output};

use super::{FeedForward, stock};
use crate::slices::{Stored, all_f32, contiguous, elements, from_elements};
use crate::tensor_list::TensorList;

impl FeedForward for Flex {
    fn feed_forward_keeping_projections(
        operands: TensorList<Flex>,
        block: Block,
    ) -> (FlexTensor, Vec<FlexTensor>) {
        let operands = operands.into_vec();
        if !all_f32(&operands.iter().collect::<Vec<_>>()) {
            return stock::forward::<Flex>(operands, &block);
        }
        let operands = Operands::from_vec(operands, block.parts).map(contiguous);
        match block.options.compute {
            Compute::F32 => forward::<f32>(&operands, &block),
            Compute::Bf16 | Compute::PortableBf16 => forward::<Bf16>(&operands, &block),
        }
    }

    fn feed_forward_gradients(
        operands: TensorList<Flex>,
        projections: TensorList<Flex>,
        dy_td: FlexTensor,
        block: Block,
    ) -> Vec<FlexTensor> {
        let (operands, projections) = (operands.into_vec(), projections.into_vec());
        if !all_f32(&operands.iter().chain([&dy_td]).collect::<Vec<_>>()) {
            return stock::gradients::<Flex>(operands, projections, dy_td, &block);
        }
        let (operands, dy_td) =
            (Operands::from_vec(operands, block.parts).map(contiguous), contiguous(dy_td));
        match block.options.compute {
            Compute::F32 => gradients::<f32>(&operands, projections, &dy_td, &block),
            Compute::Bf16 | Compute::PortableBf16 => {
                gradients::<Bf16>(&operands, projections, &dy_td, &block)
            }
        }
    }
}

/// The output and the projections, kept as `E`.
fn forward<E: Kept + Stored>(
    operands: &Operands<FlexTensor>,
    block: &Block,
) -> (FlexTensor, Vec<FlexTensor>) {
    let [t, d, f] = sizes(operands);
    let Output { y, up, gate } = on_slices::forward::<E>(operands.as_ref().map(elements), [t, d, f], block);
    let n = block.groups(t).num_rows();
    let mut projections = vec![E::tensor(up, Shape::new([n, f]))];
    if block.parts.gated {
        projections.push(E::tensor(gate, Shape::new([n, f])));
    }
    (from_elements(y, Shape::new([t, d])), projections)
}

/// Gradients of all operands from projections kept as `E`.
fn gradients<E: Kept + Stored>(
    operands: &Operands<FlexTensor>,
    projections: Vec<FlexTensor>,
    dy_td: &FlexTensor,
    block: &Block,
) -> Vec<FlexTensor> {
    let mut projections = projections.into_iter().map(contiguous);
    let (mut up, mut gate) = (projections.next(), projections.next());
    let gradients = on_slices::gradients::<E>(
        operands.as_ref().map(elements),
        sizes(operands),
        [&mut up, &mut gate].map(|projection| projection.as_mut().map_or(&mut [][..], E::elements_mut)),
        elements(dy_td),
        block,
    );
    let shaped =
        gradients.zip(operands.as_ref()).map(|(gradient, operand)| from_elements(gradient, operand.shape()));
    shaped.into_vec()
}

/// t, d and f.
fn sizes(operands: &Operands<FlexTensor>) -> [usize; 3] {
    let [t, d] = operands.x.shape().dims();
    [t, d, *operands.up.shape().last().expect("a matrix has columns")]
}

//! Products with blocks on the CPU.

use burn::backend::{Flex, TensorMetadata, flex::FlexTensor};
use burn::tensor::Shape;
use switchyard_kernels_cpu::block_sparse::{self as on_slices, BlockTopology, Direction};

use super::{ProjectByBlocks, stock};
use crate::slices::{all_f32, contiguous, elements, from_elements, matrix};

impl ProjectByBlocks for Flex {
    fn project_by_blocks(x_td: FlexTensor, blocks_nbb: FlexTensor, topology: BlockTopology) -> FlexTensor {
        if !all_f32(&[&x_td, &blocks_nbb]) {
            return stock::product::<Flex>(x_td, blocks_nbb, &topology, Direction::Forward);
        }
        fused_product(x_td, blocks_nbb, &topology, Direction::Forward)
    }

    fn project_by_blocks_input_gradient(
        dy_tf: FlexTensor,
        blocks_nbb: FlexTensor,
        topology: BlockTopology,
    ) -> FlexTensor {
        if !all_f32(&[&dy_tf, &blocks_nbb]) {
            return stock::product::<Flex>(dy_tf, blocks_nbb, &topology, Direction::Backward);
        }
        fused_product(dy_tf, blocks_nbb, &topology, Direction::Backward)
    }

    fn project_by_blocks_weight_gradient(
        x_td: FlexTensor,
        dy_tf: FlexTensor,
        topology: BlockTopology,
    ) -> FlexTensor {
        if !all_f32(&[&x_td, &dy_tf]) {
            return stock::weight_gradient::<Flex>(x_td, dy_tf, &topology);
        }
        let (x_td, dy_tf) = (contiguous(x_td), contiguous(dy_tf));
        let gradient = on_slices::weight_gradient(matrix(&x_td), matrix(&dy_tf), &topology);
        let (n, b) = (topology.num_blocks(), topology.block());
        from_elements(gradient, Shape::new([n, b, b]))
    }
}

/// `x W`, or `x W^T`.
fn fused_product(
    x: FlexTensor,
    blocks_nbb: FlexTensor,
    topology: &BlockTopology,
    direction: Direction,
) -> FlexTensor {
    let (x, blocks_nbb) = (contiguous(x), contiguous(blocks_nbb));
    let width = match direction {
        Direction::Forward => topology.d_output(),
        Direction::Backward => topology.d_input(),
    };
    let y = on_slices::product(matrix(&x), elements(&blocks_nbb), topology, direction);
    from_elements(y, Shape::new([x.shape()[0], width]))
}

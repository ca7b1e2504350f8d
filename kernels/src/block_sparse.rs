//! Linear projections whose matrix has only some blocks, in a fixed topology (Gray, Radford and Kingma, "GPU kernels for
//! block-sparse weights", 2017; MegaBlocks, arXiv:2211.15841, section 5). Time and memory are proportional to the blocks
//! that are there.
//!
//! Shape letters: t rows, d input width, f output width, n blocks, b side of a block.

mod stock;

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
    tensor::FloatTensor,
};
use burn::tensor::{Shape, Tensor};
use switchyard_kernels_cpu::block_sparse::{self as on_slices, Direction};

pub use switchyard_kernels_cpu::block_sparse::BlockTopology;

use crate::slices::{all_f32, contiguous, elements, from_elements, matrix};

/// `x W`, where block `topology.places()[n]` of `W` is `blocks_nbb[n]` and the others are zero.
///
/// # Shapes
/// - `x_td`: `[rows, d]`; `blocks_nbb`: `[num_blocks, block, block]`; returns `[rows, f]`
///
/// # Panics
/// If the shapes do not fit the topology.
pub fn block_sparse_linear(x_td: Tensor<2>, blocks_nbb: Tensor<3>, topology: &BlockTopology) -> Tensor<2> {
    let ([t, d], [n, rows, columns]) = (x_td.dims(), blocks_nbb.dims());
    assert!(
        d == topology.d_input()
            && [n, rows, columns] == [topology.num_blocks(), topology.block(), topology.block()],
        "{t} rows of width {d} and {n} blocks of {rows} x {columns} do not fit {} blocks of side {} in a matrix of {} x {}",
        topology.num_blocks(),
        topology.block(),
        topology.d_input(),
        topology.d_output(),
    );
    Tensor::from_dispatch(Dispatch::project_by_blocks(
        x_td.into_dispatch(),
        blocks_nbb.into_dispatch(),
        topology.clone(),
    ))
}

/// The operation and its gradients on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait ProjectByBlocks: Backend {
    /// `x_td` times the matrix of blocks: `[t, f]`.
    fn project_by_blocks(
        x_td: FloatTensor<Self>,
        blocks_nbb: FloatTensor<Self>,
        topology: BlockTopology,
    ) -> FloatTensor<Self> {
        stock::product::<Self>(x_td, blocks_nbb, &topology, Direction::Forward)
    }

    /// Gradient of `x_td` from that of the product, `[t, f]`.
    fn project_by_blocks_input_gradient(
        dy_tf: FloatTensor<Self>,
        blocks_nbb: FloatTensor<Self>,
        topology: BlockTopology,
    ) -> FloatTensor<Self> {
        stock::product::<Self>(dy_tf, blocks_nbb, &topology, Direction::Backward)
    }

    /// Gradient of `blocks_nbb` from that of the product, `[t, f]`; that of the zeros is never computed.
    fn project_by_blocks_weight_gradient(
        x_td: FloatTensor<Self>,
        dy_tf: FloatTensor<Self>,
        topology: BlockTopology,
    ) -> FloatTensor<Self> {
        stock::weight_gradient::<Self>(x_td, dy_tf, &topology)
    }
}

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

#[cfg(feature = "cube")]
impl ProjectByBlocks for burn_cubecl::CubeBackend {}

impl<B: ProjectByBlocks, C: CheckpointStrategy> ProjectByBlocks for Autodiff<B, C> {
    fn project_by_blocks(
        x_td: FloatTensor<Self>,
        blocks_nbb: FloatTensor<Self>,
        topology: BlockTopology,
    ) -> FloatTensor<Self> {
        let nodes = [x_td.node(), blocks_nbb.node()];
        match BlockSparseBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = SavedInputs {
                    x_td: blocks_nbb.is_tracked().then(|| prepared.checkpoint(&x_td)),
                    blocks_nbb: x_td.is_tracked().then(|| prepared.checkpoint(&blocks_nbb)),
                    topology: topology.clone(),
                };
                let [x_td, blocks_nbb] = [x_td, blocks_nbb].map(|tensor| tensor.into_primitive());
                prepared.finish(state, B::project_by_blocks(x_td, blocks_nbb, topology))
            }
            OpsKind::UnTracked(prepared) => {
                let [x_td, blocks_nbb] = [x_td, blocks_nbb].map(|tensor| tensor.into_primitive());
                prepared.finish(B::project_by_blocks(x_td, blocks_nbb, topology))
            }
        }
    }
}

#[derive(Debug)]
struct BlockSparseBackward;

/// What the backward pass reads again: each input only if the other one has a gradient.
#[derive(Debug, Clone)]
struct SavedInputs {
    x_td: Option<NodeId>,
    blocks_nbb: Option<NodeId>,
    topology: BlockTopology,
}

impl<B: ProjectByBlocks> Backward<B, 2> for BlockSparseBackward {
    type State = SavedInputs;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_tf = grads.consume::<B>(&ops.node);
        let SavedInputs { x_td, blocks_nbb, topology } = ops.state;
        let x_td = x_td.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let blocks_nbb = blocks_nbb.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let [x_node, blocks_node] = ops.parents;
        if let (Some(node), Some(blocks_nbb)) = (x_node, blocks_nbb) {
            let dx_td = B::project_by_blocks_input_gradient(dy_tf.clone(), blocks_nbb, topology.clone());
            grads.register::<B>(node.id, dx_td);
        }
        if let (Some(node), Some(x_td)) = (blocks_node, x_td) {
            grads.register::<B>(node.id, B::project_by_blocks_weight_gradient(x_td, dy_tf, topology));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};

    /// Every third block, and no block in row 1 and column 2.
    fn ragged(block: usize) -> BlockTopology {
        let all = (0..4).flat_map(|row| (0..5).map(move |column| [row, column]));
        let places = all.filter(|[row, column]| *row != 1 && *column != 2 && (row + 2 * column) % 3 != 0);
        BlockTopology::new(block, [4, 5], places.collect())
    }

    fn fused(t: usize, topology: &BlockTopology) -> Vec<FlexTensor> {
        let (n, b) = (topology.num_blocks(), topology.block());
        let (x_td, blocks_nbb) = (random_flex(1, [t, 4 * b]), random_flex(2, [n, b, b]));
        let dy_tf = random_flex(3, [t, 5 * b]);
        vec![
            Flex::project_by_blocks(x_td.clone(), blocks_nbb.clone(), topology.clone()),
            Flex::project_by_blocks_input_gradient(dy_tf.clone(), blocks_nbb, topology.clone()),
            Flex::project_by_blocks_weight_gradient(x_td, dy_tf, topology.clone()),
        ]
    }

    #[test]
    fn fused_products_agree_with_the_stock_operations() {
        for (t, block) in [(1, 1), (5, 3), (129, 16), (300, 32)] {
            let topology = ragged(block);
            let (n, b) = (topology.num_blocks(), block);
            let (x_td, blocks_nbb) = (random_flex(1, [t, 4 * b]), random_flex(2, [n, b, b]));
            let dy_tf = random_flex(3, [t, 5 * b]);
            let stock = [
                stock::product::<Flex>(x_td.clone(), blocks_nbb.clone(), &topology, Direction::Forward),
                stock::product::<Flex>(dy_tf.clone(), blocks_nbb, &topology, Direction::Backward),
                stock::weight_gradient::<Flex>(x_td, dy_tf, &topology),
            ];
            for (fused, stock) in fused(t, &topology).iter().zip(&stock) {
                assert_agree("product or gradient", fused, stock);
            }
        }
    }

    #[test]
    fn no_rows_at_all_have_a_product_and_zero_gradients() {
        let results = fused(0, &ragged(4));
        assert!(elements(&results[0]).is_empty() && elements(&results[1]).is_empty());
        assert!(elements(&results[2]).iter().all(|value| *value == 0.0));
    }

    #[test]
    fn products_by_blocks_repeat_bit_for_bit_for_any_number_of_threads() {
        let compute = || fused(517, &ragged(32));
        assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
    }
}

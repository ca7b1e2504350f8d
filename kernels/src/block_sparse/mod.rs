//! Linear projections whose matrix has only some blocks, in a fixed topology (Gray, Radford and
//! Kingma, "GPU kernels for block-sparse weights", 2017; MegaBlocks, arXiv:2211.15841, section 5).
//! Time and memory are proportional to the blocks that are there.
//!
//! Shape letters: t rows, d input width, f output width, n blocks, b side of a block.

mod autodiff;
mod cpu;
mod stock;
#[cfg(test)]
mod tests;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use switchyard_kernels_cpu::block_sparse::Direction;

pub use switchyard_kernels_cpu::block_sparse::BlockTopology;

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

    /// Gradient of `blocks_nbb` from that of the product, `[t, f]`; that of the zeros is never
    /// computed.
    fn project_by_blocks_weight_gradient(
        x_td: FloatTensor<Self>,
        dy_tf: FloatTensor<Self>,
        topology: BlockTopology,
    ) -> FloatTensor<Self> {
        stock::weight_gradient::<Self>(x_td, dy_tf, &topology)
    }
}

#[cfg(feature = "cube")]
impl ProjectByBlocks for burn_cubecl::CubeBackend {}

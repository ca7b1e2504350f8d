//! What an expert does with its tokens: the dense and the block-sparse feed-forward block, and the mixture of experts in its place.
//!
//! A token's way through a [`MoeLayer`]: the router chooses, [`DispatchPlan`] sorts, and [`Experts`] gathers each expert's
//! rows, multiplies, and combines the rows with their gates.

mod block_sparse;
mod config;
mod counts;
mod dense;
mod error;
mod footprint;
mod grouped;
mod moe;
mod soft;
mod spec;
mod topology;

pub use block_sparse::{
    BlockSparseConfig, BlockSparseConfigError, BlockSparseFfn, BlockSparseWeights, PlainTopologyConfig,
    SmallWorldConfig, TopologyConfig,
};
pub use config::{MoeConfig, MoeLayersConfig, RouterOverride};
pub use counts::{ExpertWork, FfnFlops, FfnParams, PassSize};
pub use dense::{DenseFfn, DenseFfnWeights};
pub use error::MoeConfigError;
pub use footprint::Footprint;
pub use grouped::{Experts, ExpertsWeights};
pub use moe::{MoeAux, MoeInput, MoeLayer, MoeOutput, Route};
pub use spec::{
    BlockSparseSpec, DenseSpec, ExpertsSpec, FfnSpec, MoeSpec, RouterSpec, SharedExpertSpec, SoftMoeSpec,
};
pub use switchyard_kernels::{Activation, BlockTopology, DispatchPlan};
pub use switchyard_router::{CapacityConfig, DropPolicy};
pub use topology::TopologyKind;

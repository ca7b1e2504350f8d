//! What an expert does with its tokens: the dense and the block-sparse feed-forward block, and the
//! mixture of experts in its place.
//!
//! A token's way through a [`MoeLayer`]: the router chooses, [`DispatchPlan`] sorts, and
//! [`Experts`] gathers each expert's rows, multiplies, and combines the rows with their gates.

mod block_sparse;
mod config;
mod counts;
mod dense;
mod footprint;
mod grouped;
mod moe;
mod output;
mod soft;
mod spec;
mod topology;

pub use block_sparse::{BlockSparseConfig, BlockSparseFfn, BlockSparseWeights};
pub use config::{MoeConfig, MoeLayersConfig, RouterOverride};
pub use counts::{ExpertWork, FfnFlops, FfnParams, PassSize};
pub use dense::{DenseFfn, DenseFfnWeights};
pub use footprint::Footprint;
pub use grouped::{Experts, ExpertsWeights};
pub use moe::{MoeInput, MoeLayer};
pub use output::{MoeAux, MoeOutput, Route};
pub use spec::{
    BlockSparseSpec, DenseSpec, ExpertsSpec, FfnSpec, MoeSpec, RouterSpec, SharedExpertSpec, SoftMoeSpec,
};
pub use switchyard_kernels::{
    Activation, BlockTopology, Compute, DispatchPlan, ExpertGradientSink, ExpertGradients, ExpertParallel,
    FfnOptions, RowExchange,
};
pub use switchyard_router::{CapacityConfig, DropPolicy};
pub use topology::TopologyKind;

//! What an expert does with its tokens: the dense feed-forward block, and the mixture of experts in its place.
//!
//! A token's way through a [`MoeLayer`]: the router chooses, [`DispatchPlan`] sorts, rows are gathered by expert, the
//! experts multiply, and the rows are combined with their gates.

mod activation;
mod config;
mod dense;
mod dispatch;
mod error;
mod grouped;
mod moe;

pub use activation::activate;
pub use config::{Activation, MoeConfig, MoeLayersConfig};
pub use dense::{DenseFfn, DenseFfnWeights};
pub use dispatch::DispatchPlan;
pub use error::MoeConfigError;
pub use grouped::{Experts, ExpertsWeights};
pub use moe::{Mode, MoeAux, MoeLayer, MoeOutput};
pub use switchyard_router::{CapacityConfig, DropPolicy};

//! What a user can get wrong about routing.

use thiserror::Error;

/// A value of the router's or the capacity's configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum RouterError {
    /// More experts per token than there are, or none.
    #[error(
        "`model.ffn.moe.router.top_k` is {top_k}, but the layer has {num_experts} experts: use 1..={num_experts}"
    )]
    TopKOutOfRange {
        /// As configured.
        top_k: usize,
        /// Experts of the layer.
        num_experts: usize,
    },
    /// Jitter that could turn the input's sign, or does nothing.
    #[error(
        "`model.ffn.moe.router.jitter` is {jitter}: use a number between 0 and 1, or remove the key to turn jitter off"
    )]
    JitterOutOfRange {
        /// As configured.
        jitter: f64,
    },
    /// A weight that is zero, negative or not a number.
    #[error(
        "`model.ffn.moe.router.{key}` is {weight}: use a positive number, or remove the key to turn the loss off"
    )]
    LossWeightOutOfRange {
        /// Last part of the key path.
        key: &'static str,
        /// As configured.
        weight: f64,
    },
    /// A capacity that leaves no room for any token, or is not a number.
    #[error(
        "`model.ffn.moe.capacity.factor` is {factor}: use a positive number, or remove the table for a dropless layer"
    )]
    CapacityFactorOutOfRange {
        /// As configured.
        factor: f64,
    },
}

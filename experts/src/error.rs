//! What a user can get wrong about a mixture of experts.

use switchyard_router::RouterError;
use thiserror::Error;

/// A value under `[model.ffn.moe]` that cannot be used.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum MoeConfigError {
    /// A number of experts or a width that is zero.
    #[error("`model.ffn.moe.{key}` is 0: use at least 1{}", if *.optional { ", or remove the key" } else { "" })]
    Zero {
        /// Last part of the key path.
        key: &'static str,
        /// Whether the key may be absent.
        optional: bool,
    },
    /// A granularity that does not cut experts into equal parts.
    #[error(
        "`model.ffn.moe.granularity` is {granularity}, which does not divide `model.ffn.moe.d_expert` = {d_expert}: use a \
         divisor"
    )]
    Granularity {
        /// As configured.
        granularity: usize,
        /// Width of an expert, as configured.
        d_expert: usize,
    },
    /// A gate of a shared expert that is not there.
    #[error(
        "`model.ffn.moe.shared_expert_gate` is true, but there is no shared expert: set \
         `model.ffn.moe.d_shared_expert`, or remove the key"
    )]
    SharedExpertGate,
    /// A mistake in the router's or the capacity's keys.
    #[error(transparent)]
    Router(#[from] RouterError),
}

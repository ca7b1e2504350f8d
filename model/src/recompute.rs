//! What a backward pass computes anew.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a backward pass computes anew, instead of keeping it from the forward pass: less memory, more
/// time, the same bits (arXiv:1604.06174).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// The up and gate projections of feed-forward blocks and experts.
    Ffn,
    /// Each block from its input, which alone is kept.
    Block,
}

impl Recompute {
    /// Whether everything is kept.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

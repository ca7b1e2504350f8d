//! A NaN or an infinity, and where it is.

use std::fmt;

/// Where a NaN or an infinity came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NonFinite {
    /// The layer; absent outside the layers (embedding, head, loss).
    pub layer: Option<usize>,
    /// The expert; absent outside the experts.
    pub expert: Option<usize>,
    /// What was computed, such as `router logits` or `gradient of experts.down_weight`.
    pub op: String,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.layer, self.expert) {
            (Some(layer), Some(expert)) => write!(f, "layer {layer} expert {expert}: {}", self.op),
            (Some(layer), None) => write!(f, "layer {layer}: {}", self.op),
            (None, _) => write!(f, "{}", self.op),
        }
    }
}

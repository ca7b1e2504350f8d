//! A NaN or an infinity, and where it is.

use std::fmt;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Where a NaN or an infinity came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NonFinite {
    /// The layer; `None` outside the layers (embedding, head, loss).
    pub layer: Option<usize>,
    /// The expert; `None` outside the experts.
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

/// Whether every element is a finite number.
pub(crate) fn is_finite(x_td: &Tensor<2>) -> bool {
    x_td.to_data().iter::<f32>().all(f32::is_finite)
}

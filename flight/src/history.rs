//! The part of a run's step rows that is compared and diagnosed.

/// One step of a run, without its clock.
#[derive(Debug, Clone, PartialEq)]
pub struct RunStep {
    /// Updates done, this one included.
    pub step: u64,
    /// Mean next-token cross-entropy, in nats.
    pub cross_entropy_nats: f64,
    /// Global norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// Load of each MoE layer, in the order of the layers.
    pub layers: Vec<LayerLoad>,
}

/// Where one layer sent its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerLoad {
    /// Index of the Transformer block, from 0.
    pub layer: usize,
    /// Tokens sent to each expert, dropped ones included.
    pub tokens_per_expert: Vec<u64>,
}

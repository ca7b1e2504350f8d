//! What a router reads, and why.

use burn::tensor::Tensor;

use crate::RouterNoise;

/// What a router reads.
#[derive(Debug, Clone)]
pub struct RouterInput<'a> {
    /// `[num_tokens, d_model]`.
    pub x_td: Tensor<2>,
    /// `[num_tokens]`, for routers that go by token id; may be empty for others.
    pub token_ids_t: &'a [u32],
    /// Tokens of one sequence, a divisor of the number of tokens.
    pub seq_len: usize,
    /// Why the tokens are routed.
    pub pass: RouterPass<'a>,
}

/// Why tokens are routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterPass<'a> {
    /// With noise, losses and capacity.
    Training {
        /// Random numbers of this router in this pass.
        noise: RouterNoise,
        /// Loads of the step's earlier micro-batches; empty if this is the first.
        earlier_tokens_per_expert: &'a [u64],
    },
    /// Without noise and losses.
    Evaluation,
    /// As evaluation, but no token may depend on a later one.
    Generation,
}

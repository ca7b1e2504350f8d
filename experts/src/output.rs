//! What a mixture returns.
//!
//! Shape letters: t tokens, d model width, e experts, k slots per token.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use switchyard_router::{AuxLoss, BalanceCount, Choice, PooledBalance, RouterStatistics};

/// What the layer returns.
#[derive(Debug)]
pub struct MoeOutput {
    /// The block's output, `[num_tokens, d]`.
    pub hidden_td: Tensor<2>,
    /// Losses and statistics of the routing.
    pub aux: MoeAux,
}

/// What the layer learnt besides its output.
#[derive(Debug)]
pub struct MoeAux {
    /// Losses with a weight; only while training.
    pub losses: Vec<AuxLoss>,
    /// Counts, gate statistics and dropped assignments.
    pub statistics: RouterStatistics,
    /// The layer's part in a load-balancing loss of all layers; only while training with one.
    pub pooled_balance: Option<PooledBalance>,
    /// What the router's bias is updated by; only while training a router with a bias.
    pub balance: Option<BalanceCount>,
    /// Who went where and why; `None` where tokens are mixed softly.
    pub route: Option<Route>,
}

/// Who went where and why, on the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Route {
    /// Logits of the gate, with jitter and noise where there are some and without the bias:
    /// `[t, e]`, row-major. Zeros if nothing is learned.
    pub logits_te: Vec<f64>,
    /// Experts of each token, before capacity.
    pub choice: Choice,
    /// Whether each slot reached its expert; `None` if all did.
    pub kept_tk: Option<Vec<bool>>,
}

//! Parameters and FLOPs of a feed-forward block, by arithmetic alone.
//!
//! Letters in formulas: d model width, f hidden width, e experts, k experts per token, p slots of
//! an expert per sequence, m matrices of a block (3 if gated, else 2).

use serde::{Deserialize, Serialize};
use switchyard_kernels::Activation;
use switchyard_router::{RouterConfig, Selection, expert_capacity};

use crate::{BlockSparseSpec, DenseSpec, ExpertsSpec, FfnSpec, MoeSpec};

/// What a forward pass goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassSize {
    /// Tokens of a micro-batch, which experts that choose their tokens share.
    pub micro_batch_tokens: usize,
    /// Tokens of a sequence, which soft mixing takes means of.
    pub seq_len: usize,
}

/// Parameters of a feed-forward block by part, or of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FfnParams {
    /// Dense blocks: m d f, and biases.
    pub dense: u64,
    /// Block-sparse blocks: m n b b for n blocks of side b.
    pub block_sparse: u64,
    /// Routers: d e for a linear gate, twice that with learned noise, d e p for soft mixing, d c +
    /// c e + 1 for a cosine gate of width c, nothing where nothing is learned; biases of logits e,
    /// with a gated shared expert d more. An expert bias, which is not learned, is not counted.
    pub router: u64,
    /// Routed experts: e m d f, and biases.
    pub routed_experts: u64,
    /// Those of them that take part in one token's pass. Where experts choose tokens, the mean over
    /// the tokens of a micro-batch; where tokens are mixed softly, all.
    pub active_experts: u64,
    /// Shared experts: m d f, and biases.
    pub shared_experts: u64,
}

/// Floating-point operations of one token in a block's forward pass by part, a multiply and an add
/// counted as two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FfnFlops {
    /// Dense blocks.
    pub dense: u64,
    /// Block-sparse blocks.
    pub block_sparse: u64,
    /// Routers.
    pub router: u64,
    /// Routed experts: 2 m d f for each of the experts that compute for the token.
    pub routed_experts: u64,
    /// The two products of soft mixing, tokens to slots and slots back to tokens: 4 d per slot of
    /// the token's sequence.
    pub soft_mixing: u64,
    /// Shared experts.
    pub shared_experts: u64,
}

/// Rows that the routed experts of a layer multiply in a pass: the assignments, or the slots of
/// mixed tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertWork {
    /// Rows of all experts together.
    pub rows: u64,
    /// For so many tokens.
    pub tokens: u64,
}

impl ExpertWork {
    /// Experts that work on one token, on average.
    pub fn per_token(self) -> f64 {
        self.rows as f64 / self.tokens as f64
    }

    /// What one token costs if a row costs `cost_of_row`, rounded to a whole number.
    fn cost_per_token(self, cost_of_row: u64) -> u64 {
        // In 128 bits: millions of slots for a sequence of one token are absurd, but no reason to
        // wrap around.
        let cost = u128::from(self.rows) * u128::from(cost_of_row) + u128::from(self.tokens / 2);
        u64::try_from(cost / u128::from(self.tokens)).unwrap_or(u64::MAX)
    }
}

impl FfnSpec {
    /// The work of the routed experts in a pass; `None` unless the block is a mixture.
    pub fn expert_work(&self, pass: PassSize) -> Option<ExpertWork> {
        let (rows, tokens) = match self {
            Self::Dense(_) | Self::BlockSparse(_) | Self::Absent => return None,
            Self::SoftMoe(soft) => (soft.experts.num_experts * soft.slots_per_expert, pass.seq_len),
            Self::Moe(moe) => match &moe.router.config.selection {
                Selection::ExpertChoice(config) => {
                    let (k, t, e) =
                        (moe.router.config.top_k, pass.micro_batch_tokens, moe.experts.num_experts);
                    (e * expert_capacity(config.capacity_factor, k, t, e).min(t), t)
                }
                _ => (moe.router.config.top_k, 1),
            },
        };
        Some(ExpertWork { rows: rows as u64, tokens: tokens as u64 })
    }

    /// Parameters of the block between residual streams of width `d_model`.
    pub fn params(&self, d_model: usize, pass: PassSize) -> FfnParams {
        match self {
            Self::Absent => FfnParams::default(),
            Self::Dense(dense) => FfnParams { dense: dense.params(d_model), ..FfnParams::default() },
            Self::BlockSparse(sparse) => {
                FfnParams { block_sparse: sparse.params(d_model), ..FfnParams::default() }
            }
            Self::Moe(moe) => {
                let router = gate_params(&moe.router.config, d_model, moe.experts.num_experts);
                let one = moe.experts.params_of_one(d_model);
                let active = self.expert_work(pass).map_or(0, |work| work.cost_per_token(one));
                moe.experts.params(d_model, router + gate_vectors(moe), active)
            }
            Self::SoftMoe(soft) => {
                let all = soft.experts.num_experts as u64 * soft.experts.params_of_one(d_model);
                soft.experts.params(d_model, soft_gate_params(soft.num_slots(), d_model), all)
            }
        }
    }

    /// Operations of one token in the forward pass.
    pub fn forward_flops(&self, d_model: usize, pass: PassSize) -> FfnFlops {
        let params = self.params(d_model, pass);
        let (vectors, num_slots, experts) = match self {
            Self::Absent => return FfnFlops::default(),
            Self::Dense(dense) => {
                return FfnFlops { dense: 2 * dense.matrix_params(d_model), ..FfnFlops::default() };
            }
            Self::BlockSparse(_) => {
                return FfnFlops { block_sparse: 2 * params.block_sparse, ..FfnFlops::default() };
            }
            Self::Moe(moe) => (gate_vectors(moe), 0, &moe.experts),
            Self::SoftMoe(soft) => (0, soft.num_slots(), &soft.experts),
        };
        let one = experts.matrix_params_of_one(d_model);
        let shared = experts.shared_block().map_or(0, |block| block.matrix_params(d_model));
        FfnFlops {
            router: 2 * (params.router - vectors),
            routed_experts: self.expert_work(pass).map_or(0, |work| work.cost_per_token(2 * one)),
            soft_mixing: 4 * d_model as u64 * num_slots,
            shared_experts: 2 * shared,
            ..FfnFlops::default()
        }
    }
}

impl DenseSpec {
    fn matrix_params(&self, d_model: usize) -> u64 {
        matrices(self.activation) * (d_model * self.d_ff) as u64
    }

    fn params(&self, d_model: usize) -> u64 {
        let biases = if self.bias { bias_params(self.activation, d_model, self.d_ff) } else { 0 };
        self.matrix_params(d_model) + biases
    }
}

impl BlockSparseSpec {
    fn params(&self, d_model: usize) -> u64 {
        let block = self.matrices.block;
        matrices(self.activation) * (self.matrices.num_blocks(d_model) * block * block) as u64
    }
}

impl ExpertsSpec {
    /// Parameters of the matrices of one routed expert.
    fn matrix_params_of_one(&self, d_model: usize) -> u64 {
        matrices(self.activation) * (d_model * self.d_expert) as u64
    }

    /// Parameters of one routed expert.
    fn params_of_one(&self, d_model: usize) -> u64 {
        let biases = if self.bias { bias_params(self.activation, d_model, self.d_expert) } else { 0 };
        self.matrix_params_of_one(d_model) + biases
    }

    /// The shared expert as the dense block that it is.
    fn shared_block(&self) -> Option<DenseSpec> {
        let shared = self.shared.as_ref()?;
        Some(DenseSpec { activation: self.activation, d_ff: shared.d_expert, bias: shared.bias })
    }

    fn params(&self, d_model: usize, gate: u64, active_experts: u64) -> FfnParams {
        let d = d_model as u64;
        let shared_gate = if self.shared.as_ref().is_some_and(|shared| shared.is_gated) { d } else { 0 };
        FfnParams {
            router: gate + shared_gate,
            routed_experts: self.num_experts as u64 * self.params_of_one(d_model),
            active_experts,
            shared_experts: self.shared_block().map_or(0, |block| block.params(d_model)),
            ..FfnParams::default()
        }
    }
}

/// Biases of all projections of a block.
fn bias_params(activation: Activation, d_model: usize, d_hidden: usize) -> u64 {
    (matrices(activation) - 1) * d_hidden as u64 + d_model as u64
}

/// Matrices of a feed-forward block.
pub(crate) fn matrices(activation: Activation) -> u64 {
    if activation.is_gated() { 3 } else { 2 }
}

/// Parameters of the matrices of a gate that sends tokens.
fn gate_params(router: &RouterConfig, d_model: usize, num_experts: usize) -> u64 {
    let (d, e) = (d_model as u64, num_experts as u64);
    match (&router.selection, &router.cosine) {
        (Selection::Hash(_) | Selection::Random {} | Selection::ForcedUniform {}, _) => 0,
        (Selection::Noisy(_), None) => 2 * d * e,
        (_, None) => d * e,
        (selection, Some(cosine)) => {
            let noise = if matches!(selection, Selection::Noisy(_)) { d * e } else { 0 };
            (d + e) * cosine.d_projection as u64 + noise
        }
    }
}

/// The parameters of a gate that are no matrix: a cosine gate's factor, or biases of the logits.
fn gate_vectors(moe: &MoeSpec) -> u64 {
    let router = &moe.router.config;
    let biases = if router.gate_bias { moe.experts.num_experts as u64 } else { 0 };
    u64::from(router.cosine.is_some()) + biases
}

fn soft_gate_params(num_slots: u64, d_model: usize) -> u64 {
    d_model as u64 * num_slots
}

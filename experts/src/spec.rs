//! The feed-forward block of one layer with nothing left open: what the keys under `[model.ffn]`
//! mean there.

use serde::{Deserialize, Serialize};
use switchyard_kernels::Activation;
use switchyard_router::{CapacityConfig, RouterConfig, Selection};

use crate::{BlockSparseConfig, MoeConfig};

/// The feed-forward block of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FfnSpec {
    /// One block for every token.
    Dense(DenseSpec),
    /// Experts that tokens are sent to.
    Moe(MoeSpec),
    /// Experts that work on weighted means of the tokens.
    SoftMoe(SoftMoeSpec),
    /// One block for every token, with block-sparse matrices.
    BlockSparse(BlockSparseSpec),
    /// No block: the layer is what mixes tokens, and nothing else.
    Absent,
}

/// A block that every token goes through.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DenseSpec {
    /// Non-linearity.
    pub activation: Activation,
    /// Hidden width.
    pub d_ff: usize,
    /// Biases on all projections.
    pub bias: bool,
}

/// A block whose matrices have only some of their blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockSparseSpec {
    /// Non-linearity.
    pub activation: Activation,
    /// Width, and which blocks are there.
    pub matrices: BlockSparseConfig,
}

/// A mixture that sends each token to some experts, or each expert to some tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MoeSpec {
    /// The experts.
    pub experts: ExpertsSpec,
    /// Who goes where.
    pub router: RouterSpec,
    /// Limit on the tokens of an expert; `None` is dropless.
    pub capacity: Option<CapacityConfig>,
}

/// A mixture whose experts see means of a sequence's tokens (arXiv:2308.00951).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SoftMoeSpec {
    /// The experts.
    pub experts: ExpertsSpec,
    /// What weighs the means.
    pub router: RouterSpec,
    /// Means that each expert works on, per sequence.
    pub slots_per_expert: usize,
}

/// The experts of a mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExpertsSpec {
    /// Non-linearity, also of the shared expert.
    pub activation: Activation,
    /// Routed experts.
    pub num_experts: usize,
    /// Hidden width of one of them.
    pub d_expert: usize,
    /// As how many fine-grained experts one was written; applied already, and kept for people to
    /// read.
    pub granularity: Option<usize>,
    /// Biases on the routed experts' projections.
    #[serde(default)]
    pub bias: bool,
    /// The expert that sees every token; `None` without one.
    pub shared: Option<SharedExpertSpec>,
}

/// An expert that sees every token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SharedExpertSpec {
    /// Hidden width.
    pub d_expert: usize,
    /// Whether a sigmoid gate weighs its output.
    pub is_gated: bool,
    /// Biases on its projections.
    #[serde(default)]
    pub bias: bool,
}

/// A router, and where it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RouterSpec {
    /// The key, such as `model.ffn.moe.router_overrides[0].router`, for messages.
    pub key: String,
    /// How experts are chosen.
    pub config: RouterConfig,
}

/// Routers are equal if they do the same, wherever they are written.
impl PartialEq for RouterSpec {
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config
    }
}

impl FfnSpec {
    /// The mixture that `written`, its granularity applied, is in `layer`, with `seq_len` tokens in
    /// the longest sequence.
    pub fn mixture(written: &MoeConfig, layer: usize, activation: Activation, seq_len: usize) -> Self {
        let experts = ExpertsSpec {
            activation,
            num_experts: written.num_experts,
            d_expert: written.d_expert,
            granularity: written.granularity,
            bias: written.expert_bias,
            shared: written.d_shared_expert.map(|d_expert| SharedExpertSpec {
                d_expert,
                is_gated: written.shared_expert_gate,
                bias: written.shared_expert_bias,
            }),
        };
        let config = written.router_of(layer).clone();
        let key = format!("model.ffn.moe.{}", written.router_key_of(layer));
        match &config.selection {
            Selection::Soft(soft) => {
                // As many slots as give the work of `top_k` experts per token, unless configured.
                let equal_work = (config.top_k * seq_len).div_ceil(written.num_experts);
                let slots_per_expert = soft.slots_per_expert.unwrap_or(equal_work);
                Self::SoftMoe(SoftMoeSpec { experts, router: RouterSpec { key, config }, slots_per_expert })
            }
            _ => Self::Moe(MoeSpec {
                experts,
                router: RouterSpec { key, config },
                capacity: written.capacity.clone(),
            }),
        }
    }

    /// The experts and their router; `None` unless the block is a mixture.
    pub fn routed(&self) -> Option<(&ExpertsSpec, &RouterSpec)> {
        match self {
            Self::Moe(moe) => Some((&moe.experts, &moe.router)),
            Self::SoftMoe(soft) => Some((&soft.experts, &soft.router)),
            Self::Dense(_) | Self::BlockSparse(_) | Self::Absent => None,
        }
    }

    /// The router; `None` unless the block is a mixture.
    pub fn router(&self) -> Option<&RouterSpec> {
        self.routed().map(|(_, router)| router)
    }

    /// The non-linearity; `None` without a block.
    pub fn activation(&self) -> Option<Activation> {
        match self {
            Self::Dense(dense) => Some(dense.activation),
            Self::Moe(moe) => Some(moe.experts.activation),
            Self::SoftMoe(soft) => Some(soft.experts.activation),
            Self::BlockSparse(sparse) => Some(sparse.activation),
            Self::Absent => None,
        }
    }
}

impl SoftMoeSpec {
    /// Slots of all experts per sequence.
    pub fn num_slots(&self) -> u64 {
        (self.experts.num_experts * self.slots_per_expert) as u64
    }
}

//! Which expert gets which token, and why: the choice, its gates, capacity, balancing losses and
//! statistics.
//!
//! Everything the router learns is a return value ([`Routing`]); nothing is kept between calls.

mod bias;
mod capacity;
mod choice;
mod config;
mod control;
mod draw;
mod expert_choice;
mod gate;
mod groups;
mod hash;
mod host;
mod input;
mod losses;
mod noise;
mod quantile;
mod router;
mod second_expert;
mod selection;
mod sinkhorn;
mod sparse_mixer;
mod statistics;
mod token_rounding;
mod validate;

pub use bias::BiasUpdate;
pub use capacity::{expert_capacity, keep_earliest, keep_largest_gates, keep_random};
pub use choice::Choice;
pub use config::{
    BalancingScope, BiasRateConfig, BiasRule, CapacityConfig, CosineConfig, DropPolicy, ExpertChoiceConfig,
    GatePrecision, GenerationRule, HashConfig, NoisyConfig, RandomSecondConfig, RouterConfig, RouterSource,
    Selection, SigmoidConfig, SoftConfig, SoftmaxOrder, SparseMixerConfig, TokenRoundingConfig,
};
pub use control::{forced_uniform_experts, random_experts};
pub use expert_choice::{ExpertChoice, expert_choice};
pub use gate::{CosineGate, CosineWeights, GateWeights};
pub use groups::{ExpertGroups, GroupScore};
pub use hash::TokenHash;
pub use input::{RouterInput, RouterPass, Sequences};
pub use losses::{AuxLoss, AuxLossKind, PooledBalance, load_balancing_loss, router_z_loss};
pub use noise::RouterNoise;
pub use quantile::QuantileHistogram;
pub use router::{BalanceCount, Router, Routing};
pub use second_expert::{keep_second_at_random, sample_second_expert};
pub use selection::select_top_k;
pub use sinkhorn::{SinkhornConfig, sinkhorn_plan};
pub use sparse_mixer::sparse_mixer_gates;
pub use statistics::{RouterStatistics, RouterSummary};
pub use token_rounding::round_tokens;

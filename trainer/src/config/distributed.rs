//! `[distributed]`: how several processes share a run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[distributed]`: how the ranks of a run, processes that an MPI launcher starts, share it. Without
/// a launcher it means nothing, and whatever it says the numbers are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DistributedConfig {
    /// Ranks over which the experts of each layer are spread: neighbours, each with as many experts
    /// as the others. What is not expert is on every rank, and the groups of so many ranks are
    /// replicas of each other. Default 1: every rank has all experts.
    #[serde(default = "one")]
    pub expert_parallel: usize,
    /// Seconds without a sign of life from a rank after which the job ends; default 3.
    #[serde(default = "default_silence_secs")]
    pub silence_secs: u64,
    /// Seconds after which the job ends because ranks that are alive do not come to where others wait
    /// for them; default 3600.
    #[serde(default = "default_timeout_secs")]
    pub timeout_secs: u64,
}

impl Default for DistributedConfig {
    fn default() -> Self {
        Self {
            expert_parallel: one(),
            silence_secs: default_silence_secs(),
            timeout_secs: default_timeout_secs(),
        }
    }
}

impl DistributedConfig {
    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn one() -> usize {
    1
}

fn default_silence_secs() -> u64 {
    3
}

fn default_timeout_secs() -> u64 {
    3600
}

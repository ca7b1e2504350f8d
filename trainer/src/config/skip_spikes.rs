//! `[train.skip_spikes]`: which steps are not taken.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[train.skip_spikes]`: what a spike is (arXiv:2501.00656, section 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SkipSpikesConfig {
    /// Steps that a step is compared with, the last ones; default 128. Nothing is skipped before half
    /// of them are done.
    #[serde(default = "default_spike_window_steps")]
    pub window_steps: usize,
    /// Standard deviations above their mean from which a loss or a gradient norm is a spike; default 6.
    #[serde(default = "default_spike_deviations")]
    pub deviations: f64,
}

fn default_spike_window_steps() -> usize {
    128
}

fn default_spike_deviations() -> f64 {
    6.0
}

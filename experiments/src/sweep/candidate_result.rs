//! What became of a candidate.

use serde::{Deserialize, Serialize};

use super::candidates::Source;

/// One candidate and its runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CandidateResult {
    /// Its name: the beginning of its run folders' names.
    pub(crate) candidate: String,
    /// Its label in the sweep's list.
    pub(crate) label: Option<String>,
    /// Where it comes from.
    pub(crate) source: Source,
    /// What it changes, besides what all change: `key=value`.
    pub(crate) overrides: Vec<String>,
    /// The rounds it took part in, the shortest first.
    pub(crate) rungs: Vec<RungResult>,
    /// After how many steps and why it was stopped; `None` if it finished at full length.
    pub(crate) stopped: Option<String>,
}

/// A candidate in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RungResult {
    /// Optimizer steps of the runs.
    pub(crate) num_steps: u64,
    /// Mean of the final validation losses over the seeds; `None` if a run diverged.
    pub(crate) mean_loss_nats: Option<f64>,
    /// Place in the round, from 1.
    pub(crate) rank: usize,
    /// Candidates in the round.
    pub(crate) num_candidates: usize,
    /// Its runs.
    pub(crate) runs: Vec<RunOutcome>,
}

/// How one run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunOutcome {
    /// Seed.
    pub(crate) seed: u64,
    /// Run folder, relative to the sweep's.
    pub(crate) run: String,
    /// Validation cross-entropy of the last model over the whole split; `None` if the run diverged.
    pub(crate) final_loss_nats: Option<f64>,
    /// Why the run diverged.
    pub(crate) diverged: Option<String>,
}

impl CandidateResult {
    /// Whether its last round has no loss.
    pub(crate) fn has_diverged(&self) -> bool {
        self.rungs.last().is_some_and(|rung| rung.mean_loss_nats.is_none())
    }

    /// Its mean loss at full length.
    pub(crate) fn final_loss(&self, num_steps: u64) -> Option<f64> {
        self.rungs.last().filter(|rung| rung.num_steps == num_steps).and_then(|rung| rung.mean_loss_nats)
    }
}

//! Where a run is, apart from parameters and moments.

use serde::{Deserialize, Serialize};

use crate::config::RunConfig;
use crate::flight::FlightState;
use crate::metrics::LogMark;
use crate::plan::RunPlan;
use crate::spikes::SpikeHistory;

/// Where a run is, apart from parameters and moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    /// Updates done.
    pub step: u64,
    /// Training tokens seen.
    pub tokens_seen: u64,
    /// Index of the next training sample.
    pub data_cursor: u64,
    /// Content hash of the prepared data.
    pub data_hash: String,
    /// Active training FLOPs spent.
    pub active_flops: f64,
    /// Seconds spent training, over all processes of the run.
    pub train_secs: f64,
    /// State of the random numbers.
    pub rng: RngState,
    /// Best evaluation so far, as early stopping counts it.
    pub best: Option<LoggedEvaluation>,
    /// Best evaluation after which a checkpoint was written, which stays on disk.
    pub best_checkpoint: Option<LoggedEvaluation>,
    /// Latest evaluation between steps, if it covered the whole split: at the end of the run it
    /// need not be repeated.
    pub whole_split: Option<LoggedEvaluation>,
    /// Evaluations in a row without improvement, for early stopping.
    pub evals_without_improvement: u32,
    /// Whether the evaluation after this step is still to be done: the run was stopped within it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub evaluation_is_pending: bool,
    /// The log as it was when this was written; `None` in checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_log: Option<LogMark>,
    /// Lowest validation loss so far, what `run.json` calls the best; known where
    /// [`TrainingState::metrics_log`] is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_validation: Option<LoggedEvaluation>,
    /// Losses and gradient norms that spikes are told by; `None` unless `train.skip_spikes` asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spikes: Option<SpikeHistory>,
    /// What the flight recorder remembers; `None` without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flight: Option<FlightState>,
}

/// State of the random numbers: each is a pure function of the seed, the step and its place in the
/// model, so these two numbers are all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    /// Seed of the run.
    pub seed: u64,
    /// Step whose numbers come next, counted from 0.
    pub next_step: u64,
}

/// An evaluation between steps, as the log has it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoggedEvaluation {
    /// Updates done.
    pub step: u64,
    /// Validation cross-entropy, in nats.
    pub cross_entropy_nats: f64,
}

impl TrainingState {
    /// The state of a run that has done nothing.
    pub fn initial(seed: u64, data_hash: &str) -> Self {
        Self {
            step: 0,
            tokens_seen: 0,
            data_cursor: 0,
            data_hash: data_hash.to_string(),
            active_flops: 0.0,
            train_secs: 0.0,
            rng: RngState { seed, next_step: 0 },
            best: None,
            best_checkpoint: None,
            whole_split: None,
            evals_without_improvement: 0,
            evaluation_is_pending: false,
            metrics_log: None,
            best_validation: None,
            spikes: None,
            flight: None,
        }
    }

    /// Updates of the optimizer: steps that were not skipped.
    pub fn updates(&self) -> u64 {
        self.step.saturating_sub(self.spikes.as_ref().map_or(0, |spikes| spikes.skipped_steps))
    }

    /// Ok if these are the counters of a run of `config` and `plan`, all of which follow from the
    /// number of steps; else what is wrong with them.
    pub(super) fn check(&self, config: &RunConfig, plan: &RunPlan) -> Result<(), String> {
        let per_step = |count: usize| (count as u64).checked_mul(self.step);
        let samples_per_step = plan.micro_batches_per_step * plan.sequences_per_micro_batch;
        let wanted = [
            ("tokens_seen", self.tokens_seen, per_step(plan.tokens_per_step)),
            ("data_cursor", self.data_cursor, per_step(samples_per_step)),
            ("rng.next_step", self.rng.next_step, Some(self.step)),
            ("rng.seed", self.rng.seed, Some(config.seed)),
        ];
        for (name, found, wanted) in wanted {
            if wanted != Some(found) {
                let wanted = wanted.map_or_else(|| "none".to_string(), |wanted| wanted.to_string());
                return Err(format!("`{name}` is {found}, after {} steps it is {wanted}", self.step));
            }
        }
        let is_amount = |value: f64| value.is_finite() && value >= 0.0;
        if !is_amount(self.train_secs) || !is_amount(self.active_flops) {
            let (secs, flops) = (self.train_secs, self.active_flops);
            return Err(format!("`train_secs` is {secs} and `active_flops` is {flops}"));
        }
        Ok(())
    }
}

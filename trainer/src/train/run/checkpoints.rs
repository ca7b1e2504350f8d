//! What a run does about its checkpoints.

use std::sync::Arc;
use std::time::Instant;

use switchyard_datasets::Tokenizer;

use super::Run;
use crate::TrainError;
use crate::checkpoint::{CheckpointError, CheckpointStore, CheckpointWriter, HeldSnapshot, Outcome};
use crate::config::RunConfig;
use crate::flight::FlightRecorder;
use crate::plan::RunPlan;
use crate::ranks::Order;
use crate::run_folder::RunFolderError;

/// Where a run's checkpoints are, who writes them, and what each of them holds.
pub(super) struct Checkpoints {
    pub(super) store: CheckpointStore,
    writer: CheckpointWriter,
    /// Checkpoints on the way are written while the run goes on.
    beside_the_loop: bool,
    // What each of them holds, shared with the thread that writes.
    config: Arc<RunConfig>,
    plan: Arc<RunPlan>,
    tokenizer: Arc<Tokenizer>,
}

impl Checkpoints {
    pub(super) fn new(
        store: CheckpointStore,
        (config, plan): (&RunConfig, &RunPlan),
        tokenizer: &Tokenizer,
        beside_the_loop: bool,
    ) -> Self {
        Self {
            store,
            writer: CheckpointWriter::default(),
            beside_the_loop,
            config: Arc::new(config.clone()),
            plan: Arc::new(plan.clone()),
            tokenizer: Arc::new(tokenizer.clone()),
        }
    }

    /// Whether those on the way are written while the run goes on: there is memory for it.
    pub(super) fn go_beside_the_loop(&self) -> bool {
        self.beside_the_loop
    }

    /// Begins to write one, after the one before has been waited for.
    fn begin(&mut self, snapshot: HeldSnapshot) -> Option<Outcome> {
        self.writer.begin(&self.store, snapshot)
    }

    /// What became of the one that is being written, once it is known.
    pub(super) fn outcome(&mut self) -> Option<Outcome> {
        self.writer.outcome()
    }
}

impl Run<'_> {
    /// Has a checkpoint of the run as it stands written while it goes on, after the one before, if
    /// that is still being written.
    pub(super) fn begin_checkpoint(&mut self) -> Result<(), TrainError> {
        self.settle_begun()?;
        let begun = Instant::now();
        // Before the logs: what lies at their paths may be another run's by now.
        self.folder.check_held()?;
        self.sync_logs()?;
        let snapshot = self.snapshot()?;
        let outcome = self.checkpoints.begin(snapshot);
        self.manifest.checkpoint_stall_secs += begun.elapsed().as_secs_f64();
        outcome.map_or(Ok(()), |outcome| self.settle(outcome))?;
        if self.checkpoints.beside_the_loop { Ok(()) } else { self.settle_begun() }
    }

    /// Writes a checkpoint of the run as it stands.
    pub(super) fn save_checkpoint(&mut self) -> Result<(), TrainError> {
        self.begin_checkpoint()?;
        self.settle_begun()
    }

    /// Waits for the checkpoint that is being written.
    pub(super) fn settle_begun(&mut self) -> Result<(), TrainError> {
        let begun = Instant::now();
        let outcome = self.checkpoints.writer.wait();
        self.manifest.checkpoint_stall_secs += begun.elapsed().as_secs_f64();
        outcome.map_or(Ok(()), |outcome| self.settle(outcome))
    }

    /// What there is to do about a checkpoint that is written, or is not.
    pub(super) fn settle(&mut self, outcome: Outcome) -> Result<(), TrainError> {
        let begun = Instant::now();
        self.tolerate(outcome.map(drop).map_err(TrainError::from))?;
        self.retain_checkpoints()?;
        self.update_manifest();
        let written = self.folder.write_manifest(&self.manifest);
        self.manifest.checkpoint_stall_secs += begun.elapsed().as_secs_f64();
        self.tolerate(written.map_err(TrainError::from))
    }

    /// Force all logs to the disk, so that no checkpoint is ahead of them.
    fn sync_logs(&mut self) -> Result<(), TrainError> {
        self.observers.sync()?;
        if let Some(recorder) = &mut self.recorder {
            let notes = recorder.sync()?;
            notes.iter().for_each(|note| self.observers.note(note));
        }
        Ok(())
    }

    /// The run as it stands, for a checkpoint.
    fn snapshot(&mut self) -> Result<HeldSnapshot, TrainError> {
        self.parts.state.train_secs = self.elapsed_secs();
        self.parts.state.metrics_log = Some(self.observers.log_mark());
        self.parts.state.best_validation = self.manifest.best_validation();
        self.parts.state.flight = self.recorder.as_ref().map(FlightRecorder::state);
        self.parts.ranks.order(&Order::GatherMoments)?;
        let optimizer = self.parts.ranks.whole_optimizer(&self.parts.optimizer, &self.device)?;
        Ok(HeldSnapshot {
            model: self.whole_model()?,
            optimizer: optimizer.unwrap_or_else(|| unreachable!("the first rank has what all remember")),
            carried: self.parts.carried.clone(),
            state: self.parts.state.clone(),
            config: self.checkpoints.config.clone(),
            plan: self.checkpoints.plan.clone(),
            tokenizer: self.checkpoints.tokenizer.clone(),
        })
    }

    pub(super) fn retain_checkpoints(&mut self) -> Result<(), TrainError> {
        let kept = &self.plan.checkpoints;
        let best_step = self.parts.state.best_checkpoint.filter(|_| kept.keep_best).map(|best| best.step);
        let retained = self.checkpoints.store.retain(kept.keep_last, best_step);
        self.tolerate(retained.map_err(TrainError::from))
    }

    /// The result, where an error about something around a checkpoint that is whole is said once
    /// instead.
    pub(super) fn tolerate(&mut self, result: Result<(), TrainError>) -> Result<(), TrainError> {
        match result {
            Err(
                error @ (TrainError::Checkpoint(CheckpointError::Untidy { .. })
                | TrainError::RunFolder(RunFolderError::Io { .. })),
            ) => {
                if !self.has_complained {
                    self.observers.note(&format!("{error}. The run goes on"));
                    self.has_complained = true;
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Save what there is of a run that ends in `error`, if its model is as it should be.
    pub(super) fn rescue(&mut self, error: &TrainError) {
        let step = self.parts.state.step;
        // What became of the one before does not matter: this one is newer.
        drop(self.checkpoints.writer.wait());
        let is_saved = self.checkpoints.store.steps().is_ok_and(|steps| steps.last() == Some(&step));
        if !error.leaves_the_model_whole() || is_saved || self.folder.check_held().is_err() {
            return;
        }
        // A log that still cannot be written is no reason to lose the steps: the next start will
        // say what is missing.
        drop(self.sync_logs());
        let written = self.snapshot().and_then(|snapshot| {
            let outcome = self.checkpoints.begin(snapshot).or_else(|| self.checkpoints.writer.wait());
            outcome.map_or(Ok(()), |outcome| self.settle(outcome))
        });
        match written {
            Ok(()) => self.observers.note(&format!("the checkpoint of step {step} is written all the same")),
            Err(second) => self.observers.note(&second.to_string()),
        }
    }
}

//! A run folder that waits for its first step: what upcycling and importing leave behind.

use std::path::{Path, PathBuf};

use switchyard_datasets::Tokenizer;
use switchyard_model::Transformer;

use crate::TrainError;
use crate::checkpoint::{CheckpointStore, Snapshot, TrainingState};
use crate::config::RunConfig;
use crate::metrics::MetricsFile;
use crate::optimizer::Optimizer;
use crate::plan::RunPlan;
use crate::run_folder::{OpenMode, RunFolder, RunManifest, RunStatus};

/// A network that a run begins with, and what the run is to be.
pub(crate) struct StepZero<'a> {
    pub(crate) config: &'a RunConfig,
    pub(crate) plan: &'a RunPlan,
    pub(crate) model: &'a Transformer,
    pub(crate) tokenizer: &'a Tokenizer,
    /// Content hash of the prepared data; empty if there is none.
    pub(crate) data_key: &'a str,
}

impl StepZero<'_> {
    /// `run.json` of a run that waits to be resumed.
    pub(crate) fn manifest(&self) -> RunManifest {
        let Self { config, plan, data_key, .. } = self;
        let value = serde_json::to_value(config).unwrap_or_default();
        let plan = serde_json::to_value(plan).unwrap_or_default();
        let mut manifest = RunManifest::starting(value, plan, config.seed, &config.device);
        manifest.data_key = Some((*data_key).to_owned()).filter(|key| !key.is_empty());
        manifest.end(RunStatus::Interrupted);
        manifest
    }

    /// Writes the run folder `out` with a checkpoint of step 0, a fresh optimizer and an empty log;
    /// returns the checkpoint's place.
    ///
    /// # Errors
    /// If the folder cannot be written, or holds what `mode` does not allow.
    pub(crate) fn write(
        &self,
        out: &Path,
        mode: OpenMode,
        manifest: &RunManifest,
    ) -> Result<PathBuf, TrainError> {
        let Self { config, plan, model, tokenizer, data_key } = *self;
        let folder = RunFolder::create(out, mode)?;
        // First of all: a folder that a kill leaves behind is known for a run, and for one without
        // checkpoints.
        folder.write_manifest(manifest)?;
        folder.write_config(&crate::config_file::to_toml(config))?;
        let (log, _) = MetricsFile::create(&folder.paths().metrics())?;
        let mut state = TrainingState::initial(config.seed, data_key);
        state.metrics_log = Some(log.mark());
        let optimizer = Optimizer::new(&config.train, &plan.model);
        let snapshot =
            Snapshot { model, optimizer: &optimizer, carried: None, state: &state, config, plan, tokenizer };
        Ok(CheckpointStore::open(&folder.paths().checkpoints())?.save(&snapshot)?)
    }
}

//! The run folder that an upcycled model begins in.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use switchyard_datasets::{Dataset, Progress, Tokenizer};

use super::source::DenseSource;
use super::{UpcycleError, UpcycleSettings, check, deviation_from_dense, upcycled_model};
use crate::TrainError;
use crate::checkpoint::{CheckpointStore, Snapshot, TrainingState};
use crate::config::RunConfig;
use crate::device;
use crate::metrics::MetricsFile;
use crate::moved_data;
use crate::optimizer::AdamW;
use crate::plan::RunPlan;
use crate::run_folder::{OpenMode, RunFolder, RunManifest, RunStatus, UpcycledFrom};

/// What to upcycle, and where to.
#[derive(Debug, Clone)]
pub struct UpcycleRequest {
    /// The configuration of the mixture.
    pub config: RunConfig,
    /// What it resolves to.
    pub plan: RunPlan,
    /// Run folder to begin.
    pub out: PathBuf,
    /// What to do with a run that is there already.
    pub mode: OpenMode,
    /// How.
    pub settings: UpcycleSettings,
    /// Show progress on standard error.
    pub show_progress: bool,
    /// Set by Ctrl-C while data is prepared.
    pub stop: Arc<AtomicBool>,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct UpcycleSummary {
    /// The checkpoint of step 0.
    pub checkpoint: PathBuf,
    /// Why the mixture does not start as the dense model's function; `None` if it does.
    pub deviation: Option<String>,
    /// Whether the data is what the dense model was trained on.
    pub same_data: bool,
}

/// Begin a run from the model of `dense`: a run folder with a checkpoint of step 0, fresh
/// optimizer and schedule, for `train` to resume.
///
/// # Errors
/// [`TrainError`]; a mistake in the configuration, the model or the data leaves no folder
/// behind.
pub fn upcycle(dense: &DenseSource, request: &UpcycleRequest) -> Result<UpcycleSummary, TrainError> {
    let UpcycleRequest { config, plan, out, mode, settings, .. } = request;
    check::check(&dense.spec, &plan.model, settings.method)?;
    RunFolder::check(out, *mode)?;
    let dataset = prepared_data(dense, request)?;
    let device = device::select(&config.device)?;
    let model = upcycled_model(dense.model(), &plan.model, *settings, &device)?;
    let mut manifest = manifest(dense, request);
    manifest.data_key = Some(dataset.manifest.key.clone());
    let folder = RunFolder::create(out, *mode)?;
    // First of all: a folder that a kill leaves behind is known for a run, and for one without
    // checkpoints.
    folder.write_manifest(&manifest)?;
    folder.write_config(&crate::config_file::to_toml(config))?;
    let (log, _) = MetricsFile::create(&folder.paths().metrics())?;
    let mut state = TrainingState::initial(config.seed, &dataset.manifest.key);
    state.metrics_log = Some(log.mark());
    let written = CheckpointStore::open(&folder.paths().checkpoints())?.save(&Snapshot {
        model: &model,
        optimizer: &AdamW::new(&config.train.adamw),
        carried: None,
        state: &state,
        config,
        plan,
        tokenizer: &dataset.tokenizer,
    })?;
    Ok(UpcycleSummary {
        checkpoint: written,
        deviation: deviation_from_dense(&dense.spec, &plan.model, settings.method),
        same_data: Some(&state.data_hash) == dense.data_hash.as_ref(),
    })
}

/// The data of the new run, its ids known to mean what they meant to the dense model.
fn prepared_data(dense: &DenseSource, request: &UpcycleRequest) -> Result<Dataset, TrainError> {
    let progress = if request.show_progress { Progress::stderr() } else { Progress::silent() };
    let dataset = moved_data::prepare(&request.config.data, &progress.with_stop(request.stop.clone()))?;
    // Data of ids has no tokenizer that could differ, and a published model need not have one.
    let own = dense.tokenizer.as_ref().and_then(Tokenizer::to_published_json);
    let is_other = match own {
        Some(own) => dataset.tokenizer.to_published_json() != Some(own),
        None => dense.tokenizer.as_ref().is_some_and(|own| own.to_json() != dataset.tokenizer.to_json()),
    };
    if is_other {
        return Err(UpcycleError::Tokenizer { checkpoint: dense.path.clone() }.into());
    }
    Ok(dataset)
}

/// `run.json` of a run that waits to be resumed.
fn manifest(dense: &DenseSource, request: &UpcycleRequest) -> RunManifest {
    let UpcycleRequest { config, plan, settings, .. } = request;
    let value = serde_json::to_value(config).unwrap_or_default();
    let plan = serde_json::to_value(plan).unwrap_or_default();
    let mut manifest = RunManifest::starting(value, plan, config.seed, &config.device);
    manifest.upcycled_from = Some(UpcycledFrom {
        // JSON is UTF-8, a path need not be.
        checkpoint: dense.path.to_string_lossy().into_owned().into(),
        step: dense.step,
        method: settings.method,
        seed: settings.seed,
    });
    manifest.end(RunStatus::Interrupted);
    manifest
}

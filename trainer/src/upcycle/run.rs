//! The run folder that an upcycled model begins in.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use switchyard_datasets::{Dataset, Progress};
use switchyard_ground::key_error::KeyError;

use super::source::DenseSource;
use super::{UpcycleError, UpcycleSettings, check, deviation_from_dense, upcycled_model};
use crate::TrainError;
use crate::config::RunConfig;
use crate::device;
use crate::model_ids::are_other_ids;
use crate::moved_data;
use crate::plan::RunPlan;
use crate::run_folder::{OpenMode, RunFolder, UpcycledFrom};
use crate::start;
use crate::step_zero::StepZero;

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
    /// Whether the data is what the dense model was trained on; `None` if that is not known.
    pub same_data: Option<bool>,
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
    if config.start.from.is_some() {
        let problem = "names what the run begins with, and so does the dense model that is upcycled";
        return Err(UpcycleError::Key(KeyError::new("start.from", problem, "remove the key")).into());
    }
    start::check(config, plan)?;
    RunFolder::check(out, *mode)?;
    RunFolder::check_apart(out, *mode, &dense.path)?;
    let dataset = prepared_data(dense, request)?;
    let device = device::select(&config.device)?;
    let model = upcycled_model(dense.model(), &plan.model, *settings, &device)?;
    let data_key = dataset.manifest.key.as_str();
    let beginning = StepZero { config, plan, model: &model, tokenizer: &dataset.tokenizer, data_key };
    let mut manifest = beginning.manifest();
    manifest.upcycled_from = Some(UpcycledFrom {
        // JSON is UTF-8, a path need not be.
        checkpoint: dense.path.to_string_lossy().into_owned().into(),
        step: dense.step,
        method: settings.method,
        seed: settings.seed,
    });
    let written = beginning.write(out, *mode, &manifest)?;
    Ok(UpcycleSummary {
        checkpoint: written,
        deviation: deviation_from_dense(&dense.spec, &plan.model, settings.method),
        same_data: dense.data_hash.as_ref().map(|then| then == data_key),
    })
}

/// The data of the new run, its ids known to mean what they meant to the dense model.
fn prepared_data(dense: &DenseSource, request: &UpcycleRequest) -> Result<Dataset, TrainError> {
    let progress = if request.show_progress { Progress::stderr() } else { Progress::silent() };
    let dataset = moved_data::prepare(&request.config.data, &progress.with_stop(request.stop.clone()))?;
    if are_other_ids(dense.tokenizer.as_ref(), &dataset) {
        return Err(UpcycleError::Tokenizer { checkpoint: dense.path.clone() }.into());
    }
    Ok(dataset)
}

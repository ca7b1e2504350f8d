//! Repeating a step of a run from the nearest checkpoint before it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use switchyard_datasets::{Dataset, Loader, Progress};
use switchyard_kernels::Products;

use super::question::plan_of;
use crate::TrainError;
use crate::checkpoint::{Checkpoint, CheckpointError, TrainingState, steps_in};
use crate::config::RunConfig;
use crate::config_file::Override;
use crate::device;
use crate::metrics::{LayerRecord, Record, StepRecord, read_metrics};
use crate::moved_data::{MayChange, changed_config, check_same_data, with_missing_path};
use crate::moving_parts::MovingParts;
use crate::observers::step_record;
use crate::optimizer::Optimizer;
use crate::plan::RunPlan;
use crate::ranks::Ranks;
use crate::replaceable::Replaceable;
use crate::run_folder::{RunFolderError, RunManifest, RunPaths};
use crate::start::{initial_network, with_frozen_parameters};
use crate::train::{loader_config, with_threads};

/// A repeated step beside the recorded one.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    /// Step of the checkpoint that it began with; 0 are the initial values.
    pub from_step: u64,
    /// The last repeated step, without clock readings.
    pub repeated: StepRecord,
    /// What the run recorded of it, without clock readings; `None` if the run has not come that
    /// far.
    pub recorded: Option<StepRecord>,
    /// What multiplied in the run's last process, and what multiplied here.
    pub products: [Products; 2],
    /// The first repeated step that is not, bit for bit, what the run recorded.
    pub first_difference: Option<u64>,
}

impl Replay {
    /// Whether the run recorded the step, and it and those before it were repeated bit for bit.
    pub fn is_exact(&self) -> bool {
        self.recorded.is_some() && self.first_difference.is_none()
    }
}

/// What to repeat.
#[derive(Debug, Clone)]
pub struct ReplayRequest {
    /// The run folder.
    pub run: PathBuf,
    /// Step to repeat, counted from 1.
    pub step: u64,
    /// Where the run's data lies now, and what computes.
    pub overrides: Vec<Override>,
    /// Show progress of a preparation of the data on standard error.
    pub show_progress: bool,
    /// Set by Ctrl-C: give up after this step.
    pub stop: Arc<AtomicBool>,
}

/// Repeats the steps of the run up to the one that is asked for, from its last checkpoint before
/// that or from the initial values. Writes nothing into the run.
///
/// # Errors
/// [`TrainError`] if the run's files cannot be read, its data has changed, or a step fails as it
/// failed then.
pub fn replay(request: &ReplayRequest) -> Result<Replay, TrainError> {
    let step = request.step;
    let paths = RunPaths::new(&request.run);
    // First: a folder that is no run is the user's mistake, a lost log is not.
    let manifest = RunManifest::read(&paths.manifest())?;
    let data_key = manifest.data_key.as_ref();
    let rows = read_metrics(&paths.metrics())?;
    let (config, plan) = settings_of(&paths, step)?;
    let config = changed_config(&config, &paths.config(), &request.overrides, MayChange::Places)?;
    if !(1..=plan.num_steps).contains(&step) {
        return Err(TrainError::NoSuchStep { step, num_steps: plan.num_steps });
    }
    with_threads(config.threads, || {
        let progress = if request.show_progress { Progress::stderr() } else { Progress::silent() };
        let dataset = switchyard_datasets::prepare(&config.data, &progress.with_stop(request.stop.clone()))
            .map_err(|error| with_missing_path(error.into(), &config.data))?;
        if let Some(then) = data_key {
            check_same_data(&request.run, then, &config.data, &dataset)?;
        }
        let is_upcycled = manifest.upcycled_from.is_some();
        let run = Run { config: &config, plan: &plan, dataset: &dataset, is_upcycled, stop: &request.stop };
        repeat(&paths, step, &rows, &run, manifest.products())
    })
}

/// What is repeated.
struct Run<'a> {
    config: &'a RunConfig,
    plan: &'a RunPlan,
    dataset: &'a Dataset,
    /// It began with a checkpoint, not with initial values.
    is_upcycled: bool,
    stop: &'a AtomicBool,
}

fn repeat(
    paths: &RunPaths,
    step: u64,
    rows: &[Record],
    run: &Run<'_>,
    multiplied_by: Products,
) -> Result<Replay, TrainError> {
    let device = device::select(&run.config.device)?;
    let mut parts = run.parts_before(paths, step, &device)?;
    let from_step = parts.state.step;
    let mut first_difference = None;
    loop {
        let learning_rate = run.plan.schedule.learning_rate(parts.state.step);
        let measurements = parts.step(run.config, run.plan, &device)?;
        let this = parts.state.step;
        let repeated = comparable(&step_record(&parts.state, &measurements, learning_rate));
        let recorded = rows.iter().filter_map(Record::as_step).find(|row| row.step == this).map(comparable);
        if recorded.as_ref().is_some_and(|recorded| *recorded != repeated) {
            first_difference.get_or_insert(this);
        }
        if this >= step {
            let products = [multiplied_by, Products::of(run.plan.compute)];
            return Ok(Replay { from_step, repeated, recorded, products, first_difference });
        }
        if run.stop.load(Ordering::SeqCst) {
            return Err(TrainError::Interrupted);
        }
    }
}

/// A row without clock readings and without what only the recorder of the whole run and the corpus
/// know.
fn comparable(row: &StepRecord) -> StepRecord {
    let layer = |layer: &LayerRecord| LayerRecord {
        running_max_violation: None,
        router_grad_norm: None,
        router_weight_norm: None,
        ..layer.clone()
    };
    let layers = row.layers.iter().map(layer).collect();
    let row = StepRecord {
        layers,
        bits_per_byte: None,
        data_passes: None,
        tokens_per_source: BTreeMap::new(),
        ..row.clone()
    };
    row.without_timings()
}

impl Run<'_> {
    /// Where the run was at its last checkpoint before `step`.
    fn parts_before(
        &self,
        paths: &RunPaths,
        step: u64,
        device: &burn::tensor::Device,
    ) -> Result<MovingParts, TrainError> {
        let training_device = device.clone().autodiff();
        let saved = checkpoint_steps(paths)?;
        let before = saved.iter().copied().rfind(|&saved| saved < step);
        let (model, optimizer, state, carried) = match before {
            Some(saved) => {
                let checkpoint = Checkpoint::read(&checkpoint_path(paths, saved))?;
                let then = &checkpoint.state.data_hash;
                check_same_data(&checkpoint.path, then, &self.config.data, self.dataset)?;
                let model = with_frozen_parameters(checkpoint.model(&training_device)?, self.config)?;
                let optimizer = checkpoint.optimizer(&model)?;
                let carried = checkpoint.carried_state(&training_device)?;
                (model, optimizer, checkpoint.state, carried)
            }
            None if self.is_upcycled => {
                return Err(TrainError::NothingToRepeatFrom { step, oldest: saved.first().copied() });
            }
            None => (
                initial_network(self.config, self.plan, &training_device)?,
                Optimizer::new(&self.config.train, &self.plan.model),
                TrainingState::initial(self.config.seed, &self.dataset.manifest.key),
                None,
            ),
        };
        let loader_config = loader_config(self.config, self.plan);
        let sequences_per_step = self.plan.sequences_per_step();
        let loader =
            Loader::of_sources(&self.dataset.sources, loader_config, sequences_per_step, state.data_cursor)?;
        let (model, ranks) = (Replaceable::new(model), Ranks::alone());
        Ok(MovingParts { loader, model, optimizer, state, carried, ranks })
    }
}

/// The configuration and the plan that `step` was done with: those of the first checkpoint at or
/// after it, else the run's latest. They differ where a run went on with another number of steps.
fn settings_of(paths: &RunPaths, step: u64) -> Result<(RunConfig, RunPlan), TrainError> {
    if let Some(saved) = checkpoint_steps(paths)?.into_iter().find(|&saved| saved >= step) {
        let checkpoint = Checkpoint::read(&checkpoint_path(paths, saved))?;
        return Ok((checkpoint.config, checkpoint.plan));
    }
    let path = paths.manifest();
    let manifest = RunManifest::read(&path)?;
    let config = serde_json::from_value(manifest.config).map_err(|error| RunFolderError::BadManifest {
        path,
        reason: format!("its `config` was written by another version: {error}"),
    })?;
    Ok((config, plan_of(paths)?))
}

/// Steps of the run's checkpoints, oldest first. Unlike a store it leaves what another process is
/// writing alone.
fn checkpoint_steps(paths: &RunPaths) -> Result<Vec<u64>, CheckpointError> {
    let folder = paths.checkpoints();
    if folder.is_dir() { steps_in(&folder) } else { Ok(Vec::new()) }
}

fn checkpoint_path(paths: &RunPaths, step: u64) -> std::path::PathBuf {
    paths.checkpoints().join(format!("step-{step}"))
}

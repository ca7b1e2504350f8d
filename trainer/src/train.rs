//! A run from beginning to end: prepare, start or resume, loop, finish.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Device;
use switchyard_datasets::{Dataset, EvaluationWindows, Loader, LoaderConfig, Progress, SplitManifest};

use crate::TrainError;
use crate::available_memory::check_memory;
use crate::checkpoint::{CheckpointStore, LoggedEvaluation, Snapshot};
use crate::config::RunConfig;
use crate::device;
use crate::energy::{EnergyMeter, POWERCAP};
use crate::evaluate::{Evaluation, EvaluationSettings, evaluate};
use crate::flight::alarms::Alarm;
use crate::flight::{FlightRecorder, StepFlight};
use crate::generate::{GenerationSettings, generate, prompt_ids};
use crate::metrics::{Record, read_metrics};
use crate::moving_parts::MovingParts;
use crate::observers::Observers;
use crate::plan::RunPlan;
use crate::replaceable::Replaceable;
use crate::resume::{Start, check_restart, start};
use crate::run_folder::{OpenMode, RunFolder, RunManifest, RunStatus};
use crate::sampling::SamplingSettings;
use crate::throughput::measure_matmul_peak_flops;

/// What to train, and where.
#[derive(Debug, Clone)]
pub struct TrainRequest {
    /// The configuration.
    pub config: RunConfig,
    /// What it resolves to.
    pub plan: RunPlan,
    /// Run folder.
    pub out: PathBuf,
    /// What to do with a run that is there already.
    pub mode: OpenMode,
    /// Show progress on standard error.
    pub show_progress: bool,
    /// Set by Ctrl-C: finish the step, write a checkpoint, return.
    pub stop: Arc<AtomicBool>,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct RunSummary {
    /// Run folder.
    pub out: PathBuf,
    /// `run.json` as it stands.
    pub manifest: RunManifest,
    /// What the validation loss is a loss on.
    pub validation: SplitManifest,
}

/// Train until all steps are done, the validation loss stops falling, or the user interrupts. What happened is in the
/// run folder whichever way it ends, an error included.
///
/// # Errors
/// [`TrainError`]; everything up to the last checkpoint is on disk.
pub fn train(request: &TrainRequest) -> Result<RunSummary, TrainError> {
    with_threads(request.config.threads, || train_here(request))
}

/// Run `work` with `threads` threads for the CPU device and the host work; absent means all cores.
///
/// # Errors
/// [`TrainError::Threads`] if they cannot be started, and whatever `work` returns.
pub fn with_threads<T: Send>(
    threads: Option<usize>,
    work: impl FnOnce() -> Result<T, TrainError> + Send,
) -> Result<T, TrainError> {
    let Some(threads) = threads else { return work() };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| TrainError::Threads { threads, reason: error.to_string() })?
        .install(work)
}

fn train_here(request: &TrainRequest) -> Result<RunSummary, TrainError> {
    let device = device::select(&request.config.device)?;
    check_memory(&request.plan)?;
    // The data comes before the folder: a mistake in it leaves nothing behind, and `--overwrite` deletes nothing.
    RunFolder::check(&request.out, request.mode)?;
    let dataset = prepared_data(request)?;
    let folder = RunFolder::create(&request.out, request.mode)?;
    let checkpoints = CheckpointStore::open(&folder.paths().checkpoints())?;
    let mut manifest = manifest_of(request, &folder, &checkpoints)?;
    manifest.data_key = Some(dataset.manifest.key.clone());
    let resumes = !manifest.resumed_from_steps.is_empty();
    if !resumes {
        folder.write_manifest(&manifest)?;
    }
    let validation = dataset.manifest.validation.clone();
    let summary = |manifest| RunSummary { out: request.out.clone(), manifest, validation };
    let mut run = match Run::start(request, dataset, &folder, checkpoints, manifest.clone(), device) {
        Ok(run) => run,
        // A checkpoint that is refused leaves the run as it was.
        Err(error) if resumes => return Err(error),
        Err(error) => return conclude(Err(error), manifest, &folder).map(summary),
    };
    let outcome = run
        .train(&request.stop)
        .and_then(|status| run.end(status))
        .inspect_err(|error| run.record_failure(error));
    run.update_manifest();
    conclude(outcome, run.manifest, &folder).map(summary)
}

/// The data, known to suffice for training, evaluation and the sample.
fn prepared_data(request: &TrainRequest) -> Result<Dataset, TrainError> {
    let TrainRequest { config, plan, .. } = request;
    let progress = if request.show_progress { Progress::stderr() } else { Progress::silent() };
    let dataset = switchyard_datasets::prepare(&config.data, &progress.with_stop(request.stop.clone()))?;
    EvaluationWindows::new(dataset.validation.clone(), plan.seq_len)?;
    EvaluationWindows::new(dataset.train.clone(), plan.seq_len)?;
    if plan.sample.num_tokens > 0 {
        prompt_ids(&dataset.tokenizer, plan.sample.prompt.as_deref())?;
    }
    Ok(dataset)
}

/// Write down how the run ended.
fn conclude(
    outcome: Result<RunStatus, TrainError>,
    mut manifest: RunManifest,
    folder: &RunFolder,
) -> Result<RunManifest, TrainError> {
    let error = match outcome {
        Ok(status) => {
            manifest.end(status);
            None
        }
        Err(error) => {
            manifest.fail(error.to_string());
            Some(error)
        }
    };
    let written = folder.write_manifest(&manifest);
    // The run's own error matters more than a second one from writing it down.
    error.map_or(Ok(()), Err)?;
    written?;
    Ok(manifest)
}

/// `run.json` at the start of this process: new, or the one of the run that goes on from a checkpoint.
fn manifest_of(
    request: &TrainRequest,
    folder: &RunFolder,
    checkpoints: &CheckpointStore,
) -> Result<RunManifest, TrainError> {
    let RunConfig { seed, device, .. } = &request.config;
    let config = serde_json::to_value(&request.config).unwrap_or_default();
    let plan = serde_json::to_value(&request.plan).unwrap_or_default();
    let newest = if request.mode == OpenMode::Resume { checkpoints.steps()?.pop() } else { None };
    let starting = || RunManifest::starting(config.clone(), plan.clone(), *seed, device);
    if request.mode != OpenMode::Resume {
        return Ok(starting());
    }
    let mut manifest = RunManifest::read(&folder.paths().manifest())?;
    let Some(step) = newest else {
        check_restart(folder.paths().root(), &manifest, &request.config)?;
        return Ok(starting());
    };
    manifest.resume(step);
    Ok(RunManifest { config, plan, device: device.clone(), ..manifest })
}

/// A run in progress.
struct Run<'a> {
    config: &'a RunConfig,
    plan: &'a RunPlan,
    folder: &'a RunFolder,
    manifest: RunManifest,
    device: Device,
    dataset: Dataset,
    parts: MovingParts,
    checkpoints: CheckpointStore,
    observers: Observers,
    recorder: Option<FlightRecorder>,
    /// Start of this process's part of the run, and the training seconds of the parts before it.
    started: Instant,
    earlier_secs: f64,
    energy: Option<EnergyMeter>,
}

impl<'a> Run<'a> {
    fn start(
        request: &'a TrainRequest,
        dataset: Dataset,
        folder: &'a RunFolder,
        checkpoints: CheckpointStore,
        mut manifest: RunManifest,
        device: Device,
    ) -> Result<Self, TrainError> {
        let TrainRequest { config, plan, .. } = request;
        let Start { model, optimizer, state, resumed, notes } =
            start(config, plan, &dataset, &checkpoints, request.mode, &device)?;
        manifest.matmul_peak_flops = Some(measure_matmul_peak_flops(&device)?);
        let mut observers = Observers::open(folder, &manifest, plan, &state, resumed, request.show_progress)?;
        let masks = config.data.mask_documents;
        let recorder =
            FlightRecorder::open(folder.paths(), plan, resumed.then_some(&state), &dataset, masks, &device)?;
        if resumed {
            manifest.forget_validation();
            for row in read_metrics(&folder.paths().metrics())?.iter().filter_map(Record::as_eval) {
                manifest.record_validation(row.step, row.cross_entropy_nats);
            }
        }
        folder.write_manifest(&manifest)?;
        folder.write_config(&crate::config_file::to_toml(config))?;
        notes.iter().for_each(|note| observers.note(note));
        let loader = Loader::new(dataset.train.clone(), loader_config(config, plan), state.data_cursor)?;
        let earlier_secs = state.train_secs;
        // Energy of a part of the run would look like that of all of it.
        let earlier_joules = if resumed { manifest.energy_joules } else { Some(0.0) };
        let energy = earlier_joules.and_then(|joules| EnergyMeter::start(Path::new(POWERCAP), joules));
        let started = Instant::now();
        Ok(Self {
            config,
            plan,
            folder,
            manifest,
            device,
            dataset,
            parts: MovingParts { loader, model: Replaceable::new(model), optimizer, state },
            checkpoints,
            observers,
            recorder,
            started,
            earlier_secs,
            energy,
        })
    }

    /// The loop.
    fn train(&mut self, stop: &AtomicBool) -> Result<RunStatus, TrainError> {
        while self.parts.state.step < self.plan.num_steps && !self.has_stopped_improving() {
            let stops = self.step()?;
            let checkpoint_is_due = is_due(self.plan.checkpoints.every_steps, self.parts.state.step);
            if is_due(self.plan.evaluation.every_steps, self.parts.state.step) {
                self.evaluate_and_track(checkpoint_is_due)?;
            }
            if checkpoint_is_due {
                self.save_checkpoint()?;
            }
            if let Some(alarm) = stops {
                self.manifest.error = Some(format!("stopped by an alarm: {}", alarm.message));
                return Ok(RunStatus::Alarmed);
            }
            if stop.load(Ordering::SeqCst) {
                return Ok(RunStatus::Interrupted);
            }
        }
        if self.has_stopped_improving() {
            let num_evals = self.parts.state.evals_without_improvement;
            self.observers.note(&format!(
                "stopped early: the validation loss has not fallen in {num_evals} evaluations"
            ));
        }
        Ok(RunStatus::Finished)
    }

    /// Whether early stopping has ended the run.
    fn has_stopped_improving(&self) -> bool {
        let patience = self.plan.early_stopping.as_ref().map(|early| early.patience_evals);
        patience.is_some_and(|patience| self.parts.state.evals_without_improvement >= patience)
    }

    /// Do a step; returns the alarm that stops the run.
    fn step(&mut self) -> Result<Option<Alarm>, TrainError> {
        let step_started = Instant::now();
        let learning_rate = self.plan.schedule.learning_rate(self.parts.state.step);
        let measurements = self.parts.step(self.config, self.plan, &self.device)?;
        self.parts.state.train_secs = self.elapsed_secs();
        let (step, model) = (self.parts.state.step, self.parts.model.get());
        let recording_started = Instant::now();
        let flight = match &mut self.recorder {
            Some(recorder) => recorder.record(step, &measurements, model)?,
            None => StepFlight::default(),
        };
        self.manifest.flight_recorder_secs += recording_started.elapsed().as_secs_f64();
        if let Some(energy) = &mut self.energy {
            energy.keep_up();
        }
        let step_secs = step_started.elapsed().as_secs_f64();
        self.observers.step(&self.parts.state, &measurements, &flight, learning_rate, step_secs)?;
        Ok(flight.stops)
    }

    /// Evaluate as the plan says, and remember how the result compares to earlier ones.
    fn evaluate_and_track(&mut self, checkpoint_is_due: bool) -> Result<(), TrainError> {
        let evaluation = self.evaluate(self.plan.evaluation.max_tokens)?;
        self.observers.evaluation(&self.parts.state, &evaluation, self.elapsed_secs(), false)?;
        let (step, nats) = (self.parts.state.step, evaluation.cross_entropy_nats);
        self.manifest.record_validation(step, nats);
        let this = LoggedEvaluation { step, cross_entropy_nats: nats };
        self.parts.state.whole_split = evaluation.whole_split.then_some(this);
        let beats = |best: Option<LoggedEvaluation>, margin: f64| {
            best.is_none_or(|best| nats < best.cross_entropy_nats - margin)
        };
        let margin = self.plan.early_stopping.as_ref().map_or(0.0, |early| early.min_improvement_nats);
        if beats(self.parts.state.best, margin) {
            self.parts.state.best = Some(this);
            self.parts.state.evals_without_improvement = 0;
        } else {
            self.parts.state.evals_without_improvement += 1;
        }
        if checkpoint_is_due && beats(self.parts.state.best_checkpoint, 0.0) {
            self.parts.state.best_checkpoint = Some(this);
        }
        Ok(())
    }

    /// The last model's loss on the whole split: what the evaluation after the last step found if it covered
    /// everything, else measured now.
    fn final_cross_entropy_nats(&mut self) -> Result<f64, TrainError> {
        if let Some(logged) = self.parts.state.whole_split
            && logged.step == self.parts.state.step
        {
            return Ok(logged.cross_entropy_nats);
        }
        let evaluation = self.evaluate(None)?;
        self.observers.evaluation(&self.parts.state, &evaluation, self.elapsed_secs(), true)?;
        self.manifest.record_validation(self.parts.state.step, evaluation.cross_entropy_nats);
        Ok(evaluation.cross_entropy_nats)
    }

    fn evaluate(&self, max_tokens: Option<u64>) -> Result<Evaluation, TrainError> {
        let settings = EvaluationSettings {
            seq_len: self.plan.seq_len,
            sequences_per_batch: self.plan.sequences_per_micro_batch,
            max_tokens,
            mask_documents: self.config.data.mask_documents,
        };
        evaluate(self.parts.model.get(), &self.dataset.validation, &settings, &self.device)
    }

    fn save_checkpoint(&mut self) -> Result<(), TrainError> {
        self.parts.state.train_secs = self.elapsed_secs();
        self.observers.sync()?;
        if let Some(recorder) = &mut self.recorder {
            recorder.sync()?;
            self.parts.state.flight = Some(recorder.state());
        }
        self.checkpoints.save(&Snapshot {
            model: self.parts.model.get(),
            optimizer: &self.parts.optimizer,
            state: &self.parts.state,
            config: self.config,
            plan: self.plan,
            tokenizer: &self.dataset.tokenizer,
        })?;
        let kept = &self.plan.checkpoints;
        let best_step = self.parts.state.best_checkpoint.filter(|_| kept.keep_best).map(|best| best.step);
        self.checkpoints.retain(kept.keep_last, best_step)?;
        self.update_manifest();
        self.folder.write_manifest(&self.manifest)?;
        Ok(())
    }

    /// Leave everything on disk that a run with this ending leaves.
    fn end(&mut self, status: RunStatus) -> Result<RunStatus, TrainError> {
        // First of all: whatever fails after this, the trained model is on disk.
        if self.checkpoints.steps()?.last() != Some(&self.parts.state.step) {
            self.save_checkpoint()?;
        }
        if status == RunStatus::Finished {
            self.manifest.final_validation_cross_entropy_nats = Some(self.final_cross_entropy_nats()?);
            if let Some(recorder) = &mut self.recorder {
                recorder.finish(self.parts.model.get())?;
            }
            if let Err(error) = self.write_sample() {
                self.observers.note(&format!("no sample was written: {error}"));
            }
        }
        self.observers.finish();
        Ok(status)
    }

    /// Write down what the recorder knows of a run that ends in `error`.
    fn record_failure(&mut self, error: &TrainError) {
        let step = self.parts.state.step + 1;
        let Some(recorder) = &mut self.recorder else { return };
        // The run's own error matters more than a second one from writing it down.
        drop(recorder.record_failure(step, error.non_finite()));
    }

    fn write_sample(&self) -> Result<(), TrainError> {
        let sample = &self.plan.sample;
        if sample.num_tokens == 0 {
            return Ok(());
        }
        let settings = GenerationSettings {
            prompt: sample.prompt.clone(),
            num_tokens: sample.num_tokens,
            seed: self.config.seed,
            sampling: SamplingSettings {
                temperature: sample.temperature,
                top_k: sample.top_k,
                top_p: sample.top_p,
            },
            routing: None,
        };
        let mut text = sample.prompt.clone().unwrap_or_default();
        generate(self.parts.model.get(), &self.dataset.tokenizer, &settings, &self.device, |piece| {
            text.push_str(piece);
            Ok(())
        })?;
        self.folder.write_sample(&text)?;
        Ok(())
    }

    fn update_manifest(&mut self) {
        self.manifest.steps_done = self.parts.state.step;
        self.manifest.tokens_seen = self.parts.state.tokens_seen;
        self.manifest.active_flops = self.parts.state.active_flops;
        self.manifest.train_secs = self.elapsed_secs();
        self.manifest.energy_joules = self.energy.as_mut().and_then(EnergyMeter::sample);
    }

    fn elapsed_secs(&self) -> f64 {
        self.earlier_secs + self.started.elapsed().as_secs_f64()
    }
}

/// Whether something that happens every `period` steps happens after `step`.
fn is_due(period: Option<u64>, step: u64) -> bool {
    period.is_some_and(|period| step.is_multiple_of(period))
}

pub(crate) fn loader_config(config: &RunConfig, plan: &RunPlan) -> LoaderConfig {
    LoaderConfig {
        seq_len: plan.seq_len,
        sequences_per_batch: plan.sequences_per_micro_batch,
        seed: config.seed,
        mask_documents: config.data.mask_documents,
    }
}

/// Folder of a run that was given no `--out`: `runs/<name>-<config hash>`.
pub fn default_run_folder(parent: &Path, config: &RunConfig) -> PathBuf {
    let hash = crate::config_file::config_hash(config);
    parent.join(format!("{}-{}", config.name, &hash[..8]))
}

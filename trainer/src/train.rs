//! A run from beginning to end: prepare, start or resume, loop, finish.

mod follow;
mod notes;
mod run;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use switchyard_comm::Comm;
use switchyard_datasets::{
    Dataset, EvaluationWindows, Loader, LoaderConfig, Progress, SplitManifest, TokenStore,
};
use switchyard_ground::say;

use crate::TrainError;
use crate::available_memory::check_memory;
use crate::checkpoint::CheckpointStore;
use crate::config::RunConfig;
use crate::device;
use crate::generate::prompt_ids;
use crate::host::training_code_sha256;
use crate::moved_data;
use crate::plan::{MAX_THREADS, RunPlan};
use crate::ranks::{self, Begin, Leader, Ranks};
pub use crate::resume::check_asked_for;
use crate::resume::{check_restart, finished_already};
use crate::run_folder::{OpenMode, RunFolder, RunManifest, RunStatus};
use crate::start;
pub use crate::start::check_words;
pub use follow::{dismiss, follow};
use run::Run;

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
    /// The ranks that do it, of which this process is the first; the others [`follow()`] it.
    pub comm: Comm,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct RunSummary {
    /// Run folder.
    pub out: PathBuf,
    /// `run.json` as it stands.
    pub manifest: RunManifest,
    /// What the validation loss is a loss on; `None` if the run had finished before and its data
    /// was not looked at.
    pub validation: Option<SplitManifest>,
}

/// Train until all steps are done, the validation loss stops falling, or the user interrupts. What
/// happened is in the run folder whichever way it ends, an error included.
///
/// # Errors
/// [`TrainError`]; everything up to the last checkpoint is on disk.
pub fn train(request: &TrainRequest) -> Result<RunSummary, TrainError> {
    with_threads(request.config.threads, || train_here(request))
}

/// Run `work` with `threads` threads for the CPU device and the host work; `None` means all cores.
///
/// # Errors
/// [`TrainError::Threads`] if they cannot be started, and whatever `work` returns.
pub fn with_threads<T: Send>(
    threads: Option<usize>,
    work: impl FnOnce() -> Result<T, TrainError> + Send,
) -> Result<T, TrainError> {
    let Some(threads) = threads else { return work() };
    if threads > MAX_THREADS {
        return Err(TrainError::Threads { threads, reason: format!("use 1..={MAX_THREADS}") });
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| TrainError::Threads { threads, reason: error.to_string() })?
        .install(work)
}

fn train_here(request: &TrainRequest) -> Result<RunSummary, TrainError> {
    let TrainRequest { config, plan, out, mode, .. } = request;
    let ranks = Ranks::new(request.comm.clone(), request.stop.clone());
    ranks::check(config, plan, ranks.number()).map_err(TrainError::Distributed)?;
    let device = device::select(&config.device)?;
    check_memory(config, plan, &ranks.memory(config, plan)?)?;
    // The data comes before the folder: a mistake in it leaves nothing behind, and `--overwrite`
    // deletes nothing.
    RunFolder::check(out, *mode)?;
    if *mode == OpenMode::Resume
        && let Some(manifest) = finished_already(out, config, plan)?
    {
        tidy_up(out);
        if request.show_progress {
            say!("the run has finished already: nothing is left to do, and nothing was changed");
        }
        return Ok(RunSummary { out: out.clone(), manifest, validation: None });
    }
    if *mode != OpenMode::Resume {
        if let Some(source) = &config.start.from {
            RunFolder::check_apart(out, *mode, source)?;
        }
        start::check(config, plan)?;
    }
    let dataset = prepared_data(request)?;
    if *mode != OpenMode::Resume {
        start::check_ids(config, &dataset)?;
    }
    let validation = Some(dataset.manifest.validation.clone());
    let summary = |manifest| RunSummary { out: out.clone(), manifest, validation };
    // So does all else that takes time: between the folder and its `run.json` a kill would leave
    // one without the other.
    let fresh = new_manifest(request, &dataset);
    let folder = RunFolder::create(out, *mode)?;
    if *mode != OpenMode::Resume {
        folder.write_manifest(&fresh)?;
    }
    let opened = CheckpointStore::open(&folder.paths().checkpoints()).map_err(TrainError::from);
    let opened = opened.and_then(|checkpoints| {
        let manifest = manifest_of(&fresh, request, &folder, &checkpoints)?;
        Ok((checkpoints, manifest))
    });
    let (checkpoints, manifest) = match opened {
        Ok(opened) => opened,
        Err(error) if *mode == OpenMode::Resume => return Err(error),
        Err(error) => return conclude(Err(error), fresh, &folder).map(summary),
    };
    let resumes = !manifest.resumed_from_steps.is_empty();
    let begun = begin(request, &ranks, &checkpoints);
    let started = begun.and_then(|leader| {
        let ranks = ranks.of_run(&config.distributed)?;
        let data = (dataset, device);
        Run::start(request, data, &folder, checkpoints, manifest.clone(), ranks).map(|run| (run, leader))
    });
    let (mut run, _leader) = match started {
        Ok(run) => run,
        // A checkpoint that is refused leaves the run as it was.
        Err(error) if resumes => return Err(error),
        Err(error) => return conclude(Err(error), manifest, &folder).map(summary),
    };
    let outcome = run.run_to_its_end();
    conclude(outcome, run.into_manifest(), &folder).map(summary)
}

/// Has the other ranks begin the run where this one does.
fn begin<'a>(
    request: &TrainRequest,
    ranks: &'a Ranks,
    checkpoints: &CheckpointStore,
) -> Result<Leader<'a>, TrainError> {
    let newest = if request.mode == OpenMode::Resume { checkpoints.steps()?.pop() } else { None };
    let checkpoint = newest.map(|step| checkpoints.path_of(step));
    let (config, plan) = (request.config.clone(), request.plan.clone());
    Leader::begin(ranks, Begin { training_code: training_code_sha256().into(), config, plan, checkpoint })
}

/// Removes what a process or the power left half-done around a run that has finished, unless
/// somebody is at work in it.
fn tidy_up(out: &Path) {
    // Nothing depends on it.
    if let Ok(folder) = RunFolder::create(out, OpenMode::Resume) {
        drop(CheckpointStore::open(&folder.paths().checkpoints()));
    }
}

/// The data, known to suffice for training, evaluation and the sample.
fn prepared_data(request: &TrainRequest) -> Result<Dataset, TrainError> {
    let TrainRequest { config, plan, .. } = request;
    let progress = if request.show_progress { Progress::stderr() } else { Progress::silent() };
    let dataset = moved_data::prepare(&config.data, &progress.with_stop(request.stop.clone()))?;
    EvaluationWindows::new(dataset.validation.clone(), plan.seq_len)?;
    EvaluationWindows::new(dataset.train.clone(), plan.seq_len)?;
    if plan.evaluation.test_at_end {
        EvaluationWindows::new(test_split(&dataset)?.clone(), plan.seq_len)?;
    }
    if plan.sample.num_tokens > 0 {
        prompt_ids(&dataset.tokenizer, plan.sample.prompt.as_deref())?;
    }
    Ok(dataset)
}

/// The test split.
fn test_split(dataset: &Dataset) -> Result<&Arc<TokenStore>, TrainError> {
    dataset.test.as_ref().ok_or(TrainError::NoTestSplit { wanted_by: "`train.eval.test_at_end`" })
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

/// `run.json` of a run that begins now.
fn new_manifest(request: &TrainRequest, dataset: &Dataset) -> RunManifest {
    let RunConfig { seed, device, .. } = &request.config;
    let config = serde_json::to_value(&request.config).unwrap_or_default();
    let plan = serde_json::to_value(&request.plan).unwrap_or_default();
    let data_key = Some(dataset.manifest.key.clone());
    RunManifest { data_key, ..RunManifest::starting(config, plan, *seed, device) }
}

/// `run.json` at the start of this process: `fresh`, or the one of the run that goes on from a
/// checkpoint.
fn manifest_of(
    fresh: &RunManifest,
    request: &TrainRequest,
    folder: &RunFolder,
    checkpoints: &CheckpointStore,
) -> Result<RunManifest, TrainError> {
    if request.mode != OpenMode::Resume {
        return Ok(fresh.clone());
    }
    let mut manifest = RunManifest::read(&folder.paths().manifest())?;
    let RunManifest { config, plan, device, data_key, .. } = fresh.clone();
    let Some(step) = checkpoints.steps()?.pop() else {
        let root = folder.paths().root();
        check_restart(root, &manifest, &request.config, data_key.as_deref().unwrap_or_default())?;
        return Ok(fresh.clone());
    };
    manifest.resume(step);
    Ok(RunManifest { config, plan, device, data_key, ..manifest })
}

/// The batches of a run from this sample on.
fn loader(config: &RunConfig, plan: &RunPlan, dataset: &Dataset, cursor: u64) -> Result<Loader, TrainError> {
    let loader_config = loader_config(config, plan);
    Ok(Loader::of_sources(&dataset.sources, loader_config, plan.sequences_per_step(), cursor)?)
}

pub(crate) fn loader_config(config: &RunConfig, plan: &RunPlan) -> LoaderConfig {
    LoaderConfig {
        seq_len: plan.seq_len,
        sequences_per_batch: plan.sequences_per_micro_batch,
        seed: config.train.data_seed.unwrap_or(config.seed),
        mask_documents: config.data.mask_documents,
        packing: config.data.packing,
        num_streams: plan.carries_state.then(|| plan.sequences_per_step()),
    }
}

/// Folder of a run that was given no `--out`: `runs/<name>-<config hash>`.
pub fn default_run_folder(parent: &Path, config: &RunConfig) -> PathBuf {
    let hash = crate::config_file::config_hash(config);
    parent.join(format!("{}-{}", config.name, &hash[..8]))
}

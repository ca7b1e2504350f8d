//! Running what is missing, in a folder that may be shared.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use switchyard_ground::{regular_file, say};

use anyhow::Context;
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::CheckpointError;
use switchyard_trainer::metrics::MetricsError;
use switchyard_trainer::run_folder::{OpenMode, RunFolder, RunFolderError, RunPaths, RunStatus};
use switchyard_trainer::train::{TrainRequest, train};

use super::finished::is_finished;
use super::matrix::PlannedRun;
use super::questions::{Questions, RunAnswers};
use crate::failure::Failure;
use crate::launch;
use crate::lock_file::LockFile;
use crate::whole_file;

/// The part of the runs that this process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    /// From 0.
    index: usize,
    /// At least 1.
    count: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { index: 0, count: 1 }
    }
}

impl FromStr for Shard {
    type Err = String;

    /// `2/8` is the second of eight.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers =
            text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match numbers {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index: index - 1, count }),
            _ => Err("write I/N with I in 1..=N, such as 2/8 for the second of eight shards".into()),
        }
    }
}

impl Shard {
    /// Which parts of the work are this shard's: each in order is of the shard that has had the
    /// least before. All shards agree on it.
    fn parts(self, work: impl IntoIterator<Item = f64>) -> Vec<bool> {
        let mut work_of_shard = vec![0.0; self.count];
        let is_mine = |work: f64| {
            let least = (1..self.count).fold(0, |least, shard| {
                if work_of_shard[shard] < work_of_shard[least] { shard } else { least }
            });
            work_of_shard[least] += work;
            least == self.index
        };
        work.into_iter().map(is_mine).collect()
    }

    /// Whether other shards do a part.
    pub(crate) fn is_partial(&self) -> bool {
        self.count > 1
    }
}

/// File in a run's folder that says why its loss became no number, so that the run is not tried
/// again.
const DIVERGED: &str = "diverged.txt";

/// Bytes of it that are read.
const MAX_DIVERGED_BYTES: u64 = 1 << 20;

/// Pause between two looks at runs that other processes do.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Where a study's runs are.
#[derive(Debug, Clone)]
pub(crate) struct StudyFolder {
    root: PathBuf,
    /// Asked of every run before it counts as finished.
    questions: Option<Questions>,
}

impl StudyFolder {
    /// The folder at `root`, made if it is missing.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn open(root: &Path) -> Result<Self, Failure> {
        let runs = root.join("runs");
        fs::create_dir_all(&runs)
            .with_context(|| format!("cannot create {}", runs.display()))
            .map_err(Failure::Fault)?;
        Ok(Self { root: root.into(), questions: None })
    }

    /// The same, with `questions` that every run is asked before it counts as finished.
    pub(crate) fn asking(self, questions: Option<Questions>) -> Self {
        Self { questions, ..self }
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of a run, relative to the study's.
    pub(crate) fn relative(run: &PlannedRun) -> String {
        format!("runs/{}", run.folder)
    }

    /// Folder of a run.
    pub(crate) fn path_of(&self, run: &PlannedRun) -> PathBuf {
        self.root.join(Self::relative(run))
    }

    /// Whether a run has finished, and answered the questions if there are any.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub(crate) fn is_finished(&self, run: &PlannedRun) -> Result<bool, Failure> {
        let is_trained = is_finished(&self.path_of(run))?;
        Ok(is_trained && (self.questions.is_none() || self.answers_of(run)?.is_some()))
    }

    /// What a run answered to the questions; `None` if there are none, or it was not asked yet.
    ///
    /// # Errors
    /// If that cannot be read.
    pub(super) fn answers_of(&self, run: &PlannedRun) -> Result<Option<RunAnswers>, Failure> {
        let questions = self.questions.as_ref();
        Ok(questions.map(|questions| questions.answers_in(&self.path_of(run))).transpose()?.flatten())
    }

    /// The right to do a run, which one process of a study has at a time: from the last look at
    /// whether it is over until its checkpoints are deleted. `None` if another has it.
    fn claim(&self, run: &PlannedRun) -> Result<Option<LockFile>, Failure> {
        let path = self.root.join(format!(".{}.lock", run.folder));
        LockFile::try_take(&path)
            .with_context(|| format!("cannot lock {}", path.display()))
            .map_err(Failure::Fault)
    }

    /// Whether a process is training the run now.
    fn is_at_work(&self, run: &PlannedRun) -> bool {
        RunPaths::new(self.path_of(run)).read().is_ok_and(|reading| reading.is_at_work())
    }

    /// Why a run that may diverge did; `None` if it did not.
    ///
    /// # Errors
    /// If that cannot be looked at.
    pub(crate) fn divergence(&self, run: &PlannedRun) -> Result<Option<String>, Failure> {
        let path = self.path_of(run).join(DIVERGED);
        match regular_file::read_to_string(&path, MAX_DIVERGED_BYTES) {
            Ok(reason) => Ok(Some(reason)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::Fault(anyhow::anyhow!("cannot read {}: {error}", path.display()))),
        }
    }

    /// Whether there is nothing more to do for a run.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub(crate) fn is_over(&self, run: &PlannedRun) -> Result<bool, Failure> {
        Ok(self.is_finished(run)? || self.divergence(run)?.is_some())
    }

    /// Deletes what an interrupted process left of the checkpoints of a finished run.
    fn finish_deleting(&self, run: &PlannedRun) -> Result<(), Failure> {
        let out = self.path_of(run);
        let is_left = RunPaths::new(&out).checkpoints().is_dir() && self.is_finished(run)?;
        if let Some(_claim) = is_left.then(|| self.claim(run)).transpose()?.flatten() {
            delete_checkpoints(&out)?;
        }
        Ok(())
    }

    /// Runs in the folder that belong to none of `runs`: of other code, other data or an earlier
    /// version of the study.
    pub(crate) fn num_strangers(&self, runs: &[&PlannedRun]) -> usize {
        let Ok(entries) = fs::read_dir(self.root.join("runs")) else { return 0 };
        let is_known = |name: &str| runs.iter().any(|run| run.folder == name);
        entries.flatten().filter(|entry| !is_known(&entry.file_name().to_string_lossy())).count()
    }
}

/// How [`run_missing`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Execution {
    /// All runs of this shard are over.
    Done,
    /// The user interrupted; the same command goes on.
    Interrupted,
}

/// How runs are done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Orders<'a> {
    /// Whether finished runs keep their last checkpoint.
    pub(crate) keep_checkpoints: bool,
    /// Set by Ctrl-C.
    pub(crate) stop: &'a Arc<AtomicBool>,
}

/// Do those of `runs` that are this shard's and are not finished; those that were interrupted go
/// on, and those that another process is doing are waited for. Each `group` of neighbours is one
/// shard's: runs that are compared with each other belong on one machine.
///
/// # Errors
/// The first run that fails, with its folder; what was done stays. A run whose loss becomes no
/// number, or that an alarm stops, is no failure: see [`StudyFolder::divergence`].
pub(crate) fn run_missing(
    folder: &StudyFolder,
    runs: &[PlannedRun],
    group: usize,
    shard: Shard,
    orders: Orders<'_>,
) -> Result<Execution, Failure> {
    let mine = runs_of_shard(runs, group, shard);
    if do_free_ones(folder, &mine, orders)? == Execution::Interrupted {
        return Ok(Execution::Interrupted);
    }
    finish(folder, &mine, orders)
}

/// Do this shard's part of `runs`, then those of the other shards that nobody is doing, until all
/// are over: a machine that was switched off, or never started, holds up nobody.
///
/// # Errors
/// As [`run_missing`].
pub(crate) fn run_all(
    folder: &StudyFolder,
    runs: &[PlannedRun],
    shard: Shard,
    orders: Orders<'_>,
) -> Result<Execution, Failure> {
    if do_free_ones(folder, &runs_of_shard(runs, 1, shard), orders)? == Execution::Interrupted {
        return Ok(Execution::Interrupted);
    }
    finish(folder, &runs.iter().collect::<Vec<_>>(), orders)
}

fn runs_of_shard(runs: &[PlannedRun], group: usize, shard: Shard) -> Vec<&PlannedRun> {
    let flops = |run: &PlannedRun| run.plan.training_flops_per_step() * run.plan.num_steps as f64;
    let parts = shard.parts(runs.chunks(group).map(|runs| runs.iter().map(flops).sum()));
    let with_parts = runs.chunks(group).zip(parts);
    with_parts.filter(|(_, is_mine)| *is_mine).flat_map(|(runs, _)| runs).collect()
}

/// Do those of `runs` that are not over and that no other process is doing, each once.
fn do_free_ones(
    folder: &StudyFolder,
    runs: &[&PlannedRun],
    orders: Orders<'_>,
) -> Result<Execution, Failure> {
    for (done, run) in runs.iter().enumerate() {
        if folder.is_over(run)? {
            if !orders.keep_checkpoints {
                folder.finish_deleting(run)?;
            }
            continue;
        }
        if let Some(_claim) = folder.claim(run)? {
            run_claimed(folder, run, &format!("[{}/{}]", done + 1, runs.len()), orders)?;
        }
        if orders.stop.load(Ordering::SeqCst) {
            return Ok(Execution::Interrupted);
        }
    }
    Ok(Execution::Done)
}

/// Come back to `runs` until all are over: those that another process was doing, and gave up or
/// could not finish.
fn finish(folder: &StudyFolder, runs: &[&PlannedRun], orders: Orders<'_>) -> Result<Execution, Failure> {
    let mut announced = false;
    loop {
        let mut missing: Vec<&PlannedRun> = Vec::new();
        for run in runs {
            if !folder.is_over(run)? {
                missing.push(run);
            }
        }
        if missing.is_empty() {
            return Ok(Execution::Done);
        }
        if orders.stop.load(Ordering::SeqCst) {
            return Ok(Execution::Interrupted);
        }
        let mut did_one = false;
        // One, and then a new look: the others may be over by then.
        for run in &missing {
            let Some(_claim) = folder.claim(run)? else { continue };
            if run_claimed(folder, run, "its shard is not running, so this one takes it over:", orders)? {
                did_one = true;
                break;
            }
        }
        if !did_one {
            if !announced {
                say!("waiting for {} run(s) of other processes", missing.len());
                announced = true;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Do a run that this process has claimed; says whether it did anything, as opposed to finding that
/// another process is at it or has finished it.
fn run_claimed(
    folder: &StudyFolder,
    run: &PlannedRun,
    prefix: &str,
    orders: Orders<'_>,
) -> Result<bool, Failure> {
    // It may have ended between the look at it and the claim.
    if folder.is_over(run)? || folder.is_at_work(run) {
        return Ok(false);
    }
    say!("{prefix} {}", run.folder);
    let did_it = match run_one(folder, run, orders).and_then(|()| ask(folder, run, orders)) {
        Ok(()) => true,
        // Whoever trains in the folder without a claim, by `switchyard train` for one, may have
        // been faster.
        Err(_) if folder.is_over(run)? || folder.is_at_work(run) => {
            say!("{}: another process is training it", folder.path_of(run).display());
            false
        }
        Err(failure) => return Err(failure),
    };
    // Whoever finished it: an error after the last line of `run.json` leaves a finished run too.
    if !orders.keep_checkpoints && folder.is_finished(run)? {
        delete_checkpoints(&folder.path_of(run))?;
    }
    Ok(did_it)
}

fn run_one(folder: &StudyFolder, run: &PlannedRun, orders: Orders<'_>) -> Result<(), Failure> {
    let out = folder.path_of(run);
    if is_finished(&out)? {
        return Ok(()); // It was stopped while it was asked.
    }
    let mode = if RunPaths::new(&out).manifest().is_file() { OpenMode::Resume } else { OpenMode::New };
    let request = TrainRequest {
        config: run.config.clone(),
        plan: run.plan.clone(),
        out: out.clone(),
        mode,
        show_progress: true,
        stop: orders.stop.clone(),
        comm: launch::comm(),
    };
    match train(&request) {
        Ok(summary) if summary.manifest.status == RunStatus::Alarmed => {
            record_divergence(&out, &summary.manifest.error.unwrap_or_else(|| "stopped by an alarm".into()))
        }
        Ok(_) => Ok(()),
        Err(error) if has_diverged(&error) => record_divergence(&out, &error.to_string()),
        Err(error) => Err(in_a_study(&out, error)),
    }
}

/// Asks a run that is trained the study's questions.
fn ask(folder: &StudyFolder, run: &PlannedRun, orders: Orders<'_>) -> Result<(), Failure> {
    let out = folder.path_of(run);
    let Some(questions) = &folder.questions else { return Ok(()) };
    if !is_finished(&out)? || folder.answers_of(run)?.is_some() {
        return Ok(());
    }
    match questions.ask(&out, run.settings.num_steps, orders.stop) {
        Err(_) if orders.stop.load(Ordering::SeqCst) => Ok(()), // It is asked when the study goes on.
        other => other,
    }
}

/// The failure of the run in `out` with advice that can be followed in a study, which chooses
/// folders and modes itself.
fn in_a_study(out: &Path, error: TrainError) -> Failure {
    let reason = match &error {
        TrainError::RunFolder(
            RunFolderError::NotARunFolder { .. } | RunFolderError::NothingToResume { .. },
        ) => "it holds files, but no `run.json`".to_string(),
        TrainError::RunFolder(RunFolderError::AlreadyExists { .. }) => "a run came into it meanwhile".into(),
        TrainError::RunFolder(RunFolderError::Locked { holder, .. }) => format!("{holder} has it locked"),
        TrainError::RunFolder(RunFolderError::BadManifest { reason, .. }) => {
            format!("its `run.json` is not the manifest of a run: {reason}")
        }
        TrainError::Metrics(MetricsError::Malformed { path, line_number, reason }) => {
            format!("`{}` line {line_number}: {reason}", path.display())
        }
        TrainError::Checkpoint(CheckpointError::Mismatch { path, reason }) => {
            // What follows the first sentence is advice for `switchyard train`.
            format!("`{}`: {}", path.display(), reason.split(". ").next().unwrap_or_default())
        }
        _ => return error.into(),
    };
    Failure::Mistake(format!(
        "`{}` cannot be gone on with: {reason}. Move the folder away or delete it, and the same command does this run anew",
        out.display()
    ))
}

/// Whether the run failed because numbers became infinite or none at all.
fn has_diverged(error: &TrainError) -> bool {
    error.non_finite().is_some()
        || matches!(
            error,
            TrainError::Metrics(MetricsError::NonFinite { .. })
                | TrainError::Checkpoint(CheckpointError::NonFinite { .. })
        )
}

fn record_divergence(run: &Path, reason: &str) -> Result<(), Failure> {
    say!("{}: diverged: {reason}", run.display());
    whole_file::replace(&run.join(DIVERGED), reason.as_bytes()).map_err(Failure::Fault)
}

/// A finished run of a study is repeated from its configuration if it is ever needed again. Under
/// the run's lock: somebody who goes on with it by hand keeps them.
fn delete_checkpoints(run: &Path) -> Result<(), Failure> {
    let folder = match RunFolder::create(run, OpenMode::Resume) {
        Ok(folder) => folder,
        Err(RunFolderError::Locked { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let checkpoints = folder.paths().checkpoints();
    match fs::remove_dir_all(&checkpoints) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error)
            .with_context(|| format!("cannot delete {}", checkpoints.display()))
            .map_err(Failure::Fault),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Budgets that repeat for every seed: in turns, one of two shards would have all of the
    /// largest ones.
    #[test]
    fn the_shards_share_all_work_evenly_and_without_overlap() {
        let work = [50.0, 100.0, 200.0, 400.0].repeat(5);
        for count in [1, 2, 3, 7] {
            let shards = (1..=count).map(|index| format!("{index}/{count}").parse::<Shard>().unwrap());
            let parts: Vec<Vec<bool>> = shards.map(|shard| shard.parts(work.clone())).collect();
            for part in 0..work.len() {
                assert_eq!(parts.iter().filter(|of_shard| of_shard[part]).count(), 1);
            }
            let loads = parts.iter().map(|of_shard| {
                work.iter().zip(of_shard).filter(|(_, is_mine)| **is_mine).map(|(work, _)| work).sum::<f64>()
            });
            let (least, most) =
                loads.fold((f64::INFINITY, 0.0_f64), |(least, most), load| (least.min(load), most.max(load)));
            assert!(most - least <= 400.0, "{count} shards: {least} to {most}");
        }
        assert!(!Shard::default().is_partial());
    }

    #[test]
    fn a_shard_out_of_range_is_refused() {
        for text in ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}

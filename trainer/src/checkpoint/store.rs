//! The folder of a run's checkpoints: which there are, which stay.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::manifest::MANIFEST_FILE;
use super::snapshot::NotWritten;
use super::step_name::{step_name, step_of};
use super::{CheckpointError, FILES, Snapshot};
use switchyard_ground::durable;

/// The name beside the checkpoints that leads to the newest.
pub const LATEST: &str = "latest";
const TEMPORARY_SUFFIX: &str = ".tmp";
const REPLACED_SUFFIX: &str = ".replaced.tmp";
const REMOVED_SUFFIX: &str = ".removed.tmp";

/// `checkpoints/` of one run: folders `step-<n>`, and `latest`, which names the newest.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    folder: PathBuf,
}

impl CheckpointStore {
    /// The store in `folder`, created if absent. What an interrupted write left there is removed,
    /// as far as it can be; files of other names stay.
    ///
    /// # Errors
    /// [`CheckpointError::Write`] if the folder cannot be created or read, a checkpoint that was
    /// about to be replaced cannot be put back, or a folder lies where `latest` belongs.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let failed = |error: io::Error| CheckpointError::write(folder, &error);
        durable::create_dir_all(folder).map_err(failed)?;
        for entry in fs::read_dir(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if name.to_str().is_some_and(is_temporary) {
                let path = folder.join(name);
                clean_up(&path).map_err(|error| CheckpointError::write(&path, &error))?;
            }
        }
        let latest = folder.join(LATEST);
        if fs::symlink_metadata(&latest).is_ok_and(|found| found.is_dir()) {
            let reason = "it is a folder, where a link to the newest checkpoint belongs: move it away";
            return Err(CheckpointError::Write { path: latest, reason: reason.into() });
        }
        Ok(Self { folder: folder.to_path_buf() })
    }

    /// Write a checkpoint: to a temporary folder, forced to the disk, renamed, and only then named
    /// by `latest`.
    ///
    /// # Errors
    /// [`CheckpointError::Write`], for instance on a full disk, and [`CheckpointError::NonFinite`]:
    /// earlier checkpoints are untouched. [`CheckpointError::Untidy`] if the checkpoint is written,
    /// but `latest` is still the one before.
    pub fn save(&self, snapshot: &Snapshot<'_>) -> Result<PathBuf, CheckpointError> {
        let step = snapshot.state.step;
        let target = self.path_of(step);
        let temporary = with_suffix(&target, TEMPORARY_SUFFIX);
        let written = remove_if_present(&temporary)
            .map_err(NotWritten::from)
            .and_then(|()| snapshot.write(&temporary))
            .and_then(|()| Ok(replace_folder(&temporary, &target)?));
        if let Err(problem) = written {
            // A full disk must not stay full with half a checkpoint. The write's own error is the
            // one to report.
            drop(fs::remove_dir_all(&temporary));
            return Err(match problem {
                NotWritten::Io(error) => CheckpointError::write(&target, &error),
                NotWritten::NonFinite(parameter) => CheckpointError::NonFinite { path: target, parameter },
            });
        }
        self.name_latest(step)?;
        Ok(target)
    }

    /// Make `latest` name the checkpoint of `step`, if it does not.
    ///
    /// # Errors
    /// [`CheckpointError::Untidy`].
    pub fn name_latest(&self, step: u64) -> Result<(), CheckpointError> {
        let latest = self.folder.join(LATEST);
        if fs::read_link(&latest)
            .is_ok_and(|target| target == self.path_of(step).file_name().unwrap_or_default())
        {
            return Ok(());
        }
        twice(|| self.point_latest_at(step)).map_err(|error| untidy(&latest, "replaced", &error))
    }

    /// Steps of the checkpoints on disk, oldest first.
    ///
    /// # Errors
    /// [`CheckpointError::NotACheckpoint`] if the folder is none, [`CheckpointError::Unreadable`].
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        steps_in(&self.folder)
    }

    /// Folder of the checkpoint of `step`.
    pub fn path_of(&self, step: u64) -> PathBuf {
        self.folder.join(step_name(step))
    }

    /// Remove all checkpoints but the newest `keep_last` and the one of `best_step`.
    ///
    /// # Errors
    /// [`CheckpointError::Untidy`] if one cannot be removed; the others are.
    pub fn retain(&self, keep_last: usize, best_step: Option<u64>) -> Result<(), CheckpointError> {
        let steps = self.steps()?;
        let num_old = steps.len().saturating_sub(keep_last);
        let mut problem = None;
        for step in steps[..num_old].iter().filter(|step| Some(**step) != best_step) {
            let path = self.path_of(*step);
            if let Err(error) = remove_folder(&path) {
                problem.get_or_insert(untidy(&path, "removed", &error));
            }
        }
        problem.map_or(Ok(()), Err)
    }

    #[cfg(unix)]
    fn point_latest_at(&self, step: u64) -> io::Result<()> {
        let latest = self.folder.join(LATEST);
        let temporary = with_suffix(&latest, TEMPORARY_SUFFIX);
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(step_name(step), &temporary)?;
        fs::rename(&temporary, &latest)?;
        durable::sync_parent(&latest)
    }

    /// Symbolic links need a privilege elsewhere: a file that holds the folder's name.
    #[cfg(not(unix))]
    fn point_latest_at(&self, step: u64) -> io::Result<()> {
        durable::replace(&self.folder.join(LATEST), format!("{}\n", step_name(step)).as_bytes())
    }
}

fn untidy(path: &Path, action: &'static str, error: &io::Error) -> CheckpointError {
    CheckpointError::Untidy { path: path.into(), action, reason: error.to_string() }
}

/// The checkpoint folder that `path` means: itself, or the newest checkpoint of the run folder (or
/// of its `checkpoints` folder) at `path`.
///
/// # Errors
/// [`CheckpointError::NotACheckpoint`] if there is none, [`CheckpointError::Unreadable`].
pub fn find_checkpoint(path: &Path) -> Result<PathBuf, CheckpointError> {
    if path.join(MANIFEST_FILE).is_file() {
        return Ok(path.to_path_buf());
    }
    let nested = path.join("checkpoints");
    let folder = if nested.is_dir() { nested } else { path.to_path_buf() };
    let newest = steps_in(&folder)?.pop();
    newest.map(|step| folder.join(step_name(step))).ok_or_else(|| CheckpointError::NotACheckpoint {
        path: path.into(),
        reason: match path.join("config.json").is_file() {
            true => format!(
                "it is a published model, of which `switchyard import {} --out RUN` makes a run",
                path.display()
            ),
            false => "it holds no `manifest.json` and no `step-<n>` folder".into(),
        },
    })
}

/// Steps of the checkpoints in `folder`, oldest first. Files, and folders of other names, are none
/// of ours.
///
/// # Errors
/// [`CheckpointError::NotACheckpoint`], [`CheckpointError::Unreadable`].
pub fn steps_in(folder: &Path) -> Result<Vec<u64>, CheckpointError> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            CheckpointError::NotACheckpoint { path: folder.into(), reason: error.to_string() }
        }
        _ => CheckpointError::Unreadable { path: folder.into(), source: error },
    };
    let mut steps = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let Some(step) = name.to_str().and_then(step_of) else { continue };
        // A checkpoint that cannot be looked at for a moment must not look like one that is not
        // there.
        match fs::metadata(folder.join(&name)) {
            Ok(found) if found.is_dir() => steps.push(step),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unreadable(error)),
            _ => {}
        }
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Whether a process that was killed here may have left a file or folder of this name.
pub(crate) fn is_temporary(name: &str) -> bool {
    let stem = [REPLACED_SUFFIX, REMOVED_SUFFIX, TEMPORARY_SUFFIX]
        .into_iter()
        .find_map(|suffix| name.strip_suffix(suffix));
    stem.is_some_and(|stem| step_of(stem).is_some()) || name.strip_suffix(TEMPORARY_SUFFIX) == Some(LATEST)
}

/// Removes what a checkpoint's folder holds of ours, and the folder if nothing else is in it; a
/// file or a link of this name is no checkpoint and goes as it is.
pub(crate) fn remove_checkpoint_files(folder: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(folder)?.is_dir() {
        return fs::remove_file(folder);
    }
    for name in FILES.iter().chain([&MANIFEST_FILE]) {
        match fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other,
    }
}

/// Put `temporary` in the place of `target`. A folder cannot be renamed over another, so an earlier
/// checkpoint of the same step is moved aside until the new one stands; [`clean_up`] puts it back
/// if the process dies in between.
fn replace_folder(temporary: &Path, target: &Path) -> io::Result<()> {
    let aside = with_suffix(target, REPLACED_SUFFIX);
    if target.exists() {
        remove_if_present(&aside)?;
        fs::rename(target, &aside)?;
    }
    fs::rename(temporary, target)?;
    durable::sync_parent(target)?;
    // It is whole and in its place: what is left beside it goes when the store is opened next.
    drop(twice(|| remove_if_present(&aside)));
    Ok(())
}

/// Remove what an interrupted process left, or put a checkpoint back that was about to be replaced.
/// What cannot be removed is in nobody's way.
fn clean_up(path: &Path) -> io::Result<()> {
    let replaced = path.to_string_lossy().strip_suffix(REPLACED_SUFFIX).map(PathBuf::from);
    match replaced {
        Some(target) if !target.exists() => {
            fs::rename(path, &target)?;
            return durable::sync_parent(&target);
        }
        // A link is removed, not what it leads to.
        _ if path.is_dir() => drop(fs::remove_dir_all(path)),
        _ => drop(fs::remove_file(path)),
    }
    Ok(())
}

/// Remove a folder in one visible step: renamed to a temporary name first, so that no reader and no
/// crash meets half a checkpoint.
fn remove_folder(folder: &Path) -> io::Result<()> {
    let aside = with_suffix(folder, REMOVED_SUFFIX);
    twice(|| remove_if_present(&aside))?;
    twice(|| fs::rename(folder, &aside))?;
    // Or a power cut could keep the old name and lose some of the files. Where that cannot be, the
    // disk has to be cleared all the same.
    drop(durable::sync_parent(folder));
    twice(|| remove_if_present(&aside))
}

/// The outcome of `tidy`, or of a second try: a moment's trouble of the disk must not leave a run
/// untidy for good.
fn twice(tidy: impl Fn() -> io::Result<()>) -> io::Result<()> {
    tidy().or_else(|_| tidy())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

fn remove_if_present(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_run_writes_are_steps() {
        assert_eq!(step_of("step-0"), Some(0));
        assert_eq!(step_of("step-120"), Some(120));
        for name in
            ["step-+7", "step-07", "step-", "step--1", "step-7.tmp", "Step-7", "step-99999999999999999999"]
        {
            assert_eq!(step_of(name), None, "{name}");
        }
    }

    #[test]
    fn a_file_and_a_folder_of_another_name_are_no_checkpoints() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["step-3", "step-12", "step-+7", "step-007", "best"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("step-99"), "a note").unwrap();
        assert_eq!(steps_in(folder.path()).unwrap(), [3, 12]);
    }

    #[test]
    fn only_leftovers_of_a_runs_own_names_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let ours = ["step-4.tmp", "step-2.removed.tmp", "latest.tmp"];
        let theirs = ["thesis.tmp", "step-a.tmp", "backup.removed.tmp", "step-3.old.tmp"];
        for name in ours.iter().chain(&theirs) {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("file"), "").unwrap();
        }
        CheckpointStore::open(folder.path()).unwrap();
        assert!(ours.iter().all(|name| !folder.path().join(name).exists()));
        assert!(theirs.iter().all(|name| folder.path().join(name).join("file").exists()));
    }

    #[test]
    fn a_folder_where_latest_belongs_is_named_before_anything_is_trained() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(LATEST)).unwrap();
        let message = CheckpointStore::open(folder.path()).unwrap_err().to_string();
        assert!(message.contains("latest: ") && message.contains("move it away"), "{message}");
    }
}

//! The folder of a run's checkpoints: which there are, which stay.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::manifest::{CheckpointManifest, MANIFEST_FILE};
use super::{CheckpointError, Snapshot};
use switchyard_ground::durable;

const LATEST: &str = "latest";
const TEMPORARY_SUFFIX: &str = ".tmp";
const REPLACED_SUFFIX: &str = ".replaced.tmp";

/// `checkpoints/` of one run: folders `step-<n>`, and `latest`, which names the newest.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    folder: PathBuf,
}

impl CheckpointStore {
    /// The store in `folder`, created if absent. What an interrupted write left there is removed.
    ///
    /// # Errors
    /// [`CheckpointError::Write`] if the folder cannot be created or cleaned.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let failed = |error: io::Error| CheckpointError::write(folder, &error);
        fs::create_dir_all(folder).map_err(failed)?;
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.to_string_lossy().ends_with(TEMPORARY_SUFFIX) {
                clean_up(&path).map_err(|error| CheckpointError::write(&path, &error))?;
            }
        }
        Ok(Self { folder: folder.to_path_buf() })
    }

    /// Write a checkpoint: to a temporary folder, forced to the disk, renamed, and only then named by `latest`.
    ///
    /// # Errors
    /// [`CheckpointError::Write`], for instance on a full disk; earlier checkpoints are untouched.
    pub fn save(&self, snapshot: &Snapshot<'_>) -> Result<PathBuf, CheckpointError> {
        let step = snapshot.state.step;
        let target = self.path_of(step);
        let temporary = self.folder.join(format!("step-{step}{TEMPORARY_SUFFIX}"));
        let written = snapshot.files(&target).and_then(|files| {
            write_folder(&temporary, step, &files)
                .and_then(|()| replace_folder(&temporary, &target))
                .and_then(|()| self.point_latest_at(step))
                .map_err(|error| CheckpointError::write(&target, &error))
        });
        if written.is_err() {
            // A full disk must not stay full with half a checkpoint. The write's own error is the one to report.
            drop(fs::remove_dir_all(&temporary));
        }
        written.map(|()| target)
    }

    /// Steps of the checkpoints on disk, oldest first.
    ///
    /// # Errors
    /// [`CheckpointError::NotACheckpoint`] if the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        steps_in(&self.folder)
    }

    /// Folder of the checkpoint of `step`.
    pub fn path_of(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// Remove all checkpoints but the newest `keep_last` and the one of `best_step`.
    ///
    /// # Errors
    /// [`CheckpointError::Write`] if one cannot be removed.
    pub fn retain(&self, keep_last: usize, best_step: Option<u64>) -> Result<(), CheckpointError> {
        let steps = self.steps()?;
        let num_old = steps.len().saturating_sub(keep_last);
        for step in steps[..num_old].iter().filter(|step| Some(**step) != best_step) {
            let path = self.path_of(*step);
            remove_folder(&path).map_err(|error| CheckpointError::write(&path, &error))?;
        }
        Ok(())
    }

    #[cfg(unix)]
    fn point_latest_at(&self, step: u64) -> io::Result<()> {
        let latest = self.folder.join(LATEST);
        let temporary = self.folder.join(format!("{LATEST}{TEMPORARY_SUFFIX}"));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(format!("step-{step}"), &temporary)?;
        fs::rename(&temporary, &latest)?;
        durable::sync_parent(&latest)
    }

    /// Symbolic links need a privilege elsewhere: a file that holds the folder's name.
    #[cfg(not(unix))]
    fn point_latest_at(&self, step: u64) -> io::Result<()> {
        durable::replace(&self.folder.join(LATEST), format!("step-{step}\n").as_bytes())
    }
}

/// The checkpoint folder that `path` means: itself, or the newest checkpoint of the run folder (or of its
/// `checkpoints` folder) at `path`.
///
/// # Errors
/// [`CheckpointError::NotACheckpoint`] if there is none.
pub fn find_checkpoint(path: &Path) -> Result<PathBuf, CheckpointError> {
    if path.join(MANIFEST_FILE).is_file() {
        return Ok(path.to_path_buf());
    }
    let nested = path.join("checkpoints");
    let folder = if nested.is_dir() { nested } else { path.to_path_buf() };
    let newest = steps_in(&folder)?.pop();
    newest.map(|step| folder.join(format!("step-{step}"))).ok_or_else(|| CheckpointError::NotACheckpoint {
        path: path.into(),
        reason: "it holds no `manifest.json` and no `step-<n>` folder".into(),
    })
}

/// Steps of the checkpoints in `folder`, oldest first.
pub(crate) fn steps_in(folder: &Path) -> Result<Vec<u64>, CheckpointError> {
    let unreadable =
        |error: io::Error| CheckpointError::NotACheckpoint { path: folder.into(), reason: error.to_string() };
    let mut steps = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        steps.extend(name.to_str().and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok()));
    }
    steps.sort_unstable();
    Ok(steps)
}

fn write_folder(folder: &Path, step: u64, files: &[(&str, Vec<u8>)]) -> io::Result<()> {
    remove_if_present(folder)?;
    fs::create_dir(folder)?;
    for (name, bytes) in files {
        durable::write_synced(&folder.join(name), bytes)?;
    }
    let manifest = CheckpointManifest::new(step, files.iter().map(|(name, bytes)| (*name, bytes.as_slice())));
    let json = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other)?;
    let path = folder.join(MANIFEST_FILE);
    durable::write_synced(&path, &json)?;
    durable::sync_parent(&path)
}

/// Put `temporary` in the place of `target`. A folder cannot be renamed over another, so an earlier checkpoint of the
/// same step is moved aside until the new one stands; [`clean_up`] puts it back if the process dies in between.
fn replace_folder(temporary: &Path, target: &Path) -> io::Result<()> {
    let aside = with_suffix(target, REPLACED_SUFFIX);
    if target.exists() {
        remove_if_present(&aside)?;
        fs::rename(target, &aside)?;
    }
    fs::rename(temporary, target)?;
    durable::sync_parent(target)?;
    remove_if_present(&aside)
}

/// Remove what an interrupted process left, or put a checkpoint back that was about to be replaced.
fn clean_up(path: &Path) -> io::Result<()> {
    let replaced = path.to_string_lossy().strip_suffix(REPLACED_SUFFIX).map(PathBuf::from);
    match replaced {
        Some(target) if !target.exists() => fs::rename(path, target),
        _ if path.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    }
}

/// Remove a folder in one visible step: renamed to a temporary name first, so that no reader and no crash meets half a
/// checkpoint.
fn remove_folder(folder: &Path) -> io::Result<()> {
    let aside = with_suffix(folder, ".removed.tmp");
    remove_if_present(&aside)?;
    fs::rename(folder, &aside)?;
    fs::remove_dir_all(&aside)
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

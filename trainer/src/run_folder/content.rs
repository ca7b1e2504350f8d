//! What lies in a run folder: which names a run writes, and what may be deleted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use switchyard_ground::durable;

use super::{EVENT_FILE_PREFIX, OpenMode, RunFolderError, RunManifest, RunPaths};
use crate::checkpoint::{LATEST, is_temporary, remove_checkpoint_files, step_of};
use switchyard_flight::columns::is_recording;
use switchyard_ground::aside::is_aside;

/// Refuses a folder that `mode` may not touch.
pub(super) fn check(paths: &RunPaths, mode: OpenMode) -> Result<(), RunFolderError> {
    check_places(paths, mode)?;
    let path = paths.root().to_path_buf();
    let is_run = paths.manifest().symlink_metadata().is_ok();
    match mode {
        OpenMode::Resume if !is_run => Err(RunFolderError::NothingToResume { path }),
        OpenMode::New if is_run => Err(RunFolderError::AlreadyExists { path }),
        OpenMode::Overwrite if is_run => match RunManifest::read(&paths.manifest()) {
            Ok(_) => Ok(()),
            Err(RunFolderError::BadManifest { reason, .. }) => {
                Err(RunFolderError::ForeignManifest { path, reason })
            }
            Err(error) => Err(error),
        },
        _ if !is_run && !holds_traces_only(paths)? => Err(RunFolderError::NotARunFolder { path }),
        OpenMode::New | OpenMode::Overwrite | OpenMode::Resume => Ok(()),
    }
}

/// Refuses a folder where something else lies in the place of a run's folders, or of files that are
/// to be replaced: before anything is deleted or written.
fn check_places(paths: &RunPaths, mode: OpenMode) -> Result<(), RunFolderError> {
    for path in [paths.checkpoints(), paths.flight()] {
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {}
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(RunFolderError::io("read", &path)(error));
            }
            _ => return Err(RunFolderError::Occupied { path, belongs: "a folder" }),
        }
    }
    let is_folder = |path: &PathBuf| path.symlink_metadata().is_ok_and(|found| found.is_dir());
    match files(paths).into_iter().find(is_folder) {
        Some(path) if mode == OpenMode::Overwrite => {
            Err(RunFolderError::Occupied { path, belongs: "a file" })
        }
        _ => Ok(()),
    }
}

/// Whether all that lies there is what a process leaves that was killed before it wrote `run.json`,
/// the first file of a run; folders that earlier versions made before it included.
fn holds_traces_only(paths: &RunPaths) -> Result<bool, RunFolderError> {
    let unfinished: Vec<PathBuf> = files(paths).iter().map(|path| durable::temporary_of(path)).collect();
    for name in entry_names(paths.root())? {
        let path = paths.root().join(&name);
        let is_trace = if path == paths.checkpoints() {
            // A checkpoint that waits to be put back is whole.
            holds_only(&path, |name| is_temporary(name) && !name.contains(".replaced."))?
        } else if path == paths.flight() {
            holds_only(&path, |name| name.ends_with(".tmp") && is_flight_file(paths, name))?
        } else {
            path == paths.lock() || unfinished.contains(&path)
        };
        if !is_trace {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether `folder` is a folder, and no link to one, with such names only.
fn holds_only(folder: &Path, is_ours: impl Fn(&str) -> bool) -> Result<bool, RunFolderError> {
    let is_folder = folder.symlink_metadata().is_ok_and(|found| found.is_dir());
    Ok(is_folder && entry_names(folder)?.iter().all(|name| is_ours(name)))
}

/// Deletes what `durable::replace` leaves when the process is killed inside it. Safe under the lock
/// only.
pub(super) fn remove_unfinished(paths: &RunPaths) -> Result<(), RunFolderError> {
    files(paths).iter().try_for_each(|path| remove_file(&durable::temporary_of(path)))
}

/// Deletes what a run writes, by name, and its folders if nothing else is in them; all but
/// `run.json`, which the new run replaces: whenever this is cut short, a second try still sees a
/// run. Returns what is left of others.
pub(super) fn remove_run(paths: &RunPaths) -> Result<Vec<PathBuf>, RunFolderError> {
    let checkpoints = paths.checkpoints();
    remove_from(&checkpoints, |name| step_of(name).is_some() || name == LATEST || is_temporary(name))?;
    remove_from(&paths.flight(), |name| is_flight_file(paths, name))?;
    for name in entry_names(paths.root())? {
        let path = paths.root().join(&name);
        let is_aside = file_name(&paths.metrics()).is_some_and(|log| is_aside(&name, log));
        if is_event_file(&name) || is_aside {
            remove_file(&path)?;
        }
    }
    let manifest = paths.manifest();
    files(paths).iter().filter(|path| **path != manifest).try_for_each(|path| remove_file(path))?;
    left_in(paths)
}

/// The files with a fixed name.
fn files(paths: &RunPaths) -> [PathBuf; 5] {
    [paths.metrics(), paths.sample(), paths.document_losses(), paths.config(), paths.manifest()]
}

/// Whether a run writes a file `name` in `flight`.
fn is_flight_file(paths: &RunPaths, name: &str) -> bool {
    let lines = [paths.alarms(), paths.probes(), paths.saturation()];
    let is_lines = |path: &PathBuf| {
        let temporary = durable::temporary_of(path);
        file_name(path).is_some_and(|lines| name == lines || is_aside(name, lines))
            || file_name(&temporary) == Some(name)
    };
    is_recording(name) || lines.iter().any(is_lines)
}

/// Whether `name` is that of an event file as a run names it.
fn is_event_file(name: &str) -> bool {
    let Some((secs, host)) = name.strip_prefix(EVENT_FILE_PREFIX).and_then(|rest| rest.split_once('.'))
    else {
        return false;
    };
    secs.len() >= 10 && secs.bytes().all(|byte| byte.is_ascii_digit()) && !host.contains('.')
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Removes what is ours of `folder`, and the folder itself if nothing else is in it.
fn remove_from(folder: &Path, is_ours: impl Fn(&str) -> bool) -> Result<(), RunFolderError> {
    if !folder.is_dir() {
        return Ok(());
    }
    for name in entry_names(folder)?.iter().filter(|name| is_ours(name)) {
        let path = folder.join(name);
        remove_checkpoint_files(&path).map_err(RunFolderError::io("remove", &path))?;
    }
    match fs::remove_dir(folder) {
        // Other files are in it, or it is a link to a folder elsewhere.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory) =>
        {
            Ok(())
        }
        other => other.map_err(RunFolderError::io("remove", folder)),
    }
}

/// What lies in the folder beside the lock and `run.json`; of the run's folders, what lies in them.
fn left_in(paths: &RunPaths) -> Result<Vec<PathBuf>, RunFolderError> {
    let mut left = Vec::new();
    let mut folders = vec![paths.root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for name in entry_names(&folder)? {
            let path = folder.join(&name);
            let is_runs_own = folder != paths.root() && step_of(&name).is_some()
                || path == paths.checkpoints()
                || path == paths.flight();
            match path.symlink_metadata() {
                Ok(found) if found.is_dir() && is_runs_own => folders.push(path),
                _ if path == paths.lock() || path == paths.manifest() => {}
                _ => left.push(path),
            }
        }
    }
    left.sort();
    Ok(left)
}

/// Names in the folder at `path`, as text; none if it does not exist.
pub(super) fn entry_names(path: &Path) -> Result<Vec<String>, RunFolderError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(RunFolderError::io("read", path)(error)),
    };
    entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(RunFolderError::io("read", path))
}

pub(super) fn remove_file(path: &Path) -> Result<(), RunFolderError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(RunFolderError::io("remove", path)),
    }
}

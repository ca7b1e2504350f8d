//! Whether a run of a study is over.

use std::io;
use std::path::Path;

use switchyard_trainer::run_folder::{RunFolderError, RunManifest, RunPaths, RunStatus};

/// Whether the run in `folder` is over. One whose `run.json` is damaged is not: training says what
/// is wrong with it.
///
/// # Errors
/// If its `run.json` is there and cannot be read: that is no reason to count without the run, nor
/// to repeat it.
pub(crate) fn is_finished(folder: &Path) -> Result<bool, RunFolderError> {
    match RunManifest::read(&RunPaths::new(folder).manifest()) {
        Ok(run) => Ok(run.status == RunStatus::Finished),
        Err(RunFolderError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(RunFolderError::BadManifest { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

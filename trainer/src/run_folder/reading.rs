//! What a reader, who takes no lock, sees of a run.

use std::fs::TryLockError;
use std::io;

use switchyard_ground::regular_file;

use super::{RunFolderError, RunManifest, RunPaths, RunStatus};

/// A run's manifest, with what it cannot say of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct RunReading {
    /// `run.json`.
    pub manifest: RunManifest,
    /// Whether it says `running` although no process has the folder locked.
    pub was_killed: bool,
}

impl RunReading {
    /// Where the run stands, in the words of `run.json`; `killed` if its process is gone.
    pub fn status(&self) -> &'static str {
        match self.manifest.status {
            RunStatus::Running if self.was_killed => "killed",
            RunStatus::Running => "running",
            RunStatus::Finished => "finished",
            RunStatus::Interrupted => "interrupted",
            RunStatus::Alarmed => "alarmed",
            RunStatus::Failed => "failed",
        }
    }

    /// Whether a process is training in the folder.
    pub fn is_at_work(&self) -> bool {
        self.manifest.status == RunStatus::Running && !self.was_killed
    }
}

impl RunPaths {
    /// The run as it stands now.
    ///
    /// # Errors
    /// [`RunFolderError::Io`] and [`RunFolderError::BadManifest`], both with the path.
    pub fn read(&self) -> Result<RunReading, RunFolderError> {
        let manifest = RunManifest::read(&self.manifest())?;
        if manifest.status != RunStatus::Running || self.is_locked()? {
            return Ok(RunReading { manifest, was_killed: false });
        }
        // Between the two looks the process may have written how it ended, and gone.
        let manifest = RunManifest::read(&self.manifest())?;
        let was_killed = manifest.status == RunStatus::Running;
        Ok(RunReading { manifest, was_killed })
    }

    /// Whether a process holds the run's lock. The lock is shared for a moment, which a process
    /// that starts waits for.
    fn is_locked(&self) -> Result<bool, RunFolderError> {
        let path = self.lock();
        let lock = match regular_file::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(RunFolderError::io("open", &path)(error)),
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(RunFolderError::io("lock", &path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_folder::{OpenMode, RunFolder};
    use serde_json::json;

    fn manifest() -> RunManifest {
        RunManifest::starting(json!({}), json!({}), 0, "cpu")
    }

    #[test]
    fn a_running_run_whose_lock_nobody_holds_was_killed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(&parent.path().join("a"), OpenMode::New).unwrap();
        folder.write_manifest(&manifest()).unwrap();
        let paths = folder.paths().clone();
        let reading = paths.read().unwrap();
        assert!(reading.is_at_work());
        assert_eq!(reading.status(), "running");
        drop(folder);
        let reading = paths.read().unwrap();
        assert!(reading.was_killed && !reading.is_at_work());
        assert_eq!(reading.status(), "killed");
    }

    #[test]
    fn a_run_that_said_how_it_ended_was_not_killed() {
        let parent = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(parent.path());
        for (status, text) in [
            (RunStatus::Finished, "finished"),
            (RunStatus::Interrupted, "interrupted"),
            (RunStatus::Alarmed, "alarmed"),
            (RunStatus::Failed, "failed"),
        ] {
            let mut manifest = manifest();
            manifest.end(status);
            manifest.write(&paths.manifest()).unwrap();
            let reading = paths.read().unwrap();
            assert_eq!((reading.status(), reading.was_killed), (text, false));
        }
    }

    #[test]
    fn looking_at_a_run_leaves_its_folder_as_it_was() {
        let parent = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(parent.path());
        manifest().write(&paths.manifest()).unwrap();
        paths.read().unwrap();
        assert!(!paths.lock().exists());
        RunFolder::create(parent.path(), OpenMode::Resume).unwrap();
    }
}

//! Checkpoints written beside the loop.

use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use super::snapshot::HeldSnapshot;
use super::{CheckpointError, CheckpointStore};

/// Writes checkpoints in a thread of its own, one at a time, while the run goes on.
#[derive(Debug, Default)]
pub(crate) struct CheckpointWriter {
    running: Option<JoinHandle<Result<PathBuf, CheckpointError>>>,
}

/// A checkpoint that is written, or is not.
pub(crate) type Outcome = Result<PathBuf, CheckpointError>;

impl CheckpointWriter {
    /// Begins to write `snapshot`, as [`CheckpointStore::save`] does. Without a thread to be had it
    /// is written before this returns.
    ///
    /// # Panics
    /// If the checkpoint before has not been [waited](Self::wait) for.
    pub(crate) fn begin(&mut self, store: &CheckpointStore, snapshot: HeldSnapshot) -> Option<Outcome> {
        assert!(self.running.is_none(), "two checkpoints at once");
        let (store, target) = (store.clone(), store.path_of(snapshot.step()));
        let (job, spare) = (snapshot.clone(), store.clone());
        let named = thread::Builder::new().name(format!("write {}", target.display()));
        match named.spawn(move || store.save(&job.view())) {
            Ok(thread) => {
                self.running = Some(thread);
                None
            }
            Err(_) => Some(spare.save(&snapshot.view())),
        }
    }

    /// What became of the checkpoint that was begun, once it is known; `None` until then, and if
    /// none was.
    pub(crate) fn outcome(&mut self) -> Option<Outcome> {
        if self.running.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return None;
        }
        self.wait()
    }

    /// What became of the checkpoint that was begun, when it is known; `None` if none was.
    pub(crate) fn wait(&mut self) -> Option<Outcome> {
        // A panic goes on where the run can be seen to end.
        Some(self.running.take()?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for CheckpointWriter {
    /// A run that is given up leaves no thread behind that writes into its folder.
    fn drop(&mut self) {
        drop(self.running.take().map(JoinHandle::join));
    }
}

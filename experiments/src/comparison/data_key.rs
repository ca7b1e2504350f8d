//! Which data a run had, by its content.

use switchyard_trainer::checkpoint::{find_checkpoint, read_state};
use switchyard_trainer::run_folder::{RunManifest, RunPaths};

/// Content key of the data of the run at `paths`: as its manifest tells it, or, for runs of earlier
/// versions, its newest checkpoint. `None` if neither does.
pub(crate) fn data_key(paths: &RunPaths, manifest: &RunManifest) -> Option<String> {
    manifest.data_key.clone().or_else(|| {
        let checkpoint = find_checkpoint(paths.root()).ok()?;
        Some(read_state(&checkpoint).ok()?.data_hash)
    })
}

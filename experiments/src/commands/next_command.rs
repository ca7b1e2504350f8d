//! Commands that are printed to be run next, as a shell takes them.

use std::path::Path;

use switchyard_ground::shell::{quoted, quoted_path};
use switchyard_trainer::run_folder::RunPaths;

/// The command that goes on with the run in `out`. The run's own configuration holds what `--set`
/// has changed.
pub(super) fn resume(out: &Path) -> String {
    let config = quoted_path(&RunPaths::new(out).config());
    format!("{} train {config} --out {} --resume", program(), quoted_path(out))
}

/// The command that shows the run in `out`.
pub(super) fn inspect(out: &Path) -> String {
    format!("{} inspect {}", program(), quoted_path(out))
}

/// The command that lets the model in `out` continue a text.
pub(super) fn generate(out: &Path) -> String {
    format!("{} generate {} --prompt TEXT", program(), quoted_path(out))
}

/// This program as it was called, which need not be found by its name alone.
fn program() -> String {
    let called = std::env::args_os().next().unwrap_or_else(|| "switchyard".into());
    quoted(&called.to_string_lossy()).into_owned()
}

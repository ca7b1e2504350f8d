//! Ctrl-C: the first asks the work to finish its step, the second ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::failure::Failure;

/// Exit code of a process ended by SIGINT, as shells report it.
const INTERRUPTED: i32 = 130;

/// A flag that Ctrl-C (or SIGTERM) sets.
///
/// # Errors
/// If the system refuses a signal handler.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = flag.clone();
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::SeqCst) {
            end_now();
        }
        eprintln!("\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once");
    })
    .context("cannot watch for Ctrl-C")
    .map_err(Failure::Fault)?;
    Ok(flag)
}

#[expect(
    clippy::exit,
    reason = "the user asked twice; checkpoints are written to temporary names, so none is torn"
)]
fn end_now() {
    std::process::exit(INTERRUPTED);
}

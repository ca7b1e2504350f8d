//! Ctrl-C and its kin: the first asks the work to finish its step, the second ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use switchyard_ground::say;

use crate::failure::Failure;

/// How often the watching thread looks whether a signal has come.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[cfg(unix)]
const STOPPING: [i32; 3] = [SIGINT, SIGTERM, signal_hook::consts::SIGHUP];
#[cfg(not(unix))]
const STOPPING: [i32; 2] = [SIGINT, SIGTERM];

/// A flag that Ctrl-C, SIGTERM or SIGHUP sets; a second one ends the process.
///
/// A signal that the parent had the process ignore stays ignored, which is what `nohup` relies on.
///
/// # Errors
/// If the system refuses a signal handler.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let (stop, first) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let ignored = ignored_signals();
    for signal in STOPPING.into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0) {
        // The order matters: the first signal finds the flag unset and sets it, the second finds it set.
        flag::register_conditional_shutdown(signal, exit_code_of(signal).into(), stop.clone())
            .and_then(|_| flag::register_usize(signal, first.clone(), signal as usize))
            .and_then(|_| flag::register(signal, stop.clone()))
            .context("cannot watch for Ctrl-C")
            .map_err(Failure::Fault)?;
    }
    let seen = stop.clone();
    // A handler may not print; the thread ends with the process.
    std::thread::spawn(move || {
        while !seen.load(Ordering::SeqCst) {
            std::thread::sleep(LOOK_EVERY);
        }
        say!("\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once");
    });
    Ok(stop)
}

/// Exit code of a process that `signal` ended, as shells report it.
fn exit_code_of(signal: i32) -> u8 {
    128 + signal as u8
}

/// The signals that the parent had this process ignore, signal `n` at bit `n - 1`; none where the system does not say.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

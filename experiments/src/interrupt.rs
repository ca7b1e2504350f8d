//! Ctrl-C and its kin: the first asks the work to end well, a second Ctrl-C ends the process.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use switchyard_ground::say;

/// How often the watching thread looks whether a signal has come.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Signals within this time after the first are the same request: `timeout`, shells and other
/// parents pass one on that the terminal or the system has sent already.
const SAME_REQUEST: Duration = Duration::from_millis(300);

#[cfg(unix)]
const SIGHUP: i32 = signal_hook::consts::SIGHUP;
#[cfg(not(unix))]
const SIGHUP: i32 = 1;

#[cfg(unix)]
const STOPPING: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];
#[cfg(not(unix))]
const STOPPING: [i32; 2] = [SIGINT, SIGTERM];

/// Whether this process was asked to stop, and by which signal.
#[derive(Debug, Default)]
pub(crate) struct Interruption {
    stop: Arc<AtomicBool>,
    /// The latest signal; 0 before one has come.
    signal: Arc<AtomicUsize>,
}

impl Interruption {
    /// The flag that Ctrl-C, SIGTERM and SIGHUP set from now on, for work that looks at it often.
    /// `promise` is what the user is then told, such as "stopping after this step".
    ///
    /// A second Ctrl-C or SIGTERM ends the process at once. A second SIGHUP does not: a terminal
    /// that closes may send several, and nobody who closes one asks for haste. A signal that the
    /// parent had the process ignore stays ignored, which is what `nohup` relies on; only Linux
    /// says which ones these are, so elsewhere none is.
    ///
    /// # Errors
    /// If the system refuses a signal handler.
    pub(crate) fn watch(&self, promise: &'static str) -> io::Result<Arc<AtomicBool>> {
        self.watch_and(move || say!("\n{promise}; press Ctrl-C again to stop at once"))
    }

    /// As [`Interruption::watch`], and nobody is told.
    ///
    /// # Errors
    /// If the system refuses a signal handler.
    pub(crate) fn watch_quietly(&self) -> io::Result<Arc<AtomicBool>> {
        self.watch_and(|| {})
    }

    fn watch_and(&self, promise: impl Fn() + Send + 'static) -> io::Result<Arc<AtomicBool>> {
        let hurry = Arc::new(AtomicBool::new(false));
        let ignored = ignored_signals();
        for signal in STOPPING.into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0) {
            let hurries = if signal == SIGHUP {
                Ok(())
            } else {
                flag::register_conditional_shutdown(signal, exit_code_of(signal).into(), hurry.clone())
                    .map(drop)
            };
            // The number before the flag: whoever sees the flag finds the number.
            hurries
                .and_then(|()| flag::register_usize(signal, self.signal.clone(), signal as usize))
                .and_then(|_| flag::register(signal, self.stop.clone()))
                .map_err(|error| io::Error::new(error.kind(), format!("cannot watch for Ctrl-C: {error}")))?;
        }
        let stop = self.stop.clone();
        // A handler may not print; the thread ends with the process.
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                std::thread::sleep(LOOK_EVERY);
            }
            promise();
            std::thread::sleep(SAME_REQUEST);
            hurry.store(true, Ordering::SeqCst);
        });
        Ok(self.stop.clone())
    }

    /// Whether a signal has come.
    pub(crate) fn has_come(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Exit code of a process that ends because of it: 130 after Ctrl-C, 143 after SIGTERM, 129
    /// after SIGHUP.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.signal.load(Ordering::SeqCst) {
            0 => exit_code_of(SIGINT),
            signal => exit_code_of(signal as i32),
        }
    }
}

/// Has a write beyond `ulimit -f` fail as one to a full disk does, instead of ending the process
/// with its work: a signal that has a handler ends nothing.
pub(crate) fn make_large_files_an_error() {
    #[cfg(unix)]
    drop(flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false))));
}

/// Exit code of a process that `signal` ended, as shells report it.
fn exit_code_of(signal: i32) -> u8 {
    128 + signal as u8
}

/// The signals that the parent had this process ignore, signal `n` at bit `n - 1`; none where the
/// system does not say.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

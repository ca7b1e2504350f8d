//! How a long preparation shows itself, and how it is stopped.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use switchyard_ground::say;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::error::DatasetError;

#[derive(Debug, Clone, Copy)]
enum Display {
    Silent,
    Lines,
    Bar,
}

/// Where progress is shown, and the flag that stops the work.
#[derive(Debug, Clone)]
pub struct Progress {
    display: Display,
    stop: Option<Arc<AtomicBool>>,
}

impl Progress {
    /// Shows nothing.
    pub fn silent() -> Self {
        Self { display: Display::Silent, stop: None }
    }

    /// A bar on standard error, or plain lines where that is not a terminal.
    pub fn stderr() -> Self {
        let display = if std::io::stderr().is_terminal() { Display::Bar } else { Display::Lines };
        Self { display, stop: None }
    }

    /// The same, with a flag that ends the work with [`DatasetError::Interrupted`] soon after it is set.
    pub fn with_stop(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop: Some(stop), ..self }
    }

    /// An error once the stop flag is set.
    pub(crate) fn check(&self) -> Result<(), DatasetError> {
        match &self.stop {
            Some(stop) if stop.load(Ordering::Relaxed) => Err(DatasetError::Interrupted),
            _ => Ok(()),
        }
    }

    /// Starts a stage of work over `total_bytes`, where that is known.
    pub(crate) fn stage(&self, name: &'static str, total_bytes: Option<u64>) -> Stage {
        let bar = match self.display {
            Display::Bar => Some(bar(name, total_bytes)),
            Display::Lines => {
                match total_bytes {
                    Some(total) => say!("{name}: {}", HumanBytes(total)),
                    None => say!("{name}"),
                }
                None
            }
            Display::Silent => None,
        };
        let prints_lines = matches!(self.display, Display::Lines);
        Stage { progress: self.clone(), name, bar, prints_lines, started: Instant::now() }
    }
}

fn bar(name: &'static str, total_bytes: Option<u64>) -> ProgressBar {
    let template = match total_bytes {
        Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{msg} {spinner} {elapsed}",
    };
    let bar = total_bytes.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(name);
    bar
}

/// One stage of the work; shown as finished when dropped.
pub(crate) struct Stage {
    progress: Progress,
    name: &'static str,
    bar: Option<ProgressBar>,
    prints_lines: bool,
    started: Instant,
}

impl Stage {
    /// Counts `bytes` more as done; an error once the stop flag is set.
    pub(crate) fn advance(&self, bytes: u64) -> Result<(), DatasetError> {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
        self.progress.check()
    }

    /// Ends the stage well.
    pub(crate) fn finish(self) {
        if self.prints_lines {
            say!("{}: done in {:.1} s", self.name, self.started.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

//! What a run reports: rows of `metrics.jsonl`, TensorBoard event files, the progress display.
//!
//! Observers only. Nothing here changes a model, reads a device or decides what the loop does next.

mod document_loss;
mod event_file;
mod event_log;
mod jsonl;
mod progress;
mod record;

use std::io;
use std::path::{Path, PathBuf};

use switchyard_ground::advice::advice;

pub(crate) use document_loss::document_loss_lines;
pub use document_loss::{DocumentLoss, SplitLosses, read_document_losses};
use event_file::EventFile;
pub use event_log::EventLog;
pub use jsonl::{LogMark, MetricsFile, ResumedLog, read_metrics};
pub use progress::ProgressDisplay;
pub use record::{EvalRecord, LayerRecord, Record, SourceLoss, StepRecord, perplexity, perplexity_text};

/// A metrics or event file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The file system refused; a full disk ends here.
    #[error("cannot {action} `{path}`: {source}; {}", advice(action, source))]
    Io {
        /// What was tried: `read`, `create`, `append to`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A complete line that is no record of this version.
    #[error(
        "`{path}` line {line_number}: {reason}; remove or repair the line. A run that is resumed does without the file"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line_number: usize,
        /// What the parser said.
        reason: String,
    },
    /// A NaN or an infinity, which JSON cannot hold: it would be stored as `null` and read as
    /// nothing.
    #[error(
        "step {step}: `{field}` is {value}, and `{path}` stores finite numbers only: \
         the run has diverged; start a new one with a lower `train.adamw.learning_rate` or with `train.max_grad_norm` set"
    )]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// Step of the record.
        step: u64,
        /// The first field that is not finite, such as `layers[1].gate_margin`.
        field: String,
        /// The value.
        value: f64,
    },
}

impl MetricsError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the file is not what was written, as opposed to a system that fails.
    pub(crate) fn is_about_the_file(&self) -> bool {
        match self {
            Self::Malformed { .. } => true,
            // A folder, a pipe or a device lies there.
            Self::Io { action, source, .. } => {
                *action == "read" && source.kind() == io::ErrorKind::InvalidInput
            }
            Self::NonFinite { .. } => false,
        }
    }

    /// What is wrong, without the path and the advice.
    pub(crate) fn problem(&self) -> String {
        match self {
            Self::Malformed { line_number, reason, .. } => format!("line {line_number}: {reason}"),
            Self::Io { source, .. } => source.to_string(),
            Self::NonFinite { .. } => self.to_string(),
        }
    }
}

//! Why a checkpoint cannot be written, read or used.

use std::io;
use std::path::{Path, PathBuf};

use switchyard_ground::advice::advice;

/// A checkpoint that cannot be written, read or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Nothing of ours.
    #[error(
        "{path}: not a checkpoint: {reason}. Name a run folder, or a folder `step-<n>` of its `checkpoints`"
    )]
    NotACheckpoint {
        /// Path as given.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// Not what was written.
    #[error(
        "{path}: the checkpoint is damaged: {reason}. Move the folder {folder} away to go on from the checkpoint before it"
    )]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// The checkpoint's folder.
        folder: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system did not let it be read, which says nothing about what is in it.
    #[error(
        "cannot read {path}: {source}; nothing is wrong with the checkpoint as far as is known. Try again when the cause is \
         mended"
    )]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Under the name of another one.
    #[error(
        "{path}: holds the checkpoint of step {step}, not of the step in its name: {}",
        misnamed_remedy(*.step, *.is_taken)
    )]
    Misnamed {
        /// The checkpoint's folder.
        path: PathBuf,
        /// The step that it is of.
        step: u64,
        /// Whether a folder of that step's name is there.
        is_taken: bool,
    },
    /// Of another version of the program.
    #[error(
        "{path}: the checkpoint has format version {found}, this program reads {oldest} to {newest}: use the \
             version of switchyard that wrote it"
    )]
    FormatVersion {
        /// The checkpoint's folder.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// The oldest version that is read.
        oldest: u32,
        /// The newest.
        newest: u32,
    },
    /// Of another run.
    #[error("{path}: the checkpoint belongs to another run: {reason}")]
    Mismatch {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// Fewer than are to be averaged.
    #[error(
        "{path}: holds {found} checkpoint(s), and {asked} are to be averaged: name a run folder, ask for fewer, or keep \
         more with `train.checkpoints.keep_last` and `train.checkpoint_every_steps`"
    )]
    TooFew {
        /// The run folder.
        path: PathBuf,
        /// Checkpoints in it.
        found: usize,
        /// Checkpoints asked for.
        asked: usize,
    },
    /// Of a run that has gone further than it is asked to go.
    #[error(
        "{path}: {done} steps are done, but `train.num_steps` is {asked}: use at least {done}, as in \
         `--set train.num_steps={done}`; nothing was changed"
    )]
    FewerSteps {
        /// The checkpoint's folder.
        path: PathBuf,
        /// Steps done.
        done: u64,
        /// Steps asked for.
        asked: u64,
    },
    /// Not worth keeping.
    #[error(
        "{path}: not written, because `{parameter}` is not finite: the run has diverged. Earlier checkpoints are \
             intact; start a new run with a lower `train.adamw.learning_rate`, or with `train.max_grad_norm` set"
    )]
    NonFinite {
        /// Where it was to go.
        path: PathBuf,
        /// The first parameter or moment with a NaN or an infinity.
        parameter: String,
    },
    /// Could not be written.
    #[error(
        "{path}: cannot write the checkpoint: {reason}. No earlier checkpoint was touched; when that is mended, start again \
         with --resume"
    )]
    Write {
        /// Where it was to go.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// Written and whole, but something around it could not be put in order.
    #[error("{path}: cannot be {action}: {reason}. The new checkpoint is written and whole")]
    Untidy {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        reason: String,
    },
}

impl CheckpointError {
    pub(super) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.into(),
            folder: path.parent().unwrap_or(path).into(),
            reason: reason.into(),
        }
    }

    pub(super) fn write(path: &Path, error: &io::Error) -> Self {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => "the run folder was deleted or moved away",
            _ => advice("write", error),
        };
        Self::Write { path: path.into(), reason: format!("{error}; {advice}") }
    }

    /// What an error from reading `path` of a checkpoint says: a file that is gone, cut short or
    /// none at all is damage, a system that is out of descriptors or memory, or a disk that failed
    /// once, is not.
    pub(super) fn reading(path: &Path, source: io::Error) -> Self {
        if is_damage(&source) {
            Self::damaged(path, source.to_string())
        } else {
            Self::Unreadable { path: path.into(), source }
        }
    }

    /// Whether other arguments or another configuration help, as opposed to a failing system.
    pub fn is_users_mistake(&self) -> bool {
        match self {
            Self::Write { .. } | Self::NonFinite { .. } | Self::Untidy { .. } => false,
            Self::Unreadable { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            _ => true,
        }
    }
}

fn misnamed_remedy(step: u64, is_taken: bool) -> String {
    match is_taken {
        true => format!("move it away; `step-{step}` is there too"),
        false => format!("rename the folder to `step-{step}`, or move it away"),
    }
}

/// Whether `error`, from opening or reading, is about what lies there rather than about the moment.
pub(super) fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidData
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::FileTooLarge
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_there_is_damage_and_a_moments_trouble_is_not() {
        let path = Path::new("runs/a/checkpoints/step-3/state.json");
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::UnexpectedEof, io::ErrorKind::InvalidInput] {
            let message = CheckpointError::reading(path, kind.into()).to_string();
            assert!(message.contains("the checkpoint is damaged"), "{message}");
        }
        // Too many open files, a failed read, no memory, a stale handle of a network file system.
        for code in [24, 5, 12, 116] {
            let error = CheckpointError::reading(path, io::Error::from_raw_os_error(code));
            let message = error.to_string();
            assert!(message.starts_with("cannot read runs/a/checkpoints/step-3/state.json: "), "{message}");
            assert!(message.contains("nothing is wrong with the checkpoint as far as is known"), "{message}");
            assert!(!message.contains("away") && !error.is_users_mistake(), "{message}");
        }
    }
}

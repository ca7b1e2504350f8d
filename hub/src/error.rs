//! What can be wrong with a model folder.

use std::io;
use std::path::{Path, PathBuf};

use switchyard_ground::advice::advice;
use switchyard_ground::hub_path::HubPathError;

/// A model that cannot be read, or not be written.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The file system refused.
    #[error("cannot {action} `{path}`: {source}; {}", advice(action, source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A name on the Hugging Face hub is no folder here.
    #[error(transparent)]
    OnHub(#[from] HubPathError),
    /// A file is not what its name says.
    #[error("`{path}` {problem}: {remedy}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// A key of `config.json` that cannot be used.
    #[error("`{path}`: `{key}` {problem}: {remedy}")]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it, its value included.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// A tensor that is missing, superfluous, or not as it should be.
    #[error("`{path}`: the tensor `{name}` {problem}: {remedy}")]
    Tensor {
        /// The file or folder.
        path: PathBuf,
        /// Its name there.
        name: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// A model that the family cannot express.
    #[error("a {family} model cannot have {feature}: {remedy}")]
    NotExpressible {
        /// The family.
        family: &'static str,
        /// What the model has.
        feature: String,
        /// What to do.
        remedy: String,
    },
    /// A model of a kind that no family has.
    #[error("no published family has `{key}`: only models with attention can be exported")]
    NoFamily {
        /// The table of `[model]`.
        key: &'static str,
    },
}

impl HubError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn bad_file(path: &Path, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::BadFile { path: path.to_path_buf(), problem: problem.into(), remedy: remedy.into() }
    }
}

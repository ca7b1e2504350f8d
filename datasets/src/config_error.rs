//! A value of `[data]` that cannot be meant.

use thiserror::Error;

/// A value in `[data]` that parses but cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{key}`: {message}")]
pub struct DataConfigError {
    /// Key path from the top of the file, such as `data.text`.
    pub key: String,
    /// What is wrong, the offending value and what is allowed.
    pub message: String,
}

impl DataConfigError {
    pub(crate) fn new(key: &str, message: impl Into<String>) -> Self {
        Self { key: key.to_owned(), message: message.into() }
    }
}

//! What a user can get wrong about routing.

use thiserror::Error;

/// A value of the router's or the capacity's configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`model.ffn.moe.{key}` {problem}")]
pub struct RouterError {
    /// Path of the key below `model.ffn.moe`.
    pub key: String,
    /// Its value, what is wrong with it, and what to do.
    pub problem: String,
}

impl RouterError {
    pub(crate) fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into() }
    }
}

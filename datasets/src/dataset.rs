//! A corpus ready to be read.

use std::path::PathBuf;
use std::sync::Arc;

use crate::manifest::Manifest;
use crate::store::TokenStore;
use crate::tokenizer::Tokenizer;

/// A corpus ready to be read.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Tokens to train on.
    pub train: Arc<TokenStore>,
    /// Tokens to validate on.
    pub validation: Arc<TokenStore>,
    /// Tokens for the last word, which nothing is chosen by; `None` without a test split.
    pub test: Option<Arc<TokenStore>>,
    /// What turned the text into them.
    pub tokenizer: Tokenizer,
    /// Facts about them.
    pub manifest: Manifest,
    /// The prepared folder; `None` for files of ids, which are read where they lie.
    pub folder: Option<PathBuf>,
}

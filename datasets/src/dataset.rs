//! A corpus ready to be read.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::SourceWeights;
use crate::manifest::Manifest;
use crate::store::TokenStore;
use crate::tokenizer::Tokenizer;

/// A corpus ready to be read. Of several sources, its stores and its manifest are those of all
/// together, one after the other.
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
    /// The prepared folder; `None` for files of ids, which are read where they lie, and for several
    /// sources, each of which has its own.
    pub folder: Option<PathBuf>,
    /// The sources in the order of the configuration: one, or those of a mixture.
    pub sources: Vec<DatasetSource>,
}

/// One of the sources of a corpus.
#[derive(Debug, Clone)]
pub struct DatasetSource {
    /// Its name; of a single source that of its table, such as `text`.
    pub name: String,
    /// Its weight, step by step.
    pub weights: SourceWeights,
    /// Its tokens to train on; domains are numbered as in the whole corpus.
    pub train: Arc<TokenStore>,
    /// Its tokens to validate on.
    pub validation: Arc<TokenStore>,
    /// Its tokens for the last word; `None` if it has no test split.
    pub test: Option<Arc<TokenStore>>,
    /// Facts about its tokens; domains are numbered from 0.
    pub manifest: Manifest,
    /// Its prepared folder; `None` for files of ids.
    pub folder: Option<PathBuf>,
}

impl Dataset {
    /// The same corpus as the only source, of this name.
    pub(crate) fn of_one_source(self, name: &str) -> Self {
        let Self { train, validation, test, manifest, folder, .. } = &self;
        let source = DatasetSource {
            name: name.to_owned(),
            weights: SourceWeights::constant(1.0),
            train: train.clone(),
            validation: validation.clone(),
            test: test.clone(),
            manifest: manifest.clone(),
            folder: folder.clone(),
        };
        Self { sources: vec![source], ..self }
    }
}

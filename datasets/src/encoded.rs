//! What a vocabulary makes of a text.

use crate::error::DatasetError;

/// Ids of a text, and how many of its bytes they leave out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    pub(crate) lost_bytes: u64,
}

impl Encoded {
    pub(crate) fn of_ids(ids: Vec<u32>) -> Self {
        Self { ids, lost_bytes: 0 }
    }
}

/// What the vocabulary says against a text.
pub(crate) fn vocabulary_error(error: tokenizers::Error) -> DatasetError {
    DatasetError::Tokenizer { path: None, problem: format!("{error}: use another tokenizer for this text") }
}

//! Whether the ids of data mean to a model what they meant when it was trained.

use std::path::Path;

use switchyard_datasets::{Dataset, Tokenizer};

use crate::TrainError;

/// The tokenizer of the published model in `folder`; `None` if none lies there.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn tokenizer_of_published(folder: &Path) -> Result<Option<Tokenizer>, TrainError> {
    let file = folder.join("tokenizer.json");
    Ok(file.is_file().then(|| Tokenizer::load(&file)).transpose()?)
}

/// Whether `dataset` gives other ids than a model's `own` tokenizer, as far as both are known.
pub(crate) fn are_other_ids(own: Option<&Tokenizer>, dataset: &Dataset) -> bool {
    match (own, &dataset.tokenizer) {
        // What ids stand for is not known.
        (None, _) | (Some(Tokenizer::Ids { .. }), Tokenizer::Ids { .. }) => false,
        (Some(own), tokenizer) => match own.to_published_json() {
            Some(published) => tokenizer.to_published_json() != Some(published),
            None => own.to_json() != tokenizer.to_json(),
        },
    }
}

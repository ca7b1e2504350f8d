//! Notes, in a folder in the making, about what of it is finished: a later preparation of the same
//! corpus goes on from them.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use switchyard_ground::{durable, regular_file};

use crate::error::DatasetError;

/// Ending of the notes.
const ENDING: &str = "progress";
/// Far more than a note has.
const MAX_BYTES: u64 = 1 << 30;

/// Notes `facts` in `folder` under `name`.
///
/// # Errors
/// If they cannot be written.
pub(crate) fn note(folder: &Path, name: &str, facts: &impl Serialize) -> Result<(), DatasetError> {
    let path = path(folder, name);
    let json = serde_json::to_vec(facts).map_err(std::io::Error::from);
    json.and_then(|json| durable::replace(&path, &json)).map_err(DatasetError::io("write", &path))
}

/// What is noted in `folder` under `name`; `None` if nothing is, or nothing that can be read.
pub(crate) fn noted<T: DeserializeOwned>(folder: &Path, name: &str) -> Option<T> {
    let json = regular_file::read(&path(folder, name), MAX_BYTES).ok()?;
    serde_json::from_slice(&json).ok()
}

/// Whether anything is noted in `folder`.
pub(crate) fn has_notes(folder: &Path) -> bool {
    !notes(folder).is_empty()
}

/// Removes all notes from `folder`, which is complete but for its manifest.
///
/// # Errors
/// If one cannot be removed.
pub(crate) fn remove_notes(folder: &Path) -> Result<(), DatasetError> {
    notes(folder)
        .iter()
        .try_for_each(|path| std::fs::remove_file(path).map_err(DatasetError::io("remove", path)))
}

fn notes(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|ending| ending == ENDING)).collect()
}

fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.{ENDING}"))
}

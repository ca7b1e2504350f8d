//! What a checkpoint folder holds, with the hash of each file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::CheckpointError;
use crate::hash::sha256_hex;

/// Name of the manifest in the checkpoint's folder.
pub const MANIFEST_FILE: &str = "manifest.json";
const FORMAT: &str = "switchyard-checkpoint";
const FORMAT_VERSION: u32 = 1;

/// The manifest: written last, so that a folder without it was never a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointManifest {
    /// Always `switchyard-checkpoint`.
    pub format: String,
    /// Version of the layout.
    pub format_version: u32,
    /// Version of the program that wrote it.
    pub switchyard_version: String,
    /// Updates done.
    pub step: u64,
    /// Every other file of the folder.
    pub files: BTreeMap<String, FileRecord>,
}

/// Size and hash of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

impl CheckpointManifest {
    /// The manifest of `files` (name and contents) at `step`.
    pub fn new<'a>(step: u64, files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        Self {
            format: FORMAT.into(),
            format_version: FORMAT_VERSION,
            switchyard_version: env!("CARGO_PKG_VERSION").into(),
            step,
            files: files.into_iter().map(|(name, bytes)| (name.to_string(), FileRecord::of(bytes))).collect(),
        }
    }

    /// The manifest in `folder`.
    ///
    /// # Errors
    /// [`CheckpointError::NotACheckpoint`] if there is none or it is another program's,
    /// [`CheckpointError::Damaged`] if it cannot be parsed, [`CheckpointError::FormatVersion`] if it
    /// is of another version.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(MANIFEST_FILE);
        let text = fs::read_to_string(&path).map_err(|error| CheckpointError::NotACheckpoint {
            path: folder.into(),
            reason: error.to_string(),
        })?;
        let manifest: Self = serde_json::from_str(&text)
            .map_err(|error| CheckpointError::damaged(&path, error.to_string()))?;
        if manifest.format != FORMAT {
            let reason = format!("its manifest says format \"{}\", not \"{FORMAT}\"", manifest.format);
            return Err(CheckpointError::NotACheckpoint { path: folder.into(), reason });
        }
        if manifest.format_version != FORMAT_VERSION {
            return Err(CheckpointError::FormatVersion {
                path: folder.into(),
                found: manifest.format_version,
                supported: FORMAT_VERSION,
            });
        }
        Ok(manifest)
    }

    /// The contents of file `name` of `folder`, checked against the manifest.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if the file is missing, shorter, longer or different.
    pub fn read_file(&self, folder: &Path, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let path = folder.join(name);
        let record = self
            .files
            .get(name)
            .ok_or_else(|| CheckpointError::damaged(&path, "the manifest does not list it".into()))?;
        let bytes = fs::read(&path).map_err(|error| CheckpointError::damaged(&path, error.to_string()))?;
        let found = FileRecord::of(&bytes);
        if found.bytes != record.bytes {
            let message = format!("it has {} bytes, the manifest says {}", found.bytes, record.bytes);
            return Err(CheckpointError::damaged(&path, message));
        }
        if found.sha256 != record.sha256 {
            let message = format!("its SHA-256 is {}, the manifest says {}", found.sha256, record.sha256);
            return Err(CheckpointError::damaged(&path, message));
        }
        Ok(bytes)
    }
}

impl FileRecord {
    fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: sha256_hex(bytes) }
    }
}

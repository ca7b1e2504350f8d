//! What a checkpoint folder holds, with the hash of each file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use switchyard_ground::printable::excerpt;
use switchyard_ground::regular_file;
use switchyard_model::ParameterName;

use super::{CheckpointError, FILES};
use switchyard_ground::digest::hex;

/// Name of the manifest in the checkpoint's folder.
pub const MANIFEST_FILE: &str = "manifest.json";
const FORMAT: &str = "switchyard-checkpoint";
/// Version 2: `plan.json` describes the model layer by layer. Version 3: tensors have the names of
/// [`ParameterName`].
const FORMAT_VERSION: u32 = 3;
/// The oldest version that is read.
const OLDEST_VERSION: u32 = 1;
/// Far more than the manifest of any checkpoint has.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Bytes hashed at a time.
const HASHED_BYTES: usize = 1 << 18;

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
    /// The manifest of `files` at `step`.
    pub(super) fn new(step: u64, files: BTreeMap<String, FileRecord>) -> Self {
        Self {
            format: FORMAT.into(),
            format_version: FORMAT_VERSION,
            switchyard_version: env!("CARGO_PKG_VERSION").into(),
            step,
            files,
        }
    }

    /// The manifest in `folder`.
    ///
    /// # Errors
    /// [`CheckpointError::NotACheckpoint`] if there is none or it is another program's,
    /// [`CheckpointError::Damaged`] if it cannot be parsed or names files that no checkpoint has,
    /// [`CheckpointError::FormatVersion`] if it is of another version,
    /// [`CheckpointError::Misnamed`] if the folder is named after another step,
    /// [`CheckpointError::Unreadable`].
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(MANIFEST_FILE);
        let not_ours = |reason: String| CheckpointError::NotACheckpoint { path: folder.into(), reason };
        let text =
            regular_file::read_to_string(&path, MAX_MANIFEST_BYTES).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                    not_ours(format!("`{MANIFEST_FILE}`: {error}"))
                }
                _ => CheckpointError::reading(&path, error),
            })?;
        let manifest: Self = serde_json::from_str(&text)
            .map_err(|error| CheckpointError::damaged(&path, error.to_string()))?;
        if manifest.format != FORMAT {
            let found = excerpt(&manifest.format, 80);
            return Err(not_ours(format!("its manifest says format \"{found}\", not \"{FORMAT}\"")));
        }
        if !(OLDEST_VERSION..=FORMAT_VERSION).contains(&manifest.format_version) {
            return Err(CheckpointError::FormatVersion {
                path: folder.into(),
                found: manifest.format_version,
                oldest: OLDEST_VERSION,
                newest: FORMAT_VERSION,
            });
        }
        if let Some(name) = manifest.files.keys().find(|name| !FILES.contains(&name.as_str())) {
            // A name is joined to the folder's path: one with `..` in it would lead out of the
            // folder.
            let reason = format!("it lists `{}`, which is no file of a checkpoint", excerpt(name, 80));
            return Err(CheckpointError::damaged(&path, reason));
        }
        manifest.check_name(folder)?;
        Ok(manifest)
    }

    /// Whether `plan.json` describes the model as [`switchyard_model::ModelSpec`] does.
    pub(super) fn describes_layers(&self) -> bool {
        self.format_version >= 2
    }

    /// What the checkpoint's files call the tensor of a parameter.
    pub(super) fn name_of(&self, parameter: ParameterName) -> String {
        if self.format_version >= 3 { parameter.to_string() } else { parameter.before_version_3() }
    }

    /// Ok unless `folder` is named after a step that this is not the manifest of.
    fn check_name(&self, folder: &Path) -> Result<(), CheckpointError> {
        let named = folder.file_name().and_then(|name| super::step_name::step_of(name.to_str()?));
        match named {
            Some(step) if step != self.step => {
                let right = folder.with_file_name(format!("step-{}", self.step));
                let is_taken = right.symlink_metadata().is_ok();
                Err(CheckpointError::Misnamed { path: folder.into(), step: self.step, is_taken })
            }
            _ => Ok(()),
        }
    }

    /// Ok if file `name` of `folder` is what was written; it is read a piece at a time.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if the file is missing, shorter, longer or different;
    /// [`CheckpointError::Unreadable`].
    pub fn verify_file(&self, folder: &Path, name: &str) -> Result<(), CheckpointError> {
        self.open_verified(folder, name).map(drop)
    }

    /// File `name` of `folder`, compared with the manifest to its last byte, at its beginning.
    pub(super) fn open_verified(&self, folder: &Path, name: &str) -> Result<File, CheckpointError> {
        let path = folder.join(name);
        let (mut file, record) = self.open(folder, name)?;
        let mut hasher = HashingWriter::new(io::sink());
        let copied = copy(&mut (&file).take(record.bytes.saturating_add(1)), &mut hasher);
        copied.map_err(|error| CheckpointError::reading(&path, error))?;
        check(&path, record, &hasher.finish())?;
        file.rewind().map_err(|error| CheckpointError::reading(&path, error))?;
        Ok(file)
    }

    /// The contents of the small file `name` of `folder`, checked against the manifest.
    pub(super) fn read_file(
        &self,
        folder: &Path,
        name: &str,
        max_bytes: u64,
    ) -> Result<Vec<u8>, CheckpointError> {
        let path = folder.join(name);
        let (file, record) = self.open(folder, name)?;
        if record.bytes > max_bytes {
            let reason = format!("it has {} bytes, more than the {max_bytes} that it can have", record.bytes);
            return Err(CheckpointError::damaged(&path, reason));
        }
        let mut bytes = Vec::new();
        let read = (&file).take(record.bytes.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|error| CheckpointError::reading(&path, error))?;
        check(&path, record, &FileRecord::of(&bytes))?;
        Ok(bytes)
    }

    /// File `name` of `folder`, known to have the size that the manifest says.
    fn open(&self, folder: &Path, name: &str) -> Result<(File, &FileRecord), CheckpointError> {
        let path = folder.join(name);
        let record = self
            .files
            .get(name)
            .ok_or_else(|| CheckpointError::damaged(&path, "the manifest does not list it"))?;
        let reading = |error: io::Error| CheckpointError::reading(&path, error);
        let file = regular_file::open(&path).map_err(reading)?;
        let found_bytes = file.metadata().map_err(reading)?.len();
        check_size(&path, record, found_bytes)?;
        Ok((file, record))
    }
}

fn check(path: &Path, record: &FileRecord, found: &FileRecord) -> Result<(), CheckpointError> {
    check_size(path, record, found.bytes)?;
    if found.sha256 != record.sha256 {
        let (found, wanted) = (&found.sha256, excerpt(&record.sha256, 64));
        return Err(CheckpointError::damaged(
            path,
            format!("its SHA-256 is {found}, the manifest says {wanted}"),
        ));
    }
    Ok(())
}

fn check_size(path: &Path, record: &FileRecord, found_bytes: u64) -> Result<(), CheckpointError> {
    if found_bytes == record.bytes {
        return Ok(());
    }
    let reason = format!("it has {found_bytes} bytes, the manifest says {}", record.bytes);
    Err(CheckpointError::damaged(path, reason))
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut piece = vec![0; HASHED_BYTES];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(num_bytes) => to.write_all(&piece[..num_bytes])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl FileRecord {
    fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: switchyard_ground::digest::sha256_hex(bytes) }
    }
}

/// Counts and hashes what is written through it.
pub(super) struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    num_bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), num_bytes: 0 }
    }

    /// Size and hash of all that was written.
    pub(super) fn finish(self) -> FileRecord {
        FileRecord { bytes: self.num_bytes, sha256: hex(&self.hasher.finalize()) }
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.num_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

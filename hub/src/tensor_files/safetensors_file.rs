//! Tensors of a safetensors file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use safetensors::tensor::{Dtype, Metadata};
use switchyard_ground::printable::excerpt;
use switchyard_ground::regular_file;

use super::{Element, Entry, Storage};
use crate::HubError;

/// Longest header of the format's own library.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const REMEDY: &str = "is the download complete?";

/// Where the bytes of a tensor are.
#[derive(Debug)]
pub(super) struct Place {
    file: Arc<OpenFile>,
    start: u64,
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    file: Mutex<File>,
}

impl Place {
    /// Some of the bytes.
    pub(super) fn read(&self, range: Range<usize>) -> Result<Vec<u8>, HubError> {
        let OpenFile { path, file } = &*self.file;
        let mut bytes = vec![0; range.len()];
        // Whoever panicked with the lock has left the file no other than it was.
        let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        file.seek(SeekFrom::Start(self.start + range.start as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(HubError::io("read", path))?;
        Ok(bytes)
    }
}

/// The tensors in the file; none is read yet.
pub(super) fn open(path: &Path) -> Result<Vec<(String, Entry)>, HubError> {
    let mut file = regular_file::open(path).map_err(HubError::io("open", path))?;
    let file_bytes = file.metadata().map_err(HubError::io("read", path))?.len();
    let damaged = |problem: String| HubError::bad_file(path, problem, REMEDY);
    let mut length = [0; size_of::<u64>()];
    read_exact(&mut file, &mut length, path)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES.min(file_bytes) {
        return Err(damaged(format!("has a header of {header_bytes} bytes, longer than it can be")));
    }
    let mut json = vec![0; header_bytes as usize];
    read_exact(&mut file, &mut json, path)?;
    let metadata: Metadata = serde_json::from_slice(&json)
        .map_err(|error| damaged(format!("has a header that is none of the format: {error}")))?;
    let data_start = length.len() as u64 + header_bytes;
    let expected = data_start + metadata.data_len() as u64;
    if expected != file_bytes {
        return Err(damaged(format!("has {file_bytes} bytes, but its header speaks of {expected}")));
    }
    let file = Arc::new(OpenFile { path: path.to_path_buf(), file: Mutex::new(file) });
    let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let Some(element) = element(info.dtype) else {
            let problem = format!("holds `{}` as {:?}", excerpt(&name, 120), info.dtype);
            return Err(HubError::bad_file(path, problem, "F64, F32, F16, BF16, F8_E4M3 and U8 are read"));
        };
        let place = Place { file: file.clone(), start: data_start + info.data_offsets.0 as u64 };
        Ok((name, Entry { element, shape: info.shape.clone(), storage: Storage::Safetensors(place) }))
    };
    metadata.tensors().into_iter().map(entry).collect()
}

fn read_exact(file: &mut File, bytes: &mut [u8], path: &Path) -> Result<(), HubError> {
    file.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => HubError::bad_file(path, "ends within its header", REMEDY),
        _ => HubError::io("read", path)(error),
    })
}

fn element(dtype: Dtype) -> Option<Element> {
    match dtype {
        Dtype::F64 => Some(Element::F64),
        Dtype::F32 => Some(Element::F32),
        Dtype::F16 => Some(Element::F16),
        Dtype::BF16 => Some(Element::Bf16),
        Dtype::F8_E4M3 => Some(Element::F8E4m3),
        Dtype::U8 => Some(Element::U8),
        Dtype::I64 => Some(Element::I64),
        _ => None,
    }
}

//! Tensors of a PyTorch file; nothing in it is executed.

use std::ops::Range;
use std::path::{Path, PathBuf};

use pytorch_reader::{DType, PytorchReader, Tensor};
use switchyard_ground::printable::excerpt;

use super::{Element, Entry, Storage};
use crate::HubError;

/// Where the bytes of a tensor are.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    tensor: Tensor,
}

impl Place {
    /// Some of the bytes. The format is read by whole tensors.
    pub(super) fn read(&self, range: Range<usize>) -> Result<Vec<u8>, HubError> {
        let bytes = self.tensor.read().map_err(HubError::io("read", &self.path))?;
        Ok(bytes[range].to_vec())
    }
}

/// The tensors in the file.
pub(super) fn open(path: &Path) -> Result<Vec<(String, Entry)>, HubError> {
    let reader = PytorchReader::new(path).map_err(|error| {
        HubError::bad_file(path, format!("cannot be read as a PyTorch file: {error}"), "is it complete?")
    })?;
    let entry = |(name, tensor): (String, Tensor)| {
        let Some(element) = element(tensor.dtype()) else {
            let problem = format!("holds `{}` as {:?}", excerpt(&name, 120), tensor.dtype());
            return Err(HubError::bad_file(path, problem, "F64, F32, F16, BF16 and U8 are read"));
        };
        let shape = tensor.shape().to_vec();
        let place = Place { path: path.to_path_buf(), tensor };
        Ok((name, Entry { element, shape, storage: Storage::Pytorch(place) }))
    };
    reader.into_tensors().into_iter().map(entry).collect()
}

fn element(dtype: DType) -> Option<Element> {
    match dtype {
        DType::F64 => Some(Element::F64),
        DType::F32 => Some(Element::F32),
        DType::F16 => Some(Element::F16),
        DType::BF16 => Some(Element::Bf16),
        DType::U8 | DType::Bool => Some(Element::U8),
        DType::I64 => Some(Element::I64),
        DType::I32 | DType::I16 | DType::I8 | DType::U64 | DType::U32 | DType::U16 => None,
    }
}

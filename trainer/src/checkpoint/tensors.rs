//! Named f32 tensors as a safetensors file.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::TensorData;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::CheckpointError;
use crate::parameters::Named;

/// The bytes of a safetensors file that holds `tensors`.
///
/// # Errors
/// [`CheckpointError::Damaged`] if the tensors cannot be serialised, which names `path`.
pub(super) fn serialize(path: &Path, tensors: &[Named<TensorData>]) -> Result<Vec<u8>, CheckpointError> {
    let damaged = |error: safetensors::SafeTensorError| CheckpointError::damaged(path, error.to_string());
    let views = tensors
        .iter()
        .map(|tensor| {
            let shape = tensor.value.shape().to_vec();
            let view = TensorView::new(Dtype::F32, shape, tensor.value.as_bytes()).map_err(damaged)?;
            Ok((tensor.path.as_str(), view))
        })
        .collect::<Result<Vec<_>, CheckpointError>>()?;
    safetensors::serialize(views, None).map_err(damaged)
}

/// The tensors of a safetensors file.
///
/// # Errors
/// [`CheckpointError::Damaged`] if the bytes are no such file or hold another type than f32.
pub(super) fn deserialize(
    path: &Path,
    bytes: &[u8],
) -> Result<BTreeMap<String, TensorData>, CheckpointError> {
    let file =
        SafeTensors::deserialize(bytes).map_err(|error| CheckpointError::damaged(path, error.to_string()))?;
    file.iter()
        .map(|(name, view)| {
            if view.dtype() != Dtype::F32 {
                let message = format!("tensor `{name}` is {:?}, not F32", view.dtype());
                return Err(CheckpointError::damaged(path, message));
            }
            let values: Vec<f32> = view
                .data()
                .chunks_exact(4)
                .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
                .collect();
            Ok((name.to_string(), TensorData::new(values, view.shape().to_vec())))
        })
        .collect()
}

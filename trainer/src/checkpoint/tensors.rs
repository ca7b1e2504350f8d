//! Named tensors of f32 or bf16 as a safetensors file, one piece of one tensor in memory at a time.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use switchyard_ground::printable::excerpt;
use switchyard_model::ParameterTensor;

use super::CheckpointError;

/// A tensor with its name in the file.
pub(crate) type NamedTensor = (String, ParameterTensor);

/// Elements that are brought to the host, or read from the file, at a time.
const PIECE_ELEMENTS: usize = 1 << 20;
/// What the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Writes `tensors` to `out` as a safetensors file. Returns the name of the first tensor with a NaN
/// or an infinity, if there is one; what was written by then is worthless.
///
/// # Errors
/// Those of `out` and of the device.
pub(super) fn write(mut tensors: Vec<NamedTensor>, out: &mut impl Write) -> io::Result<Option<String>> {
    // The order of the format's own library: the larger elements first.
    tensors.sort_by_cached_key(|(name, value)| (Reverse(value.values_n.dtype().size()), name.clone()));
    out.write_all(&header(&tensors)?)?;
    for (name, value) in tensors {
        let num_elements = value.values_n.dims()[0];
        for start in (0..num_elements).step_by(PIECE_ELEMENTS) {
            let length = PIECE_ELEMENTS.min(num_elements - start);
            let piece_n = value.values_n.clone().narrow(0, start, length);
            let data = piece_n.try_into_data().map_err(|error| io::Error::other(format!("{error:?}")))?;
            if !is_finite(&data) {
                return Ok(Some(name));
            }
            out.write_all(data.as_bytes())?;
        }
    }
    Ok(None)
}

/// Length and description of the tensors, padded as the format wants it.
fn header(tensors: &[NamedTensor]) -> io::Result<Vec<u8>> {
    let mut end = 0;
    let info = |(name, value): &NamedTensor| {
        let (start, dtype) = (end, value.values_n.dtype());
        end += value.shape.iter().product::<usize>() * dtype.size();
        let info =
            TensorInfo { dtype: written_as(dtype)?, shape: value.shape.clone(), data_offsets: (start, end) };
        Ok((name.clone(), info))
    };
    let infos = tensors.iter().map(info).collect::<io::Result<_>>()?;
    let metadata = Metadata::new(None, infos).map_err(io::Error::other)?;
    let mut json = serde_json::to_vec(&metadata)?;
    json.resize(json.len().next_multiple_of(size_of::<u64>()), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

/// What the format calls the type.
fn written_as(dtype: DType) -> io::Result<Dtype> {
    match dtype {
        DType::F32 => Ok(Dtype::F32),
        DType::BF16 => Ok(Dtype::BF16),
        other => Err(io::Error::other(format!("a checkpoint has no tensors of {other:?}"))),
    }
}

fn is_finite(data: &TensorData) -> bool {
    match data.as_slice::<f32>() {
        Ok(values) => values.iter().all(|value| value.is_finite()),
        Err(_) => data.iter::<f32>().all(f32::is_finite),
    }
}

/// A safetensors file whose tensors are read one at a time.
#[derive(Debug)]
pub(super) struct TensorFile {
    path: PathBuf,
    file: File,
    /// Where the tensors begin in the file.
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl TensorFile {
    /// The tensors in `file`, which lies at `path` and is at its beginning; none is read yet.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if it is no such file or does not end with its last tensor;
    /// [`CheckpointError::Unreadable`].
    pub(super) fn open(path: &Path, mut file: File) -> Result<Self, CheckpointError> {
        let damaged = |reason: String| CheckpointError::damaged(path, reason);
        let reading = |error: io::Error| CheckpointError::reading(path, error);
        let file_bytes = file.metadata().map_err(reading)?.len();
        let mut length = [0; size_of::<u64>()];
        file.read_exact(&mut length).map_err(reading)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES.min(file_bytes) {
            return Err(damaged(format!("its header of {header_bytes} bytes is longer than it can be")));
        }
        let mut json = vec![0; header_bytes as usize];
        file.read_exact(&mut json).map_err(reading)?;
        let metadata: Metadata =
            serde_json::from_slice(&json).map_err(|error| damaged(format!("its header: {error}")))?;
        let data_start = length.len() as u64 + header_bytes;
        if data_start + metadata.data_len() as u64 != file_bytes {
            return Err(damaged("it does not end with its last tensor".into()));
        }
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        Ok(Self { path: path.into(), file, data_start, tensors })
    }

    /// Elements of all tensors together.
    pub(super) fn num_elements(&self) -> u64 {
        self.tensors.values().map(|info| info.shape.iter().product::<usize>() as u64).sum()
    }

    /// Names and shapes of the tensors.
    pub(super) fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info.shape.as_slice()))
    }

    /// The values of tensor `name`, flattened, of the type that it has to have.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if there is none, it is of another type, or one of its values is a
    /// NaN or an infinity; [`CheckpointError::Unreadable`].
    pub(super) fn read(
        &mut self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor<1>, CheckpointError> {
        let damaged = |reason: &str| {
            CheckpointError::damaged(&self.path, format!("tensor `{}` {reason}", excerpt(name, 120)))
        };
        let reading = |error: io::Error| CheckpointError::reading(&self.path, error);
        let info = self.tensors.get(name).ok_or_else(|| damaged("is missing"))?;
        let wanted = written_as(dtype).map_err(reading)?;
        if info.dtype != wanted {
            return Err(damaged(&format!("is {:?}, not {wanted:?}", info.dtype)));
        }
        let (start, end) = info.data_offsets;
        let data = read_values(&mut self.file, self.data_start + start as u64, (end - start, dtype))
            .map_err(reading)?;
        if !is_finite(&data) {
            return Err(damaged("holds a NaN or an infinity"));
        }
        Ok(Tensor::from_data(data, (device, dtype)))
    }
}

/// So many bytes of the file as numbers.
fn read_values(file: &mut File, start: u64, (num_bytes, dtype): (usize, DType)) -> io::Result<TensorData> {
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = vec![0; num_bytes];
    file.read_exact(&mut bytes)?;
    Ok(TensorData::from_bytes(Bytes::from_bytes_vec(bytes), [num_bytes / dtype.size()], dtype))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use safetensors::tensor::TensorView;

    fn tensor(name: &str, shape: &[usize], first: f32) -> NamedTensor {
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| first + i as f32 * 0.1).collect();
        let data = TensorData::new(values, [shape.iter().product::<usize>()]);
        let values_n = Tensor::from_data(data, &Device::flex());
        (name.into(), ParameterTensor { shape: shape.into(), values_n, learns: true })
    }

    fn in_bf16((name, tensor): NamedTensor) -> NamedTensor {
        (name, ParameterTensor { values_n: tensor.values_n.cast(DType::BF16), ..tensor })
    }

    fn written(tensors: &[NamedTensor]) -> Vec<u8> {
        let mut bytes = Vec::new();
        assert_eq!(write(tensors.to_vec(), &mut bytes).unwrap(), None);
        bytes
    }

    /// The same file by the library of the format.
    fn by_the_library(tensors: &[NamedTensor]) -> Vec<u8> {
        let data: Vec<_> =
            tensors.iter().map(|tensor| (tensor, tensor.1.values_n.clone().into_data())).collect();
        let views = data.iter().map(|((name, tensor), data)| {
            let shape = tensor.shape.clone();
            let dtype = if data.dtype() == DType::F32 { Dtype::F32 } else { Dtype::BF16 };
            (name.as_str(), TensorView::new(dtype, shape, data.as_bytes()).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    fn opened(bytes: &[u8]) -> Result<TensorFile, CheckpointError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        TensorFile::open(Path::new("step-1/model.safetensors"), file)
    }

    #[test]
    fn the_bytes_are_those_of_the_formats_own_library() {
        let many = [
            tensor("head.weight", &[3, 5], 1.0),
            tensor("blocks.10.norm", &[7], -2.0),
            tensor("blocks.2.norm", &[1], 0.5),
            tensor("embedding \"ü\"", &[2, 1, 4], 9.0),
            in_bf16(tensor("blocks.2.norm in bf16", &[3], 0.5)),
            in_bf16(tensor("a first in bf16", &[5, 1], 0.5)),
            // Longer than a piece.
            tensor("large", &[PIECE_ELEMENTS / 1024 + 1, 1024], 0.0),
        ];
        for tensors in [&many[..0], &many[..1], &many[1..3], &many] {
            assert!(written(tensors) == by_the_library(tensors), "{} tensors", tensors.len());
        }
    }

    #[test]
    fn every_tensor_is_read_back_bit_for_bit() {
        let c = in_bf16(tensor("c", &[PIECE_ELEMENTS + 1], -1.0));
        let tensors = [tensor("a", &[2, 3], 0.1), tensor("b", &[PIECE_ELEMENTS + 3], -1.0), c];
        let mut file = opened(&written(&tensors)).unwrap();
        assert_eq!(file.num_elements(), 6 + 2 * PIECE_ELEMENTS as u64 + 4);
        assert_eq!(file.shapes().next(), Some(("a", &[2, 3][..])));
        for (name, tensor) in tensors {
            let read = file.read(&name, tensor.values_n.dtype(), &Device::flex()).unwrap();
            assert!(read.into_data() == tensor.values_n.into_data(), "{name}");
        }
    }

    #[test]
    fn a_tensor_of_another_type_is_named() {
        let mut file = opened(&written(&[tensor("a", &[2], 0.1), in_bf16(tensor("b", &[3], 0.1))])).unwrap();
        for (name, dtype, expected) in [
            ("a", DType::BF16, "tensor `a` is F32, not BF16"),
            ("b", DType::F32, "tensor `b` is BF16, not F32"),
        ] {
            let message = file.read(name, dtype, &Device::flex()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_value_that_is_no_number_is_named_when_written_and_when_read() {
        let values: Vec<f32> = vec![1.0, f32::NAN];
        let values_n = Tensor::from_data(TensorData::new(values, [2]), &Device::flex());
        let bad = ("b".into(), ParameterTensor { shape: vec![2], values_n, learns: true });
        let all = [tensor("a", &[2], 1.0), bad];
        assert_eq!(write(all.to_vec(), &mut Vec::new()).unwrap().as_deref(), Some("b"));
        let mut file = opened(&by_the_library(&all)).unwrap();
        let message = file.read("b", DType::F32, &Device::flex()).unwrap_err().to_string();
        assert!(message.contains("tensor `b` holds a NaN or an infinity"), "{message}");
    }

    #[test]
    fn a_header_that_asks_for_more_than_the_file_has_is_refused_before_anything_is_reserved() {
        for length in [u64::MAX, 1 << 40, 9] {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend(b"{}");
            opened(&bytes).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn no_damage_to_a_file_makes_reading_it_panic(place in 0usize..200, byte in any::<u8>(), cut in 0usize..200) {
            let tensors = [tensor("a", &[2, 3], 0.1), tensor("b", &[4], -1.0)];
            let mut bytes = written(&tensors);
            let place = place % bytes.len();
            bytes[place] = byte;
            bytes.truncate(bytes.len().saturating_sub(cut % 3));
            if let Ok(mut file) = opened(&bytes) {
                let names: Vec<String> = file.shapes().map(|(name, _)| name.to_string()).collect();
                for name in names {
                    drop(file.read(&name, DType::F32, &Device::flex()));
                }
            }
        }
    }
}

//! Numbers that are read from the device together, so that a step waits for it once.

use std::ops::Range;

use burn::tensor::{DType, Tensor};

/// A device that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the device failed: {0}")]
pub struct DeviceReadError(String);

/// Tensors to read, by type: tensors of several types do not go into one.
#[derive(Debug, Default)]
pub(crate) struct Readings {
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    dtype: DType,
    tensors: Vec<Tensor<1>>,
    num_elements: usize,
}

/// Where the numbers of a tensor will be among the [`Values`] that are read.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    group: usize,
    elements: Range<usize>,
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Values(Vec<Vec<f64>>);

impl Readings {
    /// Remembers `tensor`, whose gradients do not matter.
    pub(crate) fn add(&mut self, tensor: &Tensor<1>) -> Reading {
        let tensor = tensor.clone().inner();
        let dtype = tensor.dtype();
        let known = self.groups.iter().position(|group| group.dtype == dtype);
        let group = known.unwrap_or_else(|| {
            self.groups.push(Group { dtype, tensors: Vec::new(), num_elements: 0 });
            self.groups.len() - 1
        });
        let of_type = &mut self.groups[group];
        let start = of_type.num_elements;
        of_type.num_elements += tensor.dims()[0];
        of_type.tensors.push(tensor);
        Reading { group, elements: start..of_type.num_elements }
    }

    /// The numbers of all tensors.
    ///
    /// # Errors
    /// [`DeviceReadError`] if the device cannot be read.
    pub(crate) fn read(self) -> Result<Values, DeviceReadError> {
        let read = |group: Group| {
            let data = Tensor::cat(group.tensors, 0).try_into_data();
            data.map(|data| data.iter::<f64>().collect())
                .map_err(|error| DeviceReadError(format!("{error:?}")))
        };
        self.groups.into_iter().map(read).collect::<Result<_, _>>().map(Values)
    }
}

impl Values {
    /// The numbers of a tensor.
    pub(crate) fn of(&self, reading: &Reading) -> &[f64] {
        &self.0[reading.group][reading.elements.clone()]
    }

    /// The number of a tensor of one element.
    pub(crate) fn scalar(&self, reading: &Reading) -> f64 {
        self.of(reading)[0]
    }
}

/// The value of a one-element tensor, read by itself.
///
/// # Errors
/// [`DeviceReadError`] if the device cannot be read.
pub(crate) fn read_scalar(tensor: &Tensor<1>) -> Result<f64, DeviceReadError> {
    let mut readings = Readings::default();
    let reading = readings.add(tensor);
    Ok(readings.read()?.scalar(&reading))
}

/// The values of `tensor` in f32, row-major.
///
/// # Errors
/// [`DeviceReadError`] if the device cannot be read.
pub(crate) fn read_floats<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, DeviceReadError> {
    let failed = |error: String| DeviceReadError(error);
    let data = tensor.cast(DType::F32).try_into_data().map_err(|error| failed(format!("{error:?}")))?;
    data.try_into_vec::<f32>().map_err(|error| failed(format!("{error:?}")))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn every_tensor_has_its_own_numbers_whatever_their_types() {
        let device = Device::flex();
        let mut readings = Readings::default();
        let tensors = [
            Tensor::<1>::from_floats([1.0, 2.0], &device),
            Tensor::<1>::from_floats([3.0], &device).cast(DType::F64),
            Tensor::<1>::from_floats([4.0], &device.clone().autodiff()).require_grad(),
            Tensor::<1>::from_floats([5.0, 6.0, 7.0], &device).cast(DType::F64),
        ];
        let places: Vec<Reading> = tensors.iter().map(|tensor| readings.add(tensor)).collect();
        let values = readings.read().unwrap();
        let found: Vec<&[f64]> = places.iter().map(|place| values.of(place)).collect();
        assert_eq!(found, [&[1.0, 2.0][..], &[3.0], &[4.0], &[5.0, 6.0, 7.0]]);
        assert_eq!(values.scalar(&places[2]), 4.0);
    }

    #[test]
    fn nothing_to_read_is_no_error() {
        Readings::default().read().unwrap();
    }
}

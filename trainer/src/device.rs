//! From `device = "..."` to a burn device that is really there.

mod cuda;
mod listing;

pub use burn::tensor::Device;
use switchyard_ground::printable::excerpt;

pub use cuda::{CudaProblem, CudaVersion};
pub use listing::{DeviceKind, ListedDevice, list};

/// A device that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not one of the names.
    #[error(
        "`device` is \"{name}\": use \"cpu\", \"wgpu\", \"wgpu:N\" or \"cuda:N\"; available here: {available}"
    )]
    UnknownName {
        /// The name as written.
        name: String,
        /// Devices that can be used.
        available: String,
    },
    /// The binary has no code for this kind of device.
    #[error(
        "`device` is \"{name}\", but this build has no {feature} support: rebuild with `--features {feature}`, or use \
         one of the available devices: {available}"
    )]
    NotCompiledIn {
        /// The name as written.
        name: String,
        /// Cargo feature that brings the support.
        feature: &'static str,
        /// Devices that can be used.
        available: String,
    },
    /// CUDA lacks something.
    #[error("`device` is \"{name}\": {problem}; available here: {available}")]
    Cuda {
        /// The name as written.
        name: String,
        /// What.
        problem: CudaProblem,
        /// Devices that can be used.
        available: String,
    },
    /// The kind is compiled in, but no such device answers.
    #[error(
        "`device` is \"{name}\", but this machine shows no such device (its driver may be missing); available here: \
         {available}"
    )]
    NotPresent {
        /// The name as written.
        name: String,
        /// Devices that can be used.
        available: String,
    },
}

/// The device that `name` asks for.
///
/// # Errors
/// [`DeviceError`] if the name is not a device's, its support is not compiled in, or it is not
/// present; each lists what is available.
pub fn select(name: &str) -> Result<Device, DeviceError> {
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, index.parse::<usize>().ok()),
        None => (name, Some(0)),
    };
    match (kind, index) {
        ("cpu", Some(0)) => Ok(Device::flex()),
        ("wgpu", Some(index)) => of_kind(name, "wgpu", index, wgpu_devices()),
        ("cuda", Some(index)) => {
            let devices = cuda_devices().transpose().map_err(|problem| DeviceError::Cuda {
                name: name.into(),
                problem,
                available: available(),
            })?;
            of_kind(name, "cuda", index, devices)
        }
        _ => Err(DeviceError::UnknownName { name: excerpt(name, 60), available: available() }),
    }
}

/// Whether the device of this name computes in f64. Those of wgpu say that they do, and their
/// exponentials and logarithms of it are not even near.
pub(crate) fn computes_f64(name: &str) -> bool {
    name.split(':').next() != Some("wgpu")
}

/// Whether `name` is the CPU's.
pub(crate) fn is_cpu(name: &str) -> bool {
    matches!(name.split_once(':').unwrap_or((name, "0")), ("cpu", "0"))
}

/// Names of the devices that [`select`] accepts on this machine, comma-separated.
pub fn available() -> String {
    let numbered = |kind: &str, devices: Option<Vec<Device>>| {
        (0..devices.map_or(0, |devices| devices.len()))
            .map(|index| format!("{kind}:{index}"))
            .collect::<Vec<_>>()
    };
    let mut names = vec!["cpu".to_string()];
    names.extend(numbered("wgpu", wgpu_devices()));
    names.extend(numbered("cuda", cuda_devices().and_then(Result::ok)));
    names.join(", ")
}

fn of_kind(
    name: &str,
    feature: &'static str,
    index: usize,
    devices: Option<Vec<Device>>,
) -> Result<Device, DeviceError> {
    match devices {
        None => Err(DeviceError::NotCompiledIn { name: name.into(), feature, available: available() }),
        Some(devices) => devices
            .into_iter()
            .nth(index)
            .ok_or_else(|| DeviceError::NotPresent { name: name.into(), available: available() }),
    }
}

/// Devices of a kind, or `None` if its support is not compiled in. Only enumeration is safe to ask:
/// constructing a device that is not there succeeds, and its first operation panics.
fn wgpu_devices() -> Option<Vec<Device>> {
    #[cfg(feature = "wgpu")]
    return Some(Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec());
    #[cfg(not(feature = "wgpu"))]
    None
}

/// As [`wgpu_devices`]; an error if none of the devices could be used.
fn cuda_devices() -> Option<Result<Vec<Device>, CudaProblem>> {
    #[cfg(feature = "cuda")]
    return Some(
        cuda::Installation::find()
            .check()
            .map(|()| Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec()),
    );
    #[cfg(not(feature = "cuda"))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_lists_what_is_available() {
        let message = select("gpu").unwrap_err().to_string();
        assert!(message.contains("\"gpu\"") && message.contains("available here: cpu"), "{message}");
        assert!(select("cuda:x").is_err() && select("cpu:1").is_err());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_is_not_compiled_in_names_the_feature() {
        let message = select("cuda:0").unwrap_err().to_string();
        assert!(
            message.contains("--features cuda") && message.contains("available devices: cpu"),
            "{message}"
        );
    }
}

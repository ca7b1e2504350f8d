//! What there is to compute on.

use serde::Serialize;
use switchyard_kernels::{Compute, Products};

use super::{Device, computes_f64, cuda_devices, wgpu_devices};
use crate::host::HostInfo;

/// Devices of a kind, or why there are none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceKind {
    /// `cpu`, `wgpu` or `cuda`.
    pub kind: &'static str,
    /// In the order of their numbers.
    pub devices: Vec<ListedDevice>,
    /// What is missing for one, or for more; `None` if nothing is.
    pub missing: Option<String>,
}

/// A device that can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedDevice {
    /// As `device` names it.
    pub name: String,
    /// As it names itself.
    pub hardware: String,
    /// What products are made of: types of numbers and, of the CPU, by which instructions.
    pub computes: Vec<String>,
}

/// All kinds that a program of these sources could know. Opens every device.
pub fn list() -> Vec<DeviceKind> {
    let not_built = |kind: &str| format!("not in this build: rebuild with `--features {kind}`");
    let wgpu = wgpu_devices().ok_or_else(|| not_built("wgpu"));
    let wgpu = wgpu.and_then(|devices| match devices.is_empty() {
        true => Err("no device answers: install a driver of Vulkan".to_string()),
        false => Ok(devices),
    });
    let cuda = match cuda_devices() {
        None => Err(not_built("cuda")),
        Some(Err(problem)) => Err(problem.to_string()),
        Some(Ok(devices)) if devices.is_empty() => Err("the driver shows no GPU".to_string()),
        Some(Ok(devices)) => Ok(devices),
    };
    vec![of_cpu(), of_kind("wgpu", wgpu), of_kind("cuda", cuda)]
}

fn of_cpu() -> DeviceKind {
    let host = HostInfo::detect();
    let bf16 = match Products::of(Compute::Bf16) {
        Products::Amx => "bf16 by AMX",
        Products::Avx512Bf16 => "bf16 by AVX512-BF16",
        Products::F32 | Products::RoundedF32 => "bf16 rounded, by f32 instructions",
    };
    let vectors = host.cpu_features.join(", ");
    let f32 = if vectors.is_empty() { "f32".to_string() } else { format!("f32 ({vectors})") };
    let model = host.cpu_model.unwrap_or(host.arch);
    let hardware = format!("{model}, {} threads", host.logical_cores);
    let device = ListedDevice { name: "cpu".into(), hardware, computes: vec![f32, bf16.into()] };
    DeviceKind { kind: "cpu", devices: vec![device], missing: None }
}

fn of_kind(kind: &'static str, devices: Result<Vec<Device>, String>) -> DeviceKind {
    match devices {
        Err(missing) => DeviceKind { kind, devices: Vec::new(), missing: Some(missing) },
        Ok(devices) => {
            let listed = |(index, device): (usize, Device)| {
                let name = format!("{kind}:{index}");
                let (hardware, computes) = (hardware(&device), types(&device, &name));
                ListedDevice { name, hardware, computes }
            };
            DeviceKind { kind, devices: devices.into_iter().enumerate().map(listed).collect(), missing: None }
        }
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn hardware(device: &Device) -> String {
    device.identity().map_or_else(|| "unnamed".to_string(), |it| format!("{} ({})", it.name, it.fingerprint))
}

/// No such device is built in.
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
fn hardware(_device: &Device) -> String {
    String::new()
}

/// The types that the device says it has and computes rightly.
fn types(device: &Device, name: &str) -> Vec<String> {
    use burn::tensor::DType;

    [DType::F32, DType::F16, DType::BF16, DType::F64]
        .into_iter()
        .filter(|dtype| device.supports_dtype(*dtype) && (*dtype != DType::F64 || computes_f64(name)))
        .map(|dtype| dtype.name().to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there_and_what_is_not_says_why() {
        let kinds = list();
        assert_eq!(kinds.iter().map(|of| of.kind).collect::<Vec<_>>(), ["cpu", "wgpu", "cuda"]);
        assert_eq!(kinds[0].devices[0].name, "cpu");
        assert!(kinds[0].devices[0].computes.iter().any(|text| text.starts_with("bf16")), "{kinds:?}");
        for kind in kinds {
            assert!(!kind.devices.is_empty() || kind.missing.is_some(), "{kind:?}");
        }
    }
}

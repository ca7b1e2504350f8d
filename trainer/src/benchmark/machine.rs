//! Where a measurement was taken, and what the process used of it.

use std::fs;

use burn::tensor::Device;
use serde::Serialize;
use switchyard_model::Compute;

use crate::TrainError;
use crate::host::{Commit, HostInfo};
use crate::throughput::MatmulCeiling;

/// The machine and the program of a measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Highest rate of a matrix product before and after the measurement; see
    /// [`crate::throughput::measure_matmul_peak_flops`].
    pub matmul_ceiling_gflops: f64,
    /// Threads of the CPU device.
    pub threads: usize,
    /// Device as configured.
    pub device: String,
    /// Type of parameters and activations.
    pub dtype: String,
    /// What the factors of products are rounded to, those of the ceiling too.
    pub compute: Compute,
    /// The processor's name.
    pub cpu_model: Option<String>,
    /// Commit of the sources.
    pub commit: Option<Commit>,
}

impl Machine {
    /// The machine as it is now.
    pub fn observe(device_name: &str, ceiling: &MatmulCeiling) -> Self {
        Self {
            matmul_ceiling_gflops: ceiling.peak_flops() / 1e9,
            threads: rayon::current_num_threads(),
            device: device_name.into(),
            dtype: "f32".into(),
            compute: ceiling.compute(),
            cpu_model: HostInfo::detect().cpu_model,
            commit: Commit::of_sources(),
        }
    }

    /// The same machine with the higher of the two ceilings, after another look.
    ///
    /// # Errors
    /// [`TrainError::Device`] if the device cannot be read.
    pub fn observe_again(self, device: &Device, compute: Compute) -> Result<Self, TrainError> {
        let again_gflops = MatmulCeiling::measure(device, compute)?.peak_flops() / 1e9;
        Ok(Self { matmul_ceiling_gflops: self.matmul_ceiling_gflops.max(again_gflops), ..self })
    }
}

/// What this process has used so far, as Linux tells; absent elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Most memory that was resident at one time.
    pub peak_rss_bytes: Option<u64>,
    /// Pages that were mapped without reading from disk.
    pub minor_page_faults: Option<u64>,
}

impl Usage {
    /// Usage up to now.
    pub fn now() -> Self {
        Self {
            peak_rss_bytes: fs::read_to_string("/proc/self/status")
                .ok()
                .and_then(|text| peak_rss_bytes(&text)),
            minor_page_faults: fs::read_to_string("/proc/self/stat")
                .ok()
                .and_then(|text| minor_page_faults(&text)),
        }
    }

    /// Pages mapped since `earlier`; `None` where the system does not tell.
    pub fn minor_page_faults_since(&self, earlier: &Self) -> Option<u64> {
        self.minor_page_faults.zip(earlier.minor_page_faults).map(|(now, then)| now - then)
    }
}

fn peak_rss_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Field 10 of `/proc/self/stat`, counted from 1 (proc(5)).
fn minor_page_faults(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses, which may hold anything.
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(7)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_as_documented() {
        assert_eq!(peak_rss_bytes("VmPeak:\t  9 kB\nVmHWM:\t    1234 kB\n"), Some(1234 * 1024));
        assert_eq!(peak_rss_bytes("VmPeak:\t  9 kB\n"), None);
        assert_eq!(minor_page_faults("7 (a) b) R 1 2 3 4 5 6 77 8 9"), Some(77));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn touched_memory_shows_in_the_usage() {
        let before = Usage::now();
        let touched = vec![1_u8; 64 << 20];
        let after = Usage::now();
        assert!(touched.iter().map(|byte| u64::from(*byte)).sum::<u64>() > 0);
        assert!(after.peak_rss_bytes.unwrap() >= 64 << 20, "{after:?}");
        assert!(after.minor_page_faults > before.minor_page_faults, "{before:?} {after:?}");
    }
}

//! Energy that the processor takes, from its own counters.
//!
//! Linux shows them under `/sys/class/powercap` (RAPL, of Intel's processors and of AMD's), usually
//! to root alone. A counter covers a whole package: whatever other processes compute in the
//! meantime is counted too, memory and a GPU are not.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where Linux shows the counters.
pub const POWERCAP: &str = "/sys/class/powercap";

/// A counter begins anew after about 262 kJ, which a server's package takes in a quarter of an
/// hour. One turn between two samples is seen, a second one is not.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);

/// The sum of all packages' energy since the meter was started.
#[derive(Debug)]
pub struct EnergyMeter {
    packages: Vec<Package>,
    joules: f64,
    sampled: Instant,
    is_broken: bool,
}

/// The counter of one processor package.
#[derive(Debug)]
struct Package {
    counter: PathBuf,
    /// The highest value before the counter begins anew at 0.
    max_microjoules: u64,
    last_microjoules: u64,
}

impl EnergyMeter {
    /// A meter over the packages below `powercap` that begins at `earlier_joules`; `None` without
    /// counters, or if one of them cannot be read: a part of the packages would look like all of
    /// them.
    pub fn start(powercap: &Path, earlier_joules: f64) -> Option<Self> {
        let folders = fs::read_dir(powercap).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let packages: Vec<Package> = folders
            .filter(|folder| is_package(folder))
            .map(|folder| Package::open(&folder))
            .collect::<Option<_>>()?;
        let is_empty = packages.is_empty();
        let meter = Self { packages, joules: earlier_joules, sampled: Instant::now(), is_broken: false };
        (!is_empty).then_some(meter)
    }

    /// Joules so far; none from the first counter on that can no longer be read.
    pub fn sample(&mut self) -> Option<f64> {
        for package in &mut self.packages {
            match package.microjoules_since_last() {
                Some(microjoules) => self.joules += microjoules as f64 * 1e-6,
                None => self.is_broken = true,
            }
        }
        self.sampled = Instant::now();
        (!self.is_broken).then_some(self.joules)
    }

    /// Samples if the last sample is ten seconds old; to be called often enough that no counter
    /// begins anew twice between two calls.
    pub fn keep_up(&mut self) {
        if self.sampled.elapsed() >= SAMPLE_EVERY {
            self.sample();
        }
    }
}

impl Package {
    fn open(folder: &Path) -> Option<Self> {
        let counter = folder.join("energy_uj");
        let max_microjoules = read_number(&folder.join("max_energy_range_uj"))?;
        let last_microjoules = read_number(&counter)?;
        Some(Self { counter, max_microjoules, last_microjoules })
    }

    fn microjoules_since_last(&mut self) -> Option<u64> {
        let now = read_number(&self.counter)?;
        let last = std::mem::replace(&mut self.last_microjoules, now);
        let began_anew = || self.max_microjoules.saturating_sub(last) + now;
        Some(now.checked_sub(last).unwrap_or_else(began_anew))
    }
}

/// Whether a folder is a package's: `intel-rapl:0` is, its part `intel-rapl:0:0` and the whole
/// machine's `psys` are not. `intel-rapl-mmio:0` is the same package, read in another way.
fn is_package(folder: &Path) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_top_level = name.strip_prefix("intel-rapl:").is_some_and(|number| !number.contains(':'));
    let label = || fs::read_to_string(folder.join("name")).unwrap_or_default();
    is_top_level && label().starts_with("package")
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A counter of 1 J at most.
    fn domain(root: &TempDir, folder: &str, label: &str, microjoules: u64) {
        let path = root.path().join(folder);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("name"), format!("{label}\n")).unwrap();
        fs::write(path.join("max_energy_range_uj"), "1000000\n").unwrap();
        count_to(root, folder, microjoules);
    }

    fn count_to(root: &TempDir, folder: &str, microjoules: u64) {
        fs::write(root.path().join(folder).join("energy_uj"), format!("{microjoules}\n")).unwrap();
    }

    #[track_caller]
    fn assert_close(joules: Option<f64>, expected: f64) {
        assert!(
            joules.is_some_and(|joules| (joules - expected).abs() < 1e-12),
            "{joules:?} is not {expected}"
        );
    }

    #[test]
    fn packages_are_added_and_their_parts_are_not() {
        let root = tempfile::tempdir().unwrap();
        let others =
            [("intel-rapl:0:0", "core"), ("intel-rapl:2", "psys"), ("intel-rapl-mmio:0", "package-0")];
        let packages = [("intel-rapl:0", "package-0"), ("intel-rapl:1", "package-1")];
        for (folder, label) in others.into_iter().chain(packages) {
            domain(&root, folder, label, 100_000);
        }
        let mut meter = EnergyMeter::start(root.path(), 0.0).unwrap();
        assert_close(meter.sample(), 0.0);
        others.into_iter().for_each(|(folder, _)| count_to(&root, folder, 900_000));
        count_to(&root, "intel-rapl:0", 350_000);
        count_to(&root, "intel-rapl:1", 101_000);
        assert_close(meter.sample(), 0.251);
    }

    #[test]
    fn a_counter_that_began_anew_goes_on() {
        let root = tempfile::tempdir().unwrap();
        domain(&root, "intel-rapl:0", "package-0", 900_000);
        let mut meter = EnergyMeter::start(root.path(), 5.0).unwrap();
        count_to(&root, "intel-rapl:0", 50_000);
        assert_close(meter.sample(), 5.15);
        count_to(&root, "intel-rapl:0", 40_000);
        assert_close(meter.sample(), 6.14);
    }

    #[test]
    fn without_counters_or_the_right_to_read_them_there_is_no_meter() {
        let root = tempfile::tempdir().unwrap();
        assert!(EnergyMeter::start(root.path(), 0.0).is_none());
        assert!(EnergyMeter::start(&root.path().join("absent"), 0.0).is_none());
        domain(&root, "intel-rapl:0", "package-0", 1);
        domain(&root, "intel-rapl:1", "package-1", 1);
        fs::remove_file(root.path().join("intel-rapl:1/energy_uj")).unwrap();
        assert!(EnergyMeter::start(root.path(), 0.0).is_none(), "one of two packages is not all");
    }

    #[test]
    fn a_counter_lost_on_the_way_leaves_no_number() {
        let root = tempfile::tempdir().unwrap();
        domain(&root, "intel-rapl:0", "package-0", 1);
        let mut meter = EnergyMeter::start(root.path(), 0.0).unwrap();
        fs::remove_file(root.path().join("intel-rapl:0/energy_uj")).unwrap();
        assert_eq!(meter.sample(), None);
        count_to(&root, "intel-rapl:0", 2);
        assert_eq!(meter.sample(), None, "what was missed stays missed");
    }

    #[test]
    fn a_step_samples_no_more_than_every_ten_seconds() {
        let root = tempfile::tempdir().unwrap();
        domain(&root, "intel-rapl:0", "package-0", 0);
        let mut meter = EnergyMeter::start(root.path(), 0.0).unwrap();
        count_to(&root, "intel-rapl:0", 500_000);
        meter.keep_up();
        assert_eq!(meter.joules, 0.0);
        meter.sampled = Instant::now().checked_sub(SAMPLE_EVERY).unwrap();
        meter.keep_up();
        assert_eq!(meter.joules, 0.5);
    }
}

//! Short measurements of each arm's step, from which the time of a study is predicted.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use switchyard_trainer::benchmark::{Repetitions, StepCase, benchmark_step};
use switchyard_trainer::config_file::config_hash;

use super::arms::Arm;
use super::file::LoadedStudy;
use super::identity::sha256_hex;
use super::result::HeldEqual;
use crate::failure::Failure;

/// Name of the file in a study's folder. It is kept, because with wall-clock time held equal it decides how many steps
/// each arm does, and a study that is continued must not change its mind.
const FILE_NAME: &str = "calibration.json";

/// Steps timed per arm, after one to warm up.
const TIMED_STEPS: usize = 4;

/// What a step of each arm takes on this machine, by arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Calibration {
    /// Machine that was measured.
    pub(crate) hostname: String,
    /// Hash of the arms that were measured.
    arms_sha256: String,
    /// By label.
    pub(crate) arms: BTreeMap<String, ArmCalibration>,
}

/// What a step of an arm takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ArmCalibration {
    /// Median seconds of a training step.
    pub(crate) step_secs: f64,
    /// Median seconds of a forward pass over a step's tokens.
    pub(crate) forward_secs: f64,
    /// Most memory resident during the measurement of this arm and those before it.
    pub(crate) peak_rss_bytes: Option<u64>,
}

impl Calibration {
    /// The calibration in `folder`, measured now if it is not there or is one of other arms.
    ///
    /// # Errors
    /// Those of a training step; a file that cannot be read or written.
    pub(crate) fn read_or_measure(
        folder: &Path,
        loaded: &LoadedStudy,
        arms: &[Arm],
    ) -> Result<Self, Failure> {
        let path = folder.join(FILE_NAME);
        let arms_sha256 = hash_of(arms);
        if path.is_file() {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))
                .map_err(Failure::Fault)?;
            let known: Self = serde_json::from_str(&text).map_err(|error| {
                Failure::Mistake(format!(
                    "{}: not a calibration: {error}; delete it to measure again",
                    path.display()
                ))
            })?;
            if known.arms_sha256 == arms_sha256 {
                return Ok(known);
            }
        }
        eprintln!("{}: timing {} steps of each arm", loaded.study.name, TIMED_STEPS);
        let measured = Self::measure(arms, arms_sha256)?;
        super::execute::write_atomically(&path, &(serde_json::to_string_pretty(&measured)? + "\n"))?;
        Ok(measured)
    }

    fn measure(arms: &[Arm], arms_sha256: String) -> Result<Self, Failure> {
        let repetitions = Repetitions { warmup: 1, timed: Some(TIMED_STEPS) };
        let mut measured = BTreeMap::new();
        for arm in arms {
            let case = StepCase { name: &arm.label, config: &arm.config, plan: &arm.plan };
            let report = benchmark_step(case, None, repetitions)?;
            let calibration = ArmCalibration {
                step_secs: report.step_ms_median / 1e3,
                forward_secs: report.forward_ms_median / 1e3,
                peak_rss_bytes: report.peak_rss_bytes,
            };
            measured.insert(arm.label.clone(), calibration);
        }
        let hostname = switchyard_trainer::host::HostInfo::detect().hostname;
        Ok(Self { hostname, arms_sha256, arms: measured })
    }

    /// Steps of each arm as a multiple of the budget: with wall-clock time held equal, those at which all arms take as long
    /// as the baseline.
    pub(crate) fn step_factors(&self, held_equal: HeldEqual, arms: &[Arm]) -> Vec<f64> {
        if held_equal != HeldEqual::WallClock {
            return vec![1.0; arms.len()];
        }
        let secs = |arm: &Arm| self.arms.get(&arm.label).map_or(1.0, |measured| measured.step_secs);
        let baseline = arms.first().map_or(1.0, secs);
        arms.iter().map(|arm| baseline / secs(arm)).collect()
    }
}

fn hash_of(arms: &[Arm]) -> String {
    let hashes: Vec<String> =
        arms.iter().map(|arm| format!("{} {}", arm.label, config_hash(&arm.config))).collect();
    sha256_hex(hashes.join("\n"))
}

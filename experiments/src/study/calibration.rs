//! Short measurements of each arm's step, from which the time of a study is predicted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use switchyard_ground::{regular_file, say};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use switchyard_ground::digest::sha256_hex;
use switchyard_trainer::TrainError;
use switchyard_trainer::benchmark::{Repetitions, StepCase, Timed, benchmark_step};

use super::arms::Arm;
use super::file::LoadedStudy;
use super::identity::{CodeIdentity, placeless_hash};
use super::result::HeldEqual;
use crate::failure::Failure;
use crate::lock_file::LockFile;
use crate::whole_file;

/// Steps timed per arm, after some to warm up: short ones for long enough that a slow moment does
/// not decide.
const TIMED: Timed = Timed::AtLeast(4, Duration::from_secs(2));
const WARMUP_STEPS: usize = 2;

/// Pause between two looks at a measurement that another process makes.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Bytes of a calibration that are read.
const MAX_BYTES: u64 = 16 << 20;

/// What a step of each arm takes on this machine, by arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Calibration {
    /// Machine that was measured.
    pub(crate) hostname: String,
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
    /// The calibration of these arms by this program in `folder`, measured now if it is not there.
    ///
    /// # Errors
    /// Those of a training step; [`Failure::Interrupted`] once `stop` is set; a file that cannot be
    /// read or written.
    pub(crate) fn read_or_measure(
        folder: &Path,
        loaded: &LoadedStudy,
        arms: &[Arm],
        code: &CodeIdentity,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, Failure> {
        let path = folder.join(format!("calibration-{}.json", &hash_of(arms, code)[..12]));
        let lock = path.with_extension("lock");
        // Of several processes that start together one measures, undisturbed, and its numbers hold
        // for all.
        while !path.is_file() {
            check_go_on(stop)?;
            let taken = LockFile::try_take(&lock).with_context(|| format!("cannot lock {}", lock.display()));
            match taken.map_err(Failure::Fault)? {
                Some(_lock) if !path.is_file() => {
                    say!("{}: timing some steps of each arm", loaded.study.name);
                    let text = serde_json::to_string_pretty(&Self::measure(arms, stop)?)? + "\n";
                    whole_file::replace(&path, text.as_bytes()).map_err(Failure::Fault)?;
                }
                Some(_) => {}
                None => std::thread::sleep(LOOK_EVERY),
            }
        }
        let text = regular_file::read_to_string(&path, MAX_BYTES)
            .with_context(|| format!("cannot read {}", path.display()))
            .map_err(Failure::Fault)?;
        serde_json::from_str(&text).map_err(|error| {
            Failure::Mistake(format!(
                "{}: not a calibration: {error}; delete it to measure again",
                path.display()
            ))
        })
    }

    fn measure(arms: &[Arm], stop: &Arc<AtomicBool>) -> Result<Self, Failure> {
        let repetitions = Repetitions { warmup: WARMUP_STEPS, timed: TIMED };
        let mut measured = BTreeMap::new();
        for arm in arms {
            let case = StepCase { name: &arm.label, config: &arm.config, plan: &arm.plan };
            let report = benchmark_step(case, None, repetitions, stop)?;
            let calibration = ArmCalibration {
                step_secs: report.step_ms_median / 1e3,
                forward_secs: report.forward_ms_median / 1e3,
                peak_rss_bytes: report.peak_rss_bytes,
            };
            measured.insert(arm.label.clone(), calibration);
        }
        let hostname = switchyard_trainer::host::HostInfo::detect().hostname;
        Ok(Self { hostname, arms: measured })
    }

    /// Steps of each arm as a multiple of the budget: with wall-clock time held equal, those at
    /// which all arms take as long as the baseline.
    pub(crate) fn step_factors(&self, held_equal: HeldEqual, arms: &[Arm]) -> Vec<f64> {
        match held_equal {
            HeldEqual::WallClock => {}
            // What the width leaves: the schedules end at equal FLOPs.
            HeldEqual::ActiveFlops => return arms.iter().map(|arm| 1.0 / arm.equality).collect(),
            HeldEqual::TotalParams | HeldEqual::Memory | HeldEqual::Tokens => return vec![1.0; arms.len()],
        }
        let secs = |arm: &Arm| self.arms.get(&arm.label).map_or(1.0, |measured| measured.step_secs);
        let baseline = arms.first().map_or(1.0, secs);
        arms.iter().map(|arm| baseline / secs(arm)).collect()
    }
}

/// Ok if the user has not interrupted.
fn check_go_on(stop: &AtomicBool) -> Result<(), Failure> {
    if stop.load(Ordering::SeqCst) { Err(TrainError::Interrupted.into()) } else { Ok(()) }
}

/// Tells the calibration of these arms by this program from any other. It is kept, because with
/// wall-clock time held equal it decides how many steps each arm does, and a study that is
/// continued must not change its mind.
fn hash_of(arms: &[Arm], code: &CodeIdentity) -> String {
    let arms = arms.iter().map(|arm| format!("{} {}", arm.label, placeless_hash(&arm.config)));
    let lines: Vec<String> = arms.chain([code.as_str().to_string()]).collect();
    sha256_hex(lines.join("\n"))
}

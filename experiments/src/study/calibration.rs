//! Short measurements of each arm's step, from which the time of a study is predicted.
//!
//! Steps of an arm and of the baseline are timed in turn, and where seconds are to be held equal in
//! several rounds, so that a machine which changes its speed changes it for both, and the spread of
//! the rounds says how far the ratio can be trusted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use switchyard_ground::{regular_file, say};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use switchyard_trainer::TrainError;
use switchyard_trainer::benchmark::{Repetitions, StepCase, Timed, benchmark_step};

use super::arms::Arm;
use super::file::LoadedStudy;
use super::identity::{CodeIdentity, hash_of_arms};
use super::result::HeldEqual;
use crate::failure::Failure;
use crate::lock_file::LockFile;
use crate::statistics::RatioEstimate;
use crate::whole_file;

/// Steps timed per arm, after some to warm up: short ones for long enough that a slow moment does
/// not decide.
const TIMED: Timed = Timed::AtLeast(4, Duration::from_secs(1));
const WARMUP_STEPS: usize = 2;
/// Rounds over all arms where the ratios decide how long the runs are.
const ROUNDS: usize = 5;
/// Confidence of a ratio's interval, and the share by which it may miss its mean.
const CONFIDENCE: f64 = 0.95;
const WIDEST: f64 = 0.15;

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
    /// The step's time as a multiple of the baseline's in turn with it, one of each round; none for
    /// the baseline itself.
    pub(crate) ratios: Vec<f64>,
}

impl ArmCalibration {
    /// The mean of the ratios with its interval; `None` of fewer than two.
    pub(crate) fn ratio(&self) -> Option<RatioEstimate> {
        RatioEstimate::new(&self.ratios, CONFIDENCE)
    }
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
        let path = folder
            .join(format!("calibration-{}.json", &hash_of_arms(arms, loaded.study.held_equal, code)[..12]));
        let lock = path.with_extension("lock");
        // Of several processes that start together one measures, undisturbed, and its numbers hold
        // for all.
        while !path.is_file() {
            check_go_on(stop)?;
            let taken = LockFile::try_take(&lock).with_context(|| format!("cannot lock {}", lock.display()));
            match taken.map_err(Failure::Fault)? {
                Some(_lock) if !path.is_file() => {
                    say!("{}: timing some steps of each arm", loaded.study.name);
                    let measured = Self::measure(arms, loaded.study.held_equal, stop)?;
                    measured.check_steady(loaded, arms)?;
                    let text = serde_json::to_string_pretty(&measured)? + "\n";
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

    fn measure(arms: &[Arm], held_equal: HeldEqual, stop: &Arc<AtomicBool>) -> Result<Self, Failure> {
        let repetitions = Repetitions { warmup: WARMUP_STEPS, timed: TIMED };
        let num_rounds = if held_equal == HeldEqual::WallClock { ROUNDS } else { 1 };
        let mut measured: BTreeMap<String, ArmCalibration> = BTreeMap::new();
        for _ in 0..num_rounds {
            for (index, arm) in arms.iter().enumerate() {
                let against = (index > 0).then(|| case(&arms[0]));
                let report = match benchmark_step(case(arm), against, repetitions, stop) {
                    Err(error) if error.non_finite().is_some() && held_equal != HeldEqual::WallClock => {
                        // The study says what comes of it; only its forecast does without.
                        say!("{}: its steps diverge, so that they cannot be timed: {error}", arm.label);
                        continue;
                    }
                    Err(error) if error.non_finite().is_some() => {
                        let reason = format!("arm `{}`: its steps cannot be timed: {error}", arm.label);
                        return Err(Failure::Mistake(reason));
                    }
                    other => other?,
                };
                let (step_secs, forward_secs) = (report.step_ms_median / 1e3, report.forward_ms_median / 1e3);
                let first = ArmCalibration { step_secs, forward_secs, ratios: Vec::new() };
                let of_arm = measured.entry(arm.label.clone()).or_insert(first);
                // The quickest round is the one with the fewest slow moments.
                of_arm.step_secs = of_arm.step_secs.min(step_secs);
                of_arm.forward_secs = of_arm.forward_secs.min(forward_secs);
                of_arm.ratios.extend(report.against.map(|against| against.ratio_median));
            }
        }
        let hostname = switchyard_trainer::host::HostInfo::detect().hostname;
        Ok(Self { hostname, arms: measured })
    }

    /// Ok if the ratios that decide how long the runs are can be trusted.
    fn check_steady(&self, loaded: &LoadedStudy, arms: &[Arm]) -> Result<(), Failure> {
        if loaded.study.held_equal != HeldEqual::WallClock {
            return Ok(());
        }
        for arm in &arms[1..] {
            let Some(RatioEstimate { geometric_mean, interval }) =
                self.arms.get(&arm.label).and_then(ArmCalibration::ratio)
            else {
                continue;
            };
            if interval.high > geometric_mean * (1.0 + WIDEST) {
                return Err(Failure::Mistake(format!(
                    "{}: seconds cannot be held equal on this machine as it is: a step of `{}` takes {geometric_mean:.2} times one \
                     of `{}`, but anything from {:.2} to {:.2} would fit what was measured. Let nothing else run and start again, \
                     or hold `active_flops` equal and ask about seconds",
                    loaded.path.display(),
                    arm.label,
                    arms[0].label,
                    interval.low,
                    interval.high
                )));
            }
        }
        Ok(())
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
        arms.iter().map(|arm| 1.0 / self.ratio_to_baseline(&arm.label)).collect()
    }

    /// Seconds of a step of each arm, by which wall-clock time is held equal; nothing where it is
    /// not. Measured seconds of single runs hold what else the machine did, so that runs which are
    /// equal by construction would look unequal.
    pub(crate) fn step_secs_held_equal(&self, held_equal: HeldEqual, arms: &[Arm]) -> Option<Vec<f64>> {
        let baseline = self.arms.get(&arms.first()?.label)?.step_secs;
        let step_secs = |arm: &Arm| baseline * self.ratio_to_baseline(&arm.label);
        (held_equal == HeldEqual::WallClock).then(|| arms.iter().map(step_secs).collect())
    }

    /// Geometric mean of an arm's ratios; 1 of the baseline, which has none.
    fn ratio_to_baseline(&self, label: &str) -> f64 {
        let ratios = self.arms.get(label).map_or(&[][..], |measured| &measured.ratios);
        let logarithms: f64 = ratios.iter().map(|ratio| ratio.ln()).sum();
        (logarithms / ratios.len().max(1) as f64).exp()
    }
}

/// What of an arm is timed.
fn case(arm: &Arm) -> StepCase<'_> {
    StepCase { name: &arm.label, config: &arm.config, plan: &arm.plan }
}

/// Ok if the user has not interrupted.
fn check_go_on(stop: &AtomicBool) -> Result<(), Failure> {
    if stop.load(Ordering::SeqCst) { Err(TrainError::Interrupted.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::arms::resolve_arms;
    use super::*;

    /// A study of two arms that holds seconds equal, and what was measured of the second.
    fn calibrated(ratios: &[f64]) -> (LoadedStudy, Vec<Arm>, Calibration) {
        let studies = Path::new(env!("CARGO_MANIFEST_DIR")).join("studies");
        let mut loaded = LoadedStudy::read(&studies.join("quick.toml")).unwrap();
        loaded.study.held_equal = HeldEqual::WallClock;
        loaded.study.arms[1].set.push("model.ffn.moe.d_expert=192".into());
        let arms = resolve_arms(&loaded).unwrap();
        let of =
            |ratios: &[f64]| ArmCalibration { step_secs: 0.1, forward_secs: 0.03, ratios: ratios.to_vec() };
        let measured = [("dense".into(), of(&[])), ("e8k2".into(), of(ratios))];
        (loaded, arms, Calibration { hostname: "here".into(), arms: measured.into() })
    }

    #[test]
    fn an_arm_does_as_many_steps_as_its_time_allows() {
        let (_, arms, calibration) = calibrated(&[1.25, 0.8, 2.0, 2.0]);
        let factors = calibration.step_factors(HeldEqual::WallClock, &arms);
        assert_eq!(factors[0], 1.0);
        assert!((factors[1] - 2.0_f64.powf(-0.5)).abs() < 1e-12, "{factors:?}");
        assert_eq!(calibration.step_factors(HeldEqual::Tokens, &arms), [1.0, 1.0]);
        let step_secs = calibration.step_secs_held_equal(HeldEqual::WallClock, &arms).unwrap();
        assert!((step_secs[1] * factors[1] - step_secs[0]).abs() < 1e-12, "equal by construction");
        assert_eq!(calibration.step_secs_held_equal(HeldEqual::Tokens, &arms), None);
    }

    /// The published case: five calibrations of one arm against the same dense one.
    #[test]
    fn ratios_that_disagree_hold_nothing_equal() {
        let (loaded, arms, calibration) = calibrated(&[1.00, 1.09, 1.27, 1.33, 1.41]);
        let message = calibration.check_steady(&loaded, &arms).unwrap_err().message().unwrap();
        assert!(message.contains("a step of `e8k2` takes 1.21 times one of `dense`"), "{message}");
        assert!(message.contains("from 1.01 to 1.45"), "{message}");
        let (loaded, arms, calibration) = calibrated(&[1.20, 1.22, 1.19, 1.21, 1.23]);
        calibration.check_steady(&loaded, &arms).unwrap();
        let mut loaded = loaded;
        loaded.study.held_equal = HeldEqual::ActiveFlops;
        let (_, arms, wild) = calibrated(&[0.5, 2.0]);
        wild.check_steady(&loaded, &arms).unwrap();
    }
}

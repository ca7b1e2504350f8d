//! Memory held equal by measurement: each arm trains some steps in a process of its own, and its
//! width is solved again until the peaks agree.
//!
//! The estimate of `plan` is within 15 % of a run's peak, which is not equal; a measurement alone
//! would need a process for every width. So the estimate chooses the width, the measurement corrects
//! what the estimate is asked for.

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use switchyard_ground::{regular_file, say};
use switchyard_trainer::TrainError;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::config_file;

use super::arms::{Arm, solved_for, written_arm};
use super::equality::quantity;
use super::file::LoadedStudy;
use super::identity::{CodeIdentity, hash_of_arms};
use super::result::HeldEqual;
use crate::failure::Failure;
use crate::launch;
use crate::whole_file;

/// Widths that are measured for an arm at most: the correction changes little the second time.
const MOST_ROUNDS: usize = 3;
/// Share by which two peaks may differ and be equal.
const EQUAL: f64 = 0.02;
/// Steps of a measurement: the first has no moments of the optimizer yet.
const NUM_STEPS: u64 = 3;
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Bytes of a file of measurements that are read.
const MAX_BYTES: u64 = 16 << 20;

/// What was measured, by arm.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Measurements(BTreeMap<String, Measured>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Measured {
    /// Changes of the arm beyond those that it is written with.
    solved: Vec<String>,
    /// Most memory resident in a process that trained it.
    peak_bytes: u64,
}

/// The arms with widths at which their measured peaks are equal, as nearly as the widths allow; what
/// was measured is kept in `folder`, and a study that goes on keeps its arms.
///
/// # Errors
/// A step that fails, a process that cannot be started, and [`Failure::Interrupted`] once `stop` is
/// set.
pub(crate) fn equalised(
    loaded: &LoadedStudy,
    arms: Vec<Arm>,
    folder: &Path,
    code: &CodeIdentity,
    stop: &Arc<AtomicBool>,
) -> Result<Vec<Arm>, Failure> {
    if loaded.study.held_equal != HeldEqual::Memory {
        return Ok(arms);
    }
    let path = folder.join(format!("memory-{}.json", &hash_of_arms(&arms, HeldEqual::Memory, code)[..12]));
    let measurements = if path.is_file() {
        read(&path)?
    } else {
        say!("{}: measuring the memory of each arm", loaded.study.name);
        let measurements = measure(loaded, &arms, folder, stop)?;
        let text = serde_json::to_string_pretty(&measurements)? + "\n";
        whole_file::replace(&path, text.as_bytes()).map_err(Failure::Fault)?;
        measurements
    };
    apply(loaded, arms, &measurements)
}

fn read(path: &Path) -> Result<Measurements, Failure> {
    let text = regular_file::read_to_string(path, MAX_BYTES)
        .with_context(|| format!("cannot read {}", path.display()))
        .map_err(Failure::Fault)?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::Mistake(format!(
            "{}: not a measurement of memory: {error}; delete it to measure again",
            path.display()
        ))
    })
}

/// The arms at the widths that were found, with their measured equality.
fn apply(
    loaded: &LoadedStudy,
    arms: Vec<Arm>,
    Measurements(measured): &Measurements,
) -> Result<Vec<Arm>, Failure> {
    let baseline = measured.get(&arms[0].label).map(|of| of.peak_bytes);
    let process = process_bytes(&arms[0]);
    let with_measured = |(config, arm): (_, Arm)| {
        let Some((Measured { solved, peak_bytes }, baseline)) = measured.get(&arm.label).zip(baseline) else {
            return Ok(arm);
        };
        let arm = if solved.is_empty() { arm } else { written_arm(loaded, config, solved.clone())? };
        let equality = above(*peak_bytes, process) / above(baseline, process);
        Ok(Arm { equality, measured_peak_bytes: Some(*peak_bytes), ..arm })
    };
    loaded.study.arms.iter().zip(arms).map(with_measured).collect()
}

fn measure(
    loaded: &LoadedStudy,
    arms: &[Arm],
    folder: &Path,
    stop: &AtomicBool,
) -> Result<Measurements, Failure> {
    let mut measured = BTreeMap::new();
    let baseline = peak_bytes(&arms[0].config, folder, stop)?;
    measured.insert(arms[0].label.clone(), Measured { solved: Vec::new(), peak_bytes: baseline });
    let process = process_bytes(&arms[0]);
    for (config, arm) in loaded.study.arms.iter().zip(arms).skip(1) {
        let mut best: Option<(f64, Measured)> = None;
        let mut candidate = arm.clone();
        for _ in 0..MOST_ROUNDS {
            let peak_bytes = peak_bytes(&candidate.config, folder, stop)?;
            let ratio = above(peak_bytes, process) / above(baseline, process);
            let solved = solved_part(&candidate, loaded, config.set.len());
            let is_solved = !solved.is_empty();
            let distance = ratio.ln().abs();
            if best.as_ref().is_none_or(|(nearest, _)| distance < *nearest) {
                best = Some((distance, Measured { solved, peak_bytes }));
            }
            let Some(estimate) = quantity(HeldEqual::Memory, &candidate.plan) else { break };
            if (ratio - 1.0).abs() <= EQUAL || !is_solved {
                break;
            }
            let corrected = solved_for(loaded, config, &arms[0], estimate / ratio)?;
            if corrected.overrides == candidate.overrides {
                break;
            }
            candidate = corrected;
        }
        measured.extend(best.map(|(_, measured)| (arm.label.clone(), measured)));
    }
    Ok(Measurements(measured))
}

/// The changes of an arm that it was not written with.
fn solved_part(arm: &Arm, loaded: &LoadedStudy, num_own: usize) -> Vec<String> {
    arm.overrides[loaded.study.set.len() + num_own..].to_vec()
}

/// Memory of the process around a run, which is the same for each arm: with it, small arms would
/// look equal.
pub(super) fn process_bytes(arm: &Arm) -> u64 {
    arm.plan.memory.total_bytes() - arm.plan.memory.run_bytes()
}

fn above(peak_bytes: u64, process_bytes: u64) -> f64 {
    peak_bytes.saturating_sub(process_bytes).max(1) as f64
}

/// Most memory resident in a new process of this program that trains `config` for some steps.
fn peak_bytes(config: &RunConfig, folder: &Path, stop: &AtomicBool) -> Result<u64, Failure> {
    let place = tempfile::tempdir_in(folder)
        .with_context(|| format!("cannot create a folder in {}", folder.display()))
        .map_err(Failure::Fault)?;
    let mut config = config.clone();
    config.train.num_steps = NUM_STEPS;
    config.train.checkpoint_every_steps = None;
    config.sample.num_tokens = 0;
    let recipe = place.path().join("recipe.toml");
    std::fs::write(&recipe, config_file::to_toml(&config))
        .with_context(|| format!("cannot write {}", recipe.display()))
        .map_err(Failure::Fault)?;
    peak_of_training(&recipe, &place.path().join("run"), stop)?.ok_or_else(|| {
        Failure::Mistake(
            "this system does not tell how much memory a process takes: hold something else equal".into(),
        )
    })
}

/// Trains `recipe` in a process of its own, and watches its memory; `None` if that cannot be seen.
fn peak_of_training(recipe: &Path, out: &Path, stop: &AtomicBool) -> Result<Option<u64>, Failure> {
    let failed = |error: std::io::Error| Failure::Fault(anyhow!("cannot measure memory: {error}"));
    let program = std::env::current_exe().map_err(failed)?;
    let mut said = tempfile::tempfile().map_err(failed)?;
    let mut command = Command::new(program);
    command.args(["train", "--out"]).args([out, recipe]).stdin(Stdio::null()).stdout(Stdio::null());
    launch::leave_out_of_job(&mut command);
    let mut child = command.stderr(said.try_clone().map_err(failed)?).spawn().map_err(failed)?;
    let mut peak = None;
    let status = loop {
        // It only grows, so that the last look before the end has seen nearly all of it.
        peak = peak.max(peak_of_process(child.id()));
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if stop.load(Ordering::SeqCst) {
            // The signal has reached the child too, or this does.
            drop(child.kill());
            drop(child.wait());
            return Err(TrainError::Interrupted.into());
        }
        std::thread::sleep(LOOK_EVERY);
    };
    if status.success() {
        return Ok(peak);
    }
    let mut text = String::new();
    said.rewind().and_then(|()| said.read_to_string(&mut text)).map_err(failed)?;
    let last = text.lines().last().unwrap_or("it said nothing");
    Err(Failure::Mistake(format!("the memory of an arm cannot be measured: {last}")))
}

/// Most memory that the process had resident so far, as Linux tells it.
fn peak_of_process(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

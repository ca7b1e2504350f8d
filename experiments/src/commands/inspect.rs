//! `switchyard inspect`

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde_json::json;
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::{
    CheckpointManifest, TrainingState, find_checkpoint, read_state, step_name, steps_in,
};
use switchyard_trainer::metrics::{LayerRecord, Record, read_document_losses};
use switchyard_trainer::run_folder::{RunManifest, RunPaths, RunStatus};

use super::flight_report::FlightReport;
use super::{next_command, print_json, print_text};
use crate::cli::InspectArgs;
use crate::comparison::final_bits_per_byte;
use crate::failure::Failure;
use crate::figures::{expert_load_svg, loss_curve_svg};
use crate::run_series::{data_passes, read_records};
use crate::whole_file;

pub(super) fn run(args: &InspectArgs) -> Result<(), Failure> {
    let paths = RunPaths::new(&args.path);
    if paths.manifest().is_file() { inspect_run(args, &paths) } else { inspect_checkpoint(args) }
}

fn inspect_run(args: &InspectArgs, paths: &RunPaths) -> Result<(), Failure> {
    let manifest = RunManifest::read(&paths.manifest())?;
    let records = read_records(paths)?;
    let num_checkpoints = verify_checkpoints(&paths.checkpoints())?;
    // Nothing of it is shown; a damaged one is told.
    read_document_losses(&paths.document_losses()).map_err(TrainError::from)?;
    if let Some(folder) = &args.figures {
        return write_figures(folder, &args.path, &records);
    }
    if args.json {
        let flight = FlightReport::read(paths, &records)?;
        let last_step = records.iter().rev().find_map(Record::as_step);
        let last_eval = records.iter().rev().find_map(Record::as_eval);
        return print_json(&json!({
            "run": manifest,
            "last_step": last_step,
            "last_eval": last_eval,
            "misbehaving_experts": flight.findings_json(),
            "alarms": flight.alarms,
        }));
    }
    print_text(&describe_run(&args.path, &manifest, &records, num_checkpoints)?)?;
    // Whatever is wrong with the recorder's files, the run itself is told by then.
    print_text(&FlightReport::read(paths, &records)?.describe())
}

/// Reads every file of the checkpoints in `folder` through their manifests; returns how many there are.
fn verify_checkpoints(folder: &Path) -> Result<usize, Failure> {
    let steps = if folder.is_dir() { steps_in(folder)? } else { Vec::new() };
    for step in &steps {
        verified_checkpoint(&folder.join(step_name(*step)))?;
    }
    Ok(steps.len())
}

/// The manifest of the checkpoint in `folder`, every file of it read.
fn verified_checkpoint(folder: &Path) -> Result<CheckpointManifest, Failure> {
    let manifest = CheckpointManifest::read(folder)?;
    for name in manifest.files.keys() {
        manifest.verify_file(folder, name)?;
    }
    Ok(manifest)
}

fn inspect_checkpoint(args: &InspectArgs) -> Result<(), Failure> {
    let folder = find_checkpoint(&args.path)?;
    let manifest = verified_checkpoint(&folder)?;
    let state = read_state(&folder)?;
    if args.json {
        return print_json(&json!({ "manifest": manifest, "state": state }));
    }
    print_text(&describe_checkpoint(&folder, &manifest, &state)?)
}

fn describe_checkpoint(
    folder: &Path,
    manifest: &CheckpointManifest,
    state: &TrainingState,
) -> Result<String, Failure> {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").map_err(|error| Failure::Fault(error.into()));
    line(format!("checkpoint       {} (every file verified)", folder.display()))?;
    line(format!("written by       switchyard {}", manifest.switchyard_version))?;
    line(format!("step             {}", state.step))?;
    line(format!("tokens seen      {}", state.tokens_seen))?;
    line(format!("training time    {:.1} s", state.train_secs))?;
    if let Some(best) = state.best {
        line(format!("best validation  {:.4} nats at step {}", best.cross_entropy_nats, best.step))?;
    }
    for (name, file) in &manifest.files {
        let start: String = file.sha256.chars().take(16).collect();
        line(format!("  {name:<24} {:>12} bytes  sha256 {start}", file.bytes))?;
    }
    Ok(text)
}

fn describe_run(
    path: &Path,
    manifest: &RunManifest,
    records: &[Record],
    num_checkpoints: usize,
) -> Result<String, Failure> {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").map_err(|error| Failure::Fault(error.into()));
    let nats = |value: Option<f64>| value.map_or("-".to_string(), |nats| format!("{nats:.4} nats"));
    line(format!("run              {}", path.display()))?;
    let is_imported = manifest.is_imported();
    let status = json!(manifest.status);
    let status = if is_imported { "imported, no step done" } else { status.as_str().unwrap_or_default() };
    line(format!("status           {status}"))?;
    if let Some(error) = &manifest.error {
        line(format!("error            {error}"))?;
    }
    if is_imported {
        line(format!("train it with    `[start] from = \"{}\"` in a configuration", path.display()))?;
    } else if manifest.status == RunStatus::Interrupted {
        line(format!("continue with    {}", next_command::resume(path)))?;
    }
    line(format!(
        "started, ended   {}, {}",
        manifest.started_at,
        manifest.ended_at.as_deref().unwrap_or("-")
    ))?;
    let counts = &manifest.plan["counts"];
    line(format!("parameters       {} total, {} active", counts["total_params"], counts["active_params"]))?;
    let skipped = match manifest.skipped_steps {
        0 => String::new(),
        skipped => format!(" ({skipped} skipped)"),
    };
    line(format!("steps, tokens    {}{skipped}, {}", manifest.steps_done, manifest.tokens_seen))?;
    line(format!("checkpoints      {num_checkpoints}, every file verified"))?;
    if let Some(passes) = records.iter().rev().find_map(Record::as_step).and_then(data_passes) {
        line(format!("training data    {passes:.2} passes over it"))?;
    }
    line(format!("active FLOPs     {:.3e}", manifest.active_flops))?;
    let share = |secs: f64| 100.0 * secs / manifest.train_secs.max(f64::MIN_POSITIVE);
    line(format!(
        "training time    {:.1} s, {:.1}% of it for the flight recorder, {:.1}% waiting for checkpoints",
        manifest.train_secs,
        share(manifest.flight_recorder_secs),
        share(manifest.checkpoint_stall_secs)
    ))?;
    let words = |bits: Option<f64>| bits.map_or(String::new(), |bits| format!(", {bits:.4} bits per byte"));
    let bits = words(final_bits_per_byte(manifest));
    line(format!("final validation {}{bits}", nats(manifest.final_validation_cross_entropy_nats)))?;
    let bits = words(manifest.best_validation_bits_per_byte);
    let best_step = manifest.best_validation_step.map_or(String::new(), |step| format!(" at step {step}"));
    line(format!("best validation  {}{bits}{best_step}", nats(manifest.best_validation_cross_entropy_nats)))?;
    if let Some(step) = records.iter().rev().find_map(Record::as_step) {
        line(format!(
            "last step        loss {:.4}, {:.0} tokens/s",
            step.cross_entropy_nats, step.tokens_per_sec
        ))?;
        for layer in &step.layers {
            line(describe_layer(layer))?;
        }
    }
    Ok(text)
}

fn describe_layer(layer: &LayerRecord) -> String {
    format!(
        "  layer {:>2}  MaxVio {:.2}  CV {:.2}  gate entropy {:.2}  dead {:.0}%  dropped {:.1}%  load {:?}",
        layer.layer,
        layer.max_violation,
        layer.coefficient_of_variation,
        layer.gate_entropy_nats,
        100.0 * layer.dead_expert_fraction,
        100.0 * layer.dropped_fraction,
        layer.tokens_per_expert
    )
}

fn write_figures(folder: &Path, run: &Path, records: &[Record]) -> Result<(), Failure> {
    let label = run.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned());
    let write = |name: &str, svg: String| {
        let path = folder.join(name);
        whole_file::replace(&path, svg.as_bytes()).map_err(Failure::Fault)?;
        print_text(&format!("{}\n", path.display()))
    };
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))
        .map_err(Failure::Fault)?;
    write("loss-curve.svg", loss_curve_svg(&[(label.as_str(), records)]).map_err(Failure::Fault)?)?;
    if records.iter().any(|record| !record.layers().is_empty()) {
        write("expert-load.svg", expert_load_svg(records).map_err(Failure::Fault)?)?;
    }
    Ok(())
}

//! From a run's logs to the rows that its report draws.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::RangeInclusive;

use switchyard_flight::alarms::Alarm;
use switchyard_ground::printable::printable;
use switchyard_ground::say;
use switchyard_trainer::metrics::{EvalRecord, LayerRecord, Record, StepRecord, read_metrics};
use switchyard_trainer::run_folder::{RunManifest, RunPaths};

use crate::failure::Failure;
use crate::report::series::{AlarmRow, EvalPoint, LayerSeries, ParamCounts, RunSeries, SourcePoint};

/// Time bins of a heat map: more would be narrower than a pixel column can show.
const MAX_BINS: usize = 60;

/// A million steps of a large mixture have some gigabytes.
const MAX_METRICS_BYTES: u64 = 8 << 30;

/// The rows of the run's `metrics.jsonl`; `None` if there is no such file, as in a run that has
/// just begun. A gap in its steps is said: no run leaves one.
///
/// # Errors
/// A file that cannot be read, and one with a line that is no row.
pub(crate) fn read_records(paths: &RunPaths) -> Result<Vec<Record>, Failure> {
    let metrics = paths.metrics();
    match fs::metadata(&metrics) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Ok(found) if found.len() > MAX_METRICS_BYTES => Err(Failure::Mistake(format!(
            "`{}` has {} bytes: no run writes so many",
            metrics.display(),
            found.len()
        ))),
        _ => {
            let records = read_metrics(&metrics)?;
            if let Some(missing) = first_gap(records.iter().filter_map(Record::as_step).map(|row| row.step)) {
                let (first, last) = (missing.start(), missing.end());
                say!(
                    "`{}` has no rows of steps {first} to {last}: what follows is from the others",
                    printable(&metrics.display().to_string())
                );
            }
            Ok(records)
        }
    }
}

/// The first steps between 1 and the last that are missing in `steps`, which ascend.
fn first_gap(steps: impl Iterator<Item = u64>) -> Option<RangeInclusive<u64>> {
    let mut before = 0;
    for step in steps {
        if step > before + 1 {
            return Some(before + 1..=step - 1);
        }
        before = step;
    }
    None
}

/// The loss of an evaluation in bits per byte of text; absent where the bytes are not known.
pub(crate) fn bits_per_byte(row: &EvalRecord) -> Option<f64> {
    serde_json::to_value(row).ok()?.get("bits_per_byte")?.as_f64()
}

/// Passes over the training split by a step; absent in rows of earlier versions.
pub(crate) fn data_passes(row: &StepRecord) -> Option<f64> {
    serde_json::to_value(row).ok()?.get("data_passes")?.as_f64()
}

/// The rows of one run of `arm`.
pub(crate) fn run_series(
    label: &str,
    arm: &str,
    manifest: &RunManifest,
    records: &[Record],
    alarms: &[Alarm],
) -> RunSeries {
    let count = |key: &str| manifest.plan.get("counts")?.get(key)?.as_u64();
    let flops_per_token = count("training_flops_per_token").unwrap_or(0) as f64;
    let evals = records.iter().filter_map(Record::as_eval).filter(|row| row.step > 0);
    let point = |row: &EvalRecord| EvalPoint {
        step: row.step,
        tokens: row.tokens_seen,
        active_flops: row.tokens_seen as f64 * flops_per_token,
        secs: row.elapsed_secs,
        loss_nats: row.cross_entropy_nats,
        bits_per_byte: bits_per_byte(row),
    };
    RunSeries {
        label: label.into(),
        arm: arm.into(),
        seed: manifest.seed,
        num_steps: manifest
            .plan
            .get("num_steps")
            .and_then(|steps| steps.as_u64())
            .unwrap_or(manifest.steps_done),
        params: count("total_params")
            .zip(count("active_params"))
            .map(|(total, active)| ParamCounts { total, active }),
        train_secs: Some(manifest.train_secs),
        final_test_loss_nats: manifest.final_test_cross_entropy_nats,
        energy_joules: manifest.energy_joules,
        data_passes: records.iter().rev().find_map(Record::as_step).and_then(data_passes),
        evals: evals.map(point).collect(),
        sources: source_points(records),
        layers: layer_series(records),
        alarms: alarms.iter().map(alarm_row).collect(),
    }
}

/// What each evaluation found on each source that the run trains on.
fn source_points(records: &[Record]) -> Vec<SourcePoint> {
    let mut tokens_per_source = BTreeMap::new();
    let mut points = Vec::new();
    for record in records {
        match record {
            Record::Step(row) => tokens_per_source.clone_from(&row.tokens_per_source),
            Record::Eval(row) if row.step > 0 => {
                let names: BTreeSet<&String> = tokens_per_source.keys().chain(row.sources.keys()).collect();
                points.extend(names.into_iter().map(|source| SourcePoint {
                    step: row.step,
                    source: source.clone(),
                    tokens: tokens_per_source.get(source).copied(),
                    loss_nats: row.sources.get(source).map(|loss| loss.cross_entropy_nats),
                    bits_per_byte: row.sources.get(source).and_then(|loss| loss.bits_per_byte),
                }));
            }
            Record::Eval(_) => {}
        }
    }
    points
}

fn alarm_row(alarm: &Alarm) -> AlarmRow {
    let name = serde_json::to_value(alarm.kind).ok().and_then(|kind| kind.as_str().map(str::to_string));
    AlarmRow { step: alarm.step, name: name.unwrap_or_default(), message: alarm.message.clone() }
}

fn layer_series(records: &[Record]) -> Vec<LayerSeries> {
    let steps: Vec<&StepRecord> =
        records.iter().filter_map(Record::as_step).filter(|row| !row.layers.is_empty()).collect();
    let Some(first) = steps.first() else { return Vec::new() };
    (0..first.layers.len()).map(|position| one_layer(&steps, position)).collect()
}

fn one_layer(steps: &[&StepRecord], position: usize) -> LayerSeries {
    let rows = || steps.iter().filter_map(|row| Some((row.step, row.layers.get(position)?)));
    let number =
        |of: fn(&LayerRecord) -> f64| rows().map(|(step, layer)| (step, of(layer))).collect::<Vec<_>>();
    let bins: Vec<&[&StepRecord]> = steps.chunks(steps.len().div_ceil(MAX_BINS).max(1)).collect();
    let num_experts = steps[0].layers[position].tokens_per_expert.len();
    LayerSeries {
        layer: steps[0].layers[position].layer,
        num_experts,
        steps: bins.iter().map(|bin| bin[bin.len() - 1].step).collect(),
        load_shares: bins.iter().map(|bin| load_shares(bin, position, num_experts)).collect(),
        entropy: number(|layer| layer.gate_entropy_nats),
        dropped_fraction: number(|layer| layer.dropped_fraction),
        max_violation: number(|layer| layer.max_violation),
    }
}

/// Each expert's share of what all of a bin's steps routed.
fn load_shares(bin: &[&StepRecord], position: usize, num_experts: usize) -> Vec<f32> {
    let mut tokens = vec![0_u64; num_experts];
    for layer in bin.iter().filter_map(|row| row.layers.get(position)) {
        tokens.iter_mut().zip(&layer.tokens_per_expert).for_each(|(sum, count)| *sum += count);
    }
    let total = tokens.iter().sum::<u64>().max(1) as f32;
    tokens.iter().map(|&count| count as f32 / total).collect()
}

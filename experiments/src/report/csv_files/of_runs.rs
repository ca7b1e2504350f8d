//! Rows of the files about runs.

use serde::Serialize;

use crate::report::series::{AlarmRow, EvalPoint, LayerSeries, RunSeries, SourcePoint};

/// One evaluation.
#[derive(Default, Serialize)]
pub(super) struct CurveRow<'a> {
    arm: &'a str,
    run: &'a str,
    seed: u64,
    num_steps: u64,
    step: u64,
    tokens: u64,
    active_flops: f64,
    secs: f64,
    loss_nats: f64,
    bits_per_byte: Option<f64>,
}

pub(super) fn curve_rows(run: &RunSeries) -> Vec<CurveRow<'_>> {
    let RunSeries { arm, label, seed, num_steps, .. } = run;
    let row = |eval: &EvalPoint| CurveRow {
        arm,
        run: label,
        seed: *seed,
        num_steps: *num_steps,
        step: eval.step,
        tokens: eval.tokens,
        active_flops: eval.active_flops,
        secs: eval.secs,
        loss_nats: eval.loss_nats,
        bits_per_byte: eval.bits_per_byte,
    };
    run.evals.iter().map(row).collect()
}

/// One evaluation on one of several sources.
#[derive(Default, Serialize)]
pub(super) struct SourceRow<'a> {
    arm: &'a str,
    run: &'a str,
    seed: u64,
    num_steps: u64,
    step: u64,
    source: &'a str,
    tokens: Option<u64>,
    loss_nats: Option<f64>,
    bits_per_byte: Option<f64>,
}

pub(super) fn source_rows(run: &RunSeries) -> Vec<SourceRow<'_>> {
    let RunSeries { arm, label, seed, num_steps, .. } = run;
    let points = run.sources.iter();
    points
        .map(|SourcePoint { step, source, tokens, loss_nats, bits_per_byte }| SourceRow {
            arm,
            run: label,
            seed: *seed,
            num_steps: *num_steps,
            step: *step,
            source,
            tokens: *tokens,
            loss_nats: *loss_nats,
            bits_per_byte: *bits_per_byte,
        })
        .collect()
}

/// The share of one expert in one time bin.
#[derive(Default, Serialize)]
pub(super) struct LoadRow<'a> {
    arm: &'a str,
    run: &'a str,
    seed: u64,
    layer: usize,
    step: u64,
    expert: usize,
    load_share: f32,
}

pub(super) fn load_rows(run: &RunSeries) -> Vec<LoadRow<'_>> {
    let of_bin = |layer: usize, step: u64, shares: &[f32]| {
        let row = |(expert, &load_share): (usize, &f32)| {
            let RunSeries { arm, label, seed, .. } = run;
            LoadRow { arm, run: label, seed: *seed, layer, step, expert, load_share }
        };
        shares.iter().enumerate().map(row).collect::<Vec<_>>()
    };
    let of_layer = |layer: &LayerSeries| {
        let bins = layer.steps.iter().zip(&layer.load_shares);
        bins.flat_map(|(step, shares)| of_bin(layer.layer, *step, shares)).collect::<Vec<_>>()
    };
    run.layers.iter().flat_map(of_layer).collect()
}

/// One router statistic of one layer at one step.
#[derive(Default, Serialize)]
pub(super) struct RoutingRow<'a> {
    arm: &'a str,
    run: &'a str,
    seed: u64,
    layer: usize,
    measure: &'static str,
    step: u64,
    value: f64,
}

pub(super) fn routing_rows(run: &RunSeries) -> Vec<RoutingRow<'_>> {
    let RunSeries { arm, label, seed, .. } = run;
    let of_layer = |layer: &LayerSeries| {
        let measures = [
            ("entropy_nats", &layer.entropy),
            ("dropped_fraction", &layer.dropped_fraction),
            ("max_violation", &layer.max_violation),
        ];
        let layer = layer.layer;
        let row = |measure, (step, value): (u64, f64)| RoutingRow {
            arm,
            run: label,
            seed: *seed,
            layer,
            measure,
            step,
            value,
        };
        measures
            .into_iter()
            .flat_map(|(measure, points)| points.iter().map(move |point| row(measure, *point)))
            .collect::<Vec<_>>()
    };
    run.layers.iter().flat_map(of_layer).collect()
}

/// One alarm.
#[derive(Default, Serialize)]
pub(super) struct AlarmCsvRow<'a> {
    arm: &'a str,
    run: &'a str,
    seed: u64,
    step: u64,
    name: &'a str,
    message: &'a str,
}

pub(super) fn alarm_rows<'a>(run: &'a RunSeries) -> Vec<AlarmCsvRow<'a>> {
    let RunSeries { arm, label, seed, .. } = run;
    let row = |AlarmRow { step, name, message }: &'a AlarmRow| AlarmCsvRow {
        arm,
        run: label,
        seed: *seed,
        step: *step,
        name,
        message,
    };
    run.alarms.iter().map(row).collect()
}

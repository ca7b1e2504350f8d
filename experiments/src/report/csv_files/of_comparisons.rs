//! Rows of the files about arms against the baseline.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::report::axes::{AXES, name};
use crate::statistics::{Gauge, GaugePoint, Interval};
use crate::study::result::{ArmComparison, Axis, AxisComparison, StudyResult};

/// One arm against the baseline on one axis.
#[derive(Default, Serialize)]
pub(super) struct AxisRow<'a> {
    arm: &'a str,
    baseline: &'a str,
    axis: &'static str,
    /// What the differences are of: of an accuracy, what is missing from 1.
    quantity: String,
    num_seeds: usize,
    mean_difference: f64,
    standard_deviation: Option<f64>,
    t_low: Option<f64>,
    t_high: Option<f64>,
    p_value: Option<f64>,
    adjusted_p_value: Option<f64>,
    adjusted_low: Option<f64>,
    adjusted_high: Option<f64>,
    signed_rank_low: Option<f64>,
    signed_rank_high: Option<f64>,
    bootstrap_low: Option<f64>,
    bootstrap_high: Option<f64>,
    sign_consistency: f64,
    split: &'static str,
    num_documents: Option<usize>,
    documents_low: Option<f64>,
    documents_high: Option<f64>,
    documents_and_seeds_low: Option<f64>,
    documents_and_seeds_high: Option<f64>,
    verdict: &'static str,
    seeds_to_decide: Option<u64>,
    time_to_loss: Option<f64>,
    time_to_loss_low: Option<f64>,
    time_to_loss_high: Option<f64>,
    effective_speedup: Option<f64>,
    effective_speedup_low: Option<f64>,
    effective_speedup_high: Option<f64>,
}

pub(super) fn axis_rows<'a>(arm: &'a ArmComparison, result: &'a StudyResult) -> Vec<AxisRow<'a>> {
    let row = |of_axis: &'a AxisComparison| {
        let difference = &of_axis.difference;
        let documents = of_axis.documents.as_ref();
        let with_seeds = documents.and_then(|documents| documents.interval_with_seeds.as_ref());
        let time = arm.time_to_loss.iter().find(|time| time.axis == of_axis.axis);
        let time = time.and_then(|time| time.estimate.as_ref());
        let speedup = arm.effective_speedup.iter().find(|speedup| speedup.axis == of_axis.axis);
        let speedup = speedup.and_then(|speedup| speedup.estimate.as_ref());
        AxisRow {
            arm: &arm.arm,
            baseline: &result.baseline,
            axis: name(of_axis.axis),
            quantity: result.question.metric.measure().of_quantity(),
            num_seeds: difference.differences.len(),
            mean_difference: difference.mean,
            standard_deviation: difference.standard_deviation,
            t_low: low(difference.t_interval.as_ref()),
            t_high: high(difference.t_interval.as_ref()),
            p_value: of_axis.p_value,
            adjusted_p_value: of_axis.adjusted_p_value,
            adjusted_low: low(of_axis.adjusted_interval.as_ref()),
            adjusted_high: high(of_axis.adjusted_interval.as_ref()),
            signed_rank_low: low(of_axis.signed_rank.as_ref().map(|found| &found.interval)),
            signed_rank_high: high(of_axis.signed_rank.as_ref().map(|found| &found.interval)),
            bootstrap_low: low(difference.bootstrap_interval.as_ref()),
            bootstrap_high: high(difference.bootstrap_interval.as_ref()),
            sign_consistency: difference.sign_consistency,
            split: of_axis.split.name(),
            num_documents: documents.map(|documents| documents.num_documents),
            documents_low: documents.map(|documents| documents.interval.low),
            documents_high: documents.map(|documents| documents.interval.high),
            documents_and_seeds_low: low(with_seeds),
            documents_and_seeds_high: high(with_seeds),
            verdict: of_axis.verdict.word(),
            seeds_to_decide: of_axis.seeds_to_decide,
            time_to_loss: time.map(|estimate| estimate.geometric_mean),
            time_to_loss_low: time.map(|estimate| estimate.interval.low),
            time_to_loss_high: time.map(|estimate| estimate.interval.high),
            effective_speedup: speedup.map(|estimate| estimate.geometric_mean),
            effective_speedup_low: speedup.map(|estimate| estimate.interval.low),
            effective_speedup_high: speedup.map(|estimate| estimate.interval.high),
        }
    };
    arm.axes.iter().map(row).collect()
}

fn low(interval: Option<&Interval>) -> Option<f64> {
    interval.map(|interval| interval.low)
}

fn high(interval: Option<&Interval>) -> Option<f64> {
    interval.map(|interval| interval.high)
}

/// What one pair of runs of a seed says on an axis. An absent ratio was not reached.
#[derive(Default, Serialize)]
pub(super) struct PairRow<'a> {
    arm: &'a str,
    axis: &'static str,
    seed: u64,
    difference: Option<f64>,
    target: Option<f64>,
    time_to_loss: Option<f64>,
    effective_speedup: Option<f64>,
    effective_speedup_at_least: Option<f64>,
}

pub(super) fn pair_rows(arm: &ArmComparison) -> Vec<PairRow<'_>> {
    AXES.into_iter().flat_map(|axis| pair_rows_of_axis(arm, axis)).collect()
}

fn pair_rows_of_axis(arm: &ArmComparison, axis: Axis) -> Vec<PairRow<'_>> {
    let Some(of_axis) = arm.axes.iter().find(|of_axis| of_axis.axis == axis) else { return Vec::new() };
    let time = arm.time_to_loss.iter().find(|time| time.axis == axis);
    let speedup = arm.effective_speedup.iter().find(|speedup| speedup.axis == axis);
    let row = |seed: u64| {
        let at = |seeds: &[u64]| seeds.iter().position(|&other| other == seed);
        // Results of earlier versions have the seeds of the differences in mind.
        let own = |seeds: &'_ [u64]| if seeds.is_empty() { at(&of_axis.seeds) } else { at(seeds) };
        let time = time.and_then(|time| Some((time, own(&time.seeds)?)));
        let speedup = speedup.and_then(|speedup| Some((speedup, own(&speedup.seeds)?)));
        PairRow {
            arm: &arm.arm,
            axis: name(axis),
            seed,
            difference: at(&of_axis.seeds)
                .and_then(|index| of_axis.difference.differences.get(index))
                .copied(),
            target: time.and_then(|(time, index)| time.targets.get(index)).copied(),
            time_to_loss: time.and_then(|(time, index)| time.ratios.get(index).copied().flatten()),
            effective_speedup: speedup
                .and_then(|(speedup, index)| speedup.ratios.get(index).copied().flatten()),
            effective_speedup_at_least: speedup
                .and_then(|(speedup, index)| speedup.lower_bounds.get(index))
                .copied(),
        }
    };
    let of_times = time.into_iter().flat_map(|time| &time.seeds);
    let seeds: BTreeSet<u64> = of_axis.seeds.iter().chain(of_times).copied().collect();
    seeds.into_iter().map(row).collect()
}

/// The gap at one budget, and the trend over all.
#[derive(Default, Serialize)]
pub(super) struct GaugeRow<'a> {
    arm: &'a str,
    active_flops: f64,
    mean_gap: f64,
    low: Option<f64>,
    high: Option<f64>,
    num_seeds: usize,
    slope_per_decade: f64,
    slope_low: Option<f64>,
    slope_high: Option<f64>,
}

pub(super) fn gauge_rows(arm: &ArmComparison) -> Vec<GaugeRow<'_>> {
    let of_gauge = |gauge: &Gauge| {
        let row = |point: &GaugePoint| GaugeRow {
            arm: &arm.arm,
            active_flops: point.compute,
            mean_gap: point.mean_gap,
            low: low(point.interval.as_ref()),
            high: high(point.interval.as_ref()),
            num_seeds: point.num_seeds,
            slope_per_decade: gauge.slope_per_decade,
            slope_low: low(gauge.slope_interval.as_ref()),
            slope_high: high(gauge.slope_interval.as_ref()),
        };
        gauge.points.iter().map(row).collect::<Vec<_>>()
    };
    arm.gauge.iter().flat_map(of_gauge).collect()
}

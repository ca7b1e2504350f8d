//! All that a report is made from, and the questions that its parts ask of it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::axes;
use super::series::{EvalPoint, ParamCounts, RunSeries};
use crate::study::Metric;
use crate::study::result::{ArmComparison, ArmResult, Axis, RunResult, StudyResult};

/// What a report is made from.
pub(super) struct Content<'a> {
    pub(super) title: &'a str,
    pub(super) result: Option<&'a StudyResult>,
    pub(super) runs: &'a [RunSeries],
    /// Why losses of plain runs cannot be compared.
    pub(super) notes: &'a [String],
    /// Labels of the arms: those of the study in its order, then those that only the runs name. An
    /// arm's place decides its colour, sign and dashes in every figure.
    arms: Vec<&'a str>,
}

/// The runs of one arm at one budget, one per seed.
pub(super) struct ArmRuns<'a> {
    /// Place of the arm.
    pub(super) index: usize,
    pub(super) label: &'a str,
    /// Whether its losses are in bits per byte, else in nats per token.
    pub(super) in_bits_per_byte: bool,
    /// Ordered by seed.
    pub(super) runs: Vec<&'a RunSeries>,
}

/// A point of the mean curve of several seeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct MeanPoint {
    pub(super) x: f64,
    pub(super) mean: f64,
    /// Lowest and highest seed.
    pub(super) low: f64,
    pub(super) high: f64,
}

/// One line of the table of all runs, and of `runs.csv`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct RunRow {
    pub(super) arm: String,
    pub(super) run: String,
    pub(super) seed: u64,
    pub(super) num_steps: u64,
    pub(super) final_loss_nats: Option<f64>,
    /// On the test split; `None` without one.
    pub(super) final_test_loss_nats: Option<f64>,
    pub(super) tokens: Option<u64>,
    pub(super) active_flops: Option<f64>,
    pub(super) train_secs: Option<f64>,
    /// Seconds up to the last evaluation: those that losses are compared at.
    pub(super) elapsed_secs: Option<f64>,
    pub(super) energy_joules: Option<f64>,
    pub(super) cost: Option<f64>,
    pub(super) num_alarms: usize,
    pub(super) total_params: Option<u64>,
    pub(super) active_params: Option<u64>,
    /// `None` where the bytes of the text are not known.
    pub(super) final_bits_per_byte: Option<f64>,
    /// On the test split; `None` without one.
    pub(super) final_test_bits_per_byte: Option<f64>,
    /// Share of the study's questions whose likeliest choice is right; `None` unless it asks any.
    pub(super) acc: Option<f64>,
    /// Share of them whose likeliest choice per character is right.
    pub(super) acc_norm: Option<f64>,
    /// Passes over the training split.
    pub(super) data_passes: Option<f64>,
}

impl<'a> Content<'a> {
    pub(super) fn new(title: &'a str, result: Option<&'a StudyResult>, runs: &'a [RunSeries]) -> Self {
        let of_study = result.into_iter().flat_map(|result| &result.arms).map(|arm| arm.label.as_str());
        let mut arms: Vec<&str> = Vec::new();
        for label in of_study.chain(runs.iter().map(|run| run.arm.as_str())) {
            if !arms.contains(&label) {
                arms.push(label);
            }
        }
        Self { title, result, runs, notes: &[], arms }
    }

    pub(super) fn with_notes(self, notes: &'a [String]) -> Self {
        Self { notes, ..self }
    }

    pub(super) fn arms(&self) -> &[&'a str] {
        &self.arms
    }

    /// Place of the arm; that of the first for an unknown label.
    pub(super) fn index_of(&self, arm: &str) -> usize {
        self.arms.iter().position(|label| *label == arm).unwrap_or(0)
    }

    /// Whether the study is judged in bits per byte.
    pub(super) fn is_in_bits_per_byte(&self) -> bool {
        self.result.is_some_and(|result| result.question.metric == Metric::BitsPerByte)
    }

    pub(super) fn comparisons(&self) -> &'a [ArmComparison] {
        self.result.map_or(&[], |result| &result.comparisons)
    }

    /// Each arm's runs at its largest budget; without the arms that have no run.
    pub(super) fn longest_runs(&self) -> Vec<ArmRuns<'a>> {
        let budgets = |(index, _)| self.budgets_of(index).pop();
        self.arms.iter().enumerate().filter_map(budgets).collect()
    }

    /// The arm's runs, those of one budget together, the smallest budget first.
    pub(super) fn budgets_of(&self, index: usize) -> Vec<ArmRuns<'a>> {
        let label = self.arms[index];
        let in_bits_per_byte = self.is_in_bits_per_byte();
        let mut budgets: BTreeMap<u64, Vec<&RunSeries>> = BTreeMap::new();
        for run in self.runs.iter().filter(|run| run.arm == label) {
            budgets.entry(run.num_steps).or_default().push(run);
        }
        let of_budget = |mut runs: Vec<&'a RunSeries>| {
            runs.sort_by_key(|run| run.seed);
            ArmRuns { index, label, in_bits_per_byte, runs }
        };
        budgets.into_values().map(of_budget).collect()
    }

    /// Parameters of each arm whose model is known.
    pub(super) fn params(&self) -> Vec<(&'a str, ParamCounts)> {
        let of_study = |label: &str| {
            let arm = self.result?.arms.iter().find(|arm| arm.label == label)?;
            Some(ParamCounts { total: arm.total_params, active: arm.active_params })
        };
        let of_runs =
            |label: &str| self.runs.iter().filter(|run| run.arm == label).find_map(|run| run.params);
        let with_params = |label: &&'a str| Some((*label, of_study(label).or_else(|| of_runs(label))?));
        self.arms.iter().filter_map(with_params).collect()
    }

    /// Every run: as the study tells it, or as its own rows do.
    pub(super) fn run_rows(&self) -> Vec<RunRow> {
        match self.result {
            Some(result) => run_rows_of_study(result, self.runs),
            None => self.runs.iter().map(run_row_of_series).collect(),
        }
    }
}

impl ArmRuns<'_> {
    /// The mean curve over the seeds, at the steps at which all of them have a finite loss.
    pub(super) fn mean_curve(&self, axis: Axis) -> Vec<MeanPoint> {
        let Some((first, others)) = self.runs.split_first() else { return Vec::new() };
        let at_all_seeds = |step: u64| {
            let of_others = others.iter().map(|run| run.evals.iter().find(|eval| eval.step == step));
            of_others.collect::<Option<Vec<_>>>()
        };
        let point = |eval: &EvalPoint| {
            let evals: Vec<_> = std::iter::once(eval).chain(at_all_seeds(eval.step)?).collect();
            let losses = || evals.iter().map(|eval| self.loss(eval));
            let mean = |sum: f64| sum / evals.len() as f64;
            losses().all(f64::is_finite).then(|| MeanPoint {
                x: mean(evals.iter().map(|eval| axes::value(eval, axis)).sum()),
                mean: mean(losses().sum()),
                low: losses().fold(f64::INFINITY, f64::min),
                high: losses().fold(f64::NEG_INFINITY, f64::max),
            })
        };
        first.evals.iter().filter_map(point).collect()
    }

    /// The loss of an evaluation; no number where its bytes are not known and would have to be.
    fn loss(&self, eval: &EvalPoint) -> f64 {
        match self.in_bits_per_byte {
            true => eval.bits_per_byte.unwrap_or(f64::NAN),
            false => eval.loss_nats,
        }
    }

    /// The run whose layers are shown: that of the lowest seed with any.
    pub(super) fn sparse_run(&self) -> Option<&RunSeries> {
        self.runs.iter().copied().find(|run| !run.layers.is_empty())
    }

    /// The arm and the number of its seeds.
    pub(super) fn legend(&self) -> String {
        match self.runs.len() {
            1 => self.label.to_string(),
            num_seeds => format!("{}, {num_seeds} seeds", self.label),
        }
    }
}

fn run_rows_of_study(result: &StudyResult, series: &[RunSeries]) -> Vec<RunRow> {
    let series_of = |run: &RunResult| series.iter().find(|other| other.label == run.run);
    let of_arm = |arm: &ArmResult| {
        let row = |run: &RunResult| RunRow {
            arm: arm.label.clone(),
            run: run.run.clone(),
            seed: run.seed,
            num_steps: run.num_steps,
            final_loss_nats: run.final_loss_nats,
            final_test_loss_nats: run.final_test_loss_nats,
            final_bits_per_byte: series_of(run).and_then(|series| series.evals.last()?.bits_per_byte),
            final_test_bits_per_byte: run.final_test_bits_per_byte,
            acc: run.acc,
            acc_norm: run.acc_norm,
            data_passes: series_of(run).and_then(|series| series.data_passes),
            tokens: Some(run.tokens),
            active_flops: Some(run.active_flops),
            train_secs: Some(run.train_secs),
            elapsed_secs: run.elapsed_secs,
            energy_joules: run.energy_joules,
            cost: run.cost,
            num_alarms: run.num_alarms,
            total_params: Some(arm.total_params),
            active_params: Some(arm.active_params),
        };
        arm.runs.iter().map(row).collect::<Vec<_>>()
    };
    result.arms.iter().flat_map(of_arm).collect()
}

fn run_row_of_series(run: &RunSeries) -> RunRow {
    let last = run.evals.last();
    RunRow {
        arm: run.arm.clone(),
        run: run.label.clone(),
        seed: run.seed,
        num_steps: run.num_steps,
        final_loss_nats: last.map(|eval| eval.loss_nats),
        final_test_loss_nats: run.final_test_loss_nats,
        final_bits_per_byte: last.and_then(|eval| eval.bits_per_byte),
        final_test_bits_per_byte: None,
        acc: None,
        acc_norm: None,
        data_passes: run.data_passes,
        tokens: last.map(|eval| eval.tokens),
        active_flops: last.map(|eval| eval.active_flops),
        train_secs: run.train_secs,
        elapsed_secs: last.map(|eval| eval.secs),
        energy_joules: run.energy_joules,
        cost: None,
        num_alarms: run.alarms.len(),
        total_params: run.params.map(|params| params.total),
        active_params: run.params.map(|params| params.active),
    }
}

//! What the runs of a study left behind.

use switchyard_flight::alarms::Alarm;
use switchyard_trainer::flight::read_alarms;
use switchyard_trainer::metrics::{
    DocumentLoss, EvalRecord, Record, SplitLosses, read_document_losses, read_metrics,
};
use switchyard_trainer::run_folder::{RunManifest, RunPaths};

use super::execute::StudyFolder;
use super::matrix::PlannedRun;
use super::metric::{JudgedSplit, Metric};
use super::questions::RunAnswers;
use super::result::{Axis, RunResult};
use crate::failure::Failure;
use crate::statistics::LossCurve;

/// A finished run of a study.
#[derive(Debug, Clone)]
pub(crate) struct FinishedRun {
    /// Index of its arm.
    pub(crate) arm: usize,
    /// As it stands in the result.
    pub(crate) result: RunResult,
    /// Its `run.json`.
    pub(crate) manifest: RunManifest,
    /// Peak learning rate.
    pub(crate) learning_rate: f64,
    /// Seed of its data order, where that is not its seed.
    pub(crate) data_seed: Option<u64>,
    /// What it is judged by.
    pub(crate) metric: Metric,
    /// Its final loss on each held-out document.
    pub(crate) documents: Vec<SplitLosses>,
    /// Its answers to the study's questions, if it has any.
    pub(crate) answers: Option<RunAnswers>,
    /// Alarms of its flight recorder.
    pub(crate) alarms: Vec<Alarm>,
    /// Its `metrics.jsonl`.
    pub(crate) records: Vec<Record>,
    /// Training FLOPs of a token.
    pub(crate) flops_per_token: u64,
    /// Seconds of a step as they were held equal; `None` where measured seconds count.
    pub(crate) calibrated_step_secs: Option<f64>,
}

impl FinishedRun {
    /// Its evaluations: those of the whole validation split, the only ones that a study makes.
    pub(crate) fn evaluations(&self) -> impl Iterator<Item = &EvalRecord> {
        self.records.iter().filter_map(Record::as_eval).filter(|row| row.whole_split && row.step > 0)
    }

    /// Where an evaluation lies on an axis.
    pub(crate) fn position(&self, axis: Axis, row: &EvalRecord) -> f64 {
        match axis {
            Axis::Steps => row.step as f64,
            Axis::Tokens => row.tokens_seen as f64,
            Axis::ActiveFlops => row.tokens_seen as f64 * self.flops_per_token as f64,
            Axis::Seconds => match self.calibrated_step_secs {
                Some(step_secs) => row.step as f64 * step_secs,
                None => row.elapsed_secs,
            },
        }
    }

    /// Its final loss on a split, in the study's metric.
    pub(crate) fn final_loss(&self, split: JudgedSplit) -> Option<f64> {
        self.result.final_loss(self.metric, split)
    }

    /// Its final loss on each document of a split, or on each question.
    pub(super) fn parts_of(&self, split: JudgedSplit) -> Option<Vec<PartLoss>> {
        if split == JudgedSplit::Questions {
            let is_right = self.answers.as_ref()?.is_right(self.metric);
            let of_question = |is_right: &bool| PartLoss { loss: f64::from(u8::from(!is_right)), weight: 1 };
            return Some(is_right.iter().map(of_question).collect());
        }
        let of_split = self.documents.iter().find(|losses| losses.split == split.name())?;
        // The bytes of a document are not counted: its tokens stand for them, at the split's mean.
        let per_nat = self.final_loss(split)? / self.result.final_loss(Metric::Nats, split)?;
        let of_document =
            |loss: &DocumentLoss| PartLoss { loss: loss.nats * per_nat, weight: loss.num_tokens };
        Some(of_split.documents.iter().map(of_document).collect())
    }

    /// Where it ended on an axis; `None` without a single evaluation.
    pub(super) fn end(&self, axis: Axis) -> Option<f64> {
        self.evaluations().last().map(|row| self.position(axis, row))
    }

    /// Validation loss over an axis in the study's metric; `None` without a single evaluation, and
    /// of questions, which are asked at the end.
    pub(crate) fn curve(&self, axis: Axis) -> Option<LossCurve> {
        let point = |row| Some((self.position(axis, row), self.loss_of(row)?));
        LossCurve::new(self.evaluations().map(point).collect::<Option<_>>()?)
    }

    fn loss_of(&self, row: &EvalRecord) -> Option<f64> {
        match self.metric {
            Metric::Nats => Some(row.cross_entropy_nats),
            Metric::BitsPerByte => row.bits_per_byte,
            Metric::Acc | Metric::AccNorm => None,
        }
    }
}

/// What a run's loss on a split is a mean of.
pub(super) struct PartLoss {
    /// The sum over the part.
    pub(super) loss: f64,
    /// Tokens of a document, or 1 for a question.
    pub(super) weight: u64,
}

/// Those of `runs` that are finished in `folder`.
///
/// # Errors
/// A run whose files cannot be read.
pub(crate) fn finished_runs(
    folder: &StudyFolder,
    runs: &[PlannedRun],
    price_per_device_hour: Option<f64>,
) -> Result<Vec<FinishedRun>, Failure> {
    let mut finished = Vec::new();
    for run in runs {
        if folder.is_finished(run)? {
            finished.push(read_run(folder, run, price_per_device_hour)?);
        }
    }
    Ok(finished)
}

fn read_run(folder: &StudyFolder, run: &PlannedRun, price: Option<f64>) -> Result<FinishedRun, Failure> {
    let paths = RunPaths::new(folder.path_of(run));
    let manifest = RunManifest::read(&paths.manifest())?;
    let alarms = read_alarms(&paths)?;
    let records = read_metrics(&paths.metrics())?;
    let answers = folder.answers_of(run)?;
    let accuracy = |metric| answers.as_ref().map(|answers: &RunAnswers| answers.accuracy(metric));
    let last_evaluation = records.iter().rev().find_map(Record::as_eval);
    let result = RunResult {
        seed: run.settings.seed,
        num_steps: run.settings.num_steps,
        run: StudyFolder::relative(run),
        final_loss_nats: manifest.final_validation_cross_entropy_nats,
        final_test_loss_nats: manifest.final_test_cross_entropy_nats,
        final_bits_per_byte: manifest.final_validation_bits_per_byte,
        final_test_bits_per_byte: manifest.final_test_bits_per_byte,
        acc: accuracy(Metric::Acc),
        acc_norm: accuracy(Metric::AccNorm),
        tokens: manifest.tokens_seen,
        active_flops: manifest.active_flops,
        train_secs: manifest.train_secs,
        elapsed_secs: last_evaluation.map(|row| row.elapsed_secs),
        energy_joules: manifest.energy_joules,
        cost: price.map(|price| manifest.train_secs / 3600.0 * price),
        num_alarms: alarms.len(),
    };
    let documents = read_document_losses(&paths.document_losses())?;
    check_sums(&paths, &documents, &result)?;
    Ok(FinishedRun {
        arm: run.arm,
        result,
        learning_rate: run.settings.learning_rate,
        data_seed: run.settings.data_seed,
        metric: Metric::Nats,
        documents,
        answers,
        alarms,
        records,
        flops_per_token: run.plan.counts.training_flops_per_token,
        calibrated_step_secs: None,
        manifest,
    })
}

/// Share by which the losses of the documents and of their split may differ: both are sums in f32.
const SAME_SUM: f64 = 1e-4;

/// Ok if the losses of the documents are parts of the run's own.
fn check_sums(paths: &RunPaths, splits: &[SplitLosses], result: &RunResult) -> Result<(), Failure> {
    for split in [JudgedSplit::Validation, JudgedSplit::Test] {
        let of_split = splits.iter().find(|losses| losses.split == split.name());
        let Some((losses, whole)) = of_split.zip(result.final_loss(Metric::Nats, split)) else { continue };
        let nats: f64 = losses.documents.iter().map(|document| document.nats).sum();
        let tokens: u64 = losses.documents.iter().map(|document| document.num_tokens).sum();
        let mean = nats / tokens as f64;
        let is_part = (mean / whole - 1.0).abs() <= SAME_SUM;
        if !is_part {
            return Err(Failure::Mistake(format!(
                "{}: the losses of the {} documents have a mean of {mean:.4} nats, and run.json says {whole:.4}: the file is \
                 damaged or of another step. Delete the run's folder to train it anew",
                paths.document_losses().display(),
                split.name()
            )));
        }
    }
    Ok(())
}

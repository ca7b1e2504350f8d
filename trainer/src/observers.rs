//! Everybody who watches a run: the metrics file, the event file, the progress display. They read;
//! the loop acts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use switchyard_datasets::{Dataset, SplitManifest};
use switchyard_router::RouterStatistics;

use crate::TrainError;
use crate::checkpoint::TrainingState;
use crate::evaluate::Evaluation;
use crate::flight::StepFlight;
use crate::metrics::{
    EvalRecord, EventLog, LayerRecord, LogMark, MetricsFile, ProgressDisplay, Record, ResumedLog, SourceLoss,
    StepRecord, perplexity,
};
use crate::plan::RunPlan;
use crate::run_folder::{RunFolder, RunManifest};
use crate::step::{RoutingByLayer, StepMeasurements};

/// The observers of one run.
#[derive(Debug)]
pub(crate) struct Observers {
    metrics: MetricsFile,
    events: EventLog,
    progress: ProgressDisplay,
    train: SplitManifest,
    validation: SplitManifest,
    /// Several sources; empty for one.
    sources: Vec<ObservedSource>,
    /// Sequences of each source before the step.
    sequences_before: Vec<u64>,
    seq_len: u64,
    tokens_per_step: f64,
    flops_per_step: f64,
    matmul_peak_flops: Option<f64>,
}

/// One of several sources.
#[derive(Debug)]
struct ObservedSource {
    name: String,
    train: SplitManifest,
    validation: SplitManifest,
}

/// The observers of a run that begins or goes on.
pub(crate) struct OpenedObservers {
    pub(crate) observers: Observers,
    /// The rows of the log that the run goes on from.
    pub(crate) rows: Vec<Record>,
    /// Where the log of a part is that the run begins again without.
    pub(crate) earlier_log: Option<PathBuf>,
}

impl Observers {
    /// The observers of a run in `folder`; those of a resumed run forget what came after its
    /// checkpoint.
    pub(crate) fn open(
        folder: &RunFolder,
        manifest: &RunManifest,
        plan: &RunPlan,
        dataset: &Dataset,
        resumed_from: Option<&TrainingState>,
        show_progress: bool,
    ) -> Result<OpenedObservers, TrainError> {
        let paths = folder.paths();
        let (log, earlier_log) = match resumed_from {
            Some(state) => {
                (MetricsFile::resume(&paths.metrics(), state.step, state.metrics_log.as_ref())?, None)
            }
            None => {
                let (file, earlier_log) = MetricsFile::create(&paths.metrics())?;
                (ResumedLog { file, rows: Vec::new(), note: None }, earlier_log)
            }
        };
        let last_step = resumed_from.map(|state| state.step);
        let progress = if show_progress {
            ProgressDisplay::new(plan.num_steps, last_step.unwrap_or(0))
        } else {
            ProgressDisplay::hidden()
        };
        let mut observers = Self {
            metrics: log.file,
            events: EventLog::new(paths.root(), &manifest.host.hostname, last_step),
            progress,
            train: dataset.manifest.train.clone(),
            validation: dataset.manifest.validation.clone(),
            sources: several_sources(dataset),
            sequences_before: Vec::new(),
            seq_len: plan.seq_len as u64,
            tokens_per_step: plan.tokens_per_step as f64,
            flops_per_step: plan.training_flops_per_step(),
            matmul_peak_flops: manifest.matmul_peak_flops,
        };
        log.note.iter().for_each(|note| observers.note(note));
        Ok(OpenedObservers { observers, rows: log.rows, earlier_log })
    }

    /// A step has ended; `sequences_per_source` counts from the run's beginning.
    #[expect(clippy::too_many_arguments, reason = "each is a measurement of its own")]
    pub(crate) fn step(
        &mut self,
        state: &TrainingState,
        sequences_per_source: &[u64],
        measurements: &StepMeasurements,
        flight: &StepFlight,
        learning_rate: f64,
        step_secs: f64,
    ) -> Result<(), TrainError> {
        let row = StepRecord {
            tokens_per_sec: self.tokens_per_step / step_secs,
            step_secs,
            elapsed_secs: state.train_secs,
            mfu: self.matmul_peak_flops.map(|peak| self.flops_per_step / step_secs / peak),
            layers: recorded_layers(&measurements.routing, flight),
            bits_per_byte: self.bits_per_byte_of_step(measurements.cross_entropy_nats, sequences_per_source),
            data_passes: Some(state.tokens_seen as f64 / self.train.num_tokens as f64),
            tokens_per_source: self.tokens_per_source(sequences_per_source),
            ..step_record(state, measurements, learning_rate)
        };
        self.sequences_before = sequences_per_source.to_vec();
        self.progress.step(&row);
        let written = self.write(&Record::Step(row));
        flight.alarms.iter().for_each(|alarm| self.note(&format!("alarm: {}", alarm.message)));
        written
    }

    /// An evaluation has ended; `end_of_run` if it was made because the run is over.
    pub(crate) fn evaluation(
        &mut self,
        state: &TrainingState,
        evaluation: &Evaluation,
        elapsed_secs: f64,
        end_of_run: bool,
    ) -> Result<(), TrainError> {
        let row = EvalRecord {
            step: state.step,
            tokens_seen: state.tokens_seen,
            cross_entropy_nats: evaluation.cross_entropy_nats,
            bits_per_byte: self.validation.bits_per_byte(evaluation.cross_entropy_nats),
            perplexity: perplexity(evaluation.cross_entropy_nats),
            num_tokens: evaluation.num_tokens,
            whole_split: evaluation.whole_split,
            sources: self.source_losses(evaluation),
            end_of_run,
            eval_secs: evaluation.secs,
            elapsed_secs,
            layers: layer_records(&evaluation.routing),
        };
        self.progress.eval(&row);
        self.write(&Record::Eval(row))
    }

    fn tokens_per_source(&self, sequences_per_source: &[u64]) -> BTreeMap<String, u64> {
        let counts = self.sources.iter().zip(sequences_per_source);
        counts.map(|(source, sequences)| (source.name.clone(), sequences * self.seq_len)).collect()
    }

    /// The steps that come go on from so many sequences of each source.
    pub(crate) fn begin_after(&mut self, sequences_per_source: Vec<u64>) {
        self.sequences_before = sequences_per_source;
    }

    /// A step's loss in bits per byte, from the mean bytes of a token of each source and what the step
    /// has of it; `None` where bytes are not known.
    fn bits_per_byte_of_step(&self, nats_per_token: f64, sequences_per_source: &[u64]) -> Option<f64> {
        if self.sources.is_empty() {
            return self.train.bits_per_byte(nats_per_token);
        }
        let (mut sequences, mut bytes) = (0.0, 0.0);
        for ((source, now), before) in
            self.sources.iter().zip(sequences_per_source).zip(&self.sequences_before)
        {
            let of_step = (now - before) as f64;
            if of_step > 0.0 {
                sequences += of_step;
                bytes += of_step * source.train.bytes_per_token()?;
            }
        }
        (bytes > 0.0).then(|| nats_per_token * sequences / bytes / std::f64::consts::LN_2)
    }

    fn source_losses(&self, evaluation: &Evaluation) -> BTreeMap<String, SourceLoss> {
        let loss = |(source, found): (&usize, &Evaluation)| {
            let ObservedSource { name, validation, .. } = self.sources.get(*source)?;
            let loss = SourceLoss {
                cross_entropy_nats: found.cross_entropy_nats,
                bits_per_byte: validation.bits_per_byte(found.cross_entropy_nats),
                num_tokens: found.num_tokens,
                whole_split: found.whole_split,
            };
            Some((name.clone(), loss))
        };
        evaluation.sources.iter().filter_map(loss).collect()
    }

    /// Say something to whoever watches.
    pub(crate) fn note(&mut self, line: &str) {
        self.progress.println(line);
    }

    /// Force the metrics to the disk, so that a checkpoint is never ahead of its log.
    pub(crate) fn sync(&mut self) -> Result<(), TrainError> {
        let mishap = self.metrics.sync()?;
        mishap.iter().for_each(|mishap| self.note(mishap));
        Ok(())
    }

    /// The log as a checkpoint has to know it.
    pub(crate) fn log_mark(&self) -> LogMark {
        self.metrics.mark()
    }

    /// The run is over.
    pub(crate) fn finish(&mut self) {
        self.progress.finish();
    }

    fn write(&mut self, record: &Record) -> Result<(), TrainError> {
        let written = self.metrics.append(record);
        if let Some(trouble) = self.events.append(record) {
            self.note(&trouble);
        }
        Ok(written?)
    }
}

fn several_sources(dataset: &Dataset) -> Vec<ObservedSource> {
    match &dataset.sources[..] {
        [] | [_] => Vec::new(),
        several => several
            .iter()
            .map(|source| ObservedSource {
                name: source.name.clone(),
                train: source.manifest.train.clone(),
                validation: source.manifest.validation.clone(),
            })
            .collect(),
    }
}

/// The row of a step, without clock readings and what the flight recorder and the corpus add.
pub(crate) fn step_record(
    state: &TrainingState,
    measurements: &StepMeasurements,
    learning_rate: f64,
) -> StepRecord {
    let losses = &measurements.router_losses;
    let unweighted = losses.iter().map(|(kind, loss)| (kind.name().to_owned(), loss.unweighted));
    let head_z = measurements.head_z_loss.map(|loss| ("head_z_loss".to_owned(), loss));
    let weighted_losses = losses.iter().map(|(kind, loss)| (kind.name().into(), loss.weighted)).collect();
    StepRecord {
        step: state.step,
        tokens_seen: state.tokens_seen,
        skipped: measurements.spike.is_some(),
        cross_entropy_nats: measurements.cross_entropy_nats,
        bits_per_byte: None,
        data_passes: None,
        tokens_per_source: BTreeMap::new(),
        losses: unweighted.chain(head_z).collect(),
        weighted_losses,
        total_loss: measurements.total_loss,
        learning_rate,
        grad_norm: measurements.grad_norm,
        max_attention_logit: measurements.max_logits.values().flatten().copied().reduce(f64::max),
        clipped_heads: measurements.clipped_heads,
        tokens_per_sec: 0.0,
        step_secs: 0.0,
        elapsed_secs: 0.0,
        active_flops: state.active_flops,
        mfu: None,
        layers: layer_records(&measurements.routing),
    }
}

fn layer_records(routing: &RoutingByLayer) -> Vec<LayerRecord> {
    routing.iter().map(|(layer, statistics)| layer_record(*layer, statistics)).collect()
}

/// As [`layer_records`], with what the flight recorder adds.
fn recorded_layers(routing: &RoutingByLayer, flight: &StepFlight) -> Vec<LayerRecord> {
    let with_flight = |record: LayerRecord| match flight.layers.get(&record.layer) {
        Some(flight) => LayerRecord {
            running_max_violation: Some(flight.running_max_violation),
            router_grad_norm: flight.router_grad_norm,
            router_weight_norm: Some(flight.router_weight_norm),
            ..record
        },
        None => record,
    };
    layer_records(routing).into_iter().map(with_flight).collect()
}

fn layer_record(layer: usize, statistics: &RouterStatistics) -> LayerRecord {
    let summary = statistics.summary();
    LayerRecord {
        layer,
        tokens_per_expert: summary.tokens_per_expert,
        max_violation: summary.max_violation,
        running_max_violation: None,
        coefficient_of_variation: summary.coefficient_of_variation,
        gini_coefficient: summary.gini_coefficient,
        effective_num_experts: summary.effective_num_experts,
        gate_entropy_nats: summary.gate_entropy_nats,
        marginal_entropy_nats: summary.marginal_entropy_nats,
        dead_expert_fraction: summary.dead_expert_fraction,
        gate_margin: summary.gate_margin,
        dropped_fraction: summary.dropped_fraction,
        router_grad_norm: None,
        router_weight_norm: None,
    }
}

//! Everybody who watches a run: the metrics file, the event file, the progress display. They read; the loop acts.

use switchyard_router::{AuxLossKind, RouterStatistics};

use crate::TrainError;
use crate::checkpoint::TrainingState;
use crate::evaluate::Evaluation;
use crate::flight::StepFlight;
use crate::metrics::{
    EvalRecord, EventFile, LayerRecord, MetricsFile, ProgressDisplay, Record, StepRecord, perplexity,
};
use crate::plan::RunPlan;
use crate::run_folder::{RunFolder, RunManifest};
use crate::step::{RoutingByLayer, StepMeasurements};

/// The observers of one run.
#[derive(Debug)]
pub(crate) struct Observers {
    metrics: MetricsFile,
    events: EventFile,
    progress: ProgressDisplay,
    tokens_per_step: f64,
    flops_per_step: f64,
    matmul_peak_flops: Option<f64>,
}

impl Observers {
    /// The observers of a run in `folder`; those of a resumed run forget what came after its checkpoint.
    pub(crate) fn open(
        folder: &RunFolder,
        manifest: &RunManifest,
        plan: &RunPlan,
        state: &TrainingState,
        resumed: bool,
        show_progress: bool,
    ) -> Result<Self, TrainError> {
        let paths = folder.paths();
        let metrics = if resumed {
            MetricsFile::resume(&paths.metrics(), state.step)?
        } else {
            MetricsFile::create(&paths.metrics())?
        };
        let resumed_from = resumed.then_some(state.step);
        let progress = if show_progress {
            ProgressDisplay::new(plan.num_steps, state.step)
        } else {
            ProgressDisplay::hidden()
        };
        Ok(Self {
            metrics,
            events: EventFile::create(paths.root(), &manifest.host.hostname, resumed_from)?,
            progress,
            tokens_per_step: plan.tokens_per_step as f64,
            flops_per_step: plan.training_flops_per_step(),
            matmul_peak_flops: manifest.matmul_peak_flops,
        })
    }

    /// A step has ended.
    pub(crate) fn step(
        &mut self,
        state: &TrainingState,
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
            ..step_record(state, measurements, learning_rate)
        };
        self.progress.step(&row);
        self.write(&Record::Step(row))?;
        flight.alarms.iter().for_each(|alarm| self.note(&format!("alarm: {}", alarm.message)));
        Ok(())
    }

    /// An evaluation has ended; `end_of_run` if it is the one after the last step.
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
            perplexity: perplexity(evaluation.cross_entropy_nats),
            num_tokens: evaluation.num_tokens,
            whole_split: evaluation.whole_split,
            end_of_run,
            eval_secs: evaluation.secs,
            elapsed_secs,
            layers: layer_records(&evaluation.routing),
        };
        self.progress.eval(&row);
        self.write(&Record::Eval(row))
    }

    /// Say something to whoever watches.
    pub(crate) fn note(&mut self, line: &str) {
        self.progress.println(line);
    }

    /// Force the metrics to the disk, so that a checkpoint is never ahead of its log.
    pub(crate) fn sync(&mut self) -> Result<(), TrainError> {
        Ok(self.metrics.sync()?)
    }

    /// The run is over.
    pub(crate) fn finish(&mut self) {
        self.progress.finish();
    }

    fn write(&mut self, record: &Record) -> Result<(), TrainError> {
        self.metrics.append(record)?;
        Ok(self.events.append(record)?)
    }
}

/// The row of a step, without clock readings and what the flight recorder adds.
pub(crate) fn step_record(
    state: &TrainingState,
    measurements: &StepMeasurements,
    learning_rate: f64,
) -> StepRecord {
    let losses = &measurements.router_losses;
    let router_loss = |kind| losses.get(&kind).map(|loss| loss.unweighted);
    let weighted_losses = losses.iter().map(|(kind, loss)| (kind.name().into(), loss.weighted)).collect();
    StepRecord {
        step: state.step,
        tokens_seen: state.tokens_seen,
        cross_entropy_nats: measurements.cross_entropy_nats,
        load_balancing_loss: router_loss(AuxLossKind::LoadBalancing),
        router_z_loss: router_loss(AuxLossKind::RouterZ),
        gate_entropy_loss: router_loss(AuxLossKind::GateEntropy),
        importance_loss: router_loss(AuxLossKind::Importance),
        load_loss: router_loss(AuxLossKind::Load),
        weighted_losses,
        head_z_loss: measurements.head_z_loss,
        total_loss: measurements.total_loss,
        learning_rate,
        grad_norm: measurements.grad_norm,
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

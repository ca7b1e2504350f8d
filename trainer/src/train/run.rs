//! A run in progress: the loop, and what it leaves on disk.

mod checkpoints;
mod held_out;
mod sample;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Device;
use switchyard_datasets::Dataset;
use switchyard_model::Transformer;

use super::{TrainRequest, loader, notes};
use crate::TrainError;
use crate::available_memory::has_room_beside_checkpoints;
use crate::checkpoint::{CheckpointStore, LoggedEvaluation, TrainingState};
use crate::config::RunConfig;
use crate::energy::{EnergyMeter, POWERCAP};
use crate::flight::{FlightRecorder, OpenedRecorder, StepFlight};
use crate::metrics::{DocumentLoss, Record};
use crate::moving_parts::MovingParts;
use crate::observers::{Observers, OpenedObservers};
use crate::plan::RunPlan;
use crate::ranks::{Beginning, Order, Ranks, Readiness};
use crate::replaceable::Replaceable;
use crate::resume::{Start, start};
use crate::run_folder::{OpenMode, RunFolder, RunFolderError, RunManifest, RunStatus};
use crate::step::StepMeasurements;
use checkpoints::Checkpoints;
use switchyard_flight::alarms::{Alarm, AlarmKind};

/// A run in progress.
pub(super) struct Run<'a> {
    config: &'a RunConfig,
    plan: &'a RunPlan,
    stop: &'a AtomicBool,
    folder: &'a RunFolder,
    manifest: RunManifest,
    device: Device,
    dataset: Dataset,
    parts: MovingParts,
    checkpoints: Checkpoints,
    observers: Observers,
    recorder: Option<FlightRecorder>,
    /// Start of this process's part of the run, and the training seconds of the parts before it.
    started: Instant,
    earlier_secs: f64,
    energy: Option<EnergyMeter>,
    /// The loss of each document in the last evaluation of the whole validation split, and its step.
    validation_documents: Option<(u64, Vec<DocumentLoss>)>,
    /// Whether it was said that something around a checkpoint, which is whole, could not be written
    /// or removed.
    has_complained: bool,
}

impl<'a> Run<'a> {
    /// The run before its first step in this process. Whatever may be refused is looked at before
    /// anything is written.
    pub(super) fn start(
        request: &'a TrainRequest,
        (dataset, device): (Dataset, Device),
        folder: &'a RunFolder,
        checkpoints: CheckpointStore,
        mut manifest: RunManifest,
        ranks: Ranks,
    ) -> Result<Self, TrainError> {
        let TrainRequest { config, plan, mode, .. } = request;
        let started = start(config, plan, &dataset, &checkpoints, *mode, &device);
        let started = started.map(|start| with_beginning(start, &dataset));
        let (started, readiness) = ranks.ready(started, &device, plan.compute)?;
        let Start { model, optimizer, state, carried, resumed, notes } = started;
        let loader = loader(config, plan, &dataset, state.data_cursor)?;
        let Readiness { products, matmul_peak_flops, .. } = readiness;
        let other_products = resumed.then(|| notes::on_products(manifest.products(), products)).flatten();
        manifest.products = Some(products);
        manifest.matmul_peak_flops = Some(matmul_peak_flops);
        manifest.ranks = ranks.number();
        folder.check_held()?;
        let from = resumed.then_some(&state);
        let OpenedObservers { mut observers, rows, earlier_log } =
            Observers::open(folder, &manifest, plan, &dataset, from, request.show_progress)?;
        let OpenedRecorder { recorder, notes: recorder_notes } =
            FlightRecorder::open(folder.paths(), plan, from, &dataset, config.data.mask_documents, &device)?;
        if let Some(state) = from {
            restore_best_validation(&mut manifest, state, &rows);
            // Of a model that this run is about to leave behind.
            folder.remove_document_losses()?;
        }
        folder.write_manifest(&manifest)?;
        folder.write_config(&crate::config_file::to_toml(config))?;
        observers.begin_after(loader.sequences_per_source());
        let restart = (*mode == OpenMode::Resume && !resumed)
            .then(|| notes::on_restart(folder, earlier_log.as_deref()));
        let has_room = has_room_beside_checkpoints(config, &ranks.memory(config, plan)?);
        let checkpoints = Checkpoints::new(checkpoints, (config, plan), &dataset.tokenizer, has_room);
        let first = [
            Some(notes::on_passes(plan, &dataset)),
            notes::on_ranks(config, plan, ranks.number()),
            notes::on_short_sources(plan, &dataset),
            notes::on_waiting_for_checkpoints(plan, checkpoints.go_beside_the_loop()),
            restart,
        ];
        let last = [notes::on_left(folder), notes::on_lost_steps(&manifest, from), other_products];
        let told = first.iter().flatten().chain(&notes).chain(&recorder_notes).chain(last.iter().flatten());
        told.for_each(|note| observers.note(note));
        let earlier_secs = state.train_secs;
        let model = Replaceable::new(ranks.part_of(model));
        let energy = energy_meter(&manifest, resumed);
        Ok(Self {
            config,
            plan,
            stop: &request.stop,
            folder,
            manifest,
            device,
            dataset,
            parts: MovingParts { loader, model, optimizer, state, carried, ranks },
            checkpoints,
            observers,
            recorder,
            started: Instant::now(),
            earlier_secs,
            energy,
            validation_documents: None,
            has_complained: false,
        })
    }

    /// Train, and leave on disk what there is to leave, whichever way it ends.
    pub(super) fn run_to_its_end(&mut self) -> Result<RunStatus, TrainError> {
        let outcome = self.train().and_then(|status| self.end(status));
        // A folder that is gone is why a file in it cannot be written.
        let outcome = outcome.map_err(|error| match self.folder.check_held() {
            Err(lost @ RunFolderError::Lost { .. }) => lost.into(),
            _ => error,
        });
        self.observers.finish();
        outcome.inspect_err(|error| {
            self.rescue(error);
            self.record_failure(error);
        })
    }

    /// `run.json` as it stands now.
    pub(super) fn into_manifest(mut self) -> RunManifest {
        self.update_manifest();
        self.manifest
    }

    /// The loop.
    fn train(&mut self) -> Result<RunStatus, TrainError> {
        if self.parts.state.evaluation_is_pending {
            // The run was stopped within this evaluation.
            if !self.evaluate_and_track()? {
                return Ok(RunStatus::Interrupted);
            }
            self.save_checkpoint()?;
        }
        while !self.is_at_its_end() {
            let stops = self.step()?;
            if let Some(outcome) = self.checkpoints.outcome() {
                self.settle(outcome)?;
            }
            let is_complete = !self.parts.state.evaluation_is_pending || self.evaluate_and_track()?;
            if is_complete && self.checkpoint_is_due() {
                self.begin_checkpoint()?;
            }
            if let Some(alarm) = stops {
                self.manifest.error = Some(format!("stopped by an alarm: {}", alarm.message));
                return Ok(RunStatus::Alarmed);
            }
            if !is_complete || self.is_asked_to_stop() {
                return Ok(RunStatus::Interrupted);
            }
        }
        if self.has_stopped_improving() {
            let num_evals = self.parts.state.evals_without_improvement;
            self.observers.note(&format!(
                "stopped early: the validation loss has not fallen in {num_evals} evaluations"
            ));
        }
        Ok(RunStatus::Finished)
    }

    fn is_asked_to_stop(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn is_at_its_end(&self) -> bool {
        self.parts.state.step >= self.plan.num_steps || self.has_stopped_improving()
    }

    fn checkpoint_is_due(&self) -> bool {
        is_due(self.plan.checkpoints.every_steps, self.parts.state.step)
    }

    /// Whether early stopping has ended the run.
    fn has_stopped_improving(&self) -> bool {
        let patience = self.plan.early_stopping.as_ref().map(|early| early.patience_evals);
        patience.is_some_and(|patience| self.parts.state.evals_without_improvement >= patience)
    }

    /// Do a step; returns the alarm that stops the run.
    fn step(&mut self) -> Result<Option<Alarm>, TrainError> {
        let step_started = Instant::now();
        let learning_rate = self.plan.schedule.learning_rate(self.parts.state.step);
        self.parts.ranks.order(&Order::Step)?;
        let measurements = self.parts.step(self.config, self.plan, &self.device)?;
        if measurements.spike.is_none() {
            self.manifest.traffic = measurements.traffic;
        }
        let step = self.parts.state.step;
        self.parts.state.evaluation_is_pending = is_due(self.plan.evaluation.every_steps, step);
        self.parts.state.train_secs = self.earlier_secs + self.started.elapsed().as_secs_f64();
        self.folder.check_held()?;
        let recording_started = Instant::now();
        let mut flight = self.record(&measurements)?;
        self.manifest.flight_recorder_secs += recording_started.elapsed().as_secs_f64();
        if let Some(energy) = &mut self.energy {
            energy.keep_up();
        }
        let step_secs = step_started.elapsed().as_secs_f64();
        let (state, sequences) = (&self.parts.state, self.parts.loader.sequences_per_source());
        let shown = self.observers.step(state, &sequences, &measurements, &flight, learning_rate, step_secs);
        let is_said = flight.alarms.iter().any(|alarm| alarm.kind == AlarmKind::SkippedStep);
        if let Some(spike) = measurements.spike.filter(|_| !is_said) {
            self.observers.note(&format!("alarm: step {} moves no parameter: {spike}", state.step));
        }
        // All of it is tried before the first error counts: a checkpoint can still be made of the
        // step.
        flight.unwritten.take().map_or(Ok(()), |error| Err(error.into())).and(shown)?;
        Ok(flight.stops)
    }

    /// Shows the recorder what the last step measured, and the model.
    fn record(&mut self, measurements: &StepMeasurements) -> Result<StepFlight, TrainError> {
        let step = self.parts.state.step;
        let probes = self.recorder.as_ref().is_some_and(|recorder| recorder.probes_at(step));
        let whole = if probes { Some(self.whole_model()?) } else { None };
        let Some(recorder) = &mut self.recorder else { return Ok(StepFlight::default()) };
        Ok(recorder.record(step, measurements, whole.as_ref().unwrap_or(self.parts.model.get()))?)
    }

    /// The model with all experts, for this process to use alone.
    fn whole_model(&self) -> Result<Transformer, TrainError> {
        let model = self.parts.model.get();
        if !model.is_over_ranks() {
            return Ok(model.clone());
        }
        self.parts.ranks.order(&Order::GatherModel)?;
        let whole = self.parts.ranks.whole_model(model);
        Ok(whole.unwrap_or_else(|| unreachable!("the first rank has the experts of all")))
    }

    /// Evaluate as the plan says, and remember how the result compares to earlier ones. False if
    /// the run is asked to stop before it is done: the evaluation is then still pending.
    fn evaluate_and_track(&mut self) -> Result<bool, TrainError> {
        let Some(mut evaluation) = self.evaluate_validation(self.plan.evaluation.max_tokens)? else {
            return Ok(false);
        };
        self.keep_documents(&mut evaluation);
        let logged = self.observers.evaluation(&self.parts.state, &evaluation, self.elapsed_secs(), false);
        self.parts.state.evaluation_is_pending = false;
        let (step, nats) = (self.parts.state.step, evaluation.cross_entropy_nats);
        self.manifest.record_validation(step, nats);
        let this = LoggedEvaluation { step, cross_entropy_nats: nats };
        self.parts.state.whole_split = evaluation.whole_split.then_some(this);
        let beats = |best: Option<LoggedEvaluation>, margin: f64| {
            best.is_none_or(|best| nats < best.cross_entropy_nats - margin)
        };
        let margin = self.plan.early_stopping.as_ref().map_or(0.0, |early| early.min_improvement_nats);
        if beats(self.parts.state.best, margin) {
            self.parts.state.best = Some(this);
            self.parts.state.evals_without_improvement = 0;
        } else {
            self.parts.state.evals_without_improvement += 1;
        }
        if self.checkpoint_is_due() && beats(self.parts.state.best_checkpoint, 0.0) {
            self.parts.state.best_checkpoint = Some(this);
        }
        // Last: whatever the log says, the state is that of a run which has evaluated.
        logged.map(|()| true)
    }

    /// The last model's loss on the whole split: what the evaluation after the last step found if
    /// it covered everything, else measured now. None if the run is asked to stop before it is.
    fn final_cross_entropy_nats(&mut self) -> Result<Option<f64>, TrainError> {
        if let Some(logged) = self.parts.state.whole_split
            && logged.step == self.parts.state.step
        {
            return Ok(Some(logged.cross_entropy_nats));
        }
        let Some(mut evaluation) = self.evaluate_validation(None)? else { return Ok(None) };
        self.keep_documents(&mut evaluation);
        self.observers.evaluation(&self.parts.state, &evaluation, self.elapsed_secs(), true)?;
        // `run.json` is about to say that the run has finished, and nobody writes a row of a
        // finished run again.
        self.observers.sync()?;
        self.manifest.record_validation(self.parts.state.step, evaluation.cross_entropy_nats);
        Ok(Some(evaluation.cross_entropy_nats))
    }

    /// Leave everything on disk that a run with this ending leaves.
    fn end(&mut self, status: RunStatus) -> Result<RunStatus, TrainError> {
        self.folder.check_held()?;
        // First of all: whatever fails after this, the trained model is on disk.
        self.settle_begun()?;
        let step = self.parts.state.step;
        if self.checkpoints.store.steps()?.last() == Some(&step) {
            // The process that wrote it may have got no further.
            let named = self.checkpoints.store.name_latest(step);
            self.tolerate(named.map_err(TrainError::from))?;
            self.retain_checkpoints()?;
        } else {
            self.save_checkpoint()?;
        }
        if status != RunStatus::Finished {
            return Ok(status);
        }
        let Some(nats) = self.final_cross_entropy_nats()? else { return Ok(RunStatus::Interrupted) };
        if !self.measure_held_out_text()? {
            return Ok(RunStatus::Interrupted);
        }
        self.manifest.final_validation_cross_entropy_nats = Some(nats);
        self.update_manifest();
        // Before the sample, which takes its time.
        let written = self.folder.write_manifest(&self.manifest);
        self.tolerate(written.map_err(TrainError::from))?;
        let whole = self.whole_model()?;
        if let Some(recorder) = &mut self.recorder {
            // An error leaves a run that is not finished, whose next start has only this left to
            // do.
            recorder.finish(&whole)?;
        }
        if let Err(error) = self.write_sample(&whole) {
            let why =
                if self.is_asked_to_stop() { "the run was asked to stop".into() } else { error.to_string() };
            self.observers.note(&format!("no sample was written: {why}"));
            // That of fewer steps would be taken for this model's.
            drop(std::fs::remove_file(self.folder.paths().sample()));
        }
        Ok(status)
    }

    /// Write down what the recorder knows of a run that ends in `error`.
    fn record_failure(&mut self, error: &TrainError) {
        let step = self.parts.state.step + 1;
        let Some(recorder) = &mut self.recorder else { return };
        if self.folder.check_held().is_ok() {
            // The run's own error matters more than a second one from writing it down.
            drop(recorder.record_failure(step, error.non_finite()));
        }
    }

    fn update_manifest(&mut self) {
        let train_secs = self.elapsed_secs();
        let state = &self.parts.state;
        let data = &self.dataset.manifest;
        let bits = |nats: Option<f64>| data.validation.bits_per_byte(nats?);
        let test_bits = |nats: Option<f64>| data.test.as_ref()?.bits_per_byte(nats?);
        let manifest = &mut self.manifest;
        manifest.steps_done = state.step;
        manifest.skipped_steps = state.step - state.updates();
        manifest.tokens_seen = state.tokens_seen;
        manifest.active_flops = state.active_flops;
        manifest.train_secs = train_secs;
        manifest.energy_joules = self.energy.as_mut().and_then(EnergyMeter::sample);
        manifest.best_validation_bits_per_byte = bits(manifest.best_validation_cross_entropy_nats);
        manifest.final_validation_bits_per_byte = bits(manifest.final_validation_cross_entropy_nats);
        manifest.final_test_bits_per_byte = test_bits(manifest.final_test_cross_entropy_nats);
    }

    fn elapsed_secs(&self) -> f64 {
        self.earlier_secs + self.started.elapsed().as_secs_f64()
    }
}

/// What this rank begins with, to be held against that of others.
fn with_beginning(start: Start, dataset: &Dataset) -> (Start, Beginning) {
    let beginning = Beginning::of(&dataset.manifest.key, (&start.model, &start.optimizer), &start.state);
    (start, beginning)
}

/// The meter of the run's energy, which goes on from that of its earlier parts.
fn energy_meter(manifest: &RunManifest, resumed: bool) -> Option<EnergyMeter> {
    // Energy of a part of the run would look like that of all of it.
    let earlier_joules = if resumed { manifest.energy_joules } else { Some(0.0) };
    EnergyMeter::start(Path::new(POWERCAP), earlier_joules?)
}

/// Whether something that happens every `period` steps happens after `step`.
fn is_due(period: Option<u64>, step: u64) -> bool {
    period.is_some_and(|period| step.is_multiple_of(period))
}

/// Makes the best evaluation up to the checkpoint the best one again.
fn restore_best_validation(manifest: &mut RunManifest, state: &TrainingState, rows: &[Record]) {
    manifest.set_best_validation(state.best_validation);
    if state.metrics_log.is_none() {
        // A checkpoint of an earlier version leaves it to the log.
        for row in rows.iter().filter_map(Record::as_eval) {
            manifest.record_validation(row.step, row.cross_entropy_nats);
        }
    }
}

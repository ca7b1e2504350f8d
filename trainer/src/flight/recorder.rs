//! The flight recorder of one run: shown every step, it writes what `flight/` holds and raises
//! alarms.

use std::collections::BTreeMap;

use burn::tensor::Device;
use switchyard_datasets::Dataset;
use switchyard_experts::MoeLayer;
use switchyard_model::{NonFinite, Transformer};

use super::error::RecorderError;
use super::gates::{recordable, score_rows};
use super::lines::{FlightRow, Lines, ResumedLines};
use super::prober::{ProbeRow, Prober};
use super::state::FlightState;
use crate::checkpoint::TrainingState;
use crate::config::FlightRecorderConfig;
use crate::norms::router_weight_norm;
use crate::plan::RunPlan;
use crate::routed_pass::{RoutedLayer, RoutedPass};
use crate::run_folder::RunPaths;
use crate::spikes::Spike;
use crate::step::StepMeasurements;
use switchyard_flight::alarms::{Alarm, Alarms, LayerObservation, StepObservation};
use switchyard_flight::columns::{self, EncodedScores, ExpertLog, ExpertRow, HeldFolder};

/// Share of the running load that the next step's load replaces: it looks back about 50 steps.
const RUNNING_LOAD_RATE: f64 = 0.02;

/// What the recorder adds to a layer's row in the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct LayerFlight {
    pub(crate) running_max_violation: f64,
    pub(crate) router_grad_norm: Option<f64>,
    pub(crate) router_weight_norm: f64,
}

impl FlightRow for Alarm {
    fn step(&self) -> u64 {
        self.step
    }
}

/// What the recorder has to say about a step.
#[derive(Debug, Default)]
pub(crate) struct StepFlight {
    /// Why some of it is not on the disk. It is kept, and written at the next try.
    pub(crate) unwritten: Option<RecorderError>,
    /// By layer.
    pub(crate) layers: BTreeMap<usize, LayerFlight>,
    /// What begins to go wrong.
    pub(crate) alarms: Vec<Alarm>,
    /// The first of the alarms that stops the run.
    pub(crate) stops: Option<Alarm>,
}

/// The recorder.
#[derive(Debug)]
pub(crate) struct FlightRecorder {
    config: FlightRecorderConfig,
    folder: HeldFolder,
    num_steps: u64,
    device: Device,
    experts: ExpertLog,
    alarms: Alarms,
    alarm_rows: Lines<Alarm>,
    running_load: BTreeMap<usize, Vec<f64>>,
    prober: Prober,
    /// Scores that could not be written yet.
    unwritten_scores: Option<EncodedScores>,
}

/// A recorder that goes on.
#[derive(Debug, Default)]
pub(crate) struct OpenedRecorder {
    /// None if the configuration turns it off.
    pub(crate) recorder: Option<FlightRecorder>,
    /// What the user should know.
    pub(crate) notes: Vec<String>,
}

impl FlightRecorder {
    /// The recorder of a new run, or of one that goes on from a checkpoint, its files rewound to
    /// that step. Files that cannot be understood are set aside.
    pub(crate) fn open(
        paths: &RunPaths,
        plan: &RunPlan,
        resumed_from: Option<&TrainingState>,
        dataset: &Dataset,
        mask_documents: bool,
        device: &Device,
    ) -> Result<OpenedRecorder, RecorderError> {
        let config = &plan.flight_recorder;
        let last_step = resumed_from.map(|state| state.step);
        let folder = paths.flight();
        if !config.enabled && !folder.exists() {
            return Ok(OpenedRecorder::default());
        }
        let mut notes = columns::rewind(&folder, last_step)?;
        let ResumedLines { lines: alarm_rows, note, .. } = Lines::rewind(&paths.alarms(), last_step)?;
        notes.extend(note);
        let (prober, note) = Prober::open(paths, plan, dataset, mask_documents, last_step)?;
        notes.extend(note);
        let FlightState { alarms, running_load } =
            resumed_from.and_then(|state| state.flight.clone()).unwrap_or_default();
        let recorder = config.enabled.then(|| Self {
            experts: ExpertLog::new(&folder, config.steps_per_part),
            alarms: Alarms::resume(config.alarms.clone(), alarms),
            config: config.clone(),
            folder: HeldFolder::new(&folder),
            num_steps: plan.num_steps,
            device: device.clone(),
            alarm_rows,
            running_load,
            prober,
            unwritten_scores: None,
        });
        Ok(OpenedRecorder { recorder, notes })
    }

    /// Whether the model is probed after this step: with all its experts.
    pub(crate) fn probes_at(&self, step: u64) -> bool {
        step.is_multiple_of(self.config.probe_every_steps)
    }

    /// Takes in step number `step` and the model that came of it. A file that cannot be written
    /// changes nothing of what the recorder remembers: see [`StepFlight::unwritten`].
    ///
    /// # Errors
    /// [`RecorderError`] if the device fails.
    pub(crate) fn record(
        &mut self,
        step: u64,
        measurements: &StepMeasurements,
        model: &Transformer,
    ) -> Result<StepFlight, RecorderError> {
        let passes = &measurements.passes;
        let (probes, mut unwritten) = match self.probes_at(step) {
            true => self.prober.probe(step, model, passes, &self.device)?,
            false => (Vec::new(), None),
        };
        let mut unwritten: Option<RecorderError> = unwritten.take().map(RecorderError::from);
        let mut keep_first =
            |result: Result<(), RecorderError>| unwritten = unwritten.take().or(result.err());
        if step.is_multiple_of(self.config.scores_every_steps) {
            let rows = score_rows(step, recordable(passes, model), model, self.prober.has_domains());
            let encoded = EncodedScores::new(self.folder.path(), step, rows);
            keep_first(encoded.map_err(RecorderError::from).and_then(|scores| self.write_scores(scores)));
        }
        let layers: Vec<LayerStep<'_>> = model
            .moe_layers()
            .map(|(layer, moe)| LayerStep::new(layer, moe, measurements, &probes))
            .collect();
        let (alarms, written) = self.observe(&StepObservation {
            step,
            num_steps: self.num_steps,
            cross_entropy_nats: measurements.cross_entropy_nats,
            layers: layers.iter().map(LayerStep::observation).collect(),
            non_finite: None,
            skipped: measurements.spike.map(Spike::observation),
        });
        keep_first(written);
        let written = self.experts.append(layers.iter().flat_map(|layer| {
            layer.expert_rows(step, self.alarms.dead_steps(layer.layer)).collect::<Vec<_>>()
        }));
        keep_first(written.map_err(RecorderError::from));
        let flights = layers.iter().map(|layer| (layer.layer, self.layer_flight(layer))).collect();
        let stops = self.alarms.stopping(&alarms).cloned();
        Ok(StepFlight { unwritten, layers: flights, alarms, stops })
    }

    fn write_scores(&mut self, scores: Option<EncodedScores>) -> Result<(), RecorderError> {
        let earlier = self.write_unwritten_scores();
        if scores.is_some() {
            self.unwritten_scores = scores;
        }
        earlier.and(self.write_unwritten_scores())
    }

    fn write_unwritten_scores(&mut self) -> Result<(), RecorderError> {
        if let Some(scores) = &self.unwritten_scores {
            scores.write(&self.folder)?;
            self.unwritten_scores = None;
        }
        Ok(())
    }

    /// Takes in that step number `step` ended in a NaN or an infinity, and writes everything down.
    ///
    /// # Errors
    /// [`RecorderError`] if a file cannot be written.
    pub(crate) fn record_failure(
        &mut self,
        step: u64,
        origin: Option<NonFinite>,
    ) -> Result<(), RecorderError> {
        if origin.is_some() {
            let observation = StepObservation {
                step,
                num_steps: self.num_steps,
                cross_entropy_nats: f64::NAN,
                layers: Vec::new(),
                non_finite: origin,
                skipped: None,
            };
            self.observe(&observation).1?;
        }
        self.sync().map(drop)
    }

    /// What a checkpoint must hold.
    pub(crate) fn state(&self) -> FlightState {
        FlightState { alarms: self.alarms.state().clone(), running_load: self.running_load.clone() }
    }

    /// Returns once everything so far is on the disk itself, with what the user should know.
    ///
    /// # Errors
    /// [`RecorderError`] if a file cannot be written.
    pub(crate) fn sync(&mut self) -> Result<Vec<String>, RecorderError> {
        self.write_unwritten_scores()?;
        self.experts.flush()?;
        let notes = [self.prober.sync()?, self.alarm_rows.sync()?];
        Ok(notes.into_iter().flatten().collect())
    }

    /// Compares every probe with the final model.
    ///
    /// # Errors
    /// [`RecorderError`] if a file cannot be read or written.
    pub(crate) fn finish(&mut self, model: &Transformer) -> Result<(), RecorderError> {
        self.prober.finish(model, &self.device)
    }

    fn observe(&mut self, observation: &StepObservation) -> (Vec<Alarm>, Result<(), RecorderError>) {
        let alarms = self.alarms.observe(observation);
        let written = self.alarm_rows.append_all(&alarms);
        (alarms, written.map_err(RecorderError::from))
    }

    fn layer_flight(&mut self, layer: &LayerStep<'_>) -> LayerFlight {
        let running_e = self.running_load.entry(layer.layer).or_default();
        follow_load(running_e, &layer.tokens_per_expert);
        LayerFlight {
            running_max_violation: max_violation(running_e),
            router_grad_norm: layer.router_grad_norm,
            router_weight_norm: layer.router_weight_norm,
        }
    }
}

/// Moves the running load towards that of a step.
fn follow_load(running_e: &mut Vec<f64>, tokens_per_expert: &[u64]) {
    running_e.resize(tokens_per_expert.len(), 0.0);
    for (running, &tokens) in running_e.iter_mut().zip(tokens_per_expert) {
        *running += RUNNING_LOAD_RATE * (tokens as f64 - *running);
    }
}

/// Largest load over mean load, minus 1; 0 without a load.
fn max_violation(load_e: &[f64]) -> f64 {
    let mean = load_e.iter().sum::<f64>() / load_e.len() as f64;
    let max = load_e.iter().copied().fold(0.0, f64::max);
    if mean > 0.0 { max / mean - 1.0 } else { 0.0 }
}

/// One layer in one step.
struct LayerStep<'a> {
    layer: usize,
    moe: &'a MoeLayer,
    passes: &'a [RoutedPass],
    routed: Vec<&'a RoutedLayer>,
    tokens_per_expert: Vec<u64>,
    dropped_per_expert: Vec<u64>,
    entropies_nats: (f64, f64),
    router_grad_norm: Option<f64>,
    router_weight_norm: f64,
    expert_grad_norms: Vec<f64>,
    probe: Option<&'a ProbeRow>,
}

impl<'a> LayerStep<'a> {
    fn new(
        layer: usize,
        moe: &'a MoeLayer,
        measurements: &'a StepMeasurements,
        probes: &'a [ProbeRow],
    ) -> Self {
        let routed: Vec<&RoutedLayer> =
            measurements.passes.iter().filter_map(|pass| pass.layer(layer)).collect();
        let num_experts = moe.router.num_experts();
        let statistics = measurements.routing.iter().find(|(index, _)| *index == layer);
        let entropies_nats = statistics
            .map(|(_, statistics)| (statistics.gate_entropy_nats(), statistics.marginal_entropy_nats()));
        let norms = measurements.moe_grad_norms.get(&layer);
        let sum = |counts: Vec<Vec<u64>>| {
            (0..num_experts).map(|expert| counts.iter().map(|counts| counts[expert]).sum()).collect()
        };
        Self {
            layer,
            moe,
            passes: &measurements.passes,
            tokens_per_expert: sum(routed.iter().map(|routed| routed.tokens_per_expert.clone()).collect()),
            dropped_per_expert: sum(routed.iter().map(|routed| routed.dropped_per_expert.clone()).collect()),
            routed,
            entropies_nats: entropies_nats.unwrap_or_default(),
            router_grad_norm: norms.and_then(|norms| norms.router),
            router_weight_norm: router_weight_norm(&moe.router),
            expert_grad_norms: norms.map_or_else(Vec::new, |norms| norms.experts.clone()),
            probe: probes.iter().find(|probe| probe.layer == layer),
        }
    }

    fn observation(&self) -> LayerObservation {
        let learns = self.moe.router.config().learns();
        let num_tokens = self.passes.iter().map(|pass| pass.num_tokens as u64).sum();
        LayerObservation {
            layer: self.layer,
            num_tokens,
            top_k: self.routed.first().and_then(|routed| routed.top_k),
            tokens_per_expert: self.tokens_per_expert.clone(),
            num_dropped: self.dropped_per_expert.iter().sum(),
            gate_entropy_nats: self.entropies_nats.0,
            marginal_entropy_nats: self.entropies_nats.1,
            // A router that learns and got no gradient got one of exactly zero; a frozen one is meant to.
            router_grad_norm: (learns && self.is_trained()).then(|| self.router_grad_norm.unwrap_or(0.0)),
            balancing_grad_norm: self.probe.and_then(|probe| probe.balancing_grad_norm),
            load_balancing_loss: self.mean_over_passes(|routed| routed.load_balancing_loss),
            load_balancing_bound: self.mean_over_passes(|routed| routed.load_balancing_bound),
            agreement: self.probe.and_then(|probe| probe.agreement_with_previous).filter(|_| learns),
        }
    }

    /// Whether a gradient is to reach any matrix of the router.
    fn is_trained(&self) -> bool {
        let router = &self.moe.router;
        let projection = router.cosine.as_ref().map(|cosine| &cosine.projection_dc);
        let matrices = [router.weight_de.as_ref(), router.noise_weight_de.as_ref(), projection];
        matrices.into_iter().flatten().any(|matrix| matrix.val().is_require_grad())
    }

    /// The mean of a value of each pass; `None` if a pass has none.
    fn mean_over_passes(&self, value: impl Fn(&RoutedLayer) -> Option<f64>) -> Option<f64> {
        let num_passes = self.routed.len();
        let sum = self.routed.iter().map(|routed| value(routed)).sum::<Option<f64>>()?;
        (num_passes > 0).then(|| sum / num_passes as f64)
    }

    fn expert_rows(&self, step: u64, dead_steps: &[u64]) -> impl Iterator<Item = ExpertRow> {
        let biases = self.moe.router.bias_on_host();
        let weight_norms = self.probe.map_or(&[][..], |probe| &probe.expert_weight_norms);
        (0..self.tokens_per_expert.len()).map(move |expert| ExpertRow {
            step,
            layer: self.layer as u32,
            expert: expert as u32,
            tokens: self.tokens_per_expert[expert],
            dropped: self.dropped_per_expert[expert],
            bias: biases.as_ref().map(|biases| biases[expert]),
            dead_steps: dead_steps.get(expert).copied().unwrap_or_default(),
            router_grad_norm: self.router_grad_norm.unwrap_or(0.0),
            router_weight_norm: self.router_weight_norm,
            expert_grad_norm: self.expert_grad_norms.get(expert).copied(),
            expert_weight_norm: weight_norms.get(expert).copied(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_is_the_largest_load_over_the_mean_less_one() {
        assert_eq!(max_violation(&[3.0, 1.0]), 0.5);
        assert_eq!(max_violation(&[0.0, 0.0]), 0.0);
    }

    /// A load that stays has its violation from the first step on. When the experts change places,
    /// 35 steps later half of what is remembered is of the old load, since 0.98 to the power of
    /// 34.3 is a half: the violation crosses 0.
    #[test]
    fn the_running_violation_forgets_an_old_load_by_half_in_some_thirty_five_steps() {
        let mut running_e = Vec::new();
        let violation_after = |running_e: &mut Vec<f64>, tokens: [u64; 2]| {
            follow_load(running_e, &tokens);
            max_violation(running_e)
        };
        for _ in 0..1000 {
            assert!((violation_after(&mut running_e, [6, 2]) - 0.5).abs() < 1e-12);
        }
        let after: Vec<f64> = (0..1000).map(|_| violation_after(&mut running_e, [2, 6])).collect();
        // Of the first expert's share above the mean, 0.98^n is left and 1 - 0.98^n is of the
        // other.
        for (n, violation) in (1..).zip(&after) {
            let share = 0.5 * (2.0 * 0.98_f64.powi(n) - 1.0);
            assert!((violation - share.abs()).abs() < 1e-6, "after {n} steps: {violation}");
        }
        assert!(after[0] < 0.5 && after[33] < 0.01 && after[999] > 0.499_999);
    }
}

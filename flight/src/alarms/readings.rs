//! What is compared to which threshold in a step.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::config::Thresholds;
use super::{AlarmKind, AlarmsState, LayerObservation, SkippedStep, StepObservation};

/// Share of the threshold by which a value must be back within it before the alarm can be raised
/// again.
const HYSTERESIS: f64 = 0.05;

/// A value beside its threshold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reading<'a> {
    pub(super) kind: AlarmKind,
    pub(super) layer: Option<usize>,
    /// The expert that the message names.
    pub(super) expert: Option<usize>,
    pub(super) value: f64,
    pub(super) threshold: f64,
    pub(super) side: Side,
    pub(super) since_step: u64,
    /// What the value is, where one kind has several.
    pub(super) what: &'a str,
}

/// On which side of the threshold the alarm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Above,
    Below,
    /// A count that reaches its threshold, and clears at 0.
    Reaches,
    /// Two counts that should be equal.
    Differs,
}

impl Reading<'_> {
    pub(super) fn fires(&self) -> bool {
        match self.side {
            Side::Above => self.value > self.threshold,
            Side::Below => self.value < self.threshold,
            Side::Reaches => self.value >= self.threshold,
            Side::Differs => self.value != self.threshold,
        }
    }

    pub(super) fn has_cleared(&self) -> bool {
        match self.side {
            Side::Above => self.value <= self.threshold * (1.0 - HYSTERESIS),
            Side::Below => self.value >= self.threshold * (1.0 + HYSTERESIS),
            Side::Reaches => self.value == 0.0,
            Side::Differs => self.value == self.threshold,
        }
    }
}

/// What the alarms know of one layer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LayerState {
    pub(super) layer: usize,
    pub(super) dead_steps: Vec<u64>,
    violations: Window,
    dropped: Window,
    router_zeros: Streak,
    balancing_zeros: Streak,
}

/// The last values of something.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Window {
    values: VecDeque<f64>,
}

/// How long something has held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Streak {
    num_measured: u64,
    since_step: u64,
}

impl Window {
    fn push(&mut self, value: f64, len: usize) {
        // A state with a NaN could not be written as JSON, and nothing could be compared to its
        // mean.
        if value.is_finite() {
            self.values.push_back(value);
        }
        let num_old = self.values.len().saturating_sub(len);
        self.values.drain(..num_old);
    }

    fn is_full(&self, len: usize) -> bool {
        self.values.len() >= len
    }

    fn mean(&self) -> f64 {
        self.values.iter().sum::<f64>() / self.values.len() as f64
    }

    fn standard_deviation(&self) -> f64 {
        let mean = self.mean();
        let squares = self.values.iter().map(|value| (value - mean).powi(2));
        (squares.sum::<f64>() / self.values.len() as f64).sqrt()
    }
}

impl Streak {
    fn count(&mut self, step: u64, holds: bool) {
        *self = match (holds, self.num_measured) {
            (false, _) => Self::default(),
            (true, 0) => Self { num_measured: 1, since_step: step },
            (true, earlier) => Self { num_measured: earlier + 1, ..*self },
        }
    }
}

/// All readings of a step; the state takes the step in.
pub(super) fn readings<'a>(
    state: &mut AlarmsState,
    observation: &'a StepObservation,
    thresholds: &Thresholds,
) -> Vec<Reading<'a>> {
    let mut readings: Vec<Reading<'a>> = non_finite(observation).into_iter().collect();
    readings.extend(skipped_step(observation));
    readings.extend(loss_spike(&mut state.losses, observation, thresholds));
    // A layer without tokens has nothing to say, and its experts are not dead for it.
    for layer in observation.layers.iter().filter(|layer| layer.num_tokens > 0) {
        let at = Step { index: observation.step, num_steps: observation.num_steps, thresholds };
        let state = state_of(&mut state.layers, layer.layer);
        readings.extend(dead_experts(state, layer, &at));
        readings.extend(max_violation(state, layer, &at));
        readings.extend(capacity_drops(state, layer, &at));
        readings.extend(router_gradient(state, layer, &at));
        readings.extend(balancing_gradient(state, layer, &at));
        readings.extend(entropy_collapse(layer, &at));
        readings.extend(early_saturation(layer, &at));
        readings.extend(loss_below_bound(layer, &at));
        readings.extend(duplicated_counts(layer, &at));
    }
    readings
}

/// The step, and what its values are compared to.
struct Step<'t> {
    index: u64,
    num_steps: u64,
    thresholds: &'t Thresholds,
}

impl Step<'_> {
    /// A reading of a whole layer.
    fn reading(
        &self,
        kind: AlarmKind,
        layer: &LayerObservation,
        value: f64,
        threshold: f64,
    ) -> Reading<'static> {
        Reading {
            kind,
            layer: Some(layer.layer),
            expert: None,
            value,
            threshold,
            side: Side::Above,
            since_step: self.index,
            what: "",
        }
    }

    /// A reading of how often in a row something was measured.
    fn streak(&self, kind: AlarmKind, layer: &LayerObservation, streak: Streak) -> Reading<'static> {
        let threshold = self.thresholds.zero_gradient_steps as f64;
        Reading {
            side: Side::Reaches,
            since_step: streak.since_step,
            ..self.reading(kind, layer, streak.num_measured as f64, threshold)
        }
    }

    /// The first of the steps that a full window holds.
    fn window_start(&self) -> u64 {
        (self.index + 1).saturating_sub(self.thresholds.window_steps as u64)
    }
}

fn state_of(layers: &mut Vec<LayerState>, layer: usize) -> &mut LayerState {
    let index = layers.iter().position(|state| state.layer == layer).unwrap_or_else(|| {
        layers.push(LayerState { layer, ..LayerState::default() });
        layers.len() - 1
    });
    &mut layers[index]
}

fn non_finite(observation: &StepObservation) -> Option<Reading<'_>> {
    let source = observation.non_finite.as_ref()?;
    Some(Reading {
        kind: AlarmKind::NonFinite,
        layer: source.layer,
        expert: source.expert,
        value: 1.0, // A NaN is no value of JSON: one was found, none is tolerated.
        threshold: 0.0,
        side: Side::Above,
        since_step: observation.step,
        what: &source.op,
    })
}

fn skipped_step(observation: &StepObservation) -> Option<Reading<'static>> {
    let SkippedStep { what, value, limit } = observation.skipped?;
    Some(Reading {
        kind: AlarmKind::SkippedStep,
        layer: None,
        expert: None,
        value,
        threshold: limit,
        side: Side::Above,
        since_step: observation.step,
        what,
    })
}

fn loss_spike<'a>(
    losses: &mut Window,
    observation: &StepObservation,
    thresholds: &Thresholds,
) -> Option<Reading<'a>> {
    let window_steps = thresholds.loss_spike_window_steps;
    let rise =
        (thresholds.loss_spike_deviations * losses.standard_deviation()).max(thresholds.loss_spike_min_nats);
    let reading = losses.is_full(window_steps).then(|| Reading {
        kind: AlarmKind::LossSpike,
        layer: None,
        expert: None,
        value: observation.cross_entropy_nats,
        threshold: losses.mean() + rise,
        side: Side::Above,
        since_step: observation.step,
        what: "",
    });
    losses.push(observation.cross_entropy_nats, window_steps);
    reading.filter(|reading| reading.value.is_finite()) // Otherwise it is no spike but `non_finite`.
}

fn dead_experts(state: &mut LayerState, layer: &LayerObservation, at: &Step<'_>) -> Vec<Reading<'static>> {
    state.dead_steps.resize(layer.tokens_per_expert.len(), 0);
    let experts = state.dead_steps.iter_mut().zip(&layer.tokens_per_expert).enumerate();
    let reading = |(expert, (dead_steps, &load)): (usize, (&mut u64, &u64))| {
        *dead_steps = if load == 0 { *dead_steps + 1 } else { 0 };
        let threshold = at.thresholds.dead_expert_steps as f64;
        Reading {
            expert: Some(expert),
            side: Side::Reaches,
            since_step: (at.index + 1).saturating_sub(*dead_steps),
            ..at.reading(AlarmKind::DeadExpert, layer, *dead_steps as f64, threshold)
        }
    };
    experts.map(reading).collect()
}

fn max_violation(
    state: &mut LayerState,
    layer: &LayerObservation,
    at: &Step<'_>,
) -> Option<Reading<'static>> {
    let window_steps = at.thresholds.window_steps;
    let (violation, busiest) = layer.max_violation()?;
    state.violations.push(violation, window_steps);
    let threshold = at.thresholds.max_violation.unwrap_or(layer.worst_violation() / 2.0);
    let mean = state.violations.mean();
    state.violations.is_full(window_steps).then(|| Reading {
        expert: Some(busiest),
        since_step: at.window_start(),
        ..at.reading(AlarmKind::MaxViolation, layer, mean, threshold)
    })
}

fn capacity_drops(
    state: &mut LayerState,
    layer: &LayerObservation,
    at: &Step<'_>,
) -> Option<Reading<'static>> {
    let window_steps = at.thresholds.window_steps;
    state.dropped.push(layer.num_dropped as f64 / layer.num_assignments().max(1) as f64, window_steps);
    let (mean, threshold) = (state.dropped.mean(), at.thresholds.dropped_share);
    let reading = at.reading(AlarmKind::CapacityDrops, layer, mean, threshold);
    let is_full = state.dropped.is_full(window_steps);
    is_full.then(|| Reading { since_step: at.window_start(), ..reading })
}

fn router_gradient(
    state: &mut LayerState,
    layer: &LayerObservation,
    at: &Step<'_>,
) -> Option<Reading<'static>> {
    let norm = layer.router_grad_norm?;
    state.router_zeros.count(at.index, norm == 0.0 && layer.has_a_choice());
    Some(at.streak(AlarmKind::RouterGradientZero, layer, state.router_zeros))
}

fn balancing_gradient(
    state: &mut LayerState,
    layer: &LayerObservation,
    at: &Step<'_>,
) -> Option<Reading<'static>> {
    let norm = layer.balancing_grad_norm?;
    let is_stuck = norm == 0.0 && layer.has_a_choice() && !layer.is_balanced();
    state.balancing_zeros.count(at.index, is_stuck);
    Some(at.streak(AlarmKind::AuxiliaryLossWithoutGradient, layer, state.balancing_zeros))
}

/// The entropy that is further below its threshold.
fn entropy_collapse(layer: &LayerObservation, at: &Step<'_>) -> Option<Reading<'static>> {
    let entropy = |what, nats, share| Reading {
        side: Side::Below,
        what,
        ..at.reading(AlarmKind::EntropyCollapse, layer, nats, share * layer.most_nats())
    };
    let gate = entropy("gate entropy", layer.gate_entropy_nats, at.thresholds.gate_entropy_share);
    let marginal =
        entropy("marginal entropy", layer.marginal_entropy_nats, at.thresholds.marginal_entropy_share);
    let is_gate = gate.value * marginal.threshold < marginal.value * gate.threshold;
    (layer.tokens_per_expert.len() > 1).then_some(if is_gate { gate } else { marginal })
}

fn early_saturation(layer: &LayerObservation, at: &Step<'_>) -> Option<Reading<'static>> {
    let agreement = layer.agreement?;
    let is_early = (at.index as f64) < at.thresholds.saturation_share * at.num_steps as f64;
    let reading =
        at.reading(AlarmKind::EarlySaturation, layer, agreement, at.thresholds.saturation_agreement);
    (is_early && layer.has_a_choice()).then_some(reading)
}

fn loss_below_bound(layer: &LayerObservation, at: &Step<'_>) -> Option<Reading<'static>> {
    let (loss, bound) = (layer.load_balancing_loss?, layer.load_balancing_bound?);
    let threshold = bound * (1.0 - at.thresholds.bound_tolerance);
    let reading = at.reading(AlarmKind::LossBelowBound, layer, loss, threshold);
    Some(Reading { side: Side::Below, ..reading })
}

fn duplicated_counts(layer: &LayerObservation, at: &Step<'_>) -> Option<Reading<'static>> {
    let expected = layer.num_tokens * layer.top_k? as u64;
    let counted = layer.num_assignments() as f64;
    let reading = at.reading(AlarmKind::DuplicatedCounts, layer, counted, expected as f64);
    Some(Reading { side: Side::Differs, ..reading })
}

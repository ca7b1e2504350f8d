//! Alarms: what goes wrong in a run without stopping it, said once when it begins, with the layer,
//! the expert, since when, the value, the threshold and what to try.
//!
//! Each silent failure that users of other frameworks reported has a test named after it in
//! `tests.rs`.

mod bound;
mod config;
mod message;
mod observation;
mod readings;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use bound::{balancing_bound_of_any_selection, balancing_bound_of_top_k};
pub use config::{AlarmKind, AlarmsConfig};
pub use observation::{LayerObservation, SkippedStep, StepObservation};

use config::Thresholds;
use readings::{LayerState, Reading};

/// Something that began to go wrong; one line of JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// What.
    pub kind: AlarmKind,
    /// The step at which it was noticed.
    pub step: u64,
    /// The step at which it began, as far as the measurements say.
    pub since_step: u64,
    /// Index of the Transformer block; `None` if it concerns the whole run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// Index of the expert; `None` if it concerns the whole layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<usize>,
    /// What was measured, finite.
    pub value: f64,
    /// What it was compared to, finite.
    pub threshold: f64,
    /// All of it in a sentence, with what to try.
    pub message: String,
}

/// What the alarms know of the steps so far. A checkpoint holds it, so that a resumed run raises
/// what an unbroken one would.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlarmsState {
    layers: Vec<LayerState>,
    losses: readings::Window,
    active: BTreeSet<Place>,
}

/// Where an alarm was raised and has not cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Place {
    kind: AlarmKind,
    layer: Option<usize>,
    expert: Option<usize>,
}

impl Place {
    /// The busiest expert may change from step to step while the layer stays unbalanced: that is
    /// one alarm.
    fn of(reading: &Reading<'_>) -> Self {
        let is_of_expert = matches!(reading.kind, AlarmKind::DeadExpert | AlarmKind::NonFinite);
        Self { kind: reading.kind, layer: reading.layer, expert: reading.expert.filter(|_| is_of_expert) }
    }
}

/// The alarms of one run.
#[derive(Debug, Clone)]
pub struct Alarms {
    config: AlarmsConfig,
    thresholds: Thresholds,
    state: AlarmsState,
}

impl Alarms {
    /// The alarms of a new run.
    pub fn new(config: AlarmsConfig) -> Self {
        Self::resume(config, AlarmsState::default())
    }

    /// The alarms of a run that goes on from a checkpoint with this state.
    pub fn resume(config: AlarmsConfig, state: AlarmsState) -> Self {
        Self { thresholds: config.thresholds(), config, state }
    }

    /// What a checkpoint must hold.
    pub fn state(&self) -> &AlarmsState {
        &self.state
    }

    /// Steps since each expert of `layer` last got a token, this step included; empty before its
    /// first step.
    pub fn dead_steps(&self, layer: usize) -> &[u64] {
        self.state.layers.iter().find(|state| state.layer == layer).map_or(&[], |state| &state.dead_steps)
    }

    /// What begins to go wrong with this step; steps come in ascending order. An alarm is raised
    /// again only after its value has come back clearly within the threshold, so that a value that
    /// hovers there is said once.
    pub fn observe(&mut self, observation: &StepObservation) -> Vec<Alarm> {
        let readings = readings::readings(&mut self.state, observation, &self.thresholds);
        self.forget_what_has_no_reading(observation);
        let raised = readings.into_iter().filter(|reading| self.begins(reading));
        raised.map(|reading| reading.alarm(observation.step)).collect()
    }

    /// The first of these alarms that the configuration lets stop the run.
    pub fn stopping<'a>(&self, alarms: &'a [Alarm]) -> Option<&'a Alarm> {
        alarms.iter().find(|alarm| self.config.stop_on.contains(&alarm.kind))
    }

    /// Whether a reading raises its alarm now. Remembers whether it is raised.
    fn begins(&mut self, reading: &Reading<'_>) -> bool {
        if self.config.off.contains(&reading.kind) {
            return false;
        }
        let place = Place::of(reading);
        if reading.has_cleared() {
            self.state.active.remove(&place);
        }
        reading.fires() && self.state.active.insert(place)
    }

    /// A value that is no longer NaN leaves no reading behind that could clear it. Each step that is
    /// skipped is an alarm of its own.
    fn forget_what_has_no_reading(&mut self, observation: &StepObservation) {
        self.state.active.retain(|place| match place.kind {
            AlarmKind::NonFinite => observation.non_finite.is_some(),
            AlarmKind::SkippedStep => false,
            _ => true,
        });
    }
}

//! What the recorder remembers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use switchyard_flight::alarms::AlarmsState;

/// What the recorder remembers between steps; a checkpoint holds it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlightState {
    /// That of the alarms.
    pub(super) alarms: AlarmsState,
    /// Load of each expert of each mixture, earlier steps fading, by layer.
    pub(super) running_load: BTreeMap<usize, Vec<f64>>,
}

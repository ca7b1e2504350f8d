//! The flight recorder: what every router did, kept so that it can be asked later which expert in which layer
//! misbehaves, and since when. The recorder and its probes read the model; nothing here changes it. The rest is host code on
//! plain numbers.
//!
//! | question | module |
//! |---|---|
//! | what is watched in a run, and when | `recorder`, `prober` |
//! | what is on disk, in which format | [`columns`] (large: Parquet), `lines` (small: JSON lines) |
//! | which measures of one routing are worth keeping | [`probe`] |
//! | what is wrong now | [`alarms`] |
//! | which expert misbehaves since which step | [`diagnosis`] |
//! | where two runs part | [`divergence`] |
//! | what another capacity or `top_k` would have done | [`whatif`], asked of a run by [`question`] |
//! | whether a step comes out the same again | [`replay`] |

pub mod alarms;
mod bounds;
pub mod columns;
pub mod diagnosis;
pub mod divergence;
mod gates;
mod history;
mod lines;
pub mod probe;
mod prober;
pub mod question;
mod reading;
mod recorder;
pub mod replay;
mod state;
pub mod whatif;

pub use history::{LayerLoad, RunStep};
pub use prober::{Information, ProbeRow, SaturationRow};
pub use reading::{read_alarms, read_probes, read_saturation};
pub(crate) use recorder::{FlightRecorder, OpenedRecorder, StepFlight};
pub use state::FlightState;

//! The flight recorder: what every router did, kept so that it can be asked later which expert in
//! which layer misbehaves, and since when. The recorder and its probes read the model; nothing here
//! changes it. What is read and judged afterwards is host code on plain numbers: the crate
//! `flight`.
//!
//! | question | module |
//! |---|---|
//! | what is watched in a run, and when | `recorder`, `prober` |
//! | what is on disk in small files | `lines` (JSON lines), read by `reading` |
//! | what another capacity or `top_k` would have done to a run's step | [`question`] |
//! | whether a step comes out the same again | [`replay`] |

mod error;
mod gates;
mod lines;
mod prober;
pub mod question;
mod reading;
mod recorder;
pub mod replay;
mod state;

pub(crate) use gates::chosen_gates;
pub use prober::{Information, ProbeRow, SaturationRow};
pub use reading::{read_alarms, read_probes, read_saturation};
pub(crate) use recorder::{FlightRecorder, OpenedRecorder, StepFlight};
pub use state::FlightState;
